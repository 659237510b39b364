import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.color import ColorHistogram, rgb_to_lab, tissue_pixels
from data_prep.stain import (
    Stain,
    StainSpec,
    StainTarget,
    fit_indices,
    fit_stain,
    normalize_stain,
    stain_of_histogram,
)
from data_prep.stain_target import DEFAULT_TARGET, read_target, target_from_image, write_target
from data_prep.vahadane import REFERENCE_MATRIX, ordered
from esad_med.base.errors import ConfigError, ImageError, SlideError

METHODS = ("vahadane", "macenko", "reinhard", "staintools")


def stained(seed: int, scale: float = 1.0, edge: int = 160) -> np.ndarray:
    rng = np.random.default_rng(seed)
    codes = scale * rng.exponential(0.5, (edge, edge, 2)) * (rng.random((edge, edge, 2)) < 0.8)
    return np.rint(255 * np.exp(-codes @ ordered(REFERENCE_MATRIX))).astype(np.uint8)


def needs(method: str) -> StainSpec:
    if method == "staintools":
        pytest.importorskip("spams")
        pytest.importorskip("staintools.miscellaneous.get_concentrations")
    return StainSpec(method=method)


@pytest.mark.parametrize("method", METHODS)
def test_fit_is_deterministic_and_leaves_its_input_alone(method: str) -> None:
    spec = needs(method)
    image = stained(1)
    image[0, 0] = 0  # what staintools writes over
    before = image.copy()
    first, second = (fit_stain([image], spec, name="s1") for _ in range(2))
    assert first.to_dict() == second.to_dict()
    out = normalize_stain(image[None], first, DEFAULT_TARGET, spec)
    assert out.shape == (1, *image.shape)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("method", METHODS)
def test_normalizing_brings_two_looks_together(method: str) -> None:
    spec = needs(method)
    pale, dark = stained(2, 0.8), stained(3, 1.4)
    means = []
    for image in (pale, dark):
        out = normalize_stain(image, fit_stain([image], spec, name="s"), DEFAULT_TARGET, spec)
        means.append(rgb_to_lab(out).mean(axis=(0, 1)))
    raw = np.abs(rgb_to_lab(pale).mean(axis=(0, 1)) - rgb_to_lab(dark).mean(axis=(0, 1))).max()
    assert raw > 8
    assert np.abs(means[0] - means[1]).max() < 0.6 * raw


def test_method_none_changes_nothing_and_needs_no_tissue() -> None:
    spec = StainSpec(method="none")
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    stain = fit_stain([white], spec, name="s1")
    out = normalize_stain(white, stain, DEFAULT_TARGET, spec)
    np.testing.assert_array_equal(out, white)
    assert out is not white


def test_merged_histograms_fit_as_one() -> None:
    images, spec = [stained(4), stained(5)], StainSpec()
    parts = [ColorHistogram.of([image], luminosity=spec.luminosity) for image in images]
    merged = stain_of_histogram(parts[1] + parts[0], spec, name="s1")
    assert merged.to_dict() == fit_stain(images, spec, name="s1").to_dict()


def test_reinhard_meets_the_mean_of_the_target_on_tissue() -> None:
    spec = StainSpec(method="reinhard")
    image = stained(6, 0.6)
    image = image[tissue_pixels(image, 0.8)]
    out = normalize_stain(image, fit_stain([image], spec, name="s"), DEFAULT_TARGET, spec)
    mean = rgb_to_lab(out).mean(axis=0)
    np.testing.assert_allclose(mean, DEFAULT_TARGET.lab_mean, atol=2)  # up to clipping


@pytest.mark.parametrize("method", ["vahadane", "macenko"])
@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.full((200, 200, 3), 255, np.uint8), "0 tissue pixels"),
        (np.full((200, 200, 3), (120, 60, 140), np.uint8), "degenerate"),
        (np.zeros((200, 200, 3), np.uint8), "degenerate"),
        (np.repeat(stained(7, edge=200)[..., :1], 3, axis=2), "degenerate"),
    ],
    ids=["white", "one color", "black", "gray"],
)
def test_pictures_without_two_stains_are_refused(
    method: str, picture: np.ndarray, message: str
) -> None:
    with pytest.raises(SlideError, match=rf"s07\.svs: .*{message}"):
        fit_stain([picture], StainSpec(method=method), name="s07.svs")


