"""Figures 1c and 3: what Deep SAD and ESAD make of a test set, laid out in the plane by t-SNE."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # has no types

from esad_med.base.errors import CaseError, ConfigError
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.runs import Say, write_csv
from esad_med.baselines.deep_sad import DeepSad
from esad_med.baselines.training import apply
from esad_med.method.fitting import TrainingData, fit_detector
from pipelines.paper.data import Loaded, as_input, read_run
from pipelines.paper.figures import write_embedding
from pipelines.paper.methods import baseline_settings, esad_config
from pipelines.paper.protocols import RunData
from pipelines.paper.runs import Run
from pipelines.paper.settings import ESAD, BenchmarkConfig

MOST_SAMPLES = 1500
_LEAST_SAMPLES = 5
_PERPLEXITY = 30.0
#: What is laid out, and the heading of its panel.
_TITLES = {"deep_sad": "Deep SAD", "z": "ESAD, z", "z_hat": "ESAD, ẑ"}

Codes = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Embedding:
    """Test samples laid out in the plane.

    Attributes:
        index: which test samples, (n,).
        classes: their classes, (n,).
        groups: who they are, (n,), of `figures.GROUPS`.
        layouts: "deep_sad", "z" or "z_hat" -> where they lie, (n, 2).
    """

    index: Indices
    classes: npt.NDArray[Any]
    groups: npt.NDArray[np.str_]
    layouts: dict[str, Codes]


def choose_run(runs: Sequence[Run]) -> Run:
    """The run to show: the first with labeled outliers, of ESAD as recommended where there is one.

    A run of ESAD itself comes before one of its variants.

    Raises:
        ConfigError: no run of ESAD has labeled outliers.
    """
    able = [run for run in runs if run.method in ESAD and run.gamma_l > 0]
    if not able:
        raise ConfigError(
            f"--tsne: none of the {len(runs)} runs is ESAD's with labeled outliers; choose methods,"
            " tables and gamma_l that have one, such as --table 1 --methods esad-recommended"
        )
    return min(able, key=lambda run: (run.method != "esad-recommended", run.variant != ""))


def write_tsne(
    out: Path, run: Run, config: BenchmarkConfig, folder: Path, *, say: Say
) -> list[Path]:
    """Train ESAD and Deep SAD on a run's samples, and draw its test samples' codes side by side.

    Args:
        out: where ``tsne.svg``, ``tsne.png`` and ``tsne.csv`` go.
        run: of `choose_run`.
        config: the settings of both.
        folder: the data of the suite.
        say: called with what is being done.

    Returns:
        The files written.

    Raises:
        CaseError: too few samples.
        ModelError: a training diverged.
    """
    loaded = read_run(run, folder=folder, leaking=config.leaking)
    data = loaded.data
    groups = groups_of(data, run)
    index = draw_samples(groups, seed=run.seed, most=MOST_SAMPLES)
    say(f"t-SNE of {run.key}: training ESAD and Deep SAD")
    codes = learn_codes(loaded, index, run, config)
    say(f"t-SNE of {run.key}: {len(index)} test samples, {len(codes)} layouts")
    layouts = {name: lay_out(code, seed=run.seed) for name, code in codes.items()}
    embedding = Embedding(index, data.test_classes[index], groups[index], layouts)
    return write_files(out, embedding, caption=caption_of(run, config))


def groups_of(data: RunData, run: Run) -> npt.NDArray[np.str_]:
    """Who each test sample is, (m,); without named classes all anomalies are of the labeled one."""
    anomalous = data.truth == 1
    named = np.isin(data.test_classes.astype(str), run.outlier_classes)
    labeled = anomalous & named if run.outlier_classes else anomalous
    kinds = ["labeled outlier class", "other anomalies"]
    return np.select([labeled, anomalous], kinds, default="normal")


def draw_samples(groups: npt.NDArray[np.str_], *, seed: int, most: int) -> Indices:
    """Draw test samples, in order: of every group an equal part, or all that it has.

    Args:
        groups: of all test samples, (m,).
        seed: of the choice.
        most: how many in all.
    """
    random = np.random.default_rng([seed, 62])
    names = np.unique(groups)
    drawn = [random.permutation(np.flatnonzero(groups == name)) for name in names]
    return np.sort(np.concatenate([own[: most // len(names)] for own in drawn]))


def learn_codes(
    loaded: Loaded, index: Indices, run: Run, config: BenchmarkConfig
) -> dict[str, Codes]:
    """Train both methods; "deep_sad", "z", "z_hat" -> codes of these test samples, (n, d).

    Raises:
        CaseError: too few training samples.
        ModelError: a training diverged.
    """
    data = loaded.data
    training = TrainingData(data.train, data.y, "image", loaded.train_rows)
    detector = fit_detector(training, esad_config(run, config))
    z, z_hat = detector.latents(data.test[index])
    settings = baseline_settings(run, config)
    train, test = as_input(replace(data, test=data.test[index]))
    rival = DeepSad(settings).fit(train, data.y)
    code = apply(rival.encoder.eval(), test, rival.device)
    return {"deep_sad": code, "z": z, "z_hat": z_hat}


def lay_out(codes: Codes, *, seed: int) -> Codes:
    """Place samples in the plane by t-SNE, (n, 2); the same for the same codes and seed.

    Args:
        codes: (n, d).
        seed: of t-SNE.

    Raises:
        CaseError: fewer than 5 samples.
    """
    count = len(codes)
    if count < _LEAST_SAMPLES:
        raise CaseError(
            f"t-SNE: found {count} test samples, expected at least {_LEAST_SAMPLES}; choose a run"
            " with more"
        )
    raise_if_interrupted()
    spread = bool(np.ptp(codes, axis=0).any()) and codes.shape[1] > 1
    with threadpool_limits(1):  # several threads add in any order
        layout = TSNE(
            perplexity=min(_PERPLEXITY, (count - 1) / 3),
            init="pca" if spread else "random",  # a collapsed encoder has no components
            random_state=seed,
        )
        placed: Codes = layout.fit_transform(codes)
    return placed


def write_files(out: Path, embedding: Embedding, *, caption: str) -> list[Path]:
    """Write ``tsne.svg``, ``tsne.png`` and ``tsne.csv``, a line per sample."""
    layouts = embedding.layouts
    places = np.concatenate(list(layouts.values()), axis=1)
    rows = zip(embedding.index, embedding.classes, embedding.groups, places, strict=True)
    write_csv(
        out / "tsne.csv",
        ["sample", "class", "group", *(f"{name}_{axis}" for name in layouts for axis in "xy")],
        [[*facts, *(f"{value:.4f}" for value in place)] for *facts, place in rows],
    )
    pictures = write_embedding(
        out / "tsne",
        {_TITLES[name]: layout for name, layout in layouts.items()},
        embedding.groups,
        heading="Test samples as Deep SAD and ESAD see them",
        caption=caption,
    )
    return [*pictures, out / "tsne.csv"]


def caption_of(run: Run, config: BenchmarkConfig) -> str:
    """Which run is shown, what was trained for it, and which samples were laid out."""
    own, rival = esad_config(run, config), baseline_settings(run, config)
    return (
        f"{run.key}\n"
        f"ESAD: width {own.network.width:g}, epochs {own.epochs}, member 1 of {own.members}."
        f" Deep SAD: epochs {rival.epochs}, of its autoencoder {rival.pretrain_epochs}.\n"
        f"t-SNE, seed {run.seed}: at most {MOST_SAMPLES} test samples, the groups in equal parts as"
        " far as they go."
    )
