"""Lesions: their areas, holes and tiles, and ASAP's way to say holes, read back by our reader."""

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from scored_tiles import EDGE, MPP, SIZE, scored_tiles

from data_prep.annotations import read_annotation
from data_prep.slide_writing import write_asap
from esad_med.outputs.lesions import SlideTiles, asap_polygons, find_lesions

TILE_MM2 = (EDGE * MPP / 1000) ** 2


def of_cells(cells):
    """A slide of cells of 10 pixels, above the threshold where they are true."""
    row, column = np.indices(cells.shape).reshape(2, -1)
    score = cells.ravel().astype(np.float32)
    size = (cells.shape[1] * 10, cells.shape[0] * 10)
    return SlideTiles(
        np.stack([column, row], axis=1) * 10, 10.0, {"score": score}, 0.5, "f", size, 1.0, {}
    )


def test_a_ring_its_island_and_a_disc_are_three_lesions():
    lesions = find_lesions(scored_tiles())
    assert [lesion.tiles for lesion in lesions] == [24, 1, 13]
    assert [len(lesion.polygon.interiors) for lesion in lesions] == [1, 0, 0]
    for lesion in lesions:
        assert lesion.area_mm2 == pytest.approx(lesion.tiles * TILE_MM2)
        assert 2 < lesion.mean <= lesion.maximum < 2.6


def test_small_lesions_are_left_out():
    assert [one.tiles for one in find_lesions(scored_tiles(), smallest_mm2=1.5 * TILE_MM2)] == [
        *(24, 13)
    ]
    assert find_lesions(scored_tiles(lesions=False)) == []


def test_a_level_of_no_whole_downsample_leaves_no_slits():
    tiles = scored_tiles(edge=128.6)
    lesions = find_lesions(tiles)
    assert [lesion.tiles for lesion in lesions] == [24, 1, 13]
    assert [len(lesion.polygon.interiors) for lesion in lesions] == [1, 0, 0]


cells = st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=7, max_size=7)


@given(cells)
def test_lesions_cover_exactly_the_tiles_above(rows):
    tiles = of_cells(np.array(rows))
    lesions = find_lesions(tiles)
    assert sum(lesion.tiles for lesion in lesions) == tiles.above.sum()
    union = shapely.union_all([lesion.polygon for lesion in lesions])
    assert union.area == pytest.approx(100 * tiles.above.sum())
    centers = shapely.points(tiles.xy_level0 + 5)
    assert (shapely.covers(union, centers) == tiles.above).all()


@given(cells)
def test_asap_polygons_have_no_holes_and_the_same_area(rows):
    lesions = find_lesions(of_cells(np.array(rows)))
    union = shapely.union_all([lesion.polygon for lesion in lesions])
    said = list(asap_polygons(lesions))
    kept, cut = (
        shapely.union_all([shapely.Polygon(points) for group, points in said if group == name])
        for name in ("Tumor", "_2")
    )
    assert kept.difference(cut).symmetric_difference(union).area == pytest.approx(0, abs=1e-6)


def test_our_reader_finds_the_same_area_in_asap_xml(tmp_path):
    """The island in the ring's hole is kept: the exclusion goes around it."""
    lesions = find_lesions(scored_tiles())
    write_asap(tmp_path / "s.xml", asap_polygons(lesions))
    read = read_annotation(tmp_path / "s.xml", slide_size=SIZE)
    union = shapely.union_all([lesion.polygon for lesion in lesions])
    assert read.tumor.symmetric_difference(union).area == 0
    text = (tmp_path / "s.xml").read_text()
    assert text.count('PartOfGroup="Tumor"') == 3
    assert text.count('PartOfGroup="_2"') == 2  # the hole, cut upright through the island
