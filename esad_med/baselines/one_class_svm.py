"""One-class SVM: a border around the unlabeled samples."""

from typing import Self

from sklearn.svm import OneClassSVM

from esad_med.baselines.base import (
    AnomalyScores,
    BaselineSettings,
    Floats,
    Labels,
    as_rows,
    check_finite,
    check_training,
    choose_rows,
)


class OneClassSvm:
    """The ν-SVM of Schölkopf et al. (2001) with an RBF kernel; with that kernel it is SVDD.

    It never sees labeled outliers. Images are flattened.
    """

    def __init__(self, settings: BaselineSettings) -> None:
        self.settings = settings
        self._svm = OneClassSVM(nu=settings.nu, gamma=settings.svm_gamma)

    def fit(self, samples: Floats, y: Labels) -> Self:
        """Learn from at most `kernel_rows` unlabeled samples; see `Baseline.fit`."""
        check_training(samples, y, method="OC-SVM")
        unlabeled = samples[y > 0]
        own = self.settings
        chosen = choose_rows(y[y > 0], own.kernel_rows, seed=own.seed)
        self._svm.fit(as_rows(unlabeled[chosen]))
        return self

    def score(self, samples: Floats) -> AnomalyScores:
        """How far samples lie outside the border, (m,); 0 on it."""
        check_finite(samples, method="OC-SVM")
        outside: AnomalyScores = -self._svm.decision_function(as_rows(samples))
        return outside
