import gzip
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from skimage.draw import polygon as rasterize

from data_prep.annotations import (
    Annotation,
    annotations_in,
    find_annotation,
    read_annotation,
    tumor_fraction,
)
from esad_med.base.errors import CaseError
from esad_med.base.limits import Limits

SLIDE = (1000, 800)
SQUARE = [[100, 100], [300, 100], [300, 300], [100, 300]]
INNER = [[150, 150], [200, 150], [200, 200], [150, 200]]
BOW_TIE = [[100, 100], [300, 300], [300, 100], [100, 300]]
CAMELYON = (220_000, 240_000)  # larger than any slide of the challenge


def write_asap(path: Path, *annotations: tuple[str, list[list[int]]]) -> Path:
    items = "".join(
        f'<Annotation Name="a{n}" Type="Polygon" PartOfGroup="{group}"><Coordinates>'
        + "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(ring))
        + "</Coordinates></Annotation>"
        for n, (group, ring) in enumerate(annotations)
    )
    path.write_text(f"<ASAP_Annotations><Annotations>{items}</Annotations></ASAP_Annotations>")
    return path


def feature(kind: str | None, *rings: list[list[int]], **properties: object) -> dict:
    classes = {"classification": {"name": kind, "color": [200, 0, 0]}} if kind else {}
    closed = [[*ring, ring[0]] for ring in rings]
    return {
        "type": "Feature",
        "id": "5b0b8f0e-0000-4000-8000-000000000000",
        "geometry": {"type": "Polygon", "coordinates": closed},
        "properties": {"objectType": "annotation"} | classes | properties,
    }


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def area(path: Path, *, limits: Limits | None = None) -> float:
    return read_annotation(path, slide_size=SLIDE, limits=limits).tumor.area


# --- what the formats mean ------------------------------------------------------------------


@pytest.mark.parametrize("group", ["Tumor", "_0", "_1", "tumor"])
def test_asap_groups(tmp_path, group):
    path = write_asap(tmp_path / "s.xml", (group, SQUARE), ("_2", INNER), ("other", SQUARE))
    assert area(path) == 200**2 - 50**2


def test_overlapping_outlines_count_once(tmp_path):
    moved = [[x + 100, y] for x, y in SQUARE]
    assert area(write_asap(tmp_path / "s.xml", ("_0", SQUARE), ("_1", moved))) == 300 * 200


def test_a_self_crossing_outline_keeps_both_lobes(tmp_path):
    assert area(write_asap(tmp_path / "s.xml", ("Tumor", BOW_TIE))) == pytest.approx(200**2 / 2)


def test_what_an_outline_goes_around_twice_is_no_hole(tmp_path):
    ring = [(0, 0), (10, 0), (10, 6), (4, 6), (4, 4), (12, 4), (12, 10), (0, 10)]
    assert area(write_asap(tmp_path / "s.xml", ("Tumor", ring))) == 10 * 10 + 2 * 6


@pytest.mark.parametrize("wrap", [lambda f: {"type": "FeatureCollection", "features": f}, list])
def test_qupath_geojson(tmp_path, wrap):
    path = write_json(
        tmp_path / "s.geojson",
        wrap(
            [
                feature("Tumor: Positive", SQUARE, INNER),
                feature("Ignore*", [[250, 250], [300, 250], [300, 300], [250, 300]]),
                feature("Stroma", [[0, 0], [900, 0], [900, 700], [0, 700]]),
                feature("Tumor", [[0, 0], [90, 0], [90, 90]], objectType="detection"),
                {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}},
            ]
        ),
    )
    assert area(path) == 200**2 - 2 * 50**2


def test_qupath_multipolygon_old_names_and_unclassified_name(tmp_path):
    several = feature(None, SQUARE, classification={"names": ["Metastasis", "x"]})
    moved = [[[x + 400, y] for x, y in SQUARE]]
    several["geometry"] = {"type": "MultiPolygon", "coordinates": [[SQUARE], moved]}
    assert area(write_json(tmp_path / "a.json", several)) == 2 * 200**2
    assert area(write_json(tmp_path / "b.json", feature(None, SQUARE, name="tumour"))) == 200**2


