"""Where the tumor is at one level of a slide: from a mask's pyramid, or from outlines."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
import tifffile
from shapely.geometry.base import BaseGeometry
from skimage.draw import polygon as pixels_inside

from data_prep.annotation_files import polygons_only, read_asap, read_json_outlines
from data_prep.annotation_masks import DECODING_ERRORS, one_channel_mask
from esad_med.base.errors import CaseError, ImageError
from esad_med.base.limits import Limits

_OUTLINE_SUFFIXES = (".xml", ".geojson", ".json")
_TIFF_SUFFIXES = (".tif", ".tiff")
LESION_SUFFIXES = (*_TIFF_SUFFIXES, *_OUTLINE_SUFFIXES)


@dataclass(frozen=True)
class LesionMask:
    """Tumor at a coarse level.

    Attributes:
        tumor: (h, w) True on tumor; pixel (i, j) covers level-0 pixels from (i, j) * downsample.
        size_level0: (width, height) of the slide, or None where outlines do not say it.
    """

    tumor: npt.NDArray[np.bool_]
    size_level0: tuple[int, int] | None


def read_lesion_mask(
    path: Path,
    *,
    level: int,
    margin_px: int,
    size_level0: tuple[int, int] | None = None,
    fingerprint: str = "",
    limits: Limits | None = None,
) -> LesionMask:
    """Read a tumor mask at a level, each level half of the one before.

    Args:
        path: a pyramidal mask TIFF (0, and one other value for tumor), or outlines: ASAP XML,
            GeoJSON, NCRF JSON.
        level: 5 is 1/32 of level 0.
        margin_px: what to leave free around outlines where the slide's size is not known.
        size_level0: (width, height) of the slide, where it is known.
        fingerprint: of the slide's file, where it is known.
        limits: what may be read at all.

    Raises:
        CaseError: a file that cannot be read, lacks the level, is of another slide, has no tumor
            outline, or is beyond the limits.
    """
    limits = limits or Limits()
    suffix = path.suffix.lower()
    if suffix in _TIFF_SUFFIXES:
        return _read_level(path, level, limits)
    if suffix not in _OUTLINE_SUFFIXES:
        raise CaseError(
            f"{path.name}: '{suffix}' holds no lesions; expected {', '.join(LESION_SUFFIXES)}"
        )
    tumor = _read_outlines(path, size_level0, fingerprint, limits)
    return LesionMask(_draw(path, tumor, level, margin_px, size_level0, limits), size_level0)


def _read_level(path: Path, level: int, limits: Limits) -> LesionMask:
    """The wanted level, or every so many pixels of a finer one, as a nearest neighbor would."""
    try:
        with tifffile.TiffFile(path) as tiff:
            levels = tiff.series[0].levels
            sizes = [(item.keyframe.imagewidth, item.keyframe.imagelength) for item in levels]
            index, stride = _nearest_level(path, sizes, level)
            width, height = sizes[index]
            _refuse_large(path, width, height, limits)
            limits.check_unpacked(levels[index].nbytes)
            pixels = np.asarray(levels[index].asarray())
    except CaseError:
        raise
    except ImageError as error:
        raise CaseError(f"{path.name}: {error}") from error
    except DECODING_ERRORS as error:
        raise CaseError(f"{path.name}: not a readable mask image ({error})") from error
    mask = one_channel_mask(path, pixels[::stride, ::stride])
    return LesionMask(np.ascontiguousarray(mask), sizes[0])


def _nearest_level(path: Path, sizes: list[tuple[int, int]], level: int) -> tuple[int, int]:
    """Index of the coarsest level that is fine enough, and the stride from there."""
    for index in reversed(range(len(sizes))):
        power = round(math.log2(max(1, sizes[0][0] / sizes[index][0])))
        exact = all(
            abs(size - whole / 2**power) <= 1
            for size, whole in zip(sizes[index], sizes[0], strict=True)
        )
        if power <= level and exact:
            return index, 2 ** (level - power)
    raise AssertionError(f"{path}: level 0 is exact")  # power 0


def _read_outlines(
    path: Path, size_level0: tuple[int, int] | None, fingerprint: str, limits: Limits
) -> BaseGeometry:
    try:
        read = read_asap if path.suffix.lower() == ".xml" else read_json_outlines
        outlines = read(path, limits=limits)
    except OSError as error:
        raise CaseError(f"{path.name}: cannot be read ({error.strerror})") from error
    if outlines.made_for is not None and size_level0 is not None:
        outlines.made_for.check(path, size_level0, fingerprint)
    tumor = shapely.union_all(outlines.tumor)
    if not tumor.area:
        raise CaseError(f"{path.name}: no tumor outline, of a slide that is said to have tumor")
    return polygons_only(polygons_only(tumor).difference(shapely.union_all(outlines.excluded)))


def _draw(
    path: Path,
    tumor: BaseGeometry,
    level: int,
    margin_px: int,
    size_level0: tuple[int, int] | None,
    limits: Limits,
) -> npt.NDArray[np.bool_]:
    """Pixels whose center lies inside, (h, w) bool."""
    factor = 2**level
    left, top, right, bottom = tumor.bounds
    width, height = (math.ceil(edge / factor) + margin_px for edge in (right, bottom))
    if size_level0 is not None:
        if right > 1.01 * size_level0[0] or bottom > 1.01 * size_level0[1] or min(left, top) < 0:
            raise CaseError(
                f"{path.name}: outlines to x={right:.0f}, y={bottom:.0f}, expected within the"
                f" slide's {size_level0[0]}x{size_level0[1]} level-0 pixels; is it another slide's?"
            )
        width, height = (math.ceil(edge / factor) for edge in size_level0)
    _refuse_large(path, width, height, limits)
    mask = np.zeros((height, width), bool)
    for part in sorted(shapely.get_parts(tumor), key=lambda part: -part.area):  # islands in holes
        _paint(mask, part.exterior, factor, True)
        for hole in part.interiors:
            _paint(mask, hole, factor, False)
    return mask


def _paint(mask: npt.NDArray[np.bool_], ring: shapely.LinearRing, factor: int, value: bool) -> None:
    """Set the pixels whose center lies inside a ring, in the ring's own window."""
    points = np.asarray(ring.coords)[:, :2] / factor - 0.5  # pixel centers at whole numbers
    low = np.maximum(np.floor(points.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 1, mask.shape[::-1])
    if (high <= low).any():
        return
    window = mask[low[1] : high[1], low[0] : high[0]]
    columns, rows = (points - low).T
    window[pixels_inside(rows, columns, window.shape)] = value


def _refuse_large(path: Path, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.mask_megapixels * 1e6:
        raise CaseError(
            f"{path.name}: a mask of {width}x{height} at this level, expected at most"
            f" {limits.mask_megapixels:g} Mpx (limits.mask_megapixels); write coarser levels"
        )
