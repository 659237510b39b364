"""The deep baselines: what they learn, their losses by hand, and what they refuse."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from esad_med.base.errors import CaseError, ModelError
from esad_med.baselines import training
from esad_med.baselines.autoencoder import Autoencoder, Cae
from esad_med.baselines.base import Baseline, BaselineSettings
from esad_med.baselines.catalog import make_baseline
from esad_med.baselines.deep_sad import DeepSad, deep_sad_loss
from esad_med.baselines.deep_svdd import DeepSvdd
from esad_med.baselines.hypersphere import _away_from_zero
from esad_med.baselines.networks import Decoder, Encoder
from esad_med.baselines.ss_dgm import M2, GaussianVae
from esad_med.baselines.training import train
from esad_med.method.scores import rank_auc

NAMES = ("cae", "deep-svdd", "deep-svdd-soft", "ss-dgm-m2", "ss-dgm-m1m2", "deep-sad", "supervised")
QUICK = BaselineSettings(
    hidden=(8, 4), epochs=30, pretrain_epochs=30, lr=3e-3, batch_size=32, dgm_latent=2,
    dgm_hidden=(8,), channels=(2, 2), dense=(8,), device="cpu",
)  # fmt: skip

Data = tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]


def blobs(normals: int = 150, outliers: int = 20, *, seed: int = 0) -> Data:
    """Normals on a plane of six dimensions, outliers off it."""
    rng = np.random.default_rng(seed)
    plane = np.linalg.qr(np.random.default_rng(9).normal(size=(6, 6)))[0]
    x = rng.normal(size=(normals + outliers, 6)) * [1, 1, 0.1, 0.1, 0.1, 0.1]
    x[normals:, 3] += 3
    y = np.repeat(np.array([1, -1], np.int8), [normals, outliers])
    return (x @ plane).astype(np.float32), y


def squares(normals: int = 120, outliers: int = 16, *, seed: int = 0) -> Data:
    """Dark noise; outliers carry a bright square."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 0.3, (normals + outliers, 1, 12, 12)).astype(np.float32)
    x[normals:, :, 3:8, 3:8] = 0.9
    return x, np.repeat(np.array([1, -1], np.int8), [normals, outliers])


def auc_of(baseline: Baseline, make: Callable[..., Data]) -> float:
    baseline.fit(*make())
    x, y = make(seed=1)
    scores = baseline.score(x)
    assert scores.shape == (len(x),)
    assert scores.dtype == np.float64
    return rank_auc(scores[y > 0], scores[y < 0])


@pytest.mark.parametrize("make", [blobs, squares])
@pytest.mark.parametrize("name", ["cae", "deep-svdd", "deep-sad", "supervised"])
def test_what_is_easily_told_apart_is_told_apart(name: str, make: Callable[..., Data]) -> None:
    assert auc_of(make_baseline(name, QUICK), make) > 0.9


@pytest.mark.parametrize("name", ["ss-dgm-m2", "ss-dgm-m1m2"])
def test_generative_models_learn_what_is_labeled(name: str) -> None:
    changes = {"dgm_alpha": 1.0, "epochs": 60, "dgm_latent": 4, "dgm_hidden": (16,)}
    settings = QUICK.model_copy(update=changes)
    assert auc_of(make_baseline(name, settings), blobs) > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_and_nothing_else_is_touched(name: str) -> None:
    settings = QUICK.model_copy(update={"epochs": 2, "pretrain_epochs": 2})
    data, scores = blobs(), []
    for own in (settings, settings, settings.model_copy(update={"seed": 1})):
        torch.rand(1)  # so that torch's own generator is elsewhere each time
        before = torch.get_rng_state()
        scores.append(make_baseline(name, own, None).fit(*data).score(data[0]))
        assert torch.equal(torch.get_rng_state(), before)
    assert (scores[0] == scores[1]).all()
    assert (scores[0] != scores[2]).any()


@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_depend_on_the_batch(name: str) -> None:
    settings = QUICK.model_copy(update={"epochs": 2, "pretrain_epochs": 2})
    x, y = blobs()
    baseline = make_baseline(name, settings).fit(x, y)
    single = np.concatenate([baseline.score(x[k : k + 1]) for k in range(5)])
    np.testing.assert_allclose(baseline.score(x)[:5], single, rtol=1e-3, atol=1e-5)


