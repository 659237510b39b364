"""What `evaluate` makes of a table of scores, and the tables it refuses."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from esad_med.assess.breakdown import Breakdown
from esad_med.assess.evaluation import evaluate
from esad_med.assess.measures import auc
from esad_med.base.errors import CaseError


def make_table(n=120, *, slides=12, patients=6, seed=0, **columns):
    random = np.random.default_rng(seed)
    truth = np.arange(n) % 3 == 0
    table = pd.DataFrame(
        {
            "sample_id": [f"t{i}" for i in range(n)],
            "case_id": [f"s{i % slides:02d}" for i in range(n)],
            "patient_id": [f"p{i % slides % patients}" for i in range(n)],
            "truth": truth.astype(int),
            "score": random.normal(size=n) + truth,
            "reconstruction": random.normal(size=n),
            "norm": random.normal(size=n) + 2 * truth,
        }
    )
    return table.assign(**columns)


def test_evaluate_reports_every_term_and_resamples_by_patient():
    table = make_table()
    result = evaluate(table, resamples=200)
    assert (result.resampled_by, result.units, result.n_unknown) == ("patient", 6, 0)
    assert list(result.measures) == ["score", "reconstruction", "norm"]
    for name, found in result.measures.items():
        assert found.auc == pytest.approx(metrics.roc_auc_score(table["truth"], table[name]))
        assert found.auc_low <= found.auc <= found.auc_high
        assert list(found.sensitivity_at) == ["90", "95", "99"]
        assert (found.n_normal, found.n_anomalous) == (80, 40)
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("columns", "unit", "words"),
    [
        ({"patient_id": ""}, "slide", "patients are not known"),
        ({"patient_id": "", "case_id": ""}, "tile", "true interval is wider"),
        ({"patient_id": None, "case_id": "only"}, "tile", "true interval is wider"),
    ],
)
def test_auto_takes_the_widest_known_unit_and_says_so(columns, unit, words):
    result = evaluate(make_table(**columns), resamples=50)
    assert result.resampled_by == unit
    assert words in result.note


def test_a_table_of_slides_is_resampled_by_slide():
    table = make_table(24, slides=24, patient_id="")
    result = evaluate(table.assign(sample_id=table["case_id"]), resamples=50)
    assert (result.resampled_by, result.units) == ("slide", 24)


def test_slides_and_their_scores():
    table = make_table(60, slides=4, patient_id="")
    table["truth"] = (table["case_id"].isin(["s02", "s03"]) & (table.index % 8 > 3)).astype(int)
    result = evaluate(table, slide_scores={"s00": 1, "s01": 3, "s02": 2, "s03": 4}, resamples=50)
    slides = result.slides.set_index("case_id")
    assert slides["truth"].to_dict() == {"s00": 0, "s01": 0, "s02": 1, "s03": 1}
    assert slides["n"].to_list() == [15, 15, 15, 15]
    assert np.isnan(slides.loc["s00", "auc"])
    part = table[table["case_id"] == "s02"]
    assert slides.loc["s02", "auc"] == pytest.approx(auc(part["truth"], part["score"]))
    assert result.slide_measures is not None
    assert result.slide_measures.auc == pytest.approx(3 / 4)
    assert result.to_dict()["slides"][0]["auc"] is None
    assert evaluate(table, resamples=10).slide_measures is None


def test_groups_are_told_apart():
    scanner = np.where(np.arange(120) % 2, "A", "B")
    table = make_table(scanner=scanner)
    table.loc[table["scanner"] == "A", "score"] = 1.0
    asked = Breakdown(groups=["scanner"])
    groups = evaluate(table, breakdown=asked, resamples=50).groups
    assert groups is not None
    rows = groups.set_index("group")
    assert rows.loc["A", "auc"] == 0.5
    part = table[table["scanner"] == "B"]
    assert rows.loc["B", "auc"] == pytest.approx(auc(part["truth"], part["score"]))
    assert rows[["n_normal", "n_anomalous"]].to_numpy().sum() == 120


def test_unknown_truth_is_left_out_and_strings_are_read():
    table = make_table()
    wanted = evaluate(table.iloc[:100], resamples=20).measures["score"]
    strings = table.astype(str)
    strings.loc[100:, "truth"] = ""
    result = evaluate(strings, resamples=20)
    assert result.n_unknown == 20
    assert result.measures["score"].auc == pytest.approx(wanted.auc)
    nullable = table.assign(truth=table["truth"].astype("Int8"))
    nullable.loc[100:, "truth"] = pd.NA
    assert evaluate(nullable, resamples=20).n_unknown == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="truth"), "column 'truth' is missing"),
        (lambda t: t.assign(truth=0), "no anomalous sample"),
        (lambda t: t.assign(truth=1), "no normal sample"),
        (lambda t: t.assign(truth=""), "no normal sample"),
        (lambda t: t.assign(truth=2), "expected 0 .normal., 1 .anomalous. or empty"),
        (lambda t: t.assign(truth="tumor"), "truth 'tumor'"),
        (lambda t: t.assign(score=np.nan), "120 values that are not finite"),
        (lambda t: t.assign(norm=np.inf), "column 'norm'"),
    ],
)
def test_tables_that_cannot_be_evaluated(change, message):
    with pytest.raises(CaseError, match=message):
        evaluate(change(make_table()))


def test_a_unit_or_group_that_is_not_known_is_refused():
    with pytest.raises(CaseError, match="the patient of 120 of 120 samples is unknown"):
        evaluate(make_table(patient_id=""), by="patient")
    with pytest.raises(CaseError, match="column 'scanner' is missing"):
        evaluate(make_table(), breakdown=Breakdown(groups=["scanner"]))
