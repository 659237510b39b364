"""PNG, JPEG and NIfTI radiographs, and tile pictures."""

import gzip
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from good_files import tile_png
from malformed import READS, Malformed, cases, damaged
from PIL import Image
from xray_files import (
    draw,
    heal_png,
    make_jpeg,
    make_nifti,
    make_png,
    make_png_by_hand,
    png_chunk,
)

SMALL = draw(64)
PNG, JPEG = make_png(SMALL), make_jpeg(SMALL)
ROWS = zlib.compress(b"".join(b"\0" + bytes(row) for row in SMALL))
AFFINE = np.diag([-1.0, 1, -1, 1])
NIFTI = make_nifti(SMALL[:, :, None], AFFINE)


def pngs() -> Iterator[Malformed]:
    """PNG and JPEG."""
    for contents in (damaged(PNG), bad_pngs()):
        yield from cases("xray", "a.png", "ImageError", contents)
    yield from cases("xray", "b.png", READS, odd_pngs())
    yield from cases("xray", "a.jpg", "ImageError", bad_jpegs())
    yield from cases("crop", "c.png", "ImageError", bad_tiles())
    yield from cases("crop", "d.png", READS, odd_tiles())


def bad_pngs() -> dict[str, bytes]:
    """Chunks missing, twice, of wrong sums, sizes or kinds."""
    head = struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)
    return {
        "the mark alone": PNG[:8],
        "head alone": PNG[:33],
        "no end of pixels": PNG[:-60],
        "width 0": make_png_by_hand(0, 64, ROWS),
        "height 0": make_png_by_hand(64, 0, ROWS),
        "two billion wide": make_png_by_hand((1 << 31) - 1, 1, ROWS),
        "3 bits": make_png_by_hand(64, 64, ROWS, bits=3),
        "color type 7": make_png_by_hand(64, 64, ROWS, color=7),
        "palette without colors": make_png_by_hand(64, 64, ROWS, color=3),
        "pixels of noise": make_png_by_hand(64, 64, np.random.default_rng(0).bytes(500)),
        "no pixels": make_png_by_hand(64, 64, b""),
        "filter 9": make_png_by_hand(64, 64, zlib.compress((b"\x09" + bytes(64)) * 64)),
        "another sum of the head": PNG[:29] + b"\0\0\0\0" + PNG[33:],
        "another sum of the pixels": PNG[:-16] + b"\0\0\0\0" + PNG[-12:],
        "a chunk longer than the file": PNG[:33] + b"\x7f\xff\xff\xffIDAT" + PNG[41:],
        "a second, larger head": PNG[:33] + png_chunk(b"IHDR", _claim(head)) + PNG[33:],
        "line ends of another system": PNG.replace(b"\r\n", b"\n"),
        "black and white": _png(Image.fromarray(SMALL).convert("1")),
        "in color": tile_png(),
        "the same value everywhere": make_png(SMALL * 0 + 7),
        "fully transparent": _png(Image.new("RGBA", (64, 64), (9, 9, 9, 0))),
        "one pixel": make_png(SMALL[:1, :1]),
        "animated, damaged": PNG[:33] + png_chunk(b"acTL", bytes(3)) + PNG[33:-20],
        "a text bomb": PNG[:33]
        + png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(70 << 20)))
        + PNG[33:],
    }


def _claim(head: bytes) -> bytes:
    return struct.pack(">II", 40000, 40000) + head[8:]


