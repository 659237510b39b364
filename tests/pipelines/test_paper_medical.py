"""`esad-med benchmark camelyon16` and `nih`: samples made once, Table 3, scores and Figure 4."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from composed_camelyon import write_cells
from PIL import Image

from esad_med.assess.measures import auc
from esad_med.base.config import load_config
from esad_med.base.store import SampleStore
from pipelines.paper.gallery import choose_samples
from pipelines.paper.grids import plan_runs
from pipelines.paper.methods import esad_config
from pipelines.paper.settings import BenchmarkConfig

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--epochs", 1, "--width", 0.03125, "--members", 1)
DATA_SETS = ("nih-subset", "nih-pa", "nih-ap")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def lists(nih, tmp_path_factory):
    """The official lists and those of the clear subset, of the composed radiographs."""
    table = pd.read_csv(nih / "table.csv", skiprows=1, header=None)
    images, normal = table[0], table[1] == "No Finding"
    tested = table.index >= 66
    subset = {"train": ~tested & (table.index < 40), "val": ~tested & (table.index >= 40)}
    chosen = {
        "train_val_list": ~tested,
        "test_list": tested,
        "subset_normal_train": subset["train"] & normal,
        "subset_normal_val": subset["val"] & normal,
        "subset_anomaly_val": ~tested & ~normal,
        "subset_normal_test": tested & normal,
        "subset_anomaly_test": tested & ~normal,
    }
    folder = tmp_path_factory.mktemp("lists")
    for name, which in chosen.items():
        (folder / f"{name}.txt").write_text("\n".join(images[which]))
    return folder


@pytest.fixture
def nih_command(nih, lists, tmp_path):
    """The benchmark of the composed radiographs, into a new folder."""
    settings = ("--set", f"lists={lists}", "--set", f"table={nih}/table.csv")
    return ("benchmark", "nih", "--data", nih, *settings, "--out", tmp_path / "out")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """DPA's lists of cells of the composed slides."""
    folder = tmp_path_factory.mktemp("cells")
    places = [(768 * row, 768 * column) for row in (0, 1, 2) for column in range(4)]
    chosen = {
        "normal_train": [("normal_001", "normal", *place) for place in places],
        "labelled_outlier_train200": [("tumor_001", "tumor", *place) for place in places[4:7]],
        "normal_test": [("test_001", "normal", *place) for place in places[:5]],
        "anomaly_test": [("test_001", "tumor", *place) for place in places[5:9]],
    }
    for name, listed in chosen.items():
        write_cells(folder / f"{name}.txt", listed)
    return folder


@pytest.fixture
def camelyon_command(camelyon_slides, cells, stored_target, tmp_path):
    """The benchmark of the composed slides, into a new folder."""
    settings = (f"lists={cells}", f"target={stored_target}", "cells.stain.method=none")
    given = [word for setting in settings for word in ("--set", setting)]
    return ("benchmark", "camelyon16", "--data", camelyon_slides, *given, "--out", tmp_path / "out")


# --- from raw data to the table and the figure


