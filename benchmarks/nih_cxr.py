r"""ESAD on NIH chest X-rays beside three baselines, and a positive control; resumable.

    python -m benchmarks.nih_cxr --out runs/nih_cxr

For each view and seed 60 % of the images, whole patients, train: the normals, and as labeled
outliers those of one known finding (PA: Infiltration and nothing else; AP: Effusion, alone or among
others). Other anomalous training images are left out. The test images of the rest are told normal
or anomalous. Labels are text-mined and noisy and normals few, so nothing is chosen here.

Noise would hide a broken pipeline. So in the control the findings are planted: opacities in copies
of training normals, as many as the known outliers, are the labels; the test asks for opacities in
copies of held-out normals. They are planted in the whole picture, before everything else. Settings
of ESAD are to be tried on the control alone:

    python -m benchmarks.nih_cxr --out runs/nih_cxr --methods control --set epochs=80
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from benchmarks.pcam import add_changes, read_results
from data_prep.nih import has_finding
from data_prep.synthetic_xray import plant_opacity
from data_prep.xray import read_xray
from data_prep.xray_chain import XraySpec, xray_chain
from esad_med.assess.measures import auc, bootstrap_auc
from esad_med.base.config import load_config
from esad_med.base.runs import ensure_folder
from esad_med.base.store import SampleStore
from esad_med.base.store_writing import write_store
from esad_med.method.config import TrainConfig
from esad_med.method.networks import ImageEncoder, ImageNetworkSpec
from esad_med.method.trainer import train
from pipelines.xray_store import OutlierSpec, XrayStoreConfig, make_xray_store

KNOWN = {
    "PA": OutlierSpec(finding="Infiltration", match="only", fraction=1),
    "AP": OutlierSpec(finding="Effusion", match="contains", fraction=1),
}
CONFIG = Path(__file__).parents[1] / "configs" / "chest_xray.yaml"
STRENGTHS = (0.15, 0.25, 0.35)  # of planted opacities in the test; in training the middle one
RADII = (0.08, 0.14)  # of the picture's width
COMPONENTS = 20
EPOCHS = 30  # of the small classifier

Samples = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
Scorer = Callable[[Samples], Mapping[str, npt.NDArray[Any]]]


class Job(NamedTuple):
    """What a method trains on: the rows of split "train", and where it may write."""

    store: SampleStore
    seed: int
    settings: tuple[str, ...]
    width: float
    folder: Path

    def part(self, semi_label: int) -> Samples:
        """The training samples of this label."""
        rows = self.store.rows
        chosen = (rows["split"] == "train") & (rows["semi_label"] == semi_label)
        return np.asarray(self.store.samples[np.flatnonzero(chosen)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--views", nargs="+", choices=KNOWN, default=tuple(KNOWN))
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, "control"), default=None)
    add_changes(parser)
    options = parser.parse_args()
    out = ensure_folder(options.out)
    chosen = options.methods or (*METHODS, "control")
    methods = [name for name in chosen if name != "control"]
    for view in options.views:
        for seed in range(options.seeds):
            store = read_view(view, seed, out / f"{view}_{seed}")
            run(store, "findings", methods, seed, options, out)
            if "control" in chosen:
                planted = plant_findings(store, seed, out / f"{view}_{seed}_planted")
                run(planted, "control", METHODS, seed, options, out)
    results = pd.DataFrame(read_results(out / "results.jsonl"))
    print("\n\n".join(tabulate(results)))


def data_folder() -> Path:
    return Path(os.environ.get("ESAD_DATA", "../shared/data")) / "nih_cxr"


def read_view(view: str, seed: int, path: Path) -> SampleStore:
    """The view's images as samples, split by patient."""
    config = XrayStoreConfig(view=view, outliers=KNOWN[view], seed=seed)
    make_xray_store([data_folder()], data_folder() / "metadata.csv", path, config)
    return SampleStore(path)


def plant_findings(store: SampleStore, seed: int, path: Path) -> SampleStore:
    """The view's normals alone, and copies with planted opacities in place of the findings.

    Column ``strength`` says how bright: 0 for the normals. A copy keeps its patient and split. All
    copies of one test image have the same opacity but for its strength.
    """
    if (path / "store.json").exists():
        return SampleStore(path)
    rows = store.rows.assign(strength=0.0)
    normal = np.flatnonzero(rows["truth"] == 0)
    train, test = (normal[rows["split"].iloc[normal] == part] for part in ("train", "test"))
    count = int(((rows["split"] == "train") & (rows["semi_label"] == -1)).sum())
    drawn = np.random.default_rng([seed, 2]).permutation(train)[:count]
    made = [plant(rows.iloc[index], [STRENGTHS[1]], seed, -1) for index in drawn]
    made += [plant(rows.iloc[index], STRENGTHS, seed, 1) for index in test]
    samples = np.concatenate([store.samples[normal], *(samples for samples, _ in made)])
    table = pd.concat([rows.iloc[normal], *(table for _, table in made)], ignore_index=True)
    keys = ("kind", "modality", "value_range", "mpp", "view_positions", "preparation")
    return write_store(path, samples, table, {key: store.contract[key] for key in keys})


