import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.color import OD_TABLE, ColorHistogram, tissue_pixels
from data_prep.compiled import _compile, compile_kernel
from data_prep.slides import open_slide
from data_prep.stain import StainSpec, fit_stain, normalize_stain
from data_prep.stain_target import DEFAULT_TARGET
from data_prep.vahadane import (
    REFERENCE_MATRIX,
    macenko_matrix,
    ordered,
    remap_kernel,
    remap_numpy,
    remap_stains,
    sparse_concentrations,
    stain_angle,
    vahadane_matrix,
)

MATRIX = ordered(REFERENCE_MATRIX)


def _angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((first * second).sum(axis=1), -1, 1)))


def stained(
    seed: int, matrix: np.ndarray = MATRIX, shape: tuple[int, ...] = (200, 200)
) -> np.ndarray:
    """A picture whose pixels mix two stains, sparsely."""
    rng = np.random.default_rng(seed)
    codes = rng.exponential(0.6, (*shape, 2)) * (rng.random((*shape, 2)) < 0.7)
    return np.rint(255 * np.exp(-codes @ matrix)).astype(np.uint8)


def load_real(data_root: Path, pattern: str, count: int) -> np.ndarray:
    files = sorted((data_root / "histology" / "camelyon16_40x").glob(pattern))[:count]
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


@given(st.integers(0, 2**31), st.floats(0, 0.3))
@settings(max_examples=30, deadline=None)
def test_closed_form_is_the_minimum(seed: int, penalty: float) -> None:
    rng = np.random.default_rng(seed)
    od = rng.uniform(0, 2, (50, 3))

    def loss(codes: np.ndarray) -> np.ndarray:
        return 0.5 * ((od - codes @ MATRIX) ** 2).sum(axis=1) + penalty * codes.sum(axis=1)

    best = sparse_concentrations(od, MATRIX, penalty)
    assert best.min() >= 0
    for _ in range(20):
        other = np.maximum(best + rng.normal(0, 0.05, best.shape), 0)
        assert (loss(best) <= loss(other) + 1e-12).all()


def test_pure_stain_gives_its_concentration_less_the_penalty() -> None:
    codes = sparse_concentrations(1.5 * MATRIX[:1], MATRIX, 0.1)
    np.testing.assert_allclose(codes, [[1.4, 0]], atol=1e-12)


@pytest.mark.parametrize("find", [lambda h: vahadane_matrix(h, penalty=0.02), macenko_matrix])
def test_matrix_that_made_the_picture_is_found_again(find: object) -> None:
    turned = ordered(np.array([[0.65, 0.70, 0.29], [0.15, 0.95, 0.28]]))
    histogram = ColorHistogram.of([stained(3, turned)], luminosity=0.9)
    assert _angles(find(histogram), turned).max() < 3  # type: ignore[operator]


def test_order_and_angle_of_a_matrix() -> None:
    matrix = ordered(np.array([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(matrix, [[1, 0, 0], [0, 1, 0]])
    assert stain_angle(matrix) == pytest.approx(90)


def test_kernel_and_numpy_agree_and_leave_the_input_alone() -> None:
    rgb = np.concatenate([stained(4).reshape(-1, 3), np.eye(3, dtype=np.uint8) * 255])
    rgb = np.concatenate([rgb, [[0, 0, 0], [255, 255, 255], [1, 1, 1]]]).astype(np.uint8)
    before, scale, target = rgb.copy(), np.array([1.3, 0.7]), ordered(REFERENCE_MATRIX + 0.05)
    assert compile_kernel(remap_kernel) is not None
    fast = remap_stains(rgb, MATRIX, scale, target, penalty=0.01)
    plain = remap_numpy(rgb, MATRIX, scale, target, penalty=0.01)
    difference = np.abs(fast.astype(int) - plain)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3
    np.testing.assert_array_equal(rgb, before)
    assert fast[-2].tolist() == [255, 255, 255]  # glass stays glass


def test_without_numba_numpy_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    _compile.cache_clear()
    try:
        assert compile_kernel(remap_kernel) is None
        tiles = stained(5).reshape(4, 100, 100, 3)
        mapped = remap_stains(tiles, MATRIX, np.ones(2), MATRIX, penalty=0.0)
    finally:
        _compile.cache_clear()
    assert mapped.shape == tiles.shape
    assert np.abs(mapped.astype(int) - tiles).max() <= 2  # the same stains, up to rounding


@given(st.integers(1, 20_000))
@settings(max_examples=10, deadline=None)
def test_a_pixel_does_not_depend_on_its_neighbors(count: int) -> None:
    rgb = np.tile(stained(6, shape=(5, 10)).reshape(-1, 3), (400, 1))[:count]
    one = remap_stains(rgb[:50], MATRIX, np.ones(2), MATRIX, penalty=0.01)
    many = remap_stains(rgb, MATRIX, np.ones(2), MATRIX, penalty=0.01)
    np.testing.assert_array_equal(many, np.tile(one, (400, 1))[:count])


@pytest.mark.data
@pytest.mark.parametrize("source", ["camelyon16", "cmu-1"])
def test_rgb_equals_staintools_on_real_tissue(data_root: Path, source: str) -> None:
    pytest.importorskip("spams")
    optical_density = pytest.importorskip("staintools.miscellaneous.get_concentrations")
    if source == "camelyon16":
        images = load_real(data_root, "*/tumor_0*.jpg", 12)
    else:
        with open_slide(data_root / "wsi" / "cmu-1-small-region.svs") as slide:
            images = slide.read_region((300, 300), 0, (900, 900))[None]
    stain = fit_stain(images, StainSpec(), name="real")
    ours = normalize_stain(images, stain, DEFAULT_TARGET, StainSpec())
    scale = DEFAULT_TARGET.max_concentration / stain.max_concentration
    matrix = np.ascontiguousarray(stain.matrix)  # staintools' own call, on a copy of the picture
    codes = optical_density.get_concentrations(images.reshape(-1, 1, 3).copy(), matrix)
    theirs = (255 * np.exp(-(codes * scale) @ DEFAULT_TARGET.matrix)).astype(np.uint8)
    difference = np.abs(ours.reshape(-1, 3).astype(int) - theirs)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-4


@pytest.mark.data
@pytest.mark.parametrize("pattern", ["tumor/tumor_001*.jpg", "normal/tumor_073*.jpg"])
def test_matrix_is_the_optimum_that_spams_converges_to(data_root: Path, pattern: str) -> None:
    spams = pytest.importorskip("spams")
    rgb = load_real(data_root, pattern, 4).reshape(-1, 3)
    tissue = rgb[tissue_pixels(rgb, 0.8)]
    theirs = spams.trainDL(
        X=np.asfortranarray(OD_TABLE[tissue].T), K=2, lambda1=0.1, mode=2, modeD=0,
        posAlpha=True, posD=True, verbose=False, iter=20_000, numThreads=1,
    ).T  # fmt: skip
    ours = vahadane_matrix(ColorHistogram.of([rgb], luminosity=0.8), penalty=0.1)
    assert ours is not None
    assert _angles(ours, ordered(theirs)).max() < 0.2
