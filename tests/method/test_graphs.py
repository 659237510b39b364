"""Training on CUDA: the fast paths against the plain ones."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from esad_med.base.errors import ModelError
from esad_med.base.store import SampleStore
from esad_med.method.batches import TrainingBatches
from esad_med.method.config import TrainConfig
from esad_med.method.folds import Fold
from esad_med.method.graphs import GraphedStep
from esad_med.method.losses import EsadLoss, Target
from esad_med.method.networks import ImageNetworkSpec, build_network, place
from esad_med.method.trainer import train
from esad_med.method.transforms import InputTransform

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


def settings(**changes: object) -> TrainConfig:
    start = {"members": 1, "epochs": 6, "network": {"width": 1 / 8}, "data": {"batch_size": 16}}
    return TrainConfig.model_validate({**start, **changes})


def test_a_replayed_step_has_the_gradients_of_a_plain_one(cuda: torch.device) -> None:
    torch.manual_seed(0)
    network = place(build_network(ImageNetworkSpec(width=1 / 8)), cuda)
    parameters = list(network.parameters())
    loss_function = EsadLoss(settings().loss)

    def backward(x: torch.Tensor, target: Target) -> torch.Tensor:
        loss = loss_function(network(x), target)
        loss.backward()
        return loss.detach()

    def draw(count: int) -> tuple[torch.Tensor, Target]:
        x = torch.rand((count, 3, 32, 32), device=cuda).contiguous(
            memory_format=torch.channels_last
        )
        return x, Target(x, torch.where(torch.arange(count, device=cuda) < count - 2, 1.0, -1.0))

    step = GraphedStep(backward, parameters)
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        for count in (12, 12, 12, 12, 12, 7, 12):  # plain three times, captured, a smaller batch
            x, target = draw(count)
            loss = step(x, target).clone()
            found = [p.grad.clone() for p in parameters if p.grad is not None]
            network.zero_grad(set_to_none=True)
            expected = backward(x, target)
            torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
            for one, p in zip(found, parameters, strict=True):
                torch.testing.assert_close(one, p.grad, rtol=1e-3, atol=1e-4)


def test_samples_on_the_device_make_the_batches_that_copied_ones_make(
    cuda: torch.device, image_store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = Fold(*(np.arange(a, b) for a, b in ((0, 40), (48, 56), (40, 48), (56, 60))))
    transform = InputTransform(value_range=(0, 255), image=True)

    def draw() -> list[torch.Tensor]:
        batches = TrainingBatches(
            image_store.samples, fold, settings(), transform=transform, device=cuda, member=0
        )
        return [batches.prepare_batch(batch, cuda)[0] for batch in batches]

    fast = draw()
    monkeypatch.setenv("ESAD_PLAIN", "device")
    plain = draw()
    assert len(fast) == 3
    assert all(torch.equal(a, b) for a, b in zip(fast, plain, strict=True))


def test_all_fast_paths_together_learn_as_the_plain_loop_does(
    image_store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(out: Path) -> np.ndarray:
        train(image_store, settings(), out)
        return np.genfromtxt(out / "metrics.csv", delimiter=",", names=True)["loss"]

    fast = losses(tmp_path / "fast")
    monkeypatch.setenv("ESAD_PLAIN", "all")
    plain = losses(tmp_path / "plain")
    np.testing.assert_allclose(fast, plain, atol=0.2)  # 18 steps of Adam part ways by rounding
    assert all(b < a for a, b in pairwise(fast))


def test_a_loss_that_is_not_finite_is_found_within_the_epoch(
    image_store: SampleStore, tmp_path: Path
) -> None:
    config = settings(optimizer={"lr": 1e30}, epochs=2, precision="float32")
    with pytest.raises(ModelError, match=r"epoch 1: .* is not finite"):
        train(image_store, config, tmp_path / "d")
