"""`esad-med screen`: scores, slide score, heat map and report, streamed and resumable."""

import csv
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openslide
import pandas as pd
import pytest
import tifffile
import torch

from esad_med.base.cases import Case
from esad_med.base.config import dump_yaml
from esad_med.base.errors import ConfigError
from esad_med.base.execution import Place
from esad_med.base.locks import hold_folder
from esad_med.base.runs import (
    JOURNAL,
    Failure,
    Journal,
    no_progress,
    write_csv,
    write_failures,
    write_json,
    write_text,
)
from esad_med.base.timing import RunClock
from esad_med.method.detector import Detector
from pipelines.pathology import config_of
from pipelines.scoring import read_scores
from pipelines.screening import ScreeningSummary, _screen_each, screening_config
from pipelines.screening_slide import ScreenedSlide, SlideScreener
from pipelines.screening_tables import read_earlier
from pipelines.slide_exports import ScreeningConfig
from pipelines.viewing import ScreenedFolder


@pytest.fixture(scope="module")
def screened(trained, composed, tmp_path_factory):
    """All four composed slides screened once, by the command itself."""
    from esad_med.cli import main

    out = tmp_path_factory.mktemp("screened") / "out"
    with pytest.raises(SystemExit) as stop:
        main(["screen", f"{composed}/manifest.csv", "--detector", str(trained), "--out", str(out)])
    assert stop.value.code in (0, None)
    return out


def test_scores_have_a_row_per_tile(screened, trained):
    table = pd.read_csv(screened / "tumor_2" / "scores.csv")
    assert table["case_id"].unique().tolist() == ["tumor_2"]
    assert table["percentile"].between(0, 100).all()
    assert table["truth"].sum() > 0
    fusion = Detector.load(trained).contract.fusion
    expected = (
        fusion.reconstruction_weight * table["reconstruction"] + fusion.norm_weight * table["norm"]
    )
    np.testing.assert_allclose(table["score"], expected, rtol=1e-3, atol=1e-4)


def test_the_slide_score_follows_the_documented_rule(screened):
    table = pd.read_csv(screened / "tumor_2" / "scores.csv")
    result = json.loads((screened / "tumor_2" / "slide.json").read_text())
    top = np.sort(table["score"])[::-1][: max(10, int(np.ceil(0.01 * len(table))))]
    assert result["slide_score"] == pytest.approx(top.mean(), rel=1e-4)
    assert result["maximum"] == pytest.approx(table["score"].max(), rel=1e-4)
    above = (table["score"] > result["threshold"]).sum()
    tile_mm2 = (64 * 1.0 / 1000) ** 2
    assert result["area_above_threshold_mm2"] == pytest.approx(above * tile_mm2, rel=1e-2)
    assert result["tiles"] == len(table)
    assert "not for diagnosis" in result["intended_use"]


def test_the_heat_map_lies_over_the_tissue(screened, composed):
    for name in ("normal_2", "tumor_2"):
        slide = openslide.OpenSlide(composed / f"{name}.tif")
        heat = openslide.OpenSlide(screened / name / "heatmap.tif")
        mpp = [float(image.properties["openslide.mpp-x"]) for image in (slide, heat)]
        width = [
            image.dimensions[0] * scale for image, scale in zip((slide, heat), mpp, strict=True)
        ]
        assert width[0] == pytest.approx(width[1], abs=mpp[1])
        picture = np.asarray(heat.read_region((0, 0), 0, heat.dimensions).convert("RGB"))
        colored = (picture < 250).any(axis=2)
        table = pd.read_csv(screened / name / "scores.csv")
        scale = mpp[0] / mpp[1]
        for x, y in table[["x_level0", "y_level0"]].to_numpy():
            row, column = int((y + 64) * scale), int((x + 64) * scale)
            assert colored[row, column]
        tile_px = 128 * scale
        assert colored.sum() == pytest.approx(len(table) * tile_px**2, rel=0.05)


