r"""ESAD on embeddings of PCam tiles, by a small encoder composed here; a line of JSON per run.

    python -m benchmarks.embeddings --half development --out runs/embeddings
    python -m benchmarks.embeddings --half report --out runs/embeddings

Halves, splits and baselines are those of `benchmarks.pcam`. The encoder's filters are the centers
of whitened patches (k-means) of the development half's normal tiles; an embedding is the mean and
the deviation of each filter's answers over the tile. Nothing of it has seen a label of a tumor tile
or a tile of the report half.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pandas as pd
from onnx import TensorProto, helper, numpy_helper
from sklearn.cluster import MiniBatchKMeans

from benchmarks.pcam import (
    add_changes,
    draw_split,
    import_half,
    read_results,
    score_by_histograms,
    score_by_neighbors,
    tabulate,
)
from esad_med.assess.evaluation import auc
from esad_med.base.config import load_config
from esad_med.base.runs import ensure_folder
from esad_med.base.store import SampleStore
from esad_med.method.config import TrainConfig
from esad_med.method.encoder import load_encoder
from esad_med.method.fitting import TrainingData, fit_detector

PATCH = 8
PATCHES = 60_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--half", choices=("development", "report"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--methods", nargs="+", default=("recommended", "logistic", "neighbors"))
    add_changes(parser)
    options = parser.parse_args()
    out = ensure_folder(options.out)
    development = import_half("development", out / "development-tiles")
    encoder = load_encoder(compose_encoder(development, options.dim, out / f"d{options.dim}.onnx"))
    store = import_half(options.half, out / f"{options.half}-tiles")
    vectors = encoder(np.asarray(store.samples))
    truth = store.rows["truth"].to_numpy(dtype=np.int8)
    results = out / f"{options.half}.jsonl"
    done = {(r["method"], r["seed"]) for r in read_results(results)}
    for method in options.methods:
        label = " ".join([f"{method} d={options.dim}", *options.changes])
        for seed in range(options.seeds):
            if (label, seed) in done:
                continue
            start = time.perf_counter()
            found = run(vectors, truth, method, seed, options.changes)
            seconds = round(time.perf_counter() - start, 1)
            line = {"method": label, "seed": seed, **found, "seconds": seconds}
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)
    print(tabulate(pd.DataFrame(read_results(results))))


def run(
    vectors: npt.NDArray[np.float32],
    truth: npt.NDArray[np.int8],
    method: str,
    seed: int,
    changes: list[str],
) -> dict[str, float]:
    """AUC on the test tiles of the score and of each term."""
    normal, outliers, test = draw_split(truth, seed)
    if method == "logistic":
        return {"score": auc(truth[test], score_by_histograms(vectors, normal, outliers, test))}
    if method == "neighbors":
        return {"score": auc(truth[test], score_by_neighbors(vectors, normal, outliers, test))}
    chosen = np.concatenate([normal, outliers])
    y = np.repeat([1, -1], [len(normal), len(outliers)])
    config = load_config(TrainConfig, None, ["kind=vector", f"seed={seed}", *changes])
    scores = fit_detector(TrainingData(vectors[chosen], y), config).score(vectors[test])
    return {name: auc(truth[test], getattr(scores, name)) for name in scores._fields}


def compose_encoder(store: SampleStore, dim: int, path: Path) -> Path:
    """An ONNX model of dim / 2 filters, fitted on the store's normal tiles."""
    if path.exists():
        return path
    random = np.random.default_rng(0)
    tiles = np.asarray(store.samples)[store.rows["truth"].to_numpy() == 0]
    patches = np.stack([_patch(tiles, random) for _ in range(PATCHES)])  # (n, 8, 8, 3) 0 to 1
    flat = patches.reshape(PATCHES, -1)
    mean = flat.mean(0)
    values, vectors = np.linalg.eigh(np.cov((flat - mean).T))
    whiten = vectors @ np.diag(1 / np.sqrt(values + 1e-3)) @ vectors.T
    means = MiniBatchKMeans(dim // 2, random_state=0, n_init=1).fit((flat - mean) @ whiten)
    centers = means.cluster_centers_
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    kernel = (centers @ whiten).reshape(dim // 2, PATCH, PATCH, 3).transpose(0, 3, 1, 2)
    bias = -(centers @ whiten @ mean) - 1.0  # an answer counts from one deviation on
    _save(kernel, bias, path)
    return path


def _patch(tiles: npt.NDArray[np.uint8], random: np.random.Generator) -> npt.NDArray[np.float64]:
    index, top, left = (int(random.integers(n)) for n in (len(tiles), 64 - PATCH, 64 - PATCH))
    return tiles[index, top : top + PATCH, left : left + PATCH] / 255.0


def _save(kernel: npt.NDArray[np.float64], bias: npt.NDArray[np.float64], path: Path) -> None:
    count = len(kernel)
    weights = {"kernel": kernel, "bias": bias}
    nodes = [
        helper.make_node("Conv", ["pictures", "kernel", "bias"], ["answers"], strides=[2, 2]),
        helper.make_node("Relu", ["answers"], ["positive"]),
        helper.make_node("ReduceMean", ["positive"], ["mean"], axes=[2, 3], keepdims=1),
        helper.make_node("Sub", ["positive", "mean"], ["rest"]),
        helper.make_node("ReduceL2", ["rest"], ["spread"], axes=[2, 3], keepdims=1),
        helper.make_node("Concat", ["mean", "spread"], ["both"], axis=1),
        helper.make_node("Flatten", ["both"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "filters",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 2 * count])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {"esad.mean": "[0, 0, 0]", "esad.std": "[1, 1, 1]"})
    onnx.save(model, str(path))


if __name__ == "__main__":
    main()
