"""Slides as scanners, converters, broken copies and attackers leave them."""

import gzip
import struct
from collections.abc import Iterator

import numpy as np
from malformed import READS, Malformed, cases, damaged
from tiff_files import (
    BITS,
    COMPRESSION,
    COUNTS,
    DESCRIPTION,
    HEIGHT,
    OFFSETS,
    PHOTOMETRIC,
    PLANAR,
    SAMPLE_FORMAT,
    SAMPLES,
    SUBFILE,
    TABLES,
    TILE_HEIGHT,
    TILE_WIDTH,
    UNIT,
    WIDTH,
    X_RESOLUTION,
    Y_RESOLUTION,
    draw_tissue,
    good_slide,
    jpeg_tile,
    slide_tags,
    tiff,
    written_slide,
)
from xray_files import draw, make_dicom, make_jpeg, make_png

GOOD = good_slide()
TILE = jpeg_tile()
FIRST = struct.unpack("<I", GOOD[4:8])[0]
RGB = draw_tissue()
GLASS = np.full((512, 512, 3), 244, np.uint8)


def one_level(tiles: list[bytes] | None = None, **changes) -> bytes:
    """A slide of one level, some of its tags changed; None leaves a tag out."""
    tags = slide_tags(**changes)
    return tiff([({k: v for k, v in tags.items() if v is not None}, tiles or [TILE] * 4)])


def _tag(tag: int, value) -> bytes:
    return one_level(**{f"t{tag}": value})


def slides() -> Iterator[Malformed]:
    """All of them."""
    for contents in (damaged(GOOD), headers(), directories(), resolutions(), stored_tiles()):
        yield from cases("slide", "a.tif", "SlideError", contents)
    for contents in (pictures(), other_formats()):
        yield from cases("slide", "a.svs", "SlideError", contents)
    yield from cases("slide", "b.tif", READS, odd_but_good())


