"""Whitening: decorrelated channels, the same before and after saving, off where it is not asked."""

from pathlib import Path

import torch

from esad_med.base.store import SampleStore
from esad_med.method.config import TrainConfig
from esad_med.method.datasets import choose_training_set
from esad_med.method.folds import Fold, split_folds
from esad_med.method.member import Member, MemberData
from esad_med.method.networks import ImageNetwork, ImageNetworkSpec, build_network
from esad_med.method.problem import network_spec
from esad_med.method.transforms import InputTransform
from esad_med.method.whitening import SCALE, Whitening, fit_whitening


def stained(count: int = 20) -> torch.Tensor:
    """Pictures whose channels nearly agree, as red, green and blue of tissue do."""
    torch.manual_seed(0)
    common = torch.randn(count, 1, 16, 16)
    return 0.3 + 0.5 * common + 0.05 * torch.randn(count, 3, 16, 16)


def test_fitted_channels_are_uncorrelated_and_of_equal_variance() -> None:
    network = build_network(ImageNetworkSpec(width=1 / 16, whiten=True))
    assert isinstance(network, ImageNetwork)
    x = stained()
    fit_whitening(network, x)
    for encoder in (network.encoder1, network.encoder2):
        channels = encoder.whitening(x).permute(1, 0, 2, 3).flatten(1)
        torch.testing.assert_close(channels.mean(1), torch.zeros(3), atol=1e-4, rtol=0)
        expected = SCALE**2 * torch.eye(3)
        torch.testing.assert_close(torch.cov(channels), expected, atol=1e-3, rtol=0)


def test_a_channel_that_never_varies_is_not_blown_up() -> None:
    whitening = Whitening(3)
    x = stained()
    x[:, 2] = 0.25
    fit_whitening(whitening, x)
    out = whitening(x + 1e-3)
    assert torch.isfinite(out).all()
    assert out.abs().max() < 10


def test_it_is_off_unless_asked_for() -> None:
    network = build_network(ImageNetworkSpec(width=1 / 16))
    assert not any("whitening" in name for name in network.state_dict())


def test_a_member_fits_it_to_its_own_training_normals(
    image_store: SampleStore, tmp_path: Path
) -> None:
    config = TrainConfig.model_validate({"network": {"width": 1 / 16}, "epochs": 1})
    chosen = choose_training_set(image_store, config.data, seed=0)
    transform = InputTransform(value_range=image_store.value_range, image=True)

    def fitted(fold: Fold) -> tuple[torch.Tensor, torch.Tensor]:
        member = Member(
            0,
            MemberData(image_store.samples, fold, transform),
            config,
            network_spec(image_store.samples.shape[1:], config, source="store"),
            device=torch.device("cpu"),
            bfloat16=False,
            checkpoints=tmp_path,
        )
        state = member.weights()
        mean = transform(image_store.samples[fold.normals]).mean((0, 2, 3))
        return state["encoder2.whitening.mean"], mean

    for fold in split_folds(chosen, image_store.rows, count=2, validation=0.2, seed=0):
        found, expected = fitted(fold)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
