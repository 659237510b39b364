"""`esad-med benchmark`: the paper's grids, resumed runs, failures, parts, plans; tiny inputs."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.natural import LabeledImages
from data_prep.odds import TABLE_7, Table
from esad_med.base.config import load_config
from esad_med.base.errors import ConfigError, ModelError
from esad_med.cli.benchmark import parse_seeds
from esad_med.method.config import PRESETS
from esad_med.method.problem import network_spec
from pipelines.paper import data, methods
from pipelines.paper.data import as_input, read_run
from pipelines.paper.estimates import estimate, guess_seconds
from pipelines.paper.grids import plan_runs, rows, select_runs
from pipelines.paper.methods import baseline_settings, esad_config, make_chunks, run_chunk
from pipelines.paper.protocols import RunData
from pipelines.paper.runs import FailedRun, Result, Run
from pipelines.paper.settings import METHODS, NEEDS_LABELS, SUITES, UNSUPERVISED, BenchmarkConfig
from pipelines.paper.suite import plan_suite, run_suite

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--data", ".", "--table", 4, "--set", "data_sets=[cardio]")


def config_of(suite: str, *settings: str) -> BenchmarkConfig:
    return load_config(BenchmarkConfig, None, [f"suite={suite}", *settings])


def compose_table(folder: Path, name: str) -> Table:
    """Normals in a blob, outliers beside it; one column that is constant."""
    random = np.random.default_rng(len(name))
    samples = random.normal(size=(200, 5)).astype(np.float32)
    samples[150:, :2] += 4
    samples[:, 4] = 7
    return Table(name, samples, (np.arange(200) >= 150).astype(np.int8))


def compose_images(folder: Path) -> LabeledImages:
    """Ten classes of bars that a forest tells apart."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(10, dtype=np.int8), 20)
    images = random.integers(0, 60, (200, 10, 10, 1)).astype(np.uint8)
    images[np.arange(200), labels] += 150
    return LabeledImages(images, labels, images, labels, tuple("0123456789"), "bars")


@pytest.fixture(autouse=True)
def composed_data(monkeypatch):
    """The readers check published digests; these samples have none."""
    for cached in (data._table, data._images):
        cached.cache_clear()
    monkeypatch.setattr(data, "read_odds", compose_table)
    monkeypatch.setitem(data._READERS, "mnist", compose_images)
    yield
    for cached in (data._table, data._images):
        cached.cache_clear()


def test_workers_elsewhere_get_absolute_paths(monkeypatch, tmp_path):
    class Shared(Exception):
        """What was shared out."""

    def share(chunks, work, *, place, shared):
        raise Shared(work.keywords["folder"], work.keywords["out"], shared)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.paper.suite.run_chunks", share)
    config = config_of("odds", "tables=[table4]", "data_sets=[cardio]", "methods=[oc-svm]")
    plan = plan_suite(config, Path("out"))
    with pytest.raises(Shared) as caught:
        run_suite(plan, Path(), say=lambda _: None)
    assert caught.value.args == (tmp_path, tmp_path / "out", tmp_path / "out")


def results_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


# --- the grids


def test_the_grids_have_as_many_runs_as_the_paper_says():
    count = Counter(run.method for run in plan_runs(config_of("mnist")))
    for method in ("esad-paper", "esad-recommended", "deep-sad", "ssad-hybrid"):
        table1, table8, table9 = 10 + 4 * 90, 4 * 90, 10 + 3 * 100  # k_l = 1 is in Table 8
        assert count[method] == table1 + table8 + table9
    assert count["cae"] == 5 * 10
    for figure in ("fig2", "fig5"):
        assert len(plan_runs(config_of("mnist", f"tables=[{figure}]"))) == 2 * 6 * 90
    odds = Counter(run.method for run in plan_runs(config_of("odds")))
    assert odds["cae"] == 6 * 10
    assert odds["esad-paper"] == 6 * 10 + 2 * 5 * 10  # Table 5's last row is in Table 4


@pytest.mark.parametrize("suite", SUITES)
def test_a_key_tells_a_run_from_all_others(suite):
    runs = plan_runs(config_of(suite))
    assert len({run.key for run in runs}) == len(set(runs)) == len(runs)


