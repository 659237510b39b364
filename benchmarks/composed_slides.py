"""Slide and tile AUC on composed slides with stain looks not met in training; resumable.

    python -m benchmarks.composed_slides --out runs/composed

From a half of PCam (see `benchmarks.pcam`; the report half unless said), split by seed 0: the
training tiles train one detector per stain setting; the test tiles are composed to 20 normal slides
and 20 with 2-20 % tumor tiles, each slide with a stain look of its own. The slides are tiled and
screened as files, by detectors of several training seeds: one detector alone says little.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.pcam import HALVES, add_changes, draw_split, import_half, read_results
from data_prep.stain import StainSpec, fit_stain, normalize_stain
from data_prep.stain_target import DEFAULT_TARGET
from data_prep.synthetic import compose_from_store
from data_prep.tiles import TileSpec
from esad_med.base.cases import Case, read_manifest
from esad_med.base.config import load_config
from esad_med.base.runs import ensure_folder
from esad_med.base.store import SampleStore
from esad_med.base.store_writing import write_store
from esad_med.method.config import TrainConfig
from esad_med.method.detector import Detector
from esad_med.method.scores import rank_auc
from esad_med.method.trainer import train
from pipelines.pathology import PathologyConfig, preparation
from pipelines.scoring import evaluate_scores
from pipelines.screening import screen_slides, screening_config

SPLIT_SEED = 0  # of the tiles and the slides
STAINS = ("vahadane", "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--slides", type=int, default=20, help="of each kind")
    parser.add_argument("--seeds", type=int, default=3, help="detectors per stain setting")
    parser.add_argument("--stains", nargs="+", choices=STAINS, default=STAINS)
    parser.add_argument("--half", choices=HALVES, default="report")
    add_changes(parser)
    options = parser.parse_args()
    out = ensure_folder(options.out / options.half)
    tiles = import_half(options.half, out / "tiles")
    truth = tiles.rows["truth"].to_numpy(dtype=np.int8)
    normal, outliers, test = draw_split(truth, SPLIT_SEED)
    cases = compose(tiles, test, out / "slides", options.slides)
    results = out / "results.jsonl"
    recipe = " ".join(["recommended", *options.changes])
    done = {(line["recipe"], line["stain"], line["seed"]) for line in read_results(results)}
    for seed in range(options.seeds):
        for stain in options.stains:
            if (recipe, stain, seed) in done:
                continue
            folder = ensure_folder(out / f"{recipe}_{stain}_{seed}")
            start = time.perf_counter()
            rows = np.sort([*normal, *outliers])
            settings = [f"network.width={options.width}", f"seed={seed}", *options.changes]
            detector = train_on(tiles, rows, folder, stain, settings)
            trained = time.perf_counter()
            config = screening_config(detector, None, [])
            screen_slides(cases, detector, folder / "screened", config, say=print)
            seconds = (trained - start, time.perf_counter() - trained)
            found = summarize(folder, *seconds)
            line = {"recipe": recipe, "stain": stain, "seed": seed, **found}
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
    table = pd.DataFrame(read_results(results))
    print(table.to_string(index=False))
    groups = table.drop(columns="seed").groupby(["recipe", "stain"], sort=False)
    print(groups.agg(["mean", "std"]).round(1).T.to_string())


def compose(
    tiles: SampleStore, rows: npt.NDArray[np.int64], folder: Path, count: int
) -> list[Case]:
    """The slides, composed once; tiles are reused with flips and rotations."""
    if not (folder / "manifest.csv").exists():
        compose_from_store(
            tiles, folder, normal_slides=count, tumor_slides=count, seed=SPLIT_SEED, rows=rows
        )
    return read_manifest(folder / "manifest.csv")


def train_on(
    tiles: SampleStore,
    rows: npt.NDArray[np.int64],
    folder: Path,
    stain: str,
    settings: list[str],
) -> Detector:
    """A detector on these tiles in this stain setting; PCam names no slides: one matrix for all."""
    spec = StainSpec(method=stain)  # type: ignore[arg-type] # a Literal, from the loop above
    samples = np.asarray(tiles.samples[rows])
    fitted = fit_stain([samples], spec, name="the training tiles")
    config = PathologyConfig(tiles=TileSpec(mpp=tiles.contract["mpp"]), stain=spec)
    contract = {key: tiles.contract[key] for key in ("kind", "modality", "value_range", "mpp")}
    store = write_store(
        folder / "store",
        normalize_stain(samples, fitted, DEFAULT_TARGET, spec),
        tiles.rows.iloc[rows].reset_index(drop=True).assign(split="train"),
        {**contract, "preparation": preparation(config, DEFAULT_TARGET)},
    )
    training = load_config(TrainConfig, None, settings)
    return train(store, training, folder / "detector", resume=True)


def summarize(folder: Path, trained: float, screened: float) -> dict[str, float]:
    """AUC in percent of slides by each rule, and of tiles by each term; seconds."""
    slides = pd.read_csv(folder / "screened" / "slides.csv")
    result = {}
    for rule in ("slide_score", "maximum", "area_above_threshold_mm2"):
        normal, tumor = (slides.loc[slides["truth"] == label, rule].to_numpy() for label in (0, 1))
        result[f"slide AUC by {rule}"] = 100 * rank_auc(normal, tumor)
    tiles = evaluate_scores(folder / "screened", folder / "tiles", by="slide")
    for term, found in tiles.measures.items():
        result[f"tile AUC, {term}"] = 100 * found.auc
    result |= {"training s": trained, "screening s": screened}
    return {name: round(value, 1) for name, value in result.items()}


if __name__ == "__main__":
    main()
