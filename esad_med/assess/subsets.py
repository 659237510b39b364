"""Parts of a table measured side by side: AUC, sensitivity, specificity, and their differences."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from esad_med.assess.measures import CHUNK, Floats, auc, draw_weights, weighted_aucs
from esad_med.base.interrupts import raise_if_interrupted

MEASURES = ("auc", "sensitivity", "specificity")
_Z = 1.959964  # of a 95 % interval
Interval = tuple[float, float]
_UNKNOWN: Interval = (math.nan, math.nan)


@dataclass(frozen=True)
class Samples:
    """A table of scores as arrays, sorted by rising score.

    Attributes:
        truth: (n,) True where anomalous.
        score: (n,) finite, rising.
        unit: (n,) number of the patient, slide or tile each sample is drawn with.
    """

    truth: npt.NDArray[np.bool_]
    score: Floats
    unit: npt.NDArray[np.intp]


@dataclass(frozen=True)
class Subset:
    """What the scores are worth on a part of the samples; NaN where a class is missing.

    Attributes:
        n_normal: normal samples.
        n_anomalous: anomalous samples.
        units_normal: patients, slides or tiles with a normal sample.
        units_anomalous: with an anomalous one.
        values: "auc", "sensitivity", "specificity" -> share, 0-1; an anomalous sample above the
            threshold is found, a normal one up to it passes.
        intervals: the same names -> 95 % interval: of the AUC by the bootstrap over units, of the
            two shares by Wilson at the effective sample size.
        resampled: the same names -> (r,) in each resample, for differences.
    """

    n_normal: int
    n_anomalous: int
    units_normal: int
    units_anomalous: int
    values: Mapping[str, float]
    intervals: Mapping[str, Interval]
    resampled: Mapping[str, Floats]


def measure_subsets(
    samples: Samples,
    parts: Mapping[str, npt.NDArray[np.bool_]],
    *,
    threshold: float,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Subset]:
    """Measure parts of the samples, all on the same resamples of units.

    Args:
        samples: sorted by score.
        parts: name -> (n,) which samples; they may overlap.
        threshold: a score above is an alarm.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    drawn = _resample(samples, parts, threshold, resamples, np.random.default_rng(seed))
    return {
        name: _describe(samples, chosen, threshold, drawn[name]) for name, chosen in parts.items()
    }


def difference(a: Subset, b: Subset, measure: str) -> tuple[float, Interval]:
    """How much higher a measure is on ``a`` than on ``b``, and the 95 % interval."""
    apart = a.resampled[measure] - b.resampled[measure]
    telling = all(_tells(subset, measure) for subset in (a, b))
    return a.values[measure] - b.values[measure], _quantiles(apart) if telling else _UNKNOWN


def wilson(share: float, count: float) -> Interval:
    """Wilson's 95 % interval of a share of ``count`` independent ones; NaN without any."""
    if not count > 0:
        return _UNKNOWN
    square = _Z**2 / count
    center = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return max(0.0, center - half), min(1.0, center + half)


def effective_count(hit: npt.NDArray[np.bool_], unit: npt.NDArray[np.intp]) -> float:
    """How many independent samples a share of samples that come in units is worth.

    The count divided by the design effect of the ratio estimator (Rao and Scott, Biometrics 48,
    1992); the number of units where all samples agree and that effect cannot be told.
    """
    codes = np.unique(unit, return_inverse=True)[1]
    count, units = len(hit), int(codes.max(initial=-1)) + 1
    share = float(hit.mean()) if count else math.nan
    if units < 2 or share in (0.0, 1.0):
        return float(units)
    sums = np.bincount(codes, hit) - share * np.bincount(codes)
    variance = units / (units - 1) * float((sums**2).sum()) / count**2
    return min(float(count), share * (1 - share) / variance) if variance else float(count)


def _resample(
    samples: Samples,
    parts: Mapping[str, npt.NDArray[np.bool_]],
    threshold: float,
    resamples: int,
    random: np.random.Generator,
) -> dict[str, dict[str, Floats]]:
    units = int(samples.unit.max()) + 1
    found = {name: {measure: np.empty(resamples) for measure in MEASURES} for name in parts}
    chunk = max(1, CHUNK // max(units, len(samples.score)))
    for at in range(0, resamples, chunk):
        raise_if_interrupted()
        weights = draw_weights(random, min(chunk, resamples - at), units)
        here = slice(at, at + len(weights))
        for name, chosen in parts.items():
            values = _measure(samples, chosen, weights, threshold)
            for measure in MEASURES:
                found[name][measure][here] = values[measure]
    return found


def _measure(
    samples: Samples, chosen: npt.NDArray[np.bool_], weights: Floats, threshold: float
) -> dict[str, Floats]:
    """Each measure on a part in each resample."""
    truth, score = samples.truth[chosen], samples.score[chosen]
    if not len(score):
        return {measure: np.full(len(weights), np.nan) for measure in MEASURES}
    own = weights[:, samples.unit[chosen]]
    above = score > threshold
    first = np.flatnonzero(np.r_[True, np.diff(score) != 0])
    return {
        "auc": weighted_aucs(own, truth, first),
        "sensitivity": _share(own, truth & above, truth),
        "specificity": _share(own, ~truth & ~above, ~truth),
    }


def _share(weights: Floats, hit: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_]) -> Floats:
    total = weights @ among
    share: Floats = np.divide(
        weights @ hit, total, out=np.full(len(total), np.nan), where=total > 0
    )
    return share


def _describe(
    samples: Samples,
    chosen: npt.NDArray[np.bool_],
    threshold: float,
    resampled: Mapping[str, Floats],
) -> Subset:
    truth, score, unit = samples.truth[chosen], samples.score[chosen], samples.unit[chosen]
    above = score > threshold
    values, intervals = dict.fromkeys(MEASURES, math.nan), dict.fromkeys(MEASURES, _UNKNOWN)
    for measure, hit, of in (("sensitivity", above, truth), ("specificity", ~above, ~truth)):
        if of.any():
            values[measure] = float(hit[of].mean())
            count = effective_count(hit[of], unit[of])
            intervals[measure] = wilson(values[measure], count) if count > 1 else _UNKNOWN
    subset = Subset(
        n_normal=int((~truth).sum()),
        n_anomalous=int(truth.sum()),
        units_normal=len(np.unique(unit[~truth])),
        units_anomalous=len(np.unique(unit[truth])),
        values=values,
        intervals=intervals,
        resampled=resampled,
    )
    if subset.n_normal and subset.n_anomalous:
        values["auc"] = auc(truth, score)
        if _tells(subset, "auc"):
            intervals["auc"] = _quantiles(resampled["auc"])
    return subset


def _tells(subset: Subset, measure: str) -> bool:
    """Whether resamples say anything: of one patient they only show that patient."""
    needed = {
        "auc": (subset.units_normal, subset.units_anomalous),
        "sensitivity": (subset.units_anomalous,),
        "specificity": (subset.units_normal,),
    }
    return min(needed[measure]) > 1


def _quantiles(values: Floats) -> Interval:
    known = values[np.isfinite(values)]
    if len(known) < len(values) / 2:
        return _UNKNOWN
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)
