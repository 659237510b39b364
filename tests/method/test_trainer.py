"""Training: learns, repeats bit by bit, resumes, stops where the loss is not finite."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from esad_med.base.errors import ConfigError, ModelError, StoreError
from esad_med.base.runs import digest_file, read_json
from esad_med.base.store import SampleStore
from esad_med.method.checkpoints import load_checkpoint
from esad_med.method.config import OptimizerConfig, TrainConfig
from esad_med.method.datasets import choose_training_set
from esad_med.method.detector import Detector
from esad_med.method.folds import split_folds
from esad_med.method.losses import EsadLoss
from esad_med.method.optimization import learning_rate
from esad_med.method.trainer import train

MakeStore = Callable[..., SampleStore]
MakeConfig = Callable[..., TrainConfig]


def weights_of(folder: Path) -> str:
    return digest_file(folder / "weights.safetensors")


class StoppedError(Exception):
    """Stands for a killed process."""


def test_an_image_detector_finds_its_outliers(image_store: SampleStore, tmp_path: Path) -> None:
    config = TrainConfig.model_validate(
        {
            "members": 2,
            "epochs": 12,
            "network": {"width": 1 / 16},
            "data": {"batch_size": 16},
            "optimizer": {"lr": 3e-3},
            "test_time_augmentation": 2,
        }
    )
    lines: list[str] = []
    steps: list[tuple[int, int]] = []
    detector = train(
        image_store,
        config,
        tmp_path / "d",
        say=lines.append,
        progress=lambda _, done, total: steps.append((done, total)),
    )
    detector.check_store(image_store)
    scores = detector.score(image_store.samples).score
    assert scores[48:].min() > scores[:48].max()
    assert detector.percentile(scores[48:]).min() == 100
    assert steps == [(k, 24) for k in range(1, 25)]
    assert len(lines) == 3
    again = Detector.load(tmp_path / "d", device="cpu")
    np.testing.assert_array_equal(again.score(image_store.samples).score, scores)
    _check_folder(tmp_path / "d", config)


def _check_folder(out: Path, config: TrainConfig) -> None:
    metrics = pd.read_csv(out / "metrics.csv")
    assert metrics["epoch"].tolist() == [*range(1, 13)] * 2
    assert metrics["validation_auc"].iloc[-1] > 0.9
    curves = list((out / "tensorboard").rglob("events*"))
    assert len(curves) == 2
    contract = read_json(out / "contract.json", ModelError)
    assert contract["training"]["config"] == config.model_dump(mode="json")
    assert contract["calibration"]["held_out_by"] == "case"
    assert contract["preparation"]["stain"] == {"method": "vahadane"}
    run = read_json(out / "run.json", ModelError)
    assert run["versions"]["torch"] == torch.__version__


def test_the_same_training_gives_the_same_weights(
    vector_store: MakeStore, vector_config: MakeConfig, tmp_path: Path
) -> None:
    store = vector_store()
    state = torch.random.get_rng_state()
    for name in "ab":
        train(store, vector_config(), tmp_path / name)
    train(store, vector_config(seed=1), tmp_path / "c")
    for file in ("weights.safetensors", "contract.json", "metrics.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert weights_of(tmp_path / "a") != weights_of(tmp_path / "c")
    assert torch.equal(torch.random.get_rng_state(), state)


DROPOUT = {"network": {"dropout": 0.2}, "augment": {"noise": 0.3}}


FALLING: dict[str, Any] = {
    "optimizer": {"lr": 1e-2},
    "loss": {"lambda1": 10},
    "scale": {"method": "standard"},
}


@pytest.mark.parametrize("select", ["last", "best"])
def test_two_epochs_and_two_resumed_are_four(
    vector_store: MakeStore, vector_config: MakeConfig, tmp_path: Path, select: str
) -> None:
    """Without outliers the held-out loss tells the best epoch; here it falls to the last."""
    store, options = vector_store(outliers=0), {**DROPOUT, **FALLING, "select": select}
    train(store, vector_config(**options), tmp_path / "whole")
    train(store, vector_config(**options, epochs=2), tmp_path / "halves")
    assert weights_of(tmp_path / "halves") != weights_of(tmp_path / "whole")
    train(store, vector_config(**options), tmp_path / "halves", resume=True)
    assert weights_of(tmp_path / "halves") == weights_of(tmp_path / "whole")
    metrics = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("whole", "halves")]
    assert metrics[0] == metrics[1]


def test_a_resumed_training_remembers_the_best_epoch_before(
    vector_store: MakeStore, vector_config: MakeConfig, tmp_path: Path
) -> None:
    """Steps too small to change a rank: the first epoch is the best."""
    still = {"network": {"normalization": "none"}, "optimizer": {"lr": 1e-6}}
    store = vector_store()
    train(store, vector_config(**still, epochs=1), tmp_path / "first")
    train(store, vector_config(**still, epochs=2, select="best"), tmp_path / "d")
    train(store, vector_config(**still, select="best"), tmp_path / "d", resume=True)
    train(store, vector_config(**still), tmp_path / "last")
    assert weights_of(tmp_path / "d") == weights_of(tmp_path / "first")
    assert weights_of(tmp_path / "d") != weights_of(tmp_path / "last")


@pytest.mark.parametrize("stop", [2, 4, 7])
def test_a_killed_training_resumes_bit_by_bit(
    vector_store: MakeStore, vector_config: MakeConfig, tmp_path: Path, stop: int
) -> None:
    def kill(_: str, done: int, __: int) -> None:
        if done == stop:
            raise StoppedError

    store = vector_store()
    config = vector_config(**DROPOUT, optimizer={"schedule": "cosine", "name": "sgd"})
    train(store, config, tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(store, config, tmp_path / "killed", progress=kill)
    with pytest.raises(ModelError, match="not a finished detector"):
        Detector.load(tmp_path / "killed")
    train(store, config, tmp_path / "killed", resume=True)
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "whole")


def test_a_folder_in_use_is_not_trodden_on(
    vector_store: MakeStore, vector_config: MakeConfig, tmp_path: Path
) -> None:
    store, out = vector_store(), tmp_path / "d"
    train(store, vector_config(epochs=1), out)
    with pytest.raises(ConfigError, match="--resume"):
        train(store, vector_config(epochs=1), out)
    with pytest.raises(ConfigError, match=r"optimizer\.lr was 0.001, now 0.1"):
        train(store, vector_config(optimizer={"lr": 0.1}), out, resume=True)
    with pytest.raises(ConfigError, match="another store"):
        train(vector_store(normals=50), vector_config(), out, resume=True)
    before = weights_of(out)
    train(store, vector_config(epochs=1, seed=3), out, overwrite=True)
    assert weights_of(out) != before


def test_a_schedule_that_ends_cannot_be_prolonged(
    vector_store: MakeStore, vector_config: MakeConfig, tmp_path: Path
) -> None:
    store, cosine = vector_store(), {"schedule": "cosine"}
    train(store, vector_config(epochs=1, optimizer=cosine), tmp_path / "d")
    with pytest.raises(ConfigError, match="laid out for 1"):
        train(store, vector_config(epochs=2, optimizer=cosine), tmp_path / "d", resume=True)


def test_a_damaged_checkpoint_is_refused(
    vector_store: MakeStore, vector_config: MakeConfig, tmp_path: Path
) -> None:
    store, out = vector_store(), tmp_path / "d"
    train(store, vector_config(epochs=1), out)
    file = out / "checkpoints" / "member1-epoch00001.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        train(store, vector_config(), out, resume=True)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    vector_store: MakeStore,
    vector_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, config, out = vector_store(), vector_config(members=1), tmp_path / "d"
    honest, calls = EsadLoss.__call__, iter(range(1000))

    def break_in_the_third_epoch(self: EsadLoss, output: Any, target: Any) -> torch.Tensor:
        loss = honest(self, output, target)
        return loss * float("nan") if next(calls) >= 8 else loss  # 3 batches an epoch

    with monkeypatch.context() as patch:
        patch.setattr(EsadLoss, "__call__", break_in_the_third_epoch)
        with pytest.raises(ModelError, match=r"epoch 3: the loss is not finite.*of epoch 2"):
            train(store, config, out)
    state = load_checkpoint(out / "checkpoints", 0)
    assert state is not None
    assert state["epoch"] == 2
    assert all(torch.isfinite(t).all() for t in state["network"].values())
    # what the message says works: the detector of epoch 2, as if trained for two epochs
    train(store, vector_config(members=1, epochs=2), out, resume=True)
    train(store, vector_config(members=1, epochs=2), tmp_path / "two")
    assert weights_of(out) == weights_of(tmp_path / "two")


def test_out_of_memory_says_what_to_do_and_what_it_says_works(
    vector_store: MakeStore,
    vector_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, config, out = vector_store(), vector_config(members=1), tmp_path / "d"
    honest, calls = EsadLoss.__call__, iter(range(1000))

    def fill_the_device(self: EsadLoss, output: Any, target: Any) -> torch.Tensor:
        if next(calls) >= 8:  # 3 batches an epoch
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, output, target)

    with monkeypatch.context() as patch:
        patch.setattr(EsadLoss, "__call__", fill_the_device)
        with pytest.raises(ConfigError, match=r"epoch 3: out of memory.* 20 samples.*batch_size=8"):
            train(store, config, out)
    train(store, config, out, resume=True)
    train(store, config, tmp_path / "whole")
    assert weights_of(out) == weights_of(tmp_path / "whole")


def test_what_a_kill_left_of_a_folder_does_not_stand_in_the_way(
    vector_store: MakeStore,
    vector_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise StoppedError

    store, out = vector_store(), tmp_path / "d"
    (out / "checkpoints").mkdir(parents=True)
    cut_off = out / "checkpoints" / ".request.json.1.partial"
    cut_off.write_text("{")
    train(store, vector_config(epochs=1), out)
    assert not cut_off.exists()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(StoppedError):
            train(store, vector_config(seed=1), out, overwrite=True)
    with pytest.raises(ModelError, match="not a finished detector"):
        Detector.load(out)
    train(store, vector_config(seed=1), out, resume=True)  # nothing of the old one is gone on with
    train(store, vector_config(seed=1), tmp_path / "whole")
    assert weights_of(out) == weights_of(tmp_path / "whole")


@pytest.mark.parametrize("file", ["weights.safetensors", "contract.json", "README.md"])
def test_a_kill_between_the_files_of_a_detector_leaves_none_that_loads(
    vector_store: MakeStore,
    vector_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
) -> None:
    """An older detector stands there already: parts of both must not be taken for one."""
    honest = Path.replace

    def stop_after(self: Path, target: Path) -> Path:
        done = honest(self, target)
        if Path(target) == tmp_path / "d" / file:
            raise StoppedError
        return done

    store, out = vector_store(), tmp_path / "d"
    train(store, vector_config(epochs=1), out)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop_after)
        with pytest.raises(StoppedError):
            train(store, vector_config(epochs=2), out, resume=True)
    with pytest.raises(ModelError, match="not a finished detector"):
        Detector.load(out)
    train(store, vector_config(epochs=2), out, resume=True)
    train(store, vector_config(epochs=2), tmp_path / "whole")
    for name in ("weights.safetensors", "contract.json", "README.md", "checksums.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_rate_that_explodes_is_caught(
    vector_store: MakeStore, vector_config: MakeConfig, tmp_path: Path
) -> None:
    wild = vector_config(
        epochs=30,
        network={"normalization": "none"},
        loss={"reduction": "sum"},
        optimizer={"name": "sgd", "lr": 10.0, "clip": None},
    )
    with pytest.raises(ModelError, match="not finite"):
        train(vector_store(), wild, tmp_path / "d")


def test_damaged_samples_are_refused(
    vector_store: MakeStore, vector_config: MakeConfig, tmp_path: Path
) -> None:
    store = vector_store()
    file = store.path / "samples.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="SHA-256"):
        train(SampleStore(store.path), vector_config(), tmp_path / "d")


def test_early_stopping_keeps_the_best_epoch(
    vector_store: MakeStore, vector_config: MakeConfig, tmp_path: Path
) -> None:
    config = vector_config(members=1, epochs=40, patience=3, select="best")
    train(vector_store(), config, tmp_path / "d")
    metrics = pd.read_csv(tmp_path / "d" / "metrics.csv")
    best = int(metrics["validation_auc"].idxmax())
    assert len(metrics) == best + 1 + 3
    short = vector_config(members=1, epochs=best + 1, patience=3, select="last")
    train(vector_store(normals=60), short, tmp_path / "short")
    assert weights_of(tmp_path / "short") == weights_of(tmp_path / "d")


def test_without_outliers_nothing_is_learned_about_them(
    vector_store: MakeStore, vector_config: MakeConfig, tmp_path: Path
) -> None:
    detector = train(vector_store(outliers=0), vector_config(), tmp_path / "d")
    assert detector.contract.calibration.auc is None
    assert detector.contract.fusion.learned is False
    assert detector.contract.fusion.norm_weight == vector_config().fusion.norm_weight


def test_vectors_too_many_for_the_memory_are_scaled_in_batches(
    vector_store: MakeStore,
    vector_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the same weights; of twice as many only every second row gives the scaling."""
    store = vector_store()
    train(store, vector_config(), tmp_path / "at-once")
    monkeypatch.setattr("esad_med.method.problem._MOST_AT_ONCE", store.samples.size - 1)
    train(store, vector_config(), tmp_path / "in-batches")
    assert weights_of(tmp_path / "at-once") == weights_of(tmp_path / "in-batches")
    monkeypatch.setattr("esad_med.method.problem._MOST_AT_ONCE", store.samples.size // 2)
    half = train(store, vector_config(), tmp_path / "half")
    assert half.contract.scaling.center[0] == pytest.approx(store.samples[::2, 0].mean())


def test_cross_fitted_members_hold_out_different_normals(
    vector_store: MakeStore, vector_config: MakeConfig, tmp_path: Path
) -> None:
    store = vector_store()
    fifth = {"validation": 0.2}
    cross = train(store, vector_config(members=5, epochs=1, data=fifth), tmp_path / "cross")
    calibration = cross.contract.calibration
    assert (calibration.normals, calibration.outliers) == (60, 12)
    assert calibration.held_out_by == "case"
    assert cross.contract.fusion.learned is True  # 12 held-out outliers are enough
    alike = train(
        store, vector_config(members=5, epochs=1, data=fifth, folds="all"), tmp_path / "all"
    )
    assert alike.contract.calibration.normals < 20


def test_percentiles_are_of_the_whole_ensemble_on_normals_it_never_met(
    vector_store: MakeStore, vector_config: MakeConfig, tmp_path: Path
) -> None:
    cases = [f"n{i % 6}" for i in range(80)] + [f"t{i % 4}" for i in range(52)]
    store = vector_store(normals=120, case_id=cases)
    config = vector_config(members=5, epochs=1)
    detector = train(store, config, tmp_path / "d")
    chosen = choose_training_set(store, config.data, seed=config.seed)
    folds = split_folds(
        chosen, store.rows, count=5, validation=config.data.validation, seed=config.seed
    )
    held = folds[0].held_normals
    assert all((fold.held_normals == held).all() for fold in folds)
    scores = detector.score(store.samples[held]).score
    quantiles = detector.contract.calibration.quantiles
    assert detector.contract.calibration.normals == len(held)
    np.testing.assert_allclose(quantiles, np.sort(scores), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["member", "pooled"])
def test_statistics_are_each_members_own_or_everyones(
    vector_store: MakeStore, vector_config: MakeConfig, tmp_path: Path, kind: str
) -> None:
    config = vector_config(epochs=1, fusion={"statistics": kind, "across": "median"})
    fusion = train(vector_store(), config, tmp_path / "d").contract.fusion
    assert fusion.across == "median"
    assert (fusion.members[0] == fusion.members[1]) is (kind == "pooled")


def test_the_paper_preset_scores_by_eq_17(
    vector_store: MakeStore, vector_config: MakeConfig, tmp_path: Path
) -> None:
    config = TrainConfig.model_validate(
        {
            "preset": "paper",
            "kind": "vector",
            "epochs": 2,
            "loss": {"lambda1": 0.5},
            "network": {"hidden": [4]},
        }
    )
    detector = train(vector_store(), config, tmp_path / "d")
    scores = detector.score(vector_store(normals=59).samples)
    np.testing.assert_allclose(scores.score, scores.reconstruction + 0.5 * scores.norm, rtol=1e-6)
    assert detector.contract.members == 1


def test_learning_rates_by_hand() -> None:
    def rate(step: int, **settings: Any) -> float:
        return learning_rate(step, 10, 20, OptimizerConfig(lr=1.0, **settings))  # 200 steps

    assert [rate(s, schedule="halve", halve_every=5) for s in (0, 49, 50, 199)] == [
        1,
        1,
        0.5,
        0.125,
    ]
    assert rate(100, schedule="cosine") == pytest.approx(0.5)
    assert rate(0, schedule="onecycle") == pytest.approx(0.1)
    assert rate(50, schedule="onecycle") == pytest.approx(1)
    assert rate(125, schedule="onecycle") == pytest.approx(0.5)
    assert rate(0, warmup=9) == pytest.approx(0.1)
    assert rate(150) == 1


@pytest.mark.gpu
def test_training_and_scoring_on_cuda(image_store: SampleStore, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = TrainConfig.model_validate(
        {"members": 1, "epochs": 8, "network": {"width": 1 / 8}, "data": {"batch_size": 16}}
    )
    detector = train(image_store, config, tmp_path / "d")
    assert detector.device.type == "cuda"
    scores = detector.score(image_store.samples)
    parts = detector.score(image_store.samples[::-1], batch_size=7)
    np.testing.assert_allclose(np.stack(parts)[:, ::-1], np.stack(scores), rtol=1e-5, atol=1e-5)
    on_cpu = Detector.load(tmp_path / "d", device="cpu").score(image_store.samples)
    np.testing.assert_allclose(on_cpu.score, scores.score, rtol=1e-3, atol=1e-3)
