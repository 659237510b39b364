"""Training on CUDA: the fast paths against the plain ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from esad_med.base.store import SampleStore
from esad_med.method import member
from esad_med.method.config import TrainConfig
from esad_med.method.trainer import train

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def losses(store: SampleStore, out: Path, precision: str) -> np.ndarray:
    config = TrainConfig.model_validate(
        {
            "members": 1,
            "epochs": 6,
            "precision": precision,
            "network": {"width": 1 / 8},
            "data": {"batch_size": 16},
        }
    )
    train(store, config, out)
    return np.genfromtxt(out / "metrics.csv", delimiter=",", names=True)["loss"]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.02), ("bfloat16", 0.05)])
def test_graphs_and_resident_samples_train_as_the_plain_loop_does(
    image_store: SampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    tolerance: float,
) -> None:
    fast = losses(image_store, tmp_path / "fast", precision)
    monkeypatch.setenv("ESAD_PLAIN", "all")
    plain = losses(image_store, tmp_path / "plain", precision)
    assert len(fast) == 6
    np.testing.assert_allclose(fast, plain, rtol=tolerance)


def test_a_compiled_network_trains_as_the_plain_one_does(
    image_store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member, "_STEPS_COMPILED", 1)
    compiled = losses(image_store, tmp_path / "compiled", "bfloat16")
    monkeypatch.setenv("ESAD_PLAIN", "all")
    plain = losses(image_store, tmp_path / "plain", "bfloat16")
    np.testing.assert_allclose(compiled, plain, rtol=0.05)


def test_a_loss_that_is_not_finite_is_found_within_the_epoch(
    image_store: SampleStore, tmp_path: Path
) -> None:
    settings = {"optimizer": {"lr": 1e30}, "members": 1, "epochs": 2, "precision": "float32"}
    with pytest.raises(Exception, match="is not finite"):
        train(image_store, TrainConfig.model_validate(settings), tmp_path / "d")
