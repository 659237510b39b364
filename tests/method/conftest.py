"""Tiny stores and detectors: pictures of 16 pixels and vectors of 6 numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from esad_med.base.store import SampleStore
from esad_med.base.store_writing import write_store
from esad_med.method.config import TrainConfig
from esad_med.method.contract import Calibration, Contract, InputContract, Training
from esad_med.method.detector import Detector
from esad_med.method.fusion import Fusion
from esad_med.method.networks import ImageNetworkSpec, build_network
from esad_med.method.terms import TermSpec

TARGET = {"name": "a", "matrix": [[0.6, 0.7, 0.3], [0.1, 0.9, 0.3]], "max_concentration": [2, 1]}


def make_rows(normals: int, outliers: int, *, cases: int = 10, **columns: Any) -> pd.DataFrame:
    count = normals + outliers
    y = np.repeat([1, -1], [normals, outliers])
    return pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(count)],
            "case_id": [f"c{i % cases}" for i in range(count)],
            "patient_id": "",
            "split": "train",
            "semi_label": y,
            "truth": (y < 0).astype(int),
            **columns,
        }
    )


@pytest.fixture
def vector_store(tmp_path: Path) -> Callable[..., SampleStore]:
    """Normals around 0; outliers have their first number beyond 2."""

    def make(normals: int = 60, outliers: int = 12, **columns: Any) -> SampleStore:
        rng = np.random.default_rng(0)
        x = np.clip(rng.normal(0, 0.5, (normals + outliers, 6)), -1.5, 1.5).astype(np.float32)
        x[normals:, 0] += 3
        contract = {"kind": "vectors", "value_range": [-5, 5]}
        rows = make_rows(normals, outliers, **columns)
        return write_store(tmp_path / f"vectors{normals}-{outliers}", x, rows, contract)

    return make


@pytest.fixture
def image_store(tmp_path: Path) -> SampleStore:
    """Gray noise; outliers carry a bright square."""
    rng = np.random.default_rng(0)
    x = rng.integers(90, 130, (60, 16, 16, 3)).astype(np.uint8)
    x[48:, 4:10, 4:10] = 250
    contract = {
        "kind": "tiles",
        "modality": "histology",
        "value_range": [0, 255],
        "mpp": 1.0,
        "preparation": {"stain": {"method": "vahadane"}, "stain_target": TARGET},
    }
    return write_store(tmp_path / "tiles", x, make_rows(48, 12), contract)


@pytest.fixture
def vector_config() -> Callable[..., TrainConfig]:
    """A training of a second; keyword groups change it."""

    def make(**changes: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "kind": "vector",
            "members": 2,
            "epochs": 4,
            "network": {"hidden": [8, 4]},
            "data": {"batch_size": 16, "outliers_per_batch": 4},
        }
        for key, value in changes.items():
            old = values.get(key)
            values[key] = {**old, **value} if isinstance(old, dict) else value
        return TrainConfig.model_validate(values)

    return make


@pytest.fixture
def detector() -> Detector:
    """Two untrained members on pictures of 32 pixels; standardized fusion."""
    spec = ImageNetworkSpec(width=1 / 16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {}
        for k in range(2):
            network = build_network(spec)
            for _ in range(20):  # batch norms that let differences through
                network(torch.rand(8, 3, 32, 32) * 2 - 1)
            state = network.state_dict().items()
            weights.update({f"member{k}.{name}": tensor.clone() for name, tensor in state})
    contract = Contract(
        input=InputContract(
            modality="histology",
            sample_shape=(32, 32, 3),
            dtype="uint8",
            value_range=(0, 255),
            mpp=1.0,
            stain="vahadane",
            stain_target=TARGET,
        ),
        network=spec,
        members=2,
        terms=TermSpec(),
        views=2,
        fusion=Fusion(mode="sum", reconstruction_weight=1, norm_weight=1),
        calibration=Calibration(quantiles=(0.0, 1.0, 4.0), normals=3, held_out_by="case"),
        preparation={},
        training=Training(
            preset="paper",
            seed=0,
            config={},
            normals=3,
            outliers=1,
            data_digest="",
            rows_digest="",
            versions={},
        ),
    )
    return Detector(contract, weights, device="cpu")
