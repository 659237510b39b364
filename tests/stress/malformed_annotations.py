"""Outlines from ASAP, QuPath and NCRF, and masks, as programs, editors and people leave them."""

import io
import json
import zlib
from collections.abc import Iterator

import numpy as np
from good_files import ASAP, GEOJSON, NCRF, mask_png, tile_png
from malformed import READS, Malformed, cases, damaged
from PIL import Image
from tiff_files import written_slide
from xray_files import make_png_by_hand

CORNERS = [(100, 100), (300, 100), (300, 400)]


def xmls() -> Iterator[Malformed]:
    """ASAP XML."""
    broken = damaged(ASAP.encode())
    del broken["as UTF-16"]  # which XML may be
    for contents in (broken, bad_xml(), bad_points()):
        yield from cases("annotation", "a.xml", "CaseError", contents)
    yield from cases("annotation", "b.xml", READS, odd_xml())


def asap(
    points: object = None, *, group: str = "Tumor", kind: str = "Polygon", more: str = ""
) -> str:
    """One outline; points as (X, Y) of anything."""
    corners = CORNERS if points is None else points
    items = "".join(f'<Coordinate Order="0" X="{x}" Y="{y}" />' for x, y in corners)
    return (
        f'<ASAP_Annotations><Annotations><Annotation Name="A" Type="{kind}" PartOfGroup="{group}">'
        f"<Coordinates>{items}</Coordinates></Annotation>{more}</Annotations></ASAP_Annotations>"
    )


def bad_xml() -> dict[str, str | bytes]:
    """No XML, another program's, or hostile."""
    good = asap()
    return {
        "white space": "  \n\n ",
        "an end missing": good.removesuffix("</ASAP_Annotations>"),
        "ends exchanged": good.replace(
            "</Annotations></ASAP_Annotations>", "</ASAP_Annotations></Annotations>"
        ),
        "two roots": good + good,
        "no quotes": good.replace('"', ""),
        "curly quotes": good.replace('"', "“"),
        "an attribute twice": good.replace('X="100"', 'X="100" X="101"', 1),
        "a bare ampersand": good.replace('Name="A"', 'Name="A & B"'),
        "a bare bracket": good.replace('Name="A"', 'Name="<A"'),
        "an unknown entity": good.replace('Name="A"', 'Name="&nbsp;"'),
        "a control character": good.replace('Name="A"', 'Name="\x01"'),
        "a null character": good.replace('Name="A"', 'Name="\0"'),
        "Latin-1 without saying so": good.replace('"A"', '"Überall"').encode("latin-1"),
        "an unknown encoding": '<?xml version="1.0" encoding="klingon"?>' + good,
        "an encoding that it has not": '<?xml version="1.0" encoding="UTF-16"?>' + good,
        "a declaration behind a blank line": '\n<?xml version="1.0"?>' + good,
        "Aperio's": '<Annotations MicronsPerPixel="0.25"><Annotation Id="1"/></Annotations>',
        "a page": "<html><body><p>Not found</p></body></html>",
        "a picture": '<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>',
        "a name space": good.replace("<ASAP_Annotations>", '<ASAP_Annotations xmlns="urn:x">', 1),
        "another case": good.lower(),
        "an internal entity": f'<!DOCTYPE x [<!ENTITY a "b">]>{good}',
        "an external entity": f'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>{good}',
        "a parameter entity": f'<!DOCTYPE x [<!ENTITY % a SYSTEM "http://127.0.0.1/x"> %a;]>{good}',
        "nested 100 deep": "<ASAP_Annotations>"
        + "<a>" * 100
        + "</a>" * 100
        + "</ASAP_Annotations>",
    }


