"""Decorrelated colors: a fixed first step of the encoders, taken from training normals.

In stained tissue red, green and blue rise and fall together: brightness varies fifty times more
than hue, which tells the stains apart. On decorrelated channels of equal variance an encoder does
not have to find small differences between large numbers (ours).
"""

import torch
from torch import Tensor, nn

#: Standard deviation of each channel afterwards.
SCALE = 0.5
# Directions with less than this share of the largest variance are noise, and not blown up.
_SMALLEST_SHARE = 1e-3


class Whitening(nn.Module):
    """x -> matrix (x - mean), the same for every pixel; nothing until it is fitted."""

    mean: Tensor  # (c,)
    matrix: Tensor  # (c, c)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("matrix", torch.eye(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Take pictures (n, c, h, w)."""
        return nn.functional.conv2d(
            x, self.matrix[:, :, None, None], bias=-(self.matrix @ self.mean)
        )


def fit_whitening(network: nn.Module, x: Tensor) -> None:
    """Fit every `Whitening` of a network to pictures x (n, c, h, w), in place.

    The matrix is symmetric (ZCA), so channels stay close to the colors they come from.
    """
    pixels = x.permute(1, 0, 2, 3).flatten(1).double()  # (c, pixels)
    mean = pixels.mean(1)
    centered = pixels - mean[:, None]
    variances, directions = torch.linalg.eigh(centered @ centered.T / centered.shape[1])
    floor = max(float(variances[-1]) * _SMALLEST_SHARE, 1e-6)
    matrix = directions @ torch.diag(SCALE * variances.clamp(min=floor).rsqrt()) @ directions.T
    for module in network.modules():
        if isinstance(module, Whitening):
            module.mean.copy_(mean)
            module.matrix.copy_(matrix)
