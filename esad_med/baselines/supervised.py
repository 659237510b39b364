"""The fully supervised classifier, at the other end from one-class methods (supplement, D)."""

from typing import Self

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from esad_med.base.errors import CaseError
from esad_med.baselines.base import (
    AnomalyScores,
    BaselineSettings,
    Floats,
    Labels,
    check_finite,
    check_training,
)
from esad_med.baselines.networks import Encoder
from esad_med.baselines.training import apply, seeded, train


class SupervisedClassifier:
    """Deep SAD's encoder and one linear unit; unlabeled samples count as normal."""

    def __init__(self, settings: BaselineSettings) -> None:
        self.settings = settings

    def fit(self, samples: Floats, y: Labels) -> Self:
        """Train by binary cross-entropy; see `Baseline.fit`.

        Raises:
            CaseError: besides, no labeled outliers.
        """
        check_training(samples, y, method="supervised classifier")
        check_labeled(y, method="supervised classifier")
        with seeded(self.settings) as self._device:
            encoder = Encoder(samples.shape[1:], self.settings)
            self.network = nn.Sequential(encoder, nn.Linear(encoder.sizes[-1], 1))
            self.network.to(self._device)

            def loss(x: Tensor, own: Tensor, _: int) -> Tensor:
                logits = self.network(x).squeeze(1)
                return functional.binary_cross_entropy_with_logits(logits, (own < 0).float())

            train(
                self.network.parameters(),
                loss,
                samples,
                y,
                self.settings,
                epochs=self.settings.epochs,
                device=self._device,
                method="supervised classifier",
            )
        self.network.eval()
        return self

    def score(self, samples: Floats) -> AnomalyScores:
        """The logit of being an outlier, (m,)."""
        check_finite(samples, method="supervised classifier")
        return apply(self.network, samples, self._device)[:, 0].astype(np.float64)


def check_labeled(y: Labels, *, method: str) -> None:
    """Refuse training samples without labeled outliers.

    Raises:
        CaseError: there are none.
    """
    if not (y < 0).any():
        raise CaseError(
            f"{method}: found no labeled outliers, expected some; leave it out where γl is 0"
        )
