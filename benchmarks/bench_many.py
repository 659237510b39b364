r"""Training the networks of all seeds together against one after the other, ODDS tables.

    python -m benchmarks.bench_many [--data ../shared/data/odds] [--repeats 3]

The `recommended` settings with five members, ten seeds, fifty networks; epochs are cut so that each
takes about a hundred steps. Medians over the repeats, in turns, one thread.
"""

import argparse
import os
import time
from pathlib import Path
from statistics import median
from unittest import mock

import torch

from data_prep.odds import read_odds
from esad_med.base.config import load_config
from esad_med.method import fitting
from esad_med.method.config import TrainConfig
from esad_med.method.fitting import TrainingData, fit_detectors
from pipelines.paper.protocols import odds_run

TABLES = ("thyroid", "cardio", "satellite", "arrhythmia")
STEPS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    data = Path(os.environ.get("ESAD_DATA", "../shared/data")) / "odds"
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| table | networks | one by one, s | together, s | ratio |\n|---|---|---|---|---|")
    for name in TABLES:
        problems = pose(options.data, name, options.seeds)
        alone, together = [], []
        for _ in range(options.repeats):
            together.append(seconds(*problems))
            with mock.patch.object(fitting, "can_stack", return_value=False):
                alone.append(seconds(*problems))
        first, second = median(alone), median(together)
        cells = (name, 5 * options.seeds, f"{first:.1f}", f"{second:.1f}", f"{first / second:.1f}")
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def pose(folder: Path, name: str, seeds: int) -> tuple[list[TrainingData], list[TrainConfig]]:
    """The training data and settings of each seed."""
    table = read_odds(folder, name)
    runs = [odds_run(table, seed=seed) for seed in range(seeds)]
    steps = [f"least_steps={STEPS}", f"most_steps={STEPS}", "epochs=1"]
    settings = ["kind=vector", "members=5", *steps]
    configs = [load_config(TrainConfig, None, [*settings, f"seed={k}"]) for k in range(seeds)]
    return [TrainingData(run.train, run.y) for run in runs], configs


def seconds(data: list[TrainingData], configs: list[TrainConfig]) -> float:
    start = time.perf_counter()
    fit_detectors(data, configs)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
