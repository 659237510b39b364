"""The run folder of a screening: its tables, and what earlier runs into it said of other slides."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esad_med.base.cases import Case, read_table
from esad_med.base.config import load_config
from esad_med.base.errors import CaseError, EsadError
from esad_med.base.runs import Failure, read_json, versions, write_csv, write_failures
from esad_med.method.detector import Detector
from esad_med.method.scoring_networks import Precision
from pipelines.slide_exports import ScreeningConfig
from pipelines.slide_results import SLIDE_COLUMNS

_TILE = re.compile(r"_\d+_\d+$")


@dataclass(frozen=True)
class Earlier:
    """Rows of slides.csv and failures.csv that this run does not replace."""

    slides: list[dict[str, str]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def read_earlier(
    out: Path,
    cases: Sequence[Case],
    detector: Detector,
    config: ScreeningConfig,
    precision: Precision,
) -> Earlier:
    """What earlier runs say of other slides; forgotten where detector or settings were others."""
    config_file, run_file = out / "config.yaml", out / "run.json"
    tables = [out / "slides.csv", out / "failures.csv"]
    if not all(path.exists() for path in (config_file, run_file, *tables)):
        return Earlier()
    with suppress(EsadError, KeyError, TypeError):
        then, now = (
            settings.model_dump(exclude={"limits", "exports"})
            for settings in (load_config(ScreeningConfig, config_file), config)
        )
        alike = then == now
        facts = read_json(run_file, CaseError)
        alike = alike and facts.get("precision", "float32") == precision
        if alike and facts["detector"] == detector.digest:
            slides, failures = (read_table(path).to_dict("records") for path in tables)
            ids = {case.case_id for case in cases}
            return Earlier(
                [
                    {str(k): str(v) for k, v in row.items()}
                    for row in slides
                    if row["case_id"] not in ids
                    and (out / str(row["case_id"]) / "slide.json").exists()
                ],
                [
                    Failure(**{str(k): str(v) for k, v in row.items()})
                    for row in failures
                    if _slide_of(row) not in ids
                ],
            )
    for table in tables:
        table.unlink()  # an interrupted run must not leave them beside the new settings
    return Earlier()


def _slide_of(failure: Mapping[Any, Any]) -> str:
    """Whose a row of failures.csv is: a lost tile's name ends in its place."""
    name = str(failure["case_id"])
    return _TILE.sub("", name) if failure["stage"] == "read" else name


def write_tables(
    out: Path,
    slides: Sequence[Mapping[str, Any]],
    failures: Sequence[Failure],
    *,
    cases: Sequence[Case],
    earlier: Earlier,
) -> None:
    """Write ``slides.csv`` and ``failures.csv``: what earlier runs say of other slides, then this.

    Args:
        out: the run folder.
        slides: of this run, as in their ``slide.json``.
        failures: of this run.
        cases: of this run.
        earlier: rows to keep.
    """
    decided = any("decision" in found for found in (*slides, *earlier.slides))
    columns = (*SLIDE_COLUMNS, *(("decision", "p_value") if decided else ()), "patient_id", "truth")
    patients = {case.case_id: case.patient_id for case in cases}
    rows = [[row.get(name, "") for name in columns] for row in earlier.slides]
    for found in slides:
        truth = "" if found["truth"] is None else found["truth"]
        cells = [found[name] for name in SLIDE_COLUMNS]
        if "decision" in found:
            p = found["decision"]["p_value"]
            cells += [found["decision"]["outcome"], "" if p is None else p]
        rows.append([*cells, patients[found["case_id"]], truth])
    write_csv(out / "slides.csv", columns, rows)
    write_failures(out / "failures.csv", [*earlier.failures, *failures])


def run_facts(detector: Detector, precision: Precision) -> dict[str, Any]:
    """The content of ``run.json``."""
    facts = {"detector": detector.digest, "precision": precision, "versions": versions()}
    return {"command": "screen", **facts}
