"""Lesion-level scoring by the arithmetic of Camelyon16: who was found, at how many false alarms.

Ours, written from the organizers' published rules and `Evaluation_FROC.py` (Ehteshami Bejnordi et
al., JAMA 2017); docs/camelyon16.md says it in formulas and where we differ.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree
from skimage import measure

from esad_med.base.errors import CaseError
from esad_med.base.interrupts import raise_if_interrupted

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int32]

#: False positives per slide at which the challenge reads the sensitivity.
FALSE_POSITIVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Lesions:
    """The lesions of one slide that detections are held against.

    Attributes:
        labels: (h, w) int; 0 outside, else the number of the lesion.
        isolated: numbers of the lesions that are isolated tumor cells, left out of the count.
        downsample: level-0 pixels per pixel of ``labels``.
    """

    labels: Labels
    isolated: frozenset[int]
    downsample: int

    @property
    def count(self) -> int:
        """How many there are, isolated tumor cells among them."""
        return int(self.labels.max(initial=0))


@dataclass(frozen=True)
class SlideDetections:
    """What the detections of one slide are, held against its lesions.

    Attributes:
        hits: (k,) the highest probability of a detection inside each lesion, in the order of their
            numbers; 0 where nothing was found, and for isolated tumor cells.
        false_positives: probabilities of the detections outside of all lesions.
        ignored: how many detections fell on isolated tumor cells: neither of the two.
        targets: how many lesions count.
    """

    hits: Floats
    false_positives: Floats
    ignored: int
    targets: int


@dataclass(frozen=True)
class Froc:
    """The free-response curve over all slides.

    Attributes:
        false_positives: (m,) per slide, falling; the last is 0.
        sensitivity: (m,) share of the lesions found at the same thresholds.
        at: false positives per slide -> interpolated sensitivity.
        score: their mean, the challenge's FROC score, 0-1.
        slides: how many slides.
        lesions: how many lesions count.
    """

    false_positives: Floats
    sensitivity: Floats
    at: dict[float, float]
    score: float
    slides: int
    lesions: int


def find_lesions(
    tumor: npt.NDArray[np.bool_],
    *,
    mpp: float,
    downsample: int,
    growth_um: float = 75.0,
    isolated_um: float = 275.0,
) -> Lesions:
    """Lesions of a tumor mask: grown together, holes filled, numbered, the smallest noted.

    A pixel belongs to a lesion where the nearest tumor pixel is closer than half of ``growth_um``,
    as in the organizers' code: an outline grows by 37.5 µm to each side, a gap of less than 75 µm
    closes. The longest axis is that of the ellipse with the region's second moments.

    Args:
        tumor: (h, w) True on tumor.
        mpp: µm per level-0 pixel.
        downsample: level-0 pixels per pixel of the mask; 32 for level 5.
        growth_um: what a lesion gains in diameter.
        isolated_um: a grown lesion whose longest axis is below is isolated tumor cells.
    """
    if not tumor.any():  # the distance to nothing is not defined, and scipy's is to the corner
        return Lesions(np.zeros(tumor.shape, np.int32), frozenset(), downsample)
    pixel_um = mpp * downsample
    growth_px = growth_um / (2 * pixel_um)
    window = _around(tumor, math.ceil(growth_px) + 1)  # all the rest is far from any tumor
    near = ndimage.distance_transform_edt(~tumor[window]) < growth_px
    labels = np.zeros(tumor.shape, np.int32)
    labels[window] = measure.label(ndimage.binary_fill_holes(near), connectivity=2)
    isolated = {
        int(region.label)
        for region in measure.regionprops(labels)
        if region.axis_major_length < isolated_um / pixel_um
    }
    return Lesions(labels, frozenset(isolated), downsample)


def _around(mask: npt.NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """The rows and columns that hold what is True, and a margin."""
    ends = [np.flatnonzero(mask.any(axis=axis))[[0, -1]] for axis in (1, 0)]
    rows, columns = (slice(max(0, int(a) - margin), int(b) + margin + 1) for a, b in ends)
    return rows, columns


def match_detections(
    probability: npt.ArrayLike, xy_level0: npt.ArrayLike, lesions: Lesions | None
) -> SlideDetections:
    """Hold the detections of one slide against its lesions.

    Args:
        probability: (n,) above 0.
        xy_level0: (n, 2) x and y in level-0 pixels; outside of the picture there is no lesion.
        lesions: of a tumor slide, or None of a normal one, where all detections are false.
    """
    found = np.asarray(probability, np.float64)
    at = _labels_at(np.asarray(xy_level0, np.float64).reshape(-1, 2), lesions)
    count = 0 if lesions is None else lesions.count
    isolated = frozenset() if lesions is None else lesions.isolated
    ignored = np.isin(at, list(isolated))
    best = np.zeros(count + 1)
    np.maximum.at(best, at[~ignored], found[~ignored])
    return SlideDetections(best[1:], found[at == 0], int(ignored.sum()), count - len(isolated))


def _labels_at(xy: Floats, lesions: Lesions | None) -> npt.NDArray[np.int64]:
    labels = np.zeros(len(xy), np.int64)
    if lesions is not None:
        column, row = np.floor(xy / lesions.downsample).astype(np.int64).T
        height, width = lesions.labels.shape
        inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
        labels[inside] = lesions.labels[row[inside], column[inside]]
    return labels


def compute_froc(slides: Sequence[SlideDetections], at: Sequence[float] = FALSE_POSITIVES) -> Froc:
    """The curve and the score over all slides, normal ones too.

    As in the organizers' code the thresholds are all distinct probabilities but the lowest: that
    is the 0 of lesions nobody found, or else the least probable detection.

    Args:
        slides: of `match_detections`, one per slide.
        at: false positives per slide at which the sensitivity is read off.

    Raises:
        CaseError: no lesion counts.
    """
    lesions = sum(slide.targets for slide in slides)
    if not lesions:
        raise CaseError(
            f"none of {len(slides)} slides has a lesion that counts (isolated tumor cells do not);"
            " a sensitivity needs at least one"
        )
    false = np.sort(np.concatenate([slide.false_positives for slide in slides]))
    hits = np.sort(np.concatenate([slide.hits for slide in slides]))
    thresholds = np.unique(np.concatenate([false, hits]))[1:]
    per_slide = np.append(_count_from(false, thresholds), 0) / len(slides)
    sensitivity = np.append(_count_from(hits, thresholds), 0) / lesions
    values = np.interp(at, per_slide[::-1], sensitivity[::-1])
    read = {float(rate): float(value) for rate, value in zip(at, values, strict=True)}
    return Froc(per_slide, sensitivity, read, float(values.mean()), len(slides), lesions)


def _count_from(rising: Floats, thresholds: Floats) -> npt.NDArray[np.int64]:
    """How many values reach each threshold."""
    return np.asarray(len(rising) - np.searchsorted(rising, thresholds, side="left"), np.int64)


def bootstrap_froc(
    slides: Sequence[SlideDetections],
    at: Sequence[float] = FALSE_POSITIVES,
    *,
    resamples: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of the FROC score when slides are drawn again with replacement; ours.

    Returns:
        (low, high), NaN for both where fewer than two slides have a lesion.
    """
    if sum(slide.targets > 0 for slide in slides) < 2:
        return float("nan"), float("nan")
    random, found = np.random.default_rng(seed), []
    for _ in range(resamples):
        raise_if_interrupted()
        drawn = [slides[i] for i in random.integers(0, len(slides), len(slides))]
        if any(slide.targets for slide in drawn):
            found.append(compute_froc(drawn, at).score)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def suppress_neighbors(
    score: npt.ArrayLike, xy: npt.ArrayLike, *, radius: float
) -> npt.NDArray[np.int64]:
    """Non-maximum suppression: the highest remaining point, without all points around it, repeated.

    Args:
        score: (n,) higher first; equal ones in the order given.
        xy: (n, 2) positions.
        radius: a point within this distance of a chosen one is dropped, in the unit of ``xy``.

    Returns:
        Indices of the chosen points, by falling score.
    """
    values, points = np.asarray(score, np.float64), np.asarray(xy, np.float64).reshape(-1, 2)
    if not len(values):
        return np.zeros(0, np.int64)
    tree, free, chosen = KDTree(points), np.ones(len(values), bool), []
    for index in np.argsort(-values, kind="stable").tolist():
        if free[index]:
            raise_if_interrupted()
            chosen.append(index)
            free[tree.query_ball_point(points[index], radius)] = False
    return np.asarray(chosen, np.int64)
