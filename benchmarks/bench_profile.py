r"""Where the time of `screen` and `train` goes, before and after: plain ways beside fast ones.

    python -m benchmarks.bench_profile [--edge 28672] [--width 0.25]

Screening by cProfile, one stage after the other (reading ahead is off, so that a stage's time is
its own); training by torch.profiler, a batch of 32 normals and 4 outliers, milliseconds per step.
Every column is a process of its own.
"""

import argparse
import cProfile
import json
import pstats
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.processes import in_own_process

STAGES = {
    "overview and tissue mask": ("tissue.py", "find_tissue"),
    "stain fit": ("pathology.py", "fit_slide_stain"),
    "reading tiles and normalizing them": ("pathology.py", "normalized_tiles"),
    "the network": ("detector.py", "terms"),
    "heat map, tables, report": ("slide_results.py", "write_slide_results"),
}
#: Column -> precision, ESAD_PLAIN.
SCREENINGS = {
    "plain, float32": ("float32", "all"),
    "float32": ("float32", "overlap"),
    "bfloat16": ("bfloat16", "overlap"),
    "int8": ("int8", "overlap"),
}
TRAININGS = ("plain loop, float32", "ours, bfloat16")
#: What the name of an operation says it belongs to; the first that fits.
KINDS = {
    "convolutions, forward": ("mkldnn_convolution", "aten::_slow_conv"),
    "convolutions, backward": ("convolution_backward",),
    "batch norm": ("batch_norm",),
    "activations, pooling, doubling": ("clamp_min", "threshold", "pool", "upsample", "tanh"),
    "optimizer and mean of weights": ("Optimizer", "lerp", "addcdiv", "addcmul", "sqrt"),
}
REST = "batch, loss and all else"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edge", type=int, default=28672, help="of the slide, level-0 pixels")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--column", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.column:
        if options.column in SCREENINGS:
            print(json.dumps(profile_screening(options.column, options.folder)))
        else:
            print(json.dumps(profile_training(options.column, options.width)))
        return
    with tempfile.TemporaryDirectory() as name:
        from benchmarks.bench_screening import prepare

        prepare(Path(name), options.edge, options.width)
        columns = {c: run(c, Path(name), options.width) for c in SCREENINGS}
        show("screen, seconds", [*STAGES, "all"], columns)
        columns = {c: run(c, Path(name), options.width) for c in TRAININGS}
        print()
        show("train, ms per step", [*KINDS, REST, "all"], columns)


def run(column: str, folder: Path, width: float) -> dict[str, float]:
    plain = SCREENINGS[column][1] if column in SCREENINGS else ""
    options = ("--column", column, "--folder", folder, "--width", width)
    found: dict[str, float] = in_own_process("benchmarks.bench_profile", *options, plain=plain)
    return found


def show(title: str, rows: list[str], columns: dict[str, dict[str, float]]) -> None:
    print(f"| {title} | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for row in rows:
        cells = (f"{values.get(row, 0.0):.2f}" for values in columns.values())
        print(f"| {row} | " + " | ".join(cells) + " |", flush=True)


def profile_screening(column: str, folder: Path) -> dict[str, float]:
    """Seconds of each stage."""
    from benchmarks.bench_screening import prepare_scoring

    work = prepare_scoring("screen", folder, SCREENINGS[column][0])
    profile = cProfile.Profile()
    profile.runcall(work)
    calls: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    found = {"all": sum(own for _, _, own, _, _ in calls.values())}
    for stage, (file, function) in STAGES.items():
        found[stage] = sum(
            total
            for (path, _, name), (_, _, _, total, _) in calls.items()
            if path.endswith(file) and name == function
        )
    return found


def profile_training(column: str, width: float) -> dict[str, float]:
    """Milliseconds of each kind of operation in a step, on one thread."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from benchmarks import bench_training as bench

    torch.set_num_threads(1)
    steps, device = 4, torch.device("cpu")
    data = bench.pose(32, steps)

    def work() -> None:
        if column == TRAININGS[0]:
            bench.loop(data, bench.configure(width, 32), device)
        else:
            bench.bare(data, width, 32, device)

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        work()
    found = dict.fromkeys([*KINDS, REST, "all"], 0.0)
    for event in profiled.key_averages():
        fits = (k for k, names in KINDS.items() if any(n in event.key for n in names))
        ms = event.self_cpu_time_total / 1e3 / (bench.EPOCHS * steps)
        found[next(fits, REST)] += ms
        found["all"] += ms
    return found


if __name__ == "__main__":
    main()
