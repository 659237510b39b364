"""Optimizer, learning rate as a function of the step, and the running mean of the weights."""

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from esad_med.method.config import OptimizerConfig
from esad_med.method.networks import Network


def make_optimizer(
    parameters: Iterable[tuple[Tensor, bool]], config: OptimizerConfig, *, fused: bool = False
) -> torch.optim.Optimizer:
    """The configured optimizer.

    Args:
        parameters: each with whether weight decay applies: to weights, not to biases and norms.
        config: the settings.
        fused: update all weights by one kernel; for CUDA.
    """
    pairs = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p, decays in pairs if decays], "weight_decay": config.weight_decay},
        {"params": [p for p, decays in pairs if not decays], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, fused=fused)


def learning_rate(step: int, steps_per_epoch: int, epochs: int, config: OptimizerConfig) -> float:
    """The rate of a step (0, 1, ...): a function of the step alone, so resuming changes nothing.

    constant; halve: divided by 2 every ``halve_every`` epochs (the paper); cosine: down to 0;
    onecycle: up from a tenth over a quarter of the steps, then cosine.
    """
    share = step / max(1, steps_per_epoch * epochs)
    if config.schedule == "halve":
        factor = 0.5 ** (step // steps_per_epoch // config.halve_every)
    elif config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * share))
    elif config.schedule == "onecycle" and share < 0.25:
        factor = 0.1 + 0.9 * share / 0.25
    elif config.schedule == "onecycle":
        factor = 0.5 * (1 + math.cos(math.pi * (share - 0.25) / 0.75))
    else:
        factor = 1.0
    return config.lr * factor * min(1.0, (step + 1) / (config.warmup + 1))


def average_decay(steps: int, decay: float) -> float:
    """The decay of the running mean at its step 1, 2, ...: a warm start up to ``decay``."""
    return min(decay, (1 + steps) / (10 + steps))


def clip_each(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Clip the gradients of k stacked networks apart, each to its own norm; the norms, (k,).

    The arithmetic of `torch.nn.utils.clip_grad_norm_`.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    each = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
    size: Tensor = torch.linalg.vector_norm(each, dim=0)  # (k,)
    factor = (limit / (size + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))
    return size


class WeightAverage:
    """Exponential running mean of weights and batch-norm statistics, with a warm start.

    Attributes:
        network: a copy of the network that holds the mean, None when it is off (decay 0).
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.network = copy.deepcopy(network).eval() if decay else None
        kept = self.network.state_dict().values() if self.network else []
        # state_dict shares memory with the network, so these stay valid while it trains
        self._means = [mean for mean in kept if mean.is_floating_point()]
        self._now = [now for now in network.state_dict().values() if now.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of this step."""
        self.steps += 1
        decay = average_decay(self.steps, self.decay)
        if self.network:
            torch._foreach_lerp_(self._means, self._now, 1 - decay)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        weights: dict[str, Tensor] = self.network.state_dict() if self.network else {}
        return {"steps": self.steps, "weights": weights}

    def load(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.steps = int(state["steps"])
        if self.network:
            self.network.load_state_dict(state["weights"])
