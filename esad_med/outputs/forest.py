"""Forest plots: a value with its interval per row, side by side for several measures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes

from esad_med.outputs.figures import INK, MUTED, STYLE, dress, new_figure, save_both

_POINT = "#00558c"
_FEW = "#b3541e"
_ROW_INCHES = 0.26
_LONGEST = 34  # characters of a label


@dataclass(frozen=True)
class ForestRow:
    """One row of the plot.

    Attributes:
        section: rows of one section stand together under its name.
        label: what the row is of.
        counts: beside the label, such as normal / anomalous.
        values: measure -> (value, low, high) in 0-1, NaN where unknown.
        warning: drawn in another color, hollow.
    """

    section: str
    label: str
    counts: str
    values: Mapping[str, tuple[float, float, float]]
    warning: bool


def write_forest(path: Path, rows: Sequence[ForestRow], *, title: str) -> list[Path]:
    """Draw rows as ``path`` + .svg and .png, a column of axes per measure.

    Args:
        path: the files' name without a suffix.
        rows: in their order; all with the same measures; at least one.
        title: what is shown.

    Returns:
        The files written.

    Raises:
        ConfigError: a file cannot be written.
    """
    lines: list[ForestRow | str] = []
    for section, members in groupby(rows, key=lambda row: row.section):
        lines += [*([section] if section else []), *members]
    measures = list(rows[0].values)
    height = 1.15 + _ROW_INCHES * len(lines)
    left, bottom, top = 0.36, 0.55 / height, 1 - 0.6 / height
    width = (0.985 - left) / len(measures)
    with mpl.rc_context(STYLE):
        figure = new_figure(9.0, height)
        for index, measure in enumerate(measures):
            box = (left + index * width, bottom, 0.84 * width, top - bottom)
            axes = figure.add_axes(box)
            _draw(axes, lines, measure)
            dress(axes, measure)
            if index == 0:
                _label(axes, lines)
        figure.text(0.012, 1 - 0.3 / height, title, fontsize=10.5, fontweight="bold", color=INK)
        note = "normal / anomalous beside the name; bars: 95 % interval; hollow: few patients"
        figure.text(0.012, 0.1 / height, note, fontsize=7.5, color=MUTED)
        return save_both(path, figure)


def _draw(axes: Axes, lines: Sequence[ForestRow | str], measure: str) -> None:
    lowest = 1.0
    for at, line in enumerate(lines):
        if isinstance(line, str):
            continue
        value, low, high = line.values[measure]
        if math.isnan(value):
            continue
        color, face = (_FEW, "white") if line.warning else (_POINT, _POINT)
        lowest = min([lowest, value, *([] if math.isnan(low) else [low])])
        if not math.isnan(low):
            axes.plot([low, high], [at, at], color=color, linewidth=1.4)
        axes.plot(
            value,
            at,
            "o",
            color=color,
            markerfacecolor=face,
            markersize=5,
            markeredgewidth=1.2,
            clip_on=False,
            zorder=3,
        )
    axes.set_xlim(0 if lowest < 0.45 else 0.4, 1.02)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_yticks([])


def _label(axes: Axes, lines: Sequence[ForestRow | str]) -> None:
    """Names and counts left of the first axes."""
    for at, line in enumerate(lines):
        heading = isinstance(line, str)
        text = line if isinstance(line, str) else line.label
        text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
        transform = axes.get_yaxis_transform()  # shares of the axes across, rows down
        axes.text(
            -1.98 if heading else -1.92,
            at,
            text,
            transform=transform,
            va="center",
            fontsize=8.5,
            fontweight="bold" if heading else "normal",
        )
        if not isinstance(line, str):
            axes.text(
                -0.04,
                at,
                line.counts,
                transform=transform,
                va="center",
                ha="right",
                fontsize=8,
                color=MUTED,
            )
