"""Radiographs in DICOM files: what they say of themselves, and their pixels as they are to be seen.

Everything that decides how much memory is needed is checked before it is spent, on the bytes that
pydicom and its plug-ins will be given.
"""

import io
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from data_prep.codestreams import picture_size, rle_sizes
from data_prep.xray_dicom_display import show
from data_prep.xray_dicom_header import read_header
from data_prep.xray_dicom_values import DICOM_ERRORS, integer_of, text_of
from data_prep.xray_header import XrayHeader, plain, shown
from esad_med.base.errors import ImageError
from esad_med.base.limits import Limits

Floats = npt.NDArray[np.float32]

# What only pylibjpeg-libjpeg decodes, which is GPL-3 and so in an extra.
_NEED_LIBJPEG = {JPEGLossless, JPEGLosslessSV1}
_MOST_READS = 60_000  # an element takes two or three; radiographs have hundreds of elements
_BESIDE_MIB = 32  # of a deflated file, beside its pixels
_SEQUENCE_MIB = 8  # of one of stated length, which pydicom unfolds as a whole
_MOST_ITEMS = 10_000
_DAMAGED = "damaged DICOM file: it ends too early or is no DICOM"
# What makes the content of a deflated file an ordinary one.
_EXPLICIT = b"\0" * 128 + b"DICM\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"


@dataclass(frozen=True)
class DicomXray:
    """A DICOM image whose pixels are not yet decoded.

    Attributes:
        dataset: pydicom's, pixel data still encoded.
        header: what the file says.
    """

    dataset: Dataset
    header: XrayHeader

    def decode(self) -> Floats:
        """(h, w) float32 in 0 ... 1, upright, bones bright.

        Raises:
            ImageError: no pixels, damaged pixels, an impossible window, a syntax without decoder.
        """
        try:
            return np.asarray(show(self.dataset, _stored_values(self.dataset)), dtype=np.float32)
        except DICOM_ERRORS as error:
            raise ImageError("its header and its pixels do not fit together; damaged") from error


def is_dicom(data: bytes) -> bool:
    """Whether a file's content is DICOM: its mark, or a first element of group 2 or 8."""
    if data[128:132] == b"DICM":
        return True
    group, element = struct.unpack("<HH", data[:4]) if len(data) >= 8 else (0, 0)
    return group in {0x0002, 0x0008} and element <= 0x0100


def parse_dicom(data: bytes, *, limits: Limits) -> DicomXray:
    """Parse a file and check what its pixels would take; nothing is decoded.

    Raises:
        ImageError: damaged, no image, more than one frame, colors, or beyond the limits.
    """
    dataset = read_dataset(data, limits=limits)
    if "Rows" not in dataset or "Columns" not in dataset:
        raise ImageError(f"holds no image (modality {shown(text_of(dataset, 'Modality'))})")
    if "PixelData" not in dataset:
        raise ImageError("holds no pixel data")
    header = read_header(dataset)
    limits.check_pixels(header.columns, header.rows)
    return DicomXray(dataset, header)


def read_dataset(data: bytes, *, limits: Limits) -> Dataset:
    """Parse any DICOM file's content, old ones without preamble and meta header too.

    Raises:
        ImageError: truncated, nested too deep, or larger than the limits when unpacked.
    """
    nested = f"nested more than {limits.nesting} deep (limits.nesting); damaged or hostile"
    try:
        try:
            dataset = pydicom.dcmread(_Stream(data, limits), force=True)
        except _DeflatedError as found:
            dataset = pydicom.dcmread(_Stream(_EXPLICIT + found.content, limits), force=True)
        depth = _depth(dataset, limits.nesting)
    except RecursionError as error:
        raise ImageError(nested) from error
    except DICOM_ERRORS as error:
        if isinstance(error.__context__, ImageError):  # pydicom makes it an error of its own
            raise error.__context__ from None
        raise ImageError(_DAMAGED) from error
    if depth > limits.nesting:
        raise ImageError(nested)
    if len(dataset) < 2:
        raise ImageError("damaged DICOM file: it ends too early, no element could be read")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