def test_ncrf_json_and_its_normal_slides(tmp_path):
    content = {"positive": [{"name": "_0", "vertices": SQUARE}], "negative": []}
    content["negative"].append({"name": "x", "vertices": INNER})
    assert area(write_json(tmp_path / "s.json", content)) == 200**2 - 50**2
    content["positive"] = []
    assert area(write_json(tmp_path / "n.json", content)) == 0


def test_outlines_drawn_a_little_over_the_edge_are_cut(tmp_path):
    ring = [[-5, -5], [95, -5], [95, 95], [-5, 95]]
    assert area(write_asap(tmp_path / "s.xml", ("Tumor", ring))) == 95**2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 255]))
def test_masks_have_exact_areas(tmp_path_factory, seed, value):
    rng = np.random.default_rng(seed)
    mask = rng.random((16, 20)) < 0.4  # 50 level-0 pixels each
    path = tmp_path_factory.mktemp("mask") / "s.png"
    Image.fromarray((mask * value).astype(np.uint8)).save(path)
    annotation = read_annotation(path, slide_size=SLIDE)
    assert annotation.tumor.area == pytest.approx(mask.sum() * 50**2)
    rows, columns = np.mgrid[:8, :10]
    corners = np.stack([columns, rows], -1).reshape(-1, 2) * 100
    share = tumor_fraction(annotation, corners, 100.0)
    expected = mask.reshape(8, 2, 10, 2).mean((1, 3)).ravel()
    np.testing.assert_allclose(share, expected, atol=1e-6)


def test_mask_forms(tmp_path):
    mask = np.zeros((80, 100), np.uint8)
    mask[10:30, 20:60] = 2
    tifffile.imwrite(tmp_path / "plain.tif", mask)
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as writer:
        for step in (1, 2, 4):
            writer.write(mask[::step, ::step], tile=(16, 16), subfiletype=int(step > 1))
    Image.fromarray(mask > 0).save(tmp_path / "bits.png")
    Image.fromarray(np.repeat((mask > 0)[..., None] * np.uint8(255), 3, 2)).save(
        tmp_path / "rgb.png"
    )
    for path in tmp_path.iterdir():
        assert area(path) == pytest.approx(20 * 40 * 100), path.name
    Image.fromarray(mask * 0).save(tmp_path / "empty.png")
    assert area(tmp_path / "empty.png") == 0


def test_the_finest_mask_level_that_is_small_enough_is_read(tmp_path):
    limits = Limits(mask_megapixels=0.001)
    mask = np.zeros((80, 100), np.uint8)
    mask[:40] = 1
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        for step in (1, 4):
            writer.write(mask[::step, ::step], tile=(16, 16), subfiletype=int(step > 1))
    assert area(tmp_path / "s.tif", limits=limits) == pytest.approx(1000 * 400)
    tifffile.imwrite(tmp_path / "large.tif", mask)
    with pytest.raises(CaseError, match="100x80, expected at most"):
        area(tmp_path / "large.tif", limits=limits)


# --- tile labels ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(0, 900)] * 4),
    st.floats(8, 300),
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900)), min_size=1, max_size=20),
)
def test_fraction_of_a_rectangle_by_hand(corners, edge, places):
    left, right = sorted(corners[:2])
    top, bottom = sorted(corners[2:])
    annotation = Annotation(shapely.box(left, top, right, bottom), Path("made-up"))
    xy = np.array(places)
    size = [
        np.clip(np.minimum(xy[:, k] + edge, high) - np.maximum(xy[:, k], low), 0, None)
        for k, (low, high) in enumerate([(left, right), (top, bottom)])
    ]
    found = tumor_fraction(annotation, xy, edge)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, size[0] * size[1] / edge**2, atol=1e-6)


