"""The report of one slide: a self-contained HTML page without scripts or outside references."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from esad_med.base.runs import write_text
from esad_med.outputs.explain import TileExplanation, describe_explanation, term_shares
from esad_med.outputs.figures import histogram_svg
from esad_med.outputs.heatmap import UNTILED, Bytes, colorize, normal_limits, rasterize_tiles
from esad_med.outputs.pages import data_uri, render_page

_OVERVIEW_PX = 900
_PICTURE_HEIGHT_PX = 700  # a tall slide is narrowed rather than shown over two screens
_SHOWN_FAILURES = 20
_TINT = 0.62  # share of the heat map's color where it lies over the gray slide

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class TilePicture:
    """One tile as scanned, before stain normalization, to be shown with its scores.

    Attributes:
        index: its row among the report's tiles.
        picture: (h, w, 3) uint8.
        explanation: its residual and what normal tiles it is most like, or None.
    """

    index: int
    picture: Bytes
    explanation: TileExplanation | None = None


@dataclass(frozen=True)
class ReportDecision:
    """What a calibrated detector decides about the slide.

    Attributes:
        outcome: "alarm", "review", "no alarm" or "not decided".
        p_value: of the slide; None where nothing is decided.
        rule: how the outcome comes about and what it promises.
        tiles: how many tiles are pointed at, and what that promises.
        calibration: what it rests on.
        caveats: what speaks against relying on it.
    """

    outcome: str
    p_value: float | None
    rule: str
    tiles: str
    calibration: str
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class SlideReport:
    """Everything the page shows, as plain values; checked when made.

    Attributes:
        case_id: the title.
        slide_score: by the rule that ``slide_rule`` puts in words.
        slide_rule: such as "mean of the 14 highest tile scores (top 1 %, at least 10)".
        slide_percentile: the slide score among held-out normal tiles, 0-100.
        maximum: the highest tile score.
        threshold: the tile score above which area is counted.
        threshold_rule: such as "99th percentile of held-out normal tiles".
        area_above_mm2: area of the tiles above the threshold.
        area_tiled_mm2: area of all scored tiles.
        xy_level0: (n, 2) top-left corners of the scored tiles in level-0 pixels.
        edge_level0: edge of a tile in level-0 pixels.
        score: (n,) Eq. 17; higher is more anomalous.
        percentile: (n,) 0-100, the score among held-out normal tiles.
        reconstruction: (n,) first term of the score.
        norm: (n,) second term of the score.
        thumbnail: (h, w, 3) uint8 picture of the whole slide.
        downsample: level-0 pixels per thumbnail pixel.
        slide_size: (width, height) at level 0.
        slide_mpp: µm per level-0 pixel.
        normal_quantiles: quantile (0-1) of the held-out normals -> tile score; 0.5 and 0.99 must
            be among them, since the color scale hangs on them.
        most: the most anomalous tiles, highest first.
        least: the least anomalous tiles, lowest first.
        provenance: name -> text, in the order of the table.
        failures: (where, message) of what could not be read.
        created: date of the run, given by the caller so that equal runs give equal pages.
        decision: of a calibrated detector; None by one that is not.
    """

    case_id: str
    slide_score: float
    slide_rule: str
    slide_percentile: float
    maximum: float
    threshold: float
    threshold_rule: str
    area_above_mm2: float
    area_tiled_mm2: float
    xy_level0: npt.NDArray[np.integer]
    edge_level0: float
    score: Floats
    percentile: Floats
    reconstruction: Floats
    norm: Floats
    thumbnail: Bytes
    downsample: float
    slide_size: tuple[int, int]
    slide_mpp: float
    normal_quantiles: Mapping[float, float]
    most: Sequence[TilePicture]
    least: Sequence[TilePicture]
    provenance: Mapping[str, str]
    created: str
    failures: Sequence[tuple[str, str]] = field(default=())
    decision: ReportDecision | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that do not describe the same n tiles, n > 0."""
        n = len(self.score)
        columns = (self.percentile, self.reconstruction, self.norm)
        if not n or self.xy_level0.shape != (n, 2) or any(c.shape != (n,) for c in columns):
            raise ValueError(f"{self.case_id}: expected one position and three values per score")
        if self.thumbnail.ndim != 3 or self.thumbnail.dtype != np.uint8:
            raise ValueError(f"{self.case_id}: expected a thumbnail (h, w, 3) uint8")
        if not {0.5, 0.99} <= set(self.normal_quantiles):
            raise ValueError(f"{self.case_id}: quantiles 0.5 and 0.99 of the normals are needed")
        if any(not 0 <= tile.index < n for tile in (*self.most, *self.least)):
            raise ValueError(f"{self.case_id}: a tile picture has no row among {n} tiles")


