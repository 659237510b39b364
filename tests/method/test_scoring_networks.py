"""A detector's networks in each precision."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esad_med.base.errors import ConfigError, ModelError
from esad_med.method.fused import FusedConvolution
from esad_med.method.networks import (
    ImageNetwork,
    ImageNetworkSpec,
    NetworkSpec,
    VectorNetworkSpec,
    build_network,
)
from esad_med.method.scoring_networks import Precision, ScoringNetworks
from esad_med.method.whitening import Whitening

CPU = torch.device("cpu")
PICTURES = ImageNetworkSpec(width=1 / 8, whiten=True, pooling="mean", skip=True)
VECTORS = VectorNetworkSpec(features=5)


def weights_of(spec: NetworkSpec) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = build_network(spec)
    shape = (3, 32, 32) if isinstance(network, ImageNetwork) else (5,)
    for _ in range(3):
        network(torch.rand(16, *shape) * 2 - 1)
    for module in network.modules():
        if isinstance(module, Whitening):
            module.matrix.copy_(torch.linspace(-3.337, 5.113, 9).reshape(3, 3))
    return {f"member0.{k}": v.clone() for k, v in network.state_dict().items()}


def networks(spec: NetworkSpec) -> ScoringNetworks:
    return ScoringNetworks(spec, weights_of(spec), members=1, device=CPU)


@pytest.mark.parametrize("spec", [PICTURES, VECTORS])
@pytest.mark.parametrize(("precision", "apart"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_every_precision_takes_the_same_input(
    spec: Any, precision: Precision, apart: float
) -> None:
    made = networks(spec)
    x = torch.rand(4, *((3, 32, 32) if spec is PICTURES else (5,))) * 2 - 1
    with torch.inference_mode():
        exact = made.of("float64")[0](x.double())
        found = made.of(precision)[0](x)
    for a, b in zip(found, exact, strict=True):
        assert (a.double() - b).norm() <= apart * b.norm()
    assert made.of(precision) is made.of(precision)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_whitening_of_colors_is_never_rounded(precision: Precision) -> None:
    if precision == "int8" and not torch.cpu._is_vnni_supported():
        pytest.skip("no 8-bit dot products on this CPU")
    weights = weights_of(PICTURES)
    network = ScoringNetworks(PICTURES, weights, members=1, device=CPU).of(precision)[0]
    found = [m for m in network.modules() if isinstance(m, Whitening)]
    assert len(found) == 2
    for encoder, module in enumerate(found, 1):
        assert torch.equal(module.matrix, weights[f"member0.encoder{encoder}.whitening.matrix"])


def test_the_switch_leaves_layers_unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fused(made: ScoringNetworks) -> bool:
        return any(isinstance(m, FusedConvolution) for m in made.of("float32")[0].modules())

    assert fused(networks(PICTURES))
    monkeypatch.setenv("ESAD_PLAIN", "layers")
    assert not fused(networks(PICTURES))


def test_weights_given_stay_as_they_are_and_are_counted() -> None:
    weights = weights_of(PICTURES)
    before = {name: value.clone() for name, value in weights.items()}
    made = ScoringNetworks(PICTURES, weights, members=1, device=CPU)
    made.of("bfloat16")
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    learned: nn.Module = build_network(PICTURES)
    assert made.parameters == sum(p.numel() for p in learned.parameters())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="int8"):
        networks(VECTORS).of("int8")
    with pytest.raises(ModelError, match="weights of member 0 do not fit"):
        ScoringNetworks(PICTURES, weights_of(VECTORS), members=1, device=CPU)