def test_fractions_of_no_tumor_and_no_tiles():
    nothing = Annotation(shapely.Polygon(), Path("made-up"))
    assert (tumor_fraction(nothing, np.array([[0, 0], [5, 5]]), 10.0) == 0).all()
    assert tumor_fraction(nothing, np.zeros((0, 2), np.int64), 10.0).shape == (0,)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "scale"),
    [
        *[(f"json_ncrf/Tumor_{n}.json", 8) for n in ("001", "073", "081", "093", "107")],
        ("json_ncrf/Tumor_064.json", 32),
        *[(f"xml/{n}.xml", 8) for n in ("tumor_001", "tumor_107", "test_033", "test_117")],
        *[(f"json_test/{n}.json", 8) for n in ("test_004", "test_065", "test_110")],
    ],
)
def test_camelyon_areas_and_tile_labels_agree_with_a_rasterization(data_root, name, scale):
    path = data_root / "camelyon16" / name
    annotation = read_annotation(path, slide_size=CAMELYON)
    raster, origin = rasterize_file(path, scale)
    assert annotation.tumor.area == pytest.approx(raster.sum() * scale**2, rel=0.003)
    cells = 256 // scale
    rows, columns = (length // cells for length in raster.shape)
    blocks = raster.reshape(rows, cells, columns, cells).mean((1, 3)).ravel()
    xy = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2) * 256
    share = tumor_fraction(annotation, xy + origin, 256.0)
    assert share.sum(dtype=float) * 256**2 == pytest.approx(annotation.tumor.area, rel=1e-6)
    slack = 0.02 + 0.0015 * scale  # how far the raster itself may be off in a tile
    np.testing.assert_allclose(share, blocks, atol=slack)
    sure = np.abs(share - 0.5) > slack
    np.testing.assert_array_equal((share >= 0.5)[sure], (blocks >= 0.5)[sure])


