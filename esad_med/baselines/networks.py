"""Deep SAD's networks: an MLP for vectors, a LeNet for images; no bias, batch norm without affine.

Without biases and learned shifts a network cannot map everything onto one point, to which a
hypersphere would collapse (Ruff et al. 2018, section 3.3).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from esad_med.base.errors import CaseError
from esad_med.baselines.base import BaselineSettings

_EPS, _SLOPE = 1e-4, 0.01
_KERNEL = 5


class Encoder(nn.Module):
    """Samples (n, d) or (n, c, h, w) -> codes (n, code)."""

    def __init__(self, shape: Sequence[int], settings: BaselineSettings) -> None:
        super().__init__()
        self.shape = tuple(shape)
        image = len(self.shape) == 3
        self.channels = (self.shape[0], *settings.channels) if image else ()
        self.sides = _sides(self.shape[1:], len(settings.channels)) if image else []
        self.convolutions = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, _KERNEL, padding=_KERNEL // 2, bias=False),
                nn.BatchNorm2d(b, eps=_EPS, affine=False),
                nn.LeakyReLU(_SLOPE),
                nn.MaxPool2d(2),
            )
            for a, b in pairwise(self.channels)
        )
        flat = self.channels[-1] * math.prod(self.sides[-1]) if image else self.shape[0]
        self.sizes = (flat, *(settings.dense if image else settings.hidden))
        self.layers = _dense(self.sizes)
        _channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Encode."""
        for convolution in self.convolutions:
            x = convolution(x)  # (n, c', h/2, w/2)
        codes: Tensor = self.layers(x.flatten(1))  # (n, code)
        return codes


class Decoder(nn.Module):
    """The encoder mirrored: codes -> samples; linear for vectors, in [0, 1] for images."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.layers = _dense(encoder.sizes[::-1])
        channels = encoder.channels[::-1]
        self.start = (channels[0], *encoder.sides[-1]) if channels else ()
        self.sides = encoder.sides[-2::-1] if channels else []
        last = len(channels) - 2
        self.convolutions = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, _KERNEL, padding=_KERNEL // 2, bias=False),
                *([] if k == last else [nn.BatchNorm2d(b, eps=_EPS, affine=False)]),
            )
            for k, (a, b) in enumerate(pairwise(channels))
        )
        _channels_last(self)

    def forward(self, codes: Tensor) -> Tensor:
        """Decode."""
        x: Tensor = self.layers(codes)
        if not self.start:
            return x  # (n, d)
        x = x.reshape(-1, *self.start)
        for side, convolution in zip(self.sides, self.convolutions, strict=True):
            x = functional.interpolate(functional.leaky_relu(x, _SLOPE), size=side)
            x = convolution(x)
        return torch.sigmoid(x)  # (n, c, h, w)


def _dense(sizes: Sequence[int]) -> nn.Sequential:
    """Linear maps; batch norm and leaky ReLU between them, nothing after the last."""
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(pairwise(sizes)):
        if k:
            layers += [nn.BatchNorm1d(a, eps=_EPS, affine=False), nn.LeakyReLU(_SLOPE)]
        layers.append(nn.Linear(a, b, bias=False))
    return nn.Sequential(*layers)


def _channels_last(network: nn.Module) -> None:
    """Lay out convolutions, and so what comes of them, as a CPU takes half the time for."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # not in its stub


def _sides(side: Sequence[int], poolings: int) -> list[tuple[int, ...]]:
    """(height, width) before the first and after each pooling of 2x2.

    Raises:
        CaseError: nothing would be left of the images.
    """
    if side and min(side) < 2**poolings:
        raise CaseError(
            f"images of {side[1]}x{side[0]} pixels: too small for {poolings} poolings, expected"
            f" sides of at least {2**poolings}; give fewer channels, or larger images"
        )
    return [tuple(length // 2**k for length in side) for k in range(poolings + 1)]