def plant(
    row: pd.Series, strengths: Sequence[float], seed: int, semi_label: int
) -> tuple[Samples, pd.DataFrame]:
    """Copies of one image with an opacity, prepared as every image is, and their rows."""
    folders = [data_folder() / name for name in ("png1024", "jpeg1024")]
    files = [file for folder in folders for file in folder.glob(f"{row['sample_id']}.*")]
    pixels = read_xray(files[0]).pixels
    key = [seed, 3, *row["sample_id"].encode()]
    radius = np.random.default_rng([*key, 0]).uniform(*RADII)
    chain = xray_chain(XraySpec())
    samples, rows = [], []
    for strength in strengths:
        rng = np.random.default_rng([*key, 1])  # the same place and shape at each strength
        samples.append(chain(plant_opacity(pixels, rng, strength=strength, radius_share=radius)))
        name = f"{row['sample_id']}_planted_{strength:g}"
        changed = {"sample_id": name, "truth": 1, "semi_label": semi_label, "strength": strength}
        rows.append({**row, **changed})
    return np.stack(samples), pd.DataFrame(rows)


def run(
    store: SampleStore,
    task: str,
    methods: Iterable[str],
    seed: int,
    options: argparse.Namespace,
    out: Path,
) -> None:
    """Train and test each method that has no line of results yet."""
    results = out / "results.jsonl"
    view = str(store.contract["view_positions"][0])
    done = {(r["task"], r["view"], r["method"], r["seed"]) for r in read_results(results)}
    for method in methods:
        changes = options.changes if method == "recommended" else []
        label = " ".join([method, *changes])
        if (task, view, label, seed) in done:
            continue
        start = time.perf_counter()
        folder = out / f"{view}_{seed}_{task}_{label}"
        scorer = METHODS[method](Job(store, seed, tuple(changes), options.width, folder))
        line = {"task": task, "view": view, "method": label, "seed": seed}
        line |= measure(store, task, scorer)
        line["seconds"] = round(time.perf_counter() - start, 1)
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def measure(store: SampleStore, task: str, scorer: Scorer) -> dict[str, Any]:
    """AUC of the score and each term on the test images; of parts of the anomalous by the score."""
    test = np.flatnonzero(store.rows["split"] == "test")
    rows = store.rows.iloc[test].reset_index(drop=True)
    scores = {name: np.asarray(v) for name, v in scorer(np.asarray(store.samples[test])).items()}
    truth = rows["truth"].to_numpy(dtype=np.int8)
    train = store.rows[store.rows["split"] == "train"]
    found: dict[str, Any] = {
        "train_normals": int((train["semi_label"] == 1).sum()),
        "train_outliers": int((train["semi_label"] == -1).sum()),
        "test_normals": int((truth == 0).sum()),
    }
    if task == "control":
        kinds = {f"{s:g}": (rows["strength"] == s).to_numpy() for s in STRENGTHS}
    else:
        known = KNOWN[str(store.contract["view_positions"][0])]
        present = has_finding(rows["findings"], known.finding, known.match).to_numpy()
        kinds = {"all": truth == 1, "known": present & (truth == 1)}
    for kind, anomalous in kinds.items():
        if anomalous.any():
            found[kind] = part_auc(scores, rows, anomalous, truth == 0)
    return found


def part_auc(
    scores: Mapping[str, npt.NDArray[Any]],
    rows: pd.DataFrame,
    anomalous: npt.NDArray[np.bool_],
    normal: npt.NDArray[np.bool_],
) -> dict[str, float]:
    """AUC of these against the normals by each score, with the interval by patient of the first."""
    chosen = anomalous | normal
    found = {name: auc(anomalous[chosen], values[chosen]) for name, values in scores.items()}
    patients = rows["patient_id"][chosen]
    low, high = bootstrap_auc(anomalous[chosen], scores["score"][chosen], patients)
    return {**found, "low": low, "high": high, "n": int(anomalous.sum())}


def fit_esad(job: Job) -> Scorer:
    """The recommended preset with the settings of chest X-rays."""
    settings = [f"network.width={job.width}", f"seed={job.seed}", *job.settings]
    config = load_config(TrainConfig, CONFIG, settings)
    detector = train(job.store, config, job.folder, overwrite=True)
    return lambda samples: detector.score(samples)._asdict()


def fit_neighbors(job: Job) -> Scorer:
    """One-class: distance to the fifth nearest training normal."""
    features = fit_features(job)
    found = NearestNeighbors(n_neighbors=5).fit(features(job.part(1)))
    return lambda samples: {"score": found.kneighbors(features(samples))[0][:, -1]}


def fit_logistic(job: Job) -> Scorer:
    """Logistic regression on the same features, the labeled outliers as the other class."""
    features = fit_features(job)
    parts = [features(job.part(1)), features(job.part(-1))]
    labels = np.repeat([0, 1], [len(part) for part in parts])
    model = LogisticRegression(class_weight="balanced", max_iter=2000)
    model.fit(np.concatenate(parts), labels)
    return lambda samples: {"score": model.decision_function(features(samples))}


