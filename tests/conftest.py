"""Shared fixtures: where the real data is, and tiny slides composed for the tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data (ESAD_DATA, default ../shared/data); skips where it is missing."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("ESAD_DATA", default))
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set ESAD_DATA")
    return root
