"""Heat maps, read back with OpenSlide and by their laws."""

import json

import numpy as np
import openslide
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from esad_med.base.errors import ConfigError
from esad_med.outputs.heatmap import (
    UNTILED,
    _halve,
    colorize,
    normal_limits,
    quantize,
    rasterize_tiles,
    write_heatmap,
)

WHITE = (255, 255, 255)


def read_rgb(slide, level=0):
    return np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))[..., :3]


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(300, 5000),
    height=st.integers(300, 5000),
    edge=st.floats(40, 300),
    mpp=st.floats(0.1, 2.0),
)
def test_covers_the_slide_to_a_pixel_and_aligns_by_mpp(tmp_path_factory, width, height, edge, mpp):
    path = tmp_path_factory.mktemp("heatmap") / "h.tif"
    write_heatmap(
        path, [0.5], xy_level0=[(0, 0)], edge_level0=edge, slide_size=(width, height), slide_mpp=mpp
    )
    with openslide.OpenSlide(path) as slide:
        found_mpp = float(slide.properties["openslide.mpp-x"])
        assert found_mpp == pytest.approx(float(slide.properties["openslide.mpp-y"]))
        assert found_mpp == pytest.approx(mpp * edge / 4, rel=1e-4)
        for size_px, level0 in zip(slide.dimensions, (width, height), strict=True):
            extent = level0 * mpp
            assert -1e-3 * extent <= size_px * found_mpp - extent < found_mpp * 1.001


