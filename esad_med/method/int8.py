"""Scoring in 8-bit integers on a CPU, twice as fast as bfloat16: weights and what layers pass on.

No samples are needed to find how large the numbers between two layers get: batch norm makes each
channel's mean β and its standard deviation |γ|, so the largest β + 8 |γ| holds all but stray ones,
which are clipped (Nagel et al., Data-free quantization, ICCV 2019, section 4.2.1, has 6). A 255th
of it is the layer's step. Steps go into the weights of the layers before and after; of the weights
every output channel has a step of its own.

What comes in and what is scored stays in floating point: the first layer of either encoder and of
the decoder (they see pictures, whitened colors, the latent) round their output; the last layers
give float32; and the last two layers before the norm that is scored compute in bfloat16, because
training drives that norm to zero for normals, where rounding would be all there is of it. Networks
whose numbers stray far lose; `Detector` compares the first batch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esad_med.base.errors import ConfigError
from esad_med.method.fused import (
    Cast,
    FusedConvolution,
    FusedDecoder,
    FusedUpsampling,
    after,
    can_use_onednn,
    convolves_bfloat16,
    pairs,
    parts,
)
from esad_med.method.networks import ImageDecoder, ImageEncoder, ImageNetwork, Layer, Network

_DEVIATIONS = 8.0
_LARGEST = 255  # of an output after ReLU
_LARGEST_WEIGHT = 127
_SMALLEST = 1e-12
_FLOAT = torch.float32
_ONE = [1, 1]

Step = float | Tensor  # of all channels, or of each


def check_quantizable(network: Network, device: torch.device) -> ImageNetwork:
    """Refuse what cannot be scored in 8-bit integers.

    Raises:
        ConfigError: a detector of vectors, without batch norm or with a distance, or hardware that
            does not compute in them.
    """
    why = None
    if not isinstance(network, ImageNetwork):
        why = "this detector scores vectors"
    elif network.scored is not None:
        why = "this detector scores a distance, which would drown in rounding"
    elif not any(isinstance(m, nn.BatchNorm2d) for m in network.modules()):
        why = "this detector was trained without batch norm, from which the steps are taken"
    elif device.type != "cpu":
        why = f"the device is {device.type}, int8 is for a CPU; use --precision bfloat16"
    elif not computes_int8():
        why = "this CPU has no 8-bit dot products (VNNI)"
    if why is None and isinstance(network, ImageNetwork):
        return network
    raise ConfigError(f"precision int8: {why}; score in float32 or bfloat16")


def computes_int8() -> bool:
    """Whether this machine's CPU multiplies 8-bit integers fast, and exactly."""
    return can_use_onednn() and bool(torch.cpu._is_vnni_supported())


def quantize(network: ImageNetwork) -> ImageNetwork:
    """Put 8-bit layers in place of an evaluated network's own, its batch norm not yet folded."""
    fine = _quantize_encoder(network.encoder1, scored=network.encoder2 is None)
    network.add_module("decoder", _quantized_decoder(network.decoder, fine))
    if network.encoder2 is not None:
        _quantize_encoder(network.encoder2, scored=True)
    return network


def _quantize_encoder(encoder: ImageEncoder, *, scored: bool) -> list[float]:
    """Do so in place; the steps of the four pictures that skip connections take."""
    steps: list[float] = []
    *blocks, last = pairs(encoder)
    for block in blocks:
        between, behind = _step(block[0]), _step(block[1])
        if steps:
            block[0] = QuantizedConvolution(block[0], steps[-1], between)
        else:  # in float32, for a bfloat16 holds half of the gray levels
            block[0] = _Rounded(FusedConvolution(*_scaled(block[0], 1, between)))
        block[1] = QuantizedConvolution(block[1], between, behind)
        steps.append(behind)
    if scored:
        dtype = torch.bfloat16 if convolves_bfloat16() else torch.float32
        first = FusedConvolution(*_scaled(last[0], steps[-1], None)).to(dtype)
        second = FusedConvolution(*_scaled(last[1], 1, None)).to(dtype)
        last[0], last[1] = nn.Sequential(Cast(dtype), first), nn.Sequential(second, Cast(_FLOAT))
    else:
        between = _step(last[0])
        last[0] = QuantizedConvolution(last[0], steps[-1], between)
        last[1] = QuantizedConvolution(last[1], between, None)
    encoder.pool = _MaxPool() if isinstance(encoder.pool, nn.MaxPool2d) else _MeanPool()
    return steps


