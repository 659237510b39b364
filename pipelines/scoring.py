"""`esad-med score` and `esad-med evaluate`: scores of a store, and what they are worth."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from esad_med.assess.breakdown import Breakdown
from esad_med.assess.evaluation import By, Evaluation, evaluate, roc_curve
from esad_med.base.cases import SPLITS, read_table
from esad_med.base.errors import CaseError, ConfigError
from esad_med.base.locks import hold_output
from esad_med.base.parquet import (
    is_parquet,
    parquet_columns,
    read_parquet,
    require_pyarrow,
    write_parquet,
)
from esad_med.base.runs import (
    Progress,
    ensure_folder,
    no_progress,
    read_json,
    write_json,
    write_text,
)
from esad_med.base.store import SampleStore
from esad_med.base.texts import table_to_csv
from esad_med.method.detector import Detector
from esad_med.method.scores import Scores, slide_score
from esad_med.method.scoring_networks import Precision
from esad_med.outputs.figures import write_histogram, write_roc
from esad_med.outputs.forest import ForestRow, write_forest
from pipelines.deciding import sample_p_values

_BATCH = 256
_RESULT = "evaluation.json"


def score_store(
    store: SampleStore,
    detector: Detector,
    out: Path,
    *,
    split: str | None = None,
    precision: Precision = "float32",
    progress: Progress = no_progress,
) -> pd.DataFrame:
    """Score the samples of a store into a table: its rows, score, percentile, both terms.

    Args:
        store: samples made as the detector's were.
        detector: what scores them.
        out: the CSV to write, or Parquet by its name.
        split: only the samples of this split, or all.
        precision: see `Detector.score`.
        progress: called while samples are scored.

    Raises:
        ModelError: the store does not fit the detector's contract.
        StoreError: the samples were damaged after they were written.
        CaseError: the store has no sample of that split.
        ConfigError: ``out`` is something else than a table of scores, or cannot be written; or the
            detector does not score in this precision.
    """
    detector.check_store(store)
    detector.check_precision(precision)
    _refuse_other_file(out)
    chosen = np.arange(len(store))
    if split is not None:
        chosen = rows_of_split(store, split)

    def batches() -> Any:
        for start in range(0, len(chosen), _BATCH):
            yield store.samples[chosen[start : start + _BATCH]]
            progress("scoring", min(start + _BATCH, len(chosen)), len(chosen))

    with hold_output(out):
        store.verify()
        scores = detector.score(batches(), precision=precision)
        return write_scores(out, store.rows.iloc[chosen], detector, scores)


def rows_of_split(store: SampleStore, split: str) -> npt.NDArray[np.int64]:
    """Which rows of a store are of a split.

    Raises:
        CaseError: the split is unknown, or the store has no row of it.
    """
    if split not in SPLITS[:-1]:
        raise CaseError(f"split '{split}' is unknown; expected {', '.join(SPLITS[:-1])}")
    chosen = np.flatnonzero(store.rows["split"] == split)
    if not len(chosen):
        raise CaseError(f"{store.path}: no sample of split '{split}'")
    return chosen


def write_scores(out: Path, rows: pd.DataFrame, detector: Detector, scores: Scores) -> pd.DataFrame:
    """Write rows of a store with their scores, percentiles and both terms, atomically.

    Raises:
        ConfigError: ``out`` cannot be written.
    """
    table = rows.reset_index(drop=True)
    table["score"] = scores.score
    table["percentile"] = detector.percentile(scores.score).round(2)
    table["reconstruction"] = scores.reconstruction
    table["norm"] = scores.norm
    if detector.decisions is not None:
        table["p_value"] = sample_p_values(detector.decisions, scores.score).round(6)
    if is_parquet(out):
        write_parquet(out, table, {"esad_med.detector": detector.digest})
    else:
        write_text(out, table_to_csv(table, float_format="%.6g"))
    return table


def _refuse_other_file(out: Path) -> None:
    """Scores replace scores, nothing else: not a manifest, nor the store's own table."""
    if is_parquet(out):
        require_pyarrow()
    if not out.exists():
        ensure_folder(out.parent)
        return
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder, expected the name of a CSV; choose another --out")
    if is_parquet(out):
        ours = {"score", "percentile"} <= set(parquet_columns(out))
    else:
        with out.open("rb") as file:
            ours = b",score,percentile," in file.readline(10_000)
    if not ours:
        raise ConfigError(f"{out}: exists and is no table of scores; choose another --out")


