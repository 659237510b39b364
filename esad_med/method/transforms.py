"""From stored samples to network input; x_tilde of labeled outliers; augmentation of a batch."""

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from esad_med.base.config import Spec
from esad_med.method.networks import STEP
from esad_med.method.scaling import Scaling

VIEWS = 8


class WrongTargetSpec(Spec):
    """x_tilde, the wrong target of labeled outliers (paper, section 3.3).

    With neither noise nor permutation there is none, and labeled outliers take no part in Eq. 9.
    """

    noise: float = Field(0.1, ge=0, description="σ of the Gaussian noise.")
    permute: bool = Field(True, description="Turn pictures, permute the dimensions of vectors.")
    draw: Literal["fresh", "fixed"] = Field(
        "fresh", description="Drawn anew each time, or once for each labeled outlier."
    )

    @property
    def exists(self) -> bool:
        """Whether labeled outliers have a wrong target at all."""
        return self.permute or self.noise > 0


class AugmentSpec(Spec):
    """Random changes of the training batches; none of them touches scoring."""

    flips: bool = Field(True, description="Mirror pictures at random.")
    rotations: bool = Field(True, description="Turn square pictures by multiples of 90 degrees.")
    shift: float = Field(
        0.0, ge=0, le=0.5, description="Move pictures by up to this share of a side, mirrored edges"
    )
    noise: float = Field(0.0, ge=0, description="σ of Gaussian noise on the input, not the target.")
    brightness: float = Field(0.0, ge=0, description="σ of one shift per picture, target included.")
    contrast: float = Field(0.0, ge=0, description="σ of the log of one factor per picture.")
    color: float = Field(0.0, ge=0, description="σ of one shift per picture and channel.")
    erase: float = Field(0.0, ge=0, lt=1, description="Side of a blanked square, share of the side")
    mixup: float = Field(
        0.0, ge=0, le=1, description="Blend labeled outliers pairwise, by up to half of this."
    )


