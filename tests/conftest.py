"""Shared fixtures: where the real data is, composed slides, and the command line."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from composed_screening import openseadragon, screening  # noqa: F401 # fixtures of all tests
from hypothesis import settings
from xray_fixtures import nih, write_dicom, xray_detectors  # noqa: F401 # fixtures of all tests

from data_prep.demo_slides import compose_demo_picture, source_concentrations
from data_prep.slide_writing import write_asap, write_manifest, write_pyramid
from data_prep.stain_target import DEFAULT_TARGET
from esad_med.base.cases import Case, read_manifest
from esad_med.base.config import load_config
from esad_med.base.store import SampleStore
from esad_med.cli import main
from esad_med.method.config import TrainConfig
from esad_med.method.trainer import train
from pipelines.pathology import PathologyConfig
from pipelines.tiling import tile_slides

settings.register_profile("steady", deadline=None, derandomize=True)  # alike on any machine
settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make stress` asks for the full form of the tests in tests/stress."""
    parser.addoption("--full", action="store_true", help="tests/stress at full length (hours)")


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How often a stress test repeats: ``rounds(short, full)``, full with ``--full``."""
    full = request.config.getoption("--full")
    return lambda short, full_count: full_count if full else short


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data (ESAD_DATA, default ../shared/data); skips where it is missing."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("ESAD_DATA", default))
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set ESAD_DATA")
    return root.resolve()


@pytest.fixture(scope="session")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four small composed slides with outlines and a manifest."""
    folder = tmp_path_factory.mktemp("composed")
    source = source_concentrations()
    cases = []
    plan = (("normal_1", "train", 0), ("tumor_1", "train", 3), ("normal_2", "test", 0))
    for index, (name, split, lesions) in enumerate((*plan, ("tumor_2", "test", 3))):
        random = np.random.default_rng(index)
        picture, outlines = compose_demo_picture(source, lesions, random, size=2048)
        path = folder / f"{name}.tif"
        write_pyramid(path, picture, mpp=0.5, levels=4, description="composed for a test")
        if lesions:
            write_asap(folder / f"{name}.xml", [("Tumor", line.tolist()) for line in outlines])
        annotation = folder / f"{name}.xml" if lesions else None
        cases.append(Case(name, path, f"p{index}", split, int(lesions > 0), annotation))
    write_manifest(folder / "manifest.csv", cases)
    return folder


@pytest.fixture(autouse=True, scope="session")
def ctrl_c() -> None:
    """A shell's background job is started to ignore Ctrl-C, and so would what is tested."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def in_this_process() -> None:
    """A process beside this one takes a second to start; tests of it name their ``--workers``."""
    os.environ["ESAD_WORKERS"] = "0"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small tensors on two threads wait for each other more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def store(composed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The composed training slides as a SampleStore."""
    out = tmp_path_factory.mktemp("tiled") / "store"
    cases = [case for case in read_manifest(composed / "manifest.csv") if case.split == "train"]
    config = load_config(PathologyConfig, None, ["labels.truth_threshold=0.3"])
    tile_slides(cases, out, config, target=DEFAULT_TARGET, say=lambda _: None)
    return out


@pytest.fixture(scope="session")
def quick_settings() -> list[str]:
    """Settings of a training that takes seconds."""
    return ["network.width=0.0625", "members=2", "epochs=2", "test_time_augmentation=1"]


@pytest.fixture(scope="session")
def trained(
    store: Path, quick_settings: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A narrow detector, trained for seconds on the composed training slides."""
    out = tmp_path_factory.mktemp("trained") / "detector"
    train(SampleStore(store), load_config(TrainConfig, None, quick_settings), out)
    return out


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `esad-med` in this process, as a shell would see it."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run
