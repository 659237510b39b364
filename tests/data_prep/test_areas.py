"""Means over areas are exact, compiled or not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.areas import area_shares, shrink_area, shrink_by


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 12), st.integers(1, 5))
def test_area_shares_are_exact(seed, edge, finer):
    rng = np.random.default_rng(seed)
    mask = rng.random((7, 9)) < 0.5
    xs, ys = rng.integers(-3, 40, 4), rng.integers(-3, 40, 3)
    found = area_shares(mask, xs / finer, ys / finer, edge / finer)
    fine = np.pad(np.kron(mask, np.ones((finer, finer))), ((9, 99), (9, 99)))
    for i, y in enumerate(ys + 9):
        for j, x in enumerate(xs + 9):
            assert found[i, j] == pytest.approx(fine[y : y + edge, x : x + edge].mean(), abs=1e-6)


@pytest.mark.parametrize("edge", [64, 66, 72, 90, 96, 128, 192])
def test_shrinking_is_the_mean_of_areas(edge):
    rgb = np.random.default_rng(edge).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    factor = 64 // np.gcd(64, edge)
    fine = rgb.repeat(factor, 0).repeat(factor, 1).astype(float)
    step = len(fine) // 64
    expected = fine.reshape(64, step, 64, step, 3).mean((1, 3))
    np.testing.assert_allclose(shrink_area(rgb, 64), expected, atol=0.5 + 1e-6)
    flat = np.full_like(rgb, 201)
    assert (shrink_area(flat, 64) == 201).all()


@pytest.mark.parametrize("factor", [2, 3, 4, 16])
def test_compiled_and_numpy_means_of_areas_are_equal(
    factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.random.default_rng(factor).integers(0, 256, (8 * factor,) * 2 + (3,), np.uint8)
    compiled = shrink_area(picture, 8)
    monkeypatch.setenv("ESAD_PLAIN", "kernels")
    np.testing.assert_array_equal(shrink_area(picture, 8), compiled)


@pytest.mark.parametrize("size", [(12, 20), (13, 20), (12, 23), (1, 1), (5, 3)])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pictures_shrink_by_whole_factors_with_smaller_means_at_the_edges(
    size: tuple[int, int], factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = shrink_by(rgb, factor)
    for y in range(0, size[0], factor):
        for x in range(0, size[1], factor):
            mean = rgb[y : y + factor, x : x + factor].mean((0, 1))
            np.testing.assert_array_equal(found[y // factor, x // factor], np.floor(mean + 0.5))
    monkeypatch.setenv("ESAD_PLAIN", "kernels")
    np.testing.assert_array_equal(shrink_by(rgb, factor), found)
