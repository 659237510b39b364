"""Radiographs in DICOM files: what they say of themselves, and their pixels as they are to be seen.

The display pipeline of PS3.3 C.11 and PS3.4 N: stored values, modality LUT or rescale, VOI LUT or
window, MONOCHROME1 turned over, then the patient's orientation. Everything that decides how much
memory is needed is checked before.
"""

import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_modality_lut, apply_voi
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    RLELossless,
)

from data_prep.codestreams import picture_size, rle_sizes
from data_prep.xray_dicom_header import read_header
from data_prep.xray_header import XrayHeader, plain
from esad_med.base.errors import ImageError
from esad_med.base.limits import Limits

Floats = npt.NDArray[np.float32]

# A value that breaks the standard's form is ours to judge; pydicom would print it in a warning.
pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE

_MOST_DEPTH = 64
_ERRORS = (  # what pydicom and its plug-ins are known to raise on damaged files
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError),
    *(RuntimeError, NotImplementedError, InvalidDicomError, struct.error, MemoryError),
)


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
        dataset = self.dataset
        stored = _stored_values(dataset)
        padding = _padding(dataset, stored)
        shown = _window(dataset, stored, padding)
        if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
            shown = 1 - shown
        shown[padding] = 0
        return np.ascontiguousarray(orient(shown, _orientation(dataset)), dtype=np.float32)


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
        raise ImageError(f"holds no image (modality {plain(_text(dataset, 'Modality')) or 'none'})")
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
    _check_deflated(data, limits)
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        depth = _depth(dataset)
    except RecursionError as error:
        raise ImageError(f"nested more than {_MOST_DEPTH} deep; damaged or hostile") from error
    except _ERRORS as error:
        raise ImageError("damaged DICOM file: it ends too early or is no DICOM") from error
    if depth > _MOST_DEPTH:
        raise ImageError(f"nested more than {_MOST_DEPTH} deep; damaged or hostile")
    if len(dataset) < 2:
        raise ImageError("damaged DICOM file: it ends too early, no element could be read")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _check_deflated(data: bytes, limits: Limits) -> None:
    """Pydicom unpacks a deflated file as a whole, however large."""
    uid = str(DeflatedExplicitVRLittleEndian).encode()
    if data[128:132] != b"DICM" or uid not in data[:1024]:
        return
    if data[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        raise ImageError("a deflated DICOM file without the length of its meta header")
    start = 144 + struct.unpack("<I", data[140:144])[0]
    limits.check_deflated(data[start:])


def _depth(dataset: Dataset, level: int = 1) -> int:
    """How deep sequences are nested; stops where it is too deep."""
    if level > _MOST_DEPTH:
        return level
    deepest = level
    for element in dataset:
        if element.VR == "SQ":
            deepest = max([deepest, *(_depth(item, level + 1) for item in element.value)])
    return deepest


def _stored_values(dataset: Dataset) -> npt.NDArray[Any]:
    """Pixel values (h, w) as stored."""
    photometric = plain(_text(dataset, "PhotometricInterpretation"))
    if photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        raise ImageError(f"photometric interpretation {photometric or 'missing'}, expected gray")
    if _integer(dataset, "NumberOfFrames", 1) > 1:
        raise ImageError("holds several frames, expected one radiograph")
    bits = _integer(dataset, "BitsAllocated", 0)
    if bits not in {8, 16}:
        raise ImageError(f"{bits} bits allocated per pixel, expected 8 or 16")
    syntax = dataset.file_meta.TransferSyntaxUID
    name = plain(str(syntax.name if syntax.is_transfer_syntax else "an unknown transfer syntax"))
    try:
        if syntax.is_encapsulated:
            _check_codestream(dataset, bits)
        values = pixel_array(dataset)
    except ImageError:
        raise
    except _ERRORS as error:
        if syntax == JPEGExtended12Bit:
            raise ImageError(
                "12-bit JPEG (JPEG Extended) cannot be decoded; convert it first, such as with"
                " `dcmdjpeg`"
            ) from error
        raise ImageError(f"its pixel data cannot be decoded ({name}); damaged or cut off") from (
            error
        )
    if values.shape != (dataset.Rows, dataset.Columns):
        raise ImageError(f"pixel data of shape {values.shape}, expected rows and columns")
    return np.asarray(values)


def _check_codestream(dataset: Dataset, bits: int) -> None:
    """The compressed picture must be of the size that the header says."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        sizes = rle_sizes(frame)
        if len(sizes) != bits // 8 or any(size > rows * columns + 1 for size in sizes):
            raise ImageError(f"RLE data of another size than {columns}x{rows} pixels")
        return
    size = picture_size(frame)
    if size is not None and size != (columns, rows):
        raise ImageError(
            f"its compressed picture has {size[0]}x{size[1]} pixels, its header says"
            f" {columns}x{rows}"
        )


def _padding(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where the pixels hold a padding value (or one of its range) instead of a picture."""
    first = _number(dataset, "PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, dtype=bool)
    last = _number(dataset, "PixelPaddingRangeLimit")
    low, high = sorted((first, first if last is None else last))
    return np.asarray((stored >= low) & (stored <= high))


def _window(
    dataset: Dataset, stored: npt.NDArray[Any], padding: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Stored values to 0 ... 1 by the file's first VOI LUT or window.

    Without either, 8-bit values are display values as they are; deeper ones are stretched from the
    smallest to the largest.
    """
    try:
        values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
        if dataset.get("VOILUTSequence"):
            return _voi_lut(dataset, values)
    except _ERRORS as error:
        raise ImageError("its modality or VOI lookup table is damaged") from error
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if center is not None and width is not None:
        function = plain(_text(dataset, "VOILUTFunction")) or "LINEAR"
        return apply_window(values, center, width, function=function)
    if _integer(dataset, "BitsStored", 8) <= 8:
        low, high = (float(v) for v in _unit_range(dataset))
    else:
        inside = values[~padding]
        low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
    if not low < high:
        raise ImageError("has the same value everywhere, expected a picture")
    return np.asarray(((values - low) / (high - low)).clip(0, 1))


def _unit_range(dataset: Dataset) -> tuple[float, float]:
    """What 8-bit stored values can be, after the rescale."""
    bits = _integer(dataset, "BitsStored", 8)
    signed = _integer(dataset, "PixelRepresentation", 0) == 1
    low = -(1 << (bits - 1)) if signed else 0
    ends = apply_modality_lut(np.array([low, low + (1 << bits) - 1]), dataset)
    return float(min(ends)), float(max(ends))


def _voi_lut(dataset: Dataset, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
    shown = apply_voi(np.rint(values).astype(np.int64), dataset)
    return np.asarray((shown / float((1 << bits) - 1)).clip(0, 1))


def apply_window(
    values: npt.NDArray[np.float64], center: float, width: float, *, function: str = "LINEAR"
) -> npt.NDArray[np.float64]:
    """Values to 0 ... 1 by a window (PS3.3 C.11.2.1.2 and .3).

    Args:
        values: after the modality LUT.
        center: WindowCenter.
        width: WindowWidth; at least 1 for LINEAR, above 0 for the others.
        function: LINEAR, LINEAR_EXACT or SIGMOID.

    Raises:
        ImageError: an impossible window or an unknown function.
    """
    least = 1.0 if function == "LINEAR" else 1e-12
    if not (math.isfinite(center) and math.isfinite(width) and width >= least):
        raise ImageError(f"window of center {center:g} and width {width:g}; no such window can be")
    if function == "SIGMOID":
        power = (-4 * (values - center) / width).clip(-700, 700)
        return np.asarray(1 / (1 + np.exp(power)))
    if function == "LINEAR_EXACT":
        return np.asarray(((values - center) / width + 0.5).clip(0, 1))
    if function != "LINEAR":
        raise ImageError(f"VOI LUT function {function}, expected LINEAR, LINEAR_EXACT or SIGMOID")
    if width == 1:
        return np.asarray(values > center - 0.5, dtype=np.float64)
    return np.asarray(((values - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1))


def orient(pixels: npt.NDArray[Any], orientation: tuple[str, str]) -> npt.NDArray[Any]:
    """Turn a frontal picture so that rows run to the patient's left and columns to the feet.

    Args:
        pixels: (h, w).
        orientation: first letters of PatientOrientation, along a row and along a column; empty
            where unknown, then nothing is turned.
    """
    row, column = orientation
    if row in "HF" and column in "LR" and row and column:
        pixels, row, column = pixels.T, column, row
    if not (row and column and row in "LR" and column in "HF"):
        return pixels
    pixels = pixels[:, ::-1] if row == "R" else pixels
    return pixels[::-1] if column == "H" else pixels


def _orientation(dataset: Dataset) -> tuple[str, str]:
    value = dataset.get("PatientOrientation")
    if value is None or isinstance(value, str) or len(value) != 2:
        return ("", "")
    return str(value[0])[:1].upper(), str(value[1])[:1].upper()


def _text(dataset: Dataset, name: str) -> str:
    value = dataset.get(name)
    return "" if value is None else str(value)


def _number(dataset: Dataset, name: str) -> float | None:
    """The first value of a numeric element, None where it is missing or empty."""
    try:
        value = dataset.get(name)
        if isinstance(value, (list, pydicom.multival.MultiValue)):
            value = value[0] if len(value) else None
        return None if value is None or value == "" else float(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ImageError(f"{name} is not a number") from error


def _integer(dataset: Dataset, name: str, default: int) -> int:
    value = _number(dataset, name)
    return default if value is None or not math.isfinite(value) else int(value)