def test_the_report_stands_alone(screened):
    page = (screened / "tumor_2" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    assert "Content-Security-Policy" in page
    for text in ("tumor_2", "not for diagnosis", "Detector", "median of normals"):
        assert text.lower() in page.lower()


def test_the_index_has_a_row_per_slide_and_the_viewer_knows_its_place(screened):
    page = (screened / "index.html").read_text()
    folder = ScreenedFolder.read(screened)
    assert sorted(folder.slides) == ["normal_1", "normal_2", "tumor_1", "tumor_2"]
    for name, facts in folder.slides.items():
        assert f'src="{name}/thumbnail.jpg"' in page
        assert (screened / name / "thumbnail.jpg").exists()
        assert facts.geometry.size_level0 == (2048, 2048)
        assert (facts.geometry.mpp, facts.geometry.edge_level0) == pytest.approx((0.5, 128))
        assert f"from {facts.heatmap_limits[0]:g} to" in heat_description(screened / name)


def heat_description(folder):
    with tifffile.TiffFile(folder / "heatmap.tif") as tiff:
        return tiff.pages.first.description


def test_slides_csv_can_be_evaluated(screened, run_command, tmp_path):
    with (screened / "slides.csv").open() as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    assert {name: row["truth"] for name, row in rows.items()} == {
        "normal_1": "0",
        "tumor_1": "1",
        "normal_2": "0",
        "tumor_2": "1",
    }
    slides = run_command("evaluate", screened / "slides.csv", "--json")
    assert slides.code == 0, slides.err
    assert json.loads(slides.out)["measures"]["score"]["n_anomalous"] == 2
    tiles = run_command("evaluate", screened, "--out", tmp_path / "e", "--json")
    assert tiles.code == 0, tiles.err
    found = json.loads(tiles.out)
    assert found["resampled_by"] == "patient"
    assert {p.name for p in (tmp_path / "e").iterdir()} >= {"roc.png", "histogram.svg"}
    assert len(pd.read_csv(tmp_path / "e" / "slides.csv")) == 4


def test_a_second_run_keeps_complete_slides(screened, composed, trained, run_command, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(screened, out)
    before = (out / "tumor_2" / "report.html").stat().st_mtime_ns
    (out / "tumor_1" / "slide.json").unlink()
    outcome = run_command("screen", composed / "manifest.csv", "--detector", trained, "--out", out)
    assert outcome.code == 0
    assert (out / "tumor_2" / "report.html").stat().st_mtime_ns == before
    for name in ("tumor_1", "tumor_2"):
        for file in ("scores.csv", "slide.json", "heatmap.tif"):
            assert (out / name / file).read_bytes() == (screened / name / file).read_bytes()


def test_with_every_fast_path_off_the_same_is_found(
    screened, composed, trained, run_command, tmp_path, monkeypatch
):
    monkeypatch.setenv("ESAD_PLAIN", "all")
    slide = composed / "tumor_2.tif"
    outcome = run_command("screen", slide, "--detector", trained, "--out", tmp_path / "s")
    assert outcome.code == 0, outcome.err
    plain = pd.read_csv(tmp_path / "s" / "tumor_2" / "scores.csv").drop(columns=["truth"])
    fast = pd.read_csv(screened / "tumor_2" / "scores.csv").drop(columns=["truth"])
    assert (plain[["x_level0", "y_level0"]] == fast[["x_level0", "y_level0"]]).all(axis=None)
    # numpy computes stains in float64: one gray level in some millionths of the pixels
    np.testing.assert_allclose(plain["score"], fast["score"], rtol=2e-3, atol=2e-3)


def test_a_rougher_precision_is_told_and_not_mixed_with_the_other(
    screened, composed, trained, run_command, tmp_path
):
    out, slides = tmp_path / "s", [composed / f"{name}.tif" for name in ("tumor_2", "normal_2")]
    for slide, precision in zip(slides, ("bfloat16", "float32"), strict=True):
        given = ("--detector", trained, "--out", out, "--precision", precision)
        outcome = run_command("screen", slide, *given)
        assert outcome.code == 0, outcome.err
        found = json.loads((out / slide.stem / "slide.json").read_text())
        assert found["provenance"]["Scored in"] == precision
        assert len(pd.read_csv(out / "slides.csv")) == 1
    rough, exact = (
        pd.read_csv(folder / "tumor_2" / "scores.csv")["score"] for folder in (out, screened)
    )
    assert not rough.equals(exact)
    np.testing.assert_allclose(rough, exact, rtol=0.1, atol=0.1)


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="no 8-bit products on this CPU")
def test_in_8_bits_a_screening_ranks_tiles_as_in_float32(
    screened, composed, trained, run_command, tmp_path
):
    given = ("--detector", trained, "--out", tmp_path / "s", "--precision", "int8")
    outcome = run_command("screen", composed / "tumor_2.tif", *given)
    assert outcome.code == 0, outcome.err
    rough, exact = (
        pd.read_csv(folder / "tumor_2" / "scores.csv") for folder in (tmp_path / "s", screened)
    )
    assert not rough["score"].equals(exact["score"])
    assert rough["score"].corr(exact["score"], method="spearman") > 0.98
    assert "int8" in (tmp_path / "s" / "tumor_2" / "report.html").read_text()


def test_slides_that_come_later_join_the_table(screened, composed, trained, run_command, tmp_path):
    """Day by day into one folder: the tables keep what was found before."""
    out = tmp_path / "days"
    shutil.copytree(screened, out)
    shutil.copy(composed / "normal_1.tif", tmp_path / "later.tif")
    (tmp_path / "bad.svs").write_text("not a slide")
    screen = ("screen", "--detector", trained, "--out", out)
    assert run_command(*screen, tmp_path / "later.tif", tmp_path / "bad.svs").code == 3
    slides = pd.read_csv(out / "slides.csv").set_index("case_id")
    assert slides.index.tolist() == ["normal_1", "tumor_1", "normal_2", "tumor_2", "later"]
    assert slides["slide_score"]["later"] == slides["slide_score"]["normal_1"]
    assert slides["truth"].tolist()[:4] == [0, 1, 0, 1]
    assert run_command(*screen, tmp_path / "later.tif").code == 0
    assert pd.read_csv(out / "failures.csv")["case_id"].tolist() == ["bad"]
    assert len(pd.read_csv(out / "slides.csv")) == 5


def test_what_earlier_runs_set_aside_is_forgotten_for_the_same_slide_only(tmp_path):
    config = ScreeningConfig()
    write_text(tmp_path / "config.yaml", dump_yaml(config))
    write_json(tmp_path / "run.json", {"detector": "d", "precision": "float32"})
    write_csv(tmp_path / "slides.csv", ("case_id",), [])
    lost = [("s", "screen"), ("s_8_16", "read"), ("s_2", "screen"), ("s_2_4_8", "read")]
    failures = [Failure(name, stage, "SlideError", "") for name, stage in lost]
    write_failures(tmp_path / "failures.csv", failures)
    cases, detector = [Case("s", Path("s.tif"))], SimpleNamespace(digest="d")
    assert read_earlier(tmp_path, cases, detector, config, "float32").failures == failures[2:]


def test_results_of_other_settings_are_not_mixed(
    screened, composed, trained, run_command, tmp_path
):
    out = tmp_path / "other"
    shutil.copytree(screened, out)
    finer = ("--set", "tiles.stride_px=32")
    run_command("screen", composed / "normal_2.tif", "--detector", trained, "--out", out, *finer)
    assert pd.read_csv(out / "slides.csv")["case_id"].tolist() == ["normal_2"]
    table = read_scores(out)
    assert set(table["case_id"]) == {"normal_2"}


def test_an_annotated_slide_without_a_label_has_a_truth(composed, trained, run_command, tmp_path):
    out = tmp_path / "out"
    screen = ("screen", composed / "tumor_2.tif", "--annotations", composed)
    assert run_command(*screen, "--detector", trained, "--out", out).code == 0
    assert pd.read_csv(out / "slides.csv")["truth"].tolist() == [1]
    assert json.loads((out / "tumor_2" / "slide.json").read_text())["truth"] == 1


def test_scores_do_not_depend_on_the_other_slides(
    screened, composed, trained, run_command, tmp_path
):
    outcome = run_command(
        "screen", composed / "tumor_2.tif", "--detector", trained, "--out", tmp_path / "alone"
    )
    assert outcome.code == 0
    alone = pd.read_csv(tmp_path / "alone" / "tumor_2" / "scores.csv")
    together = pd.read_csv(screened / "tumor_2" / "scores.csv")
    np.testing.assert_allclose(alone["score"], together["score"], rtol=1e-5)
    assert alone["truth"].isna().all()


def test_the_same_tiles_as_in_training_are_scored(composed, store, trained, run_command, tmp_path):
    """Screening a training slide gives the scores of its stored tiles."""
    scored = run_command("score", store, "--detector", trained, "--out", tmp_path / "s.csv")
    assert scored.code == 0, scored.err
    run_command(
        "screen", composed / "normal_1.tif", "--detector", trained, "--out", tmp_path / "out"
    )
    stored = pd.read_csv(tmp_path / "s.csv").query("case_id == 'normal_1'")
    streamed = pd.read_csv(tmp_path / "out" / "normal_1" / "scores.csv")
    assert stored["sample_id"].tolist() == streamed["sample_id"].tolist()
    np.testing.assert_allclose(stored["score"], streamed["score"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "setting", ["tiles.mpp=0.5", "tiles.size_px=32", "stain.method=none", "stain.method=reinhard"]
)
def test_other_tiles_than_trained_on_are_refused(composed, trained, run_command, tmp_path, setting):
    outcome = run_command(
        "screen",
        composed / "normal_1.tif",
        "--detector",
        trained,
        "--out",
        tmp_path / "out",
        "--set",
        setting,
    )
    assert outcome.code == 4
    assert "this detector expects" in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_finer_stride_is_allowed(trained):
    detector = Detector.load(trained)
    own, _ = config_of(detector.contract.preparation)
    changed = screening_config(detector, None, ["tiles.stride_px=32"])
    assert own.tiles.stride_px == 64
    assert changed.tiles.stride_px == 32


def test_a_worker_that_outlives_its_command_writes_nothing(screened, composed, trained, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    detector = Detector.load(trained)
    with hold_folder(out) as killed:
        pass
    screener = SlideScreener(detector, screening_config(detector, None, []), out, "float32", killed)
    case = Case(case_id="normal_1", path=composed / "normal_1.tif")
    with hold_folder(out) as turn:
        with pytest.raises(ConfigError, match="the run that asked for this has ended"):
            screener.screen((case, ""))
        assert [path.name for path in out.iterdir()] == [".lock"]
        assert replace(screener, turn=turn).screen((case, "")).found["tiles"] > 0


def test_a_finished_slide_is_kept_while_one_before_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.screening.open_executor", lambda *_, **__: ThreadPoolExecutor(2))
    monkeypatch.setattr("esad_med.base.execution.guarded", lambda _: nullcontext())
    numbers = {"slide_score": 1.0, "tiles": 1, "area_above_threshold_mm2": 0.0}
    kept = threading.Event()

    def screen(item):
        case, _ = item
        assert case.case_id == "quick" or kept.wait(30), "the journal waits for the first slide"
        found = {"case_id": case.case_id, "failures": [], "unreadable_tiles": 0, **numbers}
        return ScreenedSlide(found, "key", {"score": 1.0})

    def say(line):  # of a slide that the journal holds
        if "quick" in line and Journal(tmp_path / JOURNAL).is_done("quick", "key"):
            kept.set()

    cases = [Case(case_id=name, path=tmp_path) for name in ("slow", "quick")]
    screener = SimpleNamespace(out=tmp_path, config=ScreeningConfig(), screen=screen)
    summary = ScreeningSummary(tmp_path)
    _screen_each(cases, screener, Place(1), summary, RunClock(), say, no_progress)
    assert [slide["case_id"] for slide in summary.slides] == ["slow", "quick"]


def test_a_bad_slide_is_set_aside(composed, trained, run_command, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(composed / "normal_1.tif", folder / "good.tif")
    (folder / "bad.svs").write_text("not a slide")
    outcome = run_command("screen", folder, "--detector", trained, "--out", tmp_path / "out")
    assert outcome.code == 3
    failures = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert failures["case_id"].tolist() == ["bad"]
    assert pd.read_csv(tmp_path / "out" / "slides.csv")["case_id"].tolist() == ["good"]


@pytest.mark.data
def test_real_slides_are_screened(data_root, trained, run_command, tmp_path):
    """Two scanners and a 20x slide with a single level; OpenSlide opens every heat map."""
    outcome = run_command(
        "screen", data_root / "wsi", "--detector", trained, "--out", tmp_path / "out"
    )
    assert outcome.code == 3  # broken.svs
    assert "Traceback" not in outcome.err
    for name in (
        "cmu-1-small-region",
        "composed_normal_scannerA",
        "composed_normal_scannerB",
        "composed_tumor_scannerA",
        "composed_tumor_scannerB",
    ):
        heat = openslide.OpenSlide(tmp_path / "out" / name / "heatmap.tif")
        assert heat.level_count >= 1
        result = json.loads((tmp_path / "out" / name / "slide.json").read_text())
        assert np.isfinite(result["slide_score"])
