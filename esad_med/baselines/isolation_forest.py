"""Isolation forest: how few random cuts set a sample apart."""

from typing import Self

from sklearn.ensemble import IsolationForest as Forest

from esad_med.baselines.base import (
    AnomalyScores,
    BaselineSettings,
    Floats,
    Labels,
    as_rows,
    check_finite,
    check_training,
)


class IsolationForest:
    """The forest of Liu et al. (ICDM 2008): 100 trees of 256 samples.

    It never sees labeled outliers. Images are flattened.
    """

    def __init__(self, settings: BaselineSettings) -> None:
        self.settings = settings

    def fit(self, samples: Floats, y: Labels) -> Self:
        """Learn from the unlabeled samples; see `Baseline.fit`."""
        check_training(samples, y, method="isolation forest")
        rows, own = as_rows(samples[y > 0]), self.settings
        self._forest = Forest(
            n_estimators=own.trees,
            max_samples=min(own.subsample, len(rows)),
            random_state=own.seed,
        ).fit(rows)
        return self

    def score(self, samples: Floats) -> AnomalyScores:
        """2 to the minus mean depth over its expectation, (m,) in 0 ... 1."""
        check_finite(samples, method="isolation forest")
        score: AnomalyScores = -self._forest.score_samples(as_rows(samples))
        return score
