"""Radiographs of any format as one float image: upright, bones bright, 0 to 1.

`read_xray` looks at a file's content, not at its name. What a file says of itself comes as an
`XrayHeader`; `read_xray_header` gives it without decoding pixels. Their errors name no file: a path
can hold a patient's name, so the caller says which case it is.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from data_prep.codestreams import is_whole_png, picture_size
from data_prep.xray_dicom import is_dicom, parse_dicom
from data_prep.xray_header import XrayHeader
from data_prep.xray_nifti import is_nifti, parse_nifti
from esad_med.base.errors import ImageError
from esad_med.base.limits import Limits

Floats = npt.NDArray[np.float32]

#: Suffixes that are looked for in folders; DICOM files often have none, and are found by content.
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".nii", ".nii.gz", "")

_COLOR_TOLERANCE = 8  # gray levels of 255, mean over the picture; JPEG leaves less
_DECODING_ERRORS = (  # what Pillow is known to raise on damaged pictures
    *(OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(EOFError, struct.error, zlib.error, Image.DecompressionBombError, MemoryError),
)


@dataclass(frozen=True)
class Xray:
    """One radiograph.

    Attributes:
        pixels: (h, w) float32 in 0 ... 1, head up, the patient's right on the left side of a
            frontal view, bones bright.
        header: what the file says.
    """

    pixels: Floats
    header: XrayHeader


def read_xray(path: Path, *, limits: Limits | None = None) -> Xray:
    """Read a PNG, JPEG, DICOM or NIfTI file.

    Args:
        path: the file; its name does not matter.
        limits: what may be decoded at all.

    Raises:
        ImageError: not an image, damaged, beyond the limits, or of a kind that cannot be read.
    """
    limits = limits or Limits()
    return decode_xray(limits.read_bytes(Path(path)), limits=limits)


def decode_xray(data: bytes, *, limits: Limits) -> Xray:
    """The same from a file's content."""
    if is_dicom(data):
        found = parse_dicom(data, limits=limits)
        xray = Xray(found.decode(), found.header)
    elif is_nifti(data):
        volume = parse_nifti(data, limits=limits)
        xray = Xray(volume.decode(), volume.header)
    else:
        xray = _read_picture(data, limits)
    if xray.pixels.min() == xray.pixels.max():
        raise ImageError("shows the same value everywhere, expected a picture")
    return xray


def read_xray_header(path: Path, *, limits: Limits | None = None) -> XrayHeader:
    """What a file says of itself, without decoding pixels.

    Raises:
        ImageError: as `read_xray`, as far as that shows without decoding.
    """
    limits = limits or Limits()
    data = limits.read_bytes(Path(path))
    if is_dicom(data):
        return parse_dicom(data, limits=limits).header
    if is_nifti(data):
        return parse_nifti(data, limits=limits).header
    kind, (width, height) = _measure_picture(data, limits)
    return XrayHeader(kind=kind, rows=height, columns=width)


def looks_like_image(path: Path) -> bool:
    """Whether a file's name or first bytes say that it is meant to be a radiograph."""
    if path.name.lower().endswith(tuple(suffix for suffix in SUFFIXES if suffix)):
        return True
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError:
        return False
    known = start[:8] == b"\x89PNG\r\n\x1a\n" or start[:3] == b"\xff\xd8\xff"
    return (known or is_dicom(start) or is_nifti(start)) and path.name != "DICOMDIR"


def _measure_picture(data: bytes, limits: Limits) -> tuple[str, tuple[int, int]]:
    """Format and (width, height), before Pillow sees it."""
    kind = "PNG" if data[:8] == b"\x89PNG\r\n\x1a\n" else "JPEG" if data[:2] == b"\xff\xd8" else ""
    if not kind:
        raise ImageError("not a PNG, JPEG, DICOM or NIfTI file")
    size = picture_size(data)
    if size is None:
        raise ImageError(f"damaged {kind} file: its header says no size")
    limits.check_pixels(*size)
    return kind, size


def _read_picture(data: bytes, limits: Limits) -> Xray:
    kind, size = _measure_picture(data, limits)
    if kind == "PNG" and not is_whole_png(data):
        raise ImageError("damaged PNG file: a checksum is wrong, or it ends too early")
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            if image.size != size:  # a second header
                raise ImageError(f"damaged {kind} file: its headers say two sizes")
            pixels = _gray(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ImageError(f"damaged {kind} file") from error
    except _DECODING_ERRORS as error:
        raise ImageError(f"damaged {kind} file ({error})") from error
    height, width = pixels.shape
    return Xray(pixels, XrayHeader(kind=kind, rows=height, columns=width))


def _gray(image: Image.Image) -> Floats:
    """One channel in 0 ... 1; what is transparent is black."""
    mode = image.mode
    if mode in {"I;16", "I;16B", "I;16L", "I"}:
        deep = np.asarray(image, dtype=np.float32)
        if "transparency" in image.info:
            deep = np.where(deep == image.info["transparency"], 0, deep)
        return np.asarray(deep.clip(0, 65535) / 65535, dtype=np.float32)
    if mode == "1":
        raise ImageError("is black and white, expected gray levels")
    if mode not in {"L", "LA", "P", "RGB", "RGBA"}:
        raise ImageError(f"pixel mode {mode}, expected gray or RGB; convert it first")
    clear = mode in {"LA", "RGBA"} or "transparency" in image.info
    if clear or mode != "L":
        image = _on_black(image) if clear else image.convert("RGB")
        _refuse_color(np.asarray(image))
    gray: npt.NDArray[Any] = np.asarray(image.convert("L"), dtype=np.float32)
    return np.asarray(gray / np.float32(255), dtype=np.float32)


def _on_black(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, image).convert("RGB")


def _refuse_color(rgb: npt.NDArray[np.uint8]) -> None:
    levels = rgb[::4, ::4].astype(np.int16)
    spread = float((levels.max(-1) - levels.min(-1)).mean())
    if spread > _COLOR_TOLERANCE:
        raise ImageError("is a color picture, expected a gray radiograph")
