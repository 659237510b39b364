"""Composed slides named as Camelyon16's, and a stored stain target."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.demo_slides import compose_demo_picture, source_concentrations
from data_prep.slide_writing import write_pyramid
from data_prep.stain_target import DEFAULT_TARGET, write_target


@pytest.fixture(scope="session")
def camelyon_slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides of 3072 pixels in Camelyon16's published folders."""
    root = tmp_path_factory.mktemp("camelyon16")
    source = source_concentrations()
    plan = ("training/normal/normal_001", "training/tumor/tumor_001", "testing/images/test_001")
    for index, name in enumerate(plan):
        path = root / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(index)
        picture, _ = compose_demo_picture(source, 0, random, size=3072)
        write_pyramid(path, picture, mpp=0.243, levels=3, description="composed for a test")
    return root


@pytest.fixture(scope="session")
def stored_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored target: there is no slide normal_056 among the composed ones."""
    path = tmp_path_factory.mktemp("target") / "target.json"
    write_target(path, DEFAULT_TARGET)
    return path
