"""`esad-med import`: pictures and a table become a store; bad ones are set aside."""

import json

import numpy as np
import pytest
from PIL import Image

from esad_med.base.store import SampleStore


@pytest.fixture
def folder(tmp_path, composed):
    """Twelve 96-pixel pictures of two slides, cut from the composed ones, and their table."""
    import openslide

    lines = ["file,name,class,slide,person,part"]
    for slide_name, person in (("normal_1", "p0"), ("tumor_1", "p1")):
        slide = openslide.OpenSlide(composed / f"{slide_name}.tif")
        for index in range(6):
            x = 700 + 96 * index
            name = f"{slide_name}_{index}.png"
            slide.read_region((x, 900), 0, (96, 96)).convert("RGB").save(tmp_path / name)
            kind = "tumor" if slide_name == "tumor_1" and index < 2 else "0"
            lines.append(f"{name},{slide_name}-{index},{kind},{slide_name},{person},train")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


COLUMNS = ("--path", "file", "--label", "class", "--id", "name")
ALL_COLUMNS = (*COLUMNS, "--group", "slide", "--patient", "person", "--split", "part")


def import_(run_command, folder, out, *options, columns=ALL_COLUMNS):
    table = ("--table", folder / "table.csv")
    return run_command("import", folder, *table, "--out", out, "--mpp", 1, *columns, *options)


def test_the_central_crop_is_taken(run_command, folder, tmp_path):
    out = tmp_path / "store"
    assert import_(run_command, folder, out, "--stain", "none").code == 0
    store = SampleStore(out)
    picture = np.asarray(Image.open(folder / "normal_1_3.png"))
    np.testing.assert_array_equal(store.samples[3], picture[16:80, 16:80])
    assert store.rows["sample_id"].iloc[3] == "normal_1-3"
    assert store.rows["truth"].tolist() == [0] * 6 + [1] * 2 + [0] * 4
    assert store.rows["semi_label"].tolist() == [1] * 6 + [-1] * 2 + [1] * 4


def test_a_matrix_per_group_or_one_for_the_set(run_command, folder, tmp_path):
    for by, keys in (("group", {"normal_1", "tumor_1"}), ("set", {""})):
        out = tmp_path / by
        assert import_(run_command, folder, out, "--stain-by", by).code == 0
        assert set(SampleStore(out).contract["stains"]) == keys
    a, b = SampleStore(tmp_path / "group"), SampleStore(tmp_path / "set")
    assert (a.samples != b.samples).any()


def test_unreadable_pictures_are_set_aside(run_command, folder, tmp_path):
    (folder / "normal_1_0.png").write_text("no picture")
    Image.new("RGB", (32, 32)).save(folder / "normal_1_1.png")
    Image.new("I;16", (96, 96)).save(folder / "normal_1_2.png")
    (folder / "normal_1_3.png").unlink()
    outcome = import_(run_command, folder, tmp_path / "s", "--stain", "none", "--json")
    assert outcome.code == 3
    failures = {f["case_id"]: f["message"] for f in json.loads(outcome.out)["failures"]}
    assert len(SampleStore(tmp_path / "s")) == 8
    assert "not a picture" in failures["normal_1-0"]
    assert "at least 64x64" in failures["normal_1-1"]
    assert "expected 8-bit" in failures["normal_1-2"]
    assert "No such file" in failures["normal_1-3"]


@pytest.mark.parametrize(
    ("old", "new", "columns", "message"),
    [
        ("file,name", "picture,name", ALL_COLUMNS, "column 'file' for the path is missing"),
        ("normal_1-1", "normal_1-0", ALL_COLUMNS, "listed twice"),
        (",tumor,", ",maybe,", ALL_COLUMNS, "truth 'maybe'"),
        ("p1,train\n", "p0,test\n", ALL_COLUMNS, "'train' and in split 'test'"),
        ("p0,train\n", "p0,exam\n", ALL_COLUMNS, "split 'exam'"),
        ("tumor_1-5,0,tumor_1,p1,train", "tumor_1-5,0,tumor_1,,test", ALL_COLUMNS, "slide tumor_1"),
    ],
)
def test_a_bad_table_is_refused(run_command, folder, tmp_path, old, new, columns, message):
    table = folder / "table.csv"
    table.write_text(table.read_text().replace(old, new))
    outcome = import_(run_command, folder, tmp_path / "s", columns=columns)
    assert outcome.code == 4
    assert message in outcome.err
    assert not (tmp_path / "s").exists()


def test_groups_are_needed_for_a_matrix_per_group(run_command, folder, tmp_path):
    outcome = import_(run_command, folder, tmp_path / "s", "--stain-by", "group", columns=COLUMNS)
    assert outcome.code == 4
    assert "--group" in outcome.err


def test_pictures_of_unknown_resolution_are_refused(run_command, folder, tmp_path):
    table = ("--table", folder / "table.csv")
    outcome = run_command("import", folder, *table, "--out", tmp_path / "s", *ALL_COLUMNS)
    assert outcome.code == 4
    assert "mpp (Resolution of the pictures, µm per pixel.): is missing" in outcome.err
    assert not (tmp_path / "s").exists()


def test_an_existing_store_is_not_replaced_by_accident(run_command, folder, tmp_path):
    assert import_(run_command, folder, tmp_path / "s", "--stain", "none").code == 0
    assert import_(run_command, folder, tmp_path / "s", "--stain", "none").code == 4
    assert import_(run_command, folder, tmp_path / "s", "--stain", "none", "--overwrite").code == 0
