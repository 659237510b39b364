"""Figures of an evaluation: ROC curves and histograms, the same bytes for the same numbers."""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from esad_med.base.runs import atomic_file

INK = "#1d2733"
MUTED = "#5b6673"
_GRID = "#e3e7ec"
# Dark enough on white, and apart for color-blind readers (Okabe-Ito, darkened).
_CURVES = ("#00558c", "#b3541e", "#2f7d55", "#7a4b94", "#5b6673")
_CLASSES = {"normal": "#3b7ea1", "anomalous": "#c8502d"}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib: equal on every machine
    "font.size": 9,
    "svg.fonttype": "path",
    "svg.hashsalt": "esad-med",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.parse_math": False,  # a case id with dollar signs is not a formula
}
_DPI = 160
_MARK_ROWS = 3
_MARK_ROW_PT = 11
_LOG_FROM = 20  # times the median

Floats = npt.NDArray[np.floating]
Curve = tuple[npt.ArrayLike, npt.ArrayLike]


def write_roc(
    path: Path, curves: Mapping[str, Curve], *, title: str, specificities: Sequence[float] = ()
) -> list[Path]:
    """Draw ROC curves as ``path`` + .svg and .png.

    Args:
        path: the files' name without a suffix.
        curves: label -> (false-positive rate, true-positive rate), each (k,) rising from 0 to 1.
        title: what is evaluated.
        specificities: shares between 0 and 1 that get a vertical mark, such as (0.9, 0.95, 0.99).

    Returns:
        The files written.

    Raises:
        ConfigError: a file cannot be written.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(4.8, 4.9)
        axes = figure.add_axes((0.13, 0.11, 0.83, 0.8))
        for share in specificities:
            axes.axvline(1 - share, color=MUTED, linewidth=0.6, linestyle=(0, (2, 3)))
        axes.plot([0, 1], [0, 1], color="#b9c1ca", linewidth=0.8)
        for index, (label, (fpr, tpr)) in enumerate(curves.items()):
            color, width = _CURVES[index % len(_CURVES)], 2.0 if index == 0 else 1.3
            axes.plot(fpr, tpr, label=label, color=color, linewidth=width, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_xlabel("false-positive rate (1 − specificity)")
        axes.set_ylabel("sensitivity")
        axes.legend(loc="lower right", frameon=False, fontsize=8.5)
        dress(axes, title)
        return save_both(path, figure)


def write_froc(path: Path, curve: Curve, *, at: Mapping[float, float], title: str) -> list[Path]:
    """Draw a free-response curve as ``path`` + .svg and .png.

    Args:
        path: the files' name without a suffix.
        curve: (false positives per slide, sensitivity), each (m,).
        at: false positives per slide -> sensitivity, drawn as dots.
        title: what is evaluated.

    Returns:
        The files written.

    Raises:
        ConfigError: a file cannot be written.
    """
    rates = list(at)
    with mpl.rc_context(STYLE):
        figure = new_figure(5.6, 4.2)
        axes = figure.add_axes((0.11, 0.13, 0.86, 0.76))
        axes.plot(*curve, color=_CURVES[0], linewidth=1.8)
        axes.plot(rates, list(at.values()), "o", color=_CURVES[1], markersize=5, clip_on=False)
        for rate, found in at.items():
            axes.annotate(
                f"{found:.2f}",
                (rate, found),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        low, high = min(rates), max(rates)
        axes.set_xscale("log", base=2)
        axes.set_xlim(low / 2, high * 1.5)
        axes.set_ylim(0, 1.08)
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("false positives per slide (log scale)")
        axes.set_ylabel("sensitivity, share of lesions found")
        dress(axes, title)
        return save_both(path, figure)


def write_histogram(
    path: Path,
    scores: Mapping[str, npt.ArrayLike],
    *,
    title: str,
    xlabel: str = "anomaly score",
    marks: Mapping[str, float] | None = None,
) -> list[Path]:
    """Draw one histogram per class as ``path`` + .svg and .png; classes as shares, not counts.

    Args:
        path: the files' name without a suffix.
        scores: class ("normal", "anomalous" or another label) -> (n,) finite scores.
        title: what is evaluated.
        xlabel: what the scores are.
        marks: label -> score of a vertical line.

    Returns:
        The files written.

    Raises:
        ConfigError: a file cannot be written.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(5.6, 3.7)
        axes = figure.add_axes((0.11, 0.14, 0.86, 0.67))
        _draw_histogram(axes, scores, marks or {}, xlabel=xlabel, ylabel="share of the class")
        dress(axes, title, pad=38 if marks else 6)
        return save_both(path, figure)