def test_radiographs_run_through_to_the_table_and_the_figure(
    run_command, nih_command, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    outcome = run_command(*nih_command, *QUICK, "--seeds", 0)
    assert outcome.code == 0, outcome.err
    table = (out / "table3.md").read_text()
    for told in ("paper 94.6 ± 0.4", "paper 59.8 ± 0.1", "DPA 58.5 ± 0.0", "nih-pa (34 samples, "):
        assert told in table
    results = {row["key"]: row for row in rows_of(out / "results.csv")}
    assert len(results) == 9
    counts = ("normals", "outliers", "test_normals", "test_anomalous")
    for data, expected in {
        "nih-subset": ("52", "14", "12", "2"),
        "nih-pa": ("27", "1", "5", "1"),
        "nih-ap": ("25", "1", "7", "1"),
    }.items():
        for row in (row for row in results.values() if row["data"] == data):
            assert tuple(row[name] for name in counts) == expected
    compared = 0
    for key, row in results.items():
        if row["method"] == "deep-sad":
            continue
        scores = pd.read_csv(out / "scores" / f"{key}.csv")
        for term in ("score", "reconstruction", "norm"):
            if scores[term].is_unique:  # six digits may tie what a net of one epoch tells apart
                found = auc(scores["truth"].to_numpy(), scores[term].to_numpy())
                assert found == pytest.approx(float(row[f"auc_{term}"]), abs=1e-5)
                compared += 1
    assert compared >= 6
    for data in DATA_SETS:
        check_figure(out, data, results)
    figure_before = (out / "fig4-nih-pa.png").read_bytes()

    journal = out / "journal.jsonl"
    kept = journal.read_text().splitlines(keepends=True)[:-1]
    journal.write_text("".join(kept))
    monkeypatch.setattr("pipelines.paper.stores.make_xray_store", None)  # it would not be callable
    again = run_command(*nih_command, *QUICK, "--seeds", 0)
    assert again.code == 0, again.err
    assert again.err.count("AUC") == 1
    assert "are made" not in again.err
    assert (out / "fig4-nih-pa.png").read_bytes() == figure_before
    after = {row["key"]: row for row in rows_of(out / "results.csv")}
    for key, row in results.items():
        assert {**after[key], "seconds": ""} == {**row, "seconds": ""}


def check_figure(out: Path, data: str, results: dict[str, dict[str, str]]) -> None:
    """Its table agrees with the scores, from low to high, and its picture holds what it should."""
    shown = pd.read_csv(out / f"fig4-{data}.csv")
    assert list(shown["method"].unique()) == ["esad-paper", "esad-recommended"]
    for method, own in shown.groupby("method"):
        (key,) = (k for k, r in results.items() if (r["data"], r["method"]) == (data, method))
        scores = pd.read_csv(out / "scores" / f"{key}.csv")
        columns = ["sample_id", "truth", "score", "reconstruction", "norm"]
        merged = own[columns].merge(scores[columns])
        assert len(merged) == len(own)
        for truth, few in own.groupby("truth"):
            every = scores.loc[scores["truth"] == truth, "score"]
            assert few["score"].is_monotonic_increasing
            assert (few["score"].iloc[0], few["score"].iloc[-1]) in (
                (every.min(), every.max()),
                (every.min(), every.min()),
            )
            assert len(few) == min(8, len(every))
    with Image.open(out / f"fig4-{data}.png") as picture:
        assert picture.width > 1000
        assert np.asarray(picture.convert("L")).std() > 10
    assert (out / f"fig4-{data}.svg").read_text().startswith("<?xml")


def test_slides_run_through_to_the_table_and_the_figure(run_command, camelyon_command, tmp_path):
    out = tmp_path / "out"
    planned = run_command(*camelyon_command, *QUICK, "--seeds", 0, "--only-plan")
    assert "3 runs, 0 done, 3 to do" in planned.out
    assert "before them the samples of camelyon16 are made, once" in planned.out
    assert not out.exists()
    outcome = run_command(*camelyon_command, *QUICK, "--seeds", 0, "--json")
    assert outcome.code == 0, outcome.err
    assert "fig4-camelyon16.png" in json.loads(outcome.out)["figures"]
    store = SampleStore(out / "stores" / "camelyon16")
    counts = store.rows.groupby(["case_id", "semi_label", "truth"]).size().to_dict()
    assert counts == {
        ("normal_001", 1, 0): 12,
        ("test_001", 1, 0): 5,
        ("test_001", 1, 1): 4,
        ("tumor_001", -1, 1): 3,
    }
    table = (out / "table3.md").read_text()
    for told in ("paper 96.8 ± 0.4", "PIAD 89.5 ± 0.6", "Stains shown as in target.json", "'none'"):
        assert told in table
    results = {row["key"]: row for row in rows_of(out / "results.csv")}
    check_figure(out, "camelyon16", results)


def test_workers_share_a_store_and_unsupervised_methods_take_no_labeled_outliers(
    run_command, camelyon_command, tmp_path
):
    arguments = ("--methods", "isolation-forest", "--seeds", "0-1", "--workers", 2)
    outcome = run_command(*camelyon_command, *arguments)
    assert outcome.code == 0, outcome.err
    rows = rows_of(tmp_path / "out" / "results.csv")
    assert len(rows) == 2
    for row in rows:
        assert (row["gamma_l"], row["normals"], row["outliers"]) == ("0.0", "12", "0")
    assert not (tmp_path / "out" / "scores").exists()
    assert not list((tmp_path / "out").glob("fig4*"))


# --- what is prepared


FOREST = ("--methods", "isolation-forest", "--seeds", 0)


def test_an_interrupted_store_is_made_again_and_a_finished_one_taken(
    run_command, nih_command, tmp_path, monkeypatch
):
    stores = tmp_path / "out" / "stores"

    def interrupt(bar, label, done, total):
        if label == "reading radiographs" and (stores / "nih-pa").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("esad_med.cli.progress.ProgressBar.__call__", interrupt)
        assert run_command(*nih_command, *FOREST).code == 130
    made = {path.name for path in stores.iterdir() if path.name[0] != "."}
    assert "nih-pa" in made
    assert len(made) < 3
    before = {name: (stores / name / "samples.npy").stat().st_mtime_ns for name in made}
    plan = json.loads(run_command(*nih_command, *FOREST, "--only-plan", "--json").out)
    assert set(plan["unprepared"]) == set(DATA_SETS) - made
    outcome = run_command(*nih_command, *FOREST)
    assert outcome.code == 0, outcome.err
    assert {path.name for path in stores.iterdir()} == set(DATA_SETS)
    for name, time in before.items():
        assert (stores / name / "samples.npy").stat().st_mtime_ns == time


def test_other_settings_do_not_join_samples_that_are_there(
    run_command, nih_command, lists, tmp_path
):
    pa = (*FOREST, "--set", "data_sets=[nih-pa]")
    assert run_command(*nih_command, *pa).code == 0
    (tmp_path / "other").mkdir()
    outcome = run_command(*nih_command, *pa, "--set", f"lists={tmp_path / 'other'}")
    assert outcome.code == 4
    assert "holds runs with other settings (lists was" in outcome.err


def test_results_of_other_samples_do_not_enter_one_mean(run_command, nih_command, nih, tmp_path):
    pa = (*FOREST, "--set", "data_sets=[nih-pa]")
    store = tmp_path / "out" / "stores" / "nih-pa"
    assert run_command(*nih_command, *pa, "--seeds", 0).code == 0
    shutil.rmtree(store)
    images = tmp_path / "images"
    shutil.copytree(nih, images)
    next(images.rglob("00000001_000.png")).unlink()
    fewer = [images if word == nih else word for word in nih_command]
    outcome = run_command(*fewer, *pa, "--seeds", "0-1")
    assert outcome.code == 4
    assert "nih-pa: holds other samples than 1 finished runs had" in outcome.err
    shutil.rmtree(store)
    assert run_command(*nih_command, *pa, "--seeds", "0-1").code == 0  # the same again


def test_a_folder_that_is_not_there_is_told_though_the_samples_are_made(
    run_command, nih_command, nih, tmp_path
):
    pa = (*FOREST, "--set", "data_sets=[nih-pa]")
    assert run_command(*nih_command, *pa).code == 0
    wrong = [tmp_path / "nowhere" if word == nih else word for word in nih_command]
    outcome = run_command(*wrong, *pa)
    assert outcome.code == 4
    assert "nowhere: no such folder" in outcome.err


def test_a_failed_preparation_may_be_tried_with_other_settings(
    run_command, nih_command, nih, tmp_path
):
    pa = (*FOREST, "--set", "data_sets=[nih-pa]")
    empty = tmp_path / "empty"
    empty.mkdir()
    wrong = [empty if word == nih else word for word in nih_command]
    outcome = run_command(*wrong, *pa, "--epochs", 3)
    assert outcome.code == 4
    assert "none of the 34 chosen images was found among 0 files" in outcome.err
    assert run_command(*nih_command, *pa).code == 0


def test_what_is_missing_or_damaged_is_counted_and_told(run_command, nih_command, nih, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(nih, images)
    for name in ("00000001_000.png", "00000002_001.png"):
        next(images.rglob(name)).unlink()
    next(images.rglob("00000003_000.png")).write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    damaged = [images if word == nih else word for word in nih_command]
    outcome = run_command(*damaged, *FOREST, "--set", "data_sets=[nih-pa]")
    assert outcome.code == 3
    told = "1 of 34 listed images are not in the folder; 1 images could not be read"
    assert told in (tmp_path / "out" / "table3.md").read_text()
    assert told in outcome.err
    assert "2 pictures or list entries set aside" in outcome.out


def test_a_test_set_without_anomalies_is_refused(run_command, nih_command, lists, tmp_path):
    few = tmp_path / "few"
    shutil.copytree(lists, few)
    (few / "test_list.txt").write_text("00000035_000.png\n")
    arguments = ("--set", "data_sets=[nih-pa]", "--set", f"lists={few}")
    outcome = run_command(*nih_command, *FOREST, *arguments)
    assert outcome.code == 4
    assert "found 0 anomalous test samples, expected at least 1" in outcome.err
    assert "--set data_sets" in outcome.err


# --- what is refused before anything is written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nih", "--data", "."), "lists of nih: not given; pass --set lists=FOLDER, or set ESAD"),
        (("nih", "--data", ".", "--set", "lists=nowhere"), "nowhere: no such folder"),
        (
            ("nih", "--data", ".", "--set", "lists=."),
            "no list train_val_list.txt or train_val_list.txt.gz",
        ),
        (("nih",), "data of nih: not given; pass --data FOLDER"),
        (("camelyon16",), "data of camelyon16: not given; pass --data FOLDER"),
        (("camelyon16", "--data", "."), "lists of camelyon16: not given"),
        (("camelyon16", "--table", 1), "camelyon16 has no table1; it has table3"),
        (("camelyon16", "--set", "table=x.csv"), "table is a setting of nih alone"),
        (("camelyon16", "--leaking"), "leaking splits are those of odds"),
        (("camelyon16", "--set", "cells.crops=2"), "cells.crops: unknown key; did you mean"),
        (("nih", "--set", "target=x.png"), "target is a setting of camelyon16 alone"),
        (("nih", "--set", "cells.seed=3"), "cells is a setting of camelyon16 alone"),
        (("nih", "--set", "data_sets=[nih-lateral]"), "unknown data set of nih"),
        (("mnist", "--set", "lists=."), "lists is a setting of camelyon16 and nih alone"),
    ],
)
def test_contradictions_are_refused(arguments, said, run_command, tmp_path, monkeypatch):
    monkeypatch.delenv("ESAD_DATA", raising=False)
    monkeypatch.setattr("pipelines.paper.suite.estimate", lambda *_, **__: None)
    outcome = run_command("benchmark", *arguments, "--out", tmp_path / "out")
    assert outcome.code == 4
    assert said in outcome.err
    assert not (tmp_path / "out").exists()


