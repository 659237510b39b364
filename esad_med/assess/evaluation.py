"""What scores are worth against the truth: AUC with its interval, operating points, per slide."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from esad_med.assess.breakdown import Breakdown, alarm_threshold
from esad_med.assess.groups import tabulate_groups
from esad_med.assess.kinds import tabulate_kinds
from esad_med.assess.measures import (
    auc,
    average_precision,
    bootstrap_auc,
    roc_curve,
    sensitivity_at_specificity,
    set_aside_share,
)
from esad_med.base.errors import CaseError

__all__ = ["By", "Evaluation", "Measures", "evaluate", "roc_curve"]

By = Literal["auto", "patient", "slide", "tile"]

_LARGEST = 1e30  # a score beyond is as useless as an infinite one
SPECIFICITIES = (0.9, 0.95, 0.99)
SCORES = ("score", "reconstruction", "norm")
REQUIRED_COLUMNS = ("sample_id", "case_id", "patient_id", "truth", "score")
_UNIT_COLUMNS = {"patient": "patient_id", "slide": "case_id"}


@dataclass(frozen=True)
class Measures:
    """What one score is worth; shares between 0 and 1, intervals at 95 %.

    Attributes:
        n_normal: normal samples.
        n_anomalous: anomalous samples.
        auc: area under the ROC curve.
        auc_low: lower end of its bootstrap interval, NaN where it cannot be told.
        auc_high: upper end.
        average_precision: as in `average_precision`; chance is the share of anomalous samples.
        sensitivity_at: specificity in percent ("90", "95", "99") -> sensitivity.
        set_aside: share of normals set aside at 99 % sensitivity.
    """

    n_normal: int
    n_anomalous: int
    auc: float
    auc_low: float
    auc_high: float
    average_precision: float
    sensitivity_at: Mapping[str, float]
    set_aside: float

    def __str__(self) -> str:
        low, high = self.auc_low, self.auc_high
        interval = "too few for an interval" if np.isnan(low) else f"{low:.3f} to {high:.3f}"
        points = ", ".join(f"{100 * s:.0f} % at {p} %" for p, s in self.sensitivity_at.items())
        return (
            f"AUC {self.auc:.3f} ({interval}),"
            f" average precision {self.average_precision:.3f}; sensitivity {points} specificity;"
            f" {100 * self.set_aside:.0f} % of normals set aside at 99 % sensitivity"
            f" ({self.n_normal} normal, {self.n_anomalous} anomalous)"
        )


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        resampled_by: "patient", "slide" or "tile": what the intervals are drawn by.
        note: why, and what to think of it.
        units: how many patients, slides or tiles were resampled.
        n_unknown: samples left out because their truth is unknown.
        measures: "score", "reconstruction", "norm" (where given) -> what it is worth per sample.
        slide_measures: the same for slide scores, or None where slides lack a class or a score.
        slides: a row per case: case_id, truth, n, n_anomalous, auc, slide_score (NaN if unknown).
        groups: a row per group, as in `tabulate_groups`, or None.
        kinds: a row per kind of outlier, as in `tabulate_kinds`, or None.
        notes: on the breakdown: its threshold, what "seen" means.
    """

    resampled_by: str
    note: str
    units: int
    n_unknown: int
    measures: Mapping[str, Measures]
    slide_measures: Measures | None
    slides: pd.DataFrame
    groups: pd.DataFrame | None = None
    kinds: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.units} units; {self.note}"]
        if self.n_unknown:
            lines.append(f"{self.n_unknown} samples of unknown truth were left out")
        named = dict(self.measures)
        if self.slide_measures:
            named["slide score"] = self.slide_measures
        lines += [f"{name:>14}: {found}" for name, found in named.items()]
        lines += self.notes
        for rows, names in ((self.groups, ("column", "group")), (self.kinds, ("kind", "training"))):
            if rows is not None:
                lines += [_line(row, names) for row in rows.to_dict("records")]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        plain: dict[str, Any] = _without_nan(
            {
                "resampled_by": self.resampled_by,
                "note": self.note,
                "units": self.units,
                "n_unknown": self.n_unknown,
                "measures": {name: asdict(found) for name, found in self.measures.items()},
                "slide_measures": asdict(self.slide_measures) if self.slide_measures else None,
                "slides": self.slides.to_dict("records"),
                "groups": None if self.groups is None else self.groups.to_dict("records"),
                "kinds": None if self.kinds is None else self.kinds.to_dict("records"),
                "notes": list(self.notes),
            }
        )
        return plain