def bad_points() -> dict[str, str]:
    """XML of ASAP's form without an outline that can be used."""
    far = [(x + 5000, y) for x, y in CORNERS]
    return {
        "no annotation": "<ASAP_Annotations><Annotations/></ASAP_Annotations>",
        "no annotations at all": "<ASAP_Annotations/>",
        "no points": asap([]),
        "one point": asap(CORNERS[:1]),
        "two points": asap(CORNERS[:2]),
        "all points alike": asap([(5, 5)] * 4),
        "a line": asap([(1, 1), (50, 50), (100, 100)]),
        "commas in numbers": asap([("100,5", "100"), *CORNERS]),
        "words": asap([("left", "top"), *CORNERS]),
        "empty numbers": asap([("", ""), *CORNERS]),
        "no numbers": asap([("nan", "nan"), *CORNERS]),
        "endless numbers": asap([("inf", "-inf"), *CORNERS]),
        "huge numbers": asap([("1e300", "1e300"), *CORNERS]),
        "hexadecimal": asap([("0x10", "0x20"), *CORNERS]),
        "no X": asap().replace(' X="100"', "", 1),
        "of another slide": asap(far),
        "of another level": asap([(x * 64, y * 64) for x, y in CORNERS]),
        "far to the left": asap([(x - 5000, y) for x, y in CORNERS]),
        "an unknown group": asap(group="Stroma"),
        "a hostile group": asap(group="&lt;script&gt;" * 500),
        "no group": asap(group=""),
        "exclusions alone": asap(group="Exclusion"),
        "dots": asap(kind="Dot"),
        "point sets": asap(kind="PointSet"),
    }


def odd_xml() -> dict[str, str | bytes]:
    """What looks odd, and has an outline."""
    good = asap()
    return {
        "good": ASAP,
        "a byte-order mark": b"\xef\xbb\xbf" + good.encode(),
        "UTF-16": ('<?xml version="1.0" encoding="UTF-16"?>' + good).encode("utf-16"),
        "Latin-1": ('<?xml version="1.0" encoding="ISO-8859-1"?>' + good).encode("latin-1"),
        "line ends of Windows": good.replace("><", ">\r\n<"),
        "version 9": '<?xml version="9.9"?>' + good,
        "a comment": "<!-- by hand -->" + good,
        "an instruction": '<?xml-stylesheet href="x.xsl"?>' + good,
        "a document type": "<!DOCTYPE ASAP_Annotations>" + good,
        "CDATA": good.replace("<Coordinates>", "<Coordinates><![CDATA[<&]]>"),
        "unknown elements": good.replace("<Annotations>", "<Extra a='1'><b/></Extra><Annotations>"),
        "a figure of eight": asap([(10, 10), (200, 200), (200, 10), (10, 200)]),
        "points in exponents": asap([("1e2", "1e2"), ("3e2", "100"), ("300", "4e2")]),
        "spaces around numbers": asap([(" 100 ", "100"), *CORNERS[1:]]),
        "over the edge a little": asap([(-3, -3), (300, 100), (300, 400)]),
        "another case of the group": asap(group="TUMOUR"),
        "a spline": asap(kind="Spline"),
        "an unknown group besides": asap(
            more='<Annotation PartOfGroup="X"><Coordinates/></Annotation>'
        ),
        "points twice": asap([point for point in CORNERS for _ in range(2)]),
    }


def geojsons() -> Iterator[Malformed]:
    """QuPath's GeoJSON and NCRF's JSON."""
    for contents in (damaged(GEOJSON.encode()), bad_json(), bad_geometries()):
        yield from cases("annotation", "a.geojson", "CaseError", contents)
    yield from cases("annotation", "b.geojson", READS, odd_json())


def feature(geometry: object = None, **properties: object) -> str:
    """A collection of one feature."""
    square = [[*CORNERS, CORNERS[0]]]
    shape = {"type": "Polygon", "coordinates": square} if geometry is None else geometry
    given = {"objectType": "annotation", "classification": {"name": "Tumor"}} | properties
    one = {"type": "Feature", "geometry": shape, "properties": given}
    return json.dumps({"type": "FeatureCollection", "features": [one]})


def _polygon(coordinates: object, kind: str = "Polygon") -> str:
    return feature({"type": kind, "coordinates": coordinates})


