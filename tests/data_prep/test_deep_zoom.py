"""Deep zoom: tiles cover each level once, equal OpenSlide's, and survive damage."""

from itertools import pairwise

import numpy as np
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from data_prep.areas import shrink_by
from data_prep.deep_zoom import DeepZoom, ZoomGrid
from data_prep.slide_writing import write_pyramid
from data_prep.slides import open_slide
from esad_med.base.errors import SlideError


@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.integers(40, 600), st.integers(0, 2)
)
def test_boxes_cover_each_level_and_overlap_by_what_is_said(size, tile_px, overlap):
    grid = ZoomGrid(size, tile_px, overlap)
    assert grid.sizes[-1] == size
    assert grid.sizes[0] == (1, 1)
    assert max(grid.sizes[grid.first_level]) <= tile_px or grid.first_level == 0
    level = len(grid.sizes) - 1
    across, down = grid.counts(level)
    rows = [grid.box(level, 0, row)[1::2] for row in range(down)]
    assert rows[0][0] == 0
    assert rows[-1][1] == size[1]
    for (_, end), (start, _) in pairwise(rows):
        assert 0 <= end - start <= 2 * overlap
    with pytest.raises(ValueError, match="tile"):
        grid.box(level, across, 0)
    with pytest.raises(ValueError, match="level"):
        grid.box(level + 1, 0, 0)


def test_the_layout_is_that_of_openslide(composed):
    path = composed / "tumor_1.tif"
    theirs = DeepZoomGenerator(openslide.OpenSlide(path), 254, 1)
    grid = ZoomGrid(theirs.level_dimensions[-1], 254, 1)
    assert grid.sizes == theirs.level_dimensions
    assert [grid.counts(level) for level in range(len(grid.sizes))] == list(theirs.level_tiles)
    assert len(list(grid.addresses())) == sum(
        across * down for across, down in theirs.level_tiles[grid.first_level :]
    )


def test_tiles_are_openslides_where_levels_are_stored(composed):
    with open_slide(composed / "tumor_1.tif") as slide:
        zoom = DeepZoom(slide, ZoomGrid(slide.size_level0, 254, 1))
        theirs = DeepZoomGenerator(openslide.OpenSlide(slide.path), 254, 1)
        last = len(zoom.grid.sizes) - 1
        for address in ((last, 0, 0), (last, 3, 8), (last - 1, 2, 1), (last - 2, 1, 2)):
            tile = np.asarray(theirs.get_tile(address[0], address[1:]))
            np.testing.assert_array_equal(zoom.tile(*address), tile)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A slide of one level, and its pixels."""
    path = tmp_path_factory.mktemp("flat") / "flat.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(pixels).resize((960, 720), Image.Resampling.BICUBIC))
    write_pyramid(path, picture, mpp=0.5, levels=1, description="composed for a test")
    with open_slide(path) as slide:
        yield slide, slide.read_region((0, 0), 0, slide.size_level0)


def test_what_is_not_stored_is_the_mean_of_areas(flat):
    slide, pixels = flat
    zoom = DeepZoom(slide, ZoomGrid(slide.size_level0, 510, 1))
    last = len(zoom.grid.sizes) - 1
    np.testing.assert_array_equal(zoom.tile(last - 1, 0, 0), shrink_by(pixels, 2))
    np.testing.assert_array_equal(zoom.tile(last - 3, 0, 0), shrink_by(pixels, 8))


def test_a_large_area_is_cut_from_an_overview(flat, monkeypatch):
    slide, pixels = flat
    monkeypatch.setattr("data_prep.deep_zoom._READ_PIXELS", 1 << 16)
    zoom = DeepZoom(slide, ZoomGrid(slide.size_level0, 100, 1))
    level = len(zoom.grid.sizes) - 4
    assert zoom.grid.sizes[level] == (120, 90)
    parts = [zoom.tile(level, 0, 0)[:, :100], zoom.tile(level, 1, 0)[:, 1:]]
    whole = shrink_by(pixels, 8).astype(int)
    np.testing.assert_allclose(np.hstack(parts).astype(int), whole, atol=1)


def test_a_damaged_tile_is_gray_and_the_next_one_is_read(flat, monkeypatch, caplog):
    slide, pixels = flat
    zoom = DeepZoom(slide, ZoomGrid(slide.size_level0, 510, 1))
    last, read = len(zoom.grid.sizes) - 1, slide.read_region

    def damaged(*_, **__):
        monkeypatch.setattr(slide, "read_region", read)
        raise SlideError("flat.tif: damaged at x=0, y=0")

    monkeypatch.setattr(slide, "read_region", damaged)
    assert (zoom.tile(last, 0, 0) == 160).all()
    assert "damaged at x=0" in caplog.text
    np.testing.assert_array_equal(zoom.tile(last, 0, 0), pixels[:511, :511])
    with pytest.raises(ValueError, match="a grid of"):
        DeepZoom(slide, ZoomGrid((5, 5)))