def test_missing_slides_and_a_missing_target_are_told_first(
    run_command, camelyon_slides, cells, tmp_path
):
    command = ("benchmark", "camelyon16", *FOREST, "--set", f"lists={cells}")
    for root, said in (
        (tmp_path, "holds none of the 3 listed slides, such as normal_001; pass --data FOLDER"),
        (camelyon_slides, "has no slide normal_056, whose stain is the protocol's target"),
    ):
        outcome = run_command(*command, "--data", root, "--out", tmp_path / "out")
        assert outcome.code == 4
        assert said in outcome.err
        assert not (tmp_path / "out").exists()


# --- settings, shares, choices


@pytest.mark.parametrize(
    ("suite", "file"), [("nih", "chest_xray.yaml"), ("camelyon16", "paper/camelyon16.yaml")]
)
def test_suites_change_of_esad_what_the_configs_for_train_change(suite, file):
    given = yaml.safe_load((ROOT / "configs" / file).read_text())
    config = load_config(BenchmarkConfig, None, [f"suite={suite}"])
    for run in (run for run in plan_runs(config) if run.method.startswith("esad")):
        own = esad_config(run, config).model_dump()["augment"]
        assert {key: own[key] for key in given["augment"]} == given["augment"]
    user = config.model_copy(update={"esad": {"augment": {"flips": suite == "nih"}}})
    run = next(run for run in plan_runs(user) if run.method == "esad-paper")
    assert esad_config(run, user).augment.flips == (suite == "nih")


