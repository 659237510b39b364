"""`esad-med tile`: what a store holds, that it is the same twice, and what is set aside."""

import csv
import json
import os
import pickle
import signal
from pathlib import Path

import h5py
import numpy as np
import openslide
import pytest
from PIL import Image

from esad_med.base.config import load_config
from esad_med.base.errors import StoreError
from esad_med.base.store import SampleStore
from pipelines.pathology import PathologyConfig, find_cases, load_target
from pipelines.tiling import tile_slides
from pipelines.tiling_slide import SlideTiler


def tile(run_command, slides, out, *options):
    outcome = run_command("tile", slides, "--out", out, *options)
    assert outcome.code == 0, outcome.err
    return SampleStore(out)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"  # holds times
    }


def test_paths_of_cases_hold_for_workers_elsewhere(composed, monkeypatch):
    monkeypatch.chdir(composed)
    here = Path()
    for paths, outlines in (([here], here), ([Path("manifest.csv")], None)):
        cases = find_cases(paths, mpp=None, annotations=outlines)
        assert [case.path.is_absolute() for case in cases] == 4 * [True]
        annotations = [case.annotation for case in cases if case.annotation]
        assert [path.is_absolute() for path in annotations] == 2 * [True]


def test_a_folder_of_outlines_is_listed_once_for_all_slides(composed, monkeypatch):
    listed, iterdir = [], Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: listed.append(self) or iterdir(self))
    cases = find_cases([composed / "tumor_1.tif"], mpp=None, annotations=composed)
    once = listed.count(composed)
    listed.clear()
    find_cases([composed / f"tumor_{n}.tif" for n in (1, 2)], mpp=None, annotations=composed)
    assert cases[0].annotation == composed / "tumor_1.xml"
    assert listed.count(composed) == once