def test_keys_are_readable_and_stay_as_they_are():
    run = Run("mnist", "mnist", "deep-sad", 3, 0.05, 0.1, 2, "4", ("1", "9"))
    assert run.key == "mnist/deep-sad/normal=4/outliers=1+9/gamma_l=0.05/gamma_p=0.1/seed=3"
    run = Run("odds", "cardio", "esad-paper", 0, 0.01, k_l=1, variant="noise only")
    assert run.key == "odds/cardio/esad-paper/noise-only/gamma_l=0.01/seed=0"


def test_every_run_has_its_row_and_what_it_can_learn_from():
    config = config_of("mnist")
    for table in config.tables:
        own = config.model_copy(update={"tables": (table,)})
        for run in plan_runs(own):
            assert any(row.holds(run) for row in rows(table, own)), run.key
            assert run.gamma_l > 0 or run.method not in NEEDS_LABELS
            assert run.normal not in run.outlier_classes
            assert len(run.outlier_classes) == run.k_l
            assert (run.k_l == 0) == (run.gamma_l == 0)
            if run.method in UNSUPERVISED:
                served = [row.gamma_p for row in rows(table, own) if row.holds(run)]
                assert set(served) == {run.gamma_p}


def test_a_reduced_grid_takes_the_next_class_alone():
    config = load_config(
        BenchmarkConfig, ROOT / "configs/paper/natural-cpu.yaml", ["suite=cifar10"]
    )
    runs = [run for run in plan_runs(config) if run.method == "deep-sad" and run.k_l == 1]
    assert [(run.normal, *run.outlier_classes) for run in runs] == [
        (str(c), str((c + 1) % 10)) for c in range(10)
    ]


@given(st.integers(1, 60), st.integers(1, 12))
def test_parts_of_a_grid_are_equal_and_the_whole(count, n):
    runs = [Run("odds", "cardio", "cae", seed) for seed in range(count)]
    n = min(n, count)
    parts = [select_runs(runs, f"{i}/{n}") for i in range(1, n + 1)]
    assert [run for part in parts for run in part] == runs
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_runs_are_selected_by_a_part_of_their_key():
    runs = plan_runs(config_of("odds"))
    for selection, count in {"cardio/cae": 10, "cardio/*/seed=3": 25, "/seed=1/": 110}.items():
        assert len(select_runs(runs, selection)) == count
    with pytest.raises(ConfigError, match=r"fits none of 1100 runs, such as odds/"):
        select_runs(runs, "cradio")
    for wrong in ("0/3", "4/3", "1/9999"):
        with pytest.raises(ConfigError, match="expected i/n"):
            select_runs(runs, wrong)


