from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_prep.slides import open_slide
from data_prep.tiles import TileSpec, plan_tiles, read_tiles
from data_prep.tissue import TissueMask, TissueSpec, find_tissue
from esad_med.base.errors import SlideError


@dataclass
class Geometry:
    """What `plan_tiles` may know of a slide."""

    size_level0: tuple[int, int]
    mpp: float = 0.25
    level_downsamples: tuple[float, ...] = (1.0, 4.0)
    path: Path = Path("made-up.svs")


def tissue_of(mask: np.ndarray, downsample: float) -> TissueMask:
    return TissueMask(mask, np.zeros((*mask.shape, 3), np.uint8), downsample)


def full(geometry: Geometry, downsample: float = 16.0) -> TissueMask:
    width, height = (int(-(-v // downsample)) for v in geometry.size_level0)
    return tissue_of(np.ones((height, width), bool), downsample)


geometries = st.builds(
    Geometry,
    size_level0=st.tuples(st.integers(600, 5000), st.integers(600, 5000)),
    mpp=st.floats(0.2, 0.6),
    level_downsamples=st.sampled_from([(1.0,), (1.0, 4.0), (1.0, 2.0, 3.9997), (1.0, 16.0)]),
)
specs = st.builds(
    TileSpec,
    mpp=st.floats(0.6, 2.0),
    size_px=st.integers(16, 96),
    stride_px=st.integers(16, 128),
    min_tissue=st.just(0.0),
)


@settings(max_examples=150, deadline=None)
@given(geometries, specs)
def test_tiles_stay_inside_and_keep_their_distance(slide, spec):
    assume(min(slide.size_level0) * slide.mpp > spec.size_px * spec.mpp * 1.1)
    grid = plan_tiles(slide, full(slide), spec)
    assert (grid.xy_level0 >= 0).all()
    assert (grid.xy_level0 + grid.edge_level0 <= np.array(slide.size_level0) + 1e-6).all()
    assert grid.mpp == pytest.approx(grid.edge_level0 * slide.mpp / grid.tile_px)
    assert grid.mpp == pytest.approx(spec.mpp, rel=max(spec.level_tolerance, 0.51 / grid.read_px))
    order = np.lexsort((grid.xy_level0[:, 0], grid.xy_level0[:, 1]))
    assert (order == np.arange(len(grid))).all()
    steps = grid.xy_level0 / grid.stride_level0
    assert np.abs(steps - np.rint(steps)).max() <= 0.5 / grid.stride_level0 + 1e-9
    left_over = np.array(slide.size_level0) - grid.xy_level0.max(0) - grid.edge_level0
    assert (left_over < grid.stride_level0 + 1).all()  # no room for another column or row


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1.0, 4.0), (1.0,), (1.0, 2.0)]))
def test_tiles_cover_the_tissue_once(seed, downsamples):
    rng = np.random.default_rng(seed)
    slide = Geometry((2048, 1536), level_downsamples=downsamples)
    mask = rng.random((24, 32)) < 0.1  # 64 level-0 pixels each: a tile of 256 covers 4 x 4
    mask[5, 5] = True
    grid = plan_tiles(slide, tissue_of(mask, 64.0), TileSpec(min_tissue=1e-4))
    covered = np.zeros(mask.shape, int)
    for (x, y), share in zip(grid.xy_level0 // 64, grid.tissue_fraction, strict=True):
        covered[y : y + 4, x : x + 4] += 1
        assert share == pytest.approx(mask[y : y + 4, x : x + 4].mean())
    assert (covered[mask] == 1).all()
    assert covered.max() == 1


def test_the_grid_does_not_move_with_the_tissue():
    slide = Geometry((4096, 4096))
    everything = {tuple(xy) for xy in plan_tiles(slide, full(slide), TileSpec()).xy_level0}
    mask = np.zeros((256, 256), bool)
    mask[37:190, 51:201] = True
    part = plan_tiles(slide, tissue_of(mask, 16.0), TileSpec())
    assert {tuple(xy) for xy in part.xy_level0} < everything


@pytest.mark.parametrize(
    ("mpp", "wanted", "level", "read_px"),
    [
        (0.25, 1.0, 1, 64),  # exact
        (0.243, 1.0, 1, 64),  # 2.8 % off: as it is
        (0.23, 1.0, 1, 70),  # level 1 has 0.92: 69.6 of its pixels make a tile
        (0.25, 0.5, 0, 128),
        (0.27, 1.0, 0, 237),  # level 1 has 1.08: too coarse
    ],
)
def test_level_and_resampling(mpp, wanted, level, read_px):
    slide = Geometry((8192, 8192), mpp=mpp)
    grid = plan_tiles(slide, full(slide), TileSpec(mpp=wanted))
    assert (grid.level, grid.read_px, grid.tile_px) == (level, read_px, 64)
    assert grid.edge_level0 == read_px * slide.level_downsamples[level]


def test_stride_and_threshold():
    slide = Geometry((2048, 2048))
    mask = np.zeros((128, 128), bool)
    mask[:, :64] = True  # the left half of the slide
    tissue = tissue_of(mask, 16.0)
    assert len(plan_tiles(slide, tissue, TileSpec())) == 4 * 8
    half = plan_tiles(slide, tissue, TileSpec(stride_px=32, min_tissue=0.5))
    assert len(half) == 8 * 15  # at x = 896, half of the tile is tissue
    assert half.tissue_fraction.min() == pytest.approx(0.5)
    assert len(plan_tiles(slide, tissue, TileSpec(stride_px=32, min_tissue=0.51))) == 7 * 15


@pytest.mark.parametrize(
    ("slide", "mask", "spec", "words"),
    [
        (Geometry((4096, 4096)), np.zeros((64, 64), bool), {}, "no tissue found"),
        (Geometry((200, 4096)), np.ones((64, 4), bool), {}, "smaller than one tile"),
        (Geometry((4096, 4096), mpp=2.0), np.ones((64, 64), bool), {}, "finest level has 2 µm"),
        (Geometry((4096, 4096)), np.eye(64, dtype=bool), {}, "no tile has 50% tissue"),
        (Geometry((99_000, 99_000)), np.ones((9, 9), bool), {"stride_px": 1}, "stride_px"),
    ],
)
def test_no_tiles_is_an_error_that_says_why(slide, mask, spec, words):
    with pytest.raises(SlideError, match=f"made-up.svs: .*{words}"):
        plan_tiles(slide, tissue_of(mask, 64.0), TileSpec(**spec))


@pytest.mark.data
@pytest.mark.parametrize("name", ["normal_scannerB", "tumor_scannerA", "tumor_scannerB"])
def test_tiles_of_composed_slides_are_their_cells_and_openslides_pixels(data_root, name):
    path = data_root / "wsi" / f"composed_{name}.tif"
    cells = pd.read_csv(data_root / "wsi" / "composed_cells.csv")
    cells = cells[cells.slide == path.name].sort_values(["y", "x"])
    with open_slide(path) as slide, openslide.OpenSlide(path) as theirs:
        grid = plan_tiles(slide, find_tissue(slide, TissueSpec()), TileSpec())
        np.testing.assert_array_equal(grid.xy_level0, cells[["x", "y"]])
        assert (grid.level, grid.edge_level0, grid.mpp) == (2, 256, pytest.approx(0.972))
        tiles = np.concatenate([b.tiles for b in read_tiles(slide, grid, batch=7)])
        for (x, y), tile in zip(grid.xy_level0.tolist(), tiles, strict=True):
            expected = np.asarray(theirs.read_region((x, y), 2, (64, 64)).convert("RGB"))
            np.testing.assert_array_equal(tile, expected)


@pytest.mark.data
def test_resampled_tiles_are_means_of_openslides_pixels(data_root):
    path = data_root / "wsi" / "cmu-1-small-region.svs"
    with open_slide(path) as slide, openslide.OpenSlide(path) as theirs:
        grid = plan_tiles(slide, find_tissue(slide, TissueSpec()), TileSpec())
        assert (grid.level, grid.read_px, grid.mpp) == (0, 128, pytest.approx(0.998))
        grid = grid.subset(np.arange(0, len(grid), 10))
        tiles = np.concatenate([b.tiles for b in read_tiles(slide, grid)])
        for (x, y), tile in zip(grid.xy_level0.tolist(), tiles, strict=True):
            pixels = np.asarray(theirs.read_region((x, y), 0, (128, 128)).convert("RGB"))
            expected = pixels.reshape(64, 2, 64, 2, 3).mean((1, 3))
            np.testing.assert_allclose(tile, expected, atol=0.5)


def test_a_damaged_tile_is_reported_and_left_out(make_slide):
    rgb = np.random.default_rng(0).integers(90, 200, (256, 256, 3), dtype=np.uint8)
    with open_slide(make_slide(rgb, levels=(), mpp=1.0, damage=(5, 6))) as slide:
        grid = plan_tiles(slide, full(slide, 1.0), TileSpec())
        failures: dict[int, SlideError] = {}
        batches = list(read_tiles(slide, grid, batch=4, on_error=failures.__setitem__))
        with pytest.raises(SlideError, match="damaged at x=64, y=64"):
            list(read_tiles(slide, grid))
    indices = np.concatenate([batch.indices for batch in batches])
    assert list(failures) == [5, 6]
    assert indices.tolist() == [i for i in range(16) if i not in failures]
    for batch in batches:
        for index, tile in zip(batch.indices, batch.tiles, strict=True):
            x, y = grid.xy_level0[index]
            np.testing.assert_array_equal(tile, rgb[y : y + 64, x : x + 64])


def test_a_batch_of_damaged_tiles_only_is_not_given_out(make_slide):
    rgb = np.full((64, 256, 3), 99, np.uint8)
    with open_slide(make_slide(rgb, levels=(), mpp=1.0, damage=(0, 1))) as slide:
        grid = plan_tiles(slide, full(slide, 1.0), TileSpec())
        batches = list(read_tiles(slide, grid, batch=2, on_error=lambda index, error: None))
    assert [batch.indices.tolist() for batch in batches] == [[2, 3]]


def test_tiles_do_not_depend_on_the_batch_size(make_slide):
    with open_slide(make_slide(mpp=0.7)) as slide:
        grid = plan_tiles(slide, find_tissue(slide, TissueSpec()), TileSpec(size_px=32))
        assert grid.read_px != grid.tile_px
        one, many = (
            np.concatenate([b.tiles for b in read_tiles(slide, grid, batch=size)])
            for size in (1, 100)
        )
    np.testing.assert_array_equal(one, many)


def test_a_grid_belongs_to_its_slide(make_slide):
    with open_slide(make_slide()) as slide:
        other = Geometry((4096, 4096))
        with pytest.raises(ValueError, match="another slide"):
            next(read_tiles(slide, plan_tiles(other, full(other), TileSpec())))


def test_subset_by_index_and_by_mask():
    slide = Geometry((2048, 2048))
    grid = plan_tiles(slide, full(slide), TileSpec())
    chosen = grid.subset(np.array([3, 1]))
    np.testing.assert_array_equal(chosen.xy_level0, grid.xy_level0[[3, 1]])
    assert len(grid.subset(np.arange(len(grid)) < 5)) == 5
    assert chosen.edge_level0 == grid.edge_level0