def test_a_second_run_gives_equal_bytes(run_command, composed, tmp_path):
    options = ("--png", "--hdf5", "--set", "labels.truth_threshold=0.4")
    first = tile(run_command, composed / "manifest.csv", tmp_path / "a", *options)
    tile(run_command, composed / "manifest.csv", tmp_path / "b", *options)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")

    rows = first.rows
    assert rows["case_id"].unique().tolist() == ["normal_1", "tumor_1", "normal_2", "tumor_2"]
    assert rows["patient_id"].unique().tolist() == ["p0", "p1", "p2", "p3"]
    tumor = rows[rows["truth"] == 1]
    assert set(tumor["case_id"]) == {"tumor_1", "tumor_2"}
    assert (tumor.loc[tumor["split"] == "train", "semi_label"] == -1).all()
    assert (rows.loc[rows["split"] == "test", "semi_label"] == 1).all()
    assert (tumor["tumor_fraction"] >= 0.4).all()

    row = rows.iloc[len(rows) // 2]
    png = tmp_path / "a" / "tiles" / row["case_id"] / f"{row['x_level0']}_{row['y_level0']}.png"
    np.testing.assert_array_equal(np.asarray(Image.open(png)), first.samples[len(rows) // 2])
    with h5py.File(tmp_path / "a" / "coordinates" / "tumor_2.h5") as file:
        own = rows[rows["case_id"] == "tumor_2"]
        np.testing.assert_array_equal(file["coords"][:], own[["x_level0", "y_level0"]])
        assert file["coords"].attrs["patch_size_level0"] == 128
    with Image.open(tmp_path / "a" / "quality" / "tumor_2.png") as picture:
        assert picture.width > 800


def test_unnormalized_tiles_are_openslides_pixels(run_command, composed, tmp_path):
    store = tile(run_command, composed / "tumor_1.tif", tmp_path / "s", "--stain", "none")
    slide = openslide.OpenSlide(composed / "tumor_1.tif")
    for index in range(0, len(store), 7):
        x, y = store.rows.loc[index, ["x_level0", "y_level0"]]
        expected = slide.read_region((int(x), int(y)), 1, (64, 64)).convert("RGB")
        np.testing.assert_array_equal(store.samples[index], np.asarray(expected))
    assert store.contract["slides"][0]["mpp"] == pytest.approx(1.0, abs=1e-3)
    assert store.rows["truth"].isna().all()


def test_a_finished_store_is_kept_and_another_refused(run_command, composed, tmp_path):
    out = tmp_path / "s"
    tile(run_command, composed / "normal_1.tif", out)
    again = run_command("tile", composed / "normal_1.tif", "--out", out)
    assert again.code == 0
    assert "complete already" in again.out
    other = run_command("tile", composed / "normal_1.tif", "--out", out, "--stain", "none")
    assert other.code == 4
    assert "--overwrite" in other.err
    replaced = run_command(
        "tile", composed / "normal_1.tif", "--out", out, "--stain", "none", "--overwrite"
    )
    assert replaced.code == 0


def test_a_dry_run_counts_the_same_tiles_and_writes_nothing(run_command, composed, tmp_path):
    dry = run_command("tile", composed / "manifest.csv", "--dry-run", "--json")
    assert dry.code == 0
    store = tile(run_command, composed / "manifest.csv", tmp_path / "s")
    assert json.loads(dry.out)["tiles"] == len(store)
    wet = {slide["case_id"]: slide for slide in store.contract["slides"]}
    assert {slide["case_id"]: slide for slide in json.loads(dry.out)["slides"]} == wet


def test_overlapping_tiles_and_tissue_share(run_command, composed, tmp_path):
    whole = tile(run_command, composed / "normal_1.tif", tmp_path / "a")
    half = tile(run_command, composed / "normal_1.tif", tmp_path / "b", "--stride", 32)
    strict = tile(run_command, composed / "normal_1.tif", tmp_path / "c", "--min-tissue", 0.99)
    assert len(half) > 3 * len(whole)
    assert len(strict) < len(whole)
    assert strict.rows["tissue_fraction"].min() >= 0.99
    places = set(map(tuple, half.rows[["x_level0", "y_level0"]].to_numpy()))
    assert set(map(tuple, whole.rows[["x_level0", "y_level0"]].to_numpy())) <= places


@pytest.mark.parametrize("stain", ["staintools", "macenko", "reinhard"])
def test_every_stain_method_gives_a_store(run_command, composed, tmp_path, stain):
    store = tile(run_command, composed / "tumor_1.tif", tmp_path / "s", "--stain", stain)
    plain = tile(run_command, composed / "tumor_1.tif", tmp_path / "p", "--stain", "none")
    assert store.contract["preparation"]["stain"]["method"] == stain
    assert np.abs(store.samples.astype(int) - plain.samples).mean() > 1


def test_the_target_of_a_store_can_be_used_again(run_command, composed, tmp_path):
    picture = tmp_path / "target.png"
    slide = openslide.OpenSlide(composed / "tumor_2.tif")
    slide.read_region((768, 768), 0, (512, 512)).convert("RGB").save(picture)
    first = tile(run_command, composed / "normal_1.tif", tmp_path / "a", "--target", picture)
    again = tile(run_command, composed / "normal_1.tif", tmp_path / "b", "--target", tmp_path / "a")
    np.testing.assert_array_equal(first.samples, again.samples)
    assert first.contract["preparation"]["stain_target"]["name"] == "target.png"


def test_bad_slides_are_set_aside_and_the_others_go_on(run_command, composed, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "good.tif").write_bytes((composed / "normal_1.tif").read_bytes())
    (folder / "text.tif").write_text("not a slide")
    (folder / "short.tif").write_bytes((composed / "normal_1.tif").read_bytes()[:5000])
    outcome = run_command("tile", folder, "--out", tmp_path / "store")
    assert outcome.code == 3
    store = SampleStore(tmp_path / "store")
    assert store.rows["case_id"].unique().tolist() == ["good"]
    with (tmp_path / "store" / "failures.csv").open() as file:
        failures = list(csv.DictReader(file))
    assert {f["case_id"] for f in failures} == {"text", "short"}
    assert {f["error"] for f in failures} == {"SlideError"}
    assert "Traceback" not in outcome.err


def test_when_every_slide_fails_there_is_no_store(run_command, tmp_path):
    (tmp_path / "text.svs").write_text("not a slide")
    outcome = run_command("tile", tmp_path / "text.svs", "--out", tmp_path / "store")
    assert outcome.code == 3
    assert (tmp_path / "store" / "failures.csv").exists()
    with pytest.raises(StoreError):
        SampleStore(tmp_path / "store")


def test_tumor_in_a_slide_called_normal_is_refused(run_command, composed, tmp_path):
    manifest = tmp_path / "m.csv"
    manifest.write_text(
        f"path,label,annotation\n{composed}/tumor_1.tif,normal,{composed}/tumor_1.xml\n"
    )
    outcome = run_command("tile", manifest, "--dry-run")
    assert outcome.code == 3
    assert "labels the case normal" in outcome.err


def test_annotations_are_found_by_name(run_command, composed, tmp_path):
    store = tile(run_command, composed / "tumor_1.tif", tmp_path / "s", "--annotations", composed)
    assert store.rows["truth"].sum() > 0
    assert store.rows["truth"].notna().all()


@pytest.mark.data
def test_real_slides_become_tiles(run_command, data_root, tmp_path):
    outcome = run_command(
        "tile",
        data_root / "wsi",
        "--annotations",
        data_root / "wsi" / "annotations",
        "--out",
        tmp_path / "store",
    )
    assert outcome.code == 3  # broken.svs
    store = SampleStore(tmp_path / "store")
    rows = store.rows
    with (data_root / "wsi" / "composed_cells.csv").open() as file:
        cells = {
            (cell["slide"].removesuffix(".tif"), int(cell["x"]), int(cell["y"])): cell["label"]
            for cell in csv.DictReader(file)
        }
    tumor = rows[rows["case_id"].str.contains("composed_tumor")]
    assert len(tumor) == sum("tumor" in key[0] for key in cells)
    for row in tumor.itertuples():
        assert int(cells[row.case_id, row.x_level0, row.y_level0]) == row.truth
    assert (rows["case_id"] == "cmu-1-small-region").sum() > 100


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_write_the_bytes_of_this_process(run_command, composed, tmp_path, workers):
    pytest.importorskip("distributed")
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("normal_1", "tumor_1", "tumor_2"):
        (folder / f"{name}.tif").write_bytes((composed / f"{name}.tif").read_bytes())
    (folder / "short.tif").write_bytes((composed / "normal_1.tif").read_bytes()[:5000])
    (folder / "torn.tif").write_bytes(tear_tiles((composed / "normal_2.tif").read_bytes()))
    alone = run_command("tile", folder, "--out", tmp_path / "a", "--png", "--hdf5")
    options = ("--png", "--hdf5", "--workers", workers)
    shared = run_command("tile", folder, "--out", tmp_path / "b", *options)
    assert alone.code == shared.code == 3
    assert shared.err == alone.err
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    rows = SampleStore(tmp_path / "b").rows
    with (tmp_path / "b" / "failures.csv").open() as file:
        lost = {failure["case_id"].split("_")[0] for failure in csv.DictReader(file)}
    assert lost == {"short", "torn"}
    assert rows["case_id"].unique().tolist() == ["normal_1", "torn", "tumor_1", "tumor_2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "slides"]


def test_what_other_limits_set_aside_is_tried_again(composed, tmp_path):
    cases = find_cases([composed / "manifest.csv"], mpp=None, annotations=None)
    target = load_target(None, PathologyConfig().stain)

    def stop(line):
        raise KeyboardInterrupt

    low = load_config(PathologyConfig, None, ["limits.slide_gigapixels=0.001"])
    with pytest.raises(KeyboardInterrupt):
        tile_slides(cases, tmp_path / "s", low, target=target, say=stop)
    assert (tmp_path / ".s.unfinished" / "journal.jsonl").exists()
    found = tile_slides(cases, tmp_path / "s", PathologyConfig(), target=target, say=str)
    assert (len(found.slides), found.failures) == (4, [])


def test_no_run_takes_up_the_part_of_another(composed, tmp_path):
    (case, *_) = find_cases([composed], mpp=None, annotations=None)
    target = load_target(None, PathologyConfig().stain)
    one, other = (
        SlideTiler(PathologyConfig(), target, tmp_path, png=False, coordinates=False)
        for _ in range(2)
    )
    assert pickle.loads(pickle.dumps(one)).part_path(case) == one.part_path(case)
    assert one.part_path(case) != other.part_path(case)


def tear_tiles(data):
    """The same slide with some compressed tiles of level 1 overwritten."""
    start, length = len(data) * 8 // 10, len(data) // 50
    return data[:start] + bytes(length) + data[start + length :]


class FragileTiler(SlideTiler):
    """A library that crashes at the end of one slide."""

    def tile_part(self, case):
        tiled = super().tile_part(case)
        if case.case_id == "tumor_1":
            os.kill(os.getpid(), signal.SIGKILL)
        return tiled


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_costs_its_slide_alone(
    run_command, composed, tmp_path, monkeypatch, workers
):
    pytest.importorskip("distributed")
    monkeypatch.setattr("pipelines.tiling.SlideTiler", FragileTiler)
    options = ("--out", tmp_path / "s", "--png", "--hdf5", "--workers", workers)
    outcome = run_command("tile", composed / "manifest.csv", *options)
    assert outcome.code == 3
    rows = SampleStore(tmp_path / "s").rows
    assert rows["case_id"].unique().tolist() == ["normal_1", "normal_2", "tumor_2"]
    with (tmp_path / "s" / "failures.csv").open() as file:
        (failure,) = csv.DictReader(file)
    assert failure["case_id"] == "tumor_1"
    assert "its process died" in failure["message"]
    assert [name for name in files_of(tmp_path / "s") if "tumor_1" in name or "parts" in name] == []
