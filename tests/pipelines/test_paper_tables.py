"""Tables of a benchmark: means, deviations, differences and paired comparisons by hand."""

import csv
import math

import pytest

from esad_med.base.config import load_config
from pipelines.paper.grids import ABLATIONS, plan_runs, rows
from pipelines.paper.notes import below_baselines, caveats, paired_differences
from pipelines.paper.runs import FailedRun, Outcome, Result, Run, outcome_facts, read_outcome
from pipelines.paper.settings import BenchmarkConfig
from pipelines.paper.tables import TITLES, fill_table, mean_sd, write_tables


def config_of(suite: str, *settings: str) -> BenchmarkConfig:
    return load_config(BenchmarkConfig, None, [f"suite={suite}", *settings])


def cardio(method: str, *aucs: float, **measured: float) -> list[Outcome]:
    """A result for each seed; a failure for NaN."""
    runs = [Run("odds", "cardio", method, seed, 0.01, k_l=1) for seed in range(len(aucs))]
    return [
        FailedRun(run, "ModelError", "diverged")
        if math.isnan(auc)
        else Result(
            run,
            auc,
            measured.get("reconstruction"),
            measured.get("norm"),
            int(measured.get("normals", 993)),
            10,
            662,
            70,
            1.0,
        )
        for run, auc in zip(runs, aucs, strict=True)
    ]


def results(method: str, *aucs: float) -> list[Result]:
    return [outcome for outcome in cardio(method, *aucs) if isinstance(outcome, Result)]


def mnist(method: str, gamma_l: float, normal: int, outlier: int | None, auc: float) -> Result:
    classes = () if outlier is None else (str(outlier),)
    run = Run("mnist", "mnist", method, 0, gamma_l, 0.0, len(classes), str(normal), classes)
    return Result(run, auc, None, None, 6000, 60, 980, 9020, 1.0, "MNIST")


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_means_and_deviations_are_the_usual_ones_in_percent():
    assert mean_sd([0.9, 0.92, 0.97]) == (pytest.approx(93), pytest.approx(math.sqrt(13)))
    assert mean_sd([0.5]) == (50.0, None)
    assert math.isnan(mean_sd([])[0])


def test_a_row_shows_value_paper_and_difference_and_marks_the_best(tmp_path):
    outcomes = [
        *cardio("esad-recommended", 0.98, 0.99, reconstruction=0.9, norm=0.95),
        *cardio("deep-sad", 0.97, 0.96),
        *cardio("oc-svm", 0.9849),
    ]
    config = config_of("odds", "data_sets=[cardio]", "tables=[table4]")
    text = write_tables(tmp_path, config, outcomes)["table4"]
    assert (tmp_path / "table4.md").read_text() == text
    assert lines_of(text, "| data | ESAD")[0] == (
        "| data | ESAD (recommended) | OC-SVM | Deep SAD |"
    )
    assert lines_of(text, "| cardio | **") == [
        "| cardio | **98.5 ± 0.7** (2); paper 98.8 ± 0.5, -0.3 | **98.5** (1) "
        "| 96.5 ± 0.7 (2); paper 95.0 ± 1.6, +1.5 |"
    ]
    assert (
        "| cardio | ESAD (recommended) | 98.5 ± 0.7 | 90.0 ± 0.0 | 95.0 ± 0.0 |"
        in text.splitlines()
    )
    with (tmp_path / "table4.csv").open() as file:
        ours, _, sad = csv.DictReader(file)
    assert (ours["mean"], ours["n"], ours["norm_mean"]) == ("98.5000", "2", "95.0000")
    assert (sad["published_mean"], sad["difference"], sad["norm_mean"]) == ("95.0000", "1.5000", "")


def test_failed_runs_are_counted_not_averaged(tmp_path):
    nan = math.nan
    outcomes = [*cardio("esad-paper", 0.9, nan, nan), *cardio("deep-sad", nan, nan)]
    config = config_of("odds", "tables=[table4]")
    text = write_tables(tmp_path, config, outcomes)["table4"]
    assert "**90.0** (1, 2 failed); paper 98.8 ± 0.5, -8.8" in text
    assert "| (0, 2 failed); paper 95.0 ± 1.6 |" in text
    assert "4 of 5 runs failed" in text


