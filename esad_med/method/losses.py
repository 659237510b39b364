"""The training loss: Eq. 9 (reconstruction), 14 (norm), 15 (assistance) and their sum, Eq. 16."""

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from esad_med.method.networks import EsadOutput
from esad_med.method.terms import Reduction, TermSpec, latent_norm, reconstruction_error


class LossSpec(TermSpec):
    """The loss. What goes beyond the paper is marked as ours."""

    lambda2: float = Field(1.0, ge=0, description="Weight of the assistance term (Eq. 16).")
    eps: float = Field(1e-6, gt=0, description="Keeps the inverse norm finite (ours).")
    averaging: Literal["joint", "groups"] = Field(
        "joint",
        description="Norm term over N + M together (Eq. 14), or normals and outliers apart (ours).",
    )
    push: Literal["inverse", "log"] = Field(
        "inverse", description="‖z_hat‖^y (Eq. 14), or y log ‖z_hat‖ (ours)."
    )
    outlier_weight: float = Field(1.0, ge=0, description="Factor on outliers' norm term (ours).")
    margin: float | None = Field(
        None, gt=0, description="Outliers whose norm is beyond it are pushed no further (ours)."
    )


class Target(NamedTuple):
    """What the output of a batch is held against.

    Attributes:
        x: the input for normals, x_tilde for labeled outliers; the shape of the input.
        y: semi-label, (n,), +1 or -1.
        whole: the semi-labels of the whole batch, (N,), where this is one rank's share of it; the
            losses of all shares then add up to the loss of the whole batch.
    """

    x: Tensor
    y: Tensor
    whole: Tensor | None = None


class LossTerms(NamedTuple):
    """The three terms of Eq. 16 for a batch, before their weights; scalars."""

    reconstruction: Tensor
    norm: Tensor
    assistance: Tensor


def _group_mean(values: Tensor, members: Tensor, of: Tensor) -> Tensor:
    """The mean of the members (masks, (n,) and (N,) of the whole batch); 0 where it holds none."""
    weight = members.to(values.dtype)
    return (values * weight).sum() / of.to(values.dtype).sum().clamp(min=1)


def _mean(values: Tensor, whole: Tensor | None) -> Tensor:
    return values.mean() if whole is None else values.sum() / len(whole)


def reconstruction_loss(
    x_hat: Tensor,
    target: Tensor,
    y: Tensor,
    *,
    reduction: Reduction = "mean",
    whole: Tensor | None = None,
) -> Tensor:
    """Mutual-information term (Eq. 9): rebuild normals, rebuild labeled outliers wrongly.

    The mean over the batch's normals plus the mean over its labeled outliers.

    Args:
        x_hat: reconstruction, (n, ...).
        target: x for normals, x_tilde for labeled outliers, (n, ...).
        y: semi-label, (n,), +1 or -1.
        reduction: over the elements of a sample; sum is the paper's and diverges.
        whole: see `Target`.
    """
    error = reconstruction_error(x_hat, target, reduction=reduction)  # (n,)
    of = y if whole is None else whole
    return _group_mean(error, y > 0, of > 0) + _group_mean(error, y < 0, of < 0)


def norm_loss(
    z_hat: Tensor,
    y: Tensor,
    *,
    norm: Literal["l2", "rms"] = "l2",
    pool: bool = False,
    eps: float = 1e-6,
    averaging: Literal["joint", "groups"] = "joint",
    push: Literal["inverse", "log"] = "inverse",
    outlier_weight: float = 1.0,
    margin: float | None = None,
    whole: Tensor | None = None,
) -> Tensor:
    """Entropy term (Eq. 14): pull normals to the origin, push labeled outliers away.

    Args:
        z_hat: second latent, (n, d); maps are flattened per sample.
        y: semi-label, (n,), +1 or -1.
        norm: l2 as in the paper, or rms.
        pool: average maps over their positions first (ours).
        eps: keeps the inverse norm finite (ours, not the paper's).
        averaging: over all samples (Eq. 14), or over both groups apart (ours).
        push: inverse norm (Eq. 14), or plus and minus the logarithm (ours).
        outlier_weight: factor on the outliers' part (ours).
        margin: a norm beyond which an outlier costs nothing more (ours).
        whole: see `Target`.
    """
    length = latent_norm(z_hat, norm=norm, pool=pool)  # (n,)
    if push == "inverse":
        pull, away = length, 1 / (length + eps)
        rest = 0.0 if margin is None else 1 / (margin + eps)
    else:
        pull, away = torch.log(length + eps), -torch.log(length + eps)
        rest = 0.0 if margin is None else -math.log(margin + eps)
    if margin is not None:
        away = (away - rest).clamp(min=0)
    away = outlier_weight * away
    if averaging == "joint":
        return _mean(torch.where(y > 0, pull, away), whole)
    of = y if whole is None else whole
    return _group_mean(pull, y > 0, of > 0) + _group_mean(away, y < 0, of < 0)


def assistance_loss(
    z_hat: Tensor, z: Tensor, *, reduction: Reduction = "mean", whole: Tensor | None = None
) -> Tensor:
    """Consistency of the two encoders (Eq. 15): the mean over all samples of ‖z_hat - z‖².

    Args:
        z_hat: second latent, (n, d) or (n, c, h, w).
        z: first latent, likewise.
        reduction: over the elements of a sample.
        whole: see `Target`.
    """
    return _mean(reconstruction_error(z_hat, z, reduction=reduction), whole)


def esad_loss(
    output: EsadOutput, target: Target, spec: LossSpec, *, wrong_targets: bool = True
) -> tuple[Tensor, LossTerms]:
    """Eq. 16: reconstruction + lambda1 * norm + lambda2 * assistance, and the three terms.

    Args:
        output: of the network for a batch.
        target: what it is held against.
        spec: the loss.
        wrong_targets: without them labeled outliers take no part in the reconstruction (Table 5).
    """
    y, whole = target.y, target.whole
    rebuilt = y if wrong_targets else torch.where(y > 0, y, torch.zeros_like(y))
    terms = LossTerms(
        reconstruction_loss(output.x_hat, target.x, rebuilt, reduction=spec.reduction, whole=whole),
        norm_loss(
            output.z_hat,
            y,
            norm=spec.norm,
            pool=spec.pool,
            eps=spec.eps,
            averaging=spec.averaging,
            push=spec.push,
            outlier_weight=spec.outlier_weight,
            margin=spec.margin,
            whole=whole,
        ),
        assistance_loss(output.z_hat, output.z, reduction=spec.reduction, whole=whole),
    )
    return terms.reconstruction + spec.lambda1 * terms.norm + spec.lambda2 * terms.assistance, terms


class EsadLoss:
    """`esad_loss` as MONAI calls it.

    Attributes:
        terms: the three terms of the last batch, detached, for the log.
    """

    def __init__(self, spec: LossSpec, *, wrong_targets: bool = True) -> None:
        self.spec = spec
        self.wrong_targets = wrong_targets
        self.terms: LossTerms | None = None

    def __call__(self, output: EsadOutput, target: Target) -> Tensor:
        """The loss of a batch, a scalar."""
        loss, terms = esad_loss(output, target, self.spec, wrong_targets=self.wrong_targets)
        self.terms = LossTerms(*(term.detach() for term in terms))
        return loss
