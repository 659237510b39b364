"""Hundreds of frozen files that no reader may stumble over, each with the outcome it must have.

Each group runs in one process with 1 GiB on top of what its imports take, ten seconds a file.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from good_files import write_detector, write_good, write_store
from guarded import Found, Task, run_guarded
from malformed import READS, Malformed
from malformed_annotations import geojsons, masks, xmls
from malformed_dicom import dicoms
from malformed_folders import MalformedFolder, folders
from malformed_pictures import niftis, pngs
from malformed_slides import slides
from malformed_tables import tables, yamls

GROUPS = (slides, dicoms, pngs, niftis, xmls, geojsons, masks, tables, yamls)
MIB, SECONDS = 1024, 10


def check(found: dict[str, Found], expected: dict[str, str]) -> None:
    """Every outcome is the one it must be; the message says which are not, and why."""
    other = {n: (expected[n], one) for n, one in found.items() if one.outcome != expected[n]}
    assert not other, "\n".join(f"{n}: expected {e}, {one}" for n, (e, one) in other.items())
    assert max(one.mib for one in found.values()) < MIB


@pytest.mark.parametrize("group", GROUPS)
def test_each_file_has_its_outcome(
    group: Callable[[], Iterator[Malformed]], tmp_path: Path
) -> None:
    made = list(group())
    tasks = [
        Task(f"{one.name} ({one.file})", one.reader, one.write(tmp_path / str(number)))
        for number, one in enumerate(made)
    ]
    warm = write_good(tmp_path / "good", {one.reader for one in made})
    found = run_guarded(tasks, warm=warm, mib=MIB, seconds=SECONDS)
    check(found, {task.name: one.expected for task, one in zip(tasks, made, strict=True)})


def _write_folders(folder: Path) -> tuple[list[Task], list[MalformedFolder]]:
    good = {"store": write_store(folder / "store"), "detector": write_detector(folder / "detector")}
    good["checkpoint"] = folder / "checkpoint"
    good["checkpoint"].mkdir()
    made = list(folders())
    tasks = [
        Task(one.name, one.reader, one.write(folder / str(number), good[one.reader]))
        for number, one in enumerate(made)
    ]
    return tasks, made


def test_each_store_and_detector_has_its_outcome(tmp_path: Path) -> None:
    tasks, made = _write_folders(tmp_path)
    warm = [Task(n, n, tmp_path / n) for n in ("store", "detector", "checkpoint")]
    found = run_guarded(tasks, warm=warm, mib=MIB, seconds=SECONDS)
    check(found, {one.name: one.expected for one in made})


def test_there_are_hundreds_and_most_must_fail() -> None:
    expected = [one.expected for group in (*GROUPS, folders) for one in group()]
    assert len(expected) >= 400
    assert sum(outcome != READS for outcome in expected) >= 0.7 * len(expected)
