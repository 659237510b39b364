"""Drawn chests pass for chests, and a planted opacity is where and as bright as asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.synthetic_xray import compose_xray, plant_opacity
from data_prep.xray import read_xray
from data_prep.xray_chain import XraySpec, xray_chain
from data_prep.xray_checks import chest_likeness
from esad_med.base.errors import ImageError

seeds = st.integers(0, 2**32 - 1)
radii = st.floats(0.08, 0.14)
EMPTY = np.zeros((200, 160), np.float32)


def draw(seed: int, size: int = 96) -> np.ndarray:
    return compose_xray(np.random.default_rng(seed), size)


def plant(pixels: np.ndarray, seed: int, strength: float, radius: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return plant_opacity(pixels, rng, strength=strength, radius_share=radius)


@given(seeds, st.integers(32, 160))
def test_a_drawn_chest_is_lit_like_a_chest_and_its_negative_is_refused(seed, size) -> None:
    picture = draw(seed, size)
    assert picture.shape == (size, size)
    assert picture.dtype == np.float32
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert chest_likeness(picture) > 0.2
    XraySpec().check_polarity(picture)
    with pytest.raises(ImageError, match="probably inverted"):
        XraySpec().check_polarity(1 - picture)


@given(seeds)
def test_lungs_are_darker_than_what_lies_between_below_and_beside_them(seed) -> None:
    picture = draw(seed, 128)
    mean = {
        "lungs": np.mean([picture[45:70, 32:45], picture[45:70, 83:96]]),
        "spine": picture[45:70, 60:68].mean(),
        "belly": picture[105:120, 40:88].mean(),
    }
    assert mean["lungs"] < min(mean["spine"], mean["belly"]) - 0.2
    assert picture[40:100, :3].mean() < mean["lungs"]  # outside
    assert picture[72:82, 70:78].mean() > picture[72:82, 50:58].mean()  # the heart's side


def test_each_draw_is_another_chest_and_a_seed_decides_it() -> None:
    np.testing.assert_array_equal(draw(3), draw(3))
    apart = np.abs(draw(3) - draw(4))
    assert apart.mean() > 3 * 0.015  # more than the noise of both


def test_a_drawn_chest_passes_the_way_of_a_real_one(tmp_path) -> None:
    picture = draw(0, 256)
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(tmp_path / "chest.png")
    read = read_xray(tmp_path / "chest.png").pixels
    assert np.abs(read - picture).max() <= 0.5 / 255 + 1e-6
    sample = xray_chain(XraySpec())(read)
    assert sample.shape == (64, 64, 1)
    assert sample.std() > 20


@given(seeds, radii, st.floats(0.05, 0.5))
def test_an_opacity_brightens_one_half_of_the_picture_and_nothing_else(seed, radius, by) -> None:
    added = plant(EMPTY, seed, by, radius) / by
    rows, columns = np.nonzero(added > 0.35)  # a half-axis away from the middle it is 0.32
    assert columns.max() < 80 or columns.min() >= 80  # clear of the midline
    assert np.ptp(columns) < 2 * 1.25 * 1.3 * radius * 160
    area = np.pi * (radius * 160) ** 2
    assert 0.6 * area < len(rows) < 1.4 * area
    assert added[rows, columns].mean() == pytest.approx(0.85, abs=0.2)
    assert (added[:20] == 0).all()
    assert (added[-20:] == 0).all()


@given(seeds, radii)
def test_most_of_an_opacity_lies_in_the_crop_that_detectors_see(seed, radius) -> None:
    added = plant(EMPTY, seed, 1.0, radius)
    rows, columns = (round(side * 0.125) for side in added.shape)
    assert added[rows:-rows, columns:-columns].sum() > 0.8 * added.sum()


@given(seeds, radii, st.floats(0.0, 0.4))
def test_strength_changes_how_bright_an_opacity_is_and_not_where(seed, radius, by) -> None:
    one, two = plant(EMPTY, seed, 0.1, radius), plant(EMPTY, seed, by, radius)
    np.testing.assert_allclose(two, one * (by / 0.1), atol=1e-5)


def test_both_lungs_get_opacities() -> None:
    left = [(plant(EMPTY, seed, 0.3)[:, :80] > 0.1).any() for seed in range(20)]
    assert 3 < sum(left) < 17


def test_the_picture_stays_as_it_is_and_the_copy_within_its_range() -> None:
    picture = draw(1)
    before = picture.copy()
    assert plant(picture, 2, 1.0).max() == 1
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_array_equal(plant(picture, 2, 0.0), before)


def test_a_planted_opacity_survives_the_preparation() -> None:
    picture = draw(5, 512)
    chain = xray_chain(XraySpec())
    with_it, without = (chain(plant(picture, 7, by)).astype(int) for by in (0.25, 0.0))
    change = with_it - without
    assert (change > 0.15 * 255).sum() > 40  # of 4096 pixels
    assert np.abs(change[:5]).max() == 0


def test_impossible_requests_are_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        draw(0, 31)
    for strength, radius in ((-0.1, 0.1), (1.1, 0.1), (0.2, 0.0), (0.2, 0.3)):
        with pytest.raises(ValueError, match="within"):
            plant(EMPTY, 0, strength, radius)
