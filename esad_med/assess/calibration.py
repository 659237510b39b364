"""From scores of held-out normals to decisions whose share of false alarms is known.

A score becomes a conformal p-value: the share of normals that score at least as high, counting the
new one among them (Vovk, Gammerman & Shafer, *Algorithmic Learning in a Random World*, 2005; Bates
et al., *Testing for outliers with conformal p-values*, 2023). Several samples of a patient are not
independent, so every patient weighs the same, however many samples there are of it; this keeps the
guarantee for a sample of a new patient (Lee, Barber & Willett, *Distribution-free inference with
hierarchical data*, 2023). The guarantee asks for normals that are exchangeable with those to come:
same scanners, stains, population.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from esad_med.base.interrupts import raise_if_interrupted

Floats = npt.NDArray[np.float64]

_SLACK = 1e-9  # shares are sums of fractions
_CHUNK = 500_000  # weights held at once by the bootstrap
_FAR = 10  # times the share above a threshold, and times a unit's share


class NormalTail(NamedTuple):
    """How often normals score high: a step function of the score.

    Attributes:
        scores: (k,) ascending, distinct.
        shares: (k,) falling from 1: the share of normals that score at least ``scores[i]``, every
            unit weighing the same.
        units: independent units they come from: patients, cases or samples.
    """

    scores: Floats
    shares: Floats
    units: int


def normal_tail(
    score: npt.ArrayLike, units: npt.ArrayLike | None = None, *, points: int = 4096
) -> NormalTail:
    """The tail of the scores of held-out normals.

    Args:
        score: (n,) finite.
        units: (n,) patient or case of each; None takes each sample as its own.
        points: most steps that are kept. Beyond, half of them are the highest scores one by one,
            and the rest stands for all others, never with a smaller share than the true one.

    Raises:
        ValueError: there is no score, or one that is not finite.
    """
    values = np.asarray(score, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("a tail needs at least one score, and finite ones")
    codes = _codes(units, len(values))
    weights = _unit_weights(codes)
    distinct, place = np.unique(values, return_inverse=True)
    mass = np.bincount(place, weights=weights)
    shares = np.minimum(1.0, np.cumsum(mass[::-1])[::-1])
    shares[0] = 1.0
    kept = _kept_steps(len(distinct), points)
    # A step that is left out is taken as high as the one before it: p-values only grow.
    first = np.r_[0, kept[:-1] + 1]
    return NormalTail(distinct[kept], shares[first], int(codes.max()) + 1)


def _kept_steps(count: int, points: int) -> npt.NDArray[np.intp]:
    """Ascending places among ``count`` steps; the last is always kept."""
    if count <= points:
        return np.arange(count)
    high = points // 2
    low = np.linspace(0, count - high - 1, points - high).round().astype(np.intp)
    return np.concatenate([np.unique(low), np.arange(count - high, count)])


def p_values(score: npt.ArrayLike, tail: NormalTail) -> Floats:
    """Conformal p-values, (n,) in (0, 1]: small where hardly a normal scores so high.

    p(s) = (1 + K share(s)) / (K + 1) with K units; a new normal has p <= a with a chance of at most
    a, whatever a is.

    Args:
        score: (n,) higher is more anomalous.
        tail: of `normal_tail`.
    """
    at = np.searchsorted(tail.scores, np.asarray(score, dtype=np.float64), side="left")
    share = np.r_[tail.shares, 0.0][at]
    return np.asarray((1 + tail.units * share) / (tail.units + 1), dtype=np.float64)


def least_units(false_alarms: float) -> int:
    """How many independent normals a p-value as small as this takes: 99 for 1 %, 19 for 5 %."""
    return math.ceil(1 / false_alarms - _SLACK) - 1


def least_anomalous(sensitivity: float) -> int:
    """How many independent anomalous cases a promise of this sensitivity takes: 19 for 95 %."""
    return least_units(1 - sensitivity)


def alarm_threshold(tail: NormalTail, false_alarms: float) -> float | None:
    """The score above which p <= ``false_alarms``; None where there are too few units."""
    allowed = _allowed(false_alarms, tail.units)
    if allowed < -_SLACK:
        return None
    above = np.flatnonzero(tail.shares > allowed + _SLACK)
    return float(tail.scores[above[-1]])


def sensitivity_threshold(
    score: npt.ArrayLike, sensitivity: float, units: npt.ArrayLike | None = None
) -> float | None:
    """The highest score above which a new anomalous case lies with this chance, or None.

    The same guarantee as `alarm_threshold` gives for normals, with sides exchanged.

    Args:
        score: (n,) of held-out anomalous samples.
        sensitivity: in (0, 1).
        units: (n,) patient or case of each.
    """
    tail = normal_tail(
        -np.asarray(score, dtype=np.float64), units, points=len(np.atleast_1d(score))
    )
    threshold = alarm_threshold(tail, 1 - sensitivity)
    return None if threshold is None else float(np.nextafter(-threshold, -np.inf))


def false_alarm_interval(
    units: int, false_alarms: float, *, level: float = 0.95
) -> tuple[float, float]:
    """Where the false-alarm rate lies that this one set of normals gives, (low, high).

    The promise holds on average over calibration sets. Given one of n normals, the rate at
    threshold ``alarm_threshold`` follows Beta(l, n + 1 - l) with l = floor(a (n + 1)), and so many
    false alarms among m new normals a beta-binomial law (Vovk 2012; Angelopoulos & Bates 2023).

    Args:
        units: independent normals, n.
        false_alarms: the nominal rate, a.
        level: share of calibration sets inside the interval.
    """
    allowed = math.floor(false_alarms * (units + 1) + _SLACK)
    if allowed < 1:
        return 0.0, 0.0
    law = stats.beta(allowed, units + 1 - allowed)
    return float(law.ppf((1 - level) / 2)), float(law.ppf((1 + level) / 2))


def share_above(tail: NormalTail, threshold: float) -> float:
    """The share of the tail's normals that score above a threshold."""
    at = int(np.searchsorted(tail.scores, threshold, side="right"))
    return float(tail.shares[at]) if at < len(tail.shares) else 0.0