def evaluate_scores(
    path: Path,
    out: Path | None,
    *,
    by: By,
    breakdown: Breakdown | None = None,
    columns: Path | None = None,
) -> Evaluation:
    """Evaluate a table of scores; with ``out``, write evaluation.json, tables and figures.

    Args:
        path: a CSV or Parquet file of `score_store` or `screen`, with columns score and truth.
        out: folder for the results, or None.
        by: what is resampled for the intervals: patient, slide, tile or auto.
        breakdown: groups and kinds of outliers, or None.
        columns: a CSV with more columns of the same cases, such as their scanner, or None.

    Raises:
        CaseError: columns or one of the two classes are missing.
    """
    if out is not None and (out / "slides.csv").exists() and not (out / _RESULT).exists():
        raise ConfigError(f"{out}: holds a slides.csv of another command; choose another --out")
    table = read_scores(path)
    if columns is not None:
        table = join_columns(table, columns)
    named = table[table["case_id"] != ""]
    slide_scores = {
        str(name): slide_score(part["score"].to_numpy())
        for name, part in named.groupby("case_id", sort=True)
    }
    result = evaluate(table, by=by, breakdown=breakdown, slide_scores=slide_scores)
    if out is not None:
        _write_evaluation(ensure_folder(out), result, table)
    return result


def _write_evaluation(out: Path, result: Evaluation, table: pd.DataFrame) -> None:
    write_json(out / _RESULT, result.to_dict())
    tables = {"slides": result.slides, "groups": result.groups, "kinds": result.kinds}
    for name, rows in tables.items():
        if rows is not None and len(rows):
            write_text(out / f"{name}.csv", table_to_csv(rows, float_format="%.6g"))
    known = table.dropna(subset=["truth"])
    truth = known["truth"].to_numpy(dtype=np.int8)
    curves = {
        f"{name} (AUC {found.auc:.3f})": roc_curve(truth, known[name])
        for name, found in result.measures.items()
    }
    write_roc(out / "roc", curves, title="ROC", specificities=(0.9, 0.95, 0.99))
    classes = {
        "normal": known["score"][truth == 0].to_numpy(),
        "anomalous": known["score"][truth == 1].to_numpy(),
    }
    write_histogram(out / "histogram", classes, title="Scores by class")
    if result.groups is not None:
        write_forest(out / "groups", _forest(result.groups, "column", "group"), title="By group")
    if result.kinds is not None:
        write_forest(out / "kinds", _forest(result.kinds, None, "kind"), title="By kind of outlier")


def _forest(rows: pd.DataFrame, section: str | None, name: str) -> list[ForestRow]:
    shown = {"auc": "AUC", "sensitivity": "sensitivity"}
    if section:  # kinds of outliers share their normals
        shown["specificity"] = "specificity"
    return [
        ForestRow(
            section=str(row[section]) if section else "",
            label=_label(row, name),
            counts=f"{row['n_normal']:,} / {row['n_anomalous']:,}",
            values={
                title: (row[key], row[f"{key}_low"], row[f"{key}_high"])
                for key, title in shown.items()
            },
            warning=bool(row["warning"]),
        )
        for row in rows.to_dict("records")
    ]


def _label(row: dict[Any, Any], name: str) -> str:
    text, training = str(row[name]), row.get("training")
    return f"{text} ({training})" if training and not text.startswith("all ") else text


