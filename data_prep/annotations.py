"""Where the tumor is: polygons in level-0 pixels, and their share of each tile."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from data_prep.annotation_files import (
    EXCLUDED_NAMES,
    TUMOR_NAMES,
    Outlines,
    polygons_only,
    read_asap,
    read_json_outlines,
)
from data_prep.annotation_masks import read_mask
from esad_med.base.errors import CaseError
from esad_med.base.limits import Limits

ANNOTATION_SUFFIXES = (".xml", ".geojson", ".json", ".png", ".tif", ".tiff")
_OVERHANG = 0.01  # outlines drawn over the slide's edge by so much of its size are cut there


@dataclass(frozen=True)
class Annotation:
    """The annotated tumor of one slide.

    Attributes:
        tumor: polygons in level-0 pixels without their exclusions; empty where the file says that
            the slide has none. Pixel (i, j) covers x in [i, i + 1), y in [j, j + 1).
        source: the file.
    """

    tumor: BaseGeometry
    source: Path


def read_annotation(
    path: Path,
    *,
    slide_size: tuple[int, int],
    fingerprint: str = "",
    limits: Limits | None = None,
) -> Annotation:
    """Read the tumor outlines of a slide.

    ASAP ``.xml``, QuPath ``.geojson`` or ``.json``, NCRF ``.json``; or a mask image of the whole
    slide at any scale (``.png``, ``.tif``), 0 and one other value for tumor.

    Args:
        path: the file.
        slide_size: (width, height) of the slide in level-0 pixels.
        fingerprint: of the slide, held against that of the slide a GeoJSON of `screen` was made
            for; not compared where empty.
        limits: what may be read at all.

    Raises:
        CaseError: a file that cannot be read or is beyond the limits, without tumor polygons, with
            unknown groups only, made for another slide, or whose outlines lie outside this one.
    """
    outlines = _read_outlines(path, slide_size, limits or Limits())
    if outlines.made_for is not None:
        outlines.made_for.check(path, slide_size, fingerprint)
    if not any(polygon.area for polygon in outlines.tumor) and not outlines.tumor_free:
        raise CaseError(f"{path.name}: {_explain_missing(outlines)}")
    tumor = polygons_only(shapely.union_all(outlines.tumor))
    _refuse_outside(path, tumor, slide_size)
    tumor = tumor.difference(shapely.union_all(outlines.excluded))
    tumor = tumor.intersection(shapely.box(0, 0, *slide_size))
    return Annotation(polygons_only(tumor), path)


def annotations_in(folder: Path) -> dict[str, Path]:
    """The files of a folder by their names in lower case, for `find_annotation`."""
    return {path.name.lower(): path for path in sorted(folder.iterdir())}


def find_annotation(files: Mapping[str, Path], slide: Path) -> Path | None:
    """The annotation named like a slide (``s1.xml``, ``s1_mask.tif`` for ``s1.svs``), or None."""
    for stem in (slide.stem.lower(), f"{slide.stem.lower()}_mask"):
        for suffix in ANNOTATION_SUFFIXES:
            path = files.get(stem + suffix)
            if path is not None and path.resolve() != slide.resolve():
                return path
    return None


def tumor_fraction(
    annotation: Annotation, xy_level0: npt.NDArray[np.int64], edge_level0: float
) -> npt.NDArray[np.float32]:
    """The share of each tile's area that is tumor.

    Args:
        annotation: outlines of the slide.
        xy_level0: (n, 2) top-left corners (x, y).
        edge_level0: edge of the tiles in level-0 pixels.

    Returns:
        (n,) float32 in [0, 1]; exact polygon areas.
    """
    tumor = annotation.tumor
    x, y = xy_level0[:, 0].astype(np.float64), xy_level0[:, 1].astype(np.float64)
    tiles = shapely.box(x, y, x + edge_level0, y + edge_level0)
    shapely.prepare(tumor)
    inside = shapely.covers(tumor, tiles)
    on_border = shapely.intersects(tumor, tiles) & ~inside
    share = inside.astype(np.float64)
    for top in np.unique(y[on_border]):  # a row's strip of a large outline has few vertices
        row = np.flatnonzero(on_border & (y == top))
        left, right = x[row].min(), x[row].max() + edge_level0
        strip = tumor.intersection(shapely.box(left, top, right, top + edge_level0))
        share[row] = shapely.area(shapely.intersection(strip, tiles[row])) / edge_level0**2
    return np.clip(share, 0, 1).astype(np.float32)


def _read_outlines(path: Path, slide_size: tuple[int, int], limits: Limits) -> Outlines:
    suffix = path.suffix.lower()
    if suffix not in ANNOTATION_SUFFIXES:
        raise CaseError(
            f"{path.name}: '{suffix}' is no known annotation; expected"
            f" {', '.join(ANNOTATION_SUFFIXES)}"
        )
    try:
        if suffix == ".xml":
            return read_asap(path, limits=limits)
        if suffix in {".geojson", ".json"}:
            return read_json_outlines(path, limits=limits)
        return read_mask(path, slide_size, limits=limits)
    except OSError as error:
        raise CaseError(f"{path.name}: cannot be read ({error.strerror})") from error


def _explain_missing(outlines: Outlines) -> str:
    if outlines.unknown and not outlines.excluded:
        return (
            f"unknown groups only ({', '.join(sorted(outlines.unknown)[:5])}); expected one of"
            f" {', '.join(sorted(TUMOR_NAMES))} for tumor, {', '.join(sorted(EXCLUDED_NAMES))} for"
            " exclusions"
        )
    if outlines.excluded:
        return "exclusions without a tumor polygon; expected at least one of group 'Tumor'"
    return "no polygon found; leave the annotation out where a slide has no tumor"


def _refuse_outside(path: Path, tumor: BaseGeometry, slide_size: tuple[int, int]) -> None:
    """Outlines outside the slide belong to another slide, or to another level."""
    if tumor.is_empty:
        return
    (left, top, right, bottom), (width, height) = tumor.bounds, slide_size
    slack = _OVERHANG * max(slide_size)
    if min(left, top) < -slack or right > width + slack or bottom > height + slack:
        raise CaseError(
            f"{path.name}: outlines from x={left:.0f}, y={top:.0f} to x={right:.0f},"
            f" y={bottom:.0f}, expected within the slide's {width}x{height} level-0 pixels; is it"
            " the annotation of another slide?"
        )
