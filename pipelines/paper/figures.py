"""The paper's figures: curves of AUC against λ, and test sets laid out in the plane."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from esad_med.outputs.figures import MUTED, STYLE, dress, new_figure, save_both
from pipelines.paper.runs import Outcome
from pipelines.paper.settings import BenchmarkConfig, TableName
from pipelines.paper.tables import METHOD_LABELS, TITLES, Cell, fill_table, mean_sd

#: The x-axis of a figure of the paper.
PLOTS: dict[TableName, str] = {"fig2": "λ1", "fig5": "λ2"}
#: Who is who in a test set, and how it is drawn; the rest first, what matters on top.
GROUPS: dict[str, tuple[str, str]] = {
    "other anomalies": ("#a3abb5", "s"),
    "normal": ("#00558c", "o"),
    "labeled outlier class": ("#c8502d", "^"),
}
# Told apart by color, by mark and by line: in print, and by color-blind readers.
_LINES = {
    "score": ("auc_score", "#00558c", "o", "-"),
    "reconstruction": ("auc_reconstruction", "#b3541e", "s", (0, (4, 2))),
    "norm": ("auc_norm", "#2f7d55", "^", (0, (1, 1.5))),
}
_WIDTH, _HEIGHT = 3.5, 3.1  # of one panel, inches
_LEFT, _TOP, _BELOW = 0.6, 0.7, 0.8  # room around the panels, inches
_GAP = 0.35  # between two
_ZERO_BELOW = 10  # 0 has no place on a log axis; it stands this factor below the least λ
_DODGE = 1.12  # so that bars do not hide each other

Points = npt.NDArray[np.floating]


def write_plots(out: Path, config: BenchmarkConfig, outcomes: Sequence[Outcome]) -> list[Path]:
    """Draw Figures 2 and 5 where they have results, as ``fig2.svg`` and ``.png``, and so on.

    Args:
        out: the folder of the benchmark.
        config: its settings, which say which figures there are.
        outcomes: all that it holds.

    Returns:
        The files written.
    """
    written: list[Path] = []
    for table in config.tables:
        cells = [c for c in fill_table(table, config, outcomes) if c.results]
        if table in PLOTS and cells:
            written += _write_curves(out / table, table, cells)
    return written


def _write_curves(path: Path, table: TableName, cells: Sequence[Cell]) -> list[Path]:
    panels = list(dict.fromkeys((cell.row.data, cell.method) for cell in cells))
    with mpl.rc_context(STYLE):
        figure, all_axes = _panels(len(panels), heading=TITLES[table])
        for (data, method), axes in zip(panels, all_axes, strict=True):
            if axes is not all_axes[0]:  # before drawing: limits that hold all panels
                axes.sharey(all_axes[0])
            own = [c for c in cells if (c.row.data, c.method) == (data, method)]
            draw_curves(axes, own)
            dress(axes, f"{data}, {METHOD_LABELS[method]}")
            axes.set_xlabel(PLOTS[table])
        counts = sorted({len(cell.results) for cell in cells})
        runs = " to ".join(f"{count}" for count in dict.fromkeys((counts[0], counts[-1])))
        of = "one run" if runs == "1" else f"mean ± sd, n = {runs}"
        all_axes[0].set_ylabel(f"AUC in %, {of}")
        _legend(figure, all_axes[0], "lower left")
        return save_both(path, figure)


def draw_curves(axes: Axes, cells: Sequence[Cell]) -> None:
    """Mean AUC with its deviation against λ: the score and both terms alone.

    Args:
        axes: empty.
        cells: of one data set and method, one for each λ.
    """
    cells = sorted(cells, key=lambda cell: _value(cell))
    values = np.array([_value(cell) for cell in cells])
    places = log_places(values)
    for shift, (label, (name, color, marker, line)) in enumerate(_LINES.items(), start=-1):
        found = [mean_sd([getattr(r, name) for r in cell.results]) for cell in cells]
        mean, sd = np.array([m for m, _ in found]), np.array([s or 0.0 for _, s in found])
        x = places * _DODGE**shift
        axes.errorbar(x, mean, sd, fmt="none", ecolor=color, elinewidth=0.9, capsize=2)
        cut = [1] if values[0] == 0 else []  # no line from 0, which lies infinitely far away
        axes.plot(
            np.insert(x, cut, np.nan),
            np.insert(mean, cut, np.nan),
            label=label,
            color=color,
            marker=marker,
            markersize=4.5,
            linestyle=line,
            linewidth=1.8 if label == "score" else 1.3,
        )
    axes.set_xscale("log")
    axes.set_xlim(places[0] / 2, places[-1] * 2)
    axes.set_xticks(places, [f"{value:g}" for value in values])
    axes.xaxis.set_minor_locator(NullLocator())


def log_places(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where values stand on a log axis: 0 at its left end, all others where they are."""
    positive = values[values > 0]
    return np.where(values > 0, values, min(positive, default=1.0) / _ZERO_BELOW)


