"""The tile grid of a slide, pure geometry, and reading its tiles in batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_prep.areas import area_shares, shrink_area
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
    for start in range(0, len(grid), batch):
        wanted = range(start, min(start + batch, len(grid)))
        corners = grid.xy_level0[start : wanted.stop].tolist()
        tiles = np.empty((len(wanted), grid.tile_px, grid.tile_px, 3), np.uint8)
        indices: list[int] = []
        for index, (x, y) in zip(wanted, corners, strict=True):
            tile = tiles[len(indices)]
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
