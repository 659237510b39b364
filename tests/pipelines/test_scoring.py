"""`esad-med train`, `score` and `evaluate`: from a store to what its detector is worth."""

import json

import numpy as np
import pandas as pd
import pytest

from esad_med.base.store import SampleStore


@pytest.fixture
def quick(quick_settings):
    return [word for setting in quick_settings for word in ("--set", setting)]


def test_training_by_command_gives_the_same_detector_twice(run_command, store, quick, tmp_path):
    for name in ("a", "b"):
        outcome = run_command("train", store, "--out", tmp_path / name, *quick, "--json")
        assert outcome.code == 0, outcome.err
        assert json.loads(outcome.out)["members"] == 2
    for file in ("weights.safetensors", "contract.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    card = (tmp_path / "a" / "README.md").read_text()
    assert "not for diagnosis" in card
    assert list((tmp_path / "a" / "tensorboard").rglob("events.*"))
    metrics = pd.read_csv(tmp_path / "a" / "metrics.csv")
    assert metrics["epoch"].max() == 2
    assert "validation_auc" in metrics


def test_an_existing_detector_is_not_replaced_by_accident(run_command, store, quick, tmp_path):
    first = run_command("train", store, "--out", tmp_path / "d", *quick, "--set", "epochs=1")
    assert first.code == 0
    again = run_command("train", store, "--out", tmp_path / "d", *quick)
    assert again.code == 4
    assert "--overwrite" in again.err
    resumed = run_command("train", store, "--out", tmp_path / "d", *quick, "--resume", "--seed", 1)
    assert resumed.code == 4
    assert "seed was 0, now 1" in resumed.err
    replaced = run_command("train", store, "--out", tmp_path / "d", *quick, "--overwrite")
    assert replaced.code == 0


def test_scores_of_a_store_are_a_table(run_command, store, trained, tmp_path):
    out = tmp_path / "new" / "scores.csv"
    outcome = run_command("score", store, "--detector", trained, "--out", out)
    assert outcome.code == 0, outcome.err
    table, rows = pd.read_csv(out), SampleStore(store).rows
    assert table["sample_id"].tolist() == rows["sample_id"].tolist()
    assert np.isfinite(table[["score", "reconstruction", "norm", "percentile"]]).all(axis=None)


def test_evaluation_says_what_it_resampled(run_command, store, trained, tmp_path):
    out = tmp_path / "scores.csv"
    run_command("score", store, "--detector", trained, "--out", out)
    outcome = run_command("evaluate", out, "--group", "case_id", "--out", tmp_path / "e")
    assert outcome.code == 0, outcome.err
    assert "patient" in outcome.out
    found = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    score = found["measures"]["score"]
    assert score["auc_low"] is None  # the tumor is of one patient
    assert "too few for an interval" in outcome.out
    assert set(score["sensitivity_at"]) == {"90", "95", "99"}
    assert 0 <= score["set_aside"] <= 1
    assert len(found["groups"]) == 2

    table = pd.read_csv(out).drop(columns=["case_id", "patient_id"])
    table.to_csv(tmp_path / "bare.csv", index=False)
    bare = run_command("evaluate", tmp_path / "bare.csv")
    assert bare.code == 0, bare.err
    assert "tile" in bare.out
    assert "too few" not in bare.out


def test_a_store_of_another_kind_is_refused(run_command, composed, trained, tmp_path):
    run_command("tile", composed / "normal_1.tif", "--out", tmp_path / "s", "--stain", "none")
    outcome = run_command(
        "score", tmp_path / "s", "--detector", trained, "--out", tmp_path / "x.csv"
    )
    assert outcome.code == 4
    assert "stain" in outcome.err
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "column 'score' is missing"),
        ("score,truth\n1,0\n2,0\n", "anomalous"),
        ("score,truth\nhigh,0\n2,1\n", "'score' holds no numbers"),
        ("score,truth\n1,3\n2,1\n", "truth must be 0, 1"),
        ("score,truth\nnan,0\n2,1\n", "finite"),
    ],
)
def test_bad_scores_are_refused(run_command, tmp_path, content, message):
    (tmp_path / "scores.csv").write_text(content)
    outcome = run_command("evaluate", tmp_path / "scores.csv")
    assert outcome.code == 4
    assert message in outcome.err


@pytest.fixture
def radiographs(tmp_path):
    """Scores as of an X-ray store, and a table with the scanners of its cases."""
    random, n = np.random.default_rng(0), 240
    truth = np.arange(n) % 3 == 0
    ids = [f"c{i}" for i in range(n)]
    scores = pd.DataFrame(
        {
            "sample_id": ids,
            "case_id": ids,
            "patient_id": [f"p{i // 2}" for i in range(n)],
            "truth": truth.astype(int),
            "view": np.where(np.arange(n) % 2, "PA", "AP"),
            "age": np.arange(n) % 90,
            "findings": np.where(truth, np.array(["Mass", "Hernia|Mass"])[np.arange(n) % 2], ""),
            "score": random.normal(size=n) + 2 * truth,
        }
    )
    scores.to_csv(tmp_path / "scores.csv", index=False)
    scanner = np.where(np.arange(n) % 5, "GE", "Siemens")
    pd.DataFrame({"case_id": ids, "scanner": scanner}).to_csv(tmp_path / "more.csv", index=False)
    return tmp_path


def test_scores_are_broken_down_by_command(run_command, radiographs):
    out = radiographs / "e"
    outcome = run_command(
        *("evaluate", radiographs / "scores.csv", "--out", out, "--columns"),
        *(radiographs / "more.csv", "--group", "view", "--group", "age", "--group", "scanner"),
        *("--bands", "age=30,60", "--threshold", "1", "--kind", "findings", "--seen", "Hernia"),
    )
    assert outcome.code == 0, outcome.err
    assert "at the threshold 1, given" in outcome.out
    groups = pd.read_csv(out / "groups.csv")
    assert groups["group"].tolist() == [
        "AP",
        "PA",
        "<30",
        "30 to <60",
        "60 and more",
        "GE",
        "Siemens",
    ]
    assert pd.read_csv(out / "kinds.csv")["kind"].tolist() == [
        "all seen",
        "all unseen",
        "Hernia",
        "Mass",
    ]
    for name in ("groups.png", "groups.svg", "kinds.png", "kinds.svg"):
        assert (out / name).stat().st_size > 1000
    found = json.loads((out / "evaluation.json").read_text())
    assert len(found["groups"]) == 7
    assert found["groups"][0]["auc_difference"] is None  # the largest itself


def test_columns_of_other_cases_are_refused(run_command, radiographs):
    def refused(text, message, *more):
        (radiographs / "bad.csv").write_text(text)
        outcome = run_command(
            *("evaluate", radiographs / "scores.csv", "--columns", radiographs / "bad.csv", *more)
        )
        assert outcome.code == 4
        assert message in outcome.err

    refused("scanner\nGE\n", "expected a column sample_id, case_id or patient_id")
    refused("case_id,scanner\nc1,GE\nc1,GE\n", "'c1' stands there twice")
    refused("case_id,scanner\nx,GE\n", "is it of other cases?")
    refused("case_id,scanner\nc1,GE\n", "column 'hospital' is missing", "--group", "hospital")
    bands = run_command("evaluate", radiographs / "scores.csv", "--bands", "age=6,5")
    assert bands.code == 4
    assert "rising edges" in bands.err
