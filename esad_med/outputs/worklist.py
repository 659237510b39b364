"""The ranked worklist of a chest X-ray triage: a self-contained HTML page without scripts."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esad_med.base.runs import atomic_file
from esad_med.outputs.pages import data_uri, render_page
from esad_med.outputs.radiograph import draw_legend

_JPEG_QUALITY = 80  # some 60 kB a row at 512 px: 1,000 rows are a page of 60 MB

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """A picture as the page holds it: many of them would fill the memory as arrays.

    Attributes:
        uri: JPEG data URI.
        size: (width, height).
    """

    uri: str
    size: tuple[int, int]

    @classmethod
    def of(cls, picture: Bytes) -> "Picture":
        """From (h, w, 3) uint8.

        Raises:
            ValueError: another shape or type.
        """
        colored = picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8
        if not colored or picture.size == 0:
            raise ValueError(f"expected a picture (h, w, 3) uint8, found {picture.shape}")
        return cls(_jpeg_uri(picture), (picture.shape[1], picture.shape[0]))


@dataclass(frozen=True)
class WorklistRow:
    """One study and the image that drives its rank; checked when made.

    Attributes:
        rank: 1 for the least normal study.
        case_id: a keyed hash, such as "study-3f9a1c".
        percentile: the image's score among the detector's held-out normals, 0-100.
        score: Eq. 17 of the image; higher is more anomalous.
        reconstruction: first term of the score.
        norm: second term of the score.
        view: PA or AP, as the image was taken to be.
        images: how many images of the study were scored.
        set_aside: how many images of the study were not.
        thumbnail: the radiograph.
        overlay: the same with its residual in color.
        notes: what a reader should know, such as "view not stated, taken as PA".
        identifiers: name -> text, such as "Patient ID"; empty unless the user asked for them.
        above: whether the percentile is at or above the detector's alarm percentile.
        detector: the detector's short digest.
        decision: "alarm", "review", "no alarm", "not decided"; empty without a calibration.
        p_value: of the study; None where nothing is decided.
        residual: whether the overlay has one; of embeddings there is none.
        nearest: the normal training images most like this one side by side, or None.
        distances: of them.
    """

    rank: int
    case_id: str
    percentile: float
    score: float
    reconstruction: float
    norm: float
    view: str
    images: int
    set_aside: int
    thumbnail: Picture
    overlay: Picture
    notes: tuple[str, ...]
    identifiers: Mapping[str, str]
    above: bool
    detector: str
    decision: str = ""
    p_value: float | None = None
    residual: bool = True
    nearest: Picture | None = None
    distances: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be, and pictures that do not show the same."""
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"rank {self.rank}: percentile {self.percentile}, expected 0 to 100")
        if not all(math.isfinite(value) for value in (self.score, self.reconstruction, self.norm)):
            raise ValueError(f"rank {self.rank}: expected a finite score and finite terms")
        if self.images < 1 or self.set_aside < 0:
            raise ValueError(f"rank {self.rank}: expected at least one scored image")
        if self.thumbnail.size != self.overlay.size:
            raise ValueError(
                f"rank {self.rank}: expected two pictures of one size, found"
                f" {self.thumbnail.size} and {self.overlay.size}"
            )


@dataclass(frozen=True)
class Worklist:
    """Everything the page shows, as plain values; checked when made.

    Attributes:
        rows: the ranked studies, in rank order.
        set_aside: (case, stage, reason) of what could not be scored.
        rule: how a study gets its rank, in words.
        alarm_percentile: the percentile from which on a study counts as above, 0-100.
        provenance: name -> text, in the order of the table.
        created: date of the run, given by the caller so that equal runs give equal pages.
        identified: whether the page may show identifiers; a banner then says so.
        detectors: a table's rows, each column -> text: views, digest, held-out normals, AUC ...
        residual_scale: where the residual's colors begin and end, in words; may be empty.
        rules: how each calibrated detector decides, in words.
        drift: how this batch differs from the calibration's images, in words.
    """

    rows: tuple[WorklistRow, ...]
    set_aside: tuple[tuple[str, str, str], ...]
    rule: str
    alarm_percentile: float
    provenance: Mapping[str, str]
    created: str
    identified: bool
    detectors: tuple[Mapping[str, str], ...]
    residual_scale: str = ""
    rules: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse gaps in the ranks, and identifiers on a page that does not announce them."""
        if [row.rank for row in self.rows] != list(range(1, len(self.rows) + 1)):
            raise ValueError(f"expected ranks 1 to {len(self.rows)} in order")
        if not 0 <= self.alarm_percentile <= 100:
            raise ValueError(f"alarm percentile {self.alarm_percentile}, expected 0 to 100")
        if not self.identified and any(row.identifiers for row in self.rows):
            raise ValueError("rows carry identifiers, expected none where identified is False")


def write_worklist(path: Path, worklist: Worklist) -> None:
    """Write the page, atomically and piece by piece: many pictures make it large.

    Raises:
        ConfigError: the file cannot be written.
    """
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(_pieces(worklist))


def render_worklist(worklist: Worklist) -> str:
    """The page as HTML; the same worklist gives the same text."""
    return "".join(_pieces(worklist))


def _pieces(worklist: Worklist) -> Iterator[str]:
    pieces = render_page(
        "worklist.html",
        ("slide.css", "decision.css", "worklist.css"),
        worklist=worklist,
        provenance=worklist.provenance,
        above=sum(row.above for row in worklist.rows),
        alarms=sum(row.decision == "alarm" for row in worklist.rows),
        images=sum(row.images for row in worklist.rows),
        columns=list(dict.fromkeys(name for row in worklist.detectors for name in row)),
        legend=_jpeg_uri(draw_legend()),
    )
    for piece in pieces:
        # A file name that is no UTF-8 comes as lone surrogates, which cannot be written.
        yield piece.encode("utf-8", "backslashreplace").decode("utf-8")


def _jpeg_uri(picture: Bytes) -> str:
    """A picture as a JPEG data URI; a gray one is stored as gray, which halves it."""
    gray = (picture == picture[..., :1]).all()
    shown = np.ascontiguousarray(picture[..., 0] if gray else picture)
    return data_uri(shown, "JPEG", quality=_JPEG_QUALITY)