def _quantized_decoder(decoder: ImageDecoder, fine: list[float]) -> FusedDecoder:
    blocks: list[tuple[nn.Module, nn.Module]] = []
    step = 1.0  # the latent is what it is
    for (first, second), beside, doubled in zip(
        pairs(decoder), reversed(fine), decoder.doubled, strict=True
    ):
        between, behind = _step(first), _step(second)
        seen = torch.full((parts(first)[0].shape[1],), beside)
        seen[:doubled] = step
        if blocks:
            head: nn.Module = _Doubled(QuantizedConvolution(first, seen, between))
        else:
            head = _Rounded(FusedUpsampling(*_scaled(first, seen, between), doubled=doubled))
        blocks.append((head, QuantizedConvolution(second, between, behind)))
        step = behind
    return FusedDecoder(blocks, QuantizedConvolution(decoder.last, step, None), skip=decoder.skip)


class QuantizedConvolution(nn.Module):
    """A 3x3 convolution of 8-bit pictures, ReLU, and rounding to 8 bits where steps are given."""

    def __init__(self, layer: nn.Module, step: Step, step_after: float | None) -> None:
        """Take a layer and the steps of its input and output."""
        super().__init__()
        weight, self.bias, relu = _scaled(layer, step, step_after)
        self.after = after(relu)
        self.out = _FLOAT if step_after is None else torch.uint8
        self.scale = weight.abs().amax((1, 2, 3)).clamp_min(_SMALLEST) / _LARGEST_WEIGHT
        rounded = (weight / self.scale[:, None, None, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qconv_prepack(
            rounded, self.scale, 1.0, 0, _ONE, _ONE, _ONE, 1, [1, weight.shape[1], 16, 16]
        )
        self.zero = torch.zeros(len(weight), dtype=torch.int32)

    def forward(self, x: Tensor) -> Tensor:
        """Take pictures (n, c, h, w) uint8 in steps; give uint8 in steps, or float32."""
        weight = (self.weight, self.scale, self.zero, self.bias)
        where = (_ONE, _ONE, _ONE, 1)  # stride, padding, dilation, groups
        out: Tensor = torch.ops.onednn.qconv2d_pointwise(
            x, 1.0, 0, *weight, *where, 1.0, 0, self.out, *self.after
        )
        return out


class _Rounded(nn.Module):
    """A float32 layer whose output, already in steps, is rounded to 8 bits."""

    def __init__(self, layer: FusedConvolution | FusedUpsampling) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *pictures: Tensor) -> Tensor:
        out: Tensor = self.layer(*(p.float() for p in pictures))
        out = out.add_(0.5).clamp_(max=_LARGEST).to(torch.int16)  # straight to uint8 is slower
        return out.to(torch.uint8)


class _Doubled(nn.Module):
    """Doubling, skip connections and the convolution of both."""

    def __init__(self, layer: QuantizedConvolution) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, z: Tensor, picture: Tensor | None = None) -> Tensor:
        z = F.interpolate(z, scale_factor=2)
        out: Tensor = self.layer(z if picture is None else torch.cat([z, picture], dim=1))
        return out


class _MaxPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rows = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
        return torch.maximum(rows[:, :, :, ::2], rows[:, :, :, 1::2])


class _MeanPool(nn.Module):
    """A convolution of each channel by itself, for it rounds halves to even: up would add up."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[int, tuple[Tensor, Tensor, Tensor, None]] = {}

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        where = ([2, 2], [0, 0], _ONE, channels)  # stride, padding, dilation, groups
        if channels not in self.weights:
            ones = torch.ones((channels, 1, 2, 2), dtype=torch.int8)
            quarter, zero = torch.full((channels,), 0.25), torch.zeros(channels, dtype=torch.int32)
            packed = torch.ops.onednn.qconv_prepack(
                ones, quarter, 1.0, 0, *where, [1, channels, 16, 16]
            )
            self.weights[channels] = (packed, quarter, zero, None)
        out: Tensor = torch.ops.onednn.qconv2d_pointwise(
            x, 1.0, 0, *self.weights[channels], *where, 1.0, 0, torch.uint8, *after(relu=False)
        )
        return out


def _step(layer: nn.Module) -> float:
    """Of a layer's output: a 255th of what batch norm says its largest channel reaches."""
    assert isinstance(layer, Layer)
    assert isinstance(layer.norm, nn.BatchNorm2d)
    norm = layer.norm
    reach = float((norm.bias + _DEVIATIONS * norm.weight.abs()).max())
    return max(reach, _SMALLEST) / _LARGEST


def _scaled(
    layer: nn.Module, step: Step, step_after: float | None
) -> tuple[Tensor, Tensor | None, bool]:
    """Weight and bias that take steps to steps, and whether ReLU follows."""
    if isinstance(layer, Layer):
        layer.fold()
    weight, bias, relu = parts(layer)
    weight = weight.detach() * torch.as_tensor(step)[..., None, None]
    divisor = 1.0 if step_after is None else step_after
    return weight / divisor, None if bias is None else bias.detach() / divisor, relu
