"""Results appear whole or not at all; the journal remembers what is complete."""

import errno
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from esad_med.base.errors import ConfigError
from esad_med.base.runs import (
    Failure,
    Journal,
    atomic_file,
    atomic_folder,
    claim_run_folder,
    ensure_folder,
    write_failures,
    write_json,
)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_and_fail():
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ConfigError, match="No space left"):
        write_and_fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_the_old_one_only_at_the_end(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").write_text("1")
    with atomic_folder(path) as temporary:
        (temporary / "new").write_text("2")
        assert (path / "old").exists()
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def write_folder(path: Path, value: int) -> None:
    """Two files that must be of one writer, written often."""
    for _ in range(200):
        with atomic_folder(path) as temporary:
            (temporary / "a").write_text(str(value))
            (temporary / "b").write_text(str(value))


def test_writers_of_one_folder_do_not_mind_each_other(tmp_path):
    path = tmp_path / "case"
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(write_folder, [path] * 3, [1, 2, 3]))
    assert len({(path / name).read_text() for name in "ab"}) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(ConfigError, match="is a file"), atomic_folder(tmp_path / "out"):
        pass
    with pytest.raises(ConfigError, match="cannot be written"):
        ensure_folder(tmp_path / "out")


def test_no_permission_is_a_config_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ConfigError, match="Permission denied"):
        ensure_folder(tmp_path / "out")


def test_json_refuses_numbers_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"score": float("nan")})
    assert not list(tmp_path.iterdir())


def test_the_journal_remembers_cases_by_key(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.record("s1", "k1")
    journal.record("s2", "k1")
    with (tmp_path / "journal.jsonl").open("a") as handle:
        handle.write('{"case_id": "s3", "ke')  # a crash in the middle of a line
    again = Journal(tmp_path / "journal.jsonl")
    assert again.is_done("s1", "k1")
    assert not again.is_done("s1", "k2")
    assert not again.is_done("s3", "k1")


def test_failures_are_a_table(tmp_path):
    write_failures(
        tmp_path / "failures.csv", [Failure.of("s1", "open", ConfigError("a, b\nand c"))]
    )
    text = (tmp_path / "failures.csv").read_text()
    assert text == 'case_id,stage,error,message\ns1,open,ConfigError,"a, b\nand c"\n'


def test_a_run_folder_belongs_to_one_command(tmp_path):
    out = tmp_path / "run"
    claim_run_folder(out, "screen")
    claim_run_folder(out, "triage")  # begun, but not yet anyone's
    write_json(out / "run.json", {"command": "screen"})
    claim_run_folder(out, "screen")
    with pytest.raises(ConfigError, match="no result of `triage`"):
        claim_run_folder(out, "triage")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="no result of `screen`"):
        claim_run_folder(tmp_path / "mine", "screen")


def test_a_journal_goes_on_after_a_line_that_a_crash_cut_off(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).record("a", "1")
    with path.open("a") as file:
        file.write('{"case_id": "b", "ke')
    Journal(path).record("c", "3")
    found = Journal(path)
    assert [found.key_of(name) for name in "abc"] == ["1", "", "3"]
