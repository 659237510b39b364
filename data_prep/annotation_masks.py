"""Mask images as annotations: pictures of a whole slide at any scale -> polygons."""

import struct
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
import tifffile
from PIL import Image

from data_prep.annotation_files import Outlines
from esad_med.base.errors import CaseError, ImageError
from esad_med.base.limits import Limits

_ASPECT = 0.02  # a mask may differ so much from the slide's proportions
DECODING_ERRORS = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, SyntaxError),
    *(struct.error, zlib.error, tifffile.TiffFileError, Image.DecompressionBombError),
    *(AttributeError, MemoryError, EOFError),
)


def read_mask(path: Path, slide_size: tuple[int, int], *, limits: Limits) -> Outlines:
    """Read a mask image of the whole slide at any scale: 0, and one other value for tumor.

    Each True pixel becomes the rectangle of level-0 pixels it covers, so areas are exact.

    Raises:
        CaseError: no picture, not a mask, of another slide, or beyond the limits.
    """
    mask = _read_mask_pixels(path, limits)
    height, width = mask.shape
    if abs((width / height) / (slide_size[0] / slide_size[1]) - 1) > _ASPECT + 1 / min(mask.shape):
        raise CaseError(
            f"{path.name}: the mask is {width}x{height}, the slide"
            f" {slide_size[0]}x{slide_size[1]}; expected the same proportions; is it the mask of"
            " another slide?"
        )
    x_edges = np.linspace(0, slide_size[0], width + 1)
    y_edges = np.linspace(0, slide_size[1], height + 1)
    ends = np.zeros((height, 1), np.int8)
    steps = np.diff(mask.view(np.int8), axis=1, prepend=ends, append=ends)
    if 2 * (corners := np.count_nonzero(steps)) > limits.annotation_points:
        raise CaseError(
            f"{path.name}: outlines of {2 * corners:,} corners, expected at most"
            f" {limits.annotation_points:,} (limits.annotation_points); is it noise?"
        )
    (rows, first), (_, last) = np.nonzero(steps == 1), np.nonzero(steps == -1)
    boxes = shapely.box(x_edges[first], y_edges[rows], x_edges[last], y_edges[rows + 1])
    return Outlines(tumor=list(boxes), tumor_free=not len(boxes))


def _read_mask_pixels(path: Path, limits: Limits) -> npt.NDArray[np.bool_]:
    try:
        pixels = (
            _finest_tiff_level(path, limits)
            if path.suffix.lower() in {".tif", ".tiff"}
            else _read_picture(path, limits)
        )
    except CaseError:
        raise
    except DECODING_ERRORS as error:
        raise CaseError(f"{path.name}: not a readable mask image ({error})") from error
    return one_channel_mask(path, pixels)


def one_channel_mask(path: Path, pixels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """What a mask's pixels mark, (h, w) bool.

    Raises:
        CaseError: colors, or more than 0 and one other value.
    """
    if pixels.ndim == 3 and (pixels[..., :3] == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if pixels.ndim != 2:
        raise CaseError(f"{path.name}: a colored picture, expected a mask with one channel")
    values = np.unique(pixels)
    if len(values) > 2 or (len(values) == 2 and values[0] != 0):
        shown = ", ".join(str(value) for value in values[:5])
        raise CaseError(
            f"{path.name}: found the values {shown}{', ...' if len(values) > 5 else ''}; expected 0"
            " and one other value that marks tumor; write such a mask, without smoothed edges"
        )
    return np.asarray(pixels != 0)


def _read_picture(path: Path, limits: Limits) -> npt.NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        picture = Image.open(path, formats=["PNG"])  # what else Pillow opens may run programs
    with picture:
        _refuse_large(path, [picture.size], limits)
        return np.asarray(picture)


def _finest_tiff_level(path: Path, limits: Limits) -> npt.NDArray[Any]:
    """The finest level of a TIFF, pyramid or not, that is not too large."""
    with tifffile.TiffFile(path) as tiff:
        levels = tiff.series[0].levels
        sizes = [(level.keyframe.imagewidth, level.keyframe.imagelength) for level in levels]
        _refuse_large(path, sizes, limits)
        most = limits.mask_megapixels * 1e6
        fit = next(i for i, (width, height) in enumerate(sizes) if width * height <= most)
        page = levels[fit].keyframe
        try:
            limits.check_unpacked(max(levels[fit].nbytes, _tile_bytes(page)))
        except ImageError as error:
            raise CaseError(f"{path.name}: {error}") from error
        return np.asarray(levels[fit].asarray())


def _tile_bytes(page: Any) -> int:
    """What one stored tile takes, which may be larger than the picture."""
    bits = page.samplesperpixel * int(np.max(page.bitspersample))
    return int(page.tilewidth * page.tilelength * bits) // 8


def _refuse_large(path: Path, sizes: Iterable[tuple[int, int]], limits: Limits) -> None:
    smallest = min(sizes, key=lambda size: size[0] * size[1])
    if smallest[0] * smallest[1] > limits.mask_megapixels * 1e6:
        raise CaseError(
            f"{path.name}: a mask of {smallest[0]}x{smallest[1]}, expected at most"
            f" {limits.mask_megapixels:g} Mpx (limits.mask_megapixels); write it at a coarser scale"
        )