def join_columns(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """A table of scores with the columns of another one that speaks of the same cases.

    They are joined by the first of sample_id, case_id and patient_id that the other table has; what
    stands in both is taken from the scores.

    Raises:
        CaseError: no such column, a row twice, or rows of other cases only.
    """
    more = read_table(path)
    key = next((name for name in ("sample_id", "case_id", "patient_id") if name in more), None)
    if key is None:
        raise CaseError(
            f"{path}: found {', '.join(more.columns)}; expected a column sample_id, case_id or"
            " patient_id to join by"
        )
    if more[key].duplicated().any():
        twice = more[key][more[key].duplicated()].iloc[0]
        raise CaseError(f"{path}: {key} '{twice}' stands there twice, expected once")
    if not table[key].astype(str).isin(more[key]).any():
        raise CaseError(f"{path}: no {key} of it is among the scores; is it of other cases?")
    new = more[[key, *(name for name in more.columns if name not in table)]]
    return table.merge(new, how="left", on=key).fillna(dict.fromkeys(new.columns, ""))


def read_scores(path: Path) -> pd.DataFrame:
    """A table of scores with numbers where numbers are meant and ``truth`` as Int8.

    Args:
        path: a CSV or Parquet file of tile or slide scores, or a folder that `screen` wrote.

    Raises:
        CaseError: not a table of scores.
    """
    if path.is_dir():
        tables = [_read_screened(folder) for folder in screened_slides(path)]
        table = pd.concat(tables, ignore_index=True)
    else:
        table = read_parquet(path) if is_parquet(path) else read_table(path)
    if "slide_score" in table and "score" not in table:  # slides.csv of `screen`
        table = table.rename(columns={"slide_score": "score"})
    for name, default in (("case_id", ""), ("patient_id", ""), ("sample_id", None)):
        if name not in table:
            table[name] = table["case_id"] if default is None else default
    missing = [name for name in ("score", "truth") if name not in table]
    if missing:
        raise CaseError(
            f"{path}: column '{missing[0]}' is missing; found {', '.join(table.columns)}; expected"
            " a CSV made by `esad-med score` or `screen`"
        )
    for name in ("score", "reconstruction", "norm", "truth"):
        if name in table:
            try:
                known = ~table[name].str.lower().isin(["", "nan"])
                table[name] = pd.to_numeric(table[name].where(known, None))
            except ValueError as error:
                raise CaseError(f"{path}: column '{name}' holds no numbers ({error})") from error
    if not table["truth"].dropna().isin([0, 1]).all():
        raise CaseError(f"{path}: truth must be 0, 1 or empty")
    return table.astype({"truth": "Int8"})


def _read_screened(folder: Path) -> pd.DataFrame:
    """A slide's tiles, with the scanner its file is of."""
    try:
        facts = read_json(folder / "slide.json", CaseError).get("provenance")
    except CaseError:
        facts = None  # the table alone suffices
    scanner = facts.get("Scanner format", "") if isinstance(facts, dict) else ""
    return read_table(folder / "scores.csv").assign(scanner=str(scanner))


def screened_slides(path: Path) -> list[Path]:
    """The folders of the slides that a folder of `screen` names in its slides.csv.

    Raises:
        CaseError: it is none, or not finished.
    """
    if not (path / "slides.csv").exists():
        unfinished = (path / "journal.jsonl").exists()
        what = "screening is not finished, run it again" if unfinished else "no folder of `screen`"
        raise CaseError(f"{path}: no slides.csv inside; {what}")
    slides = read_table(path / "slides.csv")
    if "case_id" not in slides:
        raise CaseError(f"{path}/slides.csv: column 'case_id' is missing; run `screen` again")
    files = [path / name / "scores.csv" for name in slides["case_id"]]
    if missing := [file for file in files if not file.exists()]:
        raise CaseError(f"{missing[0]}: is missing; run `screen` again")
    if not files:
        raise CaseError(f"{path}: no slide could be screened; failures.csv says why")
    return [file.parent for file in files]
