"""What `audit` finds of planted copies, leaks, blank and blurred pictures, and pollution.

    python -m benchmarks.bench_audit --seeds 5
    python -m benchmarks.bench_audit --sets pcam mnist --seeds 2
    python -m benchmarks.bench_audit --large 102400

Each seed takes other normals of each data set, hides anomalies among them (5 %), labels 20 others
(of one class only, or of all), copies samples (exact, mirrored, turned, brighter, as JPEG of
quality 80, and turned as JPEG; half of them into split test), and spoils some (white, black,
blurred). MNIST's and Fashion-MNIST's normals are one class. Recall is printed at k: as many
findings as were planted, twice as many, and as 10 % of the store.
"""

import argparse
import io
import json
import os
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from scipy import ndimage

from benchmarks.processes import in_own_process
from data_prep.demo_slides import compose_demo_picture, source_concentrations
from data_prep.natural import read_fashion_mnist, read_mnist
from data_prep.odds import read_odds
from data_prep.synthetic import HE_MATRIX, change_look, perturb_look
from esad_med.base.config import load_config
from esad_med.base.store import SampleStore
from esad_med.base.store_writing import StoreWriter, write_store
from pipelines.auditing import Audit, AuditConfig, audit_store

Samples = npt.NDArray[Any]
SHARE = 0.05  # pollution
LABELED = 20
NORMALS = 2000
COPIED = 0.01  # of the store, for each kind of copy
SPOILED = 0.01
DATA = Path(os.environ.get("ESAD_DATA", "../shared/data"))


@dataclass(frozen=True)
class Pool:
    """Samples to draw from: normals and anomalies of known kinds."""

    normals: Samples
    anomalies: Samples
    kinds: npt.NDArray[Any]
    modality: str
    cases: npt.NDArray[Any] | None = None  # of normals, then of anomalies


