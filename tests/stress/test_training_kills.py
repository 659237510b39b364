"""Training under kill -9 at random moments: what is resumed ends with the uninterrupted bytes.

One process; one rank of two, which `torchrun` starts again; and the whole job of two ranks, which
the user starts again with --resume.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from esad_med.base.runs import digest_file
from esad_med.base.store_writing import write_store
from esad_med.method.detector import Detector

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    *("network.width=0.0625", "members=2", "epochs=3", "test_time_augmentation=1"),
    *("network.dropout=0.1", "augment.mixup=0.2", "data.batch_size=24", "precision=float32"),
)
KILLS = {"process": (1, 6), "rank": (1, 7), "job": (0, 7)}  # in CI, and in full
FINAL = ("weights.safetensors", "contract.json", "metrics.csv", "README.md", "checksums.json")
RESTARTS = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "1000")
LAUNCH: dict[str, tuple[str, ...]] = {
    "process": (),
    "rank": ("-m", "torch.distributed.run", *RESTARTS),
    "job": ("-m", "torch.distributed.run", *RESTARTS),
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gray noise of 16 pixels; outliers carry a bright square."""
    folder = tmp_path_factory.mktemp("samples") / "store"
    x = np.random.default_rng(0).integers(90, 130, (160, 16, 16, 3)).astype(np.uint8)
    x[128:, 4:10, 4:10] = 250
    y = np.repeat([1, -1], [128, 32])
    rows = pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(160)],
            "case_id": [f"c{i % 10}" for i in range(160)],
            "patient_id": "",
            "split": "train",
            "semi_label": y,
            "truth": (y < 0).astype(int),
        }
    )
    contract = {"kind": "tiles", "modality": "histology", "value_range": [0, 255], "mpp": 1.0}
    write_store(folder, x, rows, contract)
    return folder


@dataclass
class Training:
    """A command that trains, as a process with its ranks."""

    mode: str
    store: Path
    out: Path
    _running: subprocess.Popen[bytes] | None = None
    _seen: int = field(default=0)

    def start(self) -> None:
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        command = ("train", self.store, "--out", self.out, "--device", "cpu", "--resume")
        words = (sys.executable, *LAUNCH[self.mode], "-m", "esad_med", *command, *settings)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._running = subprocess.Popen([*map(str, words)], env=environment, **quiet)

    def wait_until_it_trains(self) -> bool:
        """Wait until it writes its settings, once more where it was started again; False: ended."""
        file = self.out / "config.yaml"
        while self.process.poll() is None:
            written = file.stat().st_mtime_ns if file.exists() else 0
            if written != self._seen:
                self._seen = written
                return True
            time.sleep(0.01)
        return False

    def kill(self, rng: np.random.Generator) -> None:
        """One rank, or all there is."""
        ranks = [*children(self.process.pid)]
        if self.mode == "rank":
            if ranks:
                kill(ranks[int(rng.integers(len(ranks)))])
            return
        for pid in (self.process.pid, *ranks):
            kill(pid)
        self.process.wait()
        while any(Path(f"/proc/{pid}").exists() for pid in ranks):
            time.sleep(0.01)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._running is not None
        return self._running


def children(pid: int) -> Iterator[int]:
    """The processes that one started."""
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, tasks.read_text().split())


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def uninterrupted(
    samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[dict[str, str], float]]:
    """What a training of one process or two ranks leaves, and how long it trains."""
    known: dict[bool, tuple[dict[str, str], float]] = {}

    def train(mode: str) -> tuple[dict[str, str], float]:
        alone = mode == "process"
        if alone not in known:
            training = Training(mode, samples, tmp_path_factory.mktemp("whole") / "d")
            training.start()
            assert training.wait_until_it_trains()
            began = time.monotonic()
            assert training.process.wait() == 0
            known[alone] = digests(training.out), time.monotonic() - began
        return known[alone]

    return train


def digests(out: Path) -> dict[str, str]:
    Detector.load(out, device="cpu")  # checks its own sums
    assert [path for path in out.rglob("*") if path.name.endswith(".partial")] == []
    return {name: digest_file(out / name) for name in FINAL}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", LAUNCH)
def test_a_training_that_is_killed_ends_as_if_it_had_not_been(
    mode: str,
    samples: Path,
    uninterrupted: Callable[[str], tuple[dict[str, str], float]],
    rounds: Callable[[int, int], int],
    tmp_path: Path,
) -> None:
    wanted, kills, trainings = rounds(*KILLS[mode]), 0, 0
    if not wanted:
        pytest.skip("`make stress` kills whole jobs")
    expected, seconds = uninterrupted(mode)
    rng = np.random.default_rng(sorted(LAUNCH).index(mode))
    while kills < wanted:
        training = Training(mode, samples, tmp_path / str(trainings))
        kills += train_through_kills(training, wanted - kills, seconds, rng)
        assert digests(training.out) == expected
        trainings += 1
    print(f"{mode}: {kills} kills, {trainings} trainings of {seconds:.1f} s")


def train_through_kills(
    training: Training, most: int, seconds: float, rng: np.random.Generator
) -> int:
    """Train to the end; how often it was killed on the way, each time after up to ``seconds``."""
    kills = 0
    training.start()
    while training.wait_until_it_trains():
        if kills == most:
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            training.process.wait(rng.uniform(0, seconds))
        if training.process.poll() is not None:
            break
        training.kill(rng)
        kills += 1
        if training.mode != "rank":
            training.start()
    assert training.process.wait() == 0
    return kills
