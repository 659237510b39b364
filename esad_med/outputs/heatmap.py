"""Heat maps of tile values: colors, rasters, and flat pyramidal TIFFs that slide viewers open."""

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import tifffile

from esad_med.base.runs import atomic_file

# Perceptually uniform, readable without red-green vision, and free of the pinks and purples of H&E.
COLORMAP = "viridis"
UNTILED = 255  # the raster's index of what no tile covers; values take 0-254
_UNTILED_RGB = (255, 255, 255)
PIXELS_PER_TILE = 4
_TIFF_TILE = 256

Bytes = npt.NDArray[np.uint8]


@cache
def _palette() -> Bytes:
    """The color of each raster index, (256, 3) uint8; the last one is the untiled white."""
    colors = mpl.colormaps[COLORMAP](np.linspace(0, 1, UNTILED))[:, :3]
    palette = np.vstack([np.rint(colors * 255), _UNTILED_RGB]).astype(np.uint8)
    palette.setflags(write=False)
    return palette


def quantize(values: npt.ArrayLike, *, limits: tuple[float, float] = (0.0, 1.0)) -> Bytes:
    """Turn values into raster indices 0-254; what lies outside the limits takes the end color.

    Args:
        values: (n,) finite numbers, higher is more anomalous.
        limits: the values of the first and the last color.
    """
    low, high = limits
    numbers = np.asarray(values, dtype=np.float64)
    if not low < high or not np.isfinite(numbers).all():
        raise ValueError(f"expected finite values and rising limits, found limits {limits}")
    share = np.clip((numbers - low) / (high - low), 0, 1)
    return np.rint(share * (UNTILED - 1)).astype(np.uint8)


def normal_limits(normal_quantiles: Mapping[float, float]) -> tuple[float, float]:
    """Limits for scores that mean the same on every slide of one detector.

    The first color is the median of the held-out normals, the middle one their 99th percentile, and
    the last one as far again above it. Percentiles themselves are no good scale: they make a mosaic
    of a normal slide and leave everything beyond the normals in one color.

    Args:
        normal_quantiles: quantile (0-1) -> score; must hold 0.5 and 0.99.
    """
    median, high = float(normal_quantiles[0.5]), float(normal_quantiles[0.99])
    spread = max(high - median, 1e-6 * max(abs(median), 1.0))
    return median, median + 2 * spread


def colorize(indices: Bytes) -> Bytes:
    """Colors (..., 3) uint8 of raster indices (...)."""
    return _palette()[indices]


def rasterize_tiles(
    values: npt.ArrayLike,
    *,
    xy_level0: npt.ArrayLike,
    edge_level0: float,
    downsample: float,
    size_px: tuple[int, int],
    limits: tuple[float, float] = (0.0, 1.0),
) -> Bytes:
    """Paint tiles into a raster; a pixel takes the mean of the tiles that cover its center.

    Args:
        values: (n,) one value per tile.
        xy_level0: (n, 2) top-left corners in level-0 pixels.
        edge_level0: edge of a tile in level-0 pixels.
        downsample: level-0 pixels per raster pixel.
        size_px: (width, height) of the raster.
        limits: the values of the first and the last color.

    Returns:
        (height, width) uint8 indices into the palette, `UNTILED` where there is no tile.
    """
    width, height = size_px
    corners = np.asarray(xy_level0, dtype=np.float64).reshape(-1, 2)
    levels = quantize(values, limits=limits)
    if len(levels) != len(corners):
        raise ValueError(f"{len(levels)} values for {len(corners)} tiles")
    # First pixel whose center is inside; rounding guards against 3.0000000001 becoming 4.
    starts = np.ceil(np.round(corners / downsample - 0.5, 6)).astype(np.int64)
    ends = np.ceil(np.round((corners + edge_level0) / downsample - 0.5, 6)).astype(np.int64)
    starts, ends = np.maximum(starts, 0), np.minimum(ends, [width, height])
    sums = np.zeros((height, width), dtype=np.uint32)
    counts = np.zeros((height, width), dtype=np.uint16)
    for (x0, y0), (x1, y1), level in zip(starts.tolist(), ends.tolist(), levels, strict=True):
        sums[y0:y1, x0:x1] += level
        counts[y0:y1, x0:x1] += 1
    raster = np.full((height, width), UNTILED, dtype=np.uint8)
    covered = counts > 0
    raster[covered] = np.rint(sums[covered] / counts[covered])
    return raster


