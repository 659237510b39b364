"""Bombs are refused in about a second and 300 MB, each in a process that may not take more.

`guarded.run_guarded` imports what a reader needs by reading a good file first; then the process's
address space is limited to what it has and 300 MB.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from bombs import annotation_bombs, picture_files, slide_bombs, text_bombs, write_folders
from good_files import write_detector, write_good, write_store
from guarded import Found, Task, run_guarded

MIB, SECONDS = 300, 4.0  # about a second where nothing else runs, and other programs may


def check(found: dict[str, Found]) -> None:
    """Each is refused by an error of ours, quickly and without much memory."""
    for name, one in found.items():
        assert one.outcome.endswith("Error"), (name, one)
        assert not one.outcome.startswith("!"), (name, one)
        assert one.seconds < SECONDS, (name, one)
        assert one.mib < MIB, (name, one)


@pytest.mark.parametrize("make", [slide_bombs, annotation_bombs, text_bombs, picture_files])
def test_bombs_are_refused(make: Callable, tmp_path: Path) -> None:
    tasks = []
    for reader, name, data in make():
        (tmp_path / name).write_bytes(data)
        tasks.append(Task(name, reader, tmp_path / name))
    warm = write_good(tmp_path / "good", {task.reader for task in tasks})
    check(run_guarded(tasks, warm=warm, mib=MIB, seconds=10))


def test_stores_and_detectors_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    store, detector = write_store(tmp_path / "store"), write_detector(tmp_path / "detector")
    made = write_folders(tmp_path, store, detector)
    tasks = [Task(path.name, reader, path) for reader, path in made]
    warm = [Task("store", "store", store), Task("detector", "detector", detector)]
    check(run_guarded(tasks, warm=warm, mib=MIB, seconds=10))
