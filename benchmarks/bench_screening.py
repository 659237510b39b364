r"""`esad-med screen` against scoring alone, and how cost and memory grow with the slide.

    python -m benchmarks.bench_screening [--edge 51200] [--width 0.25] [--precision bfloat16]
    python -m benchmarks.bench_screening --grow 8192 28672 51200 100000 --width 0.125

A composed slide (`data_prep.large_slides`); a detector of one network trained for an epoch on its
tiles, on which speed does not depend. Scoring alone takes the same tiles, normalized, from memory.
Every figure is the wall-clock time of a process of its own without its start; peak memory is the
whole process's. Screening ends with the report.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.processes import in_own_process

if TYPE_CHECKING:  # torch is not to count in the memory of tiling
    from esad_med.method.scoring_networks import Precision

#: What is timed, and with which fast paths off.
WAYS = {"score": "", "screen": "", "screen, in turns": "overlap", "screen, all plain": "all"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edge", type=int, default=51200, help="of the slide, level-0 pixels")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--precision", choices=("float32", "bfloat16", "int8"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--grow", type=int, nargs="+", default=[], help="edges of slides instead")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(take_step(options.step[0], Path(options.step[1]), options.precision)))
        return
    with tempfile.TemporaryDirectory() as name:
        if options.grow:
            grow(Path(name), options)
        else:
            compare(Path(name), options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    prepare(folder, options.edge, options.width)
    print(
        "| what | tiles | s | tiles/s | of scoring alone | peak, MiB |\n|---|---|---|---|---|---|"
    )
    alone = 0.0
    for way, plain in WAYS.items():
        runs = [step(way, folder, options.precision, plain) for _ in range(options.repeats)]
        seconds = statistics.median(run["seconds"] for run in runs)
        tiles, peak = runs[0]["tiles"], max(run["peak"] for run in runs)
        alone = alone or seconds
        rate, share = f"{tiles / seconds:,.0f}", f"{alone / seconds:.1%}"
        print(f"| {way} | {tiles:,} | {seconds:.1f} | {rate} | {share} | {peak} |", flush=True)


def grow(folder: Path, options: argparse.Namespace) -> None:
    of_way = "tiles/s | peak, MiB |"
    print(f"| edge, px | tiles | tile: {of_way} at 0.5 µm | tile: {of_way} screen: {of_way}")
    print("|---|---|---|---|---|---|---|---|---|")
    for number, edge in enumerate(options.grow):
        own = folder / str(edge)
        own.mkdir()
        if number:
            (own / "detector").symlink_to(folder / str(options.grow[0]) / "detector")
        true = prepare(own, edge, options.width)
        cells: list[object] = [true]
        for way in ("tile", "tile, 0.5 µm", "screen"):
            found = step(way, own, options.precision, "")
            cells += [] if way == "screen" else [f"{found['tiles']:,}"]
            cells += [f"{found['tiles'] / found['seconds']:,.0f}", found["peak"]]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        (own / "large.tif").unlink()


def prepare(folder: Path, edge: int, width: float) -> int:
    """The slide, and a detector trained on a few of its tiles where there is none yet."""
    from data_prep.large_slides import compose_large_slide
    from data_prep.stain_target import DEFAULT_TARGET
    from esad_med.base.cases import Case
    from esad_med.base.config import load_config
    from esad_med.base.store import SampleStore
    from esad_med.base.store_writing import write_store
    from esad_med.method.config import TrainConfig
    from esad_med.method.trainer import train
    from pipelines.pathology import PathologyConfig
    from pipelines.tiling import tile_slides

    true = compose_large_slide(folder / "large.tif", edge)
    if not (folder / "detector").exists():
        case = Case("large", folder / "large.tif", split="train")
        everything = folder / "everything"
        tile_slides([case], everything, PathologyConfig(), target=DEFAULT_TARGET, say=quiet)
        whole = SampleStore(everything)
        rows = whole.rows.iloc[:512].reset_index(drop=True)
        contract = {k: whole.contract[k] for k in ("kind", "modality", "value_range", "mpp")}
        contract["preparation"] = whole.contract["preparation"]
        few = write_store(folder / "few", np.asarray(whole.samples[:512]), rows, contract)
        fast = ["members=1", "epochs=1", "test_time_augmentation=1", f"network.width={width}"]
        train(few, load_config(TrainConfig, None, fast), folder / "detector")
    return true


def step(way: str, folder: Path, precision: str, plain: str) -> dict[str, Any]:
    options = ("--step", way, folder, "--precision", precision)
    found: dict[str, Any] = in_own_process("benchmarks.bench_screening", *options, plain=plain)
    return found


def take_step(way: str, folder: Path, precision: "Precision") -> dict[str, Any]:
    """Time one way in this process, after what is needed was imported and compiled."""
    if way.startswith("tile"):
        work = prepare_tiling(folder, 0.5 if "0.5" in way else 1.0)
    else:
        work = prepare_scoring(way, folder, precision)
    start = time.perf_counter()
    tiles = work()
    seconds = time.perf_counter() - start
    return {"tiles": tiles, "seconds": seconds, "peak": peak_mib()}


def peak_mib() -> int:
    """The most memory this process had; getrusage would count its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def prepare_tiling(folder: Path, mpp: float) -> Callable[[], int]:
    from data_prep.stain_target import DEFAULT_TARGET
    from data_prep.tiles import TileSpec
    from esad_med.base.cases import Case
    from pipelines.pathology import PathologyConfig
    from pipelines.tiling import tile_slides

    warm_up()

    def work() -> int:
        out = folder / f"tiled{time.time_ns()}"
        case, config = Case("large", folder / "large.tif"), PathologyConfig(tiles=TileSpec(mpp=mpp))
        found = tile_slides([case], out, config, target=DEFAULT_TARGET, say=quiet)
        shutil.rmtree(out)
        return found.slides[0].tiles

    return work


def prepare_scoring(way: str, folder: Path, precision: "Precision") -> Callable[[], int]:
    from esad_med.base.cases import Case
    from esad_med.base.store import SampleStore
    from esad_med.method.detector import Detector
    from pipelines.screening import screen_slides, screening_config

    detector = Detector.load(folder / "detector")
    if way == "score":
        samples = np.array(SampleStore(folder / "everything").samples)
        detector.score(samples[:512], precision=precision)
        return lambda: len(detector.score(samples, precision=precision).score)
    warm_up()
    detector.score(np.zeros((512, 64, 64, 3), np.uint8), precision=precision)

    def work() -> int:
        out, case = folder / f"screened{time.time_ns()}", Case("large", folder / "large.tif")
        config = screening_config(detector, None, [])
        found = screen_slides([case], detector, out, config, precision=precision, say=quiet)
        return int(found.slides[0]["tiles"])

    return work


def warm_up() -> None:
    """Load compiled loops from disk."""
    from data_prep.stain import StainSpec, fit_stain, normalize_stain
    from data_prep.stain_target import DEFAULT_TARGET

    rng = np.random.default_rng(0)
    tiles = rng.integers(60, 200, (8, 64, 64, 3)).astype(np.uint8)
    stain = fit_stain([tiles], StainSpec(), name="warm up")
    normalize_stain(tiles, stain, DEFAULT_TARGET, StainSpec())


def quiet(_: str) -> None:
    pass


if __name__ == "__main__":
    main()
