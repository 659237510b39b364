"""`esad-med calibrate`: scores of held-out normals turn a detector's scores into decisions."""

import datetime
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from esad_med.assess.calibration import (
    NormalTail,
    alarm_threshold,
    bootstrap_rate,
    bootstrap_threshold,
    false_alarm_interval,
    least_anomalous,
    least_units,
    normal_tail,
    sensitivity_threshold,
    share_above,
)
from esad_med.base.config import Spec
from esad_med.base.errors import CaseError, ConfigError
from esad_med.base.locks import hold_folder
from esad_med.base.runs import Progress, no_progress
from esad_med.base.store import SampleStore
from esad_med.method.datasets import group_rows
from esad_med.method.decisions import (
    DECISIONS,
    Decisions,
    Kind,
    Level,
    Normals,
    OperatingPoint,
)
from esad_med.method.detector import Detector
from esad_med.method.scores import slide_score
from esad_med.method.scoring_networks import Precision
from pipelines.case_facts import CaseColors, score_facts, stain_facts, tiling_of
from pipelines.operating_points import plural
from pipelines.scoring import rows_of_split

_BATCH = 256
_MOST_REFERENCES = 1000
_SPLIT = "calibration"
_KINDS: dict[str, tuple[Kind, Kind]] = {
    "histology": ("tile", "slide"),
    "chest radiograph": ("image", "study"),
}
Floats = npt.NDArray[np.float64]
Names = npt.NDArray[np.object_]


