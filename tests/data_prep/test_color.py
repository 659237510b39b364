import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import color as skimage_color

from data_prep import color
from data_prep.color import (
    OD_TABLE,
    ColorHistogram,
    lab_to_rgb,
    rgb_to_lab,
    tissue_pixels,
    weighted_percentile,
)


def _pixels(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3)).astype(np.uint8)


def test_od_of_white_black_and_a_tenth() -> None:
    assert OD_TABLE[255] == 1e-6  # the floor, not zero
    assert OD_TABLE[0] == OD_TABLE[1] == pytest.approx(np.log(255))
    assert OD_TABLE[51] == pytest.approx(np.log(5))


def test_lab_agrees_with_scikit_image_and_goes_back() -> None:
    rgb = _pixels(0, 5000)
    np.testing.assert_allclose(rgb_to_lab(rgb), skimage_color.rgb2lab(rgb), atol=2e-2)
    np.testing.assert_array_equal(lab_to_rgb(rgb_to_lab(rgb)), rgb)
    np.testing.assert_allclose(rgb_to_lab(rgb), rgb_to_lab(rgb.astype(float)))


@pytest.mark.parametrize("luminosity", [0.05, 0.5, 0.8, 1.0])
def test_tissue_is_what_is_darker_than_the_bound_in_lab(luminosity: float) -> None:
    rgb = _pixels(1, 20_000)
    lightness = rgb_to_lab(rgb)[:, 0]
    clear = np.abs(lightness - 100 * luminosity) > 1e-3
    found = tissue_pixels(rgb, luminosity)
    np.testing.assert_array_equal(found[clear], lightness[clear] < 100 * luminosity)


def test_histogram_bins_hold_exact_means() -> None:
    rgb = np.array([[10, 20, 30], [11, 21, 30], [11, 20, 31], [100, 0, 0]], dtype=np.uint8)
    histogram = ColorHistogram.of([rgb], luminosity=1.0)
    assert histogram.counts.tolist() == [3, 1]
    np.testing.assert_allclose(histogram.mean_rgb()[0], rgb[:3].mean(axis=0))
    np.testing.assert_allclose(histogram.mean_od()[0], OD_TABLE[rgb[:3]].mean(axis=0))


@pytest.mark.parametrize("luminosity", [0.3, 0.8])
def test_kernel_and_numpy_count_alike(monkeypatch: pytest.MonkeyPatch, luminosity: float) -> None:
    rgb = _pixels(2, 30_000)
    fast = ColorHistogram.of([rgb], luminosity=luminosity)
    monkeypatch.setattr(color, "compile_kernel", lambda function: None)
    plain = ColorHistogram.of([rgb], luminosity=luminosity)
    assert 0 < fast.pixels < len(rgb)
    np.testing.assert_array_equal(fast.keys, plain.keys)
    np.testing.assert_array_equal(fast.counts, plain.counts)
    np.testing.assert_array_equal(fast.odd, plain.odd)


@given(st.integers(0, 2**31), st.integers(0, 400), st.integers(1, 399))
@settings(max_examples=15, deadline=None)
def test_merged_histograms_equal_the_histogram_of_all(seed: int, count: int, cut: int) -> None:
    rgb = _pixels(seed, count) // 8  # few colors, so that bins are shared
    first = ColorHistogram.of([rgb[:cut]], luminosity=0.8)
    second = ColorHistogram.of([rgb[cut:]], luminosity=0.8)
    whole = ColorHistogram.of([rgb[::-1]], luminosity=0.8)  # nor does order count
    for merged in (first + second, second + first):
        np.testing.assert_array_equal(merged.keys, whole.keys)
        np.testing.assert_array_equal(merged.counts, whole.counts)
        np.testing.assert_array_equal(merged.odd, whole.odd)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.floats(0.5, 100))
def test_weighted_percentile_is_that_of_the_repeated_values(
    weights: list[int], percent: float
) -> None:
    values = np.random.default_rng(len(weights)).normal(size=len(weights))
    repeated = np.repeat(values, weights)
    expected = np.percentile(repeated, percent, method="inverted_cdf")
    assert weighted_percentile(values, np.array(weights), percent) == expected
