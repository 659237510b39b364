"""Decorrelated channels, taken from training normals: of the colors, and of a latent (ours).

In stained tissue red, green and blue rise and fall together: brightness varies fifty times more
than hue, which tells the stains apart. On decorrelated channels of equal variance an encoder does
not have to find small differences between large numbers.

Eq. 12 takes the latent of normals for a Gaussian around the origin with one variance in all
directions. Once trained it is neither; the norm of the whitened latent, its Mahalanobis distance,
is the entropy term of the Gaussian that it is.
"""

from typing import Literal

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor, nn

#: Standard deviation of each channel afterwards.
SCALE = 0.5
# Directions with less than this share of the largest variance are noise, and not blown up.
_SMALLEST_SHARE = 1e-3
_SMALLEST_LATENT_SHARE = 1e-4  # of the mean square


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


class LatentWhitening(nn.Module):
    """The latent that is scored, z or z_hat, around the mean of normals and in their deviations.

    The same matrix for all positions of a map; nothing is changed until it is fitted.
    """

    mean: Tensor  # (c,)
    matrix: Tensor  # (c, c)

    def __init__(self, channels: int, *, of: Literal["z", "z_hat"]) -> None:
        super().__init__()
        self.of = of
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("matrix", torch.eye(channels))

    def choose(self, output: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The latent that is scored, of z, x_hat, z_hat: (n, d) or (n, c, h, w)."""
        z, _, z_hat = output
        return z if self.of == "z" else z_hat

    def forward(self, output: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Take a network's z, x_hat, z_hat to the whitened latent, of the latent's shape."""
        rows, shape = _rows(self.choose(output))
        whitened = (rows - self.mean) @ self.matrix
        return whitened.reshape(shape).movedim(-1, 1)

    def fit(self, latent: Tensor) -> None:
        """Take mean and covariance from latents of normals, (n, d) or (n, c, h, w).

        The covariance is shrunk as Ledoit and Wolf do (2004), so that few normals suffice.
        """
        rows = _rows(latent)[0].double().cpu().numpy()
        covariance = torch.from_numpy(ledoit_wolf(rows)[0])
        variances, directions = torch.linalg.eigh(covariance)
        # What varies by less than a hundredth of the latent's size is not blown up: rounding is
        # a millionth of it.
        floor = max(float(np.square(rows).mean()), 1e-8) * _SMALLEST_LATENT_SHARE
        scale = variances.clamp(min=floor).rsqrt()
        self.mean.copy_(torch.from_numpy(rows.mean(0)))
        self.matrix.copy_(directions @ torch.diag(scale) @ directions.T)


def _rows(latent: Tensor) -> tuple[Tensor, torch.Size]:
    """The positions of all latents as rows (m, c), and the shape with channels last."""
    last = latent.movedim(1, -1)
    return last.reshape(-1, latent.shape[1]), last.shape


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
