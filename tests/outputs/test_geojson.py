"""GeoJSON of a screened slide, read by other libraries than ours and laid over the tiles."""

import json
import uuid

import numpy as np
import pytest
import shapely
from scored_tiles import EDGE, FINGERPRINT, MPP, SIZE, covered, scored_tiles
from shapely.geometry import shape

from esad_med.outputs import geojson
from esad_med.outputs.geojson import write_geojson
from esad_med.outputs.lesions import find_lesions


@pytest.fixture
def written(tmp_path):
    def write(tiles, *, all_tiles=False, name="a.geojson"):
        write_geojson(tmp_path / name, tiles, find_lesions(tiles), all_tiles=all_tiles)
        return tmp_path / name

    return write


def features(path, kind):
    found = json.loads(path.read_text())["features"]
    return [item for item in found if item["properties"]["objectType"] == kind]


def test_every_feature_is_as_qupath_reads_it(written):
    content = json.loads(written(scored_tiles(), all_tiles=True).read_text())
    assert content["type"] == "FeatureCollection"
    for item in content["features"]:
        assert set(item) == {"type", "id", "geometry", "properties"}
        assert item["type"] == "Feature"
        assert str(uuid.UUID(item["id"])) == item["id"]
        properties = item["properties"]
        assert properties["objectType"] in {"annotation", "tile"}
        assert set(properties["classification"]) == {"name", "color"}
        assert all(0 <= value <= 255 for value in properties["classification"]["color"])
        assert all(type(value) in {int, float} for value in properties["measurements"].values())
        polygon = shape(item["geometry"])
        assert polygon.is_valid
        assert polygon.exterior.is_ccw  # RFC 7946, section 3.1.6
        assert not any(hole.is_ccw for hole in polygon.interiors)
    assert len({item["id"] for item in content["features"]}) == len(content["features"])


def test_the_file_names_its_slide(written):
    about = json.loads(written(scored_tiles()).read_text())["esad_med"]
    assert about["slide"] == {
        "fingerprint": FINGERPRINT,
        "width": SIZE[0],
        "height": SIZE[1],
        "mpp": MPP,
    }
    assert about["threshold"] == 1.0
    assert about["case_id"] == "c"


def test_lesions_laid_over_the_slide_are_its_tiles_above(written):
    """Read by json and shapely alone; every fourth level-0 pixel is asked."""
    tiles = scored_tiles()
    lesions = features(written(tiles), "annotation")
    union = shapely.union_all([shape(item["geometry"]) for item in lesions])
    y, x = np.mgrid[2 : SIZE[1] : 4, 2 : SIZE[0] : 4]
    assert (shapely.contains_xy(union, x, y) == covered(tiles, 4)).all()
    areas = [item["properties"]["measurements"]["area mm2"] for item in lesions]
    assert sum(areas) == pytest.approx(tiles.above.sum() * (EDGE * MPP / 1000) ** 2, rel=1e-5)


@pytest.mark.parametrize("all_tiles", [False, True])
def test_tiles_carry_their_place_and_their_numbers(written, all_tiles):
    tiles = scored_tiles()
    found = features(written(tiles, all_tiles=all_tiles), "tile")
    chosen = np.arange(len(tiles.above)) if all_tiles else np.flatnonzero(tiles.above)
    assert len(found) == len(chosen)
    for item, i in zip(found, chosen, strict=True):
        left, top = tiles.xy_level0[i]
        assert shape(item["geometry"]).bounds == (left, top, left + EDGE, top + EDGE)
        for name, values in tiles.measurements.items():
            measured = item["properties"]["measurements"][name]
            assert measured == pytest.approx(values[i], rel=1e-5)
        above = item["properties"]["classification"]["name"] == "Anomaly"
        assert above == tiles.above[i]


def test_equal_scores_give_equal_bytes(written):
    first = written(scored_tiles(), name="a.geojson").read_bytes()
    assert written(scored_tiles(), name="b.geojson").read_bytes() == first
    other = json.loads(written(scored_tiles(fingerprint="cd" * 32)).read_text())
    known = {item["id"] for item in json.loads(first)["features"]}
    assert not known & {item["id"] for item in other["features"]}


def test_chunks_do_not_show(written, monkeypatch):
    whole = written(scored_tiles(), all_tiles=True).read_bytes()
    monkeypatch.setattr(geojson, "_CHUNK", 7)
    assert written(scored_tiles(), all_tiles=True).read_bytes() == whole


def test_a_slide_without_anything_above_is_a_valid_empty_collection(written):
    content = json.loads(written(scored_tiles(lesions=False)).read_text())
    assert content["features"] == []