def test_a_table_without_outcomes_is_not_written(tmp_path):
    assert set(write_tables(tmp_path, config_of("odds"), cardio("cae", 0.9))) == {"table4"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table4.csv", "table4.md"]


def test_the_whole_method_is_the_last_row_of_table_5():
    config = config_of("odds", "tables=[table5]", "methods=[esad-paper]", "seeds=[0]")
    outcomes = [Result(run, 0.9, 0.8, 0.7, 9, 1, 5, 5, 1.0) for run in plan_runs(config)]
    cells = fill_table("table5", config, [*outcomes, *cardio("deep-sad", 0.9)])
    assert [cell.row.variant for cell in cells if cell.row.data == "satellite"] == list(ABLATIONS)
    assert {(cell.method, len(cell.results)) for cell in cells} == {("esad-paper", 1)}
    last = [cell.published.mean for cell in cells if not cell.row.variant and cell.published]
    assert sorted(last) == [92.5, 98.8]
    first = [cell.published.mean for cell in cells if cell.row.variant == "no second encoder"]
    assert sorted(first) == [87.9, 96.5]


def test_a_run_without_labels_stands_in_every_row_it_serves():
    outcomes = [mnist("cae", 0.0, 3, None, 0.9), mnist("deep-sad", 0.05, 3, 4, 0.8)]
    found = fill_table("table1", config_of("mnist"), outcomes)
    assert [cell.row.gamma_l for cell in found if cell.method == "cae"] == [0, 0.01, 0.05, 0.1, 0.2]
    assert [cell.row.gamma_l for cell in found if cell.method == "deep-sad"] == [0.05]
    full = fill_table("table2", config_of("mnist"), [mnist("cae", 0.0, 3, None, 0.9)])
    assert [cell.row.label for cell in full] == ["unsupervised"]


def test_the_papers_values_stand_beside_every_setting():
    own = {"gamma_l": 0.05, "normal": "3"}
    run = Run("mnist", "mnist", "esad-paper", 0, k_l=1, outlier_classes=("4",), **own)
    result = Result(run, 0.9, 0.8, 0.7, 9, 1, 5, 5, 1.0)
    assert published_of("table1", result) == [(99.4, 0.3)]
    polluted = Run("mnist", "mnist", "deep-sad", 0, gamma_p=0.1, k_l=1, **own)
    assert published_of("table8", Result(polluted, 0.9, None, None, 9, 1, 5, 5, 1.0)) == [
        (91.2, 4.9)
    ]
    many = Run("mnist", "mnist", "supervised", 0, gamma_p=0.1, k_l=5, **own)
    assert published_of("table9", Result(many, 0.9, None, None, 9, 1, 5, 5, 1.0)) == [(96.9, 1.7)]
    full = Run("mnist", "mnist", "esad-paper", 0, 0.2, k_l=1, normal="3", outlier_classes=("4",))
    assert published_of("table2", Result(full, 0.9, 0.8, 0.7, 9, 1, 5, 5, 1.0)) == [(99.6, 0.3)]
    assert published_of("table2", mnist("cae", 0, 3, None, 0.9)) == [(92.9, 5.7)]
    assert published_of("table2", mnist("esad-paper", 0, 3, None, 0.9)) == [(98.5, 1.3)]


def published_of(table, result) -> list[tuple[float, float | None]]:
    cells = fill_table(table, config_of("mnist"), [result])
    return [(cell.published.mean, cell.published.sd) for cell in cells if cell.published]


# --- notes


def test_pairs_are_of_one_seed_and_class_and_unlabeled_ones_of_all():
    ours = [mnist("esad-recommended", 0.05, 3, 4, 0.9), mnist("esad-recommended", 0.05, 3, 5, 0.8)]
    labeled = [mnist("deep-sad", 0.05, 3, 5, 0.7), mnist("deep-sad", 0.05, 4, 5, 0.1)]
    assert paired_differences(ours, labeled) == [pytest.approx(10)]
    assert paired_differences(ours, [mnist("cae", 0.0, 3, None, 0.75)]) == [pytest.approx(10)]


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        # differences -1, -3: mean -2, standard error 1
        ((0.91, 0.93), "below Deep SAD on cardio by 2.0 ± 1.0 (2 pairs) (1 comparisons)"),
        # differences 0, -2: mean -1 is not beyond its standard error 1
        ((0.90, 0.92), "below none (1 comparisons)"),
        ((0.80, 0.99), "below none (1 comparisons)"),
    ],
)
def test_below_a_baseline_means_beyond_one_standard_error(theirs, said):
    (row, *_) = rows("table4", config_of("odds", "data_sets=[cardio]"))
    aucs = {"esad-recommended": (0.9, 0.9), "deep-sad": theirs}
    (line,) = below_baselines({(row, name): results(name, *own) for name, own in aucs.items()})
    assert said in line


def test_a_single_pair_is_no_comparison():
    (row, *_) = rows("table4", config_of("odds", "data_sets=[cardio]"))
    one = results("cae", 0.99)
    assert list(below_baselines({(row, "esad-recommended"): one, (row, "cae"): one})) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], "γ and ν of OC-SVM and SSAD are fixed"),
        (["unfair_selection=true"], "UNFAIR"),
        (["leaking=true"], "LEAKING"),
        (["epochs=7", "members=2"], "Epochs of every method: 7"),
        (["baselines.kernel_rows=992"], "trained on 992 rows, drawn at random, of cardio"),
        (["esad.loss.lambda1=2"], "Settings changed for esad"),
    ],
)
def test_what_differs_from_the_paper_is_said(settings, said):
    found = results("oc-svm", 0.9)
    assert said in " ".join(caveats(config_of("odds", *settings), found, 0))
    if settings:
        assert said not in " ".join(caveats(config_of("odds"), found, 0))


def test_outcomes_survive_the_journal():
    run = Run("mnist", "mnist", "esad-paper", 0, 0.05, 0.1, 2, "3", ("4", "5"), "x", ("a.b=1",))
    result = Result(run, 0.9, 0.8, None, 9, 1, 5, 5, 1.0, "MNIST")
    for outcome in (result, FailedRun(run, "ModelError", "diverged")):
        assert read_outcome(outcome_facts(outcome)) == outcome


def test_every_table_has_its_title():
    for suite in ("odds", "mnist", "fmnist", "cifar10"):
        assert set(config_of(suite).tables) <= set(TITLES)


def test_the_papers_values_stand_beside_its_own_ratio_only():
    run = Run("odds", "cardio", "deep-sad", 0, 0.05, k_l=1)
    more = Result(run, 0.9, None, None, 9, 1, 5, 5, 1.0)
    config = config_of("odds", "tables=[table4]", "gamma_l=[0.01, 0.05]")
    cells = fill_table("table4", config, [*cardio("deep-sad", 0.9), more])
    assert [(cell.row.gamma_l, cell.published is None) for cell in cells] == [
        (0.01, False),
        (0.05, True),
    ]


def test_quoted_methods_stand_below_their_table_only(tmp_path):
    found = write_tables(tmp_path, config_of("mnist"), [mnist("cae", 0.0, 3, None, 0.9)])
    line = "Not run again, quoted by the paper for mnist: AnoGAN 93.7"
    assert (line in found["table2"], line in found["table8"]) == (True, False)
