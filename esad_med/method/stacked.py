"""Many small vector networks trained as one: the same steps as one by one, in batched products."""

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from esad_med.base.errors import ModelError
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.method.batches import TrainingBatches
from esad_med.method.config import TrainConfig
from esad_med.method.losses import Target, esad_loss
from esad_med.method.member import MemberData, diverged, initial_network
from esad_med.method.networks import NetworkSpec
from esad_med.method.optimization import average_decay, clip_each, learning_rate, make_optimizer

_MOST = 64  # networks at once: beyond it a step costs as much per network


class Unit(NamedTuple):
    """One network to train: a member of one problem."""

    data: MemberData
    config: TrainConfig
    network: NetworkSpec
    member: int


def can_stack(config: TrainConfig, spec: NetworkSpec) -> bool:
    """Whether networks of these settings can be trained together with the same result."""
    whole = config.patience is None and config.select == "last"
    return spec.kind == "vector" and spec.dropout == 0 and whole


def train_stacked(
    units: list[Unit], device: torch.device, *, on_epoch: Callable[[int, int], None]
) -> list[dict[str, Tensor] | ModelError]:
    """Train networks together where their batches have equal sizes; the weights of each.

    Every network has the initial weights, batches and random numbers that it has when trained by
    itself, so the weights differ by rounding alone. One that diverges leaves the others as they
    are; it comes back as the error that it would have raised.

    Args:
        units: the networks, for which `can_stack` holds.
        device: where to compute.
        on_epoch: called with networks and epochs in all that were trained since the last call.
    """
    stacks: dict[str, list[int]] = {}
    batches = [_batches(unit, device) for unit in units]
    for index, (unit, own) in enumerate(zip(units, batches, strict=True)):
        settings = unit.config.model_dump_json(exclude={"seed", "members", "fusion"})
        stacks.setdefault(f"{unit.network} {settings} {own.sizes}", []).append(index)
    found: dict[int, dict[str, Tensor] | ModelError] = {}
    for chosen in stacks.values():
        for start in range(0, len(chosen), _MOST):
            part = chosen[start : start + _MOST]
            stack = _Stack([units[i] for i in part], [batches[i] for i in part], device)
            found.update(zip(part, stack.train(on_epoch), strict=True))
    return [found[index] for index in range(len(units))]


class _Stack:
    """Networks of one shape with their parameters stacked, (k, ...) each."""

    def __init__(
        self, units: list[Unit], batches: list[TrainingBatches], device: torch.device
    ) -> None:
        self.units = units
        self.batches = batches
        self.device = device
        self.config = units[0].config
        networks = [initial_network(u.network, u.config, u.member, device) for u in units]
        self.network = copy.deepcopy(networks[0]).to("meta").train()
        self.parameters, self.buffers = torch.func.stack_module_state(networks)
        pairs = [(t, t.ndim > 2) for t in self.parameters.values()]
        self.optimizer = make_optimizer(pairs, self.config.optimizer)
        self.epochs = self.config.planned_epochs(len(batches[0]))
        decay = self.config.ema
        kept = {**self.parameters, **self.buffers}
        self.average = {n: t.detach().clone() for n, t in kept.items()} if decay else None
        self.steps = 0
        self.failed: dict[int, tuple[int, str]] = {}  # network -> epoch and what was not finite

    def train(self, on_epoch: Callable[[int, int], None]) -> list[dict[str, Tensor] | ModelError]:
        for epoch in range(1, self.epochs + 1):
            for batches in self.batches:
                batches.start_epoch(epoch)
            finite = torch.ones(len(self.units), dtype=torch.bool, device=self.device)
            for x, target in self._steps():
                raise_if_interrupted()
                finite &= self._step(x, target)
            self._note(finite, epoch, "the loss or the gradient")
            on_epoch(len(self.units), self.epochs)
        state = self.average or {**self.parameters, **self.buffers}
        finite = torch.stack([t.isfinite().view(len(t), -1).all(1) for t in state.values()]).all(0)
        self._note(finite, self.epochs, "the weights")
        return [
            diverged(unit.member, *self.failed[k])
            if k in self.failed
            else {n: t[k].detach().cpu().clone() for n, t in state.items()}
            for k, unit in enumerate(self.units)
        ]

    def _steps(self) -> Iterator[tuple[Tensor, Target]]:
        """Every network's next batch, stacked: x and its target (k, b, d), y (k, b)."""
        for together in zip(*self.batches, strict=True):
            prepared = [
                own.prepare_batch(batch, self.device)
                for own, batch in zip(self.batches, together, strict=True)
            ]
            x = torch.stack([x for x, _ in prepared])
            y = torch.stack([target.y for _, target in prepared])
            yield x, Target(torch.stack([target.x for _, target in prepared]), y)

    def _step(self, x: Tensor, target: Target) -> Tensor:
        """One step of every network; which of them had a finite loss and gradient, (k,)."""
        config = self.config
        rate = learning_rate(self.steps, len(self.batches[0]), self.epochs, config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        losses = torch.vmap(self._loss)(self.parameters, self.buffers, x, target.x, target.y)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        finite = losses.detach().isfinite()
        if config.optimizer.clip is not None:
            finite &= clip_each(self.parameters.values(), config.optimizer.clip).isfinite()
        self.optimizer.step()
        self.steps += 1
        if self.average:
            weight = 1 - average_decay(self.steps, config.ema)
            for name, now in {**self.parameters, **self.buffers}.items():
                if now.is_floating_point():
                    self.average[name].lerp_(now.detach(), weight)
        return finite

    def _loss(
        self,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        x: Tensor,
        target: Tensor,
        y: Tensor,
    ) -> Tensor:
        output = torch.func.functional_call(self.network, (parameters, buffers), (x,))
        wrong = self.config.target.exists
        return esad_loss(output, Target(target, y), self.config.loss, wrong_targets=wrong)[0]

    def _note(self, finite: Tensor, epoch: int, what: str) -> None:
        for k in (~finite).nonzero().flatten().tolist():
            self.failed.setdefault(k, (epoch, what))


def _batches(unit: Unit, device: torch.device) -> TrainingBatches:
    samples, fold, transform = unit.data
    return TrainingBatches(
        samples, fold, unit.config, transform=transform, device=device, member=unit.member
    )
