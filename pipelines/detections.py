"""Detections and slide probabilities in Camelyon16's formats: read from anybody, or a screening.

The challenge's CSVs have no header: ``probability,x,y`` per slide, ``name,probability`` for slides,
``name,Tumor|Normal,…`` as the key. A header is passed over, and missing values are errors.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from esad_med.assess.froc import suppress_neighbors
from esad_med.base.cases import read_table
from esad_med.base.config import Spec
from esad_med.base.errors import CaseError
from esad_med.base.limits import Limits
from esad_med.base.runs import read_json
from esad_med.base.text_limits import check_table
from pipelines.scoring import screened_slides

Floats = npt.NDArray[np.float64]
_LABELS = {"tumor": 1, "tumour": 1, "normal": 0, "1": 1, "0": 0}
_SUFFIXES = (".tif", ".tiff", ".svs", ".csv", ".xml")


class DetectionRule(Spec):
    """How the tile scores of a screening become a few detections; CSVs are taken as they are."""

    radius_um: float = Field(
        200.0, ge=0, description="Tiles with a center this close to a higher one are dropped."
    )
    floor: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Only tiles above become detections; 0.5 is the 99th percentile of normals.",
    )


@dataclass(frozen=True)
class Detections:
    """The detections of one slide.

    Attributes:
        source: where they come from, for messages.
        probability: (n,) above 0, at most 1.
        xy_level0: (n, 2) x and y in level-0 pixels.
        slide_probability: of the whole slide.
        size_level0: (width, height), None where nobody said.
        fingerprint: of the slide's file, empty where nobody said.
        mpp: µm per level-0 pixel, None where nobody said.
    """

    source: str
    probability: Floats
    xy_level0: Floats
    slide_probability: float
    size_level0: tuple[int, int] | None = None
    fingerprint: str = ""
    mpp: float | None = None

    def with_slide(self, probability: float) -> "Detections":
        """The same with another probability of the slide."""
        return replace(self, slide_probability=probability)

    def rows(self) -> list[tuple[str, int, int]]:
        """Rows of the challenge's CSV: probability, x, y as whole pixels."""
        whole = np.floor(self.xy_level0).astype(int).tolist()
        return [(repr(float(p)), x, y) for p, (x, y) in zip(self.probability, whole, strict=True)]


def read_detections(
    path: Path, rule: DetectionRule, limits: Limits
) -> tuple[dict[str, Detections], tuple[str, ...]]:
    """The slides of a folder of `screen` or of CSVs, by name in lower case, and what to note.

    Raises:
        CaseError: neither of the two, or a file of it cannot be used.
    """
    if not path.is_dir():
        raise CaseError(f"{path}: no such folder; expected one of `screen`, or of CSVs")
    if (path / "slides.csv").exists() and (path / "run.json").exists():
        return _read_screening(path, rule)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".csv")
    if not files:
        raise CaseError(f"{path}: neither a folder of `screen` nor CSVs inside, one per slide")
    slides: dict[str, Detections] = {}
    for file in files:
        if (name := slide_name(file.name)) in slides:
            raise CaseError(f"{file}: a second CSV of slide '{name}', expected one")
        slides[name] = _read_csv(file, limits)
    return slides, ("slide probabilities: the highest detection of each slide, unless given",)


def slide_name(text: str) -> str:
    """A slide's name in lower case and without a file's ending: the challenge mixes both."""
    name = text.strip().lower()
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def read_reference(path: Path, limits: Limits) -> dict[str, int]:
    """The challenge's key: slide -> 1 with tumor, 0 without, in the order of the file.

    Raises:
        CaseError: no such table, a label that is neither, a slide named twice.
    """
    truth: dict[str, int] = {}
    for line, row in _rows(path, limits, least=2, what="name,Tumor or name,Normal"):
        label = _LABELS.get(row[1].lower())
        if label is None and not truth and line == 1:
            continue  # a header
        if label is None:
            raise CaseError(f"{path}: line {line}: label '{row[1]:.40}', expected Tumor or Normal")
        if (name := slide_name(row[0])) in truth:
            raise CaseError(f"{path}: line {line}: slide '{name}' a second time, expected once")
        truth[name] = label
    if not truth:
        raise CaseError(f"{path}: no slide inside; expected rows such as test_001,Tumor")
    return truth


