"""Training by one process with two threads against two ranks of `torchrun` with one thread each."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from esad_med.base.errors import ModelError
from esad_med.base.runs import read_json
from esad_med.base.store_writing import write_store

RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, nargs="+", default=[0.125, 0.25])
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--tiles", type=int, default=480)
    parser.add_argument("--repeats", type=int, default=2, help="the fastest counts")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "store", asked.tiles)
        print("| width | batch | one process, 2 threads | two ranks, 1 thread each |")
        print("|---|---|---|---|")
        for width in asked.width:
            for batch in asked.batch:
                pairs = [
                    (
                        train(store, width, batch, launch=(), threads=2),
                        train(store, width, batch, launch=RANKS, threads=1),
                    )
                    for _ in range(asked.repeats)
                ]
                alone, shared = map(min, zip(*pairs, strict=True))
                print(f"| {width:g} | {batch} | {alone:.1f} s | {shared:.1f} s |", flush=True)


def train(store: Path, width: float, batch: int, *, launch: tuple[str, ...], threads: int) -> float:
    """Seconds that a member's two epochs and its calibration take, without the start."""
    settings = (f"network.width={width}", f"data.batch_size={batch}", "members=1", "epochs=2")
    words = [word for setting in settings for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "detector"
        command = ("-m", "esad_med", "train", store, "--out", out, "--device", "cpu", *words)
        subprocess.run(
            [sys.executable, *launch, *map(str, command)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            check=True,
            capture_output=True,
        )
        return float(read_json(out / "run.json", ModelError)["seconds"])


def make_store(out: Path, tiles: int) -> Path:
    """Noise of 64 pixels; a fifth are labeled outliers."""
    x = np.random.default_rng(0).integers(90, 130, (tiles, 64, 64, 3)).astype(np.uint8)
    y = np.repeat([1, -1], [tiles - tiles // 5, tiles // 5])
    rows = pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(tiles)],
            "case_id": [f"c{i % 10}" for i in range(tiles)],
            "patient_id": "",
            "split": "train",
            "semi_label": y,
            "truth": (y < 0).astype(int),
        }
    )
    contract = {"kind": "tiles", "modality": "histology", "value_range": [0, 255], "mpp": 1.0}
    write_store(out, x, rows, contract)
    return out


if __name__ == "__main__":
    main()
