"""Files made to do harm: small ones that unpack to gigabytes, and mutants of good ones.

They are read in a process that may take 1.5 GiB more than its imports; a bomb that went off would
end in a MemoryError or take its time.
"""

import gzip
import io
import logging
import os
import random
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from xray_files import (
    SECRETS,
    draw,
    heal_png,
    in_syntax,
    lookup_table,
    make_dataset,
    make_dicom,
    make_encapsulated,
    make_jpeg,
    make_nifti,
    make_png,
    make_png_by_hand,
    measure,
    png_chunk,
    to_bytes,
    with_element,
)

from data_prep.xray import decode_xray, read_xray_header
from esad_med.base.errors import EsadError, ImageError
from esad_med.base.limits import Limits

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


def test_bombs_are_refused_in_little_time_and_memory(tmp_path):
    tasks = []
    for make in (dicom_bombs, codestream_bombs, picture_bombs):
        for name, data in make():
            (tmp_path / name).write_bytes(data)
            tasks += [("picture", tmp_path / name), ("header", tmp_path / name)]
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        tasks += [("picture", path), ("header", path)]
    found = measure(tasks)
    assert len(found) == len(tasks)
    for (what, path), (seconds, said) in zip(tasks, found, strict=True):
        assert seconds < 4, (path.name, what, said)  # under 1 where nothing else runs
        assert said != "MemoryError", path.name
        assert what == "header" or said != "read", path.name  # pixels may not, a header may
        assert str(tmp_path) not in said


def test_tables_and_lists_that_unpack_to_gigabytes_are_refused_and_no_picture_goes_on(tmp_path):
    for name in ("table.csv.gz", "list.txt.gz"):
        (tmp_path / name).write_bytes(zeros(2048, 31, b"Image Index,Finding Labels\n"))
    (tmp_path / "wide.csv").write_bytes(b"a," * 3_000_000 + b"\n")
    rows = b"".join(b"\0" + bytes(row) for row in SMALL)
    (tmp_path / "x.png").write_bytes(make_png_by_hand(64, 64, zeros(2048, 15, rows)))
    tasks = ("table", "table.csv.gz"), ("table", "wide.csv"), ("list", "list.txt.gz")
    found = measure([(what, tmp_path / name) for what, name in (*tasks, ("picture", "x.png"))])
    assert max(seconds for seconds, _ in found) < 4
    assert "when unpacked" in found[0][1]
    assert "first line is longer" in found[1][1]
    assert "when unpacked" in found[2][1]
    assert found[3][1] == "read"  # as far as its pixels go


# --- mutants

_TAGS = (
    *(0x00080005, 0x00080018, 0x00080020, 0x00080060, 0x00100020, 0x00100030, 0x00101010),
    *(0x00102201, 0x00102202, 0x00185101, 0x0020000D, 0x00200020, 0x00280002, 0x00280004),
    *(0x00280008, 0x00280010, 0x00280011, 0x00280030, 0x00280100, 0x00280101, 0x00280102),
    *(0x00280103, 0x00280120, 0x00280121, 0x00281050, 0x00281051, 0x00281052, 0x00281053),
    *(0x00281056, 0x00283000, 0x00283010, 0x00540220, 0x7FE00001, 0x7FE00010, 0x00091010),
)
_VALUES = (
    *(b"", b"\0", b"\1\0", b"\xff\xff", b"\0\x80", bytes(7), bytes(64), b"\1\0\2\0\3\0"),
    *(b"abc ", b"nan ", b"-inf", b"1e400 ", b"9" * 30, b"1\\2\\3 ", b"\\\\", b"../../x", b"-7"),
    *(b"\xff\xfe\x80\x81", struct.pack("<d", np.nan), struct.pack("<d", np.inf)),
)
_VRS = ("CS", "DS", "FD", "IS", "LO", "OB", "OW", "PN", "SQ", "SS", "UI", "UN", "US", "UT")
_LONG = ("OB", "OW", "SQ", "UN", "UT")


