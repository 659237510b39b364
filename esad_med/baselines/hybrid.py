"""Hybrids: a classical detector on an autoencoder's codes."""

from typing import Self

import numpy as np

from esad_med.baselines.autoencoder import Autoencoder
from esad_med.baselines.base import (
    AnomalyScores,
    Baseline,
    BaselineSettings,
    Floats,
    Labels,
    check_finite,
    check_training,
)

_CONSTANT = 1e-6  # a unit that spreads by no more than this share of its size is constant


class Hybrid:
    """A detector of vectors that sees each sample's code, as z-scores over the training samples.

    Attributes:
        detector: what learns from the codes.
        autoencoder: what encodes, or None for one of its own, trained in `fit`.
    """

    def __init__(
        self,
        detector: Baseline,
        settings: BaselineSettings,
        autoencoder: Autoencoder | None = None,
    ) -> None:
        self.detector = detector
        self.settings = settings
        self.autoencoder = autoencoder

    def fit(self, samples: Floats, y: Labels) -> Self:
        """Train the autoencoder where none was given, then the detector; see `Baseline.fit`."""
        check_training(samples, y, method="hybrid")
        if self.autoencoder is None:
            self.autoencoder = Autoencoder(self.settings).fit(samples, y)
        codes = self.autoencoder.encode(samples)
        self._center, spread = codes.mean(0, dtype=np.float64), codes.std(0, dtype=np.float64)
        constant = spread <= _CONSTANT * np.abs(codes).max(0)
        self._scale = np.where(constant, 1, spread)  # a unit that says nothing stays 0
        self.detector.fit(self._scaled(codes), y)
        return self

    def score(self, samples: Floats) -> AnomalyScores:
        """The detector's score of the codes, (m,)."""
        check_finite(samples, method="hybrid")
        if self.autoencoder is None:
            raise ValueError("this hybrid is not fitted; call fit first")
        return self.detector.score(self._scaled(self.autoencoder.encode(samples)))

    def _scaled(self, codes: Floats) -> Floats:
        scaled: Floats = ((codes - self._center) / self._scale).astype(np.float32)
        return scaled