def fit_features(job: Job) -> Callable[[Samples], npt.NDArray[np.float64]]:
    """Principal components of the pixels, each with unit variance over the training normals."""
    chain = make_pipeline(PCA(COMPONENTS, random_state=job.seed), StandardScaler())
    chain.fit(flatten(job.part(1)))
    return lambda samples: np.asarray(chain.transform(flatten(samples)))


def flatten(samples: Samples) -> npt.NDArray[np.float64]:
    return samples.reshape(len(samples), -1) / 255.0


def fit_cnn(job: Job) -> Scorer:
    """A supervised classifier: ESAD's encoder, the mean over its map, one logit; no augmentation.

    Binary cross-entropy in which both classes weigh the same, Adam.
    """
    normal, outliers = as_input(job.part(1)), as_input(job.part(-1))
    x = torch.cat([normal, outliers])
    y = torch.cat([torch.zeros(len(normal)), torch.ones(len(outliers))])
    weight = torch.tensor(len(normal) / len(outliers))
    with torch.random.fork_rng():
        torch.manual_seed(job.seed)
        network = SmallClassifier(job.width)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x)).split(32):
                if len(rows) > 1:  # batch norm needs two
                    logit = network(x[rows])
                    loss = nn.functional.binary_cross_entropy_with_logits(
                        logit, y[rows], pos_weight=weight
                    )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
    network.eval()
    return partial(score_by_cnn, network)


class SmallClassifier(nn.Module):
    """(n, 1, h, w) -> (n,) logits."""

    def __init__(self, width: float) -> None:
        super().__init__()
        spec = ImageNetworkSpec(
            channels=1, width=width, latent_activation="linear", pooling="mean"
        )  # as in the preset `recommended`
        self.encoder = ImageEncoder(spec)
        self.last = nn.LazyLinear(1)
        self(torch.zeros(2, 1, 64, 64))  # tells the last layer its width

    def forward(self, x: Tensor) -> Tensor:
        """Take pictures (n, 1, h, w) in -1 ... 1."""
        z, _ = self.encoder(x)  # (n, c, h/16, w/16)
        logit: Tensor = self.last(z.mean(dim=(2, 3)))[:, 0]
        return logit


def score_by_cnn(network: SmallClassifier, samples: Samples) -> dict[str, npt.NDArray[Any]]:
    with torch.inference_mode():
        return {"score": network(as_input(samples)).numpy()}


def as_input(samples: Samples) -> Tensor:
    """(n, 1, h, w) in -1 ... 1."""
    return torch.from_numpy(samples.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


METHODS: dict[str, Callable[[Job], Scorer]] = {
    "recommended": fit_esad,
    "neighbors": fit_neighbors,
    "logistic": fit_logistic,
    "cnn": fit_cnn,
}


def tabulate(results: pd.DataFrame) -> Iterator[str]:
    """Markdown tables of AUC in percent: mean ± sd over runs (mean limits of their intervals)."""
    empty = pd.Series(dtype=object)
    for task, part in results.groupby("task", sort=False):
        kinds = [f"{s:g}" for s in STRENGTHS] if task == "control" else ["all", "known"]
        terms = ["reconstruction", "norm"]
        main = kinds[1] if task == "control" else "all"
        heads = [*kinds, *(f"{term} alone ({main})" for term in terms), "seconds per run"]
        lines = [f"{task}:", "", f"| view | method | runs | {' | '.join(heads)} |"]
        lines.append("|---" * (len(heads) + 3) + "|")
        for (view, method), own in part.groupby(["view", "method"], sort=False):
            cells = [cell(own.get(kind, empty), "score") for kind in kinds]
            cells += [cell(own.get(main, empty), term) for term in terms]
            cells.append(f"{own['seconds'].mean():.0f}")
            lines.append(f"| {view} | {method} | {len(own)} | {' | '.join(cells)} |")
        sizes = part.drop_duplicates(["view", "seed"])
        for _, row in sizes.sort_values(["view", "seed"], ascending=[False, True]).iterrows():
            told = [kind for kind in kinds if isinstance(row.get(kind), dict)]
            counts = ", ".join(f"{row[kind]['n']} {kind}" for kind in told)
            lines.append(
                f"\n{row['view']}, run {row['seed']}: {row['train_normals']} normals and"
                f" {row['train_outliers']} labeled outliers train; {row['test_normals']} normals"
                f" test, anomalous: {counts}"
            )
        yield "\n".join(lines)


def cell(found: pd.Series, name: str) -> str:
    """Of a column of what `part_auc` gave."""
    told = pd.DataFrame([value for value in found if isinstance(value, dict)])
    if name not in told:
        return ""
    text = f"{100 * told[name].mean():.1f}"
    if len(told) > 1:
        text += f" ± {100 * told[name].std(ddof=1):.1f}"
    if name != "score":
        return text
    return f"{text} ({100 * told['low'].mean():.0f} to {100 * told['high'].mean():.0f})"


if __name__ == "__main__":
    main()
