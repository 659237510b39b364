"""Is an exported detector still the detector? Reference samples, and what may differ."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from esad_med.base.errors import ModelError

if TYPE_CHECKING:
    from esad_med.method.detector import Detector

Samples = npt.NDArray[Any]
Columns = npt.NDArray[np.float64]
Runtime = Callable[[Samples], Columns]
"""What runs an exported model: samples in, their `COLUMNS` out, (4, n)."""

#: What an exported model gives for each sample, in this order.
COLUMNS = ("score", "reconstruction", "norm", "percentile")
#: How far an exported score may lie from the detector's, as a share of the normals' spread.
TOLERANCE = 1e-4
RULE = (
    f"A score may differ by {TOLERANCE:g} of the largest of these: the distance between the 5th and"
    " the 95th percentile of held-out normals (at least 1 where terms are in standard deviations),"
    " the score's own distance from their median, a hundredth of the score. A term may differ by"
    f" {TOLERANCE:g} of the first of them or of itself. A percentile must lie between those of the"
    " scores that are allowed, give or take 0.01."
)
_ALONE = 3  # samples that are scored one by one
_COMPOSED = 24
_PERCENTILE = 0.01  # percentiles are read from a table of single precision


def compose_reference(detector: "Detector") -> Samples:
    """Reference samples where nobody has given any, the same each time.

    Pictures are noise of several grains and contrasts, ramps and plain areas between the smallest
    and the largest value; vectors lie around the center of what was trained on.
    """
    random, own = np.random.default_rng(0), detector.input
    if own.is_image:
        shares = np.stack([_picture(k, own.sample_shape, random) for k in range(_COMPOSED)])
        low, high = own.value_range
        values = low + (high - low) * shares
    else:
        values = _vectors(detector, random)
    values = values.clip(*own.value_range)
    return (np.rint(values) if own.dtype == "uint8" else values).astype(own.dtype)


def _picture(number: int, shape: Sequence[int], random: np.random.Generator) -> Samples:
    """One picture (h, w, c) in 0 ... 1; of eight the first two are plain, the third is a ramp."""
    height, width, channels = shape
    kind, level = number % 8, random.uniform(0.1, 0.9, channels)
    if kind < 2:
        return np.broadcast_to(level if kind else np.float64(number % 16 > 0), shape)
    if kind == 2:
        ramp = np.linspace(0, 1, height)[:, None] * np.linspace(0, 1, width)
        return np.broadcast_to(ramp[..., None], shape)
    grain = 2 ** (kind - 3)  # pixels
    rows, columns = math.ceil(height / grain), math.ceil(width / grain)
    noise = random.normal(0, random.uniform(0.02, 0.4), (rows, columns, channels))
    whole = noise.repeat(grain, 0).repeat(grain, 1)[:height, :width]
    return np.asarray(np.clip(level + whole, 0, 1))


def _vectors(detector: "Detector", random: np.random.Generator) -> Samples:
    (length,), (low, high) = detector.input.sample_shape, detector.input.value_range
    scaling = detector.contract.scaling
    if scaling is None:
        return random.uniform(low, high, (_COMPOSED, length))
    center, scale = np.array(scaling.center[:length]), np.array(scaling.scale[:length])
    spread = np.repeat([0.5, 1, 4], _COMPOSED // 3)[:, None]
    return np.asarray(center + scale * spread * random.normal(size=(_COMPOSED, length)))


def expected_columns(detector: "Detector", samples: Samples) -> Columns:
    """What the detector itself gives for the reference samples, (4, n).

    Raises:
        ModelError: they cannot tell a right export from a wrong one.
    """
    scores = detector.score(samples)
    found = np.stack([*scores, detector.percentile(scores.score)]).astype(np.float64)
    if not np.isfinite(found).all():
        raise ModelError(
            "the detector's own scores of the reference samples are no finite numbers; name a store"
            " like the one it was trained on: --reference STORE"
        )
    if np.ptp(found[0]) < 10 * allowed(detector, found)[0].max():
        raise ModelError(
            "all reference samples have the same score, so they would not show a wrong export; name"
            " a store with normals and outliers: --reference STORE"
        )
    return found


def allowed(detector: "Detector", expected: Columns) -> Columns:
    """How far score, reconstruction and norm may lie from the expected ones, (3, n); see `RULE`."""
    low, median, high = (detector.threshold_at(p) for p in (5, 50, 95))
    spread = max(high - low, 1.0 if detector.contract.fusion.mode == "standardized" else 0.0)
    size = np.abs(expected[:3])
    size[0] = np.maximum(np.abs(expected[0] - median), size[0] / 100)
    return TOLERANCE * np.maximum(size, spread)


def check_runtime(
    detector: "Detector", samples: Samples, expected: Columns, run: Runtime, *, name: str
) -> float:
    """Refuse a model that gives other numbers than the detector, in batches of several sizes.

    Args:
        detector: what was exported.
        samples: reference samples (n, h, w, c) or (n, d).
        expected: what the detector gives for them.
        run: the exported model in its own runtime.
        name: what is checked, for the error.

    Returns:
        The largest difference of a score.

    Raises:
        ModelError: a number differs by more than is allowed, or is none.
    """
    worst = 0.0
    for count, size in _batches(len(samples)):
        found = run_in_batches(run, samples[:count], size)
        worst = max(worst, compare(detector, found, expected[:, :count], name=name, batch=size))
    return worst


def run_in_batches(run: Runtime, samples: Samples, size: int) -> Columns:
    """What a runtime gives for all samples, ``size`` at a time."""
    parts = [run(samples[start : start + size]) for start in range(0, len(samples), size)]
    return np.concatenate(parts, axis=1)


def _batches(count: int) -> Iterator[tuple[int, int]]:
    """How many samples are scored, and how many of them at a time."""
    return iter(((_ALONE, 1), (count, 5), (count, count)))


def compare(
    detector: "Detector", found: Columns, expected: Columns, *, name: str, batch: int
) -> float:
    """The largest difference of a score.

    Raises:
        ModelError: a number differs by more than is allowed, or is none.
    """
    if found.shape != expected.shape:
        raise ModelError(f"{name} gives {found.shape} numbers, expected {expected.shape}")
    limits = allowed(detector, expected)
    differences = np.abs(found[:3] - expected[:3])
    for column, own, limit in zip(COLUMNS, differences, limits, strict=False):
        if not (own <= limit).all():  # not a number is not within it either
            at = int(np.argmax(np.where(np.isnan(own), np.inf, own - limit)))
            _refuse(name, column, at, batch, own[at], limit[at])
    near = [detector.percentile(expected[0] + sign * limits[0]) for sign in (-1, 1)]
    beyond = np.maximum(near[0] - found[3], found[3] - near[1])
    if not (beyond <= _PERCENTILE).all():
        at = int(np.argmax(np.where(np.isnan(beyond), np.inf, beyond)))
        _refuse(name, "percentile", at, batch, beyond[at], _PERCENTILE)
    return float(differences[0].max())


def _refuse(name: str, column: str, at: int, batch: int, found: float, most: float) -> None:
    raise ModelError(
        f"not exported: {column} of {name} differs from the detector's by {found:.2g} on reference"
        f" sample {at} (in batches of {batch}), at most {most:.2g} is allowed; check the versions"
        " of torch and the runtime (`esad-med doctor`), or export in another --format"
    )
