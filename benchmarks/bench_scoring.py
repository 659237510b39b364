r"""Scoring on a CPU: our networks against the same network as PyTorch runs it by default.

    python -m benchmarks.bench_scoring [--width 1 0.25 0.125] [--batch 32 256] [--threads 1 2]
    python -m benchmarks.bench_scoring --auc [--seeds 5]

The peer is float32, batch norm apart, channels first, eager, in inference mode. Ours are what
`Detector.score` uses: batch norm folded, channels last, layers fused or not (`ESAD_PLAIN=layers`).
Pictures are 64 x 64 x 3; medians of five turns. The share is of the rate of a large bfloat16 matrix
product in the same run; fused layers take fewer products than are counted, and integers are faster.

``--auc`` trains detectors of five networks on half of PatchCamelyon (`benchmarks.pcam`) and
compares the AUC in each precision on their test tiles.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks.bench_training import forward_operations, matrix_rate
from esad_med.method.networks import ImageNetworkSpec, build_network
from esad_med.method.scoring_networks import Precision, ScoringNetworks

TURNS = 5
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=float, nargs="+", default=[1.0])
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--auc", action="store_true")
    parser.add_argument("--seeds", type=int, default=5, help="with --auc")
    options = parser.parse_args()
    if options.auc:
        compare_auc(options.seeds)
        return
    print("| width | batch | threads | how | pictures/s | ratio | share of the matrix rate |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for threads in options.threads:
        torch.set_num_threads(threads)
        ceiling = matrix_rate(torch.device("cpu"))
        for width in options.width:
            work = forward_operations(width)
            for size in options.batch:
                first = 0.0
                for how, rate in measure(width, size):
                    first = first or rate
                    share = f"{rate * work / ceiling:.0%}"
                    cells = (
                        f"{width:g}",
                        size,
                        threads,
                        how,
                        f"{rate:,.1f}",
                        f"{rate / first:.2f}",
                    )
                    print("| " + " | ".join(map(str, (*cells, share))) + " |", flush=True)


def measure(width: float, size: int) -> Iterator[tuple[str, float]]:
    """Pictures per second of each way, taken in turns."""
    torch.manual_seed(0)
    spec = ImageNetworkSpec(width=width)
    peer = build_network(spec).eval()
    weights = {f"member0.{name}": value for name, value in peer.state_dict().items()}
    networks = ScoringNetworks(spec, weights, members=1, device=torch.device("cpu"))
    with mock.patch.dict(os.environ, {"ESAD_PLAIN": "layers"}):
        plain = ScoringNetworks(spec, weights, members=1, device=torch.device("cpu"))
        plain.of("bfloat16")
    x = torch.rand(size, 3, 64, 64) * 2 - 1
    last = x.contiguous(memory_format=torch.channels_last)
    ways: dict[str, Callable[[], object]] = {"default, float32": lambda: peer(x)}
    for precision in ("float32", "bfloat16"):
        ways[f"ours, {precision}, layers not fused"] = partial(plain.of(precision)[0], last)
    for precision in ("float32", "bfloat16", "int8"):
        ways[f"ours, {precision}"] = partial(networks.of(precision)[0], last)
    with torch.inference_mode():
        for way in ways.values():
            way()
        seconds: dict[str, list[float]] = {how: [] for how in ways}
        for _ in range(TURNS):
            for how, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[how].append(time.perf_counter() - start)
    for how in ways:
        yield how, size / statistics.median(seconds[how])


def compare_auc(seeds: int) -> None:
    """AUC on PCam's test tiles by the same detectors in each precision."""
    from benchmarks.pcam import draw_split, import_half
    from esad_med.base.config import load_config
    from esad_med.base.store_writing import write_store
    from esad_med.method.config import TrainConfig
    from esad_med.method.scores import rank_auc
    from esad_med.method.trainer import train

    aucs: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    moved: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    with tempfile.TemporaryDirectory() as name:
        tiles = import_half("report", Path(name) / "tiles")
        truth = tiles.rows["truth"].to_numpy(dtype=np.int8)
        contract = {k: tiles.contract[k] for k in ("kind", "modality", "value_range", "mpp")}
        for seed in range(seeds):
            normal, outliers, test = draw_split(truth, seed)
            rows = np.sort([*normal, *outliers])
            chosen = tiles.rows.iloc[rows].reset_index(drop=True).assign(split="train")
            folder = Path(name) / f"s{seed}"
            store = write_store(folder, np.asarray(tiles.samples[rows]), chosen, contract)
            settings = ["network.width=0.25", "epochs=10", f"seed={seed}"]
            detector = train(store, load_config(TrainConfig, None, settings), Path(f"{folder}d"))
            samples, exact = np.asarray(tiles.samples[test]), np.empty(0)
            for precision in PRECISIONS:
                scores = detector.score(samples, precision=precision).score
                exact = scores if precision == "float32" else exact
                positive = truth[test] == 1
                aucs[precision].append(rank_auc(scores[~positive], scores[positive]))
                apart = detector.percentile(scores) - detector.percentile(exact)
                moved[precision].append(float(np.abs(apart).mean()))
    print("| precision | AUC | against float32 | largest | percentiles moved, mean |")
    print("|---|---|---|---|---|")
    for precision in PRECISIONS:
        found = np.array(aucs[precision])
        apart = found - np.array(aucs["float32"])
        cells = (f"{found.mean():.4f}", f"{apart.mean():+.4f}", f"{np.abs(apart).max():.4f}")
        print("| " + " | ".join((precision, *cells, f"{np.mean(moved[precision]):.2f}")) + " |")


if __name__ == "__main__":
    main()