def test_a_given_autoencoder_is_used_as_it_is() -> None:
    x, y = blobs()
    shared = Autoencoder(QUICK).fit(x, y)
    weights = [p.clone() for p in shared.encoder.parameters()]
    assert (Cae(QUICK, shared).fit(x, y).score(x) == shared.errors(x)).all()
    own = DeepSad(QUICK, shared).fit(x, y)
    assert any(
        not torch.equal(p, q)
        for p, q in zip(own.encoder.parameters(), shared.encoder.parameters(), strict=True)
    )
    for old, new in zip(weights, shared.encoder.parameters(), strict=True):
        assert torch.equal(old, new)


def test_the_autoencoder_never_sees_labeled_outliers() -> None:
    x, y = blobs()
    moved = x.copy()
    moved[y < 0] *= 50
    first, second = Autoencoder(QUICK).fit(x, y), Autoencoder(QUICK).fit(moved, y)
    assert (first.encode(x) == second.encode(x)).all()


@pytest.mark.parametrize("side", [12, 28, 32, 30])
@pytest.mark.parametrize("channels", [(4, 2), (4, 2, 3)])
def test_the_decoder_mirrors_the_encoder(side: int, channels: tuple[int, ...]) -> None:
    settings = BaselineSettings(channels=channels, dense=(9, 5))
    encoder = Encoder((3, side, side), settings)
    x = torch.rand(4, 3, side, side)
    out = Decoder(encoder)(encoder(x))
    assert encoder(x).shape == (4, 5)
    assert out.shape == x.shape
    assert out.min() >= 0
    assert out.max() <= 1


def test_encoders_have_no_bias_and_no_learned_shift() -> None:
    for shape in ((7,), (1, 16, 16)):
        encoder = Encoder(shape, BaselineSettings())
        assert all(p.ndim > 1 for p in encoder.parameters())
        norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert norms
        assert not any(norm.affine for norm in norms)


