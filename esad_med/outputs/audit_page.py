"""The findings of an audit as one self-contained HTML page without scripts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from esad_med.base.runs import write_text
from esad_med.outputs.pages import data_uri, render_page

Bytes = npt.NDArray[np.uint8]
_MOST_PX = 128
_QUALITY = 88


@dataclass(frozen=True)
class CheckLine:
    """A check as the page lists it; the status is done, in part or not checked."""

    name: str
    status: str
    found: int
    note: str


@dataclass(frozen=True)
class Card:
    """A sample or a pair of samples with what is said of it.

    Attributes:
        pictures: data URIs of `thumbnail`; empty for table rows.
        title: in bold, such as "rank 3".
        facts: name -> text, below it.
        warn: what deserves a second look, such as "train | test"; may be empty.
    """

    pictures: tuple[str, ...]
    title: str
    facts: Mapping[str, str]
    warn: str = ""


@dataclass(frozen=True)
class Section:
    """A kind of finding: what it is, how many there are, and the first of them.

    Attributes:
        anchor: of the heading.
        title: of the heading.
        explain: how it was found, and how to read it.
        found: how many there are.
        file: the CSV that lists them.
        cards: those shown.
        note: why nothing stands here, where it was not checked.
    """

    anchor: str
    title: str
    explain: str
    found: int
    file: str
    cards: tuple[Card, ...]
    note: str = ""


@dataclass(frozen=True)
class AuditPage:
    """Everything the page shows, as plain values.

    Attributes:
        name: of the store.
        facts: one line below it.
        figures: (name, value, explanation, whether to warn), at the top.
        checks: all of them, in order.
        leaks: a table's rows, each column -> text.
        leaks_found: how many there are.
        sections: kinds of findings with pictures.
        provenance: name -> text.
        created: date of the run.
    """

    name: str
    facts: str
    figures: tuple[tuple[str, str, str, bool], ...]
    checks: tuple[CheckLine, ...]
    leaks: tuple[Mapping[str, str], ...]
    leaks_found: int
    sections: tuple[Section, ...]
    provenance: Mapping[str, str]
    created: str


def thumbnail(picture: Bytes) -> str:
    """A sample (h, w, c) as a JPEG data URI of at most 128 pixels a side.

    Of another number of channels than 1 and 3 the first is shown.
    """
    shown = picture if picture.shape[2] == 3 else picture[..., 0]
    if max(shown.shape[:2]) > _MOST_PX:
        small = Image.fromarray(np.ascontiguousarray(shown))
        small.thumbnail((_MOST_PX, _MOST_PX), Image.Resampling.BOX)
        shown = np.asarray(small)
    return data_uri(np.ascontiguousarray(shown), "JPEG", quality=_QUALITY)


def write_audit_page(path: Path, page: AuditPage) -> None:
    """Write the page, atomically.

    Raises:
        ConfigError: the file cannot be written.
    """
    write_text(path, render_audit_page(page))


def render_audit_page(page: AuditPage) -> str:
    """The page as HTML; equal findings give equal text."""
    styles = ("slide.css", "audit.css")
    return "".join(render_page("audit.html", styles, page=page, provenance=page.provenance))
