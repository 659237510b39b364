"""Valid radiographs of every kind, and mutants of any file."""

import struct

import numpy as np
from pydicom.dataset import Dataset
from xray_bombs import SMALL
from xray_files import (
    draw,
    heal_png,
    in_syntax,
    lookup_table,
    make_dicom,
    make_jpeg,
    make_nifti,
    make_png,
    with_element,
)

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
