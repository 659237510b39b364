"""NIH's table and lists in all their editions; rows and files that do not fit are refused."""

import gzip

import pandas as pd
import pytest

from data_prep.nih import (
    FINDINGS,
    NO_FINDING,
    find_images,
    has_finding,
    join_lists,
    read_image_list,
    read_nih_table,
)
from esad_med.base.errors import CaseError

HEAD_2020 = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]\n"
)
HEAD_2017 = HEAD_2020.replace("Sex", "Gender").replace("y]\n", "y],\n")


def write_table(folder, *rows, head=HEAD_2020, tail=",2682,2749,0.143,0.143", name="t.csv"):
    path = folder / name
    text = head + "".join(f"{row}{tail}\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


ROWS = (
    "00000001_000.png,Cardiomegaly,0,1,57,M,PA",
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,AP",
    "00000002_000.png,No Finding,0,2,,F,PA",
)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_the_table_is_read_with_its_broken_header(tmp_path, name):
    table = read_nih_table(write_table(tmp_path, *ROWS, name=name))
    assert list(table["image"]) == [row.split(",")[0] for row in ROWS]
    assert list(table["findings"]) == ["Cardiomegaly", "Cardiomegaly|Emphysema", NO_FINDING]
    assert list(table["patient_id"]) == ["1", "1", "2"]
    assert list(table["view"]) == ["PA", "AP", "PA"]
    assert list(table["sex"]) == ["M", "M", "F"]
    assert list(table["truth"]) == [1, 1, 0]
    assert list(table["age"][:2]) == [57, 58]
    assert pd.isna(table["age"][2])


def test_the_edition_of_2017_is_read_with_its_ages_and_its_empty_column(tmp_path):
    rows = [row.replace(",57,", ",057Y,").replace(",58,", ",018M,") for row in ROWS]
    tail = ",2682,2749,0.143,0.143,"
    table = read_nih_table(write_table(tmp_path, *rows, head=HEAD_2017, tail=tail))
    assert list(table["age"][:2]) == [57, 1.5]
    assert list(table["sex"]) == ["M", "M", "F"]
    days = "a.png,Hernia,0,1,003D,M,PA", "b.png,Hernia,0,1,012W,M,PA", "c.png,Hernia,0,1,x,M,PA"
    ages = read_nih_table(write_table(tmp_path, *days))["age"]
    assert ages[0] == pytest.approx(3 / 365.25)
    assert ages[1] == pytest.approx(12 / 52.18)
    assert pd.isna(ages[2])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("x.png,Broken Rib,0,3,50,M,PA", r"line 5: findings 'Broken Rib'"),
        ("x.png,Mass|Mass,0,3,50,M,PA", r"line 5: findings 'Mass\|Mass'"),
        ("x.png,No Finding|Mass,0,3,50,M,PA", r"line 5: findings"),
        ("x.png,,0,3,50,M,PA", r"line 5: findings ''"),
        ("x.png,Mass,0,3,50,M,LL", r"line 5: view 'LL', expected PA or AP"),
        ("00000001_000.png,Mass,0,3,50,M,PA", r"line 5: the image is listed before"),
        ("x.png,Mass,0,3,50,M,PA,1,2,3,4,5", "not a CSV table"),
    ],
)
def test_rows_that_cannot_be_are_refused_with_their_line(tmp_path, row, said):
    with pytest.raises(CaseError, match=said):
        read_nih_table(write_table(tmp_path, *ROWS, row))


def test_another_table_is_refused_with_what_is_missing(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("path,label\na,1\n")
    with pytest.raises(CaseError, match="column 'Image Index' is missing; found path, label"):
        read_nih_table(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.csv", None),
        ("empty.csv", b""),
        ("bad.csv.gz", b"no gzip"),
        ("cut.csv.gz", gzip.compress(HEAD_2020.encode() * 50)[:-20]),
        ("bytes.csv", b"\xff\xfe\x00"),
        ("wide.csv", b"a," * 100_000 + b"\n"),
        ("large.csv.gz", gzip.compress(HEAD_2020.encode() + bytes(65 << 20))),
    ],
)
def test_what_is_no_table_or_too_large_is_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CaseError, match=r"not NIH's table|first line is longer"):
        read_nih_table(tmp_path / name)


