r"""Whole tiling of a slide at 10x against other packages: CPU time per 64x64 tile, one thread.

    python -m benchmarks.bench_tiling [--edge 28672] [--repeats 3]

A composed slide of 0.25 µm per pixel (`data_prep.large_slides`). Ours is `esad-med tile` without
its start: overview, tissue mask, grid, stain fit, decoding, normalization, store with its table and
checksums, and the quality picture. Peers read the same tiles with OpenSlide, one by one, and
normalize them; no mask, no grid, nothing is written. Each runs in a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.peers import peer_python

TILE = 64
#: How many tiles each way is timed on, what it must be installed from, and our target.
WAYS: dict[str, tuple[int | None, tuple[str, ...], str]] = {
    "ours": (None, (), ""),
    "ours, all fast paths off": (None, (), ""),
    "ours, reading alone": (None, (), ""),
    "JPEG decoding of the tiles touched": (None, (), "at most 3x"),
    "OpenSlide, reading alone": (None, (), "3x of reading"),
    "staintools' concentrations, one matrix": (400, (), "10x"),
    "staintools as shipped": (4, (), "3000x"),
    "torchstain Macenko": (400, ("torchstain",), "6x"),
    "MONAI NormalizeHEStains": (400, (), "6x"),
    "tiatoolbox Vahadane": (40, ("setuptools<81", "tiatoolbox"), ""),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edge", type=int, default=28672, help="of the slide, level-0 pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--slide", type=Path, help="instead of a composed one")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.slide)))
        return
    with tempfile.TemporaryDirectory() as folder:
        slide = options.slide or compose(Path(folder) / "large.tif", options.edge)
        print("| what | ms per tile | ratio to ours | target |\n|---|---|---|---|", flush=True)
        first = 0.0
        for way, (_, packages, target) in WAYS.items():
            seconds, reason = run(way, packages, slide, options.repeats)
            first = first or seconds
            cells = ("—", reason) if reason else (f"{1e3 * seconds:.4f}", f"{seconds / first:.2f}")
            print(f"| {way} | {cells[0]} | {cells[1]} | {target} |", flush=True)


def compose(path: Path, edge: int) -> Path:
    from data_prep.large_slides import compose_large_slide

    compose_large_slide(path, edge)
    return path


def run(way: str, packages: tuple[str, ...], slide: Path, repeats: int) -> tuple[float, str]:
    """Median CPU seconds per tile in fresh processes, or why there are none."""
    python, reason = peer_python(*packages) if packages else (Path(sys.executable), "")
    if reason:
        return 0.0, reason
    plain = {"ESAD_PLAIN": "all"} if way.endswith("off") else {}
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    command = [str(python), "-m", "benchmarks.bench_tiling", "--way", way, "--slide", str(slide)]
    found = []
    for _ in range(repeats):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, **one, **plain}
        )
        if done.returncode:
            return 0.0, f"fails: {done.stderr.strip().splitlines()[-1][:120]}"
        found.append(float(json.loads(done.stdout.splitlines()[-1])))
    return statistics.median(found), ""


def measure(way: str, slide: Path) -> float:
    """CPU seconds per tile of one way, in this process; compiled and imported before."""
    if way.startswith("ours") and "reading" not in way:
        return tile_whole(slide)
    if way == "JPEG decoding of the tiles touched":
        return decode_touched(slide)
    count = WAYS[way][0]
    if way.endswith("reading alone"):
        os.environ["ESAD_PLAIN"] = "" if way.startswith("ours") else "reader"
        read_all(slide)
        return timed(lambda: len(read_all(slide)))
    tiles = spread(slide, count or 1)
    normalize = NORMALIZERS[way](tiles)
    normalize(tiles[0])

    def work() -> int:
        for tile in spread(slide, len(tiles)):
            normalize(tile)
        return len(tiles)

    return timed(work)


def timed(work: Callable[[], int]) -> float:
    start = time.process_time()
    count = work()
    return (time.process_time() - start) / count


def tile_whole(slide: Path) -> float:
    from data_prep.stain_target import DEFAULT_TARGET
    from esad_med.base.cases import Case
    from pipelines.pathology import PathologyConfig
    from pipelines.tiling import tile_slides

    def work(out: Path) -> int:
        summary = tile_slides(
            [Case("large", slide)],
            out,
            PathologyConfig(),
            target=DEFAULT_TARGET,
            say=lambda _: None,
        )
        return summary.slides[0].tiles

    with tempfile.TemporaryDirectory() as folder:  # removing it takes time that is not ours
        work(Path(folder) / "first")
        return timed(lambda: work(Path(folder) / "store"))


def plan(slide: Any) -> Any:
    from data_prep.tiles import TileSpec, plan_tiles
    from data_prep.tissue import TissueSpec, find_tissue

    return plan_tiles(slide, find_tissue(slide, TissueSpec()), TileSpec())


_grids: dict[Path, Any] = {}


def read_all(path: Path) -> npt.NDArray[np.int64]:
    """Read every tile in raster order, with what ESAD_PLAIN says; which were read."""
    from data_prep.slides import open_slide
    from data_prep.tiles import read_tiles

    with open_slide(path) as slide:
        if path not in _grids:
            _grids[path] = plan(slide)
        return np.concatenate([batch.indices for batch in read_tiles(slide, _grids[path])])


def spread(path: Path, count: int) -> list[npt.NDArray[np.uint8]]:
    """A run of tiles in raster order from the middle of the slide, read by OpenSlide one by one."""
    import openslide

    from data_prep.slides import open_slide

    if path not in _grids:
        with open_slide(path) as slide:
            _grids[path] = plan(slide)
    grid = _grids[path]
    handle = openslide.OpenSlide(str(path))
    first = (len(grid) - count) // 2
    corners = grid.xy_level0[first : first + count].tolist()
    size = (grid.read_px, grid.read_px)
    return [
        np.asarray(handle.read_region((x, y), grid.level, size).convert("RGB")) for x, y in corners
    ]


def decode_touched(path: Path) -> float:
    """The compressed tiles under the grid, each decoded once: nothing that reads can be faster."""
    import simplejpeg
    import tifffile

    from data_prep.slides import open_slide

    with open_slide(path) as slide:
        grid = plan(slide)
        size, downsample = slide.level_sizes[grid.level], slide.level_downsamples[grid.level]
    with tifffile.TiffFile(path) as tiff:
        page = next(p for p in tiff.pages if (p.imagewidth, p.imagelength) == size)
        corners = (grid.xy_level0 / downsample).astype(np.int64) // page.tilewidth
        touched = np.unique(corners[:, 1] * -(-size[0] // page.tilewidth) + corners[:, 0])
        found = []
        for index in touched.tolist():
            tiff.filehandle.seek(page.dataoffsets[index])
            found.append(tiff.filehandle.read(page.databytecounts[index]))

    def work() -> int:
        for data in found:
            simplejpeg.decode_jpeg(data, "RGB")
        return len(grid)

    work()
    return timed(work)


Normalize = Callable[[npt.NDArray[np.uint8]], object]


def by_staintools_concentrations(tiles: list[npt.NDArray[np.uint8]]) -> Normalize:
    from data_prep.reference import remap_staintools
    from data_prep.stain import StainSpec, fit_stain
    from data_prep.stain_target import DEFAULT_TARGET

    stain = fit_stain(tiles, StainSpec(), name="bench")
    scale = DEFAULT_TARGET.max_concentration / stain.max_concentration
    return lambda tile: remap_staintools(tile, stain.matrix, scale, DEFAULT_TARGET.matrix)


def by_staintools(tiles: list[npt.NDArray[np.uint8]]) -> Normalize:
    import staintools

    normalizer = staintools.StainNormalizer(method="vahadane")
    normalizer.fit(tiles[0].copy())
    return lambda tile: normalizer.transform(tile.copy())


def by_torchstain(tiles: list[npt.NDArray[np.uint8]]) -> Normalize:
    import torch
    import torchstain

    normalizer = torchstain.normalizers.MacenkoNormalizer(backend="torch")
    normalizer.fit(torch.from_numpy(tiles[0]).permute(2, 0, 1))
    return lambda tile: normalizer.normalize(
        torch.from_numpy(tile.copy()).permute(2, 0, 1), stains=False
    )


def by_monai(tiles: list[npt.NDArray[np.uint8]]) -> Normalize:
    from monai.apps.pathology.transforms import NormalizeHEStains

    return NormalizeHEStains()


def by_tiatoolbox(tiles: list[npt.NDArray[np.uint8]]) -> Normalize:
    from tiatoolbox.tools.stainnorm import VahadaneNormalizer

    normalizer = VahadaneNormalizer()
    normalizer.fit(tiles[0])
    return lambda tile: normalizer.transform(tile.copy())


NORMALIZERS: dict[str, Callable[[list[npt.NDArray[np.uint8]]], Normalize]] = {
    "staintools' concentrations, one matrix": by_staintools_concentrations,
    "staintools as shipped": by_staintools,
    "torchstain Macenko": by_torchstain,
    "MONAI NormalizeHEStains": by_monai,
    "tiatoolbox Vahadane": by_tiatoolbox,
}


if __name__ == "__main__":
    main()
