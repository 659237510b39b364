"""The autoencoder that several baselines begin with, and CAE, which scores by it."""

from typing import Self

import numpy as np
from torch import Tensor
from torch.nn import functional

from esad_med.baselines.base import (
    AnomalyScores,
    BaselineSettings,
    Floats,
    Labels,
    check_finite,
    check_training,
)
from esad_med.baselines.networks import Decoder, Encoder
from esad_med.baselines.training import apply, seeded, train


class Autoencoder:
    """Trained on squared errors of the unlabeled samples alone.

    Labeled outliers are left out, so that CAE and the hybrids, which the paper has as unsupervised
    but for SSAD, never see them, and one autoencoder serves all of a run.

    Attributes:
        encoder: the first half, once fitted.
    """

    def __init__(self, settings: BaselineSettings) -> None:
        self.settings = settings

    def fit(self, samples: Floats, y: Labels) -> Self:
        """Train; see `Baseline.fit`."""
        check_training(samples, y, method="autoencoder")
        with seeded(self.settings) as self._device:
            self.encoder = Encoder(samples.shape[1:], self.settings).to(self._device)
            self._decoder = Decoder(self.encoder).to(self._device)
            normal = y > 0
            train(
                [*self.encoder.parameters(), *self._decoder.parameters()],
                lambda x, _, __: functional.mse_loss(self._decoder(self.encoder(x)), x),
                samples[normal],
                y[normal],
                self.settings,
                epochs=self.settings.pretrain_epochs,
                device=self._device,
                method="autoencoder",
            )
        self.encoder.eval()
        self._decoder.eval()
        return self

    def encode(self, samples: Floats) -> Floats:
        """The code of each sample, (n, code)."""
        return apply(self.encoder, samples, self._device)

    def errors(self, samples: Floats) -> AnomalyScores:
        """Mean squared error of each sample's reconstruction, (n,)."""

        def error(x: Tensor) -> Tensor:
            squared: Tensor = (self._decoder(self.encoder(x)) - x).square()
            return squared.flatten(1).mean(1)

        return apply(error, samples, self._device).astype(np.float64)


class Cae:
    """The (convolutional) autoencoder's reconstruction error (Makhzani & Frey; supplement, D)."""

    def __init__(self, settings: BaselineSettings, autoencoder: Autoencoder | None = None) -> None:
        self.settings = settings
        self.autoencoder = autoencoder

    def fit(self, samples: Floats, y: Labels) -> Self:
        """Train the autoencoder where none was given; see `Baseline.fit`."""
        check_training(samples, y, method="CAE")
        if self.autoencoder is None:
            self.autoencoder = Autoencoder(self.settings).fit(samples, y)
        return self

    def score(self, samples: Floats) -> AnomalyScores:
        """The reconstruction error, (m,)."""
        check_finite(samples, method="CAE")
        if self.autoencoder is None:
            raise ValueError("this CAE is not fitted; call fit first")
        return self.autoencoder.errors(samples)
