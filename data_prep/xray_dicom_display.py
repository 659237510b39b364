"""From stored values to the picture that a DICOM file means: PS3.3 C.11 and PS3.4 N.

Modality LUT or rescale, VOI LUT or window, MONOCHROME1 turned over, the patient's orientation.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from data_prep.xray_dicom_values import (
    DICOM_ERRORS,
    integer_of,
    items_of,
    number_of,
    text_of,
    value_of,
)
from data_prep.xray_header import plain
from esad_med.base.errors import ImageError

Doubles = npt.NDArray[np.float64]


def show(dataset: Dataset, stored: npt.NDArray[Any]) -> Doubles:
    """Stored values (h, w) as a picture in 0 ... 1, upright, bones bright, padding black.

    Raises:
        ImageError: an impossible window, a damaged lookup table, or nothing to be seen.
    """
    padding = _padding(dataset, stored)
    shown = _window(dataset, stored, padding)
    if plain(text_of(dataset, "PhotometricInterpretation")) == "MONOCHROME1":
        shown = 1 - shown
    shown[padding] = 0
    return np.ascontiguousarray(orient(shown, _orientation(dataset)))


def apply_window(
    values: Doubles, center: float, width: float, *, function: str = "LINEAR"
) -> Doubles:
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
    with np.errstate(over="ignore"):  # what is far outside of the window is clipped
        if function == "SIGMOID":
            power = (-4 * (values - center) / width).clip(-700, 700)
            return np.asarray(1 / (1 + np.exp(power)))
        if function == "LINEAR_EXACT":
            return np.asarray(((values - center) / width + 0.5).clip(0, 1))
        if function != "LINEAR":
            raise ImageError(
                f"VOI LUT function {function}, expected LINEAR, LINEAR_EXACT or SIGMOID"
            )
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
    value = value_of(dataset, "PatientOrientation")
    if value is None or isinstance(value, str | bytes) or len(value) != 2:
        return ("", "")
    return str(value[0])[:1].upper(), str(value[1])[:1].upper()


def _padding(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where the pixels hold a padding value (or one of its range) instead of a picture."""
    first = number_of(dataset, "PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, dtype=bool)
    last = number_of(dataset, "PixelPaddingRangeLimit")
    ends = [first, first if last is None else last]
    low, high = sorted(_as_signed(dataset, end) for end in ends)
    return np.asarray((stored >= low) & (stored <= high))


def _as_signed(dataset: Dataset, value: float) -> float:
    """Some devices write the values that go with signed pixels without their sign."""
    signed = integer_of(dataset, "PixelRepresentation", 0) == 1
    return value - (1 << 16) if signed and value >= 1 << 15 else value


def _window(dataset: Dataset, stored: npt.NDArray[Any], padding: npt.NDArray[np.bool_]) -> Doubles:
    """Stored values to 0 ... 1 by the file's first VOI LUT or window.

    Without either, 8-bit values are display values as they are; deeper ones are stretched from the
    smallest to the largest.
    """
    values = _modality_values(dataset, stored)
    if tables := items_of(dataset, "VOILUTSequence"):
        return _look_up(dataset, tables[0], values, unit=True)
    center, width = number_of(dataset, "WindowCenter"), number_of(dataset, "WindowWidth")
    if center is not None and width is not None:
        function = plain(text_of(dataset, "VOILUTFunction")).upper() or "LINEAR"
        return apply_window(values, center, width, function=function)
    deep = integer_of(dataset, "BitsStored", 8) > 8 or items_of(dataset, "ModalityLUTSequence")
    inside = values[~padding] if deep else _modality_values(dataset, _all_values(dataset))
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
    if not low < high:
        raise ImageError("has the same value everywhere, expected a picture")
    return np.asarray(((values - low) / (high - low)).clip(0, 1))


def _all_values(dataset: Dataset) -> npt.NDArray[np.int64]:
    """The smallest and the largest value that can be stored."""
    bits = integer_of(dataset, "BitsStored", 8)
    low = -(1 << (bits - 1)) if integer_of(dataset, "PixelRepresentation", 0) == 1 else 0
    return np.array([low, low + (1 << bits) - 1])


def _modality_values(dataset: Dataset, stored: npt.NDArray[Any]) -> Doubles:
    """Stored values by the modality LUT, else by the rescale, else as they are."""
    values = np.asarray(stored, dtype=np.float64)
    if tables := items_of(dataset, "ModalityLUTSequence"):
        return _look_up(dataset, tables[0], values)
    slope, intercept = number_of(dataset, "RescaleSlope"), number_of(dataset, "RescaleIntercept")
    if slope is None or intercept is None:
        return values
    if max(abs(slope), abs(intercept)) > 1e12:  # far above what 16 bits stand for, and no overflow
        raise ImageError(f"rescale by {slope:g} and {intercept:g}; no such rescale can be")
    return values * slope + intercept


def _look_up(dataset: Dataset, item: Dataset, values: Doubles, *, unit: bool = False) -> Doubles:
    """Values by a lookup table (PS3.3 C.11.1.1), its ends for what lies beyond it.

    pydicom's own lets 8-bit tables of more than 256 entries wrap around and takes no modality LUT
    of 10, 12 or 14 bits.
    """
    try:
        count, first, bits = (int(value) for value in item.LUTDescriptor)
        count, first = count or 1 << 16, int(_as_signed(dataset, first))
        table = _entries(dataset, item.LUTData, count)
    except DICOM_ERRORS as error:
        raise ImageError("its modality or VOI lookup table is damaged") from error
    if not 8 <= bits <= 16 or not 0 < count <= len(table):
        raise ImageError("its modality or VOI lookup table is damaged")
    index = (np.rint(values) - first).clip(0, count - 1).astype(np.intp)
    found = table[index].astype(np.float64)
    return np.asarray((found / ((1 << bits) - 1)).clip(0, 1)) if unit else found


def _entries(dataset: Dataset, data: Any, count: int) -> npt.NDArray[Any]:
    """LUTData, given as numbers or as bytes: one entry a word, or two where the words are few."""
    if not isinstance(data, bytes):
        return np.atleast_1d(np.asarray(data, dtype=np.uint16))
    _, little = dataset.original_encoding
    words = np.frombuffer(data[: len(data) // 2 * 2], dtype="<u2" if little else ">u2")
    return words if len(words) >= count else np.frombuffer(data, dtype=np.uint8)
