"""Figures of a benchmark: what is drawn are the results; layouts in the plane; latents."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from defusedxml import ElementTree
from matplotlib.figure import Figure
from PIL import Image

from data_prep.natural import LabeledImages
from esad_med.base.config import load_config
from esad_med.base.errors import CaseError, ConfigError, ModelError
from esad_med.method.config import TrainConfig
from esad_med.method.fitting import TrainingData, fit_detector
from esad_med.method.terms import latent_norm
from pipelines.paper import data, embedding, figures
from pipelines.paper.embedding import (
    Embedding,
    choose_run,
    draw_samples,
    groups_of,
    lay_out,
    write_files,
)
from pipelines.paper.figures import (
    GROUPS,
    draw_curves,
    draw_points,
    log_places,
    write_plots,
)
from pipelines.paper.grids import plan_runs
from pipelines.paper.protocols import RunData
from pipelines.paper.runs import Result, Run
from pipelines.paper.settings import BenchmarkConfig
from pipelines.paper.tables import fill_table


def config_of(*settings: str) -> BenchmarkConfig:
    return load_config(BenchmarkConfig, None, ["suite=mnist", *settings])


def results_of(config: BenchmarkConfig) -> list[Result]:
    random = np.random.default_rng(0)
    return [
        Result(run, *random.uniform(0.8, 1, 3), 6000, 60, 980, 9020, 1.0)
        for run in plan_runs(config)
    ]


def check_pair(svg, png, *, least_width: int) -> tuple[bytes, bytes]:
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert b"<dc:date>" not in svg.read_bytes()
    with Image.open(png) as image:
        assert least_width <= image.width <= 3 * least_width
        assert np.asarray(image.convert("RGB")).std() > 10  # something is drawn
    return svg.read_bytes(), png.read_bytes()


# --- Figures 2 and 5


def test_both_sensitivity_figures_are_written_and_repeat_their_bytes(tmp_path):
    config = config_of("tables=[fig2,fig5,table1]", "normal_classes=[0,3]", "lambda2=[0,1]")
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        written = write_plots(tmp_path / name, config, results_of(config))
        assert [p.name for p in written] == ["fig2.svg", "fig2.png", "fig5.svg", "fig5.png"]
        found.append([check_pair(*written[i : i + 2], least_width=1000) for i in (0, 2)])
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


def test_figures_without_results_are_not_written(tmp_path):
    assert write_plots(tmp_path, config_of("tables=[fig2,table2]"), []) == []
    assert list(tmp_path.iterdir()) == []


def test_points_and_bars_are_the_means_and_deviations_of_the_results():
    config = config_of("tables=[fig5]", "methods=[esad-paper]", "lambda2=[10,0,0.1]")
    outcomes = results_of(config)
    axes = Figure().add_subplot()
    draw_curves(axes, fill_table("fig5", config, outcomes))
    names = {"score": "auc_score", "reconstruction": "auc_reconstruction", "norm": "auc_norm"}
    bars = [container.lines[2][0] for container in axes.containers]
    lines = {line.get_label(): line for line in axes.lines if line.get_label() in names}
    assert len(bars) == len(lines) == 3
    for (label, line), bar in zip(lines.items(), bars, strict=True):
        x, y = line.get_data()
        assert np.isnan(y[1])  # no line from 0 to the others
        assert (np.diff(np.delete(x, 1)) > 0).all()
        for place, value in enumerate((0.0, 0.1, 10.0)):
            own = [
                100 * getattr(outcome, names[label])
                for outcome in outcomes
                if outcome.run.variant == f"lambda2={value:g}"
            ]
            assert len(own) == 90
            assert np.delete(y, 1)[place] == pytest.approx(np.mean(own))
            low, high = bar.get_segments()[place][:, 1]
            assert (high - low) / 2 == pytest.approx(np.std(own, ddof=1))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "0.1", "10"]
    assert axes.get_xscale() == "log"


def test_a_single_run_has_a_point_and_no_bar():
    config = config_of(
        *("tables=[fig2]", "methods=[esad-paper]", "normal_classes=[0]", "outlier_classes=one")
    )
    axes = Figure().add_subplot()
    draw_curves(axes, fill_table("fig2", config, results_of(config)))
    segments = np.array(axes.containers[0].lines[2][0].get_segments())
    assert np.ptp(segments[:, :, 1], axis=1).max() == 0


def test_no_bar_is_cut_off_in_any_panel(tmp_path, monkeypatch):
    config = config_of("tables=[fig2]", "normal_classes=[0]", "lambda1=[1,2]")
    spread = [
        replace(own, auc_norm=0.1 if own.run.method == "esad-recommended" else 0.9)
        for own in results_of(config)
    ]
    kept = []
    monkeypatch.setattr(figures, "save_both", lambda path, figure: kept.append(figure) or [])
    write_plots(tmp_path, config, spread)
    paper, recommended = kept[0].axes
    assert paper.get_ylim() == recommended.get_ylim()
    assert recommended.get_ylim()[0] < 10


@pytest.mark.parametrize(("outliers", "label"), [("one", "one run"), ("all", "mean ± sd, n = 9")])
def test_the_axis_says_of_how_many_runs(tmp_path, monkeypatch, outliers, label):
    config = config_of(
        *("tables=[fig2]", "normal_classes=[0]", "lambda1=[1]", f"outlier_classes={outliers}")
    )
    kept = []
    monkeypatch.setattr(figures, "save_both", lambda path, figure: kept.append(figure) or [])
    write_plots(tmp_path, config, results_of(config))
    assert kept[0].axes[0].get_ylabel() == f"AUC in %, {label}"


def test_zero_stands_left_of_all_others_on_a_log_axis():
    np.testing.assert_allclose(log_places(np.array([0, 0.01, 1])), [0.001, 0.01, 1])
    np.testing.assert_allclose(log_places(np.array([0.5, 2])), [0.5, 2])
    assert log_places(np.array([0.0])) > 0


# --- Figures 1c and 3


def test_the_run_to_show_has_labels_and_is_esad_as_recommended_if_it_can():
    plain = Run("mnist", "mnist", "esad-recommended", 0)
    paper = Run("mnist", "mnist", "esad-paper", 0, 0.05, k_l=1)
    variant = Run("mnist", "mnist", "esad-recommended", 0, 0.05, k_l=1, variant="lambda1=1")
    first, second = (Run("mnist", "mnist", "esad-recommended", seed, 0.05) for seed in (1, 0))
    rival = Run("mnist", "mnist", "deep-sad", 0, 0.05, k_l=1)
    assert choose_run([plain, rival, paper, variant, first, second]) == first
    assert choose_run([paper, variant]) == variant
    assert choose_run([rival, paper]) == paper
    with pytest.raises(ConfigError, match="none of the 2 runs is ESAD's with labeled outliers"):
        choose_run([plain, rival])


def test_groups_are_told_by_truth_and_class():
    images = np.zeros((5, 4, 4, 1), np.uint8)
    classes = np.array([0, 1, 2, 1, 0])
    own = RunData(images, np.ones(5, np.int8), images, (classes > 0).astype(np.int8), classes)
    run = Run("mnist", "mnist", "esad-paper", 0, 0.05, k_l=1, normal="0", outlier_classes=("1",))
    labeled, other = "labeled outlier class", "other anomalies"
    assert groups_of(own, run).tolist() == ["normal", labeled, other, labeled, "normal"]
    unnamed = Run("camelyon16", "camelyon16", "esad-paper", 0, 0.05)
    assert set(groups_of(own, unnamed)) == {"normal", labeled} < set(GROUPS)


def test_samples_are_drawn_evenly_by_seed_and_once():
    groups = np.repeat(list(GROUPS), [900, 50, 300])
    index = draw_samples(groups, seed=0, most=300)
    names, counts = np.unique(groups[index], return_counts=True)
    drawn = dict(zip(names, counts, strict=True))
    assert drawn == {"other anomalies": 100, "normal": 50, "labeled outlier class": 100}
    assert (np.diff(index) > 0).all()
    np.testing.assert_array_equal(draw_samples(groups, seed=0, most=300), index)
    assert not np.array_equal(draw_samples(groups, seed=1, most=300), index)


def test_two_clusters_stay_apart_and_the_layout_repeats():
    random = np.random.default_rng(0)
    codes = random.normal(size=(60, 20)).astype(np.float32)
    codes[30:] += 20
    first = lay_out(codes, seed=3)
    np.testing.assert_array_equal(lay_out(codes, seed=3), first)
    centers = first[:30].mean(0), first[30:].mean(0)
    nearer = [np.argmin([np.linalg.norm(p - c) for c in centers]) for p in first]
    assert nearer == [0] * 30 + [1] * 30


@pytest.mark.parametrize("shape", [(5, 3), (12, 1), (7, 8)])
def test_few_samples_and_narrow_codes_are_laid_out(shape):
    codes = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for own in (codes, np.zeros(shape, np.float32)):  # a collapsed encoder too
        layout = lay_out(own, seed=0)
        assert layout.shape == (shape[0], 2)
        assert np.isfinite(layout).all()


def test_too_few_samples_are_refused():
    with pytest.raises(CaseError, match="found 4 test samples, expected at least 5"):
        lay_out(np.eye(4, dtype=np.float32), seed=0)


def test_the_picture_and_the_table_hold_every_sample(tmp_path):
    random = np.random.default_rng(0)
    index, classes = np.arange(30) * 7, np.arange(30) % 10
    groups = np.array([list(GROUPS)[c % 3] for c in classes])
    layouts = {name: random.normal(size=(30, 2)) for name in ("deep_sad", "z", "z_hat")}
    found = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        svg, png, table = write_files(
            folder, Embedding(index, classes, groups, layouts), caption="$a run"
        )
        found.append((*check_pair(svg, png, least_width=1500), table.read_bytes()))
    assert found[0] == found[1]
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["sample"]) for row in rows] == index.tolist()
    assert [row["group"] for row in rows] == groups.tolist()
    for name, layout in layouts.items():
        written = [[float(row[f"{name}_{axis}"]) for axis in "xy"] for row in rows]
        np.testing.assert_allclose(written, layout, atol=1e-4)


def test_points_are_drawn_where_they_lie_in_their_groups_color():
    points = np.random.default_rng(0).normal(size=(9, 2))
    groups = np.repeat(list(GROUPS), [4, 3, 2])
    axes = Figure().add_subplot()
    draw_points(axes, points, groups)
    for start, drawn in zip((0, 4, 7), axes.collections, strict=True):
        count = len(drawn.get_offsets())
        np.testing.assert_allclose(drawn.get_offsets(), points[start : start + count])
        assert drawn.get_label() == f"{groups[start]} (n = {count})"
    assert len({tuple(drawn.get_facecolor()[0]) for drawn in axes.collections}) == 3


def test_latents_are_those_of_the_first_member_whatever_the_batch():
    samples = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    y = np.repeat(np.array([1, -1], np.int8), [50, 10])
    settings = ["kind=vector", "network.hidden=[8,4]", "members=2", "epochs=1", "least_steps=0"]
    settings += ["network.distance=none"]  # the norm term is that of z_hat itself
    detector = fit_detector(TrainingData(samples, y), load_config(TrainConfig, None, settings))
    z, z_hat = detector.latents(samples)
    assert z.shape == z_hat.shape == (60, 4)
    assert z.dtype == z_hat.dtype == np.float32
    assert not np.array_equal(z, z_hat)
    spec = detector.contract.terms
    norm = latent_norm(torch.from_numpy(z_hat), norm=spec.norm, pool=spec.pool)
    np.testing.assert_allclose(norm, detector.terms(samples).norm[0], rtol=1e-4)
    parts = detector.latents(samples, batch_size=7)
    np.testing.assert_allclose(np.stack(parts), np.stack([z, z_hat]), rtol=1e-4, atol=1e-5)
    assert detector.latents(samples[:0])[0].shape == (0, 4)
    with pytest.raises(ModelError, match="this detector expects"):
        detector.latents(samples[:, :3])


# --- the command


def test_odds_has_no_pictures_to_show(run_command, tmp_path):
    outcome = run_command("benchmark", "odds", "--tsne", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "odds holds tables" in outcome.err
    assert not (tmp_path / "out").exists()


def compose_images(folder) -> LabeledImages:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(10, dtype=np.int8), 24)
    images = random.integers(0, 60, (240, 28, 28, 1)).astype(np.uint8)
    images[np.arange(240), 2 * labels] += 150
    names = tuple("0123456789")
    return LabeledImages(images, labels, images[::4], labels[::4], names, "bars")


def test_the_command_trains_lays_out_and_says_what_it_shows(run_command, tmp_path, monkeypatch):
    monkeypatch.setitem(data._READERS, "mnist", compose_images)
    monkeypatch.setattr(embedding, "MOST_SAMPLES", 18)
    data._images.cache_clear()
    shapes = {}
    learn = embedding.learn_codes

    def learn_and_note(*arguments):
        codes = learn(*arguments)
        shapes.update({name: code.shape for name, code in codes.items()})
        assert all(code.dtype == np.float32 for code in codes.values())
        return codes

    monkeypatch.setattr(embedding, "learn_codes", learn_and_note)
    outcome = run_command(
        *("benchmark", "mnist", "--data", tmp_path, "--out", tmp_path / "out", "--tsne", "--json"),
        *("--table", "fig2", "--methods", "esad-paper", "--width", 1 / 16, "--epochs", 1),
        *("--members", 1, "--set", "normal_classes=[0]", "--set", "outlier_classes=one"),
        *("--set", "lambda1=[1]", "--set", "esad.least_steps=0"),
    )
    data._images.cache_clear()
    assert outcome.code == 0, outcome.err
    names = ["fig2.svg", "fig2.png", "tsne.svg", "tsne.png", "tsne.csv"]
    assert json.loads(outcome.out)["figures"] == names
    with (tmp_path / "out" / "tsne.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 6
    assert {row["group"]: row["class"] for row in rows if row["class"] in "01"} == {
        "normal": "0",
        "labeled outlier class": "1",
    }
    assert shapes["deep_sad"] == (len(rows), 32)
    assert shapes["z"] == shapes["z_hat"]
    assert "t-SNE of mnist/esad-paper/lambda1=1/normal=0/outliers=1" in outcome.err
