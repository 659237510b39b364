"""Image networks for scoring on a CPU: a layer, its ReLU and doubling are one oneDNN operation.

Eager PyTorch writes a convolution's output to memory, reads it again for the ReLU, and once more to
double it for the decoder. Here ReLU is applied while the output is still in registers, and doubling
by nearest neighbor followed by a 3x3 convolution is what it is mathematically: a transposed
convolution of stride 2 with a 4x4 kernel, which takes 16 products where 36 were taken. The numbers
are the same but for the order of additions.
"""

import platform
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esad_med.base.plain import is_plain
from esad_med.method.networks import ImageDecoder, ImageEncoder, ImageNetwork, Layer, Network

_ONE = [1, 1]


def can_fuse(network: Network, dtype: torch.dtype) -> TypeGuard[ImageNetwork]:
    """Whether this machine fuses the layers of a network that lies on its CPU."""
    if not isinstance(network, ImageNetwork) or is_plain("layers"):
        return False
    if not can_use_onednn() or not _on_cpu(network):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and convolves_bfloat16())


def can_use_onednn() -> bool:
    """Whether torch was built with oneDNN, for a CPU on which these operations are tested."""
    built = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return built and platform.machine() in {"x86_64", "AMD64"}


def convolves_bfloat16() -> bool:
    """Whether oneDNN takes bfloat16 on this CPU."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fuse(network: ImageNetwork) -> ImageNetwork:
    """Put fused layers in place of a network's own; its batch norm must be folded already."""
    for encoder in (network.encoder1, network.encoder2):
        for block in pairs(encoder) if encoder else ():
            for k in range(2):
                block[k] = FusedConvolution(*parts(block[k]))
    decoder = network.decoder
    blocks = [
        (FusedUpsampling(*parts(first), doubled=n), FusedConvolution(*parts(second)))
        for (first, second), n in zip(pairs(decoder), decoder.doubled, strict=True)
    ]
    last = FusedConvolution(*parts(decoder.last))
    network.add_module("decoder", FusedDecoder(blocks, last, skip=decoder.skip))
    return network


class FusedConvolution(nn.Module):
    """A 3x3 convolution, what is added to it, and ReLU."""

    def __init__(self, weight: Tensor, bias: Tensor | None, relu: bool) -> None:
        super().__init__()
        self.weight = _constant(weight)
        self.bias = None if bias is None else _constant(bias)
        self.after = after(relu)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Take pictures (n, c, h, w), and what is added to the convolution before ReLU."""
        operation: Any = torch.ops.mkldnn._convolution_pointwise
        how = (_ONE, _ONE, _ONE, 1)  # padding, stride, dilation, groups
        if added is None:
            out: Tensor = operation(x, self.weight, self.bias, *how, *self.after)
        else:
            out = operation.binary(x, added, self.weight, self.bias, *how, "add", 1.0, *self.after)
        return out


class FusedUpsampling(nn.Module):
    """Doubling by nearest neighbor, a 3x3 convolution, and ReLU.

    With skip connections the convolution sees pictures of both sizes: it is the sum of two.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, relu: bool, *, doubled: int) -> None:
        """Take a convolution and how many of its first input channels come doubled."""
        super().__init__()
        self.weight = _constant(doubling_kernel(weight[:, :doubled]))
        self.bias = None if bias is None else _constant(bias)
        self.beside = None
        if weight.shape[1] > doubled:
            self.beside = FusedConvolution(weight[:, doubled:], None, relu)
        self.after = after(relu and self.beside is None)

    def forward(self, z: Tensor, picture: Tensor | None = None) -> Tensor:
        """Take z (n, c, h, w) and with skip connections a picture of twice its sides."""
        out: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            z, self.weight, self.bias, _ONE, [0, 0], [2, 2], _ONE, 1, *self.after
        )
        return out if self.beside is None else self.beside(picture, out)


class Cast(nn.Module):
    """To another type of numbers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Take any tensor."""
        return x.to(self.dtype)


class FusedDecoder(nn.Module):
    """The decoder, where doubling belongs to the first layer of each block."""

    def __init__(
        self, blocks: Sequence[tuple[nn.Module, nn.Module]], last: nn.Module, *, skip: bool
    ) -> None:
        super().__init__()
        self.first = nn.ModuleList(first for first, _ in blocks)
        self.second = nn.ModuleList(second for _, second in blocks)
        self.last = last
        self.skip = skip

    def forward(self, z: Tensor, fine: list[Tensor]) -> Tensor:
        """Decode, as `ImageDecoder` does."""
        for first, second, picture in zip(self.first, self.second, reversed(fine), strict=True):
            z = second(first(z, picture) if self.skip else first(z))
        return torch.tanh(self.last(z))


def pairs(half: ImageEncoder | ImageDecoder) -> list[nn.Sequential]:
    """The blocks of a network's half, of two layers each."""
    return [block for block in half.blocks if isinstance(block, nn.Sequential)]


def parts(layer: nn.Module) -> tuple[Tensor, Tensor | None, bool]:
    """Weight, bias and whether ReLU follows, of a layer whose batch norm is folded."""
    convolution = layer.weight if isinstance(layer, Layer) else layer
    assert isinstance(convolution, nn.Conv2d)
    relu = isinstance(layer, Layer) and isinstance(layer.activation, nn.ReLU)
    return convolution.weight, convolution.bias, relu


def after(relu: bool) -> tuple[str, list[float], str]:
    """What oneDNN does with each number of an output before it is written, as it is told."""
    return ("relu" if relu else "none", [], "")


def doubling_kernel(weight: Tensor) -> Tensor:
    """The transposed kernel (i, o, 4, 4) of doubling followed by a convolution (o, i, 3, 3)."""
    o, i = weight.shape[:2]
    spread = F.conv2d(
        weight.reshape(o * i, 1, 3, 3), weight.new_ones(1, 1, 2, 2), padding=1
    )  # each input pixel is found in 2x2 places
    return spread.reshape(o, i, 4, 4).flip(2, 3).transpose(0, 1)


def _constant(value: Tensor) -> nn.Parameter:
    form = torch.channels_last if value.ndim == 4 else torch.contiguous_format
    return nn.Parameter(value.detach().contiguous(memory_format=form), requires_grad=False)


def _on_cpu(network: Network) -> bool:
    return all(p.device.type == "cpu" for p in network.parameters())
