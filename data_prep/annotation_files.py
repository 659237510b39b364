"""The files annotations come in: ASAP XML, QuPath GeoJSON, NCRF JSON -> polygons."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

import numpy as np
import shapely
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser
from shapely.geometry.base import BaseGeometry

from esad_med.base.errors import CaseError
from esad_med.base.limits import Limits, read_file
from esad_med.base.text_limits import parse_json

logger = logging.getLogger(__name__)

TUMOR_NAMES = frozenset(
    {"tumor", "tumour", "_0", "_1", "metastasis", "metastases", "carcinoma", "cancer"}
    | {"lesion", "positive", "anomaly", "anomalous"}
)
EXCLUDED_NAMES = frozenset(
    {"_2", "exclusion", "exclude", "excluded", "ignore", "ignore*", "normal", "negative", "hole"}
)
_POLYGON_TYPES = frozenset({"polygon", "rectangle", "spline"})
_FARTHEST = 1e7  # no slide is as large, and GEOS stays exact
_ABOUT = "esad_med"  # beside the features, of what made them
_SHOWN = 60  # characters of a file's own words in a message


@dataclass(frozen=True)
class NamedSlide:
    """The slide that a GeoJSON of `screen` says it was made for.

    Attributes:
        fingerprint: of its file, see `data_prep.slide_header.fingerprint_file`.
        size: (width, height) in level-0 pixels.
    """

    fingerprint: str
    size: tuple[int, int]

    def check(self, path: Path, slide_size: tuple[int, int], fingerprint: str) -> None:
        """Refuse a file made for another slide.

        Raises:
            CaseError: the sizes differ, or the fingerprints, where the slide's is known.
        """
        if self.size == slide_size and self.fingerprint == (fingerprint or self.fingerprint):
            return
        (width, height), (own_width, own_height) = self.size, slide_size
        raise CaseError(
            f"{path.name}: was made for a slide of {width}x{height} pixels with fingerprint"
            f" {self.fingerprint[:12]}, expected this one's {own_width}x{own_height} and"
            f" {fingerprint[:12] or 'any fingerprint'}; give the slide its own file, or remove the"
            f" member '{_ABOUT}' if only the slide's file was written anew"
        )


@dataclass
class Outlines:
    """Polygons as found in a file, level-0 pixels.

    Attributes:
        tumor: polygons that are tumor.
        excluded: polygons to take away from them.
        unknown: names of groups or classes that are neither.
        tumor_free: the file itself says that there is no tumor.
        made_for: the slide that the file names, if it names one.
    """

    tumor: list[BaseGeometry] = field(default_factory=list)
    excluded: list[BaseGeometry] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)
    tumor_free: bool = False
    made_for: "NamedSlide | None" = None

    def add(self, name: str, polygon: BaseGeometry) -> None:
        """File a polygon under what its group or class name means."""
        key = name.strip().lower()
        if key in TUMOR_NAMES:
            self.tumor.append(polygon)
        elif key in EXCLUDED_NAMES:
            self.excluded.append(polygon)
        else:
            self.unknown.add(name[:_SHOWN])


class _Counted(TreeBuilder):
    """Elements in memory, as long as they are neither too many nor nested too deep."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits
        self._count = self._depth = 0

    def start(self, tag: str, attributes: dict[str, str], /) -> Element:
        """An element begins."""
        self._count += 1
        self._depth += 1
        if self._depth > self._limits.nesting:
            raise ValueError(f"nested more than {self._limits.nesting} deep (limits.nesting)")
        if self._count > self._limits.annotation_points:
            raise ValueError(
                f"more than {self._limits.annotation_points:,} elements (limits.annotation_points)"
            )
        return super().start(tag, attributes)

    def end(self, tag: str, /) -> Element:
        """It ends."""
        self._depth -= 1
        return super().end(tag)