def rasterize_file(path: Path, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Read outlines with regular expressions or json, rasterize with scikit-image."""
    text = path.read_text()
    if path.suffix == ".xml":
        found = re.findall(
            r'PartOfGroup="(\w+)" Color[^>]*>\s*<Coord(.*?)</Coordinates>', text, re.S
        )
        rings = [(g != "_2", re.findall(r'X="([\d.]+)" Y="([\d.]+)"', body)) for g, body in found]
    else:
        content = json.loads(text)
        rings = [(True, item["vertices"]) for item in content["positive"]]
        rings += [(False, item["vertices"]) for item in content["negative"]]
    rings = [(tumor, np.array(ring, float)) for tumor, ring in rings]
    every = np.concatenate([ring for _, ring in rings])
    low = np.floor(every.min(0) / 256).astype(int) * 256
    width, height = np.ceil((every.max(0) - low) / 256).astype(int) * 256 // scale
    raster = np.zeros((height, width), bool)
    for tumor, ring in sorted(rings, key=lambda item: not item[0]):  # exclusions last
        x, y = ((ring - low) / scale - 0.5).T
        raster[rasterize(y, x, raster.shape)] = tumor
    return raster, low


@pytest.mark.data
@pytest.mark.parametrize("number", ["001", "073", "081", "107"])
def test_xml_and_json_of_one_slide_agree(data_root, number):
    folder = data_root / "camelyon16"
    xml, ncrf = (
        read_annotation(path, slide_size=CAMELYON).tumor
        for path in (folder / f"xml/tumor_{number}.xml", folder / f"json_ncrf/Tumor_{number}.json")
    )
    assert xml.symmetric_difference(ncrf).area == 0


@pytest.mark.data
def test_a_normal_camelyon_slide_has_no_tumor(data_root):
    path = data_root / "camelyon16/json_ncrf/Normal_001.json"
    assert read_annotation(path, slide_size=CAMELYON).tumor.is_empty


@pytest.mark.data
def test_all_55_published_tumor_tiles_have_their_centre_inside(data_root):
    with gzip.open(data_root / "splits_dpa/camelyon16/anomaly_train.txt.gz", "rt") as file:
        names = file.read()
    count = 0
    for number in ("001", "064", "073"):
        path = data_root / f"camelyon16/json_ncrf/Tumor_{number}.json"
        annotation = read_annotation(path, slide_size=CAMELYON)
        found = re.findall(rf"tumor_{number}_tumor_x_(\d+)_y_(\d+)_w_768_h_768", names)
        corners = np.array(found, int)[:, ::-1]  # the field called x is the row
        centers = shapely.points(corners + 384)
        assert shapely.contains(annotation.tumor, centers).all()
        share = tumor_fraction(annotation, corners, 768.0)
        np.testing.assert_allclose(share, paint(path, corners, 768), atol=2e-3)
        assert share.min() > 0.93
        count += len(corners)
    assert count == 55


def paint(path: Path, corners: np.ndarray, edge: int) -> list[float]:
    """The share of tumor in tiles at full resolution, painted with Pillow."""
    content = json.loads(path.read_text())
    shares = []
    for corner in corners:
        tile = Image.new("1", (edge, edge))
        for key, value in (("positive", 1), ("negative", 0)):
            for item in content[key]:
                points = (np.array(item["vertices"]) - corner).ravel().tolist()
                ImageDraw.Draw(tile).polygon(points, fill=value)
        shares.append(float(np.asarray(tile).mean()))
    return shares


@pytest.mark.data
@pytest.mark.parametrize("name", ["composed_tumor_scannerA", "composed_tumor_scannerB"])
def test_labels_of_the_composed_slides(data_root, name):
    cells = pd.read_csv(data_root / "wsi" / "composed_cells.csv")
    cells = cells[cells.slide == f"{name}.tif"]
    annotation = read_annotation(data_root / f"wsi/annotations/{name}.xml", slide_size=(2048, 2048))
    share = tumor_fraction(annotation, cells[["x", "y"]].to_numpy(), 256.0)
    np.testing.assert_array_equal(share, cells.label)


# --- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.xml", "<ASAP_Annotations><Annotations>", "not a well-formed XML.*line 1"),
        ("a.xml", "", "not a well-formed XML"),
        ("a.xml", "<Annotations/>", "root element is 'Annotations'"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "not a well-formed XML"),
        ("a.xml", "<ASAP_Annotations/>", "no polygon found"),
        ("a.json", "{", "not a JSON file"),
        ("a.json", "[" * 100_000, "not a JSON file"),
        ("a.json", "7", "neither GeoJSON"),
        ("a.json", '{"features": [1]}', "neither GeoJSON"),
        ("a.geojson", '{"type": "FeatureCollection", "features": []}', "no polygon found"),
        ("a.json", '{"positive": 3}', "'positive' is no list"),
        ("a.json", '{"positive": [{"vertices": 4}]}', "positive 1: found int"),
        ("a.json", '{"positive": [{"vertices": [[1, 2], [3]]}]}', r"positive 1: point \[3\]"),
        ("a.json", '{"positive": [{"vertices": [[1, NaN]]}]}', "no position X, Y"),
        ("a.json", '{"positive": [{"vertices": [[1, 1e300]]}]}', "no position X, Y"),
        ("a.json", '{"positive": [{"vertices": ["12", "13", "24"]}]}', "no position X, Y"),
        ("a.json", '{"positive": [{"vertices": [[1, 2], [3, 4]]}]}', "no polygon found"),
        ("a.geojson", '{"geometry": {"type": "Polygon", "coordinates": 3}}', "no list of rings"),
        ("a.geojson", '{"geometry": {"type": "Polygon", "coordinates": [3]}}', "found int"),
        ("a.geojson", '{"geometry": 3}', "must be JSON objects"),
        ("a.png", "not a picture", "not a readable mask"),
        ("a.tif", "not a picture", "not a readable mask"),
        ("a.txt", "1 2 3", "'.txt' is no known annotation"),
    ],
)
def test_malformed_files_say_what_and_where(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(CaseError, match=rf"{name}: (?s:.*){words}"):
        read_annotation(path, slide_size=SLIDE)


@pytest.mark.parametrize("suffix", [".xml", ".json", ".png", ".tif"])
def test_a_missing_file(tmp_path, suffix):
    with pytest.raises(CaseError, match=f"a{suffix}: "):
        read_annotation(tmp_path / f"a{suffix}", slide_size=SLIDE)


def test_an_outline_without_a_coordinate_names_the_annotation(tmp_path):
    path = write_asap(tmp_path / "a.xml", ("Tumor", SQUARE), ("Tumor", SQUARE))
    path.write_text(path.read_text()[::-1].replace('"001"=Y ', "", 1)[::-1])
    with pytest.raises(
        CaseError, match=r"annotation 2 \('a1'\): point \['300', None\]|'100', None"
    ):
        read_annotation(path, slide_size=SLIDE)


def test_groups_that_are_not_known_are_listed(tmp_path):
    path = write_asap(tmp_path / "a.xml", ("Stroma", SQUARE), ("Fat", SQUARE))
    with pytest.raises(CaseError, match=r"unknown groups only \(Fat, Stroma\).*tumor"):
        read_annotation(path, slide_size=SLIDE)
    path = write_asap(tmp_path / "b.xml", ("_2", SQUARE))
    with pytest.raises(CaseError, match="exclusions without a tumor polygon"):
        read_annotation(path, slide_size=SLIDE)


@pytest.mark.data
def test_an_annotation_of_another_slide_is_refused(data_root):
    path = data_root / "camelyon16/xml/tumor_073.xml"
    with pytest.raises(
        CaseError, match=r"y=.*expected within the slide's 2048x2048 .*another slide"
    ):
        read_annotation(path, slide_size=(2048, 2048))


def test_masks_that_are_ambiguous_or_of_another_slide(tmp_path):
    rng = np.random.default_rng(0)
    for name, pixels, words in (
        ("gray", np.array([[0, 1], [2, 1]] * 40, np.uint8).repeat(50, 1), "values 0, 1, 2"),
        ("ones", np.array([[1, 2]] * 80, np.uint8).repeat(50, 1), "values 1, 2"),
        ("color", rng.integers(0, 2, (80, 100, 3), dtype=np.uint8), "colored picture"),
        ("square", np.ones((90, 90), np.uint8), "90x90, the slide 1000x800.*another slide"),
    ):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        with pytest.raises(CaseError, match=words):
            area(tmp_path / f"{name}.png")


def test_a_mask_that_claims_to_be_huge_is_not_decoded(tmp_path):
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, np.zeros((16, 16), np.uint8), tile=(16, 16))
    content = path.read_bytes()
    for tag in (256, 257):  # ImageWidth, ImageLength: count 1, value 16
        place = content.index(tag.to_bytes(2, "little"), 8) + 8
        content = content[:place] + (100_000).to_bytes(4, "little") + content[place + 4 :]
        kind = place - 6
        content = content[:kind] + (4).to_bytes(2, "little") + content[kind + 2 :]
    path.write_bytes(content)
    with pytest.raises(CaseError, match=r"100000x100000, expected at most|not a readable mask"):
        read_annotation(path, slide_size=(100_000, 100_000))


def test_annotations_are_found_by_the_slides_name(tmp_path):
    slide = tmp_path / "Tumor_001.tif"
    assert find_annotation(annotations_in(tmp_path), slide) is None
    slide.touch()
    assert find_annotation(annotations_in(tmp_path), slide) is None  # not the slide itself
    (tmp_path / "tumor_001_mask.tif").touch()
    assert find_annotation(annotations_in(tmp_path), slide).name == "tumor_001_mask.tif"
    (tmp_path / "tumor_001.xml").touch()
    assert find_annotation(annotations_in(tmp_path), slide).name == "tumor_001.xml"