def discoveries(p: npt.ArrayLike, false_share: float) -> npt.NDArray[np.bool_]:
    """Which samples to point at, so that at most this share of them is normal, on average.

    Benjamini and Hochberg (1995); it holds for conformal p-values, which depend on each other
    through their common normals (Bates et al. 2023, Theorem 2).

    Args:
        p: (n,) p-values.
        false_share: in (0, 1).
    """
    values = np.asarray(p, dtype=np.float64)
    if not len(values):
        return np.zeros(0, dtype=bool)
    adjusted = stats.false_discovery_control(values, method="bh")
    return np.asarray(adjusted <= false_share + 1e-12)


def bootstrap_threshold(
    score: npt.ArrayLike,
    false_alarms: float,
    units: npt.ArrayLike | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of `alarm_threshold` when units are drawn again with replacement, (low, high).

    Args:
        score: (n,) of held-out normals; for a sensitivity threshold the negated scores of
            anomalous ones, at 1 - sensitivity.
        false_alarms: the nominal rate.
        units: (n,) patient or case of each.
        resamples: how many.
        seed: of the drawing.
        level: share of the resamples inside the interval.
    """
    order = np.argsort(-np.asarray(score, dtype=np.float64), kind="stable")
    values = np.asarray(score, dtype=np.float64)[order]
    codes = _codes(units, len(values))[order]
    weights, count = _unit_weights(codes), int(codes.max()) + 1
    allowed = max(_allowed(false_alarms, count), 0.0)
    if count == len(values):  # how many of single samples a resample draws above is binomial
        law = stats.binom(count, allowed)
        ranks = (min(int(law.ppf((1 + end * level) / 2)), count - 1) for end in (1, -1))
        low, high = (float(values[rank]) for rank in ranks)
        return low, high
    # What lies far below the threshold in the sample does so in every resample.
    kept = int(np.searchsorted(np.cumsum(weights), _FAR * allowed + _FAR / count)) + 1
    values, codes, weights = values[:kept], codes[:kept], weights[:kept]
    random, found = np.random.default_rng(seed), []
    for _ in range(math.ceil(resamples / (chunk := max(1, _CHUNK // len(values))))):
        raise_if_interrupted()
        drawn = random.multinomial(count, np.full(count, 1 / count), size=chunk)
        shares = np.cumsum(drawn[:, codes] * weights, axis=1)
        above = shares > allowed + _SLACK
        found.append(values[np.where(above.any(axis=1), np.argmax(above, axis=1), -1)])
    return _interval(np.concatenate(found)[:resamples], level)


def bootstrap_rate(
    hit: npt.ArrayLike,
    units: npt.ArrayLike | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """The share of hits, every unit weighing the same, and its interval by unit: (rate, low, high).

    With hits all alike a resample shows nothing; the interval then reaches as far as the exact one
    of Clopper and Pearson (1934) over the units.

    Args:
        hit: (n,) whether each sample is one.
        units: (n,) patient or case of each.
        resamples: how many.
        seed: of the drawing.
        level: share of the resamples inside the interval.
    """
    hits = np.asarray(hit, dtype=np.float64)
    codes = _codes(units, len(hits))
    count = int(codes.max()) + 1
    means = np.bincount(codes, hits) / np.bincount(codes)
    rate = float(means.mean())
    if means.min() == means.max() and rate in (0.0, 1.0):
        exact = stats.binomtest(round(rate * count), count).proportion_ci(level)
        return rate, float(exact.low), float(exact.high)
    random = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // count)
    found = [
        means[random.integers(0, count, size=(min(chunk, resamples - at), count))].mean(axis=1)
        for at in range(0, resamples, chunk)
    ]
    return rate, *_interval(np.concatenate(found), level)


def _allowed(false_alarms: float, units: int) -> float:
    """The share of normals that may score above: p <= a solved for it; negative for too few."""
    return (false_alarms * (units + 1) - 1) / units


def _codes(units: npt.ArrayLike | None, count: int) -> npt.NDArray[np.intp]:
    return np.arange(count) if units is None else pd.factorize(np.asarray(units))[0]


def _unit_weights(codes: npt.NDArray[np.intp]) -> Floats:
    """What a sample counts: one over the samples of its unit and the units."""
    sizes = np.bincount(codes)
    return np.asarray(1.0 / sizes[codes] / len(sizes))


def _interval(found: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
