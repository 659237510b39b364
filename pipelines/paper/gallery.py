"""Figure 4: test samples with their scores, from the lowest to the highest."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from esad_med.base.runs import write_csv
from esad_med.base.store import SampleStore
from esad_med.outputs.figures import MUTED, STYLE, new_figure, save_both
from pipelines.paper.runs import Outcome, Result, Run
from pipelines.paper.settings import ESAD, MEDICAL
from pipelines.paper.tables import METHOD_LABELS
from pipelines.scoring import read_scores

_COLUMNS = 8
_KINDS = {0: "normal", 1: "anomalous"}
_SHOWN = ("sample_id", "truth", "score", "reconstruction", "norm")
_SIDE, _STEP = 0.9, 0.96  # of a picture, and from one to the next, inches
_ROW, _HEAD = 1.2, 0.3  # from one row to the next, and above a method's first, inches
_LEFT, _TOP, _BELOW = 0.4, 0.45, 0.55  # room around the pictures, inches


def scores_file(out: Path, run: Run) -> Path:
    """Where the scores of a run's test samples lie."""
    return out / "scores" / f"{run.key}.csv"


def write_galleries(out: Path, stores: Path, outcomes: Sequence[Outcome]) -> list[Path]:
    """Draw ``fig4-DATA`` of each medical data set, from its runs of ESAD of the lowest seed.

    Args:
        out: the folder of the benchmark, with the scores of its runs.
        stores: the folder of its stores.
        outcomes: all that it holds.

    Returns:
        The files written.
    """
    done = [found.run for found in outcomes if isinstance(found, Result)]
    written: list[Path] = []
    for data in (name for name in MEDICAL if (stores / name / "store.json").exists()):
        runs = _first_seed([run for run in done if run.data == data and run.method in ESAD], out)
        if runs:
            tables = {run.method: choose_samples(scores_file(out, run)) for run in runs}
            written += write_gallery(
                out / f"fig4-{data}", SampleStore(stores / data), tables, seed=runs[0].seed
            )
    return written


def _first_seed(runs: Sequence[Run], out: Path) -> list[Run]:
    """The runs of the lowest seed whose scores are there, in the methods' order."""
    able = [run for run in runs if scores_file(out, run).exists()]
    first = min((run.seed for run in able), default=0)
    return sorted((run for run in able if run.seed == first), key=lambda run: run.method)


def choose_samples(scores: Path, count: int = _COLUMNS) -> pd.DataFrame:
    """Of each kind some test samples, evenly over the ranks of their scores, lowest first.

    Args:
        scores: of a run's test samples.
        count: of each kind, or all where there are fewer.
    """
    table = read_scores(scores).sort_values("score", kind="stable")
    chosen = []
    for kind in _KINDS:
        own = table[table["truth"] == kind]
        ranks = np.linspace(0, len(own) - 1, min(count, len(own))).round().astype(int)
        chosen.append(own.iloc[ranks][list(_SHOWN)])
    return pd.concat(chosen, ignore_index=True)


def write_gallery(
    path: Path, store: SampleStore, tables: Mapping[str, pd.DataFrame], *, seed: int
) -> list[Path]:
    """Draw the chosen samples of each method, a row of normal and one of anomalous ones.

    Args:
        path: the files' name without a suffix.
        store: the pictures.
        tables: method -> its samples, of `choose_samples`.
        seed: of the runs, for the caption.

    Returns:
        ``.svg``, ``.png``, and ``.csv`` with a line per sample shown.
    """
    table = path.with_name(f"{path.name}.csv")
    rows = [[name, *row] for name, t in tables.items() for row in t.itertuples(index=False)]
    write_csv(table, ["method", *_SHOWN], rows)
    width = _LEFT + _COLUMNS * _STEP + 0.1
    height = _TOP + len(tables) * (_HEAD + len(_KINDS) * _ROW) + _BELOW
    methods = " and ".join(METHOD_LABELS[name] for name in tables)
    caption = (
        f"{store.path.name}, {methods}, seed {seed}. From the lowest score of a row (left) to its"
        " highest,\nevenly over the ranks. The higher the score, the more anomalous."
    )
    with mpl.rc_context(STYLE):
        figure = new_figure(width, height)
        heading = f"Test samples of {store.path.name} with their scores"
        left, top = 0.13 / width, 1 - 0.13 / height
        figure.text(left, top, heading, va="top", fontsize=11, fontweight="bold")
        for number, (method, shown) in enumerate(tables.items()):
            below = _TOP + _HEAD + number * (_HEAD + len(_KINDS) * _ROW)
            _draw_method(figure, store, METHOD_LABELS[method], shown, top=below)
        figure.text(left, 0.1 / height, caption, fontsize=8, color=MUTED, linespacing=1.4)
        return [*save_both(path, figure), table]


def _draw_method(
    figure: Figure, store: SampleStore, name: str, shown: pd.DataFrame, *, top: float
) -> None:
    """A row for each kind, the first one `top` inches below the figure's upper edge."""
    width, height = figure.get_size_inches()
    place = {sample: row for row, sample in enumerate(store.rows["sample_id"])}
    for kind, word in _KINDS.items():
        own = shown[shown["truth"] == kind]
        y = 1 - (top + kind * _ROW + _SIDE) / height
        for column, (sample, score) in enumerate(zip(own["sample_id"], own["score"], strict=True)):
            x = (_LEFT + column * _STEP) / width
            axes = figure.add_axes((x, y, _SIDE / width, _SIDE / height))
            draw_sample(axes, store.samples[place[sample]], score)
            if column == 0:
                axes.set_ylabel(word)
                title = name if kind == 0 else ""
                axes.set_title(title, loc="left", fontsize=10, fontweight="bold")


def draw_sample(axes: Axes, picture: npt.NDArray[np.uint8], score: float) -> None:
    """A picture (h, w, 1 or 3) on empty axes, with its score below."""
    axes.imshow(np.repeat(picture, 3 // picture.shape[2], axis=2), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=MUTED, linewidth=0.4)  # glass is as white as the page
    axes.set_xlabel(f"{score:.4g}", fontsize=8, labelpad=3)
