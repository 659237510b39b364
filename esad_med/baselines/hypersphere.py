"""What Deep SVDD and Deep SAD share: an encoder from the autoencoder, and a center to be near."""

import copy

import numpy as np
import torch
from torch import Tensor

from esad_med.baselines.autoencoder import Autoencoder
from esad_med.baselines.base import (
    AnomalyScores,
    BaselineSettings,
    Floats,
    Labels,
    check_finite,
    check_training,
)
from esad_med.baselines.networks import Encoder
from esad_med.baselines.training import apply

_LEAST_CENTER = 0.1


class Hypersphere:
    """An encoder whose codes should lie near a center; the score is the squared distance.

    Attributes:
        encoder: starts with the autoencoder's weights.
        center: mean of the first codes of the unlabeled samples, (code,); no entry lies within .1
            of zero, which the zero map would reach.
    """

    def __init__(
        self, settings: BaselineSettings, autoencoder: Autoencoder | None, *, method: str
    ) -> None:
        self.settings = settings
        self.autoencoder = autoencoder
        self.method = method

    def begin(self, samples: Floats, y: Labels, device: torch.device) -> None:
        """Take over the autoencoder's encoder, fix the center."""
        check_training(samples, y, method=self.method)
        autoencoder = self.autoencoder or Autoencoder(self.settings).fit(samples, y)
        self.device = device
        self.encoder: Encoder = copy.deepcopy(autoencoder.encoder).to(device)
        codes = apply(self.encoder.eval(), samples[y > 0], device)
        self.center = _away_from_zero(torch.from_numpy(codes.mean(0))).to(device)
        self.encoder.train()

    def distances(self, x: Tensor) -> Tensor:
        """Squared distances of the codes from the center, (n,)."""
        offset: Tensor = self.encoder(x) - self.center
        return offset.square().sum(1)

    def score(self, samples: Floats) -> AnomalyScores:
        """The squared distance from the center, (m,)."""
        check_finite(samples, method=self.method)
        self.encoder.eval()
        return apply(self.distances, samples, self.device).astype(np.float64)


def _away_from_zero(center: Tensor) -> Tensor:
    side = torch.where(center < 0, -_LEAST_CENTER, _LEAST_CENTER)
    return torch.where(center.abs() < _LEAST_CENTER, side, center)