def _value(cell: Cell) -> float:
    return float(cell.row.variant.partition("=")[2])


def write_embedding(
    path: Path,
    panels: Mapping[str, Points],
    groups: npt.NDArray[np.str_],
    *,
    heading: str,
    caption: str,
) -> list[Path]:
    """Draw samples laid out in the plane, a panel for each layout, as ``path`` + .svg and .png.

    Args:
        path: the files' name without a suffix.
        panels: title -> where each sample lies, (n, 2).
        groups: who each sample is, (n,), of `GROUPS`.
        heading: what is shown.
        caption: how it came about.

    Returns:
        The files written.
    """
    with mpl.rc_context(STYLE):
        figure, all_axes = _panels(len(panels), heading=heading)
        for axes, (title, points) in zip(all_axes, panels.items(), strict=True):
            draw_points(axes, points, groups)
            axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
        _legend(figure, all_axes[0], "upper right", markerscale=2.2)
        _caption(figure, caption)
        return save_both(path, figure)


def draw_points(axes: Axes, points: Points, groups: npt.NDArray[np.str_]) -> None:
    """Samples in the plane, (n, 2), colored and marked by their group, (n,)."""
    for name, (color, marker) in GROUPS.items():
        own = points[groups == name]
        if len(own):
            label = f"{name} (n = {len(own):,})"
            axes.scatter(
                own[:, 0], own[:, 1], s=7, c=color, marker=marker, linewidths=0, label=label
            )
    axes.set(xticks=[], yticks=[])  # distances mean something in t-SNE, directions do not
    axes.margins(0.04)


def _panels(count: int, *, heading: str) -> tuple[Figure, list[Axes]]:
    """A row of equal panels under one heading, room for a legend and a caption around them."""
    width = _LEFT + count * (_WIDTH + _GAP)
    height = _TOP + _HEIGHT + _BELOW
    figure = new_figure(width, height)
    figure.text(
        *(_LEFT / width, 1 - 0.13 / height), heading, va="top", fontsize=11, fontweight="bold"
    )
    sizes = (_WIDTH / width, _HEIGHT / height)
    lefts = [(_LEFT + number * (_WIDTH + _GAP)) / width for number in range(count)]
    return figure, [figure.add_axes((left, _BELOW / height, *sizes)) for left in lefts]


def _legend(
    figure: Figure,
    axes: Axes,
    loc: Literal["lower left", "upper right"],
    *,
    markerscale: float = 1.0,
) -> None:
    left, right = (inches / figure.get_figwidth() for inches in (_LEFT, _GAP))
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles,
        labels,
        loc=loc,
        bbox_to_anchor=(left, 0, 1 - left - right, 1),
        ncols=3,
        borderpad=0,
        borderaxespad=0.9,
        markerscale=markerscale,
        fontsize=8.5,
    )
    legend.set_frame_on(False)


def _caption(figure: Figure, text: str) -> None:
    x, y = _LEFT / figure.get_figwidth(), 0.12 / figure.get_figheight()
    figure.text(x, y, text, va="bottom", fontsize=8, color=MUTED, linespacing=1.4)
