"""Deep SVDD (Ruff et al., ICML 2018), one-class and with a soft boundary."""

from typing import Self

import torch
from torch import Tensor

from esad_med.baselines.autoencoder import Autoencoder
from esad_med.baselines.base import AnomalyScores, BaselineSettings, Floats, Labels
from esad_med.baselines.hypersphere import Hypersphere
from esad_med.baselines.training import seeded, train


class DeepSvdd(Hypersphere):
    """Pulls the codes of unlabeled samples to the center; labeled outliers are left out.

    Attributes:
        squared_radius: R² of a soft boundary, 0 without; after training that of all unlabeled
            samples (ours), so that a share ν of them scores above 0.
    """

    def __init__(
        self,
        settings: BaselineSettings,
        autoencoder: Autoencoder | None = None,
        *,
        soft: bool = False,
    ) -> None:
        super().__init__(settings, autoencoder, method="Deep SVDD")
        self.soft = soft
        self.squared_radius = torch.zeros(())

    def fit(self, samples: Floats, y: Labels) -> Self:
        """Train; see `Baseline.fit`."""
        with seeded(self.settings) as device:
            self.begin(samples, y, device)
            self.squared_radius = torch.zeros((), device=device)
            normal = y > 0
            train(
                self.encoder.parameters(),
                self._loss,
                samples[normal],
                y[normal],
                self.settings,
                epochs=self.settings.epochs,
                device=device,
                method=self.method,
            )
            if self.soft:
                distances = torch.from_numpy(super().score(samples[normal]))
                self.squared_radius = soft_boundary(distances, self.settings.soft_nu)
        return self

    def score(self, samples: Floats) -> AnomalyScores:
        """The squared distance from the center, less R² with a soft boundary, (m,)."""
        return super().score(samples) - float(self.squared_radius)

    def _loss(self, x: Tensor, _: Tensor, epoch: int) -> Tensor:
        """Eq. 4, or Eq. 3: R² + mean of what lies beyond it, divided by ν.

        R is solved for on every batch after the warm-up, as the 1 - ν quantile of the distances.
        """
        distances = self.distances(x)
        if not self.soft:
            return distances.mean()
        nu = self.settings.soft_nu
        if epoch >= self.settings.soft_warmup:
            self.squared_radius = soft_boundary(distances.detach(), nu)
        beyond = (distances - self.squared_radius).clamp(min=0)
        return self.squared_radius + beyond.mean() / nu


def soft_boundary(distances: Tensor, nu: float) -> Tensor:
    """R² with a share ν of the samples beyond R, from their squared distances (n,)."""
    return distances.sqrt().quantile(1 - nu).square()