def histogram_svg(
    scores: npt.ArrayLike, *, marks: Mapping[str, float], xlabel: str = "tile score"
) -> bytes:
    """The histogram of one slide's tiles as an SVG picture, with labeled vertical lines."""
    with mpl.rc_context(STYLE):
        figure = new_figure(9.0, 2.6)
        axes = figure.add_axes((0.065, 0.17, 0.925, 0.64))
        _draw_histogram(axes, {"tiles": scores}, marks, xlabel=xlabel, ylabel="tiles")
        dress(axes, "")
        return _to_svg(figure)


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of this size in inches, outside of pyplot's global state."""
    return Figure(figsize=(width, height), dpi=_DPI, facecolor="white")


def save_png(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, atomically and without a time stamp."""
    with mpl.rc_context(STYLE), atomic_file(path) as temporary, temporary.open("wb") as file:
        FigureCanvasAgg(figure)
        squeeze = {"compress_level": 1}  # a fifth of the default's time, and little more space
        metadata = {"Software": "esad-med"}
        with _names_in_any_script():
            figure.savefig(file, format="png", metadata=metadata, pil_kwargs=squeeze)


def save_both(path: Path, figure: Figure) -> list[Path]:
    """Write a figure as SVG and PNG beside each other; both paths."""
    svg, png = path.with_name(path.name + ".svg"), path.with_name(path.name + ".png")
    with atomic_file(svg) as temporary:
        temporary.write_bytes(_to_svg(figure))
    save_png(png, figure)
    return [svg, png]


def _to_svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasSVG(figure)
    with _names_in_any_script():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "esad-med"})
    return buffer.getvalue()


@contextmanager
def _names_in_any_script() -> Iterator[None]:
    """A slide may be named in any script; a box stands for what the font lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _draw_histogram(
    axes: Axes,
    scores: Mapping[str, npt.ArrayLike],
    marks: Mapping[str, float],
    *,
    xlabel: str,
    ylabel: str,
) -> None:
    values = {name: np.asarray(value, dtype=np.float64) for name, value in scores.items()}
    edges, scale = _bin_edges(np.concatenate(list(values.values())), list(marks.values()))
    axes.set_xscale(scale)
    if scale == "log":
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    shares = len(values) > 1
    for index, (name, value) in enumerate(values.items()):
        color = _CLASSES.get(name, _CURVES[index % len(_CURVES)])
        weights = np.full(len(value), 1 / max(len(value), 1)) if shares else None
        label = f"{name} (n = {len(value):,})"
        axes.hist(
            value,
            edges.tolist(),
            weights=weights,
            color=color,
            alpha=0.55,
            label=label,
            linewidth=0,
        )
        axes.hist(
            value, edges.tolist(), weights=weights, color=color, histtype="step", linewidth=1.1
        )
    axes.set_xlabel(f"{xlabel} (log scale)" if scale == "log" else xlabel)
    axes.set_ylabel(ylabel)
    axes.set_xlim(edges[0], edges[-1])
    _draw_marks(axes, marks)
    if shares:
        axes.legend(loc="upper right", frameon=False, fontsize=8.5)


def _draw_marks(axes: Axes, marks: Mapping[str, float]) -> None:
    """Vertical lines with labels above the frame, in up to three rows where they are close."""
    width_pt = axes.get_position().width * axes.figure.get_figure(root=True).get_figwidth() * 72
    row_ends = [-np.inf] * _MARK_ROWS
    for name, value in sorted(marks.items(), key=lambda mark: mark[1]):
        axes.axvline(value, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
        at = float((axes.transData + axes.transAxes.inverted()).transform((value, 0))[0])
        half = 2.6 * len(name) / width_pt  # half the width of a label in 8 pt
        center = min(max(at, half), 1 - half)
        row = next((i for i, end in enumerate(row_ends) if center - half > end), _MARK_ROWS - 1)
        row_ends[row] = center + half
        axes.annotate(
            name,
            (center, 1),
            xycoords="axes fraction",
            xytext=(0, 4 + _MARK_ROW_PT * row),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=INK,
        )


def _bin_edges(values: Floats, marks: Sequence[float]) -> tuple[Floats, str]:
    """Bins over all values and marks, 10 to 60 of them, and the scale they are equal on.

    A few scores far above the rest would leave everything else in one bin: then the scale is "log".
    """
    everything = np.append(values, marks)
    low, high = float(everything.min()), float(everything.max())
    bins = int(np.clip(np.sqrt(len(values)) * 1.5, 10, 60))
    if low > 0 and high > _LOG_FROM * float(np.median(values)):
        return np.geomspace(low / 1.05, high * 1.05, bins + 1), "log"
    if low == high:
        low, high = low - 0.5, high + 0.5
    room = 0.02 * (high - low)
    return np.linspace(low - room, high + room, bins + 1), "linear"


def dress(axes: Axes, title: str, *, pad: float = 6) -> None:
    """Give axes their title, a quiet grid and no frame at the top and the right."""
    axes.set_axisbelow(True)
    axes.grid(color=_GRID, linewidth=0.7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=3, width=0.7)
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=pad)