def read_probabilities(path: Path, limits: Limits) -> dict[str, float]:
    """A CSV ``name,probability``: slide -> probability.

    Raises:
        CaseError: no such table, no number, a slide named twice.
    """
    found: dict[str, float] = {}
    for line, row in _rows(path, limits, least=2, what="name,probability"):
        if not found and line == 1 and _number(row[1]) is None:
            continue  # a header
        if (name := slide_name(row[0])) in found:
            raise CaseError(f"{path}: line {line}: slide '{name}' a second time, expected once")
        found[name] = _finite(path, line, row[1])
    return found


def _read_csv(path: Path, limits: Limits) -> Detections:
    values: list[tuple[float, ...]] = []
    for line, row in _rows(path, limits, least=3, what="probability,x,y"):
        if not values and line == 1 and _number(row[0]) is None:
            if [cell.lower() for cell in row[1:3]] != ["x", "y"]:
                raise CaseError(
                    f"{path}: columns {', '.join(row)[:80]}, expected probability,x,y in this order"
                )
            continue
        probability, x, y = (_finite(path, line, cell) for cell in row[:3])
        if not 0 < probability <= 1:
            raise CaseError(
                f"{path}: line {line}: probability {probability:g}, expected above 0 and at most 1"
            )
        if x < 0 or y < 0:
            raise CaseError(
                f"{path}: line {line}: x={x:g}, y={y:g}, expected level-0 pixels from 0 on"
            )
        values.append((probability, x, y))
    table = np.asarray(values, np.float64).reshape(-1, 3)
    return Detections(str(path), table[:, 0], table[:, 1:], float(table[:, 0].max(initial=0.0)))


def _rows(path: Path, limits: Limits, *, least: int, what: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and stripped cells of each row that is not empty."""
    try:
        check_table(path, limits=limits)
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, row in enumerate(csv.reader(file), 1):
                cells = [cell.strip() for cell in row]
                if any(cells):
                    if len(cells) < least:
                        raise CaseError(
                            f"{path}: line {line}: {len(cells)} columns, expected {what}"
                        )
                    yield line, cells
    except OSError as error:
        raise CaseError(f"{path}: cannot be read ({error.strerror})") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise CaseError(f"{path}: not a CSV table ({error})") from error


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _finite(path: Path, line: int, text: str) -> float:
    value = _number(text)
    if value is None or not math.isfinite(value) or abs(value) > 1e9:
        raise CaseError(f"{path}: line {line}: '{text:.40}', expected a number")
    return value


def _read_screening(
    path: Path, rule: DetectionRule
) -> tuple[dict[str, Detections], tuple[str, ...]]:
    slides = {
        slide_name(folder.name): _read_screened(folder, rule) for folder in screened_slides(path)
    }
    note = (
        f"detections: tiles above {rule.floor:g} that have no higher one within"
        f" {rule.radius_um:g} µm; 0.5 is the 99th percentile of held-out normals"
    )
    return slides, (note,)


def _read_screened(folder: Path, rule: DetectionRule) -> Detections:
    facts, table = read_json(folder / "slide.json", CaseError), read_table(folder / "scores.csv")
    try:
        geometry, threshold = facts["geometry"], float(facts["threshold"])
        edge, mpp = float(geometry["edge_level0"]), float(geometry["mpp"])
        width, height = (int(side) for side in geometry["size_level0"])
        slide_score = float(facts["slide_score"])
        fingerprint = str(facts["provenance"]["Slide fingerprint"])
        xy = table[["x_level0", "y_level0"]].to_numpy(dtype=np.float64) + edge / 2
        score = table["score"].to_numpy(dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise CaseError(f"{folder}: no result of this version's `screen`; screen again") from error
    xy = np.minimum(xy, np.array([width, height]) - 1)  # of a tile that the edge cuts
    probability = to_probability(score, threshold)
    above = np.flatnonzero(probability > rule.floor)
    kept = above[suppress_neighbors(score[above], xy[above], radius=rule.radius_um / mpp)]
    slide = float(to_probability(np.array([slide_score]), threshold)[0])
    size = (width, height)
    return Detections(str(folder), probability[kept], xy[kept], slide, size, fingerprint, mpp)


def to_probability(score: Floats, threshold: float) -> Floats:
    """Scores between 0 and 1 in the same order, 0.5 at the threshold: the challenge asks for them.

    They are no probabilities of tumor, and need not be: FROC and AUC only see the order.
    """
    scale = abs(threshold) or 1.0
    return np.asarray(0.5 + np.arctan((score - threshold) / scale) / np.pi, np.float64)