def test_one_color_is_refused_by_reinhard_too() -> None:
    picture = np.full((200, 200, 3), (120, 60, 140), np.uint8)
    with pytest.raises(SlideError, match="one color"):
        fit_stain([picture], StainSpec(method="reinhard"), name="s")


def test_a_stain_of_another_method_is_a_callers_mistake() -> None:
    stain = fit_stain([stained(8)], StainSpec(), name="s")
    with pytest.raises(ValueError, match="fitted by vahadane"):
        normalize_stain(stained(8), stain, DEFAULT_TARGET, StainSpec(method="macenko"))


def test_staintools_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spams", None)
    with pytest.raises(ConfigError, match="extra 'reference'"):
        fit_stain([stained(9)], StainSpec(method="staintools"), name="s")


def test_fit_indices_are_spread_and_bounded() -> None:
    spec = StainSpec(fit_tiles=4)
    assert fit_indices(3, spec).tolist() == [0, 1, 2]
    assert fit_indices(8, spec).tolist() == [1, 3, 5, 7]
    assert fit_indices(0, spec).tolist() == []


def test_target_and_stain_survive_json_exactly(tmp_path: Path) -> None:
    target = target_from_image(stained(10), StainSpec())
    write_target(tmp_path / "target.json", target)
    assert read_target(tmp_path / "target.json").to_dict() == target.to_dict()
    stain = fit_stain([stained(10)], StainSpec(), name="s")
    again = Stain.from_dict(json.loads(json.dumps(stain.to_dict())))
    assert again.to_dict() == stain.to_dict()


def test_target_is_found_inside_a_contract_and_a_folder(tmp_path: Path) -> None:
    contract = {"mpp": 1.0, "preparation": {"stain_target": DEFAULT_TARGET.to_dict()}}
    (tmp_path / "store.json").write_text(json.dumps(contract))
    for path in (tmp_path, tmp_path / "store.json"):
        assert read_target(path).to_dict() == DEFAULT_TARGET.to_dict()


def test_picture_fitted_to_itself_stays_as_it_is(tmp_path: Path) -> None:
    image, spec = stained(11), StainSpec(concentration_lambda=0)
    Image.fromarray(image).save(tmp_path / "look.png")
    target = read_target(tmp_path / "look.png", spec)
    assert target.name == "look.png"
    out = normalize_stain(image, fit_stain([image], spec, name="s"), target, spec)
    assert np.abs(out.astype(int) - image).mean() < 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", b"no picture", "not a readable image"),
        ("a.json", b"{", "not a JSON file"),
        ("a.json", b"{}", "holds no stain target"),
        ("missing.png", None, "no such file"),
    ],
)
def test_bad_target_files_are_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=message):
        read_target(tmp_path / name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("matrix", [[1, 0, 0]]),
        ("matrix", [[1, 0, 0], [-1, 0, 0]]),
        ("max_concentration", [1, float("nan")]),
        ("lab_std", [1, 0, 1]),
        ("lab_mean", "abc"),
        ("name", 3),
    ],
)
def test_impossible_targets_are_refused(tmp_path: Path, key: str, value: object) -> None:
    values = {**DEFAULT_TARGET.to_dict(), key: value}
    with pytest.raises(ValueError, match=key):
        StainTarget.from_dict(values)
    (tmp_path / "t.json").write_text(json.dumps(values))
    with pytest.raises(ImageError, match="not a stain target"):
        read_target(tmp_path / "t.json")


def test_white_target_picture_is_an_image_error(tmp_path: Path) -> None:
    Image.new("RGB", (200, 200), "white").save(tmp_path / "white.png")
    with pytest.raises(ImageError, match="tissue pixels"):
        read_target(tmp_path / "white.png")


def test_default_target_is_the_published_one() -> None:
    np.testing.assert_allclose(DEFAULT_TARGET.matrix, REFERENCE_MATRIX, atol=1e-4)
    assert DEFAULT_TARGET.max_concentration.tolist() == [1.9705, 1.0308]
    with pytest.raises(ValueError, match="read-only"):
        DEFAULT_TARGET.matrix[0, 0] = 0