def read_asap(path: Path, *, limits: Limits) -> Outlines:
    """Read ASAP XML: groups Tumor, _0 and _1 are tumor, _2 is normal tissue inside.

    Raises:
        CaseError: no XML, of another program, or beyond the limits.
    """
    parser = DefusedXMLParser(target=_Counted(limits))
    try:
        parser.feed(_read_bytes(path, limits))
        root = parser.close()
    except (ParseError, DefusedXmlException, UnicodeError, LookupError, ValueError) as error:
        raise CaseError(f"{path.name}: not a well-formed XML file ({error!s:.200})") from error
    if root.tag != "ASAP_Annotations":
        raise CaseError(
            f"{path.name}: the root element is '{root.tag[:_SHOWN]}', expected"
            " 'ASAP_Annotations'; export as ASAP XML or GeoJSON"
        )
    outlines = Outlines()
    for number, item in enumerate(root.iterfind("./Annotations/Annotation"), start=1):
        where = f"{path.name}: annotation {number} ('{item.get('Name', '')[:_SHOWN]}')"
        if item.get("Type", "Polygon").lower() in _POLYGON_TYPES:
            points = [_read_point(where, point) for point in item.iterfind(".//Coordinate")]
            outlines.add(item.get("PartOfGroup", "None"), make_polygon([points], where))
    return outlines


def read_json_outlines(path: Path, *, limits: Limits) -> Outlines:
    """Read QuPath GeoJSON (a FeatureCollection, a Feature or a list) or NCRF JSON.

    NCRF JSON is ``{"positive": [{"vertices": [[x, y], ...]}], "negative": [...]}``; an empty
    ``positive`` beside a filled ``negative`` says that the slide is normal.

    Raises:
        CaseError: no JSON, without outlines, or beyond the limits.
    """
    data = _read_bytes(path, limits)
    if (points := data.count(b"[") + data.count(b"{")) > limits.annotation_points:
        raise CaseError(
            f"{path.name}: {points:,} lists and objects, expected at most"
            f" {limits.annotation_points:,} (limits.annotation_points); leave out detections"
        )
    try:
        content = parse_json(data, nesting=limits.nesting)
    except ValueError as error:
        raise CaseError(f"{path.name}: not a JSON file ({error})") from error
    if isinstance(content, dict) and "positive" in content:
        return _read_ncrf(path, content)
    made_for = None
    if isinstance(content, dict):
        made_for = _read_named_slide(path, content)
        _refuse_geographic(path, content)
        content = content.get("features", [content])
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise CaseError(
            f"{path.name}: neither GeoJSON features nor NCRF's 'positive' and 'negative'; export"
            " the annotations from QuPath as GeoJSON"
        )
    outlines = Outlines(made_for=made_for)
    for number, feature in enumerate(content, start=1):
        _add_feature(outlines, feature, f"{path.name}: feature {number}")
    return outlines


def make_polygon(rings: Sequence[Sequence[tuple[float, float]]], where: str) -> BaseGeometry:
    """A valid polygon of an outer ring and its holes.

    A ring that crosses itself keeps all it encloses: both lobes of a figure of eight, and what it
    goes around twice.

    Args:
        rings: (x, y) of the vertices, the outer ring first.
        where: file and annotation, for messages.

    Returns:
        a polygon or multipolygon, empty where the ring encloses nothing.
    """
    if not rings or len(rings[0]) < 3:
        logger.warning("%s: fewer than three points, encloses nothing", where)
        return shapely.Polygon()
    holes = [ring for ring in rings[1:] if len(ring) >= 3]
    polygon: BaseGeometry = shapely.Polygon(rings[0], holes)
    if not polygon.is_valid:
        polygon = shapely.make_valid(polygon, method="structure", keep_collapsed=False)
    return polygons_only(polygon)


def polygons_only(geometry: BaseGeometry) -> BaseGeometry:
    """The area of a geometry, without the lines and points a repair or overlay may leave."""
    if geometry.geom_type in {"Polygon", "MultiPolygon"}:
        return geometry
    parts = [part for part in shapely.get_parts(geometry) if "Polygon" in part.geom_type]
    return shapely.union_all(parts) if parts else shapely.Polygon()


def _read_bytes(path: Path, limits: Limits) -> bytes:
    try:
        return read_file(
            path, most_mib=limits.annotation_mib, setting="annotation_mib", error=CaseError
        )
    except CaseError as error:
        raise CaseError(f"{path.name}: {error}") from error.__cause__


