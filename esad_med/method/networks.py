"""The encoder-decoder-encoder of ESAD: Table 6 for images, its twin for vectors."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from esad_med.base.config import Spec
from esad_med.method.whitening import LatentWhitening, Whitening

STEP = 16  # four poolings: a picture's sides must be multiples of 16
_ENCODER_CHANNELS = (64, 128, 256, 512, 512)
_DECODER_CHANNELS = (256, 128, 64, 64)

Normalization = Literal["batch", "none"]
Activation = Literal["relu", "linear"]
Pooling = Literal["max", "mean"]
Distance = Literal["none", "z", "z_hat"]


class EsadOutput(NamedTuple):
    """What the network gives for x (Eqs. 8 and 13).

    Attributes:
        z: first latent Enc1(x), (n, c, h/16, w/16) or (n, d).
        x_hat: Dec(z), the shape of x; images in [-1, 1].
        z_hat: second latent Enc2(x_hat), the shape of z.
    """

    z: Tensor
    x_hat: Tensor
    z_hat: Tensor


class ImageNetworkSpec(Spec):
    """The image network; the defaults are Table 6 as corrected in docs/method.md."""

    kind: Literal["image"] = "image"
    channels: int = Field(3, ge=1, description="Channels of a picture.")
    width: float = Field(1.0, gt=0, le=4, description="Factor on all channel counts of Table 6.")
    skip: bool = Field(False, description="Skip connections (U-Net); the table lists none.")
    normalization: Normalization = Field("batch", description="'none' gives convolutions a bias.")
    latent_activation: Activation = Field("relu", description="After the encoders' last layer.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Channel dropout before the last block.")
    pooling: Pooling = Field("max", description="Of 2x2 pixels between the encoders' blocks.")
    whiten: bool = Field(False, description="Decorrelate the colors that the encoders see (ours).")
    second_encoder: bool = Field(True, description="Without it z_hat is z (Table 5).")
    distance: Distance = Field("none", description="Latent whose whitened norm is scored (ours).")


class VectorNetworkSpec(Spec):
    """The vector network: MLPs of Deep SAD (thyroid 32-16-4), the decoder mirrored."""

    kind: Literal["vector"] = "vector"
    features: int = Field(ge=1, description="Length of a sample.")
    hidden: tuple[int, ...] = Field((32, 16, 8), min_length=1, description="Encoder layers.")
    normalization: Normalization = "batch"
    latent_activation: Activation = "linear"
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the latent layer.")
    second_encoder: bool = Field(True, description="Without it z_hat is z (Table 5).")
    distance: Distance = Field("none", description="Latent whose whitened norm is scored (ours).")


NetworkSpec = ImageNetworkSpec | VectorNetworkSpec

_MANY, _FEW = 100, 6  # columns: arrhythmia has 274, thyroid 6


def default_hidden(features: int) -> tuple[int, ...]:
    """The encoder's layers for vectors, as Deep SAD and the paper size them by data set.

    128-64-32 from 100 columns on, 32-16-4 up to 6, otherwise 32-16-8.
    """
    if features >= _MANY:
        return (128, 64, 32)
    return (32, 16, 4) if features <= _FEW else (32, 16, 8)


class Layer(nn.Module):
    """A convolution or linear map, its normalization and activation."""

    def __init__(self, weight: nn.Module, norm: nn.Module, *, activation: Activation) -> None:
        super().__init__()
        self.weight = weight
        self.norm = norm
        self.activation = nn.ReLU() if activation == "relu" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three in turn."""
        out: Tensor = self.activation(self.norm(self.weight(x)))
        return out

    def fold(self) -> None:
        """Put an evaluated batch norm into the weights; the same numbers, one pass fewer."""
        if isinstance(self.norm, nn.BatchNorm2d) and isinstance(self.weight, nn.Conv2d):
            self.weight = fuse_conv_bn_eval(self.weight, self.norm)
            self.norm = nn.Identity()
        elif isinstance(self.norm, nn.BatchNorm1d) and isinstance(self.weight, nn.Linear):
            self.weight = fuse_linear_bn_eval(self.weight, self.norm)
            self.norm = nn.Identity()


def _scored(spec: "NetworkSpec", channels: int) -> LatentWhitening | None:
    return None if spec.distance == "none" else LatentWhitening(channels, of=spec.distance)


def _conv(inputs: int, outputs: int, normalization: Normalization, last: Activation) -> Layer:
    batch = normalization == "batch"
    return Layer(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=not batch),
        nn.BatchNorm2d(outputs) if batch else nn.Identity(),
        activation=last,
    )


def _block(
    inputs: int, outputs: int, normalization: Normalization, last: Activation = "relu"
) -> nn.Sequential:
    """Two 3x3 convolutions with padding 1, as each pair of rows in Table 6."""
    return nn.Sequential(
        _conv(inputs, outputs, normalization, "relu"), _conv(outputs, outputs, normalization, last)
    )


def _scaled(channels: Sequence[int], width: float) -> list[int]:
    return [max(1, round(c * width)) for c in channels]


