"""Values of DICOM elements, whatever stands in them."""

import math
import struct
import zlib
from typing import Any

from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from esad_med.base.errors import ImageError

# A value that breaks the standard's form is ours to judge; pydicom would print it in a warning.
pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE

#: What pydicom and its plug-ins are known to raise on damaged files.
DICOM_ERRORS = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError),
    *(RuntimeError, NotImplementedError, InvalidDicomError, struct.error, MemoryError, zlib.error),
    *(AssertionError, BytesLengthException),
)


def value_of(dataset: Dataset, name: str) -> Any:
    """An element's value, None where it is missing or cannot be understood."""
    try:
        return dataset.get(name)
    except DICOM_ERRORS:
        return None


def text_of(dataset: Dataset, name: str) -> str:
    """The first value of an element as text, empty where it is missing, damaged or a sequence."""
    value = value_of(dataset, name)
    if isinstance(value, (MultiValue, list)):
        value = value[0] if len(value) else None
    if value is None or isinstance(value, (Sequence, Dataset)):  # text would be all that is in it
        return ""
    try:
        return str(value)
    except DICOM_ERRORS:
        return ""


def items_of(dataset: Dataset, name: str) -> list[Dataset]:
    """The items of a sequence, none where it is missing or no sequence."""
    value = value_of(dataset, name)
    return list(value) if isinstance(value, Sequence) else []


def number_of(dataset: Dataset, name: str) -> float | None:
    """The first value of a numeric element, None where it is missing or empty.

    Raises:
        ImageError: it is not a finite number.
    """
    try:
        value = dataset.get(name)
        if isinstance(value, (MultiValue, list)):
            value = value[0] if len(value) else None
        number = None if value is None or value == "" else float(value)
    except DICOM_ERRORS as error:
        raise ImageError(f"{name} is not a number") from error
    if number is not None and not math.isfinite(number):
        raise ImageError(f"{name} is not a finite number")
    return number


def integer_of(dataset: Dataset, name: str, default: int) -> int:
    """The same as a whole number, `default` where it is missing.

    Raises:
        ImageError: it is not a whole number.
    """
    value = number_of(dataset, name)
    if value is not None and value != int(value):
        raise ImageError(f"{name} is not a whole number")
    return default if value is None else int(value)
