"""`esad-med tile --protocol dpa` on a composed tree with Camelyon16's published folder names."""

import json

import pandas as pd
import pytest
from composed_camelyon import CELL, write_cells
from PIL import Image

from esad_med.base.store import SampleStore


@pytest.fixture(scope="module")
def camelyon(camelyon_slides):
    """Lists that name cells of the composed slides."""
    lists = {
        "normal_train": [("normal_001", "normal", 768, 1152), ("normal_001", "normal", 1536, 1152)],
        "anomaly_train": [("tumor_001", "tumor", 1152, 1152)],
        "normal_test": [("test_001", "normal", 1152, 1536)],
    }
    for name, cells in lists.items():
        write_cells(camelyon_slides / f"{name}.txt", cells)
    return camelyon_slides


def tile(run_command, root, out, *options, lists=("normal_train", "anomaly_train", "normal_test")):
    cells = [word for name in lists for word in ("--cells", root / f"{name}.txt")]
    return run_command("tile", root, "--protocol", "dpa", *cells, "--out", out, *options)


def test_published_cells_become_samples(run_command, camelyon, stored_target, tmp_path):
    outcome = tile(run_command, camelyon, tmp_path / "s", "--target", stored_target)
    assert outcome.code == 0, outcome.err
    rows = SampleStore(tmp_path / "s").rows
    counts = rows.groupby(["case_id", "split", "truth", "semi_label"]).size().to_dict()
    assert counts == {
        ("normal_001", "train", 0, 1): 8,
        ("test_001", "test", 0, 1): 1,
        ("tumor_001", "train", 1, -1): 4,
    }
    assert "tumor_001: 1 cells, 1 of them tumor" in outcome.err
    for name in ("normal_001", "tumor_001", "test_001"):
        with Image.open(tmp_path / "s" / "quality" / f"{name}.png") as picture:
            assert picture.width > 500
    inside = rows["case_id"] == "tumor_001"
    for axis in ("x_level0", "y_level0"):
        assert rows.loc[inside, axis].between(1152, 1152 + 768 - 256).all()
    test = rows[rows["case_id"] == "test_001"].iloc[0]
    assert (test["x_level0"], test["y_level0"]) == (1536 + 256, 1152 + 256)


def test_a_second_run_gives_equal_bytes_and_slides_another_stain(
    run_command, camelyon, stored_target, tmp_path
):
    for name in ("a", "b"):
        assert tile(run_command, camelyon, tmp_path / name, "--target", stored_target).code == 0
    for file in ("samples.npy", "samples.csv", "store.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    by_slide = ("--target", stored_target, "--set", "stain_by=slide")
    assert tile(run_command, camelyon, tmp_path / "c", *by_slide).code == 0
    cell, slide = (SampleStore(tmp_path / name).samples for name in ("a", "c"))
    assert (cell != slide).any()


def test_without_the_published_target_slide_one_is_asked_for(run_command, camelyon, tmp_path):
    outcome = tile(run_command, camelyon, tmp_path / "s")
    assert outcome.code == 4
    assert "normal_056" in outcome.err
    assert "--target" in outcome.err


def test_workers_of_the_environment_are_those_of_other_commands(
    run_command, camelyon, tmp_path, monkeypatch
):
    assert tile(run_command, camelyon, tmp_path / "s", "--workers", 2).code == 2
    monkeypatch.setenv("ESAD_WORKERS", "2")
    outcome = tile(run_command, camelyon, tmp_path / "s")
    assert (outcome.code, "--target" in outcome.err) == (4, True)


def test_cells_outside_and_missing_slides_are_set_aside(
    run_command, camelyon, stored_target, tmp_path
):
    extra = tmp_path / "extra.txt"
    names = [CELL.format("test_001", "normal", 4000, 0), CELL.format("test_009", "normal", 0, 0)]
    extra.write_text("\n".join(names))
    options = ("--cells", extra, "--target", stored_target, "--json")
    outcome = tile(run_command, camelyon, tmp_path / "s", *options)
    assert outcome.code == 3
    assert {f["case_id"] for f in json.loads(outcome.out)["failures"]} == {
        "test_001_0_4000",
        "test_009_0_0",
    }
    assert len(pd.read_csv(tmp_path / "s" / "failures.csv")) == 2


def test_a_cell_in_two_lists_is_refused(run_command, camelyon, stored_target, tmp_path):
    lists = ("normal_train", "normal_train")
    outcome = tile(run_command, camelyon, tmp_path / "s", "--target", stored_target, lists=lists)
    assert outcome.code == 4
    assert "two of the lists" in outcome.err


def test_a_detector_of_single_cells_does_not_screen_slides(
    run_command, camelyon, composed, stored_target, tmp_path
):
    more = ("--target", stored_target, "--set", "crops_per_cell=8")
    assert tile(run_command, camelyon, tmp_path / "s", *more).code == 0
    settings = ("--width", 0.0625, "--epochs", 1, "--set", "members=1")
    trained = run_command("train", tmp_path / "s", "--out", tmp_path / "d", *settings)
    assert trained.code == 0, trained.err
    outcome = run_command(
        "screen", composed / "normal_1.tif", "--detector", tmp_path / "d", "--out", tmp_path / "o"
    )
    assert outcome.code == 4
    assert "stain_by=slide" in outcome.err