def evaluate(
    table: pd.DataFrame,
    *,
    by: By = "auto",
    breakdown: Breakdown | None = None,
    slide_scores: Mapping[str, float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Compare scores with the truth, per sample, per slide, per group and per kind of outlier.

    Args:
        table: a row per sample with `REQUIRED_COLUMNS`; ``reconstruction`` and ``norm`` are
            evaluated where they are given. Cells may be strings, as read from a CSV. Rows whose
            truth is empty are left out and counted.
        by: what the intervals are resampled by; "auto" takes the patient, else the slide, else the
            tile, and says so.
        breakdown: columns to break the result down by, such as a scanner, age or finding.
        slide_scores: case_id -> slide score, by a rule of the caller's.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        CaseError: columns are missing, scores are not finite, truth is not 0 or 1, a class is
            missing, or patients or slides are asked for and not known.
    """
    asked = breakdown or Breakdown()
    known, n_unknown = _check_table(table, asked.columns)
    resampled_by, note = _choose_unit(known, by)
    units = _units(known, resampled_by)
    present = [name for name in SCORES if name in known]
    measures = {
        name: _measure(known["truth"], known[name], units, resamples=resamples, seed=seed)
        for name in present
    }
    slides = _tabulate_slides(known, slide_scores or {})
    return Evaluation(
        resampled_by=resampled_by,
        note=note,
        units=len(known) if units is None else int(units.nunique()),
        n_unknown=n_unknown,
        measures=measures,
        slide_measures=_measure_slides(slides, known, resampled_by, resamples, seed),
        slides=slides,
        **_break_down(known, units, asked, resamples, seed),
    )


def _break_down(
    table: pd.DataFrame, units: pd.Series | None, asked: Breakdown, resamples: int, seed: int
) -> dict[str, Any]:
    """The parts of an `Evaluation` that a breakdown asks for."""
    if not asked.columns:
        return {}
    threshold, source = alarm_threshold(table["truth"], table["score"], asked)
    codes = np.arange(len(table)) if units is None else pd.factorize(units)[0]
    notes = [f"sensitivity and specificity at the threshold {threshold:.6g}, {source}"]
    how: Any = {"threshold": threshold, "resamples": resamples, "seed": seed}
    found: dict[str, Any] = {}
    if asked.groups:
        found["groups"] = tabulate_groups(table, codes, asked, **how)
    if asked.kind:
        found["kinds"], note = tabulate_kinds(table, codes, asked, **how)
        notes.append(note)
    return {**found, "notes": tuple(notes)}


def _line(row: dict[Any, Any], names: tuple[str, str]) -> str:
    """A row of groups or kinds for people."""
    shown = []
    for name in ("auc", "sensitivity", "specificity"):
        value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
        if not np.isnan(value):
            ends = "" if np.isnan(low) else f" ({low:.3f} to {high:.3f})"
            shown.append(f"{'AUC' if name == 'auc' else name} {value:.3f}{ends}")
    apart, low, high = (row.get(f"auc_difference{end}", np.nan) for end in ("", "_low", "_high"))
    if not np.isnan(low):
        other = row.get("reference", "all seen")
        shown.append(f"AUC {apart:+.3f} ({low:+.3f} to {high:+.3f}) against {other}")
    whole = str(row[names[0]]).startswith("all ")  # says itself whether it was seen
    title = " ".join(str(row[name]) for name in names[: 1 if whole else 2] if row[name])
    warning = f" [{row['warning']}]" if row["warning"] else ""
    counts = f"{row['n_normal']} normal, {row['n_anomalous']} anomalous"
    return f"{title:>14}: {', '.join(shown) or 'one class only'} ({counts}){warning}"


def _check_table(table: pd.DataFrame, columns: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """The rows whose truth is known, with numbers as numbers, and how many were left out."""
    needed = [*REQUIRED_COLUMNS, *columns]
    if missing := [name for name in needed if name not in table]:
        raise CaseError(
            f"scores: column '{missing[0]}' is missing; found {', '.join(map(str, table.columns))};"
            f" expected {', '.join(needed)}"
        )
    known = table.copy()
    for name in dict.fromkeys((*_UNIT_COLUMNS.values(), *columns)):
        known[name] = known[name].fillna("").astype(str)
    known["truth"] = _read_truth(known["truth"])
    known = known[known["truth"].notna()].reset_index(drop=True)
    known["truth"] = known["truth"].astype(int)
    for name in (name for name in SCORES if name in known):
        known[name] = pd.to_numeric(known[name], errors="coerce").astype(float)
        if bad := int((~(known[name].abs() < _LARGEST)).sum()):
            raise CaseError(
                f"scores: column '{name}' holds {bad} values that are not finite numbers, expected"
                " none; score these samples again"
            )
    counts = known["truth"].value_counts()
    for value, word in ((0, "normal"), (1, "anomalous")):
        if value not in counts:
            raise CaseError(
                f"scores: no {word} sample (truth {value}) among {len(known)} with a known truth;"
                " both classes are needed to tell how well they are kept apart"
            )
    return known, len(table) - len(known)


def _read_truth(column: pd.Series) -> pd.Series:
    empty = column.isna() | (column.astype(str).str.strip() == "")
    numbers = pd.to_numeric(column.mask(empty), errors="coerce").astype(float)
    if not (numbers.isin([0, 1]) | empty).all():
        found = column[~(numbers.isin([0, 1]) | empty)].iloc[0]
        raise CaseError(f"scores: truth {found!r}, expected 0 (normal), 1 (anomalous) or empty")
    return numbers


def _choose_unit(table: pd.DataFrame, by: By) -> tuple[str, str]:
    """What to resample by, and the sentence that says why."""
    alike = "tiles of one slide are alike, so the true interval is wider"
    if by == "tile":
        return by, f"resampled by tile, as asked; {alike}"
    if by != "auto":
        name = _UNIT_COLUMNS[by]
        if unknown := int((table[name] == "").sum()):
            raise CaseError(
                f"scores: the {by} of {unknown} of {len(table)} samples is unknown, expected all;"
                f" fill in column '{name}' or resample by tile"
            )
        return by, f"resampled by {by}, as asked"
    patients, slides = table["patient_id"], table["case_id"]
    if (patients != "").all() and patients.nunique() > 1:
        return "patient", "resampled by patient"
    rows_are_slides = bool((slides == table["sample_id"].astype(str)).all())
    if (slides != "").all() and 1 < slides.nunique() < len(table) + rows_are_slides:
        return "slide", "resampled by slide, since patients are not known"
    return (
        "tile",
        f"resampled by tile, since neither patients nor several slides are known; {alike}",
    )


def _units(table: pd.DataFrame, resampled_by: str) -> pd.Series | None:
    return table[_UNIT_COLUMNS[resampled_by]] if resampled_by in _UNIT_COLUMNS else None


def _measure(
    truth: pd.Series, score: pd.Series, units: pd.Series | None, *, resamples: int, seed: int
) -> Measures:
    low, high = bootstrap_auc(truth, score, units, resamples=resamples, seed=seed)
    return Measures(
        n_normal=int((truth == 0).sum()),
        n_anomalous=int((truth == 1).sum()),
        auc=auc(truth, score),
        auc_low=low,
        auc_high=high,
        average_precision=average_precision(truth, score),
        sensitivity_at={
            f"{share:.0%}".rstrip("%"): sensitivity_at_specificity(truth, score, share)
            for share in SPECIFICITIES
        },
        set_aside=set_aside_share(truth, score),
    )


def _tabulate_slides(table: pd.DataFrame, slide_scores: Mapping[str, float]) -> pd.DataFrame:
    """One row per case; a slide is anomalous when any of its samples is."""
    rows = [
        {
            "case_id": str(case_id),
            "truth": int(part["truth"].max()),
            "n": len(part),
            "n_anomalous": int(part["truth"].sum()),
            "auc": auc(part["truth"], part["score"]) if part["truth"].nunique() == 2 else np.nan,
            "slide_score": float(slide_scores.get(str(case_id), np.nan)),
        }
        for case_id, part in table.groupby("case_id", sort=True)
    ]
    return pd.DataFrame(rows)


def _measure_slides(
    slides: pd.DataFrame, table: pd.DataFrame, resampled_by: str, resamples: int, seed: int
) -> Measures | None:
    """What the slide scores are worth, where every slide has one and both classes occur."""
    if slides["truth"].nunique() < 2 or not np.isfinite(slides["slide_score"]).all():
        return None
    patient = table.groupby("case_id")["patient_id"].first()
    units = slides["case_id"].map(patient) if resampled_by == "patient" else None
    return _measure(slides["truth"], slides["slide_score"], units, resamples=resamples, seed=seed)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
