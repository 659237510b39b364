"""The networks of a detector as they score: in each precision, by what is fast on the device."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from esad_med.base.errors import ModelError
from esad_med.method.fused import Cast, can_fuse, fuse
from esad_med.method.int8 import check_quantizable, quantize
from esad_med.method.networks import (
    EsadOutput,
    Network,
    NetworkSpec,
    VectorNetwork,
    build_network,
    fold_batch_norm,
    place,
)
from esad_med.method.terms import TermSpec, latent_norm, reconstruction_error
from esad_med.method.transforms import view, views_of

Precision = Literal["float32", "bfloat16", "int8", "float64"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class ScoringNetworks:
    """The members of a detector on its device, put into a precision when it is first asked for.

    Attributes:
        parameters: how many numbers one member learned.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        weights: Mapping[str, Tensor],
        *,
        members: int,
        device: torch.device,
    ) -> None:
        """Take the weights ``member0.encoder1...`` of all members.

        Raises:
            ModelError: the weights do not fit the network of the spec.
        """
        self._spec = spec
        self._weights = weights
        self._members = members
        self._device = device
        self._made: dict[Precision, Sequence[Network]] = {}
        self.parameters = sum(p.numel() for p in self._trained(0).parameters())
        self.of("float32")

    def of(self, precision: Precision) -> Sequence[Network]:
        """The members in this precision.

        They take float32 pictures or vectors (float64 in that precision) whatever they compute in.

        Raises:
            ConfigError: int8 is asked of a network or hardware that cannot; see
                `int8.check_quantizable`.
        """
        if precision not in self._made:
            with torch.no_grad():
                made = [self._prepare(self._trained(k), precision) for k in range(self._members)]
            self._made[precision] = made
        return self._made[precision]

    def _trained(self, member: int) -> Network:
        return trained_network(self._spec, self._weights, member)

    def _prepare(self, network: Network, precision: Precision) -> Network:
        if precision == "int8":
            return quantize(check_quantizable(network, self._device))
        dtype = _DTYPES[precision]
        network = place(fold_batch_norm(network), self._device)
        network = _rounded(network) if precision == "bfloat16" else network.to(dtype)
        return fuse(network) if can_fuse(network, dtype) else network


def trained_network(spec: NetworkSpec, weights: Mapping[str, Tensor], member: int) -> Network:
    """One member as it was trained, evaluating: of PyTorch's own layers, batch norm apart.

    Raises:
        ModelError: the weights do not fit the network of the spec.
    """
    prefix = f"member{member}."
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    with torch.device("meta"):
        network = build_network(spec)
    try:
        network.load_state_dict(own, assign=True)
    except RuntimeError as error:
        raise ModelError(
            f"the weights of member {member} do not fit the contract's network"
            f" ({str(error).splitlines()[0]})"
        ) from error
    return network.eval()


def _rounded(network: Network) -> Network:
    """To bfloat16, but for the whitening, which blows small differences of color up."""
    dtype = torch.bfloat16
    if isinstance(network, VectorNetwork):
        network.encoder1 = nn.Sequential(Cast(dtype), network.encoder1)
        return network.to(dtype)
    encoders = [e for e in (network.encoder1, network.encoder2) if e is not None]
    exact = [encoder.whitening for encoder in encoders]
    for encoder in encoders:
        encoder.whitening = nn.Identity()
    network.to(dtype)
    for encoder, whitening in zip(encoders, exact, strict=True):
        encoder.whitening = nn.Sequential(Cast(torch.float32), whitening, Cast(dtype))
    return network


def network_terms(
    network: Network,
    x: Tensor,
    *,
    spec: TermSpec,
    views: int = 1,
    upright: EsadOutput | None = None,
    distance: bool = True,
) -> tuple[Tensor, Tensor]:
    """Both terms of Eq. 17 by one network for input x, each (n,) float32, mean over the views.

    Args:
        network: one member.
        x: network input.
        spec: how the terms are taken.
        views: of test-time augmentation.
        upright: the network's output for x itself, where it is known already.
        distance: take the norm that is scored; False takes ‖z_hat‖, which is trained.
    """
    indices = views_of(tuple(x.shape[1:]), views) if x.ndim == 4 else [0]
    first, second = [], []
    for index in indices:
        turned = view(x, index).contiguous(memory_format=torch.channels_last) if index else x
        output = upright if upright is not None and not index else network(turned)
        first.append(reconstruction_error(output.x_hat, turned, reduction=spec.reduction))
        scored = network.scored(output) if network.scored and distance else output.z_hat
        second.append(latent_norm(scored, norm=spec.norm, pool=spec.pool))
    return torch.stack(first).mean(0), torch.stack(second).mean(0)
