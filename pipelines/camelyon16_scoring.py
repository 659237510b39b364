"""`esad-med camelyon16`: detections and slide probabilities against the challenge's lesions.

OUT/detections/NAME.csv       ``probability,x,y`` in level-0 pixels, the challenge's first format
OUT/slide_probabilities.csv   ``name,probability``, its second
OUT/cases.csv                 a row per slide: lesions, hits, false positives
OUT/lesions.csv               a row per lesion: was it found, and how surely
OUT/camelyon16.json           FROC, slide AUC and the settings; froc.svg, froc.png the curve
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_prep.annotations import annotations_in, find_annotation
from data_prep.lesion_masks import LESION_SUFFIXES, read_lesion_mask
from esad_med.assess.froc import (
    FALSE_POSITIVES,
    Froc,
    Lesions,
    SlideDetections,
    bootstrap_froc,
    compute_froc,
    find_lesions,
    match_detections,
)
from esad_med.assess.measures import auc, bootstrap_auc
from esad_med.base.config import Spec
from esad_med.base.errors import CaseError, ConfigError
from esad_med.base.limits import Limits
from esad_med.base.runs import (
    Progress,
    ensure_folder,
    no_progress,
    write_csv,
    write_json,
    write_text,
)
from esad_med.outputs.figures import write_froc
from pipelines.detections import (
    DetectionRule,
    Detections,
    read_detections,
    read_probabilities,
    read_reference,
)

_RESULT = "camelyon16.json"

_MPP_TOLERANCE = 0.05


class Camelyon16Config(Spec):
    """The rules of the challenge, and what is ours before them."""

    level: int = Field(
        5, ge=0, le=10, description="Of the lesion mask; each halves the one before."
    )
    mpp: float = Field(0.243, gt=0, description="Level-0 µm per pixel, one for all slides.")
    growth_um: float = Field(75.0, gt=0, description="What a lesion gains in diameter.")
    isolated_um: float = Field(
        275.0, ge=0, description="Longest axis below: left out of the count."
    )
    false_positives: tuple[float, ...] = Field(
        FALSE_POSITIVES, min_length=1, description="Per slide; the sensitivity is read there."
    )
    detections: DetectionRule = DetectionRule()
    exclude: tuple[str, ...] = Field(
        (), description="Slides of the reference to leave out, such as test_114."
    )
    absent: Literal["refuse", "leave out"] = Field(
        "refuse", description="What to do with slides of the reference that have no results."
    )
    limits: Limits = Limits()


@dataclass(frozen=True)
class Camelyon16Result:
    """What the detections and the slide probabilities are worth.

    Attributes:
        froc: the curve and the score.
        froc_interval: 95 %, slides drawn again.
        auc: of the slide probabilities; NaN where a class is missing.
        auc_interval: 95 %, slides drawn again.
        left_out: slides of the reference that were not scored.
        cases: a row per slide.
        lesions: a row per lesion.
        notes: what one should know beside the numbers.
    """

    froc: Froc
    froc_interval: tuple[float, float]
    auc: float
    auc_interval: tuple[float, float]
    left_out: tuple[str, ...]
    cases: list[dict[str, Any]]
    lesions: list[dict[str, Any]]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people."""
        froc = self.froc
        rates = ", ".join(f"{100 * found:.1f} % at {rate:g}" for rate, found in froc.at.items())
        return [
            f"FROC score {froc.score:.4f} {_interval(self.froc_interval)}, {froc.lesions} lesions"
            f" on {froc.slides} slides",
            f"  sensitivity {rates} false positives per slide",
            f"slide AUC {self.auc:.4f} {_interval(self.auc_interval)}",
            *([f"left out: {', '.join(self.left_out)}"] if self.left_out else []),
            *self.notes,
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        return {
            "froc": self.froc.score,
            "froc_interval": [_plain(end) for end in self.froc_interval],
            "sensitivity_at": {f"{rate:g}": found for rate, found in self.froc.at.items()},
            "auc": _plain(self.auc),
            "auc_interval": [_plain(end) for end in self.auc_interval],
            "slides": self.froc.slides,
            "lesions": self.froc.lesions,
            "left_out": list(self.left_out),
            "notes": list(self.notes),
        }


def score_camelyon16(
    results: Path,
    masks: Path,
    reference: Path,
    out: Path,
    config: Camelyon16Config,
    *,
    slide_scores: Path | None = None,
    progress: Progress = no_progress,
) -> Camelyon16Result:
    """Score a screening, or anybody's detections, as the challenge would.

    Args:
        results: a folder of `screen`, or one of CSVs ``probability,x,y``, named like the slides.
        masks: a folder of masks or outlines of the tumor slides, named like them.
        reference: the challenge's key: name, Tumor or Normal, and more columns.
        out: where the challenge's files and the result go.
        config: the rules.
        slide_scores: a CSV ``name,probability``; by default what `screen` says, or else the
            highest detection of each slide.
        progress: called after each slide.

    Raises:
        CaseError: files that cannot be read, slides that one has and another lacks, detections
            outside of their slide, no lesion that counts.
        ConfigError: ``out`` holds something else, or cannot be written.
    """
    _refuse_other_folder(out, results)
    truth = read_reference(reference, config.limits)
    slides, notes = read_detections(results, config.detections, config.limits)
    chosen, left_out = _choose(truth, slides, config, reference=reference, results=results)
    if slide_scores is not None:
        given = read_probabilities(slide_scores, config.limits)
        if unknown := [name for name in chosen if name not in given]:
            raise CaseError(f"{slide_scores}: slide '{unknown[0]}' is missing; give each slide one")
        slides = {name: slides[name].with_slide(given[name]) for name in chosen}
    if not masks.is_dir():
        raise CaseError(f"{masks}: no such folder, expected one of masks or outlines (--masks)")
    files = annotations_in(masks)
    notes = (*notes, *_other_resolutions(slides, chosen, config))
    sources = {name: _mask_of(name, files, masks) for name in chosen if truth[name]}
    matched, cases, lesions = [], [], []
    for done, name in enumerate(chosen, 1):
        own = slides[name]
        found = _find(own, sources[name], config) if name in sources else None
        match = match_detections(own.probability, own.xy_level0, found)
        matched.append(match)
        cases.append(_case_row(name, truth[name], own, match, found))
        lesions += _lesion_rows(name, match, found)
        progress("matching detections", done, len(chosen))
    result = _measure(matched, [truth[n] for n in chosen], cases, lesions, left_out, notes, config)
    _write(ensure_folder(out), result, {n: slides[n] for n in chosen}, config)
    return result


def _refuse_other_folder(out: Path, results: Path) -> None:
    if out.resolve() == results.resolve():
        raise ConfigError(f"{out}: holds the results that are to be scored; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / _RESULT).exists():
        raise ConfigError(f"{out}: exists and is no result of `camelyon16`; choose another --out")


def _choose(
    truth: Mapping[str, int],
    slides: Mapping[str, Detections],
    config: Camelyon16Config,
    *,
    reference: Path,
    results: Path,
) -> tuple[list[str], tuple[str, ...]]:
    """Which slides are scored, and which of the reference are not."""
    excluded = {name.lower() for name in config.exclude}
    if unknown := sorted(excluded - truth.keys()):
        raise ConfigError(f"exclude: slide '{unknown[0]}' is not in {reference}")
    if unknown := sorted(slides.keys() - truth.keys()):
        raise CaseError(
            f"{results}: slide '{unknown[0]}' is not in {reference}, so nobody knows whether it has"
            f" tumor ({len(unknown)} of {len(slides)} slides); add it there or take it out"
        )
    absent = [name for name in truth if name not in slides and name not in excluded]
    if absent and config.absent == "refuse":
        raise CaseError(
            f"{results}: no results of slide '{absent[0]}' ({len(absent)} of {len(truth)} in"
            f" {reference}); a slide without detections has an empty CSV; to score the others only,"
            ' --set absent="leave out"'
        )
    chosen = [name for name in truth if name in slides and name not in excluded]
    if not chosen:
        raise CaseError(f"{results}: no slide of {reference} has results")
    return chosen, tuple(sorted([*excluded, *absent]))


def _other_resolutions(
    slides: Mapping[str, Detections], chosen: Sequence[str], config: Camelyon16Config
) -> tuple[str, ...]:
    """Whose µm per pixel are others than the challenge's, by which lengths are measured."""
    other = [
        n for n in chosen if abs((slides[n].mpp or config.mpp) / config.mpp - 1) > _MPP_TOLERANCE
    ]
    if not other:
        return ()
    found = slides[other[0]].mpp
    return (
        f"{len(other)} of {len(chosen)} slides have other µm per pixel than the {config.mpp:g} by"
        f" which lengths are measured, such as {other[0]} with {found:g}; --set mpp={found:g}"
        " measures by theirs",
    )


def _mask_of(name: str, files: Mapping[str, Path], masks: Path) -> Path:
    known = {key: path for key, path in files.items() if path.suffix.lower() in LESION_SUFFIXES}
    path = find_annotation(known, Path(f"{name}.slide"))
    if path is None:
        raise CaseError(
            f"{masks}: no mask or outlines of tumor slide '{name}'; expected"
            f" {name}_mask.tif, {name}.tif or {name}.xml there"
        )
    return path


def _find(slide: Detections, path: Path, config: Camelyon16Config) -> Lesions:
    factor = 2**config.level
    margin = math.ceil(config.growth_um / (2 * config.mpp * factor)) + 1
    mask = read_lesion_mask(
        path,
        level=config.level,
        margin_px=margin,
        size_level0=slide.size_level0,
        fingerprint=slide.fingerprint,
        limits=config.limits,
    )
    size, x_y = mask.size_level0, slide.xy_level0
    if size is not None and len(x_y) and bool((x_y >= size).any()):
        x, y = x_y[(x_y >= size).any(axis=1)][0]
        raise CaseError(
            f"{slide.source}: detection at x={x:.0f}, y={y:.0f}, expected within the slide's"
            f" {size[0]}x{size[1]} level-0 pixels; are they of another level or slide?"
        )
    return find_lesions(
        mask.tumor,
        mpp=config.mpp,
        downsample=factor,
        growth_um=config.growth_um,
        isolated_um=config.isolated_um,
    )


def _measure(
    matched: Sequence[SlideDetections],
    truth: Sequence[int],
    cases: list[dict[str, Any]],
    lesions: list[dict[str, Any]],
    left_out: tuple[str, ...],
    notes: tuple[str, ...],
    config: Camelyon16Config,
) -> Camelyon16Result:
    froc = compute_froc(matched, config.false_positives)
    slide = np.array([case["slide_probability"] for case in cases])
    both = len(set(truth)) == 2
    if froc.false_positives.max() < max(config.false_positives):
        notes = (
            *notes,
            f"the detections end at {froc.false_positives.max():.3g} false positives per slide;"
            " beyond, the sensitivity is that of the last one",
        )
    return Camelyon16Result(
        froc=froc,
        froc_interval=bootstrap_froc(matched, config.false_positives),
        auc=auc(truth, slide) if both else float("nan"),
        auc_interval=bootstrap_auc(truth, slide) if both else (float("nan"),) * 2,
        left_out=left_out,
        cases=cases,
        lesions=lesions,
        notes=notes,
    )


def _case_row(
    name: str, truth: int, slide: Detections, match: SlideDetections, lesions: Lesions | None
) -> dict[str, Any]:
    return {
        "case_id": name,
        "truth": truth,
        "slide_probability": slide.slide_probability,
        "detections": len(slide.probability),
        "lesions": match.targets,
        "isolated": len(lesions.isolated) if lesions else 0,
        "found": int((match.hits > 0).sum()),
        "false_positives": len(match.false_positives),
        "ignored": match.ignored,
    }


def _lesion_rows(
    name: str, match: SlideDetections, lesions: Lesions | None
) -> list[dict[str, Any]]:
    count = lesions.count if lesions else 0
    areas: npt.NDArray[np.integer] = (
        np.bincount(lesions.labels.ravel(), minlength=count + 1)
        if lesions
        else np.zeros(1, np.int64)
    )
    return [
        {
            "case_id": name,
            "lesion": number,
            "isolated": int(lesions is not None and number in lesions.isolated),
            "pixels": int(areas[number]),
            "probability": float(match.hits[number - 1]),
        }
        for number in range(1, count + 1)
    ]


def _write(
    out: Path,
    result: Camelyon16Result,
    slides: Mapping[str, Detections],
    config: Camelyon16Config,
) -> None:
    write_json(
        out / _RESULT,
        {**result.to_dict(), "settings": config.model_dump(mode="json", exclude={"limits"})},
    )
    folder = ensure_folder(out / "detections")
    for name, slide in slides.items():
        _write_bare(folder / f"{name}.csv", slide.rows())
    _write_bare(
        out / "slide_probabilities.csv", [(n, repr(s.slide_probability)) for n, s in slides.items()]
    )
    for name, rows in (("cases", result.cases), ("lesions", result.lesions)):
        columns = tuple(rows[0]) if rows else ("case_id",)
        write_csv(out / f"{name}.csv", columns, [tuple(row.values()) for row in rows])
    froc = result.froc
    write_froc(
        out / "froc",
        (froc.false_positives, froc.sensitivity),
        at=froc.at,
        title=f"FROC (score {froc.score:.3f}, {froc.lesions} lesions, {froc.slides} slides)",
    )


def _write_bare(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """A CSV without a header, as the challenge has them: the first row stands in its place."""
    if rows:
        write_csv(path, [str(cell) for cell in rows[0]], rows[1:])
    else:
        write_text(path, "")


def _interval(ends: tuple[float, float]) -> str:
    low, high = ends
    return "(too few for an interval)" if math.isnan(low) else f"({low:.4f} to {high:.4f})"


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
