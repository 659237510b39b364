"""Do cases of today look like those a detector was calibrated on?

A p-value is only worth something for cases that are exchangeable with the calibration's. Facts of a
case, such as the median of its tile scores or the concentration of its stains, are compared with
those of the calibration's normals: one case with their range, a batch with their distribution.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

SCORE = "score"  # of an image: a fact of batches, of which only the lower half is compared
LEAST_CASES = 5  # of a batch, and of the calibration: fewer tell nothing
_UNLIKE = 6.0  # robust standard deviations
_LEVEL = 0.001  # chance of a warning about a batch that is like the calibration, over all facts

Facts = Mapping[str, float]
Reference = Mapping[str, Sequence[float]]


def unlike(facts: Facts, reference: Reference) -> dict[str, str]:
    """The facts of one case that lie far outside of the calibration's, with where they should be.

    Far is more than six robust standard deviations (1.4826 times the median absolute deviation)
    from the median.

    Args:
        facts: name -> value.
        reference: name -> values of the calibration's normal cases.

    Returns:
        name -> such as "0.21, in the calibration 0.52 to 0.71".
    """
    found = {}
    for name, known in _known(facts, reference).items():
        if name == SCORE:
            continue  # what makes a case anomalous is nothing against its being like the others
        middle = float(np.median(known))
        spread = 1.4826 * float(np.median(np.abs(known - middle)))
        spread = max(spread, 1e-6 * max(1.0, abs(middle)))
        if abs(facts[name] - middle) > _UNLIKE * spread:
            found[name] = (
                f"{facts[name]:.3g}, in the calibration {known.min():.3g} to {known.max():.3g}"
            )
    return found


def batch_drift(batch: Sequence[Facts], reference: Reference) -> dict[str, str]:
    """The facts whose distribution over a batch is not the calibration's.

    Two-sample test of Kolmogorov and Smirnov per fact, with Bonferroni's correction for their
    number; a batch like the calibration gives a warning once in a thousand.

    Args:
        batch: facts of each case, at least `LEAST_CASES`.
        reference: name -> values of the calibration's normal cases.

    Returns:
        name -> such as "median 0.31 over 12 cases, in the calibration 0.12 over 40 (p = 2e-05)";
        empty for too few cases.
    """
    if len(batch) < LEAST_CASES:
        return {}
    names = [name for name in reference if all(name in facts for facts in batch)]
    found = {}
    for name, known in _known(dict.fromkeys(names, 0.0), reference).items():
        values = np.array([facts[name] for facts in batch], dtype=np.float64)
        if name == SCORE:
            values, known = _lower_half(values, known)
            if min(len(values), len(known)) < LEAST_CASES:
                continue
        p = float(stats.ks_2samp(values, known).pvalue)
        if p * len(reference) < _LEVEL:
            found[name] = (
                f"median {np.median(values):.3g} over {len(values)} cases, in the calibration"
                f" {np.median(known):.3g} over {len(known)} (p = {p:.1g})"
            )
    return found


def _lower_half(
    values: npt.NDArray[np.float64], known: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scores up to the calibration's median: hardly one of them is an anomaly's."""
    middle = np.median(known)
    return values[values <= middle], known[known <= middle]


def _known(facts: Facts, reference: Reference) -> dict[str, npt.NDArray[np.float64]]:
    return {
        name: np.asarray(values, dtype=np.float64)
        for name, values in reference.items()
        if name in facts and len(values) >= LEAST_CASES
    }
