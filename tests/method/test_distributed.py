"""Training by several processes, as `torchrun` starts them: what one process computes."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from esad_med.base.errors import ModelError
from esad_med.base.runs import read_json
from esad_med.base.store import SampleStore
from esad_med.method.detector import Detector

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
QUICK = (
    *("network.width=0.0625", "members=2", "epochs=2", "test_time_augmentation=1"),
    *("data.batch_size=15", "network.dropout=0.2", "precision=float32"),
)


def torchrun(
    *command: object, ranks: int = 2, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a script or ``-m module`` once per rank."""
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", *options)
    words = [*launch, "--nproc-per-node", str(ranks), *map(str, command)]
    environment: Mapping[str, str] = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, check=False, timeout=240
    )


def train(store: Path, out: Path, *more: str, device: str = "cpu") -> list[str]:
    """The words of a quick training."""
    settings = [word for setting in QUICK for word in ("--set", setting)]
    name = ("-m", "esad_med", "train", str(store), "--out", str(out), "--device", device)
    return [*name, *settings, *more]


def test_shares_of_a_batch_have_the_loss_and_the_gradients_of_the_whole() -> None:
    done = torchrun(HERE / "ranks_script.py", 3, ranks=3)
    assert done.returncode == 0, done.stderr


def test_two_ranks_train_one_detector(image_store: SampleStore, tmp_path: Path) -> None:
    done = torchrun(*train(image_store.path, tmp_path / "d"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("detector in") == 1
    assert done.stderr.count("member 1: 2 epochs") == 1
    assert "arning" not in done.stderr
    scores = Detector.load(tmp_path / "d", device="cpu").score(image_store.samples).score
    assert scores[48:].mean() > scores[:48].mean()
    assert read_json(tmp_path / "d" / "run.json", ModelError)["ranks"] == 2
    assert pd.read_csv(tmp_path / "d" / "metrics.csv")["epoch"].tolist() == [1, 2] * 2
    assert len(list((tmp_path / "d" / "tensorboard").rglob("events*"))) == 2


def test_the_threads_of_ranks_end_before_python_does(
    image_store: SampleStore, tmp_path: Path
) -> None:
    words = train(image_store.path, tmp_path / "d")[2:]
    done = torchrun(HERE / "threads_script.py", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("threads left: 0") == 2


def test_a_users_error_is_said_once(image_store: SampleStore, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other.txt").write_text("something else")
    done = torchrun(*train(image_store.path, tmp_path / "out"))  # the first rank alone finds out
    assert done.returncode == 1  # torchrun's own
    assert done.stderr.count("error: ") == 1
    assert done.stderr.count("not a detector's folder") == 1
    assert "exitcode  : 4" in done.stderr
    assert "[rank" not in done.stderr, "a traceback"


def test_losses_that_are_not_finite_end_every_rank_and_keep_the_checkpoint(
    image_store: SampleStore, tmp_path: Path
) -> None:
    out, wild = tmp_path / "d", ("--set", "optimizer.lr=1e30", "--set", "optimizer.warmup=0")
    done = torchrun(*train(image_store.path, out, *wild))
    assert done.returncode == 1
    assert done.stderr.count("is not finite") == 1  # every rank finds out
    assert "[rank" not in done.stderr
    assert not (out / "checksums.json").exists()


@pytest.mark.gpu
def test_two_devices_learn_what_one_does(image_store: SampleStore, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two CUDA devices")
    trained: dict[int, Path] = {}
    for ranks in (1, 2):
        trained[ranks] = tmp_path / str(ranks)
        done = torchrun(*train(image_store.path, trained[ranks], device="cuda"), ranks=ranks)
        assert done.returncode == 0, done.stderr
    losses = [pd.read_csv(out / "metrics.csv")["loss"] for out in trained.values()]
    assert (losses[0] - losses[1]).abs().max() < 0.2
    one, two = (load_file(out / "weights.safetensors") for out in trained.values())
    assert one.keys() == two.keys()
