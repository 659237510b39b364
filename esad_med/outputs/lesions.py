"""The scored tiles of a slide, and lesions: those above the threshold merged into polygons."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

Ring = list[tuple[float, float]]


@dataclass(frozen=True)
class SlideTiles:
    """The scored tiles of one slide, as plain arrays.

    Attributes:
        xy_level0: (n, 2) int64, top-left corners.
        edge_level0: their edge in level-0 pixels.
        measurements: name -> (n,) numbers; ``score`` is among them.
        threshold: of the score.
        fingerprint: of the slide's file.
        slide_size: (width, height) at level 0.
        mpp: µm per level-0 pixel.
        about: what else the file says of itself, plain values.
    """

    xy_level0: npt.NDArray[np.int64]
    edge_level0: float
    measurements: Mapping[str, npt.NDArray[np.floating]]
    threshold: float
    fingerprint: str
    slide_size: tuple[int, int]
    mpp: float
    about: Mapping[str, object]

    @property
    def above(self) -> npt.NDArray[np.bool_]:
        """(n,) which tiles lie above the threshold."""
        return np.asarray(self.measurements["score"] > self.threshold)

    @property
    def drawn_edge(self) -> int:
        """The edge that tiles are drawn with: whole pixels, so that neighbors leave no gap.

        Where a level's downsample is no whole number, corners are rounded, and the true edge would
        leave slits of less than a pixel.
        """
        return math.ceil(round(self.edge_level0, 6))


@dataclass(frozen=True)
class Lesion:
    """One outline with what was measured inside.

    Attributes:
        polygon: with holes where tiles inside lie below the threshold; level-0 pixels.
        area_mm2: of the polygon, holes left out.
        maximum: highest score of its tiles.
        mean: mean score of its tiles.
        tiles: how many tiles it was merged from.
    """

    polygon: shapely.Polygon
    area_mm2: float
    maximum: float
    mean: float
    tiles: int

    @property
    def rings(self) -> list[Ring]:
        """The outer ring, then the holes; each closed, as GeoJSON wants it."""
        return [_points(ring) for ring in (self.polygon.exterior, *self.polygon.interiors)]


def find_lesions(tiles: SlideTiles, *, smallest_mm2: float = 0.0) -> list[Lesion]:
    """Merge the tiles above the threshold that share a part of an edge.

    Args:
        tiles: of the slide.
        smallest_mm2: lesions of a smaller area are left out.

    Returns:
        from the top of the slide to its bottom.
    """
    above = np.flatnonzero(tiles.above)
    if not len(above):
        return []
    score, edge = tiles.measurements["score"], tiles.drawn_edge
    corners = tiles.xy_level0[above].astype(np.float64)
    boxes = shapely.box(corners[:, 0], corners[:, 1], corners[:, 0] + edge, corners[:, 1] + edge)
    merged = shapely.simplify(shapely.union_all(boxes), 0)  # no vertex within a straight side
    parts = shapely.get_parts(shapely.normalize(merged))
    tile, part = shapely.STRtree(parts).query(shapely.points(corners + edge / 2), "intersects")
    order = np.argsort(part, kind="stable")
    starts = np.searchsorted(part[order], np.arange(1, len(parts)))
    found = [
        Lesion(
            polygon=orient(polygon),
            area_mm2=float(polygon.area * tiles.mpp**2 / 1e6),
            maximum=float(score[group].max()),
            mean=float(score[group].mean(dtype=np.float64)),
            tiles=len(group),
        )
        for polygon, group in zip(parts, np.split(above[tile[order]], starts), strict=True)
    ]
    kept = [lesion for lesion in found if lesion.area_mm2 >= smallest_mm2]
    return sorted(kept, key=lambda lesion: lesion.polygon.bounds[1::-1])


def asap_polygons(lesions: Sequence[Lesion]) -> Iterator[tuple[str, Ring]]:
    """The lesions as ASAP can say them, which knows no holes: outer rings, then what to exclude.

    Yields:
        group, as in Camelyon16, and vertices: ``Tumor`` for outer rings, ``_2`` for the holes. A
        lesion in another's hole stays out of the exclusion, which is cut into pieces around it.
    """
    outer = [shapely.Polygon(lesion.polygon.exterior) for lesion in lesions]
    for polygon in outer:
        yield "Tumor", _open(polygon)
    tree = shapely.STRtree(outer)
    for number, lesion in enumerate(lesions):
        for hole in lesion.polygon.interiors:
            empty: BaseGeometry = shapely.Polygon(hole)
            for other in tree.query(empty, "covers"):
                if other != number:
                    empty = empty.difference(outer[other])
            for piece in _without_holes(empty):
                yield "_2", _open(piece)


def _without_holes(geometry: BaseGeometry) -> Iterator[shapely.Polygon]:
    """The same area in pieces without holes, cut upright through the middle of each hole."""
    for part in shapely.get_parts(geometry):
        if part.geom_type != "Polygon" or not part.area:
            continue
        if not part.interiors:
            yield part
            continue
        left, top, right, bottom = part.bounds
        across = shapely.Polygon(part.interiors[0]).representative_point().x
        for half in ((left, across), (across, right)):
            yield from _without_holes(part.intersection(shapely.box(half[0], top, half[1], bottom)))


def _open(polygon: shapely.Polygon) -> Ring:
    return _points(polygon.exterior)[:-1]


def _points(ring: shapely.LinearRing) -> Ring:
    return [(float(x), float(y)) for x, y in ring.coords]