def bad_json() -> dict[str, str | bytes]:
    """No JSON, or none of outlines."""
    good = feature()
    return {
        "a comma too many": good[:-1] + ",}",
        "single quotes": good.replace('"', "'"),
        "no quotes": good.replace('"', ""),
        "a comment": "// by hand\n" + good,
        "two documents": good + good,
        "an end missing": good[:-2],
        "UTF-16": good.encode("utf-16"),
        "a byte-order mark": b"\xef\xbb\xbf" + good.encode(),
        "Latin-1": good.replace("Tumor", "T\xfcmor").encode("latin-1"),
        "half a character": good.encode()[:-1] + b"\xe2\x82",
        "a number of 5,000 digits": '{"features": [' + "9" * 5000 + "]}",
        "null": "null",
        "a number": "42",
        "a text": '"Tumor"',
        "an empty object": "{}",
        "an empty list": "[]",
        "a list of numbers": "[1, 2, 3]",
        "a list of nulls": "[null, null]",
        "features of null": '{"features": null}',
        "features as an object": '{"features": {"a": 1}}',
        "nested 100 deep": "[" * 100 + "]" * 100,
        "TopoJSON": '{"type": "Topology", "objects": {}, "arcs": []}',
        "COCO": '{"images": [], "annotations": [{"segmentation": [[1, 2, 3, 4]]}]}',
    }


def bad_geometries() -> dict[str, str]:
    """JSON of the right form whose outlines cannot be used."""
    return {
        "no geometry": feature({}),
        "geometry as a list": feature([1, 2]),
        "properties as a list": feature()
        .replace('"properties": {', '"properties": [{')
        .replace("}}]}", "}}]}]}"),
        "an unknown kind": feature({"type": "Circle", "coordinates": [1, 2]}),
        "a kind of a list": feature({"type": ["Polygon"], "coordinates": [1, 2]}),
        "a point": feature({"type": "Point", "coordinates": [1, 2]}),
        "a line": feature({"type": "LineString", "coordinates": CORNERS}),
        "no coordinates": feature({"type": "Polygon"}),
        "coordinates of null": _polygon(None),
        "coordinates as a text": _polygon("1 2 3 4"),
        "rings of numbers": _polygon([1, 2, 3]),
        "points of numbers": _polygon([[1, 2, 3]]),
        "points of one number": _polygon([[[1], [2], [3]]]),
        "points of texts": _polygon([[["a", "b"], [1, 2], [3, 4]]]),
        "points of nulls": _polygon([[[None, None], [1, 2], [3, 4]]]),
        "points of booleans alone": _polygon(
            [[[True, False], [True, True], [False, True]]], "MultiPolygon"
        ),
        "huge numbers": _polygon([[[1e300, 1], [2, 2], [3, 1]]]),
        "whole numbers beyond floats": _polygon([[[10**400, 1], [2, 2], [3, 1]]]),
        "NaN": _polygon([[[float("nan"), 1], [2, 2], [3, 1]]]),
        "Infinity": _polygon([[[float("inf"), 1], [2, 2], [3, 1]]]),
        "two points": _polygon([CORNERS[:2]]),
        "an empty ring": _polygon([[]]),
        "no ring": _polygon([]),
        "degrees of the earth beyond the slide": _polygon([[[9000, 10], [9100, 10], [9100, 90]]]),
        "negative": _polygon([[[-900, -900], [-800, -900], [-800, -800]]]),
        "an unknown class": feature(classification={"name": "Stroma"}),
        "no class": feature(classification=None),
        "a class as a number": feature(classification=7),
        "a class of no names": feature(classification={"names": []}),
        "a class of 100,000 letters": feature(classification={"name": "x" * 100_000}),
        "detections alone": feature(objectType="detection"),
        "NCRF without polygons": '{"positive": [], "negative": []}',
        "NCRF of a number": '{"positive": 3, "negative": []}',
        "NCRF of nulls": '{"positive": [null], "negative": []}',
        "NCRF of one point": '{"positive": [{"vertices": [[1, 1]]}], "negative": []}',
        "NCRF without vertices": '{"positive": [{"name": "a"}], "negative": []}',
    }


