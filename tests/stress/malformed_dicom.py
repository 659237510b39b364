"""DICOM radiographs as devices, archives, anonymizers and attackers write them."""

import struct
from collections.abc import Iterator

from malformed import READS, Malformed, cases, damaged
from pydicom.uid import JPEGBaseline8Bit, JPEGLSLossless, RLELossless
from xray_bombs import RLE_HEAD, nested
from xray_files import (
    draw,
    in_syntax,
    lookup_table,
    make_dataset,
    make_dicom,
    make_encapsulated,
    make_jpeg,
    make_png,
    to_bytes,
    with_element,
)

EXPLICIT = "1.2.840.10008.1.2.1"
SMALL, DEEP = draw(64), draw(64, bits=12)
GOOD = make_dicom(SMALL)
META = 144 + struct.unpack("<I", GOOD[140:144])[0]


def dicoms() -> Iterator[Malformed]:
    """All of them."""
    for contents in (damaged(GOOD), files(), pixel_modules(), compressed(), grays()):
        yield from cases("xray", "a.dcm", "ImageError", contents)
    yield from cases("xray", "b.dcm", READS, odd_but_good())
    yield from cases("identity", "a.dcm", "ImageError", identities())


def files() -> dict[str, bytes]:
    """The file's form: preamble, meta header, elements, sequences."""
    return {
        "preamble alone": GOOD[:132],
        "meta header alone": GOOD[:META],
        "cut within the pixels": GOOD[:-1000],
        "cut before the pixels": GOOD[: GOOD.rindex(b"\xe0\x7f\x10\x00O")],
        "cut within an element": GOOD[: META + 21],
        "two preambles": GOOD[:132] + GOOD,
        "nested 100 deep": with_element(GOOD, nested(100, stated=True)),
        "nested 100 deep without lengths": with_element(GOOD, nested(100, stated=False)),
        "an element longer than the file": with_element(GOOD, b"\x09\0\x10\0OB\0\0\0\0\0\x40"),
        "a sequence of no items": with_element(GOOD, b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" * 3),
        "no image": make_dicom(SMALL, Rows=None, Columns=None, Modality="SR"),
        "no pixels": _without_pixels(),
        "a directory of files": make_dicom(
            SMALL, Rows=None, SOPClassUID="1.2.840.10008.1.3.10", Modality=None
        ),
        "line ends of another system": GOOD.replace(b"\n", b"\r\n").replace(b"\0\x40", b"\0\x41"),
    }


def _without_pixels() -> bytes:
    ds = make_dataset(SMALL)
    del ds.PixelData
    return to_bytes(ds)


def pixel_modules() -> dict[str, bytes]:
    """What the header says of the pixels."""
    changes: dict[str, dict] = {
        "no rows": {"Rows": None},
        "rows 0": {"Rows": 0},
        "columns 0": {"Columns": 0},
        "more rows than pixels": {"Rows": 65},
        "twice the columns": {"Columns": 128},
        "65,535 squared": {"Rows": 65535, "Columns": 65535},
        "0 bits": {"BitsAllocated": 0},
        "1 bit": {"BitsAllocated": 1},
        "12 bits allocated": {"BitsAllocated": 12},
        "16 bits of 8": {"BitsAllocated": 16},
        "32 bits": {"BitsAllocated": 32},
        "64 bits": {"BitsAllocated": 64},
        "no bits": {"BitsAllocated": None},
        "3 samples": {"SamplesPerPixel": 3},
        "0 samples": {"SamplesPerPixel": 0},
        "two frames": {"NumberOfFrames": 2},
        "a million frames": {"NumberOfFrames": 1_000_000},
        "RGB": {"PhotometricInterpretation": "RGB"},
        "YBR": {"PhotometricInterpretation": "YBR_FULL"},
        "a palette": {"PhotometricInterpretation": "PALETTE COLOR"},
        "no photometric interpretation": {"PhotometricInterpretation": None},
        "an unknown photometric interpretation": {"PhotometricInterpretation": "NEGATIVE"},
        "more bits stored than allocated": {"BitsStored": 12},
        "no bits stored": {"BitsStored": 0},
        "no bits stored at all": {"BitsStored": None, "HighBit": None},
    }
    return {name: make_dicom(SMALL, **change) for name, change in changes.items()} | {
        "the same value everywhere": make_dicom(SMALL * 0),
        "two channels of pixels": make_dicom(SMALL, SamplesPerPixel=2),
    }


def compressed() -> dict[str, bytes]:
    """Transfer syntaxes and codestreams that do not fit."""
    jpeg = make_jpeg(SMALL)
    at = jpeg.index(b"\xff\xc0") + 5
    other = jpeg[:at] + struct.pack(">HH", 32, 128) + jpeg[at + 4 :]
    rle = in_syntax(SMALL, "RLE")
    return {
        "JPEG said to be raw": _with_syntax(make_dicom(SMALL)[META:], "1.2.840.10008.1.2.4.50"),
        "an unknown syntax": _with_syntax(GOOD[META:], "1.2.3.4.5"),
        "no UID as syntax": _with_syntax(GOOD[META:], "../../etc/passwd"),
        "MPEG2": make_encapsulated(jpeg, SMALL, "1.2.840.10008.1.2.4.100"),
        "JPEG XL": _with_syntax(rle[META:], "1.2.840.10008.1.2.4.110"),
        "JPEG cut": make_encapsulated(jpeg[:300], SMALL, JPEGBaseline8Bit),
        "JPEG of another size": make_encapsulated(other, SMALL, JPEGBaseline8Bit),
        "JPEG of zeros": make_encapsulated(bytes(600), SMALL, JPEGBaseline8Bit),
        "JPEG in color": make_encapsulated(
            make_jpeg(SMALL[..., None].repeat(3, -1)), SMALL, JPEGBaseline8Bit
        ),
        "PNG as JPEG": make_encapsulated(make_png(SMALL), SMALL, JPEGBaseline8Bit),
        "J2K cut": in_syntax(SMALL, "J2K")[:-200],
        "JPEG-LS cut": in_syntax(SMALL, "JPEG-LS")[:-900],
        "RLE cut": rle[:-1500],
        "RLE of zeros": make_encapsulated(bytes(2000), SMALL, RLELossless),
        "RLE of three segments": make_encapsulated(
            struct.pack("<16I", 3, 64, 70, 80, *[0] * 12) + b"\x81\0" * 40, SMALL, RLELossless
        ),
        "RLE that ends early": make_encapsulated(RLE_HEAD + b"\x81\0" * 8, SMALL, RLELossless),
        "RLE that points backwards": make_encapsulated(
            struct.pack("<16I", 1, 8, *[0] * 14) + b"\x81\0" * 40, SMALL, RLELossless
        ),
        "deflated cut": in_syntax(SMALL, "deflated")[:-500],
        "deflated zeros": _with_syntax(bytes(500), "1.2.840.10008.1.2.1.99"),
        "an empty fragment": make_encapsulated(b"\0\0", SMALL, JPEGBaseline8Bit),
    }


def _with_syntax(data: bytes, uid: str) -> bytes:
    """A data set behind a meta header that says this syntax."""
    text = uid.encode() + b"\0" * (len(uid) % 2)
    element = b"\x02\0\x10\0UI" + struct.pack("<H", len(text)) + text
    length = b"\x02\0\0\0UL\4\0" + struct.pack("<I", len(element))
    return bytes(128) + b"DICM" + length + element + data


def grays() -> dict[str, bytes]:
    """Windows, rescaling and lookup tables."""
    changes: dict[str, dict] = {
        "a window of no width": {"WindowCenter": 100, "WindowWidth": 0},
        "a window of negative width": {"WindowCenter": 100, "WindowWidth": -5},
        "a slope of 0": {"RescaleSlope": 0, "RescaleIntercept": 1},
        "a window that leaves nothing": {"WindowCenter": 1e9, "WindowWidth": 1},
        "a huge slope": {"RescaleSlope": "1e300", "RescaleIntercept": 0},
        "an empty lookup table": {"VOILUTSequence": [lookup_table([])]},
        "a lookup table of one value": {"VOILUTSequence": [lookup_table([5] * 256)]},
        "a short lookup table": {"VOILUTSequence": [_short_table()]},
    }
    return {name: make_dicom(SMALL, **change) for name, change in changes.items()} | {
        "a window of words": _raw(b"\x28\0\x50\x10DS", b"center"),
        "a slope of words": _raw(b"\x28\0\x53\x10DS", b"1.2.3."),
        "an endless slope": _raw(b"\x28\0\x53\x10DS", b"inf "),
        "a slope that is no number": _raw(b"\x28\0\x53\x10DS", b"nan "),
        "frames of words": _raw(b"\x28\0\x08\0IS", b"many"),
    }


def _short_table():
    table = lookup_table(list(range(16)))
    table.LUTDescriptor = [256, 0, 8]
    return table


def _raw(head: bytes, value: bytes) -> bytes:
    """The good file with a short element as it stands, read last."""
    window = b"\x28\0\x51\x10DS\4\0100 " if head[2:4] == b"\x50\x10" else b""
    return with_element(GOOD, head + struct.pack("<H", len(value)) + value + window)


def odd_but_good() -> dict[str, bytes]:
    """What breaks the standard, or looks as if, and can be read."""
    changes: dict[str, dict] = {
        "no name": {"PatientName": None, "PatientID": ""},
        "a path as a UID": {"StudyInstanceUID": "../../etc/passwd"},
        "a name in no charset": {"SpecificCharacterSet": "KLINGON", "PatientName": "S^M"},
        "an age of words": {"PatientAge": "old"},
        "a birth date of words": {"PatientBirthDate": "yesterday"},
        "an impossible date": {"StudyDate": "20231345"},
        "a view of its own": {"ViewPosition": "SIDEWAYS"},
        "two windows": {"WindowCenter": [128, 100], "WindowWidth": [256, 100]},
        "one frame": {"NumberOfFrames": 1},
        "MONOCHROME1": {"PhotometricInterpretation": "MONOCHROME1"},
        "negative spacing": {"PixelSpacing": [-1, -1]},
        "a spacing of one": {"PixelSpacing": None, "ImagerPixelSpacing": 0.1},
        "a lookup table": {"VOILUTSequence": [lookup_table(list(range(256)))]},
        "a formula as a name": {"PatientName": "=cmd|' /C calc'!A0"},
        "a script as a study": {"AccessionNumber": "<script>x"},
    }
    syntaxes = ("implicit, no preamble", "explicit, no meta", "big endian", "deflated")
    return {name: make_dicom(SMALL, **change) for name, change in changes.items()} | {
        "good": GOOD,
        "12 bits": make_dicom(DEEP, bits=12),
        "garbage behind the pixels": GOOD + b"garbage!",
        "zeros behind the pixels": GOOD + bytes(512),
        "a preamble of a TIFF": b"II*\0" + GOOD[4:],
        "JPEG 12 bit": make_encapsulated(
            make_jpeg(SMALL), SMALL, "1.2.840.10008.1.2.4.51", BitsStored=8
        ),
        "JPEG as JPEG-LS": make_encapsulated(make_jpeg(SMALL), SMALL, JPEGLSLossless),
        "a private block": with_element(GOOD, b"\x09\0\x10\0LO\4\0ACME"),
        "nested 20 deep": with_element(GOOD, nested(20, stated=True)),
        **{name: in_syntax(SMALL, name) for name in (*syntaxes, "RLE", "JPEG", "JPEG-LS", "J2K")},
    }


def identities() -> dict[str, bytes]:
    """What a node is sent under a study's name."""
    broken = {name: data for name, data in damaged(GOOD).items() if name != "half of it"}
    return broken | {
        "no study": make_dicom(SMALL, StudyInstanceUID=None),
        "a path as a study": make_dicom(SMALL, StudyInstanceUID="../../etc/passwd"),
        "a long study": make_dicom(SMALL, StudyInstanceUID="1." * 40 + "1"),
        "a study of words": make_dicom(SMALL, StudyInstanceUID="study one"),
        "a class of words": make_dicom(SMALL, SOPClassUID="picture"),
        "meta header alone": GOOD[:META],
        "a sequence that does not end": _with_syntax(
            nested(3, stated=False)[:-8], "1.2.840.10008.1.2.1"
        ),
        "an item outside a sequence": _with_syntax(
            b"\xfe\xff\x00\xe0\0\0\0\0" + GOOD[META:], EXPLICIT
        ),
        "no syntax": bytes(128) + b"DICM" + GOOD[META:],
    }
