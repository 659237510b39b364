"""Fused layers give what the plain ones give."""

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from esad_med.method.fused import FusedConvolution, can_fuse, doubling_kernel, fuse
from esad_med.method.networks import (
    ImageNetwork,
    ImageNetworkSpec,
    VectorNetworkSpec,
    build_network,
    fold_batch_norm,
)

SPECS: list[dict[str, Any]] = [
    {},
    {"skip": True, "pooling": "mean", "whiten": True, "latent_activation": "linear"},
    {"skip": True, "normalization": "none", "channels": 1, "width": 0.11},
    {"second_encoder": False, "distance": "z", "latent_activation": "linear"},
]


def folded(**values: Any) -> ImageNetwork:
    """A network whose batch norms have seen pictures."""
    torch.manual_seed(0)
    network = build_network(ImageNetworkSpec(**{"width": 1 / 16, **values}))
    assert isinstance(network, ImageNetwork)
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, values.get("channels", 3), 32, 32))
    fold_batch_norm(network)
    return network


@pytest.mark.parametrize("values", SPECS)
@pytest.mark.parametrize("size", [(1, 16, 16), (5, 48, 32)])
def test_outputs_are_those_of_the_plain_network(
    values: dict[str, Any], size: tuple[int, int, int]
) -> None:
    plain = folded(**values)
    assert can_fuse(plain, torch.float32)
    fused = fuse(copy.deepcopy(plain))
    assert any(isinstance(m, FusedConvolution) for m in fused.modules())
    x = torch.randn(size[0], values.get("channels", 3), *size[1:])
    with torch.inference_mode():
        for layout in (torch.contiguous_format, torch.channels_last):
            found = fused(x.contiguous(memory_format=layout))
            for a, b in zip(found, plain(x), strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_in_bfloat16_they_differ_by_rounding_only() -> None:
    plain = folded(**SPECS[1]).to(torch.bfloat16)
    if not can_fuse(plain, torch.bfloat16):
        pytest.skip("no bfloat16 in oneDNN on this CPU")
    fused = fuse(copy.deepcopy(plain))
    x = torch.randn(3, 3, 32, 32, dtype=torch.bfloat16)
    with torch.inference_mode():
        for a, b in zip(fused(x), plain(x), strict=True):
            assert a.dtype == torch.bfloat16
            assert (a - b).norm() < 0.02 * b.norm()


def test_a_doubling_kernel_is_doubling_and_a_convolution() -> None:
    x, weight = torch.randn(2, 5, 6, 7), torch.randn(4, 5, 3, 3)
    expected = F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=1)
    found = F.conv_transpose2d(x, doubling_kernel(weight), stride=2, padding=1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_fused_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    network = folded()
    assert not can_fuse(network, torch.float64)
    assert not can_fuse(build_network(VectorNetworkSpec(features=3)), torch.float32)
    assert not can_fuse(copy.deepcopy(network).to("meta"), torch.float32)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_fuse(network, torch.float32)
    monkeypatch.undo()
    monkeypatch.setenv("ESAD_PLAIN", "layers")
    assert not can_fuse(network, torch.float32)


def test_the_network_given_is_changed_but_not_its_weights() -> None:
    network = folded()
    before = copy.deepcopy(network.state_dict())
    assert fuse(network) is network
    assert not any(p.requires_grad for p in network.decoder.parameters())
    assert "decoder.first.0.weight" in network.state_dict()
    torch.testing.assert_close(
        network.state_dict()["decoder.last.weight"], before["decoder.last.weight"]
    )