class ImageEncoder(nn.Module):
    """x (n, c, h, w) -> z (n, 512, h/16, w/16), for width 1."""

    def __init__(self, spec: ImageNetworkSpec) -> None:
        super().__init__()
        channels = [spec.channels, *_scaled(_ENCODER_CHANNELS, spec.width)]
        last = [*["relu"] * 4, spec.latent_activation]
        self.blocks = nn.ModuleList(
            _block(a, b, spec.normalization, "linear" if end == "linear" else "relu")
            for a, b, end in zip(channels[:-1], channels[1:], last, strict=True)
        )
        self.pool: nn.Module = nn.MaxPool2d(2) if spec.pooling == "max" else nn.AvgPool2d(2)
        self.dropout = nn.Dropout2d(spec.dropout)
        self.whitening: nn.Module = Whitening(spec.channels) if spec.whiten else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Give z and the four pictures before each pooling, finest first."""
        fine = []
        x = self.whitening(x)
        for block in self.blocks[:-1]:
            x = block(x)
            fine.append(x)
            x = self.pool(x)
        return self.blocks[-1](self.dropout(x)), fine


class ImageDecoder(nn.Module):
    """z (n, 512, h/16, w/16) -> x_hat (n, c, h, w) in [-1, 1], for width 1."""

    def __init__(self, spec: ImageNetworkSpec) -> None:
        super().__init__()
        encoder = _scaled(_ENCODER_CHANNELS, spec.width)
        channels = [encoder[-1], *_scaled(_DECODER_CHANNELS, spec.width)]
        joined = encoder[-2::-1] if spec.skip else [0] * 4
        self.skip = spec.skip
        self.doubled = channels[:-1]  # input channels of each block that come from below
        self.up = nn.Upsample(scale_factor=2)
        self.blocks = nn.ModuleList(
            _block(a + extra, b, spec.normalization)
            for a, extra, b in zip(channels[:-1], joined, channels[1:], strict=True)
        )
        self.last = nn.Conv2d(channels[-1], spec.channels, 3, padding=1, bias=False)

    def forward(self, z: Tensor, fine: list[Tensor]) -> Tensor:
        """Decode; ``fine`` is used with skip connections only."""
        for block, picture in zip(self.blocks, reversed(fine), strict=True):
            z = self.up(z)
            z = block(torch.cat([z, picture], dim=1) if self.skip else z)
        return torch.tanh(self.last(z))


class ImageNetwork(nn.Module):
    """x_hat = Dec(Enc1(x)), z_hat = Enc2(x_hat): two encoders of one shape, separate weights."""

    def __init__(self, spec: ImageNetworkSpec) -> None:
        super().__init__()
        self.encoder1 = ImageEncoder(spec)
        self.decoder = ImageDecoder(spec)
        self.encoder2 = ImageEncoder(spec) if spec.second_encoder else None
        self.scored = _scored(spec, _scaled(_ENCODER_CHANNELS, spec.width)[-1])

    def forward(self, x: Tensor) -> EsadOutput:
        """Take x (n, c, h, w) in [-1, 1], its sides multiples of 16."""
        z, fine = self.encoder1(x)  # (n, 512, h/16, w/16)
        x_hat = self.decoder(z, fine)  # (n, c, h, w)
        z_hat = z if self.encoder2 is None else self.encoder2(x_hat)[0]  # (n, 512, h/16, w/16)
        return EsadOutput(z, x_hat, z_hat)


def _mlp(sizes: Sequence[int], spec: VectorNetworkSpec, last: Activation) -> list[nn.Module]:
    batch = spec.normalization == "batch"
    ends: list[Activation] = [*["relu"] * (len(sizes) - 2), last]  # type: ignore[list-item]
    layers: list[nn.Module] = [
        Layer(
            nn.Linear(a, b, bias=not batch),
            nn.BatchNorm1d(b) if batch else nn.Identity(),
            activation=end,
        )
        for a, b, end in zip(sizes[:-1], sizes[1:], ends, strict=True)
    ]
    return layers


def _vector_encoder(spec: VectorNetworkSpec) -> nn.Sequential:
    layers = _mlp([spec.features, *spec.hidden], spec, spec.latent_activation)
    return nn.Sequential(*layers[:-1], nn.Dropout(spec.dropout), layers[-1])


class VectorNetwork(nn.Module):
    """The same for table rows; linear output."""

    def __init__(self, spec: VectorNetworkSpec) -> None:
        super().__init__()
        up = spec.hidden[::-1]
        self.encoder1 = _vector_encoder(spec)
        hidden = _mlp(up, spec, "relu") if len(up) > 1 else []
        self.decoder = nn.Sequential(*hidden, nn.Linear(up[-1], spec.features))
        self.encoder2 = _vector_encoder(spec) if spec.second_encoder else None
        self.scored = _scored(spec, spec.hidden[-1])

    def forward(self, x: Tensor) -> EsadOutput:
        """Take x (n, features)."""
        z = self.encoder1(x)  # (n, hidden[-1])
        x_hat = self.decoder(z)  # (n, features)
        return EsadOutput(z, x_hat, z if self.encoder2 is None else self.encoder2(x_hat))


Network = ImageNetwork | VectorNetwork


def build_network(spec: NetworkSpec) -> Network:
    """The network a spec describes, with random weights of torch's global generator."""
    if isinstance(spec, ImageNetworkSpec):
        return ImageNetwork(spec)
    return VectorNetwork(spec)


def fold_batch_norm(network: Network) -> Network:
    """Fold every batch norm of an evaluated network into its layer, in place, for scoring."""
    network.eval()
    for module in network.modules():
        if isinstance(module, Layer):
            module.fold()
    return network


def place(network: Network, device: torch.device) -> Network:
    """Move a network to its device, channels last in memory: two times faster on a CPU."""
    network.to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # not in its stub
    return network