def test_color_at_each_tile_center_and_white_elsewhere(tmp_path):
    random = np.random.default_rng(0)
    cells = random.permutation(30 * 20)[:200]
    corners = np.stack([cells % 30, cells // 30], axis=1) * 256 + [100, 37]
    values = random.random(200)
    path = tmp_path / "h.tif"
    write_heatmap(
        path, values, xy_level0=corners, edge_level0=256.0, slide_size=(8000, 5500), slide_mpp=0.25
    )
    with openslide.OpenSlide(path) as slide:
        picture = read_rgb(slide)
    wanted = colorize(quantize(values))
    centers = ((corners + 128) / 64).astype(int)
    assert (picture[centers[:, 1], centers[:, 0]] == wanted).all()
    white = (picture == WHITE).all(axis=2)
    assert (~white).sum() == 200 * 16  # a tile is four by four pixels
    colors = {tuple(color) for color in wanted.tolist()}
    assert {tuple(color) for color in picture[~white].tolist()} <= colors


def test_pyramid_is_flat_and_its_levels_agree(tmp_path):
    path = tmp_path / "h.tif"
    xy = [(x, y) for y in range(0, 20480, 64) for x in range(0, 10240, 64)]
    write_heatmap(
        path,
        np.full(len(xy), 0.8),
        xy_level0=xy,
        edge_level0=64.0,
        slide_size=(20480, 20480),
        slide_mpp=1.0,
    )
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((1280, 1280), (640, 640), (320, 320), (160, 160))
        wanted = colorize(quantize([0.8]))[0]
        for level in range(slide.level_count):
            picture = read_rgb(slide, level)
            half = picture.shape[1] // 2
            assert (picture[:, :half] == wanted).all()
            assert (picture[:, half:] == WHITE).all()
    with tifffile.TiffFile(path) as file:
        assert [page.subfiletype for page in file.pages] == [0, 1, 1, 1]
        assert all(page.is_tiled for page in file.pages)
        per_cm = [page.tags["XResolution"].value for page in file.pages]
        mpp = [1e4 * denominator / numerator for numerator, denominator in per_cm]
        assert mpp == pytest.approx([16, 32, 64, 128], rel=1e-4)
        facts = json.loads(file.pages[0].description)
        assert facts["colormap"].startswith("viridis from 0 to 1")


def test_same_input_same_bytes(tmp_path):
    for name in ("a.tif", "b.tif"):
        write_heatmap(
            tmp_path / name,
            [0.1, 0.9],
            xy_level0=[(0, 0), (64, 0)],
            edge_level0=64.0,
            slide_size=(999, 777),
            slide_mpp=1.0,
        )
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_overlapping_tiles_take_the_mean():
    raster = rasterize_tiles(
        [0.0, 1.0], xy_level0=[(0, 0), (4, 0)], edge_level0=8.0, downsample=1.0, size_px=(14, 8)
    )
    assert raster[0].tolist() == [0] * 4 + [127] * 4 + [254] * 4 + [UNTILED] * 2


@settings(max_examples=60, deadline=None)
@given(
    downsample=st.floats(0.5, 40),
    shift=st.tuples(st.integers(0, 500), st.integers(0, 500)),
    edge=st.floats(50, 300),
)
def test_a_pixel_is_painted_exactly_where_its_center_lies_in_the_tile(downsample, shift, edge):
    size_px = (60, 50)
    raster = rasterize_tiles(
        [1.0], xy_level0=[shift], edge_level0=edge, downsample=downsample, size_px=size_px
    )
    x = (np.arange(size_px[0]) + 0.5) * downsample
    y = (np.arange(size_px[1]) + 0.5) * downsample
    near = 1e-4 * downsample  # a center on the very edge may fall to either side
    for slack, relation in ((near, np.less_equal), (-near, np.greater_equal)):
        inside_x = (x >= shift[0] - slack) & (x < shift[0] + edge + slack)
        inside_y = (y >= shift[1] - slack) & (y < shift[1] + edge + slack)
        assert relation(raster != UNTILED, inside_y[:, None] & inside_x).all()


def test_halving_ignores_what_is_not_tiled():
    raster = np.array([[10, UNTILED, 40], [20, 30, UNTILED], [UNTILED, UNTILED, 7]], dtype=np.uint8)
    assert _halve(raster).tolist() == [[20, 40], [UNTILED, 7]]


def test_colors_rise_in_brightness_and_never_look_untiled():
    colors = colorize(np.arange(255, dtype=np.uint8)).astype(float)
    brightness = colors @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(brightness) > -1.5).all()  # 8-bit steps
    assert brightness[-1] > brightness[0] + 150
    assert np.abs(colors - 255).max(axis=1).min() > 100


def test_limits_hang_on_the_normals():
    assert normal_limits({0.5: 1.0, 0.95: 2.0, 0.99: 3.0}) == (1.0, 5.0)
    low, high = normal_limits({0.5: 1.0, 0.99: 1.0})
    assert low < high


def test_quantize_clips_and_refuses_what_is_not_a_number():
    assert quantize([-5, 0, 50, 100, 900], limits=(0, 100)).tolist() == [0, 0, 127, 254, 254]
    with pytest.raises(ValueError, match="finite"):
        quantize([np.nan])
    with pytest.raises(ValueError, match="2 values for 1 tiles"):
        rasterize_tiles([1, 2], xy_level0=[(0, 0)], edge_level0=4, downsample=1, size_px=(9, 9))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        write_heatmap(
            tmp_path / "missing" / "h.tif",
            [1.0],
            xy_level0=[(0, 0)],
            edge_level0=64.0,
            slide_size=(500, 500),
            slide_mpp=1.0,
        )


@pytest.mark.data
def test_lies_over_the_tissue_of_a_composed_slide(data_root, tmp_path):
    """Colored where the picture is tissue, white where it is glass, both brought to one mpp."""
    cells = pd.read_csv(data_root / "wsi" / "composed_cells.csv")
    cells = cells[cells["slide"] == "composed_tumor_scannerA.tif"]
    path = tmp_path / "h.tif"
    with openslide.OpenSlide(data_root / "wsi" / "composed_tumor_scannerA.tif") as slide:
        mpp = float(slide.properties["openslide.mpp-x"])
        write_heatmap(
            path,
            cells["label"],
            xy_level0=cells[["x", "y"]],
            edge_level0=256.0,
            slide_size=slide.dimensions,
            slide_mpp=mpp,
        )
        with openslide.OpenSlide(path) as heatmap:
            ratio = float(heatmap.properties["openslide.mpp-x"]) / mpp
            colored = (read_rgb(heatmap) != WHITE).any(axis=2)
        size = (round(slide.dimensions[0] / ratio), round(slide.dimensions[1] / ratio))
        picture = np.asarray(slide.get_thumbnail(size).convert("HSV"))
    assert picture.shape[:2] == colored.shape
    tissue = picture[..., 1] > 25  # saturated, so not glass
    overlap = (tissue & colored).sum() / (tissue | colored).sum()
    assert overlap > 0.95
