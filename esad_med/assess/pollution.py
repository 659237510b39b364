"""Which unlabeled training samples are most likely anomalies: a ranking for a person to look at."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from esad_med.base.interrupts import raise_if_interrupted

logger = logging.getLogger(__name__)

Values = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Judge = Callable[[npt.NDArray[np.float32]], Values]

_TRIMMED = 0.1  # share of the samples that a second round does not take for normal
_STRENGTH = 0.03  # inverse of the classifier's regularization, for directions of the scale:
_HALF_WHITE = 3  # each divided by the root of its deviation, best of three whitenings for tissue
_TREES = 100
_LEAST_OUTLIERS = 5  # to learn a classifier and to say what it is worth
_LEAST_GROUPS = 5
_BLOCK = 8192


@dataclass(frozen=True)
class RankingRule:
    """How a ranking comes about.

    Attributes:
        neighbors: how many nearest others are averaged over.
        references: others at most; a random part stands for more.
        folds: parts, scored in turn by what was learned from the other parts.
        seed: of every choice.
    """

    neighbors: int
    references: int
    folds: int
    seed: int


@dataclass(frozen=True)
class Ranking:
    """How suspicious samples are, higher is more so; all (n,), in their robust deviations.

    Attributes:
        score: what they are ranked by.
        distance: from what is usual, without the most suspicious tenth.
        likeness: to the labeled outliers, by a classifier; None where there are too few.
        weights: of distance and likeness in the score, by how well each tells the labeled outliers
            from the unlabeled samples, 0 to 1.
        held_out_by: "group" or "sample": what a fold keeps whole.
    """

    score: Values
    distance: Values
    likeness: Values | None
    weights: tuple[float, float]
    held_out_by: str


def rank_pollution(
    unlabeled: npt.NDArray[np.float32],
    outliers: npt.NDArray[np.float32],
    groups: npt.NDArray[np.int64],
    outlier_groups: npt.NDArray[np.int64],
    rule: RankingRule,
) -> Ranking:
    """Rank unlabeled samples by how likely they are anomalies.

    Every sample is scored by what was learned without its fold, and folds keep groups (patients,
    cases) whole where there are five of them: a slide full of tumor does not vouch for itself.
    Two terms: the distance from what is usual (to the nearest others, and an isolation forest),
    and, with five labeled outliers, a logistic regression of labeled outliers against unlabeled
    samples. Neighbors and regression are learned twice, the second time without the tenth that the
    first found most suspicious. Each term counts by its AUC for the labeled outliers against the
    unlabeled samples, as 2 AUC - 1.

    Args:
        unlabeled: (n, k) features, at least two.
        outliers: (m, k) of labeled outliers; may be none.
        groups: a number per unlabeled sample.
        outlier_groups: the same for the outliers; equal numbers are the same group.
        rule: of the ranking.
    """
    rng = np.random.default_rng(rule.seed)
    folds, outlier_folds, by_group = _deal(groups, outlier_groups, rule.folds, rng)
    pool = np.sort(rng.permutation(len(unlabeled))[: rule.references])
    distance, known = _distances(unlabeled, outliers, folds, outlier_folds, pool, rule)
    held_out_by = "group" if by_group else "sample"
    if len(outliers) < _LEAST_OUTLIERS:
        return Ranking(distance, distance, None, (1.0, 0.0), held_out_by)
    likeness, learned = _likeness(unlabeled, outliers, folds, outlier_folds, pool)
    weights = _worth(distance, known), _worth(likeness, learned)
    if not any(weights):
        weights = (1.0, 1.0)  # neither knows the labeled outliers; others may be like neither
    score = weights[0] * distance + weights[1] * likeness
    return Ranking(score, distance, likeness, weights, held_out_by)


def _deal(
    groups: Indices, outlier_groups: Indices, count: int, rng: np.random.Generator
) -> tuple[Indices, Indices, bool]:
    """A fold per sample and per outlier, and whether groups are kept whole."""
    whole = len(np.unique(groups)) >= _LEAST_GROUPS
    together = np.concatenate([groups, outlier_groups])
    keys = np.unique(together, return_inverse=True)[1] if whole else np.arange(len(together))
    count = max(2, min(count, int(keys.max()) + 1))
    size = np.bincount(keys)
    load, fold = np.zeros(count), np.zeros(len(size), np.int64)
    if not whole:
        fold = rng.permutation(len(size)) % count
    else:
        for key in rng.permutation(len(size))[np.argsort(-size[rng.permutation(len(size))])]:
            fold[key] = load.argmin()
            load[fold[key]] += size[key]
    own, others = fold[keys[: len(groups)]], fold[keys[len(groups) :]]
    if len(others) and len(np.unique(others)) == 1:  # one fold would be left without any
        others = rng.permutation(len(others)) % count
    return own, others, whole


def _distances(
    unlabeled: npt.NDArray[np.float32],
    outliers: npt.NDArray[np.float32],
    folds: Indices,
    outlier_folds: Indices,
    pool: Indices,
    rule: RankingRule,
) -> tuple[Values, Values]:
    """How far samples and labeled outliers are from the references of other folds.

    The mean of two standings: the mean distance to the nearest ones, and how soon a sample is
    isolated.
    """
    usual = np.ones(len(pool), bool)
    for _ in range(2):

        def nearest(fold: int, usual: npt.NDArray[np.bool_] = usual) -> Judge:
            others = pool[usual & (folds[pool] != fold)]
            if not len(others):
                others = pool[folds[pool] != fold] if (folds[pool] != fold).any() else pool
            count = min(rule.neighbors, len(others))
            near = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(unlabeled[others])
            return lambda part: near.kneighbors(part)[0].mean(axis=1)

        found, known = _by_other_folds(nearest, unlabeled, outliers, folds, outlier_folds)
        usual = found[pool] <= np.quantile(found[pool], 1 - _TRIMMED)
    near_by = _in_deviations(found, known)
    rare = _in_deviations(*_rarities(unlabeled, outliers, folds, outlier_folds, pool, rule.seed))
    distance, standing = ((a + b) / 2 for a, b in zip(near_by, rare, strict=True))
    return distance, standing


def _rarities(
    unlabeled: npt.NDArray[np.float32],
    outliers: npt.NDArray[np.float32],
    folds: Indices,
    outlier_folds: Indices,
    pool: Indices,
    seed: int,
) -> tuple[Values, Values]:
    """How soon random cuts isolate samples and labeled outliers from those of other folds.

    Anomalies that are many of one kind are each other's nearest, but still few.
    """

    def forest(fold: int) -> Judge:
        others = pool[folds[pool] != fold]
        trees = IsolationForest(n_estimators=_TREES, random_state=seed)
        trees.fit(unlabeled[others if len(others) else pool])
        return lambda part: -trees.score_samples(part)  # high is normal to scikit-learn

    return _by_other_folds(forest, unlabeled, outliers, folds, outlier_folds)


def _by_other_folds(
    fit: Callable[[int], Judge],
    unlabeled: npt.NDArray[np.float32],
    outliers: npt.NDArray[np.float32],
    folds: Indices,
    outlier_folds: Indices,
) -> tuple[Values, Values]:
    """Samples and labeled outliers, each judged by what was fitted without its own fold."""
    found, known = np.zeros(len(unlabeled)), np.zeros(len(outliers))
    for fold in np.unique(np.concatenate([folds, outlier_folds])):
        judge = fit(int(fold))
        for rows, place, into in ((unlabeled, folds, found), (outliers, outlier_folds, known)):
            own = np.flatnonzero(place == fold)
            for start in range(0, len(own), _BLOCK):
                raise_if_interrupted()
                part = own[start : start + _BLOCK]
                into[part] = judge(rows[part])
    return found, known


def _in_deviations(found: Values, known: Values) -> tuple[Values, Values]:
    middle, unit = _scale(found)
    return (found - middle) / unit, (known - middle) / unit


def _likeness(
    unlabeled: npt.NDArray[np.float32],
    outliers: npt.NDArray[np.float32],
    folds: Indices,
    outlier_folds: Indices,
    pool: Indices,
) -> tuple[Values, Values]:
    """Log odds of a classifier of other folds, of samples and labeled outliers."""
    spread = unlabeled[pool].std(axis=0)
    unit = np.sqrt(np.maximum(spread, 1e-6) * max(float(spread.max()), 1e-6)) / _HALF_WHITE
    usual = np.ones(len(pool), bool)
    for _ in range(2):
        found, known = np.zeros(len(unlabeled)), np.zeros(len(outliers))
        for fold in np.unique(folds):
            raise_if_interrupted()
            normals = pool[usual & (folds[pool] != fold)]
            marked = np.flatnonzero(outlier_folds != fold)
            if not len(marked) or not len(normals):  # all of one group: its own may not vouch
                continue
            model = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=1000)
            together = np.concatenate([unlabeled[normals], outliers[marked]]) / unit
            model.fit(together, np.repeat([0, 1], [len(normals), len(marked)]))
            own, held = np.flatnonzero(folds == fold), np.flatnonzero(outlier_folds == fold)
            raw = model.decision_function(unlabeled[own] / unit)
            middle, spread = _scale(raw)  # folds differ in level
            found[own] = (raw - middle) / spread
            if len(held):
                raw = model.decision_function(outliers[held] / unit)
                known[held] = (raw - middle) / spread
        usual = found[pool] <= np.quantile(found[pool], 1 - _TRIMMED)
    return found, known


def _scale(values: Values) -> tuple[float, float]:
    """Median, and how far above it the 84th percentile lies: a normal law's deviation."""
    middle, upper = np.quantile(values, [0.5, 0.84])
    return float(middle), max(float(upper - middle), 1e-9)


def _worth(scores: Values, known: Values) -> float:
    """2 AUC - 1 of labeled outliers against unlabeled samples, 0 where it is below chance."""
    ordered = np.sort(scores)
    below = np.searchsorted(ordered, known, "left") + np.searchsorted(ordered, known, "right")
    return max(0.0, float(below.mean() / len(ordered)) - 1)


def with_detector(ranking: Ranking, scores: npt.NDArray[np.float64]) -> tuple[Values, Ranking]:
    """A detector's scores in robust deviations, and a ranking in which they count for one half."""
    middle, unit = _scale(scores)
    standing = (scores - middle) / unit
    own_middle, own_unit = _scale(ranking.score)
    joined = (ranking.score - own_middle) / own_unit + standing
    return standing, replace(ranking, score=joined)
