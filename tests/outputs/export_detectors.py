"""Small untrained detectors of every kind, for the tests of exports."""

from typing import Any

import numpy as np
import torch

from esad_med.method.contract import Calibration, Contract, InputContract, Training
from esad_med.method.detector import Detector
from esad_med.method.fusion import Fusion, FusionConfig, fit_statistics
from esad_med.method.networks import (
    ImageNetworkSpec,
    NetworkSpec,
    VectorNetworkSpec,
    build_network,
)
from esad_med.method.scaling import ScaleConfig, fit_scaling
from esad_med.method.terms import TermSpec
from esad_med.method.whitening import LatentWhitening, fit_whitening

TRAINING = Training(
    preset="recommended",
    seed=0,
    config={},
    normals=1,
    outliers=0,
    data_digest="",
    rows_digest="",
    versions={},
)


def make_detector(
    own: InputContract,
    network: NetworkSpec,
    *,
    members: int = 2,
    views: int = 1,
    scale: ScaleConfig | None = None,
    fusion: dict[str, Any] | None = None,
    preparation: dict[str, Any] | None = None,
) -> Detector:
    """Random weights, batch norms and whitening that saw data, quantiles of its own scores."""
    random = np.random.default_rng(0)
    low, high = own.value_range
    samples = random.uniform(low, high, (24, *own.sample_shape)).astype(own.dtype)
    scaling = None if scale is None else fit_scaling(samples, scale)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {}
        for k in range(members):
            state = _used(network, own).state_dict().items()
            weights.update({f"member{k}.{name}": tensor.clone() for name, tensor in state})
    plain = Fusion(mode="sum", reconstruction_weight=0.25, norm_weight=0.75)
    values: dict[str, Any] = {
        "input": own,
        "network": network,
        "members": members,
        "terms": TermSpec(),
        "views": views,
        "scaling": scaling,
        "fusion": plain,
        "calibration": Calibration(quantiles=(0.0, 1.0), normals=40, held_out_by="case"),
        "preparation": preparation or {},
        "training": TRAINING,
    }
    if fusion is not None:
        terms = Detector(Contract(**values), weights).terms(samples)
        config = FusionConfig(transform=fusion.get("transform", "linear"))
        values["fusion"] = Fusion(
            mode="standardized",
            reconstruction_weight=0.25,
            norm_weight=0.75,
            members=tuple(fit_statistics(*pair, config) for pair in zip(*terms, strict=True)),
            **fusion,
        )
    scores = Detector(Contract(**values), weights).score(samples).score
    quantiles = tuple(np.quantile(scores.astype(float), np.linspace(0, 1, 11)).tolist())
    values["calibration"] = Calibration(quantiles=quantiles, normals=40, held_out_by="case")
    return Detector(Contract(**values), weights)


def _used(spec: NetworkSpec, own: InputContract) -> torch.nn.Module:
    """A network whose batch norms and whitening have seen data."""
    network = build_network(spec)
    level = torch.rand(16, *[1] * (len(own.sample_shape) - 1), own.sample_shape[-1])
    x = level * 2 - 1 + 0.3 * torch.randn(16, *own.sample_shape)
    if own.is_image:
        x = x.permute(0, 3, 1, 2)
        x = torch.nn.functional.pad(x, (0, -x.shape[3] % 16, 0, -x.shape[2] % 16))
    elif isinstance(spec, VectorNetworkSpec):
        x = x.repeat(1, spec.features // x.shape[1])
    with torch.no_grad():
        if isinstance(spec, ImageNetworkSpec) and spec.whiten:
            fit_whitening(network, x)
        for norm in (m for m in network.modules() if hasattr(m, "momentum")):
            norm.momentum = None  # the mean over what was seen
        for _ in range(3):
            network(x)
        if isinstance(network.scored, LatentWhitening):
            network.scored.fit(network.scored.choose(network.eval()(x)))
    return network


def tiles(
    side: tuple[int, int] = (16, 16), *, dtype: Any = "uint8", channels: int = 3, **more: Any
):
    return InputContract(
        modality="histology",
        sample_shape=(side[1], side[0], channels),
        dtype=dtype,
        value_range=(0, 255) if dtype == "uint8" else (-1, 2),
        mpp=1.0,
        **more,
    )


def table(columns: int = 4) -> InputContract:
    return InputContract(
        modality="table", sample_shape=(columns,), dtype="float32", value_range=(-3, 5)
    )


def picture_network(**more: Any) -> ImageNetworkSpec:
    return ImageNetworkSpec(width=1 / 32, **more)


#: As the preset `recommended` has it for pictures: skip connections, whitening, mean pooling.
RECOMMENDED = {"skip": True, "whiten": True, "pooling": "mean", "latent_activation": "linear"}
