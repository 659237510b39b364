"""Results by group and by kind of outlier: counts, intervals, differences, warnings."""

import numpy as np
import pandas as pd
import pytest

from esad_med.assess.breakdown import Breakdown, alarm_threshold, read_bands
from esad_med.assess.evaluation import evaluate
from esad_med.assess.groups import band_column
from esad_med.assess.measures import auc, bootstrap_auc
from esad_med.assess.subsets import Samples, effective_count, measure_subsets, wilson
from esad_med.base.errors import CaseError, ConfigError


def make_table(n=600, *, per_patient=2, shift=None, **columns):
    """Every third sample is anomalous and scores one higher, or ``shift`` higher."""
    random = np.random.default_rng(0)
    truth = np.arange(n) // per_patient % 3 == 0
    raised = truth * (1.0 if shift is None else shift)
    return pd.DataFrame(
        {
            "sample_id": [f"i{i}" for i in range(n)],
            "case_id": [f"i{i}" for i in range(n)],
            "patient_id": [f"p{i // per_patient}" for i in range(n)],
            "truth": truth.astype(int),
            "score": random.normal(size=n) + raised,
            **columns,
        }
    )


def test_several_columns_are_broken_down_at_once():
    sex = np.where(np.arange(600) // 2 % 2, "F", "M")
    table = make_table(sex=sex, age=np.arange(600) // 2 % 90)
    result = evaluate(table, breakdown=Breakdown(groups=["sex", "age"]), resamples=200)
    rows = result.groups.set_index(["column", "group"])
    assert rows.loc["sex"].index.tolist() == ["F", "M"]
    bands = ["<18", "18 to <40", "40 to <60", "60 to <80", "80 and more"]
    assert rows.loc["age"].index.tolist() == bands
    for column in ("sex", "age"):
        counts = rows.loc[column, ["n_normal", "n_anomalous"]].to_numpy()
        assert counts.sum() == 600
    part = table[table["sex"] == "F"]
    women = rows.loc[("sex", "F")]
    assert women["auc"] == pytest.approx(auc(part["truth"], part["score"]))
    assert women["auc_low"] < women["auc"] < women["auc_high"]
    assert women["units_anomalous"] == part.loc[part["truth"] == 1, "patient_id"].nunique()
    assert "F" in str(result)
    assert "threshold" in str(result)


def test_sensitivity_and_specificity_stand_at_the_threshold():
    table = make_table(sex="F")
    asked = Breakdown(groups=["sex"], threshold=0.5)
    row = evaluate(table, breakdown=asked, resamples=50).groups.iloc[0]
    bad, fine = (table[table["truth"] == value]["score"] for value in (1, 0))
    assert row["sensitivity"] == pytest.approx((bad > 0.5).mean())
    assert row["specificity"] == pytest.approx((fine <= 0.5).mean())
    chosen, why = alarm_threshold(table["truth"], table["score"], Breakdown())
    assert (fine <= chosen).mean() == pytest.approx(0.95)
    assert (fine < chosen).mean() < 0.95  # no lower one would do
    assert "95 % of all normals" in why


def test_a_difference_is_told_from_chance():
    """Group B is told apart worse; A1 and A2 are alike."""
    group = np.array(["A1", "A2", "B"])[np.arange(1800) // 6 % 3]
    shift = np.where(group == "B", 0.2, 2.0)
    rows = evaluate(
        make_table(1800, shift=shift, group=group), breakdown=Breakdown(groups=["group"])
    ).groups.set_index("group")
    assert rows["reference"].unique().tolist() == ["A1"]
    assert rows.loc["B", "auc_difference_high"] < -0.2
    assert rows.loc["B", "sensitivity_difference_high"] < 0
    assert rows.loc["A2", "auc_difference_low"] < 0 < rows.loc["A2", "auc_difference_high"]
    assert np.isnan(rows.loc["A1", "auc_difference"])
    apart = rows.loc["B", "auc"] - rows.loc["A1", "auc"]
    assert rows.loc["B", "auc_difference"] == pytest.approx(apart)


def test_small_groups_warn_and_one_class_has_no_auc():
    group = np.array(["big"] * 580 + ["small"] * 8 + ["one"] * 12)
    table = make_table(group=group)
    table.loc[table["group"] == "one", "truth"] = 0
    rows = evaluate(table, breakdown=Breakdown(groups=["group"]), resamples=50).groups
    rows = rows.set_index("group")
    assert rows.loc["big", "warning"] == ""
    assert rows.loc["small", "warning"].startswith("few: ")
    assert "0 anomalous" in rows.loc["one", "warning"]
    assert np.isnan(rows.loc["one", ["auc", "auc_low", "sensitivity"]].astype(float)).all()
    assert rows.loc["one", "specificity_low"] < rows.loc["one", "specificity"]


def test_the_interval_is_the_measures_own():
    table = make_table(300).sort_values("score")
    units = pd.factorize(table["patient_id"])[0]
    samples = Samples(table["truth"].to_numpy() == 1, table["score"].to_numpy(), units)
    everything = {"all": np.ones(300, bool)}
    found = measure_subsets(samples, everything, threshold=0, resamples=2000)["all"]
    expected = bootstrap_auc(table["truth"], table["score"], units, resamples=2000, seed=1)
    np.testing.assert_allclose(found.intervals["auc"], expected, atol=0.01)
    quantiles = np.quantile(found.resampled["sensitivity"], [0.025, 0.975])
    np.testing.assert_allclose(found.intervals["sensitivity"], quantiles, atol=0.02)


def test_wilson_and_the_effective_count():
    low, high = wilson(0.8, 100)  # Newcombe 1998: 0.711 to 0.867
    assert (round(low, 3), round(high, 3)) == (0.711, 0.867)
    assert wilson(1.0, 10)[0] == pytest.approx(0.722, abs=1e-3)
    assert np.isnan(wilson(0.5, 0)).all()
    hit = np.arange(400) % 4 == 0
    alone, pairs = np.arange(400), np.arange(400) // 2
    assert effective_count(hit, alone) == pytest.approx(400, rel=0.01)
    twins = np.repeat(hit[:200], 2)  # both of a patient agree
    assert effective_count(twins, pairs) == pytest.approx(200, rel=0.01)
    assert effective_count(np.ones(400, bool), pairs) == 200


@pytest.mark.parametrize(
    ("values", "edges", "expected"),
    [
        (["F", "", "M", "F"], None, ["F", "unknown", "M", "F"]),
        (["17", "18", "", "80"], [18, 80], ["<18", "18 to <80", "unknown", "80 and more"]),
        (["1", "2", "1", "2"], None, ["1", "2", "1", "2"]),
    ],
)
def test_bands(values, edges, expected):
    assert band_column(pd.Series(values), "age", edges).tolist() == expected


def test_numbers_without_bands_are_cut_at_quartiles():
    cut = band_column(pd.Series([str(value) for value in range(1, 101)]), "dose")
    assert cut.cat.categories.tolist() == [
        "<25.8",
        "25.8 to <50.5",
        "50.5 to <75.2",
        "75.2 and more",
    ]


def test_columns_that_make_no_groups_are_refused():
    with pytest.raises(CaseError, match="'sex' holds no numbers"):
        band_column(pd.Series(["F", "M"]), "sex", [1, 2])
    with pytest.raises(CaseError, match="60 different values, expected at most 50"):
        band_column(pd.Series([f"x{i}" for i in range(60)]), "id")
    for text in ("age", "age=", "age=a,b", "age=60,40", "=1,2"):
        with pytest.raises(ConfigError, match="expected COLUMN and rising edges"):
            read_bands([text])
    assert read_bands(["age=40,60"]) == {"age": [40, 60]}


def kinds_table(**columns):
    """Mass is seen in training and stands out; Hernia is unseen and does not."""
    table = make_table(900)
    anomalous = table["truth"] == 1
    third = np.arange(900) // 6 % 3
    names = np.array(["Mass", "Hernia", "Mass|Hernia"])[third]
    table["findings"] = np.where(anomalous, names, "No Finding")
    table.loc[anomalous & (third != 1), "score"] += 3
    return table.assign(**columns)


def test_kinds_seen_and_unseen():
    asked = Breakdown(kind="findings", seen=["Mass"])
    result = evaluate(kinds_table(), breakdown=asked, resamples=200)
    rows = result.kinds.set_index("kind")
    assert rows.index.tolist() == ["all seen", "all unseen", "Hernia", "Mass"]
    assert rows["training"].tolist() == ["seen", "unseen", "unseen", "seen"]
    assert (rows["n_normal"] == 600).all()
    assert rows["n_anomalous"].tolist() == [200, 100, 200, 200]  # two findings count for both
    table = kinds_table()
    part = table[(table["truth"] == 0) | (table["findings"] == "Hernia")]
    assert rows.loc["all unseen", "auc"] == pytest.approx(auc(part["truth"], part["score"]))
    assert rows.loc["all unseen", "auc_difference_high"] < -0.1
    text = str(result)
    assert "as given: Mass" in text
    assert "all unseen: AUC" in text
    assert "Hernia unseen: AUC" in text
    assert "against all seen" in text


def test_kinds_labeled_in_the_table_were_seen_and_do_not_test_themselves():
    table = kinds_table()
    table["split"] = np.where(np.arange(900) < 300, "train", "test")
    labeled = (table["findings"] == "Mass") & (table["split"] == "train")
    table["semi_label"] = np.where(labeled, -1, 1)
    result = evaluate(table, breakdown=Breakdown(kind="findings"), resamples=50)
    rows = result.kinds.set_index("kind")
    assert rows.loc["Mass", "training"] == "seen"
    assert rows.loc["Hernia", "training"] == "unseen"
    assert rows.loc["Mass", "n_anomalous"] == 200 - labeled.sum()
    assert f"{labeled.sum()} labeled outliers of the training split were left out" in str(result)


def test_kinds_without_knowing_what_was_seen():
    table = kinds_table()
    table.loc[table["findings"] == "Hernia", "findings"] = ""
    result = evaluate(table, breakdown=Breakdown(kind="findings"), resamples=50)
    assert result.kinds["kind"].tolist() == ["Hernia", "Mass"]
    assert "name them with --seen" in str(result)
    with pytest.raises(CaseError, match="no outlier of kind 'Nodule'"):
        evaluate(table, breakdown=Breakdown(kind="findings", seen=["Nodule"]))
    seen = evaluate(table, breakdown=Breakdown(kind="findings", seen=["Mass"]), resamples=50)
    assert seen.kinds.set_index("kind").loc["all unseen", "n_anomalous"] == 0  # none is named


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"bands": {"age": [40.0]}}, "--bands age: is no --group"),
        ({"seen": ["Infiltration"]}, "--seen Infiltration: of which column"),
        ({"threshold": 1.0}, "--threshold: holds for --group and --kind"),
    ],
)
def test_what_would_have_no_effect_is_refused(asked, message):
    with pytest.raises(ConfigError, match=message):
        Breakdown(**asked)
