"""The loop that all networks among the baselines are trained and applied with."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from esad_med.base.errors import ModelError
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.baselines.base import BaselineSettings, Floats, Labels
from esad_med.method.devices import choose_device

LossOf = Callable[[Tensor, Tensor, int], Tensor]
"""Loss of a batch from its samples, its semi-labels and the epoch 0, 1, ..."""

_APPLIED_AT_ONCE = 1024


@contextmanager
def seeded(settings: BaselineSettings) -> Iterator[torch.device]:
    """The device, with torch's generators seeded inside and as they were afterwards."""
    device = choose_device(settings.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(settings.seed)  # torch.manual_seed is every GPU's too
        if device.type == "cuda":
            torch.cuda.manual_seed(settings.seed)
        yield device


def train(
    parameters: Iterable[nn.Parameter],
    loss_of: LossOf,
    samples: Floats,
    y: Labels,
    settings: BaselineSettings,
    *,
    epochs: int,
    device: torch.device,
    method: str,
) -> None:
    """Adam over shuffled batches, its rate a tenth after the milestone.

    A last batch of one sample, which batch norm cannot take, is left out.

    Args:
        parameters: what is trained.
        loss_of: the loss of a batch.
        samples: (n, ...).
        y: semi-labels, (n,).
        settings: batch size, rate, decay, seed, most steps.
        epochs: passes over the samples.
        device: where to compute.
        method: who trains, for the message.

    Raises:
        ModelError: the loss is no longer finite.
    """
    x = _tensor(samples).to(device)
    labels = torch.from_numpy(np.asarray(y, np.float32)).to(device)
    optimizer = torch.optim.Adam(parameters, settings.lr, weight_decay=settings.weight_decay)
    size, count = settings.batch_size, len(x)
    starts = [start for start in range(0, count, size) if count - start > 1 or count == 1]
    if settings.most_steps is not None:
        epochs = max(1, min(epochs, settings.most_steps // len(starts)))
    random = np.random.default_rng((settings.seed, count))
    for epoch in range(epochs):
        if epoch == settings.lr_milestone:
            for group in optimizer.param_groups:
                group["lr"] *= 0.1
        order = torch.from_numpy(random.permutation(count)).to(device)
        total = torch.zeros((), device=device)
        for start in starts:
            raise_if_interrupted()
            rows = order[start : start + size]
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(x[rows], labels[rows], epoch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach()
        if not torch.isfinite(total):
            raise ModelError(
                f"{method}, epoch {epoch + 1}: the loss is not finite; lower baselines.lr"
            )


def apply(
    function: Callable[[Tensor], Tensor], samples: Floats, device: torch.device
) -> npt.NDArray[np.float32]:
    """A function of samples (n, ...), batch by batch without gradients, on the CPU.

    Raises:
        ModelError: a value that is not finite.
    """
    parts = []
    with torch.inference_mode():
        for start in range(0, len(samples), _APPLIED_AT_ONCE):
            raise_if_interrupted()
            batch = _tensor(samples[start : start + _APPLIED_AT_ONCE]).to(device)
            parts.append(function(batch).float().cpu().numpy())
    values = np.concatenate(parts)
    wrong = ~np.isfinite(values.reshape(len(values), -1)).all(1)
    if wrong.any():
        raise ModelError(
            f"sample {wrong.argmax()}: the network's output is not finite; expected samples scaled"
            " as those of the training, or train anew with a lower baselines.lr"
        )
    return values


def _tensor(samples: Floats) -> Tensor:
    """Samples as float32; copied only where the array is read-only or of another layout."""
    return torch.from_numpy(np.require(samples, np.float32, ["C", "W"]))
