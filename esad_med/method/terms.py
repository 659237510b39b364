"""The two quantities that loss and score share, per sample, and the residual map."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from esad_med.base.config import Spec

Reduction = Literal["mean", "sum"]


class TermSpec(Spec):
    """How ‖·‖² and ‖z_hat‖ are taken: the same in training and in scoring."""

    reduction: Reduction = Field(
        "mean",
        description="‖·‖² of Eqs. 9, 15, 17 per element (mean) or literally (sum; it diverges).",
    )
    norm: Literal["l2", "rms"] = Field("l2", description="rms is l2 / sqrt(d).")
    pool: bool = Field(False, description="Average a latent map over its positions first.")
    lambda1: float = Field(1.0, ge=0, description="Weight of the norm term (Eqs. 16 and 17).")


def reconstruction_error(x_hat: Tensor, x: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """‖x_hat - x‖² of each sample (Eqs. 9 and 17), (n,).

    Args:
        x_hat: (n, ...), the reconstruction.
        x: (n, ...), what it is compared with.
        reduction: mean (ours) or sum (the paper's) over the elements.
    """
    squared = (x_hat.float() - x.float()).square().flatten(1)
    return squared.mean(1) if reduction == "mean" else squared.sum(1)


def latent_norm(z_hat: Tensor, *, norm: Literal["l2", "rms"] = "l2", pool: bool = False) -> Tensor:
    """‖z_hat‖ of each sample (Eqs. 14 and 17), (n,).

    Args:
        z_hat: second latent, (n, d) or (n, c, h, w); maps are flattened.
        norm: l2, or rms = l2 / sqrt(d).
        pool: average a map over its positions before the norm is taken (ours).
    """
    z_hat = z_hat.float()
    flat = z_hat.flatten(2).mean(2) if pool and z_hat.ndim > 2 else z_hat.flatten(1)
    length: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return length if norm == "l2" else length / flat.shape[1] ** 0.5


def residual_map(x_hat: Tensor, x: Tensor) -> Tensor:
    """Squared residual of each pixel, mean over channels: (n, c, h, w) -> (n, h, w)."""
    return (x_hat.float() - x.float()).square().mean(1)
