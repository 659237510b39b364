"""Tiles of a TIFF pyramid decoded directly: each compressed tile once, instead of per region.

OpenSlide is the judge and the fallback. A level is read directly only after some of its tiles came
out equal to OpenSlide's pixels, and whatever cannot be decoded here is left to OpenSlide. The
decoder is strict: it refuses a damaged stream, as OpenSlide does, where others fill up with gray.
"""

import heapq
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile

from data_prep.slide_header import TIFF_ERRORS

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
ReadRegion = Callable[[tuple[int, int], int, tuple[int, int]], Pixels | None]

VENDORS = frozenset({"generic-tiff", "aperio"})
_JPEG = 7
_START, _END = b"\xff\xd8", b"\xff\xd9"
_CACHE_BYTES = 128 << 20  # what a stain fit decodes of a large slide at 10x, 500 tiles all over it
_MOST_TILE_PX = 4096
_MOST_TILE_BYTES = 64 << 20
_MOST_PAGES = 64
_MOST_TILES = 20_000_000
_CHECKS = 5  # tiles of a level that are compared with OpenSlide
#: Adobe's marker (APP14) saying that no color transform was applied: Aperio leaves it out, and
#: decoders then take its RGB for YCbCr.
_IS_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


class _UnlikeError(Exception):
    """This level is not one that is decoded here."""