def test_deep_sad_s_loss_by_hand() -> None:
    distances = torch.tensor([4.0, 0.5], requires_grad=True)
    y = torch.tensor([1.0, -1.0])
    loss = deep_sad_loss(distances, y, eta=3)
    assert loss.item() == pytest.approx((4 + 3 / 0.5) / 2, rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert distances.grad is not None
    assert distances.grad[0] > 0  # descending pulls the unlabeled in
    assert distances.grad[1] < 0  # and pushes the labeled away


def test_no_entry_of_the_center_is_near_zero() -> None:
    moved = _away_from_zero(torch.tensor([0.02, -0.02, 0.0, 0.7, -3.0]))
    torch.testing.assert_close(moved, torch.tensor([0.1, -0.1, 0.1, 0.7, -3.0]))


def test_a_share_of_nu_lies_beyond_the_soft_boundary() -> None:
    x, y = blobs(normals=150, outliers=5)
    settings = QUICK.model_copy(update={"epochs": 3, "soft_nu": 0.2})
    model = DeepSvdd(settings, soft=True).fit(x, y)
    assert (model.score(x[y > 0]) > 0).mean() == pytest.approx(0.2)
    named = make_baseline("deep-svdd-soft", settings).fit(x, y)
    assert (named.score(x) == model.score(x)).all()
    assert (DeepSvdd(settings).fit(x, y).score(x) > 0).all()


def test_the_soft_boundary_s_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """R² is 0 until the warm-up is over, then that of the batch: of distances 0 ... 4 here, 9."""
    model = DeepSvdd(BaselineSettings(soft_nu=0.25, soft_warmup=2), soft=True)
    monkeypatch.setattr(model, "distances", lambda x: x)
    squares = torch.tensor([0.0, 1.0, 4.0, 9.0, 16.0])
    assert model._loss(squares, squares, 1).item() == pytest.approx(6 / 0.25)
    assert float(model.squared_radius) == 0
    assert model._loss(squares, squares, 2).item() == pytest.approx(9 + (7 / 5) / 0.25)
    assert float(model.squared_radius) == pytest.approx(9)


@pytest.mark.parametrize("name", ["cae", "deep-svdd", "deep-svdd-soft"])
def test_unsupervised_methods_never_see_labeled_outliers(name: str) -> None:
    settings = QUICK.model_copy(update={"epochs": 2, "pretrain_epochs": 2})
    x, y = blobs()
    without = make_baseline(name, settings).fit(x[y > 0], y[y > 0]).score(x)
    assert (make_baseline(name, settings).fit(x, y).score(x) == without).all()


def test_m2_s_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of 1 for class 0 and 3 for class 1; a classifier that says 1/4 and 3/4."""
    model = M2(2, BaselineSettings(dgm_latent=1, dgm_hidden=(3,)), binary=False)
    monkeypatch.setattr(model, "_bound", lambda x, number: torch.full((len(x),), 1.0 + 2 * number))
    final = model.classifier[-1]
    assert isinstance(final, nn.Linear)
    with torch.no_grad():
        final.weight.zero_()
        final.bias.copy_(torch.tensor([0.25, 0.75]).log())
    x = torch.zeros(1, 2)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    unknown = model.loss(x, torch.tensor([1.0]), weight=2).item()
    assert unknown == pytest.approx(0.25 * 1 + 0.75 * 3 - entropy, rel=1e-5)
    known = model.loss(x, torch.tensor([-1.0]), weight=2).item()
    assert known == pytest.approx(3 - 2 * math.log(0.75), rel=1e-5)
    assert model.logit(x).item() == pytest.approx(math.log(3), rel=1e-5)


def test_the_vae_s_bound_by_hand() -> None:
    """With all weights zero: z is standard normal, so only the error of 0 against x is left."""
    vae = GaussianVae(2, BaselineSettings(dgm_latent=1, dgm_hidden=(3,)), classes=0, binary=False)
    for parameter in vae.parameters():
        nn.init.zeros_(parameter)
    assert vae.bound(torch.tensor([[3.0, 4.0]])).item() == pytest.approx(12.5)
    final = vae.encoder[-1]
    assert isinstance(final, nn.Linear)
    with torch.no_grad():
        final.bias.copy_(torch.tensor([2.0, math.log(4)]))  # z of mean 2 and variance 4
    divergence = (2**2 + 4 - 1 - math.log(4)) / 2
    assert vae.bound(torch.tensor([[3.0, 4.0]])).item() == pytest.approx(12.5 + divergence)
    nn.init.zeros_(final.bias)
    vae.binary = True
    assert vae.bound(torch.tensor([[1.0, 0.0]])).item() == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("name", ["ss-dgm-m2", "ss-dgm-m1m2", "supervised"])
def test_methods_that_need_labels_say_so(name: str) -> None:
    with pytest.raises(CaseError, match="found no labeled outliers"):
        make_baseline(name, QUICK).fit(*blobs(outliers=0))


@pytest.mark.parametrize("name", NAMES)
def test_damaged_values_are_refused(name: str) -> None:
    x, y = blobs()
    x[3, 2] = np.nan
    with pytest.raises(CaseError, match="sample 3, column 2: found nan"):
        make_baseline(name, QUICK).fit(x, y)


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    x, y = blobs()
    with pytest.raises(ModelError, match="autoencoder, epoch 1: the loss is not finite"):
        Autoencoder(QUICK).fit(x * 1e30, y)


def test_a_score_that_is_not_finite_names_its_sample() -> None:
    x, y = blobs()
    settings = QUICK.model_copy(update={"pretrain_epochs": 1})
    cae = Cae(settings).fit(x, y)
    x[3] = 1e30
    with pytest.raises(ModelError, match="sample 3: the network's output is not finite"):
        cae.score(x)


def test_read_only_samples_are_taken() -> None:
    settings = QUICK.model_copy(update={"epochs": 1, "pretrain_epochs": 1})
    x, y = blobs()
    expected = DeepSad(settings).fit(x, y).score(x)
    x.flags.writeable = False
    assert (DeepSad(settings).fit(x, y).score(x) == expected).all()


def test_the_rate_falls_to_a_tenth_after_the_milestone() -> None:
    """Where the gradient is constant, Adam steps by its rate."""
    weight = nn.Parameter(torch.zeros(()))
    settings = BaselineSettings(lr=0.01, lr_milestone=2, weight_decay=0)
    train(
        [weight], lambda *_: weight * 1.0, np.zeros((5, 1), np.float32), np.ones(5, np.int8),
        settings, epochs=4, device=torch.device("cpu"), method="a weight",
    )  # fmt: skip
    assert weight.item() == pytest.approx(-(2 * 0.01 + 2 * 0.001), rel=1e-4)


def test_every_epoch_takes_each_sample_once_in_another_order() -> None:
    seen: dict[int, list[float]] = {0: [], 1: []}
    weight = nn.Parameter(torch.zeros(()))

    def note(x: torch.Tensor, _: torch.Tensor, epoch: int) -> torch.Tensor:
        seen[epoch] += x[:, 0].tolist()
        return weight * x.sum()

    train(
        [weight], note, np.arange(10, dtype=np.float32)[:, None], np.ones(10, np.int8),
        BaselineSettings(batch_size=4), epochs=2, device=torch.device("cpu"), method="a weight",
    )  # fmt: skip
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(10))
    assert seen[0] != seen[1]


def test_ctrl_c_is_answered_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter([None, None, KeyboardInterrupt])

    def interrupt() -> None:
        if (stop := next(steps)) is not None:
            raise stop

    monkeypatch.setattr(training, "raise_if_interrupted", interrupt)
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        Autoencoder(QUICK).fit(*blobs())
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_decay_as_they_are_told() -> None:
    def way(decay: float) -> float:
        """How far Adam brings a weight, up a constant slope of 1 from 1."""
        weight = nn.Parameter(torch.ones(()))
        train(
            [weight], lambda *_: -weight, np.zeros((5, 1), np.float32), np.ones(5, np.int8),
            BaselineSettings(lr=0.01, weight_decay=decay), epochs=4, device=torch.device("cpu"),
            method="a weight",
        )  # fmt: skip
        return weight.item() - 1

    assert way(5.0) < 0 < way(0.0)


def test_the_center_is_the_mean_of_the_given_autoencoder_s_codes_of_unlabeled() -> None:
    settings = QUICK.model_copy(update={"epochs": 1, "pretrain_epochs": 2})
    x, y = blobs()
    shared = Autoencoder(settings.model_copy(update={"seed": 1})).fit(x, y)
    mean = torch.from_numpy(shared.encode(x[y > 0]).mean(0))
    torch.testing.assert_close(DeepSad(settings, shared).fit(x, y).center, _away_from_zero(mean))


@pytest.mark.parametrize("name", ["cae", "deep-svdd", "deep-sad"])
def test_an_autoencoder_of_its_own_is_the_one_that_is_shared(name: str) -> None:
    settings = QUICK.model_copy(update={"epochs": 2, "pretrain_epochs": 2})
    x, y = blobs()
    shared = make_baseline(name, settings, Autoencoder(settings).fit(x, y)).fit(x, y)
    assert (make_baseline(name, settings).fit(x, y).score(x) == shared.score(x)).all()


def test_a_larger_eta_carries_labeled_outliers_farther() -> None:
    settings = QUICK.model_copy(update={"epochs": 10})
    x, y = blobs()
    shared = Autoencoder(settings).fit(x, y)

    def distance(eta: float) -> float:
        own = settings.model_copy(update={"deep_sad_eta": eta})
        return float(np.median(DeepSad(own, shared).fit(x, y).score(x[y < 0])))

    assert distance(0.01) < distance(1) < distance(100)


def test_the_classifier_of_m2_weighs_by_the_labeled_share(monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[float] = []
    own = M2.loss

    def note(self: M2, x: torch.Tensor, y: torch.Tensor, *, weight: float) -> torch.Tensor:
        weights.append(weight)
        return own(self, x, y, weight=weight)

    monkeypatch.setattr(M2, "loss", note)
    settings = QUICK.model_copy(update={"epochs": 1, "dgm_alpha": 0.1})
    make_baseline("ss-dgm-m2", settings).fit(*blobs(normals=95, outliers=5))
    assert weights == [pytest.approx(0.1 * 0.95 / 0.05)] * 4


def test_images_too_small_for_the_poolings_are_refused() -> None:
    x, y = np.zeros((20, 1, 12, 3), np.float32), np.ones(20, np.int8)
    with pytest.raises(CaseError, match="images of 3x12 pixels: too small for 2 poolings"):
        Autoencoder(QUICK).fit(x, y)


def test_most_steps_end_the_training_early() -> None:
    few = QUICK.model_copy(update={"most_steps": 5, "pretrain_epochs": 1000})
    one = QUICK.model_copy(update={"pretrain_epochs": 1})
    x, y = blobs(normals=150, outliers=0)  # 5 steps an epoch
    assert (Autoencoder(few).fit(x, y).encode(x) == Autoencoder(one).fit(x, y).encode(x)).all()


def test_a_last_batch_of_one_sample_is_left_out() -> None:
    x, y = blobs(normals=33, outliers=0)
    assert np.isfinite(Cae(QUICK).fit(x, y).score(x)).all()
