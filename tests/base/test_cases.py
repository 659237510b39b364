"""Manifests: what they may say, and what is refused."""

from pathlib import Path

import pytest

from esad_med.base.cases import Case, check_cases, check_patients, files_below, read_manifest
from esad_med.base.errors import CaseError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.tif", "b.tif", "a.xml"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def manifest(folder, text):
    path = folder / "manifest.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_may_name_other_files_of_their_cases(tmp_path):
    files = {"a": tmp_path / "a.h5", "b": tmp_path / "b.h5"}
    table = tmp_path / "slides.csv"
    table.write_text("path,case_id,split\nfar/a.svs,,train\n,b,test\ngone/c.svs,d,\n")
    cases = read_manifest(table, files=files)
    assert [(case.case_id, case.path) for case in cases] == [
        ("a", files["a"]),
        ("b", files["b"]),
        ("d", Path("c")),
    ]
    table.write_text("path,case_id\n,\n")
    with pytest.raises(CaseError, match="line 2: neither path nor case_id"):
        read_manifest(table, files=files)


def test_a_full_manifest_is_read(folder):
    path = manifest(
        folder,
        "path,case_id,patient_id,split,label,annotation,mpp\n"
        "a.tif,s1,p1,train,tumor,a.xml,0.25\nb.tif,,,,,,\n",
    )
    first, second = read_manifest(path)
    assert (first.case_id, first.patient_id, first.split) == ("s1", "p1", "train")
    assert (first.truth, first.annotation, first.mpp) == (1, folder / "a.xml", 0.25)
    assert (second.case_id, second.truth, second.annotation, second.mpp) == ("b", None, None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_id\ns1\n", "column 'path' is missing"),
        ("path,color\na.tif,red\n", "unknown column 'color'"),
        ("path\n", "no rows"),
        ("", "not a CSV table"),
        ("path\nc.tif\n", "'c.tif' does not exist"),
        ("path,annotation\na.tif,c.xml\n", "'c.xml' does not exist"),
        ("path\na.tif\na.tif\n", "listed twice"),
        ("path,case_id\na.tif,s\nb.tif,s\n", "case_id 's' is listed twice"),
        ("path,case_id\na.tif,../s\n", "folder's name"),
        ("path,case_id\na.tif,slides.csv\n", "folder's name"),
        (f"path,case_id\na.tif,{'µ' * 101}\n", "up to 200 bytes"),
        ("path;case_id\na.tif;s\n", "with commas"),
        ("path,split\na.tif,exam\n", "split 'exam' is unknown"),
        ("path,label\na.tif,maybe\n", "label 'maybe' is unknown"),
        ("path,mpp\na.tif,fine\n", "mpp 'fine'"),
        ("path,mpp\na.tif,-1\n", "mpp '-1'"),
        ("path,patient_id,split\na.tif,p,train\nb.tif,p,test\n", "'train' and in split 'test'"),
    ],
)
def test_a_bad_manifest_says_what_is_wrong(folder, text, message):
    with pytest.raises(CaseError, match=message):
        read_manifest(manifest(folder, text))


@pytest.mark.parametrize(
    "name",
    [
        *("..", ".hidden", "-rf", "a.", "a. .", "a/b", "a\\b", "Run.json", "x" * 201),
        *("CON", "nul.txt", "com1", "LPT9.tif.gz", "Aux .x", "=1+1", "@a", "+a", "\uff1da"),
        *(
            "a\u202eb",
            "a\u200bb",
            "a\u2066b",
            "a\x07b",
            "a\x1b[2J",
            "a\ufeffb",
            "a\xadb",
            "a\u2028b",
        ),
    ],
)
def test_names_that_are_none_everywhere_are_refused(folder, name):
    with pytest.raises(CaseError, match="must be usable as a folder's name") as found:
        check_cases([Case(name, folder / "a.tif")], source="m.csv")
    assert str(found.value).isprintable()


@pytest.mark.parametrize(
    "name", ["s07", "S 07 (2)", "größe", "病理-1", "a..b", "a=b", "5-", "console"]
)
def test_plain_names_pass(folder, name):
    check_cases([Case(name, folder / "a.tif")], source="m.csv")


@pytest.mark.parametrize(("a", "b"), [("s1", "S1"), ("\xe9", "e\u0301"), ("stra\xdfe", "STRASSE")])
def test_names_that_a_file_system_takes_for_one_are_refused(folder, a, b):
    with pytest.raises(CaseError, match=r"differs from '.+' by case or accent"):
        check_cases([Case(a, folder / "a.tif"), Case(b, folder / "b.tif")], source="m.csv")


def test_a_missing_manifest_is_a_case_error(tmp_path):
    with pytest.raises(CaseError, match="cannot be read"):
        read_manifest(tmp_path / "none.csv")


def test_unknown_patients_and_splits_never_clash():
    check_patients([("", "train"), ("", "test"), ("p", ""), ("p", "train"), ("p", "train")])


def test_files_below_follows_links_once_and_skips_folders(tmp_path):
    for name in ("a/1.txt", "a/deep/2.txt", "b/3.txt", "left/4.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    elsewhere = tmp_path / "a"
    (tmp_path / "b" / "link").symlink_to(elsewhere)
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b")
    found = files_below(tmp_path / "b")
    names = [path.relative_to(tmp_path / "b").as_posix() for path in found]
    assert sorted(names) == ["3.txt", "link/1.txt", "link/deep/2.txt"]
    kept = files_below(tmp_path, skip=lambda folder: folder.name in {"left", "b"})
    assert [path.name for path in kept] == ["1.txt", "2.txt"]
