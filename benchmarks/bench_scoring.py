r"""Scoring on a CPU: our networks against the same network as PyTorch runs it by default.

    python -m benchmarks.bench_scoring [--width 1 0.25 0.125] [--batch 32 256] [--threads 1 2]
    python -m benchmarks.bench_scoring --auc

The peer is float32, batch norm apart, channels first, eager, in inference mode. Ours are what
`Detector.score` uses: batch norm folded, channels last, float32 or bfloat16 weights. Compiled is
the same through torch.compile with frozen weights, for comparison. Pictures are 64 x 64 x 3;
medians of five turns. The share is of the rate of a large bfloat16 matrix product in the same run.

``--auc`` trains a detector of one network on half of PatchCamelyon (`benchmarks.pcam`) and compares
the AUC of both precisions on its test tiles.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench_training import forward_operations, matrix_rate
from esad_med.method.networks import ImageNetworkSpec, build_network, fold_batch_norm, place

TURNS = 5
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=float, nargs="+", default=[1.0])
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--compile", action="store_true", help="also through torch.compile")
    parser.add_argument("--auc", action="store_true")
    options = parser.parse_args()
    if options.auc:
        compare_auc()
        return
    print("| width | batch | threads | how | pictures/s | ratio | share of the matrix rate |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for threads in options.threads:
        torch.set_num_threads(threads)
        ceiling = matrix_rate(CPU)
        for width in options.width:
            work = forward_operations(width)
            for size in options.batch:
                first = 0.0
                for how, rate in measure(width, size, compiled=options.compile):
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


def measure(width: float, size: int, *, compiled: bool) -> Iterator[tuple[str, float]]:
    """Pictures per second of each way, taken in turns."""
    torch.manual_seed(0)
    peer = build_network(ImageNetworkSpec(width=width)).eval()
    x = torch.rand(size, 3, 64, 64) * 2 - 1
    last = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        ours = place(fold_batch_norm(copy.deepcopy(peer)), CPU)
        rounded = copy.deepcopy(ours).to(torch.bfloat16)
        ways: dict[str, Callable[[], object]] = {
            "default, float32": lambda: peer(x),
            "ours, float32": lambda: ours(last),
            "ours, bfloat16": lambda: rounded(last.to(torch.bfloat16)),
        }
        if compiled:
            import torch._inductor.config as inductor

            inductor.freezing = True
            quick = torch.compile(rounded)
            ways["ours, bfloat16, compiled"] = lambda: quick(last.to(torch.bfloat16))
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


def compare_auc() -> None:
    """AUC on PCam's test tiles by the same detector in float32 and bfloat16."""
    from benchmarks.pcam import draw_split, import_half
    from esad_med.base.config import load_config
    from esad_med.base.store import write_store
    from esad_med.method.config import TrainConfig
    from esad_med.method.scores import rank_auc
    from esad_med.method.trainer import train

    with tempfile.TemporaryDirectory() as name:
        tiles = import_half("report", Path(name) / "tiles")
        truth = tiles.rows["truth"].to_numpy(dtype=np.int8)
        normal, outliers, test = draw_split(truth, 0)
        rows = np.sort([*normal, *outliers])
        contract = {k: tiles.contract[k] for k in ("kind", "modality", "value_range", "mpp")}
        chosen = tiles.rows.iloc[rows].reset_index(drop=True).assign(split="train")
        store = write_store(Path(name) / "s", np.asarray(tiles.samples[rows]), chosen, contract)
        settings = ["network.width=0.25", "members=1", "epochs=10", "test_time_augmentation=1"]
        detector = train(store, load_config(TrainConfig, None, settings), Path(name) / "d")
        samples = np.asarray(tiles.samples[test])
        scores = {p: detector.score(samples, precision=p).score for p in ("float32", "bfloat16")}
    for precision, found in scores.items():
        auc = rank_auc(found[truth[test] == 0], found[truth[test] == 1])
        print(f"{precision}: AUC {auc:.5f} on {len(test)} tiles")
    apart = np.abs(scores["bfloat16"] - scores["float32"]).max() / np.ptp(scores["float32"])
    print(f"largest difference of a score: {apart:.4f} of the range of scores")


if __name__ == "__main__":
    main()
