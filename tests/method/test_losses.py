"""Eqs. 9, 14, 15, 16 against numbers computed by hand, and where their gradients push."""

import numpy as np
import pytest
import torch
from torch import Tensor

from esad_med.method.losses import (
    EsadLoss,
    LossSpec,
    Target,
    assistance_loss,
    norm_loss,
    reconstruction_loss,
)
from esad_med.method.networks import EsadOutput
from esad_med.method.terms import latent_norm, reconstruction_error, residual_map

Y = torch.tensor([1.0, 1.0, -1.0])
# ‖z_hat‖ = 5, 13, 2
Z_HAT = torch.tensor([[3.0, 4.0], [5.0, 12.0], [0.0, 2.0]])


def test_eq_9_is_the_sum_of_the_two_groups_means() -> None:
    x_hat = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 1.0]])
    target = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    # squared: 2, 4, 10 -> sum: (2 + 4) / 2 + 10 = 13; mean over 2 elements: 6.5
    assert reconstruction_loss(x_hat, target, Y, reduction="sum") == pytest.approx(13)
    assert reconstruction_loss(x_hat, target, Y, reduction="mean") == pytest.approx(6.5)


def test_eq_9_without_outliers_in_the_batch_is_the_normals_mean() -> None:
    x_hat, y = torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0])
    assert reconstruction_loss(x_hat, torch.zeros(2, 1), y) == pytest.approx(5)


def test_eq_14_by_hand() -> None:
    # (5 + 13 + 1/2) / 3
    assert norm_loss(Z_HAT, Y, eps=1e-12) == pytest.approx(18.5 / 3)
    # groups: (5 + 13) / 2 + 1/2
    assert norm_loss(Z_HAT, Y, eps=1e-12, averaging="groups") == pytest.approx(9.5)
    # rms: each norm / sqrt(2), the inverse times sqrt(2)
    rms = (18 / np.sqrt(2) + np.sqrt(2) / 2) / 3
    assert norm_loss(Z_HAT, Y, eps=1e-12, norm="rms") == pytest.approx(rms)


def test_variants_of_eq_14_by_hand() -> None:
    log = (np.log(5) + np.log(13) - np.log(2)) / 3
    assert norm_loss(Z_HAT, Y, eps=1e-12, push="log") == pytest.approx(log)
    # margin 4: 1/2 - 1/4; margin 1: an outlier of norm 2 is beyond it
    assert norm_loss(Z_HAT, Y, eps=1e-12, margin=4) == pytest.approx(18.25 / 3)
    assert norm_loss(Z_HAT, Y, eps=1e-12, margin=1) == pytest.approx(18 / 3)
    log_margin = (np.log(5) + np.log(13) - np.log(2) + np.log(4)) / 3
    assert norm_loss(Z_HAT, Y, eps=1e-12, push="log", margin=4) == pytest.approx(log_margin)
    assert norm_loss(Z_HAT, Y, eps=1e-12, outlier_weight=4) == pytest.approx(20 / 3)


def test_eq_14_flattens_maps_and_pools_on_request() -> None:
    z_hat = torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]]])  # (1, 2, 1, 2)
    assert latent_norm(z_hat).item() == pytest.approx(np.sqrt(18))
    assert latent_norm(z_hat, pool=True).item() == pytest.approx(np.sqrt(8))  # means 2 and 2
    assert latent_norm(z_hat, norm="rms").item() == pytest.approx(np.sqrt(18 / 4))


def test_eq_14_stays_finite_at_the_origin() -> None:
    z_hat = torch.zeros(2, 3, requires_grad=True)
    loss = norm_loss(z_hat, torch.tensor([1.0, -1.0]), eps=1e-3)
    loss.backward()
    assert loss.item() == pytest.approx(500)
    assert z_hat.grad is not None
    assert torch.isfinite(z_hat.grad).all()


def test_eq_15_by_hand() -> None:
    z_hat, z = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 4.0]])
    assert assistance_loss(z_hat, z, reduction="sum") == pytest.approx((5 + 16) / 2)
    assert assistance_loss(z_hat, z) == pytest.approx((2.5 + 8) / 2)


def test_eq_16_adds_the_weighted_terms() -> None:
    output = EsadOutput(z=torch.zeros(3, 2), x_hat=torch.ones(3, 2), z_hat=Z_HAT)
    spec = LossSpec(lambda1=0.5, lambda2=2, eps=1e-12)
    loss = EsadLoss(spec)
    value = loss(output, Target(torch.zeros(3, 2), Y))
    # Eq. 9: 1 + 1; Eq. 15: mean over samples of 25/2, 169/2, 4/2
    expected = 2 + 0.5 * 18.5 / 3 + 2 * (25 + 169 + 4) / 6
    assert value == pytest.approx(expected)
    assert loss.terms is not None
    assert [t.item() for t in loss.terms] == pytest.approx([2, 18.5 / 3, 33])


@pytest.mark.parametrize("push", ["inverse", "log"])
def test_norm_gradients_pull_normals_in_and_push_outliers_out(push: str) -> None:
    z_hat = Z_HAT.clone().requires_grad_()
    norm_loss(z_hat, Y, push=push).backward()  # type: ignore[arg-type]
    step = _norms(z_hat.detach() - 0.1 * z_hat.grad)  # type: ignore[operator]
    before = _norms(Z_HAT)
    assert (step[:2] < before[:2]).all()
    assert step[2] > before[2]


def test_reconstruction_gradients_lead_to_the_target() -> None:
    x_hat = torch.zeros(2, 2, requires_grad=True)
    target = torch.tensor([[1.0, 1.0], [-1.0, 2.0]])
    y = torch.tensor([1.0, -1.0])
    reconstruction_loss(x_hat, target, y).backward()
    moved = x_hat.detach() - 0.1 * x_hat.grad  # type: ignore[operator]
    before = reconstruction_error(x_hat.detach(), target)
    assert (reconstruction_error(moved, target) < before).all()


def test_assistance_gradients_reach_both_encoders() -> None:
    z_hat = torch.ones(1, 2, requires_grad=True)
    z = torch.zeros(1, 2, requires_grad=True)
    assistance_loss(z_hat, z).backward()
    assert z_hat.grad is not None
    assert (z_hat.grad > 0).all()
    assert z.grad is not None
    assert (z.grad < 0).all()


def test_residual_map_is_the_mean_over_channels() -> None:
    x_hat = torch.zeros(1, 2, 1, 2)
    x = torch.tensor([[[[1.0, 0.0]], [[3.0, 2.0]]]])
    assert residual_map(x_hat, x).tolist() == [[[5.0, 2.0]]]


def _norms(z: Tensor) -> Tensor:
    return z.norm(dim=1)