def write_heatmap(
    path: Path,
    values: npt.ArrayLike,
    *,
    xy_level0: npt.ArrayLike,
    edge_level0: float,
    slide_size: tuple[int, int],
    slide_mpp: float,
    limits: tuple[float, float] = (0.0, 1.0),
    label: str = "anomaly score",
) -> None:
    """Write tile values as a flat, tiled 8-bit RGB pyramid that covers the whole slide.

    One heat-map pixel is a quarter of a tile's edge. The resolution tags carry its µm per pixel, so
    a viewer that aligns by mpp lays the picture exactly over the slide; its size is the slide's,
    rounded up to a whole pixel. Untiled area is white. The color scale stands in the description.

    Args:
        path: the TIFF to write, atomically.
        values: (n,) finite numbers, higher is more anomalous.
        xy_level0: (n, 2) top-left corners in level-0 pixels.
        edge_level0: edge of a tile in level-0 pixels.
        slide_size: (width, height) at level 0.
        slide_mpp: µm per level-0 pixel.
        limits: the values of the first and the last color, such as (0, 100) for percentiles.
        label: what the values are.

    Raises:
        ConfigError: the file cannot be written.
    """
    downsample = edge_level0 / PIXELS_PER_TILE
    size_px = (math.ceil(slide_size[0] / downsample), math.ceil(slide_size[1] / downsample))
    raster = rasterize_tiles(
        values,
        xy_level0=xy_level0,
        edge_level0=edge_level0,
        downsample=downsample,
        size_px=size_px,
        limits=limits,
    )
    description = json.dumps(
        {
            "software": "esad-med",
            "content": f"heat map of tiles: {label}",
            "colormap": f"{COLORMAP} from {limits[0]:g} to {limits[1]:g}; white: no tile",
            "intended_use": "research use only, not for diagnosis",
        }
    )
    with atomic_file(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=False) as writer:
        _write_levels(writer, raster, mpp=slide_mpp * downsample, description=description)


def _write_levels(
    writer: tifffile.TiffWriter, raster: Bytes, *, mpp: float, description: str
) -> None:
    level = 0
    while True:
        per_cm = 1e4 / (mpp * 2**level)
        writer.write(
            _iterate_blocks(raster),
            shape=(*raster.shape, 3),
            dtype=np.uint8,
            tile=(_TIFF_TILE, _TIFF_TILE),
            photometric="rgb",
            compression="deflate",
            subfiletype=0 if level == 0 else 1,
            resolution=(per_cm, per_cm),
            resolutionunit="CENTIMETER",
            description=description if level == 0 else None,
            metadata=None,
            software=False,
        )
        if max(raster.shape) <= _TIFF_TILE:
            return
        raster, level = _halve(raster), level + 1


def _iterate_blocks(raster: Bytes) -> Iterator[Bytes]:
    """Color one TIFF tile at a time, so that the picture is never held in full color."""
    for y in range(0, raster.shape[0], _TIFF_TILE):
        for x in range(0, raster.shape[1], _TIFF_TILE):
            block = raster[y : y + _TIFF_TILE, x : x + _TIFF_TILE]
            room = [(0, _TIFF_TILE - size) for size in block.shape]
            yield np.ascontiguousarray(colorize(np.pad(block, room, constant_values=UNTILED)))


def _halve(raster: Bytes) -> Bytes:
    """The next level: the mean of the covered ones among 2 x 2 pixels."""
    even = np.pad(raster, [(0, size % 2) for size in raster.shape], constant_values=UNTILED)
    blocks = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2)
    covered = blocks != UNTILED
    count = covered.sum(axis=(1, 3), dtype=np.uint16)
    total = np.where(covered, blocks, 0).sum(axis=(1, 3), dtype=np.uint16)
    mean = np.rint(total / np.maximum(count, 1)).astype(np.uint8)
    return np.where(count > 0, mean, np.uint8(UNTILED))