def _png(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def odd_pngs() -> dict[str, bytes]:
    """Unusual, and a radiograph."""
    return {
        "good": PNG,
        "16 bits": make_png(draw(64, bits=16)),
        "RGBA": make_png(SMALL, "RGBA"),
        "LA": make_png(SMALL, "LA"),
        "palette": make_png(SMALL, "P"),
        "garbage behind the end": PNG + b"garbage" * 100,
        "an unknown chunk": PNG[:33] + png_chunk(b"abCd", b"x" * 100) + PNG[33:],
        "a profile of noise": heal_png(PNG[:33] + png_chunk(b"iCCP", b"x\0\0zz") + PNG[33:]),
        "interlaced by name": _png(Image.fromarray(SMALL), optimize=True),
        "a JPEG under the name": JPEG,
        "a JPEG without tables, as in films": JPEG.replace(b"\xff\xc4", b"\xff\xfe"),
        "a progressive JPEG": make_jpeg(SMALL, progressive=True),
        "more pixels than rows": make_png_by_hand(64, 60, ROWS),
        "more rows than pixels, which stay black": make_png_by_hand(64, 70, ROWS),
    }


def bad_jpegs() -> dict[str, bytes]:
    """Markers and tables."""
    at = JPEG.index(b"\xff\xc0")
    size = at + 5
    return damaged(JPEG) | {
        "no frame": JPEG[:at] + JPEG[at + 19 :],
        "height 0": JPEG[:size] + struct.pack(">HH", 0, 64) + JPEG[size + 4 :],
        "65,535 squared": JPEG[:size] + b"\xff\xff\xff\xff" + JPEG[size + 4 :],
        "no quantization": JPEG.replace(b"\xff\xdb", b"\xff\xfe", 1),
        "cut at the scan": JPEG[: JPEG.index(b"\xff\xda") + 4],
        "lossless": JPEG[:at] + b"\xff\xc3" + JPEG[at + 2 :],
        "a length of 0": JPEG[:4] + b"\0\0" + JPEG[6:],
        "in color": _png(Image.open(io.BytesIO(tile_png())), "JPEG"),
        "CMYK": _png(Image.new("CMYK", (64, 64), (1, 2, 3, 4)), "JPEG"),
    }


def bad_tiles() -> dict[str, bytes]:
    """Tile pictures that `import` meets."""
    image = Image.open(io.BytesIO(tile_png()))
    return {
        "smaller than the crop": _png(image.resize((16, 16))),
        "one pixel high": _png(image.resize((300, 1))),
        "16 bits": make_png(draw(64, bits=16)),
        "floats": _png(Image.fromarray(SMALL.astype(np.float32)), "TIFF"),
        "CMYK": _png(image.convert("CMYK"), "TIFF"),
        "black and white": _png(image.convert("1")),
        "PostScript, which runs programs": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
        "an icon": _png(image, "ICO"),
        "a PDF": _png(image, "PDF"),
        "cut": tile_png()[:2000],
        "empty": b"",
    }


def odd_tiles() -> dict[str, bytes]:
    """Tiles of other formats."""
    image = Image.open(io.BytesIO(tile_png()))
    kinds = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000")
    return {kind: _png(image, kind) for kind in kinds} | {"gray": PNG}


def niftis() -> Iterator[Malformed]:
    """NIfTI-1 and 2, packed or not."""
    for contents in (damaged(NIFTI), bad_niftis()):
        yield from cases("xray", "a.nii", "ImageError", contents)
    yield from cases("xray", "b.nii", READS, odd_niftis())


def _put(data: bytes, at: int, kind: str, *values) -> bytes:
    packed = struct.pack("<" + kind, *values)
    return data[:at] + packed + data[at + len(packed) :]


def bad_niftis() -> dict[str, bytes]:
    """Header fields that cannot be: dim at 40, datatype at 70, bitpix at 72, vox_offset at 108."""
    packed = gzip.compress(NIFTI, mtime=0)
    volume = np.zeros((8, 8, 8), np.uint8)
    return {
        "header alone": NIFTI[:348],
        "half a header": NIFTI[:200],
        "cut within the values": NIFTI[:-100],
        "no dimensions": _put(NIFTI, 40, "h", 0),
        "eight dimensions": _put(NIFTI, 40, "h", 8),
        "minus three dimensions": _put(NIFTI, 40, "h", -3),
        "a side of 0": _put(NIFTI, 42, "h", 0),
        "a side of minus one": _put(NIFTI, 42, "h", -1),
        "sides of 32,767": _put(NIFTI, 42, "hh", 32767, 32767),
        "a larger side than values": _put(NIFTI, 42, "h", 65),
        "one row": _put(NIFTI, 42, "h", 1),
        "no data type": _put(NIFTI, 70, "h", 0),
        "binary": _put(NIFTI, 70, "hh", 1, 1),
        "complex": _put(NIFTI, 70, "hh", 32, 64),
        "RGB": _put(NIFTI, 70, "hh", 128, 24),
        "an unknown data type": _put(NIFTI, 70, "h", 999),
        "doubles": _put(NIFTI, 70, "hh", 64, 64),
        "values beyond the end": _put(NIFTI, 108, "f", 1e9),
        "values before the start": _put(NIFTI, 108, "f", -352.0),
        "values at no number": _put(NIFTI, 108, "f", np.nan),
        "an affine of zeros": _put(NIFTI, 280, "12f", *[0.0] * 12),
        "an affine of no numbers": _put(NIFTI, 280, "12f", *[np.nan] * 12),
        "a volume": make_nifti(volume, np.eye(4)),
        "a plane over time": make_nifti(np.zeros((8, 8, 1, 4), np.uint8), np.eye(4)),
        "the same value everywhere": make_nifti(SMALL[:, :, None] * 0, np.eye(4)),
        "packed and cut": packed[:-300],
        "packed with another sum": packed[:-8] + bytes(8),
        "packed twice": gzip.compress(packed),
        "packed, with a megabyte of zeros behind": gzip.compress(NIFTI + bytes(8 << 20)),
        "no number everywhere": make_nifti(np.full((8, 8, 1), np.nan, np.float32), np.eye(4)),
    }


def odd_niftis() -> dict[str, bytes]:
    """Unusual, and one plane."""
    plane = draw(64, bits=12)[:, :, None]
    holes = plane.astype(np.float32)
    holes[:8] = np.nan
    return {
        "good": NIFTI,
        "packed": make_nifti(SMALL[:, :, None], AFFINE, packed=True),
        "NIfTI-2": make_nifti(plane.astype(np.int16), AFFINE, version=2),
        "no orientation": make_nifti(SMALL[:, :, None]),
        "negative values": make_nifti(plane.astype(np.int16) - 2000, AFFINE),
        "holes": make_nifti(holes, AFFINE),
        "endless values": make_nifti(np.where(holes > 2000, np.inf, holes), AFFINE),
        "a slope of 0": make_nifti(plane.astype(np.int16), AFFINE, slope=(1, 0)),
        "a range turned round": make_nifti(plane.astype(np.int16), AFFINE, cal_max=1, cal_min=5),
        "garbage behind the values": NIFTI + b"garbage" * 20,
        "spacing of 0": make_nifti(SMALL[:, :, None], AFFINE, pixdim=[1, 0, 0, 0, 0, 0, 0, 0]),
        "another size of the header": _put(NIFTI, 0, "i", 540),
        "an extension longer than the file": _put(
            NIFTI[:348] + b"\1\0\0\0" + struct.pack("<ii", 1 << 30, 4) + NIFTI[352:], 108, "f", 352
        ),
        "a coronal plane": make_nifti(SMALL[:, None], AFFINE),
    }