def odd_json() -> dict[str, str]:
    """What looks odd, and has an outline."""
    square = [[*CORNERS, CORNERS[0]]]
    return {
        "good": GEOJSON,
        "NCRF": NCRF,
        "NCRF says normal": '{"positive": [], "negative": [[[1, 1], [9, 1], [9, 9]]]}',
        "one feature": json.dumps(json.loads(GEOJSON)["features"][0]),
        "a list of features": json.dumps(json.loads(GEOJSON)["features"]),
        "several polygons": _polygon([square, square], "MultiPolygon"),
        "a third coordinate": _polygon([[[1, 1, 0], [90, 1, 0], [90, 90, 0]]]),
        "an open ring": _polygon([CORNERS]),
        "a figure of eight": _polygon([[[10, 10], [200, 200], [200, 10], [10, 200]]]),
        "a class of its own words": feature(classification={"name": "Tumor: Positive"}),
        "a class by its names": feature(classification={"names": ["Tumor", "x"]}),
        "brackets in a name": feature(name="[" * 500),
        "measurements of no numbers": feature(measurements={"a": float("nan")}),
        "a key twice": feature().replace('"type": "FeatureCollection"', '"type": 1, "type": 2'),
        "deep measurements": feature(measurements=json.loads("[" * 40 + "]" * 40)),
        "numbers as texts": _polygon([[["100", "100"], ["300", "100"], ["300", "400"]]]),
    }


def masks() -> Iterator[Malformed]:
    """Mask images."""
    for contents in (damaged(mask_png()), bad_masks()):
        yield from cases("annotation", "m.png", "CaseError", contents)
    yield from cases("annotation", "m.tif", "CaseError", bad_tiff_masks())
    yield from cases("annotation", "n.png", READS, odd_masks())


def _mask(height: int = 80, width: int = 100) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[10:40, 20:60] = 255
    return mask


def _saved(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def bad_masks() -> dict[str, bytes]:
    """Pictures that are no mask of this slide."""
    smooth = np.linspace(0, 255, 8000).reshape(80, 100).astype(np.uint8)
    return {
        "of other proportions": _saved(_mask(100, 100)),
        "turned": _saved(_mask(100, 80)),
        "smoothed edges": _saved(smooth),
        "three values": _saved(np.minimum(_mask(), 200) + (_mask(80, 100)[::-1] > 0) * np.uint8(9)),
        "tumor and no background": _saved(np.maximum(_mask(), 1)),
        "in color": tile_png(),
        "a JPEG under the name": _saved(_mask(), "JPEG"),
        "a TIFF under the name": _saved(_mask(), "TIFF"),
        "PostScript, which runs programs": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
        "cut": _saved(np.random.default_rng(0).integers(0, 2, (80, 100), np.uint8))[:600],
        "one that claims 30,000 x 24,000": make_png_by_hand(30_000, 24_000, zlib.compress(b"")),
    }


def bad_tiff_masks() -> dict[str, bytes]:
    """The same as TIFF."""
    gray = {"photometric": "minisblack"}
    good = written_slide(_mask(), (1,), **gray, tile=(16, 16))
    deep = np.linspace(0, 1, 8000).reshape(80, 100)
    return damaged(good) | {
        "floats": written_slide(deep, (1,), **gray, compression=None, tile=(16, 16)),
        "in color": written_slide(
            np.dstack([_mask(), _mask()[::-1], _mask()]), (1,), tile=(16, 16)
        ),
        "of other proportions": written_slide(_mask(100, 100), (1,), **gray, tile=(16, 16)),
    }


def odd_masks() -> dict[str, bytes]:
    """Masks of other kinds."""
    return {
        "good": mask_png(),
        "0 and 1": _saved(_mask() // 255),
        "no tumor": _saved(_mask() * 0),
        "bits": _saved(_mask() > 0),
        "16 bits": _saved(_mask().astype(np.uint16)),
        "gray as color": _saved(np.dstack([_mask()] * 3)),
        "with transparency": _saved(np.dstack([_mask()] * 3 + [_mask() * 0 + 255])),
        "ten pixels": _saved(_mask(80, 100)[::8, ::10][:8, :10]),
    }
