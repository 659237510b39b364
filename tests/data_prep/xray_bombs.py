"""Radiographs of few bytes that claim, or unpack to, gigabytes."""

import struct
import zlib

import nibabel as nib
import numpy as np
from pydicom.encaps import generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from xray_files import (
    draw,
    make_dataset,
    make_dicom,
    make_encapsulated,
    make_jpeg,
    make_nifti,
    make_png_by_hand,
    png_chunk,
    to_bytes,
    with_element,
)

SMALL = draw(64)
RLE_HEAD = struct.pack("<16I", 1, 64, *[0] * 14)


def zeros(mebibytes, wbits, start=b""):
    """Zeros, packed, without an end; quickly, as each mebibyte is packed alike."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * mebibytes


def deflated(packed):
    """(with its meta header as it should be, and the ways to hide that a file is deflated)."""
    ds = make_dataset(SMALL)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = to_bytes(ds)
    head = data[: 144 + struct.unpack("<I", data[140:144])[0]]
    uid = head.index(b"\x02\x00\x10\x00UI")
    long = b"\x02\x00\x03\x00UI" + struct.pack("<H", 2000) + b"1" * 2000
    implicit = b"\x02\x00\x10\x00" + struct.pack("<I", 22) + b"1.2.840.10008.1.2.1.99"
    return {
        "deflated": head + packed,
        "deflated, wrong length": head[:140] + struct.pack("<I", 1 << 24) + head[144:] + packed,
        "deflated, no length": head[:132] + head[144:] + packed,
        "deflated, no preamble": head[132:] + packed,
        "deflated, long meta header": head[:uid] + long + head[uid:] + packed,
        "deflated, implicit meta header": head[:132] + implicit + packed,
    }


def nested(levels, *, stated):
    inner = b""
    for _ in range(levels):
        size = struct.pack("<I", len(inner) + 8 if stated else 0xFFFFFFFF)
        item = struct.pack("<I", len(inner)) if stated else b"\xff" * 4
        ends = b"" if stated else b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
        inner = b"\x08\x00\x40\x11SQ\0\0" + size + b"\xfe\xff\x00\xe0" + item + inner + ends
    return inner


def dicom_bombs():
    raw = make_dicom(SMALL)
    meta = 144 + struct.unpack("<I", raw[140:144])[0]
    yield from deflated(zeros(1024, -15, raw[meta:])).items()
    tiny = b"".join(struct.pack("<HH2sH", 0x0009 + 2 * (n >> 16), n & 0xFFFF, b"LO", 0)
                    for n in range(100_000))  # fmt: skip
    yield "elements", raw + tiny
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    yield "deflated elements", deflated(packer.compress(tiny * 50) + packer.flush())["deflated"]
    item = b"\xfe\xff\x00\xe0\0\0\0\0"
    for vr in (b"SQ", b"UN"):
        sequence = b"\x08\x00\x40\x11" + vr + b"\0\0"
        stated = struct.pack("<I", 8_000_000) + item * 1_000_000
        yield f"items {vr!r}", with_element(raw, sequence + stated)
        open_end = b"\xff" * 4 + item * 1_000_000 + b"\xfe\xff\xdd\xe0\0\0\0\0"
        yield f"items {vr!r} without length", with_element(raw, sequence + open_end)
    for stated in (True, False):
        yield f"nested, {stated}", with_element(raw, nested(5000, stated=stated))
    yield "huge length", with_element(raw, b"\x09\x00\x10\x10OB\0\0\xfe\xff\xff\xff")


def codestream_bombs():
    ds = make_dataset(SMALL)
    ds.compress(JPEG2000Lossless)
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    size = struct.pack(">II", 30000, 30000)
    large = frame[:8] + size + frame[16:24] + size + frame[32:]
    yield "J2K", make_encapsulated(large, SMALL, JPEG2000Lossless)
    boxes = b"\0\0\0\x0cjP  \r\n\x87\n"
    for kind, content in ((b"ftyp", b"jp2 \0\0\0\0jp2 "), (b"xml ", frame[:60]), (b"jp2c", large)):
        boxes += struct.pack(">I4s", 8 + len(content), kind) + content
    yield "JP2", make_encapsulated(boxes, SMALL, JPEG2000Lossless)
    many = frame[:40] + struct.pack(">H", 16384) + frame[42:]
    yield "components", make_encapsulated(many, SMALL, JPEG2000Lossless)
    claim = {"Rows": 40000, "Columns": 40000}
    yield "RLE claim", make_encapsulated(RLE_HEAD + b"\x81\0" * 1000, SMALL, RLELossless, **claim)
    yield "RLE", make_encapsulated(RLE_HEAD + b"\x81\0" * 4_000_000, SMALL, RLELossless)
    idle = {"Rows": 8000, "Columns": 8000}
    yield "idle RLE", make_encapsulated(RLE_HEAD + b"\x80" * 10_000_000, SMALL, RLELossless, **idle)


def picture_bombs():
    yield "PNG claim", make_png_by_hand(40000, 40000, zlib.compress(bytes(1000)))
    rows = zlib.compress(b"".join(b"\0" + bytes(row) for row in SMALL))
    png = make_png_by_hand(64, 64, rows)
    head = struct.pack(">IIBBBBB", 40000, 40000, 8, 0, 0, 0, 0)
    yield "PNG of two heads", png[:33] + png_chunk(b"IHDR", head) + png[33:]
    yield "PNG text", png[:33] + png_chunk(b"zTXt", b"Comment\0\0" + zeros(1024, 15)) + png[33:]
    jpeg = make_jpeg(SMALL)
    at = jpeg.index(b"\xff\xc0")
    size = struct.pack(">HH", 60000, 60000)
    yield "JPEG claim", jpeg[: at + 5] + size + jpeg[at + 9 :]
    frame = jpeg[at : at + 2 + struct.unpack(">H", jpeg[at + 2 : at + 4])[0]]
    second = frame + frame[:5] + size + frame[9:]
    yield "JPEG of two heads", jpeg[:at] + second + jpeg[at + len(frame) :]
    header = make_nifti(SMALL[:, :, None], np.eye(4))[:352]
    yield "NIfTI", zeros(1024, 31, header)
    large = nib.Nifti1Header()
    large.set_data_shape((32000, 32000, 1))
    large.set_data_dtype(np.uint8)
    large["magic"], large["vox_offset"] = b"n+1", 352
    yield "NIfTI claim", zeros(977, 31, large.binaryblock + bytes(4))