@dataclass(frozen=True)
class Planted:
    """A store's samples and what was planted in it, by row."""

    samples: Samples
    rows: pd.DataFrame
    polluted: npt.NDArray[np.int64]
    copies: dict[str, list[tuple[int, int]]]
    spoiled: dict[str, npt.NDArray[np.int64]]
    kinds: dict[int, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=POOLS, default=list(POOLS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--large", type=int, help="time and memory for so many composed tiles")
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.store:
        print(json.dumps(measure_audit(options.store)))
        return
    if options.large:
        with tempfile.TemporaryDirectory() as folder:
            compose_large_store(Path(folder) / "store", options.large)
            module = "benchmarks.bench_audit"
            print(in_own_process(module, "--store", Path(folder) / "store", plain=""))
        return
    config = load_config(AuditConfig, None, options.changes)
    found: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for name in options.sets:
        for which, label_one in (("", False), (", one kind labeled", True)):
            pool = POOLS[name]()
            if label_one and len(np.unique(pool.kinds)) == 1:
                continue
            for seed in range(options.seeds):
                for what, values in run(pool, config, seed, label_one=label_one).items():
                    found[name + which, what].append(values)
    print(tabulate(found))


def run(pool: Pool, config: AuditConfig, seed: int, *, label_one: bool) -> dict[str, list[float]]:
    """Plant, audit and count: of each kind of finding the recalls, or what else is told of it."""
    planted = plant(pool, np.random.default_rng(seed), label_one=label_one)
    pictures = planted.samples.ndim == 4
    low, high = float(planted.samples.min()), float(planted.samples.max())
    contract = {
        "kind": "tiles" if pictures else "vectors",
        "modality": pool.modality,
        "value_range": [0, 255] if pictures else [low - 1, high + 1],
    }
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "store", planted.samples, planted.rows, contract)
        audit = audit_store(store, config.model_copy(update={"seed": seed}))
        found = count_copies(audit, planted)
        found |= count_spoiled(audit, planted) if pictures else {}
        return found | count_pollution(audit, planted)


def plant(pool: Pool, rng: np.random.Generator, *, label_one: bool) -> Planted:
    normal = rng.permutation(len(pool.normals))[:NORMALS]
    hidden_count = round(len(normal) * SHARE / (1 - SHARE))
    anomalous = rng.permutation(len(pool.anomalies))
    hidden, rest = anomalous[:hidden_count], anomalous[hidden_count:]
    if label_one:
        rest = rest[pool.kinds[rest] == rng.choice(np.unique(pool.kinds[rest]))]
    marked = rest[:LABELED]
    samples = np.concatenate([pool.normals[normal], pool.anomalies[hidden], pool.anomalies[marked]])
    split = np.full(len(samples), "train", object)
    semi = np.repeat([1, 1, -1], [len(normal), len(hidden), len(marked)])
    truth = np.repeat([0, 1, 1], [len(normal), len(hidden), len(marked)])
    case = np.full(len(samples), "", object)
    if pool.cases is not None:
        offset = len(pool.normals)
        case = pool.cases[np.concatenate([normal, offset + hidden, offset + marked])]
    polluted = np.arange(len(normal), len(normal) + len(hidden))
    kinds = {int(row): pool.kinds[one] for row, one in zip(polluted, hidden, strict=True)}
    samples, spoiled = spoil(samples, len(normal), rng)
    untouched = np.setdiff1d(np.arange(len(normal)), np.concatenate([*spoiled.values(), [-1]]))
    added, copies = copy_some(samples, untouched, rng)
    whole = np.concatenate([samples, added])
    copied = len(added)
    rows = pd.DataFrame(
        {
            "sample_id": [f"s{i:06d}" for i in range(len(whole))],
            "case_id": [*case, *[""] * copied],
            "patient_id": "",
            "split": [*split, *rng.choice(["train", "test"], copied)],
            "semi_label": [*semi, *[1] * copied],
            "truth": [*truth, *[0] * copied],
        }
    )
    rows["truth"] = rows["truth"].where(rows["semi_label"] == -1).astype("Int8")  # else unknown
    return Planted(whole, rows, polluted, copies, spoiled, kinds)


def spoil(
    samples: Samples, normals: int, rng: np.random.Generator
) -> tuple[Samples, dict[str, npt.NDArray[np.int64]]]:
    if samples.ndim == 2:
        return samples, {}
    samples, count = samples.copy(), max(3, round(SPOILED * normals))
    chosen = rng.permutation(normals)[: 3 * count].reshape(3, count)
    noise = rng.integers(-2, 3, (2, count, *samples.shape[1:]))
    samples[chosen[0]] = np.clip(243 + noise[0], 0, 255)
    samples[chosen[1]] = np.clip(3 + noise[1], 0, 255)
    soft = ndimage.gaussian_filter(samples[chosen[2]].astype(np.float32), (0, 1.5, 1.5, 0))
    samples[chosen[2]] = np.rint(soft)
    return samples, dict(zip(("white", "black", "blurred"), chosen, strict=True))


def copy_some(
    samples: Samples, among: npt.NDArray[np.int64], rng: np.random.Generator
) -> tuple[Samples, dict[str, list[tuple[int, int]]]]:
    """Copies to append, and by kind the pairs (original, copy) of rows."""
    changes = CHANGES if samples.ndim == 4 else ROW_CHANGES
    count = max(3, round(COPIED * len(samples)))
    chosen = rng.permutation(among)[: count * len(changes)].reshape(len(changes), -1)
    added, pairs, at = [], {}, len(samples)
    for (name, change), originals in zip(changes.items(), chosen, strict=True):
        changed = change(samples[originals], samples, rng)
        added.append(changed.astype(samples.dtype))
        pairs[name] = [(int(one), at + i) for i, one in enumerate(originals)]
        at += len(originals)
    return np.concatenate(added), pairs


def as_jpeg(pictures: Samples, quality: int = 80) -> Samples:
    def one(picture: Samples) -> Samples:
        file = io.BytesIO()
        Image.fromarray(picture.squeeze()).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file)).reshape(picture.shape)

    return np.stack([one(picture) for picture in pictures])


def turn(pictures: Samples) -> Samples:
    return np.ascontiguousarray(np.rot90(pictures, axes=(1, 2)))


def brighten(pictures: Samples, rng: np.random.Generator) -> Samples:
    """Contrast by 0.85 to 1.1 and brightness by up to 8 levels, rounded and cut off."""
    size = (len(pictures), 1, 1, 1)
    factor, shift = rng.uniform(0.85, 1.1, size), rng.uniform(-8, 8, size)
    return np.clip(np.rint(pictures * factor + shift), 0, 255)


CHANGES = {
    "exact": lambda x, _, __: x,
    "mirrored": lambda x, _, __: x[:, :, ::-1],
    "turned": lambda x, _, __: turn(x),
    "brightness": lambda x, _, rng: brighten(x, rng),
    "JPEG q80": lambda x, _, __: as_jpeg(x),
    "turned, JPEG q80": lambda x, _, __: as_jpeg(turn(x)),
}
ROW_CHANGES = {
    "exact": lambda x, _, __: x,
    "noise of 0.5 % sd": lambda x, all_of, rng: (
        x + 0.005 * all_of.std(axis=0) * rng.normal(size=x.shape)
    ),
}