class InputTransform:
    """Stored samples to network input, for training and scoring alike.

    Pictures are taken from their value range to [-1, 1] and zero-padded, evenly on both sides, to
    multiples of 16; vectors are scaled where a scaling was fitted. A transform in MONAI's sense,
    for whole batches, that equals ``EnsureChannelFirst``, ``DivisiblePad``,
    ``ScaleIntensityRange`` of each picture.
    """

    def __init__(
        self, *, value_range: tuple[float, float], image: bool, scaling: Scaling | None = None
    ) -> None:
        self.value_range = value_range
        self.image = image
        self.scaling = scaling

    def __call__(self, samples: Tensor | npt.NDArray[Any]) -> Tensor:
        """Take (n, h, w, c) of any number type to (n, c, h', w') float32, or (n, d) to (n, d)."""
        x = torch.as_tensor(samples).float()
        if not self.image:
            return x if self.scaling is None else self.scaling(x)
        low, high = self.value_range
        x = x.permute(0, 3, 1, 2)  # (n, c, h, w), channels last in memory
        height, width = (-side % STEP for side in x.shape[2:])
        if height or width:
            sides = (width // 2, width - width // 2, height // 2, height - height // 2)
            x = torch.nn.functional.pad(x, sides)
        x = (x - low) / (high - low) * 2 - 1
        return x.contiguous(memory_format=torch.channels_last)


def view(x: Tensor, index: int) -> Tensor:
    """One of the eight views of pictures (n, c, h, w): 0-3 turned, 4-7 mirrored and turned."""
    if index >= 4:
        x = x.flip(-1)
    return torch.rot90(x, index % 4, (-2, -1))


def views_of(shape: tuple[int, ...], count: int) -> list[int]:
    """The views used for test-time augmentation: those that keep the shape (c, h, w)."""
    fitting = range(VIEWS) if shape[-1] == shape[-2] else (0, 2, 4, 6)
    return [index for index in fitting if index < VIEWS][:count]


def random_views(x: Tensor, spec: AugmentSpec, generator: torch.Generator) -> Tensor:
    """Mirror and turn each picture of a batch (n, c, h, w) on its own; vectors are passed on."""
    if x.ndim != 4 or not (spec.flips or spec.rotations):
        return x
    square = x.shape[-1] == x.shape[-2]
    turns = (0, 1, 2, 3) if spec.rotations and square else (0, 2) if spec.rotations else (0,)
    choices = [t + 4 * f for f in ((0, 1) if spec.flips else (0,)) for t in turns]
    draw = torch.randint(len(choices), (len(x),), generator=generator, device=x.device)
    return each_view(x, _numbers(tuple(choices), x.device)[draw])


@lru_cache(maxsize=64)
def _numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """A small table on the device, kept: copying it there would wait for all queued work."""
    return torch.tensor(values, device=device)


def each_view(x: Tensor, indices: Tensor) -> Tensor:
    """`view` of each picture of a batch (n, c, h, w) by an index of its own, (n,).

    One look-up of pixels: on CUDA nothing is waited for, as masks of a batch would be.
    """
    n, c, h, w = x.shape
    source = _sources(h, w, x.device)[indices] + h * w * torch.arange(n, device=x.device)[:, None]
    pixels = x.permute(0, 2, 3, 1).reshape(n * h * w, c)  # channels last, as they lie in memory
    return pixels.index_select(0, source.flatten()).view(n, h, w, c).permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def _sources(height: int, width: int, device: torch.device) -> Tensor:
    """Which pixel each pixel of each view comes from, (8, h w); quarter turns of squares alone."""
    pixel = torch.arange(height * width, device=device).view(1, 1, height, width)
    indices = [index if height == width else index & 6 for index in range(VIEWS)]
    return torch.stack([view(pixel, index).flatten() for index in indices])


def shift(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Move each picture of a batch (n, c, h, w) by whole pixels; what enters is mirrored."""
    if x.ndim != 4 or not share:
        return x
    rows, columns = (_moved(len(x), side, share, generator, x.device) for side in x.shape[2:])
    pictures = torch.arange(len(x), device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[pictures, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)  # channels last in memory


def _moved(
    count: int, side: int, share: float, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Where each line of a moved picture comes from, (count, side)."""
    most = round(share * side)
    by = torch.randint(-most, most + 1, (count, 1), generator=generator, device=device)
    line = (torch.arange(side, device=device) + by).abs()
    return side - 1 - (side - 1 - line).abs()


def jitter(x: Tensor, spec: AugmentSpec, generator: torch.Generator) -> Tensor:
    """Shift and scale the values of each sample; input and target get the same."""
    shape = (len(x), *[1] * (x.ndim - 1))
    if spec.contrast:
        x = x * torch.exp(spec.contrast * _normal(x, shape, generator))
    if spec.brightness:
        x = x + spec.brightness * _normal(x, shape, generator)
    if spec.color and x.ndim == 4:
        x = x + spec.color * _normal(x, (len(x), x.shape[1], 1, 1), generator)
    return x


def corrupt(x: Tensor, spec: AugmentSpec, generator: torch.Generator) -> Tensor:
    """Noise and blanked squares on the input alone: the target stays clean."""
    if spec.noise:
        x = x + spec.noise * normal_like(x, generator)
    if spec.erase and x.ndim == 4:
        x = _erase(x, spec.erase, generator)
    return x


def mix(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Blend each sample with another of the batch, by up to half of ``share``."""
    if not share or len(x) < 2:
        return x
    shape = (len(x), *[1] * (x.ndim - 1))
    part = 0.5 * share * torch.rand(shape, generator=generator, device=x.device)
    return (1 - part) * x + part * x[torch.randperm(len(x), generator=generator, device=x.device)]


def wrong_target(x: Tensor, spec: WrongTargetSpec, generator: torch.Generator) -> Tensor:
    """x_tilde of labeled outliers: a wrong version of each sample, never the sample itself.

    Pictures are turned by 90, 180 or 270 degrees (180 where they are not square), the dimensions
    of vectors are permuted; Gaussian noise is added to both, in units of x.

    Args:
        x: (n, c, h, w) or (n, d).
        spec: which of the two, and σ of the noise.
        generator: where the draws come from, on the device of x.
    """
    if spec.permute:
        x = turn(x, generator) if x.ndim == 4 else x.gather(1, draw_permutation(x, generator))
    return x + spec.noise * normal_like(x, generator) if spec.noise else x


def turn(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture (n, c, h, w) by 90, 180 or 270 degrees; by 180 where they are not square."""
    if x.shape[-1] != x.shape[-2]:
        return torch.rot90(x, 2, (-2, -1))
    return each_view(x, torch.randint(1, 4, (len(x),), generator=generator, device=x.device))


def draw_permutation(x: Tensor, generator: torch.Generator) -> Tensor:
    """An order of each row's dimensions, (n, d); one that leaves all in place is shifted by one."""
    order = torch.rand(x.shape, generator=generator, device=x.device).argsort(1)
    same = (order == torch.arange(x.shape[1], device=x.device)).all(1)
    return torch.where(same[:, None], order.roll(1, dims=1), order)


def _erase(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Blank one square, at random in half of the pictures, with the picture's mean color."""
    height, width = x.shape[2:]
    side = max(1, round(share * min(height, width)))
    draw = torch.rand((3, len(x), 1, 1), generator=generator, device=x.device)
    top, left = (draw[0] * (height - side)).floor(), (draw[1] * (width - side)).floor()
    rows = torch.arange(height, device=x.device)[None, :, None]
    columns = torch.arange(width, device=x.device)[None, None, :]
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    blank = (inside & (draw[2] < 0.5))[:, None]  # (n, 1, h, w)
    return torch.where(blank, x.mean((2, 3), keepdim=True), x)


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers in the shape of x."""
    return _normal(x, tuple(x.shape), generator)


def _normal(x: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)


def as_batch(samples: npt.NDArray[Any], indices: npt.NDArray[np.int64]) -> Tensor:
    """The stored samples of these rows, copied out of the memory map."""
    return torch.from_numpy(np.ascontiguousarray(samples[indices]))
