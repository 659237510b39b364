"""Radiographs in NIfTI files: one plane, turned upright by its affine.

The plane is shown as viewers show it: the patient's right on the left side, head (or, in a file
written from a picture, the front) at the top. A file without orientation (both codes 0) is taken
as it is stored, first axis to the right, second axis downwards.
"""

import gzip
import io
import math
import zlib
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from data_prep.xray_header import LATERAL, XrayHeader
from esad_med.base.errors import ImageError
from esad_med.base.limits import Limits

_GZIP = b"\x1f\x8b"
_HEAD_BYTES = 544  # holds the header of either version
_MOST_EXTRA = 4 << 20  # bytes beside the values: the header and its extensions
_ERRORS = (
    *(ImageFileError, HeaderDataError, ValueError, LookupError, TypeError, OSError, EOFError),
    *(ArithmeticError, AttributeError, MemoryError, WrapStructError),
)
_UPRIGHTNESS = {"S": 2, "I": 2, "A": 1, "P": 1, "L": 0, "R": 0}


@dataclass(frozen=True)
class NiftiPlane:
    """A NIfTI file of one plane whose values are not yet decoded.

    Attributes:
        image: nibabel's.
        down: the stored axis that runs along the picture's columns, and its direction.
        across: the one that runs along its rows, and its direction.
        header: what the file says.
    """

    image: Any
    down: tuple[int, str]
    across: tuple[int, str]
    header: XrayHeader

    def decode(self) -> npt.NDArray[np.float32]:
        """(h, w) float32 in 0 ... 1, upright.

        Raises:
            ImageError: damaged, or the same value everywhere.
        """
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # becomes inf, which is left out
                values = np.asarray(self.image.dataobj, dtype=np.float32)
        except _ERRORS as error:
            raise ImageError(f"damaged NIfTI file ({error})") from error
        axes = (self.down[0], self.across[0])
        plane = values.transpose(*axes, *(a for a in range(values.ndim) if a not in axes))
        plane = plane.reshape(plane.shape[:2])
        plane = plane[::-1] if self.down[1] in "SA" else plane
        plane = plane[:, ::-1] if self.across[1] in "RA" else plane
        return _to_unit(plane, self.image.header)


def is_nifti(data: bytes) -> bool:
    """Whether a file's content is NIfTI-1 or 2, packed by gzip or not."""
    return _version(_head(data)) is not None


def parse_nifti(data: bytes, *, limits: Limits) -> NiftiPlane:
    """Read the header; the values are unpacked only where it claims a size within the limits.

    Raises:
        ImageError: damaged, beyond the limits, or more than one plane.
    """
    kind = _version(_head(data))
    assert kind is not None, "asked is_nifti before"
    try:
        header = kind.header_class.from_fileobj(io.BytesIO(_head(data)), check=False)
        shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
    except _ERRORS as error:
        raise ImageError(f"damaged NIfTI header ({error})") from error
    axes = [axis for axis, count in enumerate(shape) if count > 1]
    if len(axes) != 2 or max(axes) > 2 or min(shape) < 1:
        size = " x ".join(map(str, shape))
        raise ImageError(f"holds {size} values, expected one plane; cut the image out first")
    if dtype.kind not in "iuf":
        raise ImageError(f"holds values of type {dtype}, expected gray levels")
    limits.check_pixels(*(shape[axis] for axis in axes))
    size = math.prod(shape) * dtype.itemsize
    limits.check_unpacked(size)
    if data[:2] == _GZIP:
        data = limits.gunzip(io.BytesIO(data), most=size + _MOST_EXTRA)
    try:
        image = kind.from_bytes(data)
        with np.errstate(all="ignore"):  # what cannot be leaves no directions
            down, across = _place(image, axes)
        zooms = [float(zoom) for zoom in image.header.get_zooms()]
    except _ERRORS as error:
        raise ImageError(f"damaged NIfTI file ({error})") from error
    spacing = (zooms[down[0]], zooms[across[0]])
    lateral = down[1] in "SI" and across[1] in "AP"
    return NiftiPlane(
        image=image,
        down=down,
        across=across,
        header=XrayHeader(
            kind="NIfTI",
            rows=shape[down[0]],
            columns=shape[across[0]],
            view=LATERAL if lateral else "",
            spacing_mm=spacing if all(0 < s < math.inf for s in spacing) else None,
        ),
    )


def _head(data: bytes) -> bytes:
    """The first bytes, unpacked if need be."""
    if data[:2] != _GZIP:
        return data[:_HEAD_BYTES]
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            return file.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""


def _version(head: bytes) -> Any:
    if head[344:348] == b"n+1\0":
        return nib.Nifti1Image
    return nib.Nifti2Image if head[4:8] == b"n+2\0" else None


def _place(image: Any, axes: list[int]) -> tuple[tuple[int, str], tuple[int, str]]:
    """Which of the two stored axes runs down and which across, with their directions."""
    header = image.header
    if int(header["qform_code"]) == int(header["sform_code"]) == 0:
        return (axes[1], "I"), (axes[0], "L")
    codes = nib.aff2axcodes(image.affine)
    if any(codes[axis] is None for axis in axes):
        raise ValueError("an affine without directions")
    across, down = sorted(axes, key=lambda axis: _UPRIGHTNESS[codes[axis]])
    return (down, codes[down]), (across, codes[across])


def _to_unit(values: npt.NDArray[np.float32], header: Any) -> npt.NDArray[np.float32]:
    """Bytes by 255, else from the file's display range, else from the least to the largest."""
    slope, intercept = header.get_slope_inter()
    plain = header.get_data_dtype() == np.uint8 and slope in {None, 1} and intercept in {None, 0}
    low, high = (0.0, 255.0) if plain else (float(header["cal_min"]), float(header["cal_max"]))
    finite = np.isfinite(values)
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        known = values[finite]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    if not low < high:
        raise ImageError("has the same value everywhere, expected a picture")
    unit = (np.where(finite, values, low).astype(np.float64) - low) / (high - low)
    return np.ascontiguousarray(unit.clip(0, 1), dtype=np.float32)
