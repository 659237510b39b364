"""The tile grid of a slide, pure geometry, and reading its tiles in batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_prep.compiled import compile_kernel
from data_prep.slides import Slide
from data_prep.tissue import TissueMask
from esad_med.base.config import Spec
from esad_med.base.errors import SlideError

_MAX_READ_PX = 1 << 14  # what one read of a region may hold
_MAX_CANDIDATES = 50_000_000  # more tiles than this is a mistake in the stride


class TileSpec(Spec):
    """Which tiles are taken from a slide."""

    mpp: float = Field(1.0, gt=0, description="µm per pixel; 1.0 is 10x, as in the paper.")
    size_px: int = Field(64, ge=8, le=4096, description="Edge of a tile in pixels.")
    stride_px: int = Field(
        64, ge=1, le=1 << 20, description="Step from tile to tile in tile pixels."
    )
    min_tissue: float = Field(0.5, ge=0, le=1, description="Least share of tissue in a tile.")
    level_tolerance: float = Field(
        0.05, ge=0, lt=0.5, description="A level whose mpp is that near is taken as it is."
    )


@dataclass(frozen=True)
class TileGrid:
    """Which tiles, where: no pixels and no file handle. Raster order, anchored at the origin.

    Attributes:
        xy_level0: (n, 2) int64, top-left corners (x, y) in level-0 pixels.
        tissue_fraction: (n,) float32 in [0, 1].
        tile_px: edge of a tile in its own pixels.
        mpp: true resolution of the tiles in µm per pixel, near the spec's.
        edge_level0: edge of a tile in level-0 pixels.
        stride_level0: step from tile to tile in level-0 pixels.
        level: the level that is read.
        read_px: edge of a tile in that level's pixels; equals ``tile_px`` where nothing is
            resampled.
        slide_size: (width, height) of the slide in level-0 pixels.
    """

    xy_level0: npt.NDArray[np.int64]
    tissue_fraction: npt.NDArray[np.float32]
    tile_px: int
    mpp: float
    edge_level0: float
    stride_level0: float
    level: int
    read_px: int
    slide_size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.xy_level0)

    def subset(self, indices: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> "TileGrid":
        """The same grid with only these tiles, by index or by a mask."""
        return replace(
            self,
            xy_level0=self.xy_level0[indices],
            tissue_fraction=self.tissue_fraction[indices],
        )


@dataclass(frozen=True)
class TileBatch:
    """Some tiles of a grid.

    Attributes:
        indices: (b,) int64 into the grid, rising.
        tiles: (b, tile_px, tile_px, 3) uint8.
    """

    indices: npt.NDArray[np.int64]
    tiles: npt.NDArray[np.uint8]


def plan_tiles(slide: Slide, tissue: TissueMask, spec: TileSpec) -> TileGrid:
    """Lay the grid over a slide and keep the tiles with enough tissue, all wholly inside.

    The level nearest to ``spec.mpp`` is read as it is when within ``level_tolerance``; otherwise
    the next finer one, whole pixels of which make a tile, so the true mpp may differ from the
    spec's by half a pixel in ``read_px``.

    Raises:
        SlideError: the slide is coarser than the tiles, or no tile is left.
    """
    level, read_px, stride_px = _choose_level(slide, spec)
    if read_px > _MAX_READ_PX:
        raise SlideError(
            f"{slide.path.name}: a tile is {read_px} pixels wide at level {level}, expected at most"
            f" {_MAX_READ_PX}; choose a finer tiles.mpp or smaller tiles, or a slide with levels"
        )
    downsample = slide.level_downsamples[level]
    edge, stride = read_px * downsample, stride_px * downsample
    xs, ys = (_starts(length, edge, stride) for length in slide.size_level0)
    if len(xs) * len(ys) > _MAX_CANDIDATES:
        raise SlideError(
            f"{slide.path.name}: {len(xs) * len(ys)} tiles, expected at most {_MAX_CANDIDATES};"
            f" raise tiles.stride_px (now {spec.stride_px})"
        )
    unit = tissue.downsample
    share = area_shares(tissue.mask, xs / unit, ys / unit, edge / unit)
    rows, columns = np.nonzero(share >= spec.min_tissue - 1e-6)
    if not len(rows):
        raise SlideError(_explain_empty(slide, tissue, spec, share))
    return TileGrid(
        xy_level0=np.stack([xs[columns], ys[rows]], axis=1),
        tissue_fraction=share[rows, columns],
        tile_px=spec.size_px,
        mpp=edge * slide.mpp / spec.size_px,
        edge_level0=edge,
        stride_level0=stride,
        level=level,
        read_px=read_px,
        slide_size=slide.size_level0,
    )


def read_tiles(
    slide: Slide,
    grid: TileGrid,
    *,
    batch: int = 256,
    on_error: Callable[[int, SlideError], None] | None = None,
) -> Iterator[TileBatch]:
    """Read the tiles of a grid in its order: OpenSlide's pixels, or their means over areas.

    Args:
        slide: the slide the grid was planned on.
        grid: which tiles.
        batch: tiles in a batch; fewer in the last one and where tiles are damaged.
        on_error: called with the index and the error of a damaged tile, which is then left out.

    Yields:
        batches that are not empty.

    Raises:
        SlideError: a damaged tile, where ``on_error`` is None.
    """
    if grid.slide_size != slide.size_level0:
        raise ValueError(f"the grid was planned on another slide than {slide.path.name}")
    size, whole = (grid.read_px, grid.read_px), grid.read_px == grid.tile_px
    corners = grid.xy_level0.tolist()
    for start in range(0, len(grid), batch):
        wanted = range(start, min(start + batch, len(grid)))
        tiles = np.empty((len(wanted), grid.tile_px, grid.tile_px, 3), np.uint8)
        indices: list[int] = []
        for index in wanted:
            tile = tiles[len(indices)]
            x, y = corners[index]
            try:
                if whole:
                    slide.read_region((x, y), grid.level, size, out=tile)
                else:
                    tile[:] = shrink_area(slide.read_region((x, y), grid.level, size), grid.tile_px)
            except SlideError as error:
                if on_error is None:
                    raise
                on_error(index, error)
                continue
            indices.append(index)
        if indices:
            yield TileBatch(np.array(indices, np.int64), tiles[: len(indices)])


def shrink_area(picture: npt.NDArray[np.uint8], edge_px: int) -> npt.NDArray[np.uint8]:
    """Shrink a square picture by means of areas; returned as it is when it has that size.

    Args:
        picture: (e, e, 3) uint8 with e >= ``edge_px``, or smaller within the level tolerance.
        edge_px: the new edge.

    Returns:
        (edge_px, edge_px, 3) uint8; each pixel the area-weighted mean of those it covers.
    """
    if picture.shape[0] == edge_px:
        return picture
    factor, rest = divmod(picture.shape[0], edge_px)
    kernel = compile_kernel(shrink_kernel) if rest == 0 else None
    if kernel is not None:
        shrunk = np.empty((edge_px, edge_px, 3), np.uint8)
        kernel(np.ascontiguousarray(picture), factor, shrunk)
        return shrunk
    if rest == 0:
        blocks = picture.reshape(edge_px, factor, edge_px, factor, 3)
        sums = blocks.sum(axis=(1, 3), dtype=np.uint32)
        return np.asarray((sums + factor**2 // 2) // factor**2, np.uint8)
    rows = _area_means(picture.astype(np.float64), edge_px)  # (edge_px, e, 3)
    mean = _area_means(rows.swapaxes(0, 1), edge_px).swapaxes(0, 1)  # (edge_px, edge_px, 3)
    return np.asarray(np.floor(mean + (0.5 + 1e-9)), np.uint8)


def shrink_kernel(picture: Any, factor: Any, shrunk: Any) -> None:
    """`shrink_area` by a whole factor into ``shrunk`` (e, e, 3), to be compiled."""
    edge, area = shrunk.shape[0], factor * factor
    sums = np.empty(edge * 3, np.uint32)
    for y in range(edge):
        sums[:] = area // 2
        for dy in range(factor):
            row = picture[y * factor + dy]
            for x in range(edge):
                for dx in range(factor):
                    for channel in range(3):
                        sums[x * 3 + channel] += row[x * factor + dx, channel]
        for x in range(edge):
            for channel in range(3):
                shrunk[y, x, channel] = sums[x * 3 + channel] // np.uint32(area)


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
    sums = np.cumsum(values, axis=axis, dtype=np.float64)
    sums = np.concatenate([np.zeros_like(np.take(sums, [0], axis)), sums], axis)
    ends = np.clip(ends, 0, length)
    whole = np.minimum(np.floor(ends).astype(np.int64), length - 1)
    part = (ends - whole).reshape((-1, 1) if axis == 0 else (1, -1))
    low, high = np.take(sums, whole, axis), np.take(sums, whole + 1, axis)
    return np.asarray(low + (high - low) * part, np.float64)


def _starts(length: int, edge: float, stride: float) -> npt.NDArray[np.int64]:
    """Where tiles begin along one side: multiples of the stride, the last one wholly inside."""
    count = max(0, int((length - edge) / stride + 1e-9) + 1)
    starts = np.rint(np.arange(count) * stride).astype(np.int64)
    return np.asarray(starts[starts + edge <= length + 1e-6])


def _choose_level(slide: Slide, spec: TileSpec) -> tuple[int, int, int]:
    """The level to read, and the tile's edge and stride in its pixels."""
    mpps = np.array(slide.level_downsamples) * slide.mpp
    ratios = spec.mpp / mpps  # level pixels per tile pixel
    nearest = int(np.argmin(np.abs(1 / ratios - 1)))
    if abs(1 / ratios[nearest] - 1) <= spec.level_tolerance:
        return nearest, spec.size_px, spec.stride_px
    finer = np.flatnonzero(ratios > 1)
    if not len(finer):
        raise SlideError(
            f"{slide.path.name}: its finest level has {mpps[0]:.4g} µm per pixel, expected"
            f" {spec.mpp:g} or less; choose a coarser tiles.mpp, or scan again"
        )
    level = int(finer[np.argmin(ratios[finer])])
    read_px = round(spec.size_px * ratios[level])
    return level, read_px, max(1, round(spec.stride_px * read_px / spec.size_px))


def _explain_empty(
    slide: Slide, tissue: TissueMask, spec: TileSpec, share: npt.NDArray[np.float32]
) -> str:
    if not share.size:
        return (
            f"{slide.path.name}: {slide.size_level0[0]}x{slide.size_level0[1]} px at"
            f" {slide.mpp:.4g} µm is smaller than one tile of {spec.size_px * spec.mpp:g} µm"
        )
    if not tissue.mask.any():
        return (
            f"{slide.path.name}: no tissue found, the whole slide looks like glass; check the"
            " stain and the scan, or lower tissue.threshold_range"
        )
    return (
        f"{slide.path.name}: no tile has {spec.min_tissue:.0%} tissue, the best has"
        f" {share.max():.0%}; lower tiles.min_tissue"
    )


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