def count_copies(audit: Audit, planted: Planted) -> dict[str, list[float]]:
    """By kind of copy recall at k, and precision of all pairs named."""
    pairs = [*map(tuple, audit.copies.exact.tolist()), *map(tuple, audit.copies.near.tolist())]
    total = sum(map(len, planted.copies.values()))
    found = {}
    for name, wanted in planted.copies.items():
        recalls = []
        for k in (total, 2 * total, len(planted.rows) // 10):
            recalls.append(len(set(wanted) & set(pairs[:k])) / len(wanted))
        found[f"copies: {name}"] = recalls
    every = {pair for wanted in planted.copies.values() for pair in wanted}
    found["copies: named, of which planted"] = [len(pairs), len(every & set(pairs))]
    split = planted.rows["split"].to_numpy()
    crossing = {pair for pair in every if split[pair[0]] != split[pair[1]]}
    named = {leak.rows for leak in audit.leaks}
    found["leaks: copies in two splits"] = [len(crossing & named) / len(crossing)]
    return found


def count_spoiled(audit: Audit, planted: Planted) -> dict[str, list[float]]:
    found = {}
    names = {"saturated (white)": "white", "saturated (black)": "black", "constant": "constant"}
    by_row = {one.index: names.get(one.finding, one.finding) for one in audit.quality}
    for name, wanted in planted.spoiled.items():
        hits = sum(by_row.get(int(row), "") in (name, "constant") for row in wanted)
        found[f"quality: {name}"] = [hits / len(wanted)]
    planted_rows = {int(row) for rows in planted.spoiled.values() for row in rows}
    others = len(set(by_row) - planted_rows) / len(planted.rows)
    found["quality: others named, % of store"] = [100 * others]
    return found


def count_pollution(audit: Audit, planted: Planted) -> dict[str, list[float]]:
    pollution = audit.pollution
    assert pollution is not None
    order = pollution.rows[np.argsort(pollution.rank)]
    hidden, spoiled = set(planted.polluted.tolist()), set()
    for rows in planted.spoiled.values():
        spoiled |= set(rows.tolist())
    order = np.array([row for row in order if row not in spoiled])  # those are another finding
    ks = (len(hidden), 2 * len(hidden), len(order) // 10)
    found = {"pollution": [len(hidden & set(order[:k].tolist())) / len(hidden) for k in ks]}
    chosen = [int(pollution.rows[one.index]) for one in audit.to_label]
    chosen = [row for row in chosen if row not in spoiled]
    top = order[: len(chosen)].tolist()
    for name, rows in (("label next", chosen), ("  the highest instead", top)):
        hits = [planted.kinds[row] for row in rows if row in hidden]
        found[f"{name}: anomalies of {20}, kinds"] = [len(hits), len(set(hits))]
    return found


def tabulate(found: dict[tuple[str, str], list[list[float]]]) -> str:
    """Mean ± sd over seeds as a Markdown table."""

    def lines() -> Iterator[str]:
        yield "| store | what | at k | at 2k | at 10 % |"
        yield "|---|---|---|---|---|"
        for (name, what), values in found.items():
            numbers = np.array(values, float)
            spread = numbers.std(axis=0, ddof=min(1, len(numbers) - 1))
            middle = numbers.mean(axis=0)
            cells = [f"{m:.2f} ± {s:.2f}" for m, s in zip(middle, spread, strict=True)]
            yield f"| {name} | {what} | {' | '.join([*cells, '', ''][:3])} |"

    return "\n".join(lines())


def pcam() -> Pool:
    folder = DATA / "histology"
    table = pd.read_csv(folder / "pcam_metadata.csv", dtype=str)
    pictures = [np.asarray(Image.open(folder / f).convert("RGB")) for f in table["file"]]
    tiles = np.stack(pictures)[:, 16:80, 16:80]
    tumor = (table["label"] == "1").to_numpy()
    return Pool(tiles[~tumor], tiles[tumor], np.zeros(tumor.sum(), int), "histology")


def slides() -> Pool:
    """PCam's tiles dealt to 24 slides, each with a stain look of its own; tumor on 12 of them."""
    pool, rng = pcam(), np.random.default_rng(0)
    slide = rng.integers(0, 24, len(pool.normals)), rng.integers(0, 12, len(pool.anomalies))
    looked = []
    for tiles, numbers in zip((pool.normals, pool.anomalies), slide, strict=True):
        shown = tiles.copy()
        for number in range(24):
            chosen = numbers == number
            look = perturb_look(HE_MATRIX, np.random.default_rng([1, number]))
            shown[chosen] = change_look(tiles[chosen].reshape(-1, 3), *look).reshape(
                tiles[chosen].shape
            )
        looked.append(shown)
    cases = np.array([f"slide {n:02d}" for n in np.concatenate(slide)], dtype=object)
    return Pool(looked[0], looked[1], pool.kinds, "histology", cases)


def one_class(name: str) -> Pool:
    read = {"mnist": read_mnist, "fashion-mnist": read_fashion_mnist}[name]
    data = read(DATA / "natural" / name)
    chosen = {"mnist": 4, "fashion-mnist": 4}[name]  # a digit, and coats: neither an easy one
    normal = data.train_labels == chosen
    return Pool(data.train[normal], data.train[~normal], data.train_labels[~normal], "natural")


def nih() -> Pool:
    table = pd.read_csv(DATA / "nih_cxr" / "metadata.csv", dtype=str)
    table = table[table["file"].str.endswith(".jpg") & (table["View Position"] == "PA")]
    pictures = []
    for file in table["file"]:
        picture = Image.open(DATA / "nih_cxr" / file).convert("L").crop((128, 128, 896, 896))
        pictures.append(np.asarray(picture.resize((64, 64), Image.Resampling.BOX)))
    images = np.stack(pictures)[..., None]
    ill = (table["abnormal"] == "1").to_numpy()
    cases = table["Patient ID"].to_numpy(object)
    whose = np.concatenate([cases[~ill], cases[ill]])
    return Pool(images[~ill], images[ill], np.zeros(ill.sum(), int), "chest radiograph", whose)


def odds(name: str) -> Pool:
    table = read_odds(DATA / "odds", name)
    outlier = table.truth == 1
    rows = table.samples.astype(np.float32)
    return Pool(rows[~outlier], rows[outlier], np.zeros(outlier.sum(), int), "table")


POOLS = {
    "pcam": pcam,
    "slides": slides,
    "mnist": lambda: one_class("mnist"),
    "fashion-mnist": lambda: one_class("fashion-mnist"),
    "nih": nih,
    **{name: (lambda name=name: odds(name)) for name in ("cardio", "satellite", "thyroid")},
}


def compose_large_store(path: Path, count: int) -> None:
    """Tiles of composed tissue, no glass, cut four times with steps of half a tile."""
    source, edge = source_concentrations(), 4096
    contract = {"kind": "tiles", "modality": "histology", "value_range": [0, 255]}
    number = 0
    with StoreWriter(path, sample_shape=(64, 64, 3), dtype="uint8") as writer:
        writer.contract.update(contract)
        while writer.count < count:
            picture, _ = compose_demo_picture(source, 3, np.random.default_rng(number), size=edge)
            for x, y in ((0, 0), (32, 0), (0, 32), (32, 32)):
                tiles = cut_tiles(picture[y:, x:])[: count - writer.count]
                ids = [f"slide{number:03d}_{x}_{y}_{i:05d}" for i in range(len(tiles))]
                rows = pd.DataFrame({"sample_id": ids, "case_id": f"slide{number:03d}"})
                rows = rows.assign(patient_id="", split="train", semi_label=1, truth="")
                writer.append(tiles, rows)
            number += 1


def cut_tiles(picture: Samples) -> Samples:
    """The tiles of 64 pixels that show tissue."""
    down, right = (side // 64 for side in picture.shape[:2])
    cut = picture[: down * 64, : right * 64].reshape(down, 64, right, 64, 3)
    tiles = cut.transpose(0, 2, 1, 3, 4).reshape(-1, 64, 64, 3)
    return tiles[tiles[..., 1].std(axis=(1, 2)) > 10]


def measure_audit(path: Path) -> dict[str, float]:
    """Seconds and peak memory of an audit in this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start, worked = time.perf_counter(), time.process_time()
    audit = audit_store(SampleStore(path), AuditConfig())
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {check.name: check.found for check in audit.checks}
    took = {"seconds": round(seconds, 1), "CPU seconds": round(worked, 1)}
    return {**took, "MiB before": round(before), "MiB": round(peak), **found}


if __name__ == "__main__":
    main()
