"""`ESADDetector`: the vector model with scikit-learn's interface for outlier detectors."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from esad_med.base.config import build_spec
from esad_med.method.config import PresetName, TrainConfig
from esad_med.method.datasets import MIN_NORMALS
from esad_med.method.fitting import TrainingData, fit_detector

Floats = npt.NDArray[np.float64]

_AUTO_PERCENTILE = 95


class ESADDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc] # sklearn is untyped
    """End-to-end deep semi-supervised anomaly detection for tables.

    Follows scikit-learn: higher values of `score_samples` and `decision_function` are more normal,
    and `predict` gives +1 for inliers, -1 for outliers. Columns are scaled inside, so no scaler is
    needed before it.

    Args:
        contamination: share of the unlabeled training samples that `predict` calls outliers, in
            (0, 0.5]; "auto" calls so what scores higher than 95 % of held-out training samples.
        preset: "recommended", or "paper" for the paper's literal recipe.
        hidden: layers of the encoders; None chooses by the number of columns.
        members: networks in the ensemble; None as the preset has it.
        epochs: passes over the training samples; None as the preset has it.
        settings: further settings of `TrainConfig`, such as ``{"augment": {"noise": 0.3}}``.
        device: "auto", "cpu" or "cuda".
        random_state: decides every random choice.

    Attributes:
        detector_: the trained `Detector`, which also gives both terms of the score (Eq. 17).
        offset_: `decision_function` is `score_samples` minus it.
        n_features_in_: columns seen in `fit`.
    """

    def __init__(
        self,
        *,
        contamination: float | Literal["auto"] = "auto",
        preset: PresetName = "recommended",
        hidden: tuple[int, ...] | None = None,
        members: int | None = None,
        epochs: int | None = None,
        settings: Mapping[str, Any] | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.contamination = contamination
        self.preset = preset
        self.hidden = hidden
        self.members = members
        self.epochs = epochs
        self.settings = settings
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on a table.

        Args:
            X: (n, d) numbers.
            y: (n,), -1 for labeled outliers; every other value, and None, means unlabeled. 0 and 1
                as PyOD has them are not read as labels: pass ``np.where(y == 1, -1, 1)``.

        Raises:
            ValueError: fewer than 10 unlabeled samples, values that are not finite.
            ConfigError: a setting that does not exist or an impossible value.
        """
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        semi_label = _semi_labels(y, len(X))
        normals = int((semi_label > 0).sum())
        if normals < MIN_NORMALS:
            raise ValueError(
                f"found {normals} unlabeled samples (n_samples={len(X)}), expected at least"
                f" {MIN_NORMALS}"
            )
        if self.contamination != "auto" and not 0 < self.contamination <= 0.5:
            raise ValueError(
                f"contamination must be 'auto' or in (0, 0.5], found {self.contamination!r}"
            )
        data = TrainingData(X.astype(np.float32), semi_label)
        self.detector_ = fit_detector(data, self._config())
        if self.contamination == "auto":
            self.offset_ = -self.detector_.threshold_at(_AUTO_PERCENTILE)
        else:
            scores = self._scores(data.samples[semi_label > 0])
            self.offset_ = float(np.percentile(scores, 100 * self.contamination))
        return self

    def score_samples(self, X: Any) -> Floats:
        """The score of Eq. 17 with its sign turned, (n,): higher is more normal."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self._scores(X.astype(np.float32))

    def decision_function(self, X: Any) -> Floats:
        """`score_samples` minus `offset_`, (n,): negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """+1 for inliers, -1 for outliers, (n,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _scores(self, samples: npt.NDArray[np.float32]) -> Floats:
        return -self.detector_.score(samples, precision="float64").score.astype(np.float64)

    def _config(self) -> TrainConfig:
        values = dict(self.settings or {})
        if self.hidden is not None:
            values["network"] = {**values.get("network", {}), "hidden": self.hidden}
        if self.members is not None:
            values["members"] = self.members
        if self.epochs is not None:
            values["epochs"] = self.epochs
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        values |= {"preset": self.preset, "kind": "vector", "device": self.device, "seed": seed}
        return build_spec(TrainConfig, values, source="ESADDetector")


def _semi_labels(y: Any, count: int) -> npt.NDArray[np.int8]:
    """+1 unlabeled, -1 labeled outlier, (n,)."""
    if y is None:
        return np.ones(count, np.int8)
    labels = column_or_1d(y)
    if len(labels) != count:
        raise ValueError(f"y holds {len(labels)} labels, X {count} samples")
    if set(np.unique(labels).tolist()) == {0, 1}:
        warnings.warn(
            "y holds 0 and 1: nothing is taken as a labeled outlier, which is marked by -1"
            " (np.where(y == 1, -1, 1) turns PyOD's labels into these)",
            stacklevel=3,
        )
    return np.where(labels == -1, -1, 1).astype(np.int8)
