"""Stain normalization side by side: ours against staintools and spams, on one core.

Run with ``make bench`` or ``python benchmarks/bench_stain.py``. Tiles are cut from the tissue
picture that scikit-image ships, recolored to H&E as in the demo. The ratios hold better than the
times, which move with the machine's load. One fit serves a whole slide; staintools as shipped fits
for a second of the clock on all cores, whatever the size, and is meant to be called per tile.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from data_prep.color import Bytes, ColorHistogram
from data_prep.compiled import compile_kernel
from data_prep.demo_slides import compose_demo_picture, source_concentrations
from data_prep.stain import StainSpec, fit_stain, normalize_stain
from data_prep.stain_target import DEFAULT_TARGET
from data_prep.vahadane import ordered, remap_kernel, remap_numpy, vahadane_matrix
from esad_med.base.errors import ConfigError

Row = tuple[str, float, str]


def cut_tiles(count: int) -> Bytes:
    source = source_concentrations()
    picture, _ = compose_demo_picture(source, 1, np.random.default_rng(0), size=2560)
    middle = picture[768:1792, 768:1792]
    tiles = middle.reshape(16, 64, 16, 64, 3).swapaxes(1, 2).reshape(-1, 64, 64, 3)
    return np.resize(tiles, (count, 64, 64, 3))


def median_time(call: Callable[[], object], rounds: int = 5) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def time_mapping(tiles: Bytes) -> list[Row]:
    """Concentrations and new colors of all tiles, the stain matrix given."""
    spec = StainSpec()
    stain = fit_stain([tiles], spec, name="bench")
    scale = DEFAULT_TARGET.max_concentration / stain.max_concentration
    pixels = tiles.reshape(-1, 3)
    normalize_stain(tiles[:1], stain, DEFAULT_TARGET, spec)  # compiles
    kind = "numba" if compile_kernel(remap_kernel) else "numpy: numba is missing"
    rows: list[Row] = [
        (
            f"map: ours ({kind})",
            median_time(lambda: normalize_stain(tiles, stain, DEFAULT_TARGET, spec)),
            "",
        ),
        (
            "map: ours (numpy)",
            median_time(
                lambda: remap_numpy(
                    pixels, stain.matrix, scale, DEFAULT_TARGET.matrix, penalty=0.01
                ),
                rounds=2,
            ),
            "",
        ),
    ]
    try:
        from data_prep.reference import remap_staintools

        part = tiles[: max(1, len(tiles) // 8)]
        seconds = median_time(
            lambda: remap_staintools(part, stain.matrix, scale, DEFAULT_TARGET.matrix), rounds=2
        )
        ours = normalize_stain(part, stain, DEFAULT_TARGET, spec).astype(int)
        theirs = remap_staintools(part, stain.matrix, scale, DEFAULT_TARGET.matrix)
        apart = int(np.abs(ours - theirs).max())
    except ConfigError as error:
        return [*rows, ("map: spams.lasso, same matrix", np.nan, str(error)[:60])]
    note = f"largest difference from ours {apart} gray level(s)"
    return [*rows, ("map: spams.lasso, same matrix", seconds * len(tiles) / len(part), note)]


def time_fitting(tiles: Bytes) -> list[Row]:
    """The stain matrix of all tiles, and how far it lies from spams run to convergence."""
    matrix = vahadane_matrix(ColorHistogram.of([tiles], luminosity=0.8), penalty=0.1)
    assert matrix is not None
    rows: list[Row] = []

    def fit() -> object:
        return vahadane_matrix(ColorHistogram.of([tiles], luminosity=0.8), penalty=0.1)

    try:
        from data_prep.reference import staintools_matrix

        start = time.perf_counter()
        optimum = staintools_matrix([tiles], iterations=20_000)
        converged = time.perf_counter() - start
        shipped, seconds = fit_as_shipped(tiles)
        fixed = staintools_matrix([tiles])
        seconds_fixed = median_time(lambda: staintools_matrix([tiles]), rounds=1)
        rows = [
            ("fit: --stain staintools (2000 steps)", seconds_fixed, tell_angle(fixed, optimum)),
            ("fit: staintools as shipped", seconds, tell_angle(shipped, optimum)),
            ("fit: spams to convergence (20000 steps)", converged, "taken as the optimum"),
        ]
        return [("fit: ours (histogram)", median_time(fit), tell_angle(matrix, optimum)), *rows]
    except ConfigError as error:
        note = str(error)[:60]
        return [("fit: ours (histogram)", median_time(fit), ""), ("fit: staintools", np.nan, note)]


def fit_as_shipped(tiles: Bytes) -> tuple[np.ndarray, float]:
    from staintools.stain_extraction.vahadane_stain_extractor import VahadaneStainExtractor

    copy = tiles.reshape(-1, 64, 3).copy()  # it writes into its input
    start = time.perf_counter()
    matrix = VahadaneStainExtractor.get_stain_matrix(copy)
    return ordered(matrix), time.perf_counter() - start


def tell_angle(matrix: np.ndarray, optimum: np.ndarray) -> str:
    cosine = np.clip((matrix * optimum).sum(axis=1), -1, 1)
    return f"{np.degrees(np.arccos(cosine)).max():.3f} degrees from the optimum"


def print_table(rows: list[Row], tiles: int) -> None:
    first = {row[0].split(":")[0]: row[1] for row in reversed(rows)}
    print(f"{'what':38} {'seconds':>9} {'ms/tile':>9} {'ratio':>8}  note")
    for name, seconds, note in rows:
        ratio = seconds / first[name.split(":")[0]]
        print(f"{name:38} {seconds:9.3f} {1e3 * seconds / tiles:9.4f} {ratio:8.1f}  {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=int, default=1024, help="number of 64x64 tiles")
    count = parser.parse_args().tiles
    tiles = cut_tiles(count)
    print(f"{count} tiles of 64x64; ratio 1 is ours")
    print_table([*time_mapping(tiles), *time_fitting(tiles)], count)


if __name__ == "__main__":
    main()
