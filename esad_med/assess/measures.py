"""Measures of how well a score tells two classes apart, and the bootstrap interval of the AUC."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn import metrics

from esad_med.base.interrupts import raise_if_interrupted

Floats = npt.NDArray[np.float64]

_LEAST_GROUPS = 2  # of each class: resamples of one show nothing of what another would change
_FEW_GROUPS = 1000
CHUNK = 250_000  # weights held at once by the bootstrap: what stays in a core's cache


def auc(truth: npt.ArrayLike, score: npt.ArrayLike) -> float:
    """Area under the ROC curve, 0-1: how often an anomalous sample outscores a normal one.

    Args:
        truth: (n,) 0 normal, 1 anomalous; both must occur.
        score: (n,) finite, higher is more anomalous; a tie counts one half.
    """
    return float(metrics.roc_auc_score(truth, score))


def average_precision(truth: npt.ArrayLike, score: npt.ArrayLike) -> float:
    """Mean precision over the anomalous samples in falling order of score, 0-1."""
    return float(metrics.average_precision_score(truth, score))


def roc_curve(truth: npt.ArrayLike, score: npt.ArrayLike) -> tuple[Floats, Floats]:
    """False-positive and true-positive rate at every distinct threshold, (k,) each, from 0 to 1."""
    fpr, tpr, _ = metrics.roc_curve(truth, score, drop_intermediate=False)
    return fpr, tpr


def sensitivity_at_specificity(
    truth: npt.ArrayLike, score: npt.ArrayLike, specificity: float
) -> float:
    """Highest sensitivity among thresholds that pass at least this share of the normals."""
    fpr, tpr = roc_curve(truth, score)
    return float(tpr[fpr <= 1 - specificity + 1e-9].max())


def set_aside_share(
    truth: npt.ArrayLike, score: npt.ArrayLike, *, sensitivity: float = 0.99
) -> float:
    """Share of the normals nobody must look at when this share of the anomalous is to be found."""
    fpr, tpr = roc_curve(truth, score)
    return float(1 - fpr[tpr >= sensitivity - 1e-9].min())


def bootstrap_auc(
    truth: npt.ArrayLike,
    score: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of the AUC when whole groups are drawn again with replacement.

    A resample is a weight per group: how often it was drawn. For few groups, the pairs that the
    anomalous samples of one win over the normals of another are counted once, and every AUC is a
    product with that table; for many, the scores are sorted once, and every AUC is a cumulated sum
    of weights. Resamples that lack a class are left out.

    Args:
        truth: (n,) 0 normal, 1 anomalous.
        score: (n,) finite, higher is more anomalous.
        groups: (n,) patient or slide of each sample; None draws single samples.
        resamples: how many.
        seed: of the drawing.
        level: share of the resamples inside the interval.

    Returns:
        (low, high), or NaN for both where they would say nothing: where a class stands in one
        group only, or fewer than half of the resamples hold both.
    """
    labels, values = np.asarray(truth, dtype=bool), np.asarray(score, dtype=np.float64)
    codes = np.arange(len(labels)) if groups is None else pd.factorize(np.asarray(groups))[0]
    count = int(codes.max()) + 1
    if min(len(np.unique(codes[labels == kind])) for kind in (False, True)) < _LEAST_GROUPS:
        return float("nan"), float("nan")
    resample = _resample_few if count <= _FEW_GROUPS else _resample_many
    found = resample(labels, values, codes, count, resamples, np.random.default_rng(seed))
    found = found[np.isfinite(found)]
    if len(found) < resamples / 2:
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resample_few(
    labels: npt.NDArray[np.bool_],
    values: Floats,
    codes: npt.NDArray[np.intp],
    count: int,
    resamples: int,
    random: np.random.Generator,
) -> Floats:
    """AUC of each resample from the pairs won between groups, (count, count)."""
    sizes = [np.bincount(codes[chosen], minlength=count) for chosen in (~labels, labels)]
    anomalous, own = values[labels], codes[labels]
    wins = np.empty((count, count))
    for group in range(count):
        raise_if_interrupted()
        normals = np.sort(values[~labels & (codes == group)])
        below = [np.searchsorted(normals, anomalous, side=side) for side in ("left", "right")]
        wins[:, group] = np.bincount(own, (below[0] + below[1]) / 2, minlength=count)
    weights = draw_weights(random, resamples, count)
    pairs = (weights @ sizes[0]) * (weights @ sizes[1])
    return _divide(((weights @ wins) * weights).sum(axis=1), pairs)


def _resample_many(
    labels: npt.NDArray[np.bool_],
    values: Floats,
    codes: npt.NDArray[np.intp],
    count: int,
    resamples: int,
    random: np.random.Generator,
) -> Floats:
    """AUC of each resample from sorted scores, some resamples at a time."""
    order = np.argsort(values, kind="stable")
    labels, codes = labels[order], codes[order]
    first = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])
    chunk = max(1, CHUNK // len(labels))
    found = np.empty(resamples)
    for at in range(0, resamples, chunk):
        raise_if_interrupted()
        weights = draw_weights(random, min(chunk, resamples - at), count)[:, codes]
        found[at : at + chunk] = weighted_aucs(weights, labels, first)
    return found


def draw_weights(random: np.random.Generator, rows: int, count: int) -> Floats:
    """How often each of ``count`` groups comes up in each of ``rows`` drawings, (rows, count)."""
    drawn = random.integers(0, count, size=(rows, count)) + count * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(float)


def weighted_aucs(
    weights: Floats, labels: npt.NDArray[np.bool_], first: npt.NDArray[np.intp]
) -> Floats:
    """AUC of each row of weights (r, n); samples in rising order, ``first`` starts each tie."""
    normal = np.add.reduceat(weights * ~labels, first, axis=1)
    anomalous = np.add.reduceat(weights * labels, first, axis=1)
    below = np.cumsum(normal, axis=1) - normal / 2
    pairs = normal.sum(axis=1) * anomalous.sum(axis=1)
    wins = (anomalous * below).sum(axis=1)
    return _divide(wins, pairs)


def _divide(wins: Floats, pairs: Floats) -> Floats:
    """Share of pairs won, NaN where there is no pair."""
    found: Floats = np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)
    return found
