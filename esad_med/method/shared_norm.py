"""Batch norm over the samples that all ranks hold of a batch, on CPU and CUDA alike.

torch's own `SyncBatchNorm` exists on CUDA only. Mean and variance, and the gradients through them,
are those of the whole batch, so that sharing it out changes nothing but rounding.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Normalize(torch.autograd.Function):
    """(x - mean) / deviation * weight + bias, per channel of a batch that the ranks share."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        """Take x (n, c, ...); the result, and mean, variance and count of all, (c,)."""
        axes, shape = _layout(x)
        variance, mean = (
            torch.var_mean(x, axes, correction=0) if len(x) else x.new_zeros(2, x.shape[1])
        )
        own = torch.stack([mean.square() + variance, mean, torch.ones_like(mean)]).double()
        square, total, count = _sum_over_ranks(own * (x.numel() / x.shape[1]))
        mean = total / count
        variance = (square / count - mean.square()).clamp(min=0)
        mean, variance, count = mean.to(x.dtype), variance.to(x.dtype), count.to(x.dtype)
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        x_hat = (x - mean.view(shape)) * inverse.view(shape)
        return torch.addcmul(bias.view(shape), x_hat, weight.view(shape)), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        """As of torch's batch norm, with sums over all ranks; weight and bias have their part."""
        x, weight, mean, inverse, count = ctx.saved_tensors
        axes, shape = _layout(x)
        x_hat = (x - mean.view(shape)) * inverse.view(shape)
        own = torch.stack([gradient.sum(axes), (gradient * x_hat).sum(axes)])
        level, slope = _sum_over_ranks(own) / count
        inner = gradient - level.view(shape) - x_hat * slope.view(shape)
        return inner * (weight * inverse).view(shape), own[1], own[0], None


def _layout(x: Tensor) -> tuple[list[int], list[int]]:
    """The axes that are summed over, and the shape in which a (c,) meets x."""
    return [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _sum_over_ranks(values: Tensor) -> Tensor:
    total = values.clone()
    dist.all_reduce(total)
    return total


class SharedBatchNorm(_BatchNorm):
    """A batch norm with the weights and statistics of another one, in the same memory."""

    def __init__(self, alone: _BatchNorm) -> None:
        super().__init__(alone.num_features, eps=alone.eps, momentum=alone.momentum)
        self.weight, self.bias = alone.weight, alone.bias
        self.running_mean, self.running_var = alone.running_mean, alone.running_var
        self.num_batches_tracked = alone.num_batches_tracked

    def forward(self, input: Tensor) -> Tensor:
        """Take this rank's samples, (n, c) or (n, c, h, w)."""
        if not self.training:
            return super().forward(input)
        normalized, mean, variance, count = self._normalize(input.to(_at_least_float32(input)))
        self._remember(mean, variance * count / (count - 1))
        return normalized.to(input.dtype)

    def _normalize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor, Tensor] = _Normalize.apply(  # type: ignore[no-untyped-call] # torch's own
            x, self.weight, self.bias, self.eps
        )
        return found

    def _check_input_dim(self, input: Tensor) -> None:
        """The layer it stands for knew its samples."""

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        for kept, now in ((self.running_mean, mean), (self.running_var, variance)):
            assert kept is not None
            assert self.momentum is not None
            kept.lerp_(now, self.momentum)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)


def share_batch_norm(network: nn.Module) -> None:
    """Replace every batch norm of a network, in place."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, SharedBatchNorm(child))