class _DeflatedError(Exception):
    """The rest of the file is deflated."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content


class _Stream(io.BytesIO):
    """A file for pydicom, which unpacks and unfolds whatever it is given, however large."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        super().__init__(data)
        self._limits = limits
        self._reads = 0

    def read(self, size: int | None = -1) -> bytes:
        """As of any file; the rest as a whole is what pydicom reads in order to inflate it."""
        if size is None or size < 0:
            most = int(2 * self._limits.megapixels * 1e6) + (_BESIDE_MIB << 20)  # 16 bits
            raise _DeflatedError(self._limits.inflate(super().read(), most=most))
        self._reads += 1
        if self._reads > _MOST_READS:
            raise ImageError("holds more elements than any radiograph; damaged or hostile")
        return super().read(size)


def _depth(dataset: Dataset, most: int, level: int = 1) -> int:
    """How deep sequences are nested; stops where it is too deep.

    Only sequences are unfolded: a damaged value of another element does no harm until it is used.
    """
    if level > most:
        return level
    deepest = level
    for element in list(dataset.elements()):
        if _is_sequence(element):
            if isinstance(element, RawDataElement):
                _check_folded(element.value or b"")
            items = dataset[element.tag].value
            deepest = max([deepest, *(_depth(item, most, level + 1) for item in items)])
    return deepest


def _is_sequence(element: Any) -> bool:
    if element.VR in {None, "UN"}:
        try:
            return dictionary_VR(element.tag) == "SQ"
        except KeyError:
            return False
    return str(element.VR) == "SQ"


def _check_folded(value: bytes) -> None:
    """Refuse a sequence that would take far more memory than its bytes."""
    items = max(value.count(b"\xfe\xff\x00\xe0"), value.count(b"\xff\xfe\xe0\x00"))
    if len(value) > _SEQUENCE_MIB << 20 or items > _MOST_ITEMS:
        raise ImageError("holds a sequence larger than any radiograph's; damaged or hostile")


def _stored_values(dataset: Dataset) -> npt.NDArray[Any]:
    """Pixel values (h, w) as stored."""
    bits = _check_pixel_module(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    name = syntax.name if syntax.is_transfer_syntax else "an unknown transfer syntax"
    try:
        if syntax.is_encapsulated:
            _check_codestream(dataset, bits)
        values = pixel_array(dataset)
    except DICOM_ERRORS as error:
        if syntax == JPEGExtended12Bit:
            raise ImageError(
                "12-bit JPEG (JPEG Extended) cannot be decoded; convert it first, such as with"
                " `dcmdjpeg`"
            ) from error
        if syntax in _NEED_LIBJPEG and find_spec("libjpeg") is None:
            raise ImageError(
                f"{name} needs a decoder that is not installed; pip install 'esad-med[dicom]'"
            ) from error
        raise ImageError(f"its pixel data cannot be decoded ({name}); damaged or cut off") from (
            error
        )
    if values.shape != (dataset.Rows, dataset.Columns):
        raise ImageError(f"pixel data of shape {values.shape}, expected rows and columns")
    return np.asarray(values)


def _check_pixel_module(dataset: Dataset) -> int:
    """Refuse what is not one gray frame of 8 or 16 bits; gives the bits."""
    photometric = plain(text_of(dataset, "PhotometricInterpretation"))
    if photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        raise ImageError(f"photometric interpretation {shown(photometric)}, expected gray")
    if (samples := integer_of(dataset, "SamplesPerPixel", 1)) != 1:
        raise ImageError(f"{samples} samples per pixel, expected gray")
    if integer_of(dataset, "NumberOfFrames", 1) > 1:
        raise ImageError("holds several frames, expected one radiograph")
    bits = integer_of(dataset, "BitsAllocated", 0)
    if bits not in {8, 16}:
        raise ImageError(f"{bits} bits allocated per pixel, expected 8 or 16")
    return bits


def _check_codestream(dataset: Dataset, bits: int) -> None:
    """The compressed picture must be of the size that the header says."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    table = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
    offsets = tuple(dataset[name].value for name in table) if table[0] in dataset else None
    frames = generate_frames(dataset.PixelData, number_of_frames=1, extended_offsets=offsets)
    frame = next(frames, b"")
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        sizes = rle_sizes(frame, most=rows * columns + 1)
        if len(sizes) != bits // 8 or any(size > rows * columns + 1 for size in sizes):
            raise ImageError(f"RLE data of another size than {columns}x{rows} pixels")
        return
    size = picture_size(frame)
    if size is None:
        raise ValueError("no picture, or of a format that says no size")
    if size != (columns, rows):
        raise ImageError(
            f"its compressed picture has {size[0]}x{size[1]} pixels, its header says"
            f" {columns}x{rows}"
        )
