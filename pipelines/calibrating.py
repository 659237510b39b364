"""`esad-med calibrate`: scores of held-out normals turn a detector's scores into decisions."""

import datetime
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from esad_med.assess.calibration import least_units
from esad_med.base.errors import CaseError, ConfigError
from esad_med.base.locks import hold_folder
from esad_med.base.runs import Progress, no_progress
from esad_med.base.store import SampleStore
from esad_med.method.datasets import group_rows
from esad_med.method.decisions import DECISIONS, Decisions, Kind
from esad_med.method.detector import Detector
from esad_med.method.scores import slide_score
from esad_med.method.scoring_networks import Precision
from pipelines.calibration_levels import (
    CalibrationConfig,
    Floats,
    Scored,
    UnitScores,
    level_of,
)
from pipelines.case_facts import CaseColors, score_facts, stain_facts, tiling_of
from pipelines.operating_points import exactly, plural
from pipelines.scoring import rows_of_split

_BATCH = 256
_MOST_REFERENCES = 1000
_SPLIT = "calibration"
_KINDS: dict[str, tuple[Kind, Kind]] = {
    "histology": ("tile", "slide"),
    "chest radiograph": ("image", "study"),
}


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
    scores = UnitScores(score[kept], keys[kept])
    alone = Scored.of(kinds[0], unit, scores, anomalous[kept])
    cases, why = _of_cases(store, rows, score, kinds[1])
    if cases is not None and cases.normals.count < least_units(config.false_alarms):
        why = _too_few(cases.normals.count, f"independent normal {plural(cases.kind)}", config)
        cases = None
    return Decisions(
        detector=detector.score_digest,
        data=store.digest,
        split=split or (_SPLIT if (rows["split"] == _SPLIT).all() else ""),
        precision=precision,
        samples=level_of(alone, config),
        cases=None if cases is None else level_of(cases, config),
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
            f" {exactly(config.false_alarms)} false alarms; say which are normal (column truth)"
        )


def _too_few(found: int, what: str, config: CalibrationConfig) -> str:
    return (
        f"{found} {what}, {least_units(config.false_alarms)} are needed for"
        f" {exactly(config.false_alarms)} false alarms"
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
) -> tuple[Scored | None, str]:
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
    return Scored.of(kind, unit, UnitScores(values, keys), ill, single=single), ""


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
