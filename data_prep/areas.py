"""Means over areas of pixels: smaller pictures, and shares of a mask."""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.compiled import compile_kernel


def shrink_by(rgb: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint8]:
    """Means of factor x factor pixels; what is left over at the edges has its own, smaller mean.

    Args:
        rgb: (h, w, 3) uint8.
        factor: at least 1.

    Returns:
        (ceil(h / factor), ceil(w / factor), 3) uint8; halves are rounded up.
    """
    if factor == 1:
        return rgb
    height, width = (-(-side // factor) for side in rgb.shape[:2])
    whole = rgb.shape[:2] == (height * factor, width * factor)
    kernel = compile_kernel(shrink_kernel) if whole else None
    if kernel is not None:
        shrunk = np.empty((height, width, 3), np.uint8)
        kernel(np.ascontiguousarray(rgb), factor, shrunk)
        return shrunk
    sums = np.zeros((height, width, 3), np.uint32)
    for dy in range(factor):
        for dx in range(factor):
            part = rgb[dy::factor, dx::factor]
            sums[: part.shape[0], : part.shape[1]] += part
    heights, widths = (np.full(count, factor) for count in (height, width))
    heights[-1] -= height * factor - rgb.shape[0]
    widths[-1] -= width * factor - rgb.shape[1]
    areas = (heights[:, None] * widths)[..., None]
    return np.asarray((sums + areas // 2) // areas, np.uint8)


def shrink_kernel(picture: Any, factor: Any, shrunk: Any) -> None:
    """`shrink_by` of whole areas into ``shrunk`` (h, w, 3), to be compiled."""
    height, width, area = shrunk.shape[0], shrunk.shape[1], factor * factor
    sums = np.empty(width * 3, np.uint32)
    for y in range(height):
        sums[:] = area // 2
        for dy in range(factor):
            row = picture[y * factor + dy]
            for x in range(width):
                for dx in range(factor):
                    for channel in range(3):
                        sums[x * 3 + channel] += row[x * factor + dx, channel]
        for x in range(width):
            for channel in range(3):
                shrunk[y, x, channel] = sums[x * 3 + channel] // np.uint32(area)


def shrink_area(picture: npt.NDArray[np.uint8], edge_px: int) -> npt.NDArray[np.uint8]:
    """Shrink a square picture by means of areas; returned as it is when it has that size.

    Args:
        picture: (e, e, 3) uint8 with e >= ``edge_px``, or smaller within the level tolerance.
        edge_px: the new edge.

    Returns:
        (edge_px, edge_px, 3) uint8; each pixel the area-weighted mean of those it covers.
    """
    factor, rest = divmod(picture.shape[0], edge_px)
    if rest == 0:
        return shrink_by(picture, factor)
    rows = _area_means(picture.astype(np.float64), edge_px)  # (edge_px, e, 3)
    mean = _area_means(rows.swapaxes(0, 1), edge_px).swapaxes(0, 1)  # (edge_px, edge_px, 3)
    return np.asarray(np.floor(mean + (0.5 + 1e-9)), np.uint8)


def area_shares(
    mask: npt.NDArray[np.bool_],
    xs: npt.NDArray[np.float64],
    ys: npt.NDArray[np.float64],
    edge: float,
) -> npt.NDArray[np.float32]:
    """Share of True area in squares on a grid, exact also where edges cut through mask pixels.

    Args:
        mask: (h, w) bool; outside it all is False.
        xs: (m,) left edges in mask pixels, not necessarily whole.
        ys: (n,) top edges.
        edge: edge of the squares, > 0.

    Returns:
        (n, m) float32 in [0, 1].
    """
    below = _cumulate(mask, ys + edge, axis=0) - _cumulate(mask, ys, axis=0)  # (n, w)
    area = _cumulate(below, xs + edge, axis=1) - _cumulate(below, xs, axis=1)  # (n, m)
    return np.clip(area / edge**2, 0, 1).astype(np.float32)


def _cumulate(
    values: npt.NDArray[np.generic], ends: npt.NDArray[np.float64], *, axis: int
) -> npt.NDArray[np.float64]:
    """Integral from 0 to each of ``ends`` of a function that is constant on each pixel."""
    length = values.shape[axis]
    kind = np.int32 if values.dtype == bool else np.float64
    sums = np.zeros(tuple(n + (k == axis) for k, n in enumerate(values.shape)), kind)
    np.cumsum(values, axis=axis, dtype=kind, out=sums[1:] if axis == 0 else sums[:, 1:])
    ends = np.clip(ends, 0, length)
    whole = np.minimum(np.floor(ends).astype(np.int64), length - 1)
    part = (ends - whole).reshape((-1, 1) if axis == 0 else (1, -1))
    low, high = np.take(sums, whole, axis), np.take(sums, whole + 1, axis)
    return np.asarray(low + (high - low) * part, np.float64)


def _area_means(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Means over ``count`` equal stretches of the first axis, (count, ...)."""
    pixels, weights = _area_weights(len(values), count)
    mean = np.zeros((count, *values.shape[1:]))
    for column in range(pixels.shape[1]):
        mean += values[pixels[:, column]] * weights[:, column, None, None]
    return mean


@lru_cache(maxsize=8)
def _area_weights(length: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Which pixels each of ``count`` stretches covers, and their shares: both (count, k)."""
    edges = np.linspace(0, length, count + 1)
    first = np.floor(edges[:-1] + 1e-9).astype(np.int64)
    pixels = first[:, None] + np.arange(-(-length // count) + 1)
    low = np.maximum(edges[:-1, None], pixels)
    high = np.minimum(edges[1:, None], pixels + 1)
    return np.minimum(pixels, length - 1), np.maximum(high - low, 0) * (count / length)
