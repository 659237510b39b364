"""Does a stated share of false alarms hold? On held-out data, over random splits; resumable.

Random divisions of one pool are exchangeable by construction: the first table shows that the whole
arithmetic keeps its law on real scores, with patients of several images, not that the next
hospital's normals are like this one's. `scanner` shows what happens when they are not.

    python -m benchmarks.bench_calibration --out runs/calibration

A small detector is trained on a part of each data set; the scores of all other normals are kept in
``NAME.csv``. Then, many times, the independent units (samples, patients, slides) are dealt anew to
a calibration and a test set. Printed per nominal rate: the mean false-alarm rate among test units
and the share of splits inside the central 95 % of the beta-binomial law, which says how many false
alarms so many test units give after so many calibration units; and the p-value of a test against
the law's mean over all splits together. `scanner` calibrates on composed slides of one scanner
and screens those of another, whose colors are shifted, with and without stain normalization.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import tifffile
from scipy import stats

from benchmarks.composed_slides import train_on
from benchmarks.nih_cxr import KNOWN, data_folder
from benchmarks.pcam import LABELED, import_half
from data_prep.natural import read_mnist
from data_prep.slide_writing import write_manifest, write_pyramid
from data_prep.synthetic import HE_MATRIX, change_look, compose_from_store
from esad_med.assess.calibration import alarm_threshold, least_units, normal_tail, p_values
from esad_med.base.cases import Case, read_manifest
from esad_med.base.config import load_config
from esad_med.base.errors import CaseError
from esad_med.base.runs import ensure_folder, read_json
from esad_med.base.store import SampleStore
from esad_med.base.store_writing import write_store
from esad_med.method.config import TrainConfig
from esad_med.method.detector import Detector
from esad_med.method.trainer import train
from pipelines.calibrating import calibrate
from pipelines.calibration_levels import CalibrationConfig
from pipelines.pathology import config_of
from pipelines.scoring import score_store
from pipelines.screening import screen_slides, screening_config
from pipelines.tiling import tile_slides
from pipelines.xray_store import XrayStoreConfig, make_xray_store

RATES = (0.01, 0.05, 0.1)
CALIBRATION_SHARE = 0.7  # of the units
SCANNER_MATRIX = HE_MATRIX * np.array([[0.85, 1.05, 1.25], [1.3, 1.0, 0.8]])
SCANNER_SCALE = np.array([0.75, 1.3])
SLIDES, OTHER_SLIDES, TILES = 142, 60, 80
CALIBRATED = 99  # slides of one scanner
GLASS_FROM = 235  # of 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", nargs="+", choices=(*SOURCES, "scanner"), default=None)
    parser.add_argument("--splits", type=int, default=5000)
    parser.add_argument("--width", type=float, default=0.0625)
    options = parser.parse_args()
    out, rows = ensure_folder(options.out), []
    chosen = options.data or (*SOURCES, "scanner")
    for name in (name for name in chosen if name != "scanner"):
        scores = out / f"{name}.csv"
        if not scores.exists():
            SOURCES[name](out / name, options.width).to_csv(scores, index=False)
        rows += list(measure(name, pd.read_csv(scores, dtype={"unit": str}), options.splits))
    if rows:
        print(pd.DataFrame(rows).to_string(index=False))
    if "scanner" in chosen:
        print(
            pd.DataFrame(change_scanner(ensure_folder(out / "slides"), options.width)).to_string(
                index=False
            )
        )


def measure(name: str, table: pd.DataFrame, splits: int):  # type: ignore[no-untyped-def]
    """A row per nominal rate: what `splits` random divisions of the units gave."""
    names, codes = np.unique(table["unit"], return_inverse=True)
    score = table["score"].to_numpy(np.float64)
    highest = np.full(len(names), -np.inf)
    np.maximum.at(highest, codes, score)  # the score of a patient is that of the highest image
    calibrated = round(CALIBRATION_SHARE * len(names))
    fresh, random = len(names) - calibrated, np.random.default_rng(0)
    for rate in RATES:
        if calibrated < least_units(rate):
            continue
        counts, single = np.empty(splits), np.full(splits, np.nan)
        for split in range(splits):
            order = random.permutation(len(names))
            known, new = order[:calibrated], order[calibrated:]
            threshold = alarm_threshold(normal_tail(highest[known]), rate)
            counts[split] = (highest[new] > threshold).sum()
            if len(score) > len(names):
                single[split] = rate_of_samples(score, codes, known, new, rate)
        hits = int(np.floor(rate * (calibrated + 1) + 1e-9))
        law = stats.betabinom(fresh, hits, calibrated + 1 - hits)
        low, high = law.ppf(0.025), law.ppf(0.975)
        z = (counts.mean() - law.mean()) / (law.std() / np.sqrt(splits))
        yield {
            "data": name,
            "calibration / test units": f"{calibrated} / {fresh}",
            "nominal %": 100 * rate,
            "found %": round(100 * counts.mean() / fresh, 2),
            "law's mean %": round(100 * law.mean() / fresh, 2),
            "p": round(float(2 * stats.norm.sf(abs(z))), 3),
            "splits inside 95 %": round(float(((counts >= low) & (counts <= high)).mean()), 3),
            "law says": round(float(law.cdf(high) - law.cdf(low - 1)), 3),
            "one sample of each new unit, found %": round(100 * float(single.mean()), 2),
        }


def rate_of_samples(
    score: npt.NDArray[np.float64],
    codes: npt.NDArray[np.intp],
    known: npt.NDArray[np.intp],
    new: npt.NDArray[np.intp],
    rate: float,
) -> float:
    """Share of false alarms among single samples of new units, every unit weighing the same."""
    inside, outside = np.isin(codes, known), np.isin(codes, new)
    alarms = p_values(score[outside], normal_tail(score[inside], codes[inside])) <= rate + 1e-12
    per_unit = pd.Series(alarms).groupby(codes[outside]).mean()
    return float(per_unit.mean())


def settings_of(width: float, *others: str) -> list[str]:
    return [f"network.width={width}", "epochs=10", *others]


def score_normals(store: SampleStore, detector, folder: Path) -> pd.DataFrame:  # type: ignore[no-untyped-def]
    """Scores of the normals that did not train."""
    table = score_store(store, detector, folder / "scores.csv", split="test")
    return table[table["truth"] == 0]


def score_pcam(folder: Path, width: float) -> pd.DataFrame:
    """Half of PCam's normals train, the others are held out; PCam names no slide."""
    ensure_folder(folder)
    parts = [import_half(half, folder / half) for half in ("development", "report")]
    samples = np.concatenate([np.asarray(part.samples) for part in parts])
    rows = pd.concat([part.rows for part in parts], ignore_index=True)
    random = np.random.default_rng(0)
    normal, tumor = (random.permutation(np.flatnonzero(rows["truth"] == t)) for t in (0, 1))
    training = np.concatenate([normal[: len(normal) // 2], tumor[:LABELED]])
    rows["split"] = np.where(np.isin(np.arange(len(rows)), training), "train", "test")
    rows["semi_label"] = np.where(rows["truth"] == 1, -1, 1)
    kept = ("kind", "modality", "value_range", "mpp", "preparation")
    contract = {key: parts[0].contract[key] for key in kept if key in parts[0].contract}
    store = write_store(folder / "store", samples, rows, contract)
    config = load_config(TrainConfig, None, settings_of(width))
    found = score_normals(store, train(store, config, folder / "detector", resume=True), folder)
    return pd.DataFrame({"unit": found["sample_id"], "score": found["score"]})


def score_mnist(folder: Path, width: float) -> pd.DataFrame:
    """Digit 0 is normal, 1,000 train with 10 sixes labeled; the test set's zeros are held out."""
    data = read_mnist(Path(os.environ.get("ESAD_DATA", "../shared/data")) / "natural" / "mnist")
    ensure_folder(folder)
    zeros = np.flatnonzero(data.train_labels == 0)[:1000]
    sixes = np.flatnonzero(data.train_labels == 6)[:10]
    fresh = np.flatnonzero(data.test_labels == 0)
    pictures = [data.train[zeros], data.train[sixes], data.test[fresh]]
    sizes = [len(part) for part in pictures]
    rows = pd.DataFrame(
        {
            "sample_id": np.arange(sum(sizes)).astype(str),
            "case_id": "",
            "patient_id": "",
            "split": np.repeat(["train", "train", "test"], sizes),
            "semi_label": np.repeat([1, -1, 1], sizes),
            "truth": np.repeat([0, 1, 0], sizes),
        }
    )
    samples = np.concatenate(pictures).reshape(len(rows), 28, 28, 1)
    contract = {"kind": "images", "value_range": [0, 255], "preparation": {}}
    store = write_store(folder / "store", samples, rows, contract)
    config = load_config(TrainConfig, None, settings_of(width, "kind=upright", "epochs=3"))
    found = score_normals(store, train(store, config, folder / "detector", resume=True), folder)
    return pd.DataFrame({"unit": found["sample_id"], "score": found["score"]})


def score_nih(folder: Path, width: float) -> pd.DataFrame:
    """AP radiographs: a quarter of the patients train, the others' normals are held out."""
    ensure_folder(folder)
    config = XrayStoreConfig(view="AP", outliers=KNOWN["AP"], test_share=0.75)
    make_xray_store([data_folder()], data_folder() / "metadata.csv", folder / "store", config)
    store = SampleStore(folder / "store")
    training = load_config(TrainConfig, None, settings_of(width))
    found = score_normals(store, train(store, training, folder / "detector", resume=True), folder)
    return pd.DataFrame({"unit": found["patient_id"], "score": found["score"]})


def score_slides(folder: Path, width: float) -> pd.DataFrame:
    """Composed normal slides, each with a stain look of its own, as `screen` scores them."""
    detector = slide_detector(folder, width, "vahadane")
    cases = compose_slides(folder)[0]
    config = screening_config(detector, None, [])
    screen_slides(cases, detector, folder / "screened", config, say=print)
    found = pd.read_csv(folder / "screened" / "slides.csv")
    return pd.DataFrame({"unit": found["case_id"], "score": found["slide_score"]})


def change_scanner(folder: Path, width: float) -> Iterator[dict[str, object]]:
    """Calibrated on slides of one scanner: what happens on others of it, and on another's."""
    for stain in ("vahadane", "none"):
        detector = slide_detector(folder, width, stain)
        own, others = compose_slides(folder)
        config, target = config_of(detector.contract.preparation)
        store = folder / f"calibration_{stain}"
        known, fresh = own[:CALIBRATED], own[CALIBRATED:]
        tile_slides(known, store, config, target=target, say=print)
        decisions = calibrate(detector, SampleStore(store), CalibrationConfig())
        calibrated = Detector(detector.contract, detector.weights, decisions=decisions)
        for scanner, cases in (("the same", fresh), ("another", others)):
            out = folder / f"screened_{stain}_{scanner.replace(' ', '_')}"
            screen_slides(cases, calibrated, out, screening_config(calibrated, None, []), say=print)
            p = pd.read_csv(out / "slides.csv")["p_value"]
            unlike = sum(bool(caveats_in(out / case.case_id)) for case in cases)
            drift = read_json(out / "run.json", CaseError)["drift"]
            yield {
                "stain": stain,
                "scanner": scanner,
                "slides": len(p),
                **{
                    f"alarms at {100 * r:g} %": round(100 * float((p <= r).mean()), 1)
                    for r in RATES
                },
                "slides with a caution": unlike,
                "facts with a warning": len(drift),
                "of scores": sum("median score" in text for text in drift),
            }


def caveats_in(folder: Path) -> list[str]:
    found = read_json(folder / "slide.json", CaseError)["decision"]["caveats"]
    return [str(text) for text in found]


def slide_detector(folder: Path, width: float, stain: str) -> Detector:
    """A detector trained on half of PCam's normals in this stain setting."""
    trained = ensure_folder(folder / f"detector_{stain}")
    if (trained / "detector" / "checksums.json").exists():
        return Detector.load(trained / "detector")
    tiles = import_half("development", folder / "tiles")
    truth = tiles.rows["truth"].to_numpy(dtype=np.int8)
    normal, tumor = (np.flatnonzero(truth == label) for label in (0, 1))
    rows = np.sort([*normal[::2], *tumor[:LABELED]])
    return train_on(tiles, rows, trained, stain, settings_of(width))


def compose_slides(folder: Path) -> tuple[list[Case], list[Case]]:
    """Normal slides of tiles that did not train, and others as another scanner shows them."""
    tiles = import_half("report", folder / "report_tiles")
    normal = np.flatnonzero(tiles.rows["truth"] == 0)
    own, raw, other = (folder / name for name in ("slides", "raw", "other_scanner"))
    settings = {"tumor_slides": 0, "rows": normal, "tiles_per_slide": TILES}
    for path, count, seed in ((own, SLIDES, 0), (raw, OTHER_SLIDES, 1)):
        if not (path / "manifest.csv").exists():
            compose_from_store(tiles, path, normal_slides=count, seed=seed, **settings)
    if not (other / "manifest.csv").exists():
        cases = [shift(case, ensure_folder(other)) for case in read_manifest(raw / "manifest.csv")]
        write_manifest(other / "manifest.csv", cases)
    return read_manifest(own / "manifest.csv"), read_manifest(other / "manifest.csv")


def shift(case: Case, folder: Path) -> Case:
    """The same slide as another scanner shows it: other colors of its stains, other amounts."""
    picture = tifffile.imread(case.path, level=0)
    tissue = picture.min(axis=2) < GLASS_FROM
    matrix = SCANNER_MATRIX / np.linalg.norm(SCANNER_MATRIX, axis=1, keepdims=True)
    picture[tissue] = change_look(picture[tissue], matrix, SCANNER_SCALE)
    path = folder / case.path.name
    write_pyramid(path, picture, mpp=0.972, levels=1, description="composed, colors shifted")
    return replace(case, path=path)


SOURCES: dict[str, Callable[[Path, float], pd.DataFrame]] = {
    "pcam": score_pcam,
    "mnist": score_mnist,
    "nih": score_nih,
    "slides": score_slides,
}


if __name__ == "__main__":
    main()
