"""TIFF files tag by tag, so that any of them can lie."""

import io
import struct
from collections.abc import Mapping, Sequence

import numpy as np
import tifffile
from PIL import Image

Value = int | float | bytes | Sequence[int]

_SHORT, _LONG, _ASCII, _RATIONAL, _UNDEFINED = 3, 4, 2, 5, 7
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
DESCRIPTION, SAMPLES, X_RESOLUTION, Y_RESOLUTION, UNIT = 270, 277, 282, 283, 296
TILE_WIDTH, TILE_HEIGHT, OFFSETS, COUNTS, TABLES = 322, 323, 324, 325, 347
SUBFILE, PLANAR, SAMPLE_FORMAT, JPEG, DEFLATE = 254, 284, 339, 7, 8
_KINDS = {DESCRIPTION: _ASCII, TABLES: _UNDEFINED, X_RESOLUTION: _RATIONAL, Y_RESOLUTION: _RATIONAL}


def draw_tissue(size: int = 512, seed: int = 0) -> np.ndarray:
    """Noisy pink in the middle of glass, (size, size, 3) uint8."""
    rng = np.random.default_rng(seed)
    rgb = np.full((size, size, 3), 244, np.uint8)
    middle = slice(size // 8, -size // 8)
    rgb[middle, middle] = rng.integers(
        (180, 90, 140), (230, 170, 210), rgb[middle, middle].shape
    ).astype(np.uint8)
    return rgb


def jpeg_tile(size: int = 256, *, seed: int = 0, **options) -> bytes:
    """A JPEG of tissue."""
    stream = io.BytesIO()
    Image.fromarray(draw_tissue(size, seed)).save(stream, "JPEG", **{"quality": 70} | options)
    return stream.getvalue()


def slide_tags(width: int = 512, height: int = 512, tile: int = 256, **changes: Value) -> dict:
    """The tags of a level of JPEG tiles at 0.5 µm per pixel; offsets are filled in by `tiff`."""
    tags = {
        WIDTH: width,
        HEIGHT: height,
        BITS: (8, 8, 8),
        COMPRESSION: JPEG,
        PHOTOMETRIC: 6,
        SAMPLES: 3,
        X_RESOLUTION: 20000,
        Y_RESOLUTION: 20000,
        PLANAR: 1,
        UNIT: 3,
        TILE_WIDTH: tile,
        TILE_HEIGHT: tile,
    }
    return tags | {int(name.lstrip("t")): value for name, value in changes.items()}


def tiff(
    levels: Sequence[tuple[Mapping[int, Value], Sequence[bytes]]],
    *,
    last: int | None = None,
    order: str = "<",
) -> bytes:
    """A file of levels, each its tags and its stored tiles.

    Args:
        levels: tags given for `OFFSETS` or `COUNTS` are kept as they are.
        last: where the last directory says the next one is; 0, or a loop.
        order: "<" or ">".
    """
    data = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    link = 4
    for tags, tiles in levels:
        offsets, counts = [], []
        for tile in tiles:
            offsets.append(len(data))
            counts.append(len(tile))
            data += tile + bytes(len(tile) % 2)
        entries = {OFFSETS: offsets, COUNTS: counts} | dict(tags)
        data[link : link + 4] = struct.pack(order + "I", len(data))
        link = _directory(data, entries, order)
    data[link : link + 4] = struct.pack(order + "I", 0 if last is None else last)
    return bytes(data)


def _directory(data: bytearray, entries: Mapping[int, Value], order: str) -> int:
    """Append a directory; where its link to the next one lies."""
    packed = [(tag, *_pack(tag, value, order)) for tag, value in sorted(entries.items())]
    start = len(data)
    behind = start + 2 + 12 * len(packed) + 4
    head, body = struct.pack(order + "H", len(packed)), b""
    for tag, kind, count, value in packed:
        if len(value) <= 4:
            field = value.ljust(4, b"\0")
        else:
            field = struct.pack(order + "I", behind + len(body))
            body += value + bytes(len(value) % 2)
        head += struct.pack(order + "HHI", tag, kind, count) + field
    data += head + bytes(4) + body
    return behind - 4


def _pack(tag: int, value: Value, order: str) -> tuple[int, int, bytes]:
    kind = _KINDS.get(tag)
    if isinstance(value, bytes):
        return kind or _ASCII, len(value), value
    if kind == _RATIONAL:
        pair = (value, 1) if isinstance(value, int) else value
        return kind, 1, struct.pack(order + "II", *pair)
    numbers = [value] if isinstance(value, int) else list(value)
    kind = _SHORT if max(numbers, default=0) < 65536 and tag not in (OFFSETS, COUNTS) else _LONG
    letter = "H" if kind == _SHORT else "I"
    return kind, len(numbers), struct.pack(f"{order}{len(numbers)}{letter}", *numbers)


def good_slide(**changes: Value) -> bytes:
    """Two levels, 512 and 256 pixels."""
    tile = jpeg_tile()
    second = slide_tags(256, 256, **{f"t{SUBFILE}": 1, f"t{X_RESOLUTION}": 10000})
    return tiff([(slide_tags(**changes), [tile] * 4), (second, [tile])])


def written_slide(rgb: np.ndarray, levels: Sequence[int] = (1, 2), **options) -> bytes:
    """The same by tifffile, in other compressions, orders and types."""
    stream = io.BytesIO()
    big = {"bigtiff": options.pop("bigtiff", False), "byteorder": options.pop("byteorder", "<")}
    given = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
    given |= {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"} | options
    with tifffile.TiffWriter(stream, **big) as writer:
        for step in levels:
            writer.write(rgb[::step, ::step], subfiletype=int(step > 1), **given)
    return stream.getvalue()
