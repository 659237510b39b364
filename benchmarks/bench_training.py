r"""Training of the image network against plain PyTorch loops: pictures per second.

    python -m benchmarks.bench_training [--device cuda] [--width 1] [--batch 32 256] [--steps 60]

Pictures of 64 x 64 x 3, random bytes. The peer is what one writes first: the same network in
float32 as PyTorch makes it, the same batches drawn and augmented by the same code, forward, loss,
backward, Adam. On CUDA PyTorch's convolutions round to TF32 by default; a second peer forbids
that. The bare loop is our own step (precision, layout, running mean of weights) without MONAI's
trainer. Best of three epochs each; the first, which warms up, is left out.
"""

import argparse
import os
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import torch
from monai.transforms import Compose

from esad_med.method.batches import TrainingBatches
from esad_med.method.config import TrainConfig
from esad_med.method.devices import computes_bfloat16
from esad_med.method.folds import Fold
from esad_med.method.losses import EsadLoss
from esad_med.method.member import Member, MemberData
from esad_med.method.networks import ImageNetworkSpec, build_network
from esad_med.method.transforms import InputTransform

EPOCHS = 4
MATMUL = 8192  # edge of the matrices whose product tells the ceiling, on CUDA
HELD = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--width", type=float, nargs="+", default=[1.0])
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--steps", type=int, default=6, help="in an epoch")
    options = parser.parse_args()
    device = torch.device(options.device)
    ceiling = matrix_rate(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()}"
    print(f"torch {torch.__version__}, {name} thread(s) or card", flush=True)
    print(f"matrix product in bfloat16: {ceiling / 1e12:.3g} TFLOP/s\n")
    print("| width | batch | how | pictures/s | ratio | share of the matrix rate |")
    print("|---|---|---|---|---|---|", flush=True)
    for width in options.width:
        work = 3 * forward_operations(width)  # backward is twice the forward pass
        for size in options.batch:
            data, first = pose(size, options.steps), 0.0
            for how, rate in measure(data, width, size, device):
                first = first or rate
                share = f"{rate * work / ceiling:.0%}"
                cells = (f"{width:g}", size, how, f"{rate:,.1f}", f"{rate / first:.2f}", share)
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def measure(data: MemberData, width: float, size: int, device: torch.device) -> Any:
    """Pictures per second of each way, the peer first."""
    yield "plain loop, float32", loop(data, configure(width, size), device)
    if device.type == "cuda":
        with mock.patch.object(torch.backends.cudnn, "allow_tf32", False):
            yield "plain loop, float32 without TF32", loop(data, configure(width, size), device)
    yield "bare loop, our step", bare(data, width, size, device)
    yield "ours, all fast paths off", train(data, width, size, device, plain="all")
    if device.type == "cuda":
        yield "ours", train(data, width, size, device, plain="")


def configure(width: float, size: int) -> TrainConfig:
    """The preset with one network."""
    values: dict[str, Any] = {"members": 1, "epochs": EPOCHS, "network": {"width": width}}
    values["data"] = {"batch_size": size, "outliers_per_batch": max(1, size // 8)}
    return TrainConfig.model_validate(values)


def pose(size: int, steps: int) -> MemberData:
    """Random pictures for so many steps; a few are held out."""
    count = size * steps
    samples = np.random.default_rng(0).integers(0, 256, (count + 4 * HELD, 64, 64, 3), np.uint8)
    marks = np.cumsum([0, count, 2 * HELD, HELD, HELD])
    parts = [np.arange(a, b) for a, b in pairwise(marks)]
    transform = InputTransform(value_range=(0.0, 255.0), image=True)
    return MemberData(samples, Fold(*parts), transform)


def loop(data: MemberData, config: TrainConfig, device: torch.device) -> float:
    """The peer: PyTorch's defaults, every kernel launched by itself, batches copied."""
    with switched("all"):
        batches = draw(data, config, device)
        network = build_network(ImageNetworkSpec(width=config.network.width)).to(device)
        optimizer, loss_function = torch.optim.Adam(network.parameters()), EsadLoss(config.loss)

        def step(batch: Any) -> None:
            x, target = batches.prepare_batch(batch, device)
            optimizer.zero_grad()
            loss_function(network(x), target).backward()
            optimizer.step()

        return best_epoch(batches, step, device)


def bare(data: MemberData, width: float, size: int, device: torch.device) -> float:
    """Our step without MONAI's engine and our handlers."""
    with switched("all"):
        own = make_member(data, width, size, device)
        own.network.train()

        def step(batch: Any) -> None:
            x, target = own.batches.prepare_batch(batch, device, non_blocking=True)
            own.optimizer.zero_grad()
            own._backward(x, target)
            own.optimizer.step()
            own.average.update()

        return best_epoch(own.batches, step, device)


def train(
    data: MemberData,
    width: float,
    size: int,
    device: torch.device,
    *,
    plain: str,
) -> float:
    """What `esad-med train` does for a network; the time of validation is left out."""
    with switched(plain):
        own = make_member(data, width, size, device)
        ends, starts = [], []
        validate = own._validate

        def timed(epoch: int) -> Any:
            synchronize(device)
            ends.append(time.perf_counter())
            return validate(epoch)

        with mock.patch.object(own, "_validate", timed):
            own.train(lambda _: starts.append(time.perf_counter()))
    seconds = [end - start for start, end in zip(starts[:-1], ends[1:], strict=True)]
    return float(sum(own.batches.sizes) / min(seconds))


def make_member(data: MemberData, width: float, size: int, device: torch.device) -> Member:
    return Member(
        0,
        data._replace(transform=Compose([data.transform])),
        configure(width, size),
        ImageNetworkSpec(width=width),
        device=device,
        bfloat16=computes_bfloat16(device),
        checkpoints=None,
    )


def draw(data: MemberData, config: TrainConfig, device: torch.device) -> TrainingBatches:
    return TrainingBatches(
        data.samples, data.fold, config, transform=data.transform, device=device, member=0
    )


def best_epoch(
    batches: TrainingBatches, step: Callable[[Any], None], device: torch.device
) -> float:
    seconds = []
    for _ in range(EPOCHS):
        synchronize(device)
        start = time.perf_counter()
        for batch in batches:
            step(batch)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return sum(batches.sizes) / min(seconds[1:])


@contextmanager
def switched(plain: str) -> Any:
    with mock.patch.dict(os.environ, {"ESAD_PLAIN": plain}):
        yield


def matrix_rate(device: torch.device) -> float:
    """Operations per second of a large matrix product in bfloat16."""
    edge = MATMUL if device.type == "cuda" else 2048
    a, b = (torch.randn((edge, edge), device=device, dtype=torch.bfloat16) for _ in range(2))
    best = np.inf
    with torch.inference_mode() if device.type == "cpu" else nullcontext():
        for _ in range(10):
            synchronize(device)
            start = time.perf_counter()
            a @ b
            synchronize(device)
            best = min(best, time.perf_counter() - start)
    return float(2 * edge**3 / best)


def forward_operations(width: float) -> int:
    """Floating-point operations of the convolutions for one picture of 64 x 64."""
    total = 0

    def count(module: torch.nn.Conv2d, _: Any, out: torch.Tensor) -> None:
        nonlocal total
        total += 2 * out.shape[2] * out.shape[3] * module.weight.numel()

    network = build_network(ImageNetworkSpec(width=width)).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 3, 64, 64))
    return total


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
