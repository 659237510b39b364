"""Scores, save and load, damage, and everything a detector must refuse."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from esad_med.base.errors import ConfigError, ModelError
from esad_med.base.store import SampleStore
from esad_med.method.contract import Calibration, Contract
from esad_med.method.detector import Detector, choose_device
from esad_med.method.networks import EsadOutput, ImageNetwork
from esad_med.method.terms import TermSpec

TILES = np.random.default_rng(0).integers(0, 256, (23, 32, 32, 3), dtype=np.uint8)
GOOD: dict[str, Any] = {
    "modality": "histology",
    "channels": 3,
    "size": (32, 32),
    "value_range": (0, 255),
    "mpp": 1.0,
    "stain": "vahadane",
}


def test_scores_are_eq_17_with_its_terms(detector: Detector) -> None:
    scores = detector.score(TILES)
    np.testing.assert_allclose(scores.score, scores.reconstruction + scores.norm, rtol=1e-6)
    terms = detector.terms(TILES)
    assert terms.norm.shape == (2, 23)
    np.testing.assert_allclose(scores.norm, terms.norm.mean(0), rtol=1e-6)


def test_scores_do_not_depend_on_batch_size_or_order(detector: Detector) -> None:
    whole = np.stack(detector.score(TILES))
    order = np.random.default_rng(1).permutation(len(TILES))
    shuffled = np.stack(detector.score(TILES[order], batch_size=5))
    parts = np.stack(detector.score([TILES[:4], TILES[4:5], TILES[5:]], batch_size=7))
    np.testing.assert_allclose(shuffled, whole[:, order], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)
    assert whole[0].std() > 1e-4  # they do depend on the sample


def limit_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """A device that holds so many samples at once; the sizes that were tried."""
    honest, tried = ImageNetwork.forward, []

    def forward(self: ImageNetwork, x: torch.Tensor) -> EsadOutput:
        tried.append(len(x))
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, x)

    monkeypatch.setattr(ImageNetwork, "forward", forward)
    return tried


def test_a_batch_that_memory_does_not_hold_is_halved(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scores, maps = detector.examine(TILES)
    tried = limit_memory(monkeypatch, 3)
    with caplog.at_level(logging.WARNING, "esad_med"):
        np.testing.assert_allclose(
            np.stack(detector.score(TILES, batch_size=12)), np.stack(scores), rtol=1e-5, atol=1e-5
        )
    assert [size for size in tried if size > 3] == [12, 6]  # never tried again
    assert "out of memory on the device with 12 samples" in caplog.text
    found, found_maps = detector.examine(TILES)
    np.testing.assert_allclose(np.stack(found), np.stack(scores), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found_maps, maps, rtol=1e-5, atol=1e-5)


def test_a_device_that_holds_no_sample_is_an_error(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 0)
    with pytest.raises(ConfigError, match="out of memory on the device with a single sample"):
        detector.score(TILES)


def test_views_make_the_score_of_a_mirrored_tile_the_same(detector: Detector) -> None:
    contract = detector.contract.model_copy(update={"views": 8})
    eight = Detector(contract, detector.weights, device="cpu")
    turned = np.rot90(TILES, axes=(1, 2))
    np.testing.assert_allclose(eight.score(turned).score, eight.score(TILES).score, rtol=1e-5)
    plain = detector.score(turned).score
    assert np.abs(plain / detector.score(TILES).score - 1).max() > 1e-5


def test_an_empty_stream_gives_empty_scores_and_progress_counts(detector: Detector) -> None:
    assert len(detector.score(iter([])).score) == 0
    seen: list[int] = []
    detector.score(TILES, batch_size=10, progress=seen.append)
    assert seen == [10, 20, 23]


def test_bfloat16_scores_are_close(detector: Detector) -> None:
    exact, rough = detector.score(TILES), detector.score(TILES, precision="bfloat16")
    np.testing.assert_allclose(rough.score, exact.score, rtol=0.05)
    assert not np.array_equal(rough.score, exact.score)


def test_residual_map_averages_to_the_reconstruction_term(detector: Detector) -> None:
    single = detector.contract.model_copy(update={"views": 1})
    maps = Detector(single, detector.weights, device="cpu").residual_map(TILES)
    assert maps.shape == (23, 32, 32)
    terms = Detector(single, detector.weights, device="cpu").terms(TILES)
    np.testing.assert_allclose(maps.mean((1, 2)), terms.reconstruction.mean(0), rtol=1e-5)


@pytest.mark.parametrize("views", [1, 8])
def test_one_pass_gives_the_scores_and_the_maps_of_two(detector: Detector, views: int) -> None:
    contract = detector.contract.model_copy(update={"views": views})
    own = Detector(contract, detector.weights, device="cpu")
    scores, maps = own.examine(TILES)
    for found, expected in zip(scores, own.score(TILES), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(maps, own.residual_map(TILES))


def test_saved_and_loaded_is_the_same(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "d")
    loaded = Detector.load(tmp_path / "d", device="cpu")
    assert loaded.contract == detector.contract
    assert loaded.digest == detector.digest
    assert loaded.summary()["members"] == 2
    np.testing.assert_array_equal(loaded.score(TILES).score, detector.score(TILES).score)
    assert load_file(tmp_path / "d" / "weights.safetensors").keys() == detector.weights.keys()
    card = (tmp_path / "d" / "README.md").read_text(encoding="utf-8")
    assert "not for diagnosis" in card
    assert detector.digest in card


def test_a_setting_that_a_version_adds_changes_no_identity(detector: Detector) -> None:
    class Later(Contract):
        added: float | None = None

    later = Later.model_validate(detector.contract.model_dump())
    assert Detector(later, detector.weights).score_digest == detector.score_digest


def test_saving_twice_gives_equal_bytes(detector: Detector, tmp_path: Path) -> None:
    for name in "ab":
        detector.save(tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("name", ["weights.safetensors", "contract.json"])
def test_one_flipped_byte_is_refused(detector: Detector, tmp_path: Path, name: str) -> None:
    detector.save(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-100] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name}: damaged"):
        Detector.load(tmp_path)


def test_incomplete_detectors_are_refused(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        Detector.load(tmp_path / "none")
    with pytest.raises(ModelError, match="expected a detector made by `train`"):
        Detector.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ModelError, match="not a finished detector"):
        Detector.load(tmp_path)
    detector.save(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match="missing"):
        Detector.load(tmp_path)


def test_weights_of_another_network_are_refused(detector: Detector) -> None:
    wide = detector.contract.model_copy(
        update={"network": detector.contract.network.model_copy(update={"width": 1 / 8})}
    )
    with pytest.raises(ModelError, match="do not fit"):
        Detector(wide, detector.weights)


def test_input_of_the_contract_is_accepted(detector: Detector) -> None:
    target = {**detector.input.stain_target, "name": "another name"}  # type: ignore[dict-item]
    detector.check_input(**GOOD, stain_target=target)
    detector.check_input(**{**GOOD, "mpp": 0.95}, stain_target=target)
    detector.check_input(**{**GOOD, "mpp": 1.05}, stain_target=target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": "chest x-ray"}, "modality chest x-ray, this detector expects histology"),
        ({"channels": 1}, "channels 1, this detector expects 3"),
        ({"size": (64, 32)}, r"size \(width, height\) \(64, 32\)"),
        ({"size": None}, "size"),
        ({"value_range": (0, 1)}, "value range"),
        ({"mpp": 0.94}, "0.94 µm per pixel, this detector expects 1.0"),
        ({"mpp": 1.06}, "1.06 µm per pixel"),
        ({"mpp": None}, "None µm per pixel"),
        ({"stain": "macenko"}, "stain normalization macenko"),
        ({"stain": "none"}, "stain normalization none"),
        ({"stain_target": None}, "stain target 'none'"),
        ({"stain_target": {"name": "b"}}, "stain target 'b'"),
    ],
)
def test_other_input_is_refused(detector: Detector, change: dict[str, Any], message: str) -> None:
    values = {**GOOD, "stain_target": detector.input.stain_target, **change}
    with pytest.raises(ModelError, match=message):
        detector.check_input(**values)


def test_a_target_that_differs_in_one_number_is_refused(detector: Detector) -> None:
    own = detector.input.stain_target
    assert own is not None
    moved = {**own, "max_concentration": [2, 1.001]}
    with pytest.raises(ModelError, match="stain target"):
        detector.check_input(**GOOD, stain_target=moved)


def test_a_store_of_another_size_is_refused(detector: Detector, image_store: SampleStore) -> None:
    with pytest.raises(ModelError, match=r"tiles: size \(width, height\) \(16, 16\)"):
        detector.check_store(image_store)


@pytest.mark.parametrize(
    "samples", [TILES[:, :16], TILES.astype(np.float32), TILES[..., :1], TILES[0]]
)
def test_samples_outside_the_contract_are_refused(detector: Detector, samples: Any) -> None:
    with pytest.raises(ModelError, match="this detector expects uint8"):
        detector.score([samples])


def test_float_samples_outside_their_range_are_refused(detector: Detector) -> None:
    own = detector.input.model_copy(update={"dtype": "float32"})
    floats = Detector(
        detector.contract.model_copy(update={"input": own}), detector.weights, device="cpu"
    )
    samples = TILES.astype(np.float32)
    assert len(floats.score(samples).score) == 23
    for bad in (256.0, -1.0, np.nan, np.inf):
        broken = samples.copy()
        broken[3, 2, 1, 0] = bad
        with pytest.raises(ModelError, match="samples hold values"):
            floats.score(broken)


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=20), st.floats(-20, 20))
def test_percentiles_rise_with_the_score(quantiles: list[float], score: float) -> None:
    calibration = Calibration(quantiles=tuple(sorted(quantiles)), normals=5, held_out_by="case")
    low, high = calibration.percentile(np.array([score, score + 0.5]))
    assert 0 <= low <= high <= 100


def test_percentile_by_hand(detector: Detector) -> None:
    # quantiles 0, 1, 4 stand for 0, 50, 100 %
    assert detector.percentile(np.array([-1, 0.5, 1, 2.5, 9])).tolist() == [0, 25, 50, 75, 100]
    assert detector.threshold_at(75) == 2.5


def test_cuda_is_asked_for_only_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match="no CUDA device"):
        choose_device("cuda")


def test_terms_follow_the_contracts_settings(detector: Detector) -> None:
    changed = detector.contract.model_copy(update={"terms": TermSpec(reduction="sum", norm="rms")})
    other = Detector(changed, detector.weights, device="cpu").terms(TILES)
    own = detector.terms(TILES)
    np.testing.assert_allclose(other.reconstruction, own.reconstruction * 3 * 32 * 32, rtol=1e-4)
    np.testing.assert_allclose(other.norm, own.norm / np.sqrt(32 * 2 * 2), rtol=1e-4)