def test_findings_are_found_alone_or_among_others():
    findings = pd.Series(["No Finding", "Mass", "Mass|Nodule", "Nodule"])
    assert list(has_finding(findings, "Mass", "only")) == [False, True, False, False]
    assert list(has_finding(findings, "Mass", "contains")) == [False, True, True, False]
    assert list(has_finding(findings, "any", "only")) == [False, True, True, True]
    assert list(has_finding(findings, "No Finding", "only")) == [True, False, False, False]


@pytest.mark.parametrize(
    ("name", "split", "truth"),
    [
        ("train_val_list.txt", "train", None),
        ("test_list.txt", "test", None),
        ("val.txt", "val", None),
        ("PA_normal_test.txt.gz", "test", 0),
        ("AP_anomaly_train.txt", "train", 1),
        ("abnormal-val.txt", "val", 1),
        ("trainval_normal.txt", "train", 0),
    ],
)
def test_a_list_says_its_split_and_truth_by_its_name(tmp_path, name, split, truth):
    text = b"\na.png\r\n b.png \n\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    found = read_image_list(str(tmp_path / name))
    assert (found.name, found.split, found.truth) == (name, split, truth)
    assert found.images == ("a.png", "b.png")


def test_a_split_that_is_given_goes_before_the_name(tmp_path):
    (tmp_path / "test_list.txt").write_text("a.png\n")
    assert read_image_list(f"val={tmp_path / 'test_list.txt'}").split == "val"
    (tmp_path / "images.txt").write_text("a.png\n")
    with pytest.raises(CaseError, match=r"--split-list train=images\.txt"):
        read_image_list(str(tmp_path / "images.txt"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a list of image names"),
        (b"\n \n", "no image names"),
        (b"a.png\nb.png\na.png\n", "'a.png' is listed twice"),
        (b"\xff\xfe", "not a list of image names"),
        (None, "not a list of image names"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path, content, said):
    if content is not None:
        (tmp_path / "test.txt").write_bytes(content)
    with pytest.raises(CaseError, match=said):
        read_image_list(str(tmp_path / "test.txt"))


def test_two_lists_that_name_one_image_are_refused(tmp_path):
    (tmp_path / "train.txt").write_text("a.png\nb.png\n")
    (tmp_path / "normal_test.txt").write_text("c.png\n")
    lists = [read_image_list(str(tmp_path / n)) for n in ("train.txt", "normal_test.txt")]
    assert join_lists(lists) == {
        "a.png": ("train", None),
        "b.png": ("train", None),
        "c.png": ("test", 0),
    }
    (tmp_path / "val.txt").write_text("b.png\n")
    with pytest.raises(CaseError, match=r"'b.png' stands in train.txt and in val.txt"):
        join_lists([*lists, read_image_list(str(tmp_path / "val.txt"))])


def test_images_are_found_in_nihs_twelve_folders_and_once(tmp_path):
    for number, name in enumerate(("a.png", "b.PNG", "c.txt")):
        folder = tmp_path / f"images_{number:03d}" / "images"
        folder.mkdir(parents=True)
        (folder / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert sorted(find_images([tmp_path], (".png",))) == ["a.png", "b.PNG"]
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "a.png").touch()
    with pytest.raises(CaseError, match=r"'a.png' lies in .*expected once"):
        find_images([tmp_path], (".png",))
    with pytest.raises(CaseError, match="no such folder"):
        find_images([tmp_path / "nowhere"], (".png",))


@pytest.mark.data
def test_nihs_own_table_and_lists_are_read(data_root):
    table = read_nih_table(data_root / "nih_lists" / "Data_Entry_2017_v2020.csv.gz")
    assert len(table) == 112_120
    assert (table["truth"] == 0).sum() == 60_361
    assert (table["view"] == "PA").sum() == 67_310
    assert table["patient_id"].nunique() == 30_805
    assert table["age"].notna().all()
    assert {name for text in table["findings"] for name in text.split("|")} == {
        *FINDINGS,
        NO_FINDING,
    }
    only = has_finding(table["findings"], "Infiltration", "only")
    assert only.sum() == 9_547
    lists = [
        read_image_list(str(data_root / "nih_lists" / name))
        for name in ("train_val_list.txt.gz", "test_list.txt.gz")
    ]
    assert [len(one.images) for one in lists] == [86_524, 25_596]
    assert set(join_lists(lists)) == set(table["image"])
