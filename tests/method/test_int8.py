"""Scores in 8-bit integers: close to float32, or refused."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from esad_med.base.errors import ConfigError
from esad_med.method.detector import Detector
from esad_med.method.int8 import QuantizedConvolution, _MeanPool, check_quantizable, quantize
from esad_med.method.networks import (
    ImageNetwork,
    ImageNetworkSpec,
    VectorNetworkSpec,
    build_network,
)

CPU = torch.device("cpu")
needs_vnni = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="no 8-bit dot products on this CPU"
)
SPECS: list[dict[str, Any]] = [
    {},
    {"skip": True, "pooling": "mean", "whiten": True, "latent_activation": "linear"},
    {"second_encoder": False, "pooling": "mean", "channels": 1},
]


def trained(**values: Any) -> ImageNetwork:
    """A network whose batch norms have seen pictures."""
    torch.manual_seed(0)
    network = build_network(ImageNetworkSpec(**{"width": 0.25, **values}))
    assert isinstance(network, ImageNetwork)
    with torch.no_grad():
        for seed in range(10):
            network(pictures(8, values.get("channels", 3), seed))
    return network.eval()


def pictures(count: int, channels: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, 32, 32, generator=generator) * 2 - 1


@needs_vnni
@pytest.mark.parametrize("step_after", [0.05, None])
def test_a_layer_is_a_convolution_of_steps(step_after: float | None) -> None:
    torch.manual_seed(0)
    block = trained().decoder.blocks[2]
    assert isinstance(block, nn.Sequential)
    layer, step = block[1], 0.03
    x = torch.randint(0, 256, (3, 16, 8, 10), dtype=torch.uint8)
    with torch.inference_mode():
        expected = layer(x * step)
        found = QuantizedConvolution(copy.deepcopy(layer), step, step_after)(x)
    if step_after is None:
        assert (found - expected).abs().max() < 0.01 * expected.max()
    else:
        assert 100 < found.max() < 255
        apart = (found * step_after - expected).abs().max()
        assert apart < 0.51 * step_after + 0.01 * expected.max()
    huge = torch.full_like(x, 255)
    with torch.inference_mode():
        cut = QuantizedConvolution(copy.deepcopy(layer), 10.0, 0.05)(huge)
    assert cut.min() == 0
    assert cut.max() == 255


@needs_vnni
def test_means_of_four_are_rounded_without_bias() -> None:
    x = torch.randint(0, 256, (2, 16, 8, 12), dtype=torch.uint8)
    expected = nn.functional.avg_pool2d(x.float(), 2).round()  # halves to even
    assert torch.equal(_MeanPool()(x), expected.to(torch.uint8))


@needs_vnni
@pytest.mark.parametrize("values", SPECS)
def test_outputs_are_close_to_float32_in_any_batch(values: dict[str, Any]) -> None:
    plain = trained(**values)
    with torch.no_grad():
        rounded = quantize(check_quantizable(copy.deepcopy(plain), CPU))
    x = pictures(6, values.get("channels", 3), 9)
    with torch.inference_mode():
        found, expected = rounded(x), plain(x)
        single = rounded(x[2:3].contiguous(memory_format=torch.channels_last))
    for a, b, one in zip(found, expected, single, strict=True):
        assert a.dtype == torch.float32
        assert 1e-4 < (a - b).norm() / b.norm() < 0.2
        torch.testing.assert_close(one, a[2:3], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("spec", "device", "said"),
    [
        (VectorNetworkSpec(features=5), "cpu", "vectors"),
        (ImageNetworkSpec(width=1 / 16, distance="z"), "cpu", "distance"),
        (ImageNetworkSpec(width=1 / 16, normalization="none"), "cpu", "batch norm"),
        (ImageNetworkSpec(width=1 / 16), "cuda", "the device is cuda"),
    ],
)
def test_what_has_no_8_bit_form_is_refused(spec: Any, device: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"int8: .*{said}.*; score in float32 or bfloat16"):
        check_quantizable(build_network(spec), torch.device(device))


def test_hardware_without_8_bit_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ConfigError, match="VNNI"):
        check_quantizable(build_network(ImageNetworkSpec(width=1 / 16)), CPU)


TILES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


def with_norms(detector: Detector, spread: float) -> Detector:
    """The same detector, whose batch norms claim that their output has so small a spread."""
    weights = {}
    for name, value in detector.weights.items():
        if name.endswith("norm.weight"):
            value = value * spread
        if name.endswith("norm.running_var"):
            value = value * spread**2
        weights[name] = value
    found = Detector(detector.contract, weights, device="cpu").score(TILES)
    quantiles = np.sort(found.score).tolist()
    calibration = detector.contract.calibration.model_copy(update={"quantiles": tuple(quantiles)})
    contract = detector.contract.model_copy(update={"calibration": calibration})
    return Detector(contract, weights, device="cpu")


@needs_vnni
def test_a_detector_scores_about_the_same(detector: Detector) -> None:
    detector.check_precision("int8")
    exact, rough = detector.score(TILES), detector.score(TILES, precision="int8")
    assert np.abs(detector.percentile(rough.score) - detector.percentile(exact.score)).mean() < 2
    np.testing.assert_allclose(rough.score, exact.score, rtol=0.1)
    assert not np.array_equal(rough.score, exact.score)


@needs_vnni
def test_a_detector_whose_numbers_stray_is_refused(detector: Detector) -> None:
    wrong = with_norms(detector, 1 / 50)
    np.testing.assert_allclose(wrong.score(TILES).score, detector.score(TILES).score, rtol=0.1)
    with pytest.raises(ConfigError, match=r"int8 moves the scores .* percentiles .*bfloat16"):
        wrong.score(TILES, precision="int8")
    assert len(wrong.score(TILES[:0], precision="int8").score) == 0
