"""Deep SAD (Ruff et al., ICLR 2020)."""

from typing import Self

import torch
from torch import Tensor

from esad_med.baselines.autoencoder import Autoencoder
from esad_med.baselines.base import BaselineSettings, Floats, Labels
from esad_med.baselines.hypersphere import Hypersphere
from esad_med.baselines.training import seeded, train

_EPS = 1e-6


class DeepSad(Hypersphere):
    """Pulls unlabeled samples to the center and pushes labeled outliers away from it."""

    def __init__(self, settings: BaselineSettings, autoencoder: Autoencoder | None = None) -> None:
        super().__init__(settings, autoencoder, method="Deep SAD")

    def fit(self, samples: Floats, y: Labels) -> Self:
        """Train; see `Baseline.fit`."""
        with seeded(self.settings) as device:
            self.begin(samples, y, device)
            train(
                self.encoder.parameters(),
                lambda x, own, _: deep_sad_loss(
                    self.distances(x), own, eta=self.settings.deep_sad_eta
                ),
                samples,
                y,
                self.settings,
                epochs=self.settings.epochs,
                device=device,
                method=self.method,
            )
        return self


def deep_sad_loss(distances: Tensor, y: Tensor, *, eta: float) -> Tensor:
    """Eq. 8: mean of the distances of unlabeled, and of η / distance of labeled outliers.

    Args:
        distances: squared, (n,).
        y: semi-labels, (n,).
        eta: weight of the labeled.
    """
    return torch.where(y < 0, eta / (distances + _EPS), distances).mean()
