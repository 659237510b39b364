r"""Tiling several slides on workers: wall time against this process, and beside it.

    python -m benchmarks.bench_workers [--workers 2] [--slides 16] [--edge 28672]

The machine must be idle and have a whole core per worker. Two composed slides
(`data_prep.large_slides`) are tiled as often as asked for. What workers need to start (they import
everything once) is counted, and also told by itself.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from data_prep.large_slides import compose_large_slide
from data_prep.stain_target import DEFAULT_TARGET
from esad_med.base.cases import Case
from esad_med.base.execution import Place, open_executor
from pipelines.pathology import PathologyConfig
from pipelines.tiling import tile_slides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slides", type=int, default=16)
    parser.add_argument("--edge", type=int, default=28672, help="of a slide, level-0 pixels")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(2):
            compose_large_slide(folder / f"{seed}.tif", options.edge, seed=seed)
        cases = [Case(f"s{n:03d}", folder / f"{n % 2}.tif") for n in range(options.slides)]
        tile(cases[:1], folder, 0)  # compiles
        start, begin = (
            statistics.median(start_workers(workers) for _ in range(options.repeats))
            for workers in (options.workers, 1)
        )
        turns = [
            [tile(cases, folder, workers) for workers in (0, 1, options.workers)]
            for _ in range(options.repeats)
        ]
    alone, beside, shared = (statistics.median(column) for column in zip(*turns, strict=True))
    rest = shared - start
    steady = alone / rest
    print("| what | seconds | times as fast | target |\n|---|---|---|---|")
    print(f"| {options.slides} slides, in this process | {alone:.1f} | 1 | |")
    print(f"| in one beside it | {beside:.1f} | {alone / beside:.2f} | |")
    print(f"| its start alone | {begin:.1f} | | |")
    print(f"| {options.workers} workers | {shared:.1f} | {alone / shared:.2f} | |")
    print(f"| their start alone | {start:.1f} | | |")
    verdict = "" if options.workers != 2 else "1.7, pass" if steady >= 1.7 else "1.7, miss"
    print(f"| {options.workers} workers, started | {rest:.1f} | {steady:.2f} | {verdict} |")


def tile(cases: list[Case], folder: Path, workers: int) -> float:
    """Wall seconds of tiling into a store, which is replaced."""
    start = time.perf_counter()
    tile_slides(
        cases,
        folder / "store",
        PathologyConfig(),
        target=DEFAULT_TARGET,
        overwrite=True,
        place=Place(workers),
        say=lambda _: None,
    )
    return time.perf_counter() - start


def start_workers(workers: int) -> float:
    """Wall seconds until every worker has imported what tiling needs, and to the end."""
    start = time.perf_counter()
    with open_executor(Place(workers)) as executor:
        for future in [executor.submit(import_tiling) for _ in range(2 * workers)]:
            future.result()
    return time.perf_counter() - start


def import_tiling() -> None:
    import pipelines.tiling  # noqa: F401


if __name__ == "__main__":
    main()