class CalibrationConfig(Spec):
    """What decisions are to promise."""

    false_alarms: float = Field(
        0.05, gt=0, le=0.5, description="Share of normals that may give an alarm."
    )
    sensitivity: float = Field(
        0.95, gt=0, lt=1, description="Share of anomalous cases above the zone of no alarm."
    )
    review: float = Field(
        0.2,
        gt=0,
        le=0.9,
        description="Share of normals above that zone, where too few anomalous cases are known.",
    )
    discoveries: float = Field(
        0.1, gt=0, lt=1, description="Share of normals among the tiles pointed at in a slide."
    )
    others: tuple[Annotated[float, Field(gt=0, le=0.5)], ...] = Field(
        (0.01, 0.05, 0.1, 0.2), description="Further rates of false alarms to list."
    )
    tiles_by: Literal["patient", "tile"] = Field(
        "patient",
        description="What weighs the same among tiles: patients, or (no guarantee) single tiles.",
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Of the bootstrap.")
    seed: int = Field(0, ge=0, description="Of the bootstrap.")


@dataclass(frozen=True)
class _Scored:
    """Scores of one kind, what they are of, and the unit each belongs to."""

    kind: Kind
    score: Floats
    units: Names
    unit: str
    anomalous: npt.NDArray[np.bool_]
    single: bool = False

    @property
    def normal_units(self) -> int:
        return len(set(self.units[~self.anomalous]))


def calibrate_folder(
    path: Path,
    detector: Detector,
    store: SampleStore,
    config: CalibrationConfig,
    *,
    split: str | None = None,
    precision: Precision = "float32",
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Decisions:
    """Calibrate a detector and keep the decisions in its folder; see `calibrate`.

    Args:
        path: the folder that the detector was loaded from.
        detector: whose scores are calibrated.
        store: see `calibrate`.
        config: the promises.
        split: see `calibrate`.
        precision: what later scores will be computed in.
        overwrite: replace an earlier calibration.
        progress: called while samples are scored.

    Raises:
        ConfigError: it is calibrated already, or its folder cannot be written.
    """
    if detector.decisions is not None and not overwrite:
        raise ConfigError(
            f"{path}: was calibrated on {detector.decisions.created}; pass --overwrite to replace"
            " its decisions"
        )
    with hold_folder(path):
        decisions = calibrate(
            detector, store, config, split=split, precision=precision, progress=progress
        )
        decisions.save(path / DECISIONS)
    return decisions


def calibrate(
    detector: Detector,
    store: SampleStore,
    config: CalibrationConfig,
    *,
    split: str | None = None,
    precision: Precision = "float32",
    progress: Progress = no_progress,
) -> Decisions:
    """Score held-out samples and find the thresholds that keep what the config asks for.

    Normals are the samples of truth 0 in cases without an anomalous one. A slide has its slide
    score, a study its highest score.

    Args:
        detector: whose scores are calibrated.
        store: samples made as the detector's were, none of which it was trained on.
        config: the promises.
        split: only rows of this split; by default those of split "calibration", else all.
        precision: what later scores will be computed in.
        progress: called while samples are scored.

    Raises:
        ModelError: the store does not fit the detector's contract.
        StoreError: the samples were damaged after they were written.
        CaseError: too few normals, or samples that the detector was trained with.
    """
    detector.check_store(store)
    detector.check_precision(precision)
    chosen = _choose_rows(store, detector, split)
    rows = store.rows.iloc[chosen].reset_index(drop=True)
    keys, unit = group_rows(rows)
    if config.tiles_by == "tile":
        keys, unit = np.arange(len(rows)).astype(str).astype(object), "sample"
    kept, anomalous = _truths(rows)
    _check_enough(store, len(set(keys[kept & ~anomalous])), unit, config)
    store.verify()
    score, colors = _score(detector, store, chosen, rows, precision, progress)
    kinds = _KINDS.get(str(store.contract.get("modality")), ("sample", "sample"))
    alone = _Scored(kinds[0], score[kept], keys[kept], unit, anomalous[kept])
    cases, why = _of_cases(store, rows, score, kinds[1])
    if cases is not None and cases.normal_units < least_units(config.false_alarms):
        why = _too_few(cases.normal_units, f"independent normal {plural(cases.kind)}", config)
        cases = None
    return Decisions(
        detector=detector.score_digest,
        data=store.digest,
        split=split or (_SPLIT if (rows["split"] == _SPLIT).all() else ""),
        precision=precision,
        samples=_level(alone, config),
        cases=None if cases is None else _level(cases, config),
        no_cases=why,
        discoveries=config.discoveries,
        reference=_reference(store, rows[kept & ~anomalous], score, colors, kinds[0]),
        tiling=tiling_of(store.contract.get("preparation") or {}),
        created=datetime.date.today().isoformat(),
    )


def _choose_rows(
    store: SampleStore, detector: Detector, split: str | None
) -> npt.NDArray[np.int64]:
    """The rows to calibrate on: none that trained the detector, or chose anything about it."""
    splits = store.rows["split"].value_counts()
    if split in ("train", "val"):
        raise CaseError(
            f"{store.path}: rows of split '{split}' train detectors or choose between them, so"
            f" their scores promise nothing; use split '{_SPLIT}', another store, or --split test"
        )
    if split is None and _SPLIT in splits:
        split = _SPLIT
    if split is not None:
        return rows_of_split(store, split)
    held = "; ".join(f"{count} of split '{name}'" for name, count in splits.items() if name)
    if store.digest == detector.contract.training.data_digest:
        raise CaseError(
            f"{store.path}: the detector was trained on this store, and it has no rows of split"
            f" '{_SPLIT}' ({held or 'no splits at all'}); give normals of other patients this split"
            " in the manifest, name another store, or pass --split test, after which the test rows"
            " are no longer a fair test"
        )
    chosen = np.flatnonzero(~store.rows["split"].isin(["train", "val"]))
    if not len(chosen):
        raise CaseError(
            f"{store.path}: all rows train ({held}); give normals of other patients the split"
            f" '{_SPLIT}' in the manifest"
        )
    return chosen


def _truths(rows: pd.DataFrame) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which rows count (normal ones of normal cases, anomalous ones), and which are anomalous."""
    anomalous = np.asarray((rows["truth"] == 1).fillna(False), dtype=bool)
    normal = np.asarray((rows["truth"] == 0).fillna(False), dtype=bool)
    ill = set(rows["case_id"][anomalous]) - {""}
    return anomalous | (normal & ~rows["case_id"].isin(ill).to_numpy()), anomalous


def _check_enough(store: SampleStore, found: int, unit: str, config: CalibrationConfig) -> None:
    if found < least_units(config.false_alarms):
        raise CaseError(
            f"{store.path}: {_too_few(found, f'independent normals (by {unit})', config)}; add"
            " normals that the detector was not trained on, or allow more false alarms"
            f" (--false-alarms {math.ceil(1e4 / (found + 1)) / 1e4:g} takes what is here)"
            if found
            else f"{store.path}: no normal samples (truth 0) to calibrate on,"
            f" {least_units(config.false_alarms)} independent ones are needed for"
            f" {config.false_alarms:.2%} false alarms; say which samples are normal (column truth)"
        )


def _too_few(found: int, what: str, config: CalibrationConfig) -> str:
    return (
        f"{found} {what}, {least_units(config.false_alarms)} are needed for"
        f" {100 * config.false_alarms:g} % false alarms"
    )


def _score(
    detector: Detector,
    store: SampleStore,
    chosen: npt.NDArray[np.int64],
    rows: pd.DataFrame,
    precision: Precision,
    progress: Progress,
) -> tuple[Floats, dict[str, CaseColors]]:
    """The score of each chosen row, and the colors of each case."""
    names = rows["case_id"].to_numpy(object)
    colors: dict[str, CaseColors] = {name: CaseColors() for name in set(names) - {""}}

    def batches() -> Any:
        for start in range(0, len(chosen), _BATCH):
            samples = store.samples[chosen[start : start + _BATCH]]
            own = names[start : start + _BATCH]
            for name in set(own) - {""}:
                colors[name].add(samples[own == name])
            yield samples
            progress("scoring", min(start + _BATCH, len(chosen)), len(chosen))

    found = detector.score(batches(), precision=precision).score
    return found.astype(np.float64), colors


def _of_cases(
    store: SampleStore, rows: pd.DataFrame, score: Floats, kind: Kind
) -> tuple[_Scored | None, str]:
    """The score of each slide or study, or why there are none."""
    if kind == "sample":
        return None, "samples are not of cases"
    if kind == "slide" and not store.contract.get("slides"):
        return None, "the store does not hold whole slides"
    name = rows["study_id" if kind == "study" and "study_id" in rows else "case_id"]
    known = rows.assign(score=score, name=name)[name != ""]
    if known.empty:
        return None, f"no {kind} is named"
    truths = known.groupby("name")["truth"].agg(
        lambda t: 1 if (t == 1).any() else 0 if t.notna().all() else -1
    )
    truths = truths[truths >= 0]
    rule = slide_score if kind == "slide" else np.max
    scores = known.groupby("name")["score"].agg(lambda s: float(rule(s.to_numpy())))[truths.index]
    first = known.drop_duplicates("name").set_index("name").loc[truths.index].reset_index()
    keys, unit = group_rows(first)
    single = kind == "study" and bool(known["name"].is_unique)
    values, ill = np.asarray(scores, dtype=np.float64), (truths == 1).to_numpy()
    return _Scored(kind, values, keys, unit, ill, single), ""


def _level(found: _Scored, config: CalibrationConfig) -> Level:
    normal, anomalous = found.score[~found.anomalous], found.score[found.anomalous]
    units, ill = found.units[~found.anomalous], found.units[found.anomalous]
    tail = normal_tail(normal, units)
    rates = sorted({r for r in config.others if tail.units >= least_units(r)})
    points = {rate: _alarm_point(found, rate, config) for rate in {*rates, config.false_alarms}}
    alarm = points.pop(config.false_alarms)
    sensitive = None
    if len(anomalous):
        sensitive = _sensitive_point(normal, units, anomalous, ill, config)
    review, rule = _review_zone(alarm.threshold, sensitive, normal, units, config)
    return Level(
        kind=found.kind,
        normals=Normals(
            scores=tuple(tail.scores.tolist()),
            shares=tuple(tail.shares.tolist()),
            units=tail.units,
            unit=found.unit,
            count=len(normal),
        ),
        anomalous=len(set(ill)),
        alarm=alarm,
        others=tuple(points[rate] for rate in sorted(points)),
        sensitive=sensitive,
        review=review,
        review_rule=rule,
        single=found.single,
    )


def _alarm_point(found: _Scored, rate: float, config: CalibrationConfig) -> OperatingPoint:
    normal, anomalous = found.score[~found.anomalous], found.score[found.anomalous]
    units, ill = found.units[~found.anomalous], found.units[found.anomalous]
    tail = normal_tail(normal, units)
    threshold = alarm_threshold(tail, rate)
    assert threshold is not None, "enough units were counted before"
    drawn = {"resamples": config.resamples, "seed": config.seed}
    interval = bootstrap_threshold(normal, rate, units, **drawn)
    if tail.units == len(normal):
        low, high = false_alarm_interval(tail.units, rate)
    else:  # the law is of one score per unit; as in a p-value the new unit counts, too
        ends = [_rate_above(tail, end) for end in interval]
        low, high = min(rate, *ends), max(rate, *ends)
    return OperatingPoint(
        target=rate,
        threshold=threshold,
        interval=interval,
        false_alarms=(rate, low, high),
        sensitivity=bootstrap_rate(anomalous > threshold, ill, **drawn) if len(ill) else None,
    )


def _rate_above(tail: NormalTail, threshold: float) -> float:
    """The share above a threshold with the next unit counted in, as p-values have it."""
    return (1 + tail.units * share_above(tail, threshold)) / (tail.units + 1)


def _sensitive_point(
    normal: Floats, units: Names, anomalous: Floats, ill: Names, config: CalibrationConfig
) -> OperatingPoint | None:
    """The threshold that keeps the sensitivity; None with too few independent anomalous ones."""
    if len(set(ill)) < least_anomalous(config.sensitivity):
        return None
    threshold = sensitivity_threshold(anomalous, config.sensitivity, ill)
    assert threshold is not None, "enough units were counted before"
    drawn = {"resamples": config.resamples, "seed": config.seed}
    low, high = bootstrap_threshold(-anomalous, 1 - config.sensitivity, ill, **drawn)
    if len(set(ill)) == len(anomalous):
        least, most = false_alarm_interval(len(anomalous), 1 - config.sensitivity)
    else:
        missed, rate = normal_tail(-anomalous, ill), 1 - config.sensitivity
        ends = [_rate_above(missed, end) for end in (low, high)]
        least, most = min(rate, *ends), max(rate, *ends)
    return OperatingPoint(
        target=config.sensitivity,
        threshold=threshold,
        interval=(-high, -low),
        false_alarms=bootstrap_rate(normal > threshold, units, **drawn),
        sensitivity=(config.sensitivity, 1 - most, 1 - least),
    )


def _review_zone(
    alarm: float,
    sensitive: OperatingPoint | None,
    normal: Floats,
    units: Names,
    config: CalibrationConfig,
) -> tuple[float, str]:
    """Where neither an alarm nor its absence is called for: from which score on, and why."""
    if sensitive is not None:
        rule = (
            f"below it {100 * config.sensitivity:g} % sensitivity would be lost"
            if sensitive.threshold < alarm
            else f"none: alarms alone keep {100 * config.sensitivity:g} % sensitivity"
        )
        return min(sensitive.threshold, alarm), rule
    threshold = alarm_threshold(normal_tail(normal, units), config.review)
    rule = (
        f"the highest {100 * config.review:g} % of normals, since fewer than"
        f" {least_anomalous(config.sensitivity)} independent anomalous ones are known"
    )
    return alarm if threshold is None else min(threshold, alarm), rule


def _reference(
    store: SampleStore,
    rows: pd.DataFrame,
    score: Floats,
    colors: dict[str, CaseColors],
    kind: Kind,
) -> dict[str, tuple[float, ...]]:
    """Facts of the normal cases, fact -> value per case; empty where cases are not named."""
    stains = store.contract.get("stains") or {}
    found: dict[str, list[float]] = {}
    for name, part in rows[rows["case_id"] != ""].groupby("case_id", sort=True):
        scores = score[part.index.to_numpy()]
        facts = colors[str(name)].to_dict() | score_facts(scores, single=kind == "image")
        if str(name) in stains:
            facts |= stain_facts(stains[str(name)])
        for fact, value in facts.items():
            found.setdefault(fact, []).append(round(value, 9))
    return {fact: _thinned(values) for fact, values in found.items()}


def _thinned(values: list[float]) -> tuple[float, ...]:
    """Ascending; of very many, evenly spaced ones."""
    ranked = np.sort(values)
    at = np.linspace(0, len(ranked) - 1, min(len(ranked), _MOST_REFERENCES)).round().astype(int)
    return tuple(ranked[at].tolist())