def headers() -> dict[str, bytes]:
    """The first eight bytes, and where they lead."""
    places = {"zero": 0, "itself": 4, "odd": FIRST + 1, "the end": len(GOOD), "beyond": 1 << 31}
    made = {
        f"first directory at {name}": GOOD[:4] + struct.pack("<I", at) + GOOD[8:]
        for name, at in places.items()
    }
    return made | {
        "the other byte order": b"MM\0*" + GOOD[4:],
        "version 99": b"II\x63\0" + GOOD[4:],
        "BigTIFF's mark alone": b"II+\0" + GOOD[4:],
        "first directory cut": GOOD[: FIRST + 30],
        "three quarters": GOOD[: len(GOOD) * 3 // 4],
        "line ends of another system": GOOD.replace(b"\n", b"\r\n"),
        "line feeds lost": GOOD.replace(b"\r", b""),
        "no entry in the directory": GOOD[:FIRST] + b"\0\0" + GOOD[FIRST + 2 :],
        "65,535 entries in the directory": GOOD[:FIRST] + b"\xff\xff" + GOOD[FIRST + 2 :],
    }


def directories() -> dict[str, bytes]:
    """Tags that are missing, wrong or impossible."""
    missing = {
        f"no tag {tag}": _tag(tag, None)
        for tag in (WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT, PHOTOMETRIC)
    }
    wrong = {
        "width 0": _tag(WIDTH, 0),
        "height 0": _tag(HEIGHT, 0),
        "width of two billion": _tag(WIDTH, (1 << 31) - 1),
        "both sides of four billion": one_level(t256=0xFFFFFFFF, t257=0xFFFFFFFF),
        "tiles of no width": _tag(TILE_WIDTH, 0),
        "tiles of 7 x 7": one_level(t322=7, t323=7),
        "tiles of a billion": one_level(t322=1 << 30, t323=1 << 30),
        "tiles larger than stored": one_level(t322=512, t323=512),
        "1 bit": _tag(BITS, (1, 1, 1)),
        "16 bits": _tag(BITS, (16, 16, 16)),
        "unequal bits": _tag(BITS, (8, 16, 8)),
        "no bits": _tag(BITS, (0, 0, 0)),
        "4 samples": _tag(SAMPLES, 4),
        "65,535 samples": _tag(SAMPLES, 65535),
        "unknown compression": _tag(COMPRESSION, 60000),
        "said to be LZW": _tag(COMPRESSION, 5),
        "said to be deflated": _tag(COMPRESSION, 8),
        "said to be JPEG 2000": _tag(COMPRESSION, 33005),
        "said to be uncompressed": _tag(COMPRESSION, 1),
        "separate planes": _tag(PLANAR, 2),
        "damaged JPEG tables": _tag(TABLES, b"\xff\xd8\xff\xdb\0\x43garbage"),
        "offsets beyond the end": _tag(OFFSETS, [1 << 30] * 4),
        "too few offsets": _tag(OFFSETS, [8]),
        "too few counts": _tag(COUNTS, [10]),
        "counts beyond the end": _tag(COUNTS, [1 << 30] * 4),
        "counts of four gigabytes": _tag(COUNTS, [0xFFFFFFF0] * 4),
    }
    return missing | wrong


def resolutions() -> dict[str, bytes]:
    """Micrometers per pixel that no scanner has."""
    return {
        "no resolution": one_level(t282=None, t283=None),
        "resolution 0": one_level(t282=0, t283=0),
        "resolution 1/0": one_level(t282=(1, 0), t283=(1, 0)),
        "resolution 0/0": one_level(t282=(0, 0), t283=(0, 0)),
        "no unit": _tag(UNIT, 1),
        "unknown unit": _tag(UNIT, 77),
        "72 dpi": one_level(t282=72, t283=72, t296=2),
        "a nanometer per pixel": one_level(t282=10_000_000, t283=10_000_000),
        "a millimeter per pixel": one_level(t282=10, t283=10),
        "x unlike y": _tag(Y_RESOLUTION, 10_000),
        "coarser than tiles": one_level(t282=2500, t283=2500),
    }


def stored_tiles() -> dict[str, bytes]:
    """Compressed tiles that are not what the tags say."""
    return {
        "tiles of zeros": one_level([bytes(1000)] * 4),
        "tiles of noise": one_level([np.random.default_rng(0).bytes(3000)] * 4),
        "tiles of PNG": one_level([make_png(draw(64))] * 4),
        "tiles cut in half": one_level([TILE[: len(TILE) // 2]] * 4),
        "tiles of another size": one_level([jpeg_tile(64)] * 4),
        "gray tiles": one_level([make_jpeg(draw(256))] * 4),
        "tiles without their start": one_level([TILE[2:]] * 4),
        "tiles that claim 60,000 x 60,000": one_level([_claim(TILE)] * 4),
        "no tile is stored": one_level(t324=[0] * 4, t325=[0] * 4),
        "level 1 of zeros": tiff(
            [
                (slide_tags(), [TILE] * 4),
                (slide_tags(256, 256, **{f"t{SUBFILE}": 1}), [bytes(1000)]),
            ]
        ),
    }


def _claim(jpeg: bytes) -> bytes:
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", 60000, 60000) + jpeg[at + 4 :]


def pictures() -> dict[str, bytes]:
    """Slides that open, of which nothing can be made."""
    return {
        "glass alone": written_slide(GLASS),
        "black alone": written_slide(GLASS * 0),
        "big-endian, which OpenSlide does not open": written_slide(RGB, byteorder=">"),
        "white alone": written_slide(GLASS * 0 + 255),
        "16 bits by tifffile": written_slide(RGB.astype(np.uint16)),
        "floats": written_slide(RGB.astype(np.float32), compression=None),
        "too small for a tile": written_slide(RGB[200:264, 200:264], (1,)),
        "no tiles but strips": written_slide(RGB, tile=None),
    }


def other_formats() -> dict[str, bytes]:
    """Whole files of another kind under a slide's name."""
    return {
        "a JPEG": make_jpeg(draw(256)),
        "a PNG": make_png(draw(256)),
        "a radiograph": make_dicom(draw(64)),
        "packed": gzip.compress(GOOD),
        "a PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n",
        "a mirax index": b"[GENERAL]\nSLIDE_VERSION = 01.02\n",
        "a Hamamatsu index": b"[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=../../x.jpg\n",
        "a CZI head": b"ZISRAWFILE" + bytes(500),
    }


def odd_but_good() -> dict[str, bytes]:
    """What looks odd, and is a slide all the same."""
    return {
        "good": GOOD,
        "BigTIFF": written_slide(RGB, bigtiff=True),
        "LZW": written_slide(RGB, compression="lzw"),
        "JPEG by tifffile": written_slide(RGB, compression="jpeg"),
        "uncompressed": written_slide(RGB, compression=None),
        "one level": written_slide(RGB, (1,)),
        "six levels": written_slide(RGB, (1, 2, 4, 8, 16, 32)),
        "an odd size": written_slide(RGB[:413, :301]),
        "garbage behind the end": GOOD + b"garbage" * 1000,
        "a private tag": one_level(t65000=(1, 2, 3)),
        "a long description": one_level(t270=b"x" * 100_000 + b"\0"),
        "a description of no encoding": one_level(t270=b"\xff\xfe\x80 Aperio?\0"),
        "a subfile type of 4": one_level(t254=4),
        "a sample format of 1": _tag(SAMPLE_FORMAT, (1, 1, 1)),
        "in inches": one_level(t282=50_800, t283=50_800, t296=2),
        "slightly unlike in x and y": _tag(X_RESOLUTION, 19_800),
        "a Philips TIFF's words": _tag(DESCRIPTION, b"<?xml version='1.0'?><DataObject/>\0"),
    }