def _read_point(where: str, point: Element) -> tuple[float, float]:
    return _to_point(where, [point.get("X"), point.get("Y")])


def _to_point(where: str, point: object) -> tuple[float, float]:
    try:
        x, y = (float(value) for value in point[:2]) if isinstance(point, list) else (np.nan,) * 2
    except (TypeError, ValueError, OverflowError):
        x = y = np.nan
    if not (abs(x) < _FARTHEST and abs(y) < _FARTHEST):
        shown = repr(point)[:_SHOWN]
        raise CaseError(f"{where}: point {shown} is no position X, Y in level-0 pixels")
    return x, y


def _read_ring(where: str, ring: object) -> list[tuple[float, float]]:
    if not isinstance(ring, list):
        raise CaseError(f"{where}: found {type(ring).__name__}, expected a list of points")
    return [_to_point(where, point) for point in ring]


def _read_ncrf(path: Path, content: dict[str, Any]) -> Outlines:
    outlines = Outlines()
    for key in ("positive", "negative"):
        items = content.get(key, [])
        if not isinstance(items, list):
            raise CaseError(f"{path.name}: '{key}' is no list of polygons")
        for number, item in enumerate(items, start=1):
            where = f"{path.name}: {key} {number}"
            ring = item.get("vertices") if isinstance(item, dict) else item
            outlines.add(key, make_polygon([_read_ring(where, ring)], where))
    outlines.tumor_free = not content["positive"] and bool(content.get("negative"))
    return outlines


def _read_named_slide(path: Path, content: dict[str, Any]) -> NamedSlide | None:
    """The slide named beside the features of our own GeoJSON."""
    if _ABOUT not in content:
        return None
    try:
        slide = content[_ABOUT]["slide"]
        fingerprint, width, height = (slide[key] for key in ("fingerprint", "width", "height"))
    except (TypeError, KeyError):
        fingerprint = width = height = None
    if not (isinstance(fingerprint, str) and isinstance(width, int) and isinstance(height, int)):
        raise CaseError(
            f"{path.name}: its member '{_ABOUT}' names no slide with fingerprint, width and height;"
            " it was edited: write the file again with `screen`, or remove the member"
        )
    return NamedSlide(fingerprint, (width, height))


def _refuse_geographic(path: Path, content: dict[str, Any]) -> None:
    """GeoJSON's default is degrees of longitude and latitude, and some tools say so."""
    name = json.dumps(content.get("crs"))[:200].upper()
    if "CRS84" in name or "EPSG" in name:
        raise CaseError(
            f"{path.name}: its 'crs' names a place on the globe, expected level-0 pixels; export"
            " the annotations from QuPath, or remove the member if they are pixels"
        )


def _add_feature(outlines: Outlines, feature: dict[str, Any], where: str) -> None:
    """File one GeoJSON feature; detections, points and lines are passed over."""
    properties = feature.get("properties") or {}
    geometry = feature.get("geometry") or {}
    if not isinstance(properties, dict) or not isinstance(geometry, dict):
        raise CaseError(f"{where}: 'properties' and 'geometry' must be JSON objects")
    kind = geometry.get("type")
    if properties.get("objectType", "annotation") != "annotation":
        return
    if kind not in ("Polygon", "MultiPolygon"):  # whatever JSON holds, which a set might not take
        logger.warning("%s: geometry %.60r has no area, passed over", where, kind)
        return
    polygons = geometry.get("coordinates")
    polygons = [polygons] if kind == "Polygon" else polygons
    if not isinstance(polygons, list) or not all(isinstance(rings, list) for rings in polygons):
        raise CaseError(f"{where}: its coordinates are no list of rings")
    for rings in polygons:
        polygon = make_polygon([_read_ring(where, ring) for ring in rings], where)
        outlines.add(_class_name(properties), polygon)


def _class_name(properties: dict[str, Any]) -> str:
    """QuPath's class, 'Tumor' of 'Tumor: Positive'; the annotation's own name without a class."""
    value = properties.get("classification") or properties.get("name") or "unclassified"
    if isinstance(value, dict):
        names = value.get("names") or [value.get("name", "unclassified")]
        value = names[0] if isinstance(names, list) and names else "unclassified"
    return str(value).split(":")[0].strip()