def seeds():
    item = Dataset()
    item.CodeValue = "R-10206"
    deep = draw(64, bits=12)
    syntaxes = ("explicit", "implicit, no preamble", "explicit, no meta", "big endian", "deflated")
    for name in (*syntaxes, "JPEG", "RLE", "JPEG-LS", "J2K"):
        yield in_syntax(SMALL, name)
    yield make_dicom(
        deep,
        bits=12,
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter=[2048, 100],
        WindowWidth=[4096, 100],
        VOILUTFunction="SIGMOID",
        RescaleSlope=2,
        RescaleIntercept=-5,
        PixelPaddingValue=0,
        PatientOrientation=["R", "H"],
        ViewCodeSequence=[item],
        PixelSpacing=[0.1, 0.1],
    )
    tables = {
        "VOILUTSequence": [lookup_table(list(range(256)))],
        "ModalityLUTSequence": [lookup_table(list(range(256)), bits=12)],
    }
    yield make_dicom(deep, bits=12, **tables)
    yield from (make_png(SMALL), make_png(deep), make_png(SMALL, "RGBA"), make_png(SMALL, "P"))
    yield from (make_jpeg(SMALL), make_jpeg(SMALL, progressive=True))
    affine = np.diag([-1.0, 1, -1, 1])
    yield make_nifti(deep[:, :, None].astype(np.int16), affine, slope=(2, 1))
    yield make_nifti(deep[:, None].astype(np.float32), affine, version=2, cal_max=100)
    yield make_nifti(SMALL[:, :, None], affine, packed=True)


def mutate(data, others, chance):
    """Some bytes changed, taken out, put in, repeated, or taken from another file."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(data) if chance.random() < 0.4 else min(len(data), 1300))
        kind = chance.random()
        if kind < 0.4:
            data[at] = chance.choice((chance.randrange(256), 0, 255, 127, 128))
        elif kind < 0.6:
            data[at] ^= 1 << chance.randrange(8)
        elif kind < 0.7:
            value = chance.choice(_VALUES)
            data[at : at + len(value)] = value
        elif kind < 0.78:
            del data[at : at + chance.randrange(1, 40)]
        elif kind < 0.86:
            data[at:at] = data[chance.randrange(len(data)) :][: chance.randrange(1, 60)]
        elif kind < 0.94:
            other = chance.choice(others)
            start = chance.randrange(min(len(other), 1500))
            data[at : at + 30] = other[start : start + chance.randrange(1, 200)]
        else:
            del data[at + 1 :]
    return heal_png(bytes(data)) if chance.random() < 0.8 else bytes(data)


def misstate(chance):
    """A DICOM file with elements of a wrong kind, value or length."""
    element = b""
    for tag in sorted(chance.sample(_TAGS, chance.choice((1, 1, 2, 3)))):
        vr, value = chance.choice(_VRS), chance.choice(_VALUES)
        size = chance.choice((len(value), len(value), len(value), len(value) + 1, 0xFFFFFFFF))
        length = (
            b"\0\0" + struct.pack("<I", size) if vr in _LONG else struct.pack("<H", size & 65535)
        )
        element += struct.pack("<HH", tag >> 16, tag & 65535) + vr.encode() + length + value
    data = make_dicom(SMALL)
    if chance.random() < 0.5:  # what is read last counts
        return data + element
    return with_element(data, element)


def check(data):
    """Read a picture or a reason; anything else is an error of ours. Gives whether it was read."""
    try:
        xray = decode_xray(data, limits=Limits())
    except EsadError as error:
        said = str(error)
    else:
        said = ""
    assert not any(secret in said for secret in SECRETS), said
    if said:
        return False
    assert xray.pixels.dtype == np.float32
    assert xray.pixels.ndim == 2
    assert np.isfinite(xray.pixels).all()
    assert xray.pixels.min() >= 0
    assert xray.pixels.max() <= 1
    return True


@pytest.fixture
def quiet():
    logging.disable(logging.CRITICAL)  # nibabel and pydicom say what they see
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("number", range(20))
def test_mutants_are_read_or_refused_and_nothing_else(number, quiet, tmp_path):
    others = list(seeds())
    chance = random.Random(number)
    read = [check(mutate(others[number], others, chance)) for _ in range(150)]
    assert check(others[number])
    assert sum(read) < len(read)  # of a packed NIfTI none is read: its checksum is wrong
    path = tmp_path / "mutant"
    for _ in range(30):
        path.write_bytes(mutate(others[number], others, chance))
        with suppress(ImageError):
            read_xray_header(path)


def test_headers_that_contradict_themselves_are_read_or_refused_and_nothing_else(quiet):
    chance = random.Random(0)
    read = [check(misstate(chance)) for _ in range(600)]
    assert 0 < sum(read) < len(read)


@pytest.mark.parametrize(
    "start", [b"", b"DICM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\x1f\x8b\x08"]
)
def test_noise_is_refused(start, quiet):
    chance = random.Random(1)
    for size in (0, 1, 3, 7, 8, 20, 140, 600):
        for lead in (b"", bytes(128)):
            with pytest.raises(EsadError):
                decode_xray(lead + start + chance.randbytes(size), limits=Limits())
    with pytest.raises(EsadError):
        decode_xray(gzip.compress(io.BytesIO(b"n+1\0" * 200).read()), limits=Limits())