def test_seeds_are_ranges_and_lists():
    assert parse_seeds("0-3") == [0, 1, 2, 3]
    assert parse_seeds("200-201, 5,5") == [200, 201, 5]
    for wrong in ("", "a", "1-", "-1", "3-1", "1,,2", "1-2-3"):
        with pytest.raises(ConfigError, match="--seeds"):
            parse_seeds(wrong)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("odds", "--methods", "deepsad"), "unknown method 'deepsad'; did you mean 'deep-sad'?"),
        (("odds", "--width", 0.5), "width is of the image network"),
        (("odds", "--table", 1), "odds has no table1; it has table4, table5"),
        (("odds", "--table", 7), "table7"),
        (("mnist", "--leaking"), "leaking splits are those of odds"),
        (("fmnist", "--table", "fig2"), "fmnist has no fig2"),
        (("mnist", "--table", "fig2", "--methods", "cae"), "cae: no run in fig2"),
        (("minst",), "suite"),
        (("odds", "--seeds", "3-1"), "write 1-3"),
        (("odds", "--runs", "shuttel"), "fits none of"),
        (("odds", "--set", "data_sets=[cardoi]"), "did you mean 'cardio'?"),
        (("odds", "--set", "gamma_l=[1]"), "1.0 is no share"),
        (("odds", "--set", "esad.loss.lambda9=1"), "esad: loss.lambda9: unknown key"),
        (("odds", "--set", "baselines.kernal_rows=9"), "did you mean 'kernel_rows'?"),
        (("odds", "--set", "esad.seed=1"), "seed is each run's own"),
        (("mnist", "--set", "esad.kind=image"), "kind is the suite's own, of mnist"),
        (("odds", "--data", "nowhere"), "nowhere: no such folder"),
    ],
)
def test_contradictions_are_refused(arguments, said, run_command, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.paper.suite.estimate", lambda *_, **__: None)
    outcome = run_command("benchmark", *arguments, "--out", tmp_path / "out")
    assert outcome.code == 4
    assert said in outcome.err
    assert not (tmp_path / "out").exists()


def test_without_data_the_command_says_where_to_look(run_command, tmp_path, monkeypatch):
    monkeypatch.delenv("ESAD_DATA", raising=False)
    arguments = ("benchmark", "odds", "--methods", "isolation-forest", "--out", tmp_path / "out")
    assert "pass --data FOLDER, or set ESAD_DATA" in run_command(*arguments).err
    monkeypatch.setenv("ESAD_DATA", str(tmp_path))
    assert f"{tmp_path}/odds: no such folder" in run_command(*arguments).err


# --- running


def test_an_interrupted_benchmark_goes_on_to_the_same_results(run_command, tmp_path, monkeypatch):
    arguments = (*QUICK, "--methods", "isolation-forest", "--methods", "oc-svm", "--seeds", "0-2")
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert run_command("benchmark", "odds", *arguments, "--out", whole).code == 0

    def interrupt(bar, label, done, total):
        if done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("esad_med.cli.progress.ProgressBar.__call__", interrupt)
        outcome = run_command("benchmark", "odds", *arguments, "--out", torn)
    assert outcome.code == 130
    assert len(results_of(torn)) == 3
    assert not list(torn.glob("table4*"))
    journal = torn / "journal.jsonl"
    journal.write_text(journal.read_text()[:-40])  # the machine went down while this was written
    outcome = run_command("benchmark", "odds", *arguments, "--out", torn, "--only-plan", "--json")
    assert len(json.loads(outcome.out)["todo"]) == 4
    outcome = run_command("benchmark", "odds", *arguments, "--out", torn)
    assert outcome.code == 0
    assert outcome.err.count("AUC") == 4
    assert results_of(torn) == results_of(whole)
    for name in ("table4.md", "config.yaml"):
        assert (torn / name).read_text() == (whole / name).read_text()
    again = run_command("benchmark", "odds", *arguments, "--out", torn)
    assert "6 runs, 6 done, 0 to do" in again.err
    assert "AUC" not in again.err
    assert results_of(torn) == results_of(whole)


def test_runs_of_other_presets_do_not_join(run_command, tmp_path, monkeypatch):
    arguments = (*QUICK, "--methods", "oc-svm", "--out", tmp_path / "out")
    assert run_command("benchmark", "odds", *arguments, "--seeds", "0").code == 0
    with monkeypatch.context() as patch:
        patch.setitem(PRESETS["recommended"]["vector"], "epochs", 7)
        outcome = run_command("benchmark", "odds", *arguments, "--seeds", "0-1")
    assert outcome.code == 4
    assert "another version, whose presets differ" in outcome.err
    assert len(results_of(tmp_path / "out")) == 1
    facts = tmp_path / "out" / "run.json"
    whole = json.loads(facts.read_text())
    facts.write_text(json.dumps({key: whole[key] for key in ("command", "suite", "recipes")}))
    assert run_command("benchmark", "odds", *arguments, "--seeds", "0-1").code == 0
    assert json.loads(facts.read_text()) == whole


def test_parts_in_any_order_give_the_results_of_the_whole(run_command, tmp_path):
    command = ("benchmark", "odds", *QUICK, "--methods", "oc-svm", "--seeds", "0-3")
    assert run_command(*command, "--out", tmp_path / "whole").code == 0
    for part in ("2/2", "1/2"):
        outcome = run_command(*command, "--out", tmp_path / "parts", "--runs", part)
        assert outcome.err.startswith("2 runs, 0 done, 2 to do")
    assert results_of(tmp_path / "parts") == results_of(tmp_path / "whole")


def test_more_runs_may_be_added_but_no_other_settings(run_command, tmp_path):
    command = ("benchmark", "odds", *QUICK, "--out", tmp_path / "out")
    first = run_command(*command, "--methods", "isolation-forest", "--seeds", "0-1")
    assert first.code == 0, first.err
    more = run_command(*command, "--methods", "oc-svm", "--seeds", "7")
    assert more.code == 0, more.err
    assert "1 run, 0 done" in more.err
    table = (tmp_path / "out" / "table4.md").read_text()
    assert "| OC-SVM | Isolation forest |" in table
    assert "(1)" in table
    assert "(2)" in table
    kept = load_config(BenchmarkConfig, tmp_path / "out" / "config.yaml")
    assert kept.seeds == (0, 1, 7)
    assert kept.methods == ("isolation-forest", "oc-svm")
    other = run_command(*command, "--epochs", 3, "--set", "baselines.trees=7")
    assert other.code == 4
    assert "epochs was None, now 3; baselines was {}, now {'trees': 7}" in other.err
    assert load_config(BenchmarkConfig, tmp_path / "out" / "config.yaml") == kept


def test_a_folder_of_something_else_is_left_alone(run_command, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    outcome = run_command(
        "benchmark", "odds", *QUICK, "--methods", "oc-svm", "--seeds", 0, "--out", tmp_path
    )
    assert outcome.code == 4
    assert "no result of `benchmark`" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failed_run_is_counted_and_tried_again(run_command, tmp_path, monkeypatch):
    out = tmp_path / "out"
    command = ("benchmark", "odds", *QUICK, "--methods", "oc-svm", "--seeds", "0-2", "--out", out)
    make = methods.make_baseline

    def diverge(name, settings, shared):
        if settings.seed == 1:
            raise ModelError("the loss is not finite")
        return make(name, settings, shared)

    with monkeypatch.context() as patch:
        patch.setattr(methods, "make_baseline", diverge)
        outcome = run_command(*command)
    assert outcome.code == 3
    failures = (out / "failures.csv").read_text()
    assert "odds/cardio/oc-svm/gamma_l=0.01/seed=1,run,ModelError,the loss is not fin" in failures
    table = (out / "table4.md").read_text()
    assert "(2, 1 failed)" in table
    assert "1 of 3 runs failed" in table
    assert run_command(*command).code == 0
    assert (out / "failures.csv").read_text().count("\n") == 1
    assert "failed" not in (out / "table4.md").read_text()


def test_missing_data_stops_before_anything_is_written(run_command, tmp_path, monkeypatch):
    monkeypatch.undo()  # the real reader
    outcome = run_command(
        *("benchmark", "odds", "--data", tmp_path, "--methods", "oc-svm"),
        *("--table", 4, "--out", tmp_path / "out"),
    )
    assert outcome.code == 4
    assert "arrhythmia" in outcome.err
    assert not (tmp_path / "out").exists()


def test_other_versions_are_told_and_noted(run_command, tmp_path, monkeypatch):
    command = ("benchmark", "odds", *QUICK, "--methods", "oc-svm", "--out", tmp_path / "out")
    assert run_command(*command, "--seeds", 0).code == 0
    monkeypatch.setattr("pipelines.paper.folder.versions", lambda: {"torch": "3"})
    assert "other versions" in run_command(*command, "--seeds", 1).err
    stamps = json.loads((tmp_path / "out" / "run.json").read_text())["versions"]
    lines = (tmp_path / "out" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["versions"] for line in lines] == list(stamps)


# --- plans and estimates


def test_the_estimate_falls_as_runs_finish():
    config = config_of("odds", "tables=[table4]", "methods=[cae,oc-svm]")
    runs = plan_runs(config)

    def guess(todo, _):
        return 7.0 * len(todo)

    seconds = []
    for count in range(len(runs) + 1):
        done = [Result(run, 0.9, None, None, 9, 1, 5, 5, seconds=2.0) for run in runs[:count]]
        seconds.append(estimate(runs[count:], done, config, guess=guess).seconds)
    assert seconds == sorted(seconds, reverse=True)
    assert len(set(seconds)) == len(seconds)
    assert seconds[0] == 7.0 * len(runs)
    assert seconds[-1] == 0
    assert estimate(runs, [], config, jobs=4, guess=guess).seconds == seconds[0] / 4


def test_a_guess_grows_with_what_is_to_be_done():
    small = config_of("odds", "tables=[table4]", "data_sets=[cardio]", "seeds=[0]")
    methods_ = ("cae", "oc-svm", "ssad-hybrid", "supervised", "esad-recommended")
    for method in methods_:
        own = small.model_copy(update={"methods": (method,)})
        more = own.model_copy(update={"seeds": (0, 1, 2)})
        few, many = (guess_seconds(plan_runs(config), config) for config in (own, more))
        assert many == pytest.approx(3 * few)
        assert few > 0
    short = small.model_copy(update={"methods": ("esad-paper",), "epochs": 2})
    long = short.model_copy(update={"epochs": 20})
    few, many = (guess_seconds(plan_runs(config), config) for config in (short, long))
    assert many == pytest.approx(10 * few)


def test_a_plan_writes_nothing_and_needs_no_data(run_command, tmp_path):
    outcome = run_command(
        *("benchmark", "odds", "--methods", "isolation-forest", "--table", 4),
        *("--runs", "seed=1", "--out", tmp_path / "out", "--only-plan"),
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out == "6 runs, 0 done, 6 to do: about 3.0 s (a rough guess)\n"
    assert not (tmp_path / "out").exists()


# --- methods


def test_seeds_train_together_and_baselines_share_an_autoencoder(tmp_path, monkeypatch):
    config = config_of("odds", "data_sets=[cardio]", "seeds=[0,1,2]", "tables=[table4]")
    chunks = make_chunks(plan_runs(config))
    assert sorted(run.key for chunk in chunks for run in chunk) == sorted(
        run.key for run in plan_runs(config)
    )
    assert [len(chunk) for chunk in chunks if chunk[0].method == "esad-paper"] == [3]
    fitted = []

    class Counting(methods.Autoencoder):
        def fit(self, samples, y):
            fitted.append(len(samples))
            return self

        def encode(self, samples):
            return samples[:, :3]

    monkeypatch.setattr(methods, "Autoencoder", Counting)
    hybrids = [
        [run for run in chunk if run.method.endswith("hybrid")]
        for chunk in chunks
        if chunk[0].seed == 2 and chunk[0].method != "esad-paper"
    ]
    (chunk,) = [chunk for chunk in hybrids if chunk]
    outcomes = list(run_chunk(chunk, config=config, folder=tmp_path, out=tmp_path))
    assert [type(outcome) for outcome in outcomes] == [Result] * 3
    assert len(fitted) == 1


def test_esad_gives_its_terms_and_baselines_none(run_command, tmp_path):
    out = tmp_path / "out"
    outcome = run_command(
        *("benchmark", "odds", *QUICK, "--methods", "esad-recommended", "--methods", "oc-svm"),
        *("--seeds", "0-1", "--epochs", 3, "--members", 1, "--out", out),
    )
    assert outcome.code == 0, outcome.err
    found = {row["key"]: row for row in results_of(out)}
    ours = found["odds/cardio/esad-recommended/gamma_l=0.01/seed=1"]
    assert all(0 <= float(ours[f"auc_{name}"]) <= 1 for name in ("score", "reconstruction", "norm"))
    assert (ours["test_normals"], ours["test_anomalous"]) == ("60", "20")
    assert found["odds/cardio/oc-svm/gamma_l=0.01/seed=1"]["auc_norm"] == ""
    assert "Epochs of every method: 3" in (out / "table4.md").read_text()


def test_images_run_with_esad_and_a_baseline(run_command, tmp_path):
    outcome = run_command(
        *("benchmark", "mnist", "--data", ".", "--table", 1, "--out", tmp_path, "--json"),
        *("--methods", "esad-paper", "--methods", "isolation-forest", "--width", 0.03125),
        *("--epochs", 1, "--runs", "normal=3", "--set", "gamma_l=[0.1]"),
        *("--set", "outlier_classes=one"),
    )
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert [result["key"] for result in found["results"]] == [
        "mnist/isolation-forest/normal=3/gamma_l=0/seed=0",
        "mnist/esad-paper/normal=3/outliers=4/gamma_l=0.1/seed=0",
    ]
    table = (tmp_path / "table1.md").read_text()
    assert "Data read from: bars." in table
    assert "Width 0.03125" in table


def test_a_run_that_diverges_spares_those_it_trains_with(tmp_path, monkeypatch):
    config = config_of("odds", "data_sets=[cardio]", "seeds=[0,1,2]", "methods=[esad-paper]")
    fit = methods.fit_detectors

    def one_diverges(samples, configs):
        found = fit(samples, configs)
        return [found[0], ModelError("the loss is not finite"), found[2]]

    monkeypatch.setattr(methods, "fit_detectors", one_diverges)
    quick = config.model_copy(update={"epochs": 1, "tables": ("table4",)})
    outcomes = list(run_chunk(plan_runs(quick), config=quick, folder=tmp_path, out=tmp_path))
    assert [type(outcome) for outcome in outcomes] == [Result, FailedRun, Result]


def test_settings_of_esad_are_the_presets_then_the_users_then_the_variants():
    config = config_of("odds", "esad.loss.lambda2=9", "esad.optimizer.lr=0.5", "epochs=7")
    run = Run("odds", "arrhythmia", "esad-paper", 5, 0.01, k_l=1)
    own = esad_config(run, config)
    assert (own.preset, own.kind, own.seed, own.epochs) == ("paper", "vector", 5, 7)
    ours = esad_config(Run("odds", "arrhythmia", "esad-recommended", 5), config)
    assert ours.planned_epochs(2) == ours.planned_epochs(10_000) == 7
    assert (own.loss.lambda2, own.optimizer.lr, own.optimizer.name) == (9, 0.5, "sgd")
    varied = Run("odds", "satellite", "esad-recommended", 5, settings=("loss.lambda2=0",))
    assert esad_config(varied, config).loss.lambda2 == 0


def test_every_table_has_the_layers_that_the_paper_gives_it():
    wide, narrow = {"arrhythmia": (128, 64, 32)}, {"thyroid": (32, 16, 4)}
    for name, facts in TABLE_7.items():
        layers = {**wide, **narrow}.get(name, (32, 16, 8))
        run, config = Run("odds", name, "esad-paper", 0), config_of("odds")
        own = network_spec((facts.columns,), esad_config(run, config), source=name)
        assert own.hidden == layers
        assert baseline_settings(run, config).hidden == layers


def test_every_method_has_settings_for_every_suite():
    for suite in SUITES:
        config = config_of(suite, f"methods={list(METHODS)}")
        methods.check_settings(plan_runs(config), config)


def test_baselines_get_scores_of_training_rows_and_unit_images():
    train = np.array([[1, 5], [3, 5]], dtype=np.float32)
    y, truth = np.ones(2, np.int8), np.zeros(1, np.int8)
    vectors = RunData(train, y, np.array([[4, 6]], dtype=np.float32), truth, truth)
    found, test = as_input(vectors)
    np.testing.assert_allclose(found, [[-1, 0], [1, 0]])
    np.testing.assert_allclose(test, [[2, 0]])
    pictures = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    images, _ = as_input(RunData(pictures, y, pictures, truth, truth))
    assert images.shape == (2, 3, 3, 4)
    assert images[1, 2, 0, 1] == np.float32(pictures[1, 0, 1, 2]) / 255


@pytest.mark.data
def test_a_real_data_set_is_read_and_drawn(data_root, monkeypatch, tmp_path):
    monkeypatch.undo()  # the real reader
    run = Run("odds", "cardio", "isolation-forest", 0, 0.01, k_l=1)
    loaded = read_run(run, folder=data_root / "odds", leaking=False)
    assert ((loaded.data.y > 0).sum(), (loaded.data.y < 0).sum()) == (993, 10)
    (outcome,) = run_chunk([run], config=config_of("odds"), folder=data_root / "odds", out=tmp_path)
    assert isinstance(outcome, Result)
    assert outcome.auc_score > 0.9