def write_report(path: Path, report: SlideReport) -> None:
    """Write the page, atomically.

    Raises:
        ConfigError: the file cannot be written.
    """
    write_text(path, render_report(report))


def render_report(report: SlideReport) -> str:
    """The page as HTML; the same report gives the same text."""
    thumbnail, downsample = shrink_overview(report.thumbnail, report.downsample)
    width_px = round(_PICTURE_HEIGHT_PX * thumbnail.shape[1] / thumbnail.shape[0])
    bar, bar_share = _scale_bar(report)
    pieces = render_page(
        "slide.html",
        ("slide.css", "decision.css", "explain.css"),
        extra_style=_sizes(width_px, bar_share),
        report=report,
        provenance=report.provenance,
        shown_failures=_SHOWN_FAILURES,
        thumbnail=data_uri(thumbnail, "JPEG"),
        overlay=data_uri(draw_overlay(report, thumbnail, downsample), "JPEG"),
        scale_bar=bar,
        legend=data_uri(draw_scale(), "PNG"),
        limits=normal_limits(report.normal_quantiles),
        histogram=_svg_uri(histogram_svg(report.score, marks=_marks(report))),
        most=[_describe_tile(report, tile) for tile in report.most],
        least=[_describe_tile(report, tile) for tile in report.least],
    )
    return "".join(pieces)


def _sizes(width_px: int, bar_share: float) -> str:
    """This slide's part of the style sheet: the policy allows no ``style`` in a tag."""
    return (
        f".picture {{ width: min(100%, {width_px}px); }}\n"
        f".scale {{ width: {100 * bar_share:.2f}%; }}\n"
    )


def shrink_overview(
    thumbnail: Bytes, downsample: float, *, longest_px: int = _OVERVIEW_PX
) -> tuple[Bytes, float]:
    """The thumbnail at no more than the page shows, and its level-0 pixels per pixel."""
    longest = max(thumbnail.shape[:2])
    if longest <= longest_px:
        return thumbnail, downsample
    zoom = longest_px / longest
    width = max(1, round(thumbnail.shape[1] * zoom))
    height = max(1, round(thumbnail.shape[0] * zoom))
    image = Image.fromarray(thumbnail).resize((width, height), Image.Resampling.BOX)
    return np.asarray(image), downsample / zoom


def draw_overlay(report: SlideReport, thumbnail: Bytes, downsample: float) -> Bytes:
    """The slide in gray with each tile's score over it in color."""
    height, width = thumbnail.shape[:2]
    raster = rasterize_tiles(
        report.score,
        xy_level0=report.xy_level0,
        edge_level0=report.edge_level0,
        downsample=downsample,
        size_px=(width, height),
        limits=normal_limits(report.normal_quantiles),
    )
    gray = np.asarray(Image.fromarray(thumbnail).convert("L").convert("RGB"), dtype=np.float32)
    mixed = (1 - _TINT) * gray + _TINT * colorize(raster)
    tiled = (raster != UNTILED)[..., None]
    return np.rint(np.where(tiled, mixed, gray)).astype(np.uint8)


def draw_scale() -> Bytes:
    """The color scale from its first to its last color."""
    ramp = colorize(np.arange(UNTILED, dtype=np.uint8))[None]
    return np.ascontiguousarray(np.repeat(ramp, 8, axis=0))


def _scale_bar(report: SlideReport) -> tuple[str, float]:
    """A round length of about a fifth of the slide in words, and its share of the width."""
    width_um = report.slide_size[0] * report.slide_mpp
    target = width_um / 5
    power = 10 ** math.floor(math.log10(target))
    length = max(step * power for step in (1, 2, 5) if step * power <= target)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    return text, length / width_um


def _marks(report: SlideReport) -> dict[str, float]:
    """The lines of the histogram: "P99" and the like -> score."""
    return {f"P{100 * q:g}": float(value) for q, value in report.normal_quantiles.items()}


def _describe_tile(report: SlideReport, tile: TilePicture) -> dict[str, object]:
    x, y = (int(value) for value in report.xy_level0[tile.index])
    told = tile.explanation
    shares = term_shares(report.reconstruction, report.norm)
    return {
        "explanation": None if told is None else describe_explanation(told, tile.picture),
        "shares": [float(share[tile.index]) for share in shares],
        "picture": data_uri(tile.picture, "PNG"),
        "score": float(report.score[tile.index]),
        "percentile": float(report.percentile[tile.index]),
        "reconstruction": float(report.reconstruction[tile.index]),
        "norm": float(report.norm[tile.index]),
        "x": x,
        "y": y,
    }


def _svg_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
