"""A slide as large as scanners make them, composed in a minute: compressed tiles are reused.

For measuring speed and memory. Blocks of composed tissue are compressed once per level and laid
out many times; a coarse level shows the means of what the next finer one does.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile

from data_prep.color import Bytes
from data_prep.demo_slides import compose_demo_picture, source_concentrations
from data_prep.synthetic import GLASS, blob_radius
from esad_med.base.runs import atomic_file

BLOCK = 4096  # level-0 pixels; whole tiles down to a sixteenth
_TILE = 256
_LEVELS = 5
_QUALITY = 80
_BLOCKS = 6


def compose_large_slide(path: Path, edge_px: int, *, seed: int = 0, mpp: float = 0.25) -> int:
    """Write a tiled JPEG pyramid of ``edge_px`` squared, rounded up to whole blocks of 4096.

    Tissue fills a blob with a wavy outline, about half of the area; the rest is glass.

    Args:
        path: the file, a BigTIFF where it gets large.
        edge_px: side in level-0 pixels.
        seed: decides everything.
        mpp: µm per pixel of level 0.

    Returns:
        The true edge in level-0 pixels.

    Raises:
        ConfigError: the file cannot be written.
    """
    rng = np.random.default_rng(seed)
    side = -(-edge_px // BLOCK)
    layout = _lay_out(side, rng)
    blocks = [np.full((BLOCK, BLOCK, 3), GLASS, np.uint8), *_compose_blocks(rng)]
    with (
        atomic_file(path) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=side > 8) as writer,
    ):
        for level in range(_LEVELS):
            per_cm = 1e4 / (mpp * 2**level)
            edge = side * (BLOCK >> level)
            writer.write(
                _segments(layout, [_compress(block) for block in blocks]),
                shape=(edge, edge, 3),
                dtype=np.uint8,
                tile=(_TILE, _TILE),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=1 if level else 0,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                description=None if level else "composed for measuring; not a patient's slide",
                software=False,
                metadata=None,
            )
            blocks = [_halve(block) for block in blocks]
    return side * BLOCK


def _lay_out(side: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Which block lies where, (side, side); 0 is glass."""
    row, column = np.mgrid[:side, :side] - (side - 1) / 2
    reach = np.hypot(row, column) / (0.42 * side)
    tissue = reach < blob_radius(np.arctan2(row, column), rng, wobble=0.12)
    return np.where(tissue, rng.integers(1, _BLOCKS + 1, (side, side)), 0)


def _compose_blocks(rng: np.random.Generator) -> Iterator[Bytes]:
    """The middles of composed pictures: tissue from edge to edge, in two magnifications."""
    source = source_concentrations()
    for _ in range(_BLOCKS):
        picture, _ = compose_demo_picture(source, 1, rng, size=BLOCK)
        middle = picture[BLOCK // 4 : 3 * BLOCK // 4, BLOCK // 4 : 3 * BLOCK // 4]
        yield np.concatenate([np.concatenate([middle, middle[:, ::-1]], 1)] * 2)


def _compress(block: Bytes) -> list[list[bytes]]:
    """A block's tiles, row by row."""
    starts = range(0, len(block), _TILE)
    return [
        [
            simplejpeg.encode_jpeg(
                np.ascontiguousarray(block[y : y + _TILE, x : x + _TILE]),
                quality=_QUALITY,
                colorspace="RGB",
                colorsubsampling="420",
            )
            for x in starts
        ]
        for y in starts
    ]


def _segments(layout: npt.NDArray[np.int64], tiles: list[list[list[bytes]]]) -> Iterator[bytes]:
    """The compressed tiles of a level in raster order."""
    for row in layout.tolist():
        for line in range(len(tiles[0])):
            for block in row:
                yield from tiles[block][line]


def _halve(rgb: Bytes) -> Bytes:
    wide = rgb.astype(np.uint16)
    total = wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]
    return (total + 2 >> 2).astype(np.uint8)
