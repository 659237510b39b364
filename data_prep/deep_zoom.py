"""Deep zoom: a slide as square tiles at every halving, cut when they are asked for."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_prep.areas import shrink_by
from data_prep.slides import Slide
from esad_med.base.errors import SlideError

logger = logging.getLogger(__name__)

_READ_PIXELS = 1 << 24  # of a stored level for one tile; beyond it an overview is cut
_DAMAGED = 160  # gray, which no glass is

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ZoomGrid:
    """Which deep-zoom tiles a slide has; no pixels. The last level is the slide's level 0.

    Attributes:
        size_level0: (width, height) in level-0 pixels.
        tile_px: edge of a tile without its overlap.
        overlap: pixels that a tile shows of each neighbor, against seams.
    """

    size_level0: tuple[int, int]
    tile_px: int = 510
    overlap: int = 1

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level, the coarsest, of one pixel, first."""
        sizes = [self.size_level0]
        while max(sizes[-1]) > 1:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        return tuple(reversed(sizes))

    @property
    def first_level(self) -> int:
        """The finest level that one tile shows as a whole; coarser ones need not be asked for."""
        return max(i for i, size in enumerate(self.sizes) if i == 0 or max(size) <= self.tile_px)

    def counts(self, level: int) -> tuple[int, int]:
        """How many tiles a level has across and down."""
        width, height = self.sizes[level]
        return -(-width // self.tile_px), -(-height // self.tile_px)

    def addresses(self) -> Iterator[tuple[int, int, int]]:
        """(level, column, row) of every tile from the first level on."""
        for level in range(self.first_level, len(self.sizes)):
            across, down = self.counts(level)
            yield from ((level, x, y) for y in range(down) for x in range(across))

    def box(self, level: int, column: int, row: int) -> tuple[int, int, int, int]:
        """First and last x and y of a tile in pixels of its level, (x0, y0, x1, y1).

        Raises:
            ValueError: there is no such tile.
        """
        if not 0 <= level < len(self.sizes):
            raise ValueError(f"level {level}: expected 0 to {len(self.sizes) - 1}")
        across, down = self.counts(level)
        if not (0 <= column < across and 0 <= row < down):
            raise ValueError(f"tile {column}, {row}: level {level} has {across} x {down}")
        spans = zip((column, row), self.sizes[level], strict=True)
        (x0, x1), (y0, y1) = (self._span(index, side) for index, side in spans)
        return x0, y0, x1, y1

    def _span(self, index: int, side: int) -> tuple[int, int]:
        start = max(0, index * self.tile_px - self.overlap)
        return start, min(side, (index + 1) * self.tile_px + self.overlap)


class DeepZoom:
    """The tiles of a slide, cut when they are asked for. One thread at a time, as `Slide`.

    A tile has the means of areas of pixels, taken from the coarsest stored level that is fine
    enough. Where a file is damaged a tile is gray.

    Args:
        slide: an open slide.
        grid: of a slide of this size.
    """

    def __init__(self, slide: Slide, grid: ZoomGrid) -> None:
        if grid.size_level0 != slide.size_level0:
            raise ValueError(f"a grid of {grid.size_level0} for a slide of {slide.size_level0}")
        self.slide, self.grid = slide, grid

    def tile(self, level: int, column: int, row: int) -> Bytes:
        """One tile, (h, w, 3) uint8 on white.

        Raises:
            ValueError: there is no such tile.
        """
        x0, y0, x1, y1 = self.grid.box(level, column, row)
        try:
            return self._cut(2 ** (len(self.grid.sizes) - 1 - level), (x0, y0, x1, y1))
        except SlideError as error:
            logger.warning("%s", error)
            return np.full((y1 - y0, x1 - x0, 3), _DAMAGED, np.uint8)

    def _cut(self, downsample: int, box: tuple[int, int, int, int]) -> Bytes:
        """The pixels of a box (x0, y0, x1, y1) of the level with this downsample."""
        stored = self.slide.level_downsamples
        level = max(i for i, d in enumerate(stored) if d <= downsample * 1.01)
        factor = downsample / stored[level]
        x0, y0, x1, y1 = box
        if (x1 - x0) * (y1 - y0) * factor**2 > _READ_PIXELS:
            return self._from_overview(downsample, box)
        size = self.slide.level_sizes[level]
        left, top = round(x0 * factor), round(y0 * factor)
        right = max(left + 1, min(size[0], round(x1 * factor)))
        bottom = max(top + 1, min(size[1], round(y1 * factor)))
        corner = (round(left * stored[level]), round(top * stored[level]))
        region = self.slide.read_region(corner, level, (right - left, bottom - top))
        if abs(factor - round(factor)) < 1e-9:
            region = shrink_by(region, round(factor))
        return _resize(region, (x1 - x0, y1 - y0))

    @cached_property
    def _overview(self) -> tuple[Image.Image, float]:
        """The slide on at most 16 Mpx, and its level-0 pixels per pixel."""
        rgb, downsample = self.slide.thumbnail(self.slide.mpp)
        return Image.fromarray(rgb), downsample

    def _from_overview(self, downsample: int, box: tuple[int, int, int, int]) -> Bytes:
        picture, per_pixel = self._overview
        scale = downsample / per_pixel
        x0, y0, x1, y1 = box
        part = (
            *(x0 * scale, y0 * scale),
            *(min(x1 * scale, picture.width), min(y1 * scale, picture.height)),
        )
        return np.asarray(picture.resize((x1 - x0, y1 - y0), Image.Resampling.BOX, part))


def _resize(rgb: Bytes, size: tuple[int, int]) -> Bytes:
    """To (width, height), where levels are no whole multiples of each other."""
    if (rgb.shape[1], rgb.shape[0]) == size:
        return rgb
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BOX))