def test_samples_are_chosen_evenly_over_the_ranks(tmp_path):
    random = np.random.default_rng(0)
    score = random.permutation(100) / 10
    table = pd.DataFrame({"sample_id": range(100), "score": score, "truth": np.arange(100) < 29})
    table = table.assign(truth=table["truth"].astype(int), reconstruction=score, norm=-score)
    table.to_csv(tmp_path / "scores.csv", index=False)
    shown = choose_samples(tmp_path / "scores.csv", 8)
    for truth in (0, 1):
        ranked = np.sort(score[table["truth"] == truth])
        step = (len(ranked) - 1) / 7
        expected = [ranked[round(step * k)] for k in range(8)]
        np.testing.assert_allclose(shown.loc[shown["truth"] == truth, "score"], expected)
    assert len(choose_samples(tmp_path / "scores.csv", 50)) == 50 + 29


@pytest.mark.data
def test_real_radiographs_are_few_and_that_is_told(run_command, data_root, tmp_path, monkeypatch):
    monkeypatch.setenv("ESAD_DATA", str(data_root))
    command = ("benchmark", "nih", *FOREST, "--out", tmp_path / "out")
    outcome = run_command(*command, "--set", "data_sets=[nih-pa]")
    assert outcome.code == 3, outcome.err
    (row,) = rows_of(tmp_path / "out" / "results.csv")
    assert [row[name] for name in ("normals", "test_normals", "test_anomalous")] == [
        "158",
        "9",
        "70",
    ]
    assert "46528 of 46773 listed images are not in the folder" in outcome.out
    refused = run_command(*command, "--set", "data_sets=[nih-ap]")
    assert refused.code == 4
    assert "found 0 normal test samples" in refused.err
