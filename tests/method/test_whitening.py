"""Whitening of colors and of the scored latent: fitted to training normals, off unless asked."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from esad_med.base.store import SampleStore
from esad_med.base.store_writing import write_store
from esad_med.method.config import TrainConfig
from esad_med.method.datasets import choose_training_set
from esad_med.method.detector import Detector
from esad_med.method.folds import Fold, split_folds
from esad_med.method.member import Member, MemberData, held_out_terms
from esad_med.method.networks import ImageNetwork, ImageNetworkSpec, build_network
from esad_med.method.problem import network_spec
from esad_med.method.trainer import train
from esad_med.method.transforms import InputTransform
from esad_med.method.whitening import SCALE, LatentWhitening, Whitening, fit_whitening

MakeStore = Callable[..., SampleStore]
WHITENING = ("mean", "matrix")


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


def test_the_scored_latent_has_the_distance_of_mahalanobis() -> None:
    torch.manual_seed(0)
    z = torch.randn(500, 4) @ torch.randn(4, 4) + 3
    module = LatentWhitening(4, of="z")
    module.fit(z)
    found = torch.linalg.vector_norm(module((z, z, 0 * z)), dim=1).square()
    expected = LedoitWolf().fit(z.numpy()).mahalanobis(z.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_map_is_whitened_position_by_position() -> None:
    torch.manual_seed(0)
    z_hat = torch.randn(50, 4, 2, 3)
    module = LatentWhitening(4, of="z_hat")
    module.fit(z_hat)
    out = module((z_hat + 1, z_hat, z_hat))
    assert out.shape == z_hat.shape
    torch.testing.assert_close(out[:, :, 1, 2], module((z_hat,) * 3)[:, :, 1, 2])
    one = z_hat[:, :, 1, 2]
    torch.testing.assert_close(out[:, :, 1, 2], module((one, one, one)))


def test_until_it_is_fitted_the_latent_is_as_it_is() -> None:
    z, z_hat = torch.randn(2, 3, 4)
    assert torch.equal(LatentWhitening(4, of="z_hat")((z, z, z_hat)), z_hat)


def test_latents_that_never_vary_give_finite_distances() -> None:
    module = LatentWhitening(3, of="z")
    module.fit(torch.ones(20, 3))
    assert module((torch.ones(2, 3) + 1e-3,) * 3).isfinite().all()


@pytest.fixture
def varied_store(image_store: SampleStore, tmp_path: Path) -> SampleStore:
    """The pictures of `image_store` with contents that differ, so that latents do."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 255, (60, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    x = np.clip(coarse + image_store.samples[:] // 10, 0, 255).astype(np.uint8)
    keys = ("kind", "modality", "value_range", "mpp", "preparation")
    contract = {key: image_store.contract[key] for key in keys}
    return write_store(tmp_path / "varied", x, image_store.rows, contract)


@pytest.mark.parametrize(
    ("kind", "distance"), [("upright", "z"), ("vector", "z"), ("vector", "z_hat")]
)
def test_a_detector_scores_the_distance_from_the_normals_it_was_trained_on(
    varied_store: SampleStore, vector_store: MakeStore, tmp_path: Path, kind: str, distance: str
) -> None:
    store = varied_store if kind == "upright" else vector_store()
    config = TrainConfig.model_validate(
        {
            "kind": kind,
            "network": {"width": 1 / 16, "distance": distance},
            "epochs": 5,
            "members": 2,
            "precision": "float32",
            "ema": 0,
        }
    )
    detector = train(store, config, tmp_path / "detector")
    chosen = detector.latents(store.samples)[0 if distance == "z" else 1]  # of the first member
    mean, matrix = (detector.weights[f"member0.scored.{name}"].numpy() for name in WHITENING)
    rows = chosen.reshape(len(chosen), len(mean), -1)  # (n, c, positions)
    fold = split_folds(
        choose_training_set(store, config.data, seed=config.seed),
        store.rows,
        count=2,
        validation=config.data.validation,
        seed=config.seed,
    )[0]
    assert len(fold.held_normals)
    of_normals = rows[fold.normals].mean((0, 2))
    np.testing.assert_allclose(mean, of_normals, rtol=1e-3, atol=1e-6)
    off = np.abs(mean - of_normals).max()
    others = rows[np.concatenate([fold.normals, fold.held_normals])].mean((0, 2))
    assert off < 0.1 * np.abs(mean - others).max()  # what was held out is not in it
    whitened = np.einsum("ij,njp->nip", matrix, rows - mean[:, None])
    found = detector.terms(store.samples).norm[0]
    np.testing.assert_allclose(found, np.sqrt((whitened**2).sum((1, 2))), rtol=1e-2)
    again = Detector.load(tmp_path / "detector")
    own = detector.score(store.samples)
    np.testing.assert_array_equal(again.score(store.samples).score, own.score)


@pytest.mark.parametrize(("kind", "distance"), [("upright", "z"), ("vector", "z_hat")])
def test_a_distance_does_not_hang_on_the_batch_or_the_precision(
    varied_store: SampleStore, vector_store: MakeStore, tmp_path: Path, kind: str, distance: str
) -> None:
    store = varied_store if kind == "upright" else vector_store()
    network = {"width": 1 / 16, "distance": distance}
    values = {"kind": kind, "network": network, "epochs": 5, "members": 1, "ema": 0}
    detector = train(store, TrainConfig.model_validate(values), tmp_path / "detector")
    own = detector.score(store.samples)
    one_by_one = detector.score(store.samples, batch_size=1)
    np.testing.assert_allclose(one_by_one.score, own.score, atol=1e-4)
    rounded = detector.score(store.samples, precision="bfloat16")
    np.testing.assert_array_equal(rounded.score, own.score)
    exact = detector.score(store.samples, precision="float64")
    np.testing.assert_allclose(exact.score, own.score, atol=1e-4)
    card = (tmp_path / "detector" / "README.md").read_text()
    assert f"the Mahalanobis distance of {distance}" in card


def test_while_it_trains_the_norm_of_z_hat_is_judged(image_store: SampleStore) -> None:
    config = TrainConfig.model_validate({"kind": "upright", "network": {"width": 1 / 16}})
    transform = InputTransform(value_range=image_store.value_range, image=True)
    fold = Fold(*(np.arange(48),) * 2, *(np.arange(48),) * 2)
    data = MemberData(image_store.samples, fold, transform)
    spec = network_spec(image_store.samples.shape[1:], config, source="store")
    network = build_network(spec).eval()
    found = held_out_terms(network, data, np.arange(5), config).norm
    with torch.inference_mode():
        z_hat = network(transform(image_store.samples[:5].copy())).z_hat
    np.testing.assert_allclose(found, z_hat.flatten(1).norm(dim=1), rtol=1e-4)