@dataclass(frozen=True)
class _Level:
    """Where the compressed tiles of a level lie, and how they are decoded.

    Attributes:
        size: (width, height) in pixels.
        tile: (width, height) of a tile in pixels.
        across: tiles in a row.
        offsets, counts: (n,) int64, bytes in the file; a count of 0 is a tile that was not stored.
        head: what a tile's stream begins with in place of its first marker: the JPEG tables that
            the tiles share, and `_IS_RGB` where it is missing.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    across: int
    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    head: bytes


class DirectReader:
    """Reads regions of a slide's levels out of its TIFF tiles; see `open_direct`."""

    def __init__(self, path: Path, levels: dict[int, _Level], read_region: ReadRegion) -> None:
        self._levels = levels
        self._read_region = read_region
        self._checked: dict[int, _Level | None] = {}
        self._cache = _TileCache()
        self._path = path
        self._file = path.open("rb", buffering=0)

    def close(self) -> None:
        """Close the file and forget what was decoded."""
        self._file.close()
        self.forget()

    def forget(self) -> None:
        """Free the decoded tiles, which a later read may have to decode again."""
        self._cache.clear()

    def read(self, xy: tuple[int, int], level: int, out: Pixels) -> bool:
        """Fill ``out`` (h, w, 3) with the region whose corner is (x, y) in pixels of the level.

        Returns:
            Whether that could be done; otherwise OpenSlide has to read the region.
        """
        found = self._usable(level)
        if found is None:
            return False
        (x, y), (height, width) = xy, out.shape[:2]
        if x < 0 or y < 0 or x + width > found.size[0] or y + height > found.size[1]:
            return False
        across, down = found.tile
        (row, top), (column, left) = divmod(y, down), divmod(x, across)
        if top + height <= down and left + width <= across:  # within one tile, as most are
            tile = self._tile(level, found, row * found.across + column)
            if tile is None:
                return False
            out[:] = tile[top : top + height, left : left + width]
            return True
        for row in range(y // down, (y + height - 1) // down + 1):
            for column in range(x // across, (x + width - 1) // across + 1):
                tile = self._tile(level, found, row * found.across + column)
                if tile is None:
                    return False
                top, left = row * down - y, column * across - x  # of the tile within the region
                a, b = max(0, top), max(0, left)
                part = tile[a - top : height - top, b - left : width - left]
                out[a : a + part.shape[0], b : b + part.shape[1]] = part
        return True

    def _tile(self, key: int, level: _Level, index: int) -> Pixels | None:
        """A decoded tile, or None where it cannot be had here."""
        found = self._cache.get(key, index)
        if found is None:
            found = self._decode(level, index)
            if found is not None:
                self._cache.put(key, index, found)
        return found

    def _decode(self, level: _Level, index: int) -> Pixels | None:
        count = int(level.counts[index])
        if not 0 < count <= _MOST_TILE_BYTES:
            return None
        self._file.seek(int(level.offsets[index]))
        stored = self._file.read(count)
        if not stored.startswith(_START):
            return None
        data = level.head + stored[len(_START) :]
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            if (width, height) != level.tile:
                return None
            pixels: Pixels = simplejpeg.decode_jpeg(
                data, "RGB", fastdct=False, fastupsample=False, strict=True
            )
        except ValueError:
            return None
        return pixels

    def _usable(self, key: int) -> _Level | None:
        """The level, once some of its tiles were found equal to OpenSlide's."""
        if key not in self._checked:
            level = self._levels.get(key)
            self._checked[key] = None if level is None else self._judged(key, level)
            if self._checked[key] is None:
                logger.info("%s: level %d is read by OpenSlide", self._path.name, key)
        return self._checked[key]

    def _judged(self, key: int, level: _Level) -> _Level | None:
        """The level with the head that gives OpenSlide's pixels, or None if neither does."""
        stored = np.flatnonzero(level.counts)
        some = stored[np.linspace(0, len(stored) - 1, min(_CHECKS, len(stored))).astype(int)]
        for marker in (b"", _IS_RGB):
            tried = replace(level, head=_START + marker + level.head[len(_START) :])
            if len(some) and all(self._agrees(key, tried, int(index)) for index in some):
                return tried
        return None

    def _agrees(self, key: int, level: _Level, index: int) -> bool:
        pixels = self._decode(level, index)
        if pixels is None:
            return False
        row, column = divmod(index, level.across)
        x, y = column * level.tile[0], row * level.tile[1]
        size = (min(level.tile[0], level.size[0] - x), min(level.tile[1], level.size[1] - y))
        expected = self._read_region((x, y), key, size)
        return expected is not None and np.array_equal(pixels[: size[1], : size[0]], expected)


class _TileCache:
    """Decoded tiles of the level that was read last, for readers that go in raster order.

    What a stain fit decoded all over the slide waits for its turn: the tiles that lie furthest
    behind the newest are forgotten first, and those furthest ahead where none is behind.
    """

    def __init__(self, most_bytes: int = _CACHE_BYTES) -> None:
        self._most = most_bytes
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._level = -1
        self._bytes = 0
        self._tiles: dict[int, Pixels] = {}
        self._ascending: list[int] = []  # a heap of the tiles' indices

    def get(self, level: int, index: int) -> Pixels | None:
        """A tile that was put here, if it is still known."""
        return self._tiles.get(index) if level == self._level else None

    def put(self, level: int, index: int, pixels: Pixels) -> None:
        """Keep a tile; with one of another level the former level's are forgotten."""
        if level != self._level:
            self.clear()
            self._level = level
        while self._bytes + pixels.nbytes > self._most and self._tiles:
            behind = self._ascending[0] < index
            oldest = heapq.heappop(self._ascending) if behind else max(self._tiles)
            if not behind:
                self._ascending.remove(oldest)
                heapq.heapify(self._ascending)
            self._bytes -= self._tiles.pop(oldest).nbytes
        self._tiles[index] = pixels
        heapq.heappush(self._ascending, index)
        self._bytes += pixels.nbytes


def open_direct(
    path: Path, *, level_sizes: Sequence[tuple[int, int]], read_region: ReadRegion
) -> DirectReader | None:
    """Open a slide for direct reading.

    Args:
        path: the file; of a vendor in `VENDORS`, whose tiles neither overlap nor shift.
        level_sizes: (width, height) of OpenSlide's levels.
        read_region: OpenSlide's pixels: corner in pixels of the level, level, size; None where the
            file is damaged.

    Returns:
        None where no level consists of JPEG tiles.
    """
    levels: dict[int, _Level] = {}
    try:
        with tifffile.TiffFile(path) as tiff:
            pages: dict[tuple[int, int], tifffile.TiffPage] = {}
            for page in islice(tiff.pages, _MOST_PAGES):
                pages.setdefault((page.imagewidth, page.imagelength), page)
            for index, size in enumerate(level_sizes):
                if size in pages:
                    try:
                        levels[index] = _describe(pages[size], path.stat().st_size)
                    except _UnlikeError as error:
                        logger.info("%s: level %d: %s", path.name, index, error)
        return DirectReader(path, levels, read_region) if levels else None
    except TIFF_ERRORS as error:
        logger.info("%s: read by OpenSlide (%s)", path.name, error)
        return None


def _describe(page: tifffile.TiffPage, file_bytes: int) -> _Level:
    """A TIFF page as a level.

    Raises:
        _UnlikeError: no JPEG tiles of three bytes a pixel, or sizes that cannot be.
    """
    if (page.compression, page.planarconfig, page.samplesperpixel) != (_JPEG, 1, 3):
        raise _UnlikeError("not in JPEG tiles of three channels")
    if page.bitspersample != 8 or page.is_subifd:
        raise _UnlikeError("not a level of 8 bits a channel")
    width, height, across, down = (
        int(value) for value in (page.imagewidth, page.imagelength, page.tilewidth, page.tilelength)
    )
    if not (0 < across <= _MOST_TILE_PX and 0 < down <= _MOST_TILE_PX):
        raise _UnlikeError(f"tiles of {across}x{down} px")
    columns, rows = -(-width // across), -(-height // down)
    if not len(page.dataoffsets) == len(page.databytecounts) == columns * rows <= _MOST_TILES:
        raise _UnlikeError(f"{len(page.dataoffsets)} tiles, expected {columns * rows}")
    offsets = np.asarray(page.dataoffsets, np.int64)
    counts = np.asarray(page.databytecounts, np.int64)
    if ((offsets < 0) | (counts < 0) | (offsets + counts > file_bytes)).any():
        raise _UnlikeError("tiles beyond the end of the file")
    tables = page.jpegtables or _START + _END
    return _Level(
        size=(width, height),
        tile=(across, down),
        across=columns,
        offsets=offsets,
        counts=counts,
        head=tables[: -len(_END)],
    )
