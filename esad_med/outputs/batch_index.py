"""The index of a screening: a page with a row per slide, to sort and filter, and small pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from esad_med.base.runs import write_text
from esad_med.outputs.pages import read_template, render_page
from esad_med.outputs.report import SlideReport, draw_overlay, shrink_overview

_THUMBNAIL_PX = 288  # three times what the page shows, for fine displays
_QUALITY = 80
_SHOWN_FAILURES = 200


@dataclass(frozen=True)
class BatchRow:
    """One slide.

    Attributes:
        case_id: names the slide's folder beside the page.
        slide_score, slide_percentile, maximum, area_above_mm2, tiles, unreadable: as in its report.
        above: whether the slide score is above the threshold.
        decision: such as "alarm"; empty where the detector is not calibrated.
        p_value: of the slide, where there is one.
        thumbnail, report, viewer: whether the slide's folder has them.
    """

    case_id: str
    slide_score: float
    slide_percentile: float
    maximum: float
    area_above_mm2: float
    tiles: int
    unreadable: int
    above: bool
    decision: str
    p_value: float | None
    thumbnail: bool
    report: bool
    viewer: bool

    @property
    def marked(self) -> bool:
        """Whether the row stands out: by the decision, where there is one."""
        return self.decision == "alarm" if self.decision else self.above


@dataclass(frozen=True)
class Batch:
    """Everything the page shows, as plain values.

    Attributes:
        rows: the slides, in the order of the page before it is sorted.
        set_aside: (case, reason) of slides that could not be screened.
        slide_rule: how a slide score is made, in words.
        threshold_rule: what the threshold is, in words.
        detector: its short digest, or empty.
        created: date of the run.
    """

    rows: Sequence[BatchRow]
    set_aside: Sequence[tuple[str, str]]
    slide_rule: str
    threshold_rule: str
    detector: str
    created: str


def write_batch_index(path: Path, batch: Batch) -> None:
    """Write the page, atomically; pictures, reports and viewers are files beside it.

    Raises:
        ConfigError: the file cannot be written.
    """
    write_text(path, render_batch_index(batch))


def render_batch_index(batch: Batch) -> str:
    """The page as HTML; it is read without its script, too."""
    pieces = render_page(
        "batch.html",
        ("slide.css", "batch.css"),
        script=read_template("batch.js"),
        pictures="'self' file:",
        batch=batch,
        decisions=sorted({row.decision for row in batch.rows} - {""}),
        shown=_SHOWN_FAILURES,
    )
    return "".join(pieces)


def write_thumbnail(path: Path, report: SlideReport) -> None:
    """Write a small JPEG of the slide in gray with its scores in color, as the report has it.

    Raises:
        OSError: the file cannot be written; the folder's writer says why.
    """
    small, downsample = shrink_overview(
        report.thumbnail, report.downsample, longest_px=_THUMBNAIL_PX
    )
    Image.fromarray(draw_overlay(report, small, downsample)).save(path, quality=_QUALITY)
