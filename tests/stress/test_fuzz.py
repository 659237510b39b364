"""Mutants over all readers, and coverage-guided fuzzing of each parser of ours.

Whatever a file holds, a reader gives its content or an error of ours: no crash, no hang, no other
exception. A failure names the mutant's number, of which ``write_mutants`` makes it again.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from fuzz_parsers import PARSERS
from good_files import write_detector, write_good, write_store
from guarded import ROOT, Task, run_guarded
from mutants import file_seeds, write_mutants

from esad_med.method.checkpoints import save_checkpoint

BLOCK = 500


def write_folders(folder: Path) -> list[Task]:
    """A store, a detector and a checkpoint."""
    (folder / "checkpoint").mkdir(parents=True)
    save_checkpoint(folder / "checkpoint", 0, {"epoch": 1, "losses": [0.5]})
    write_store(folder / "store")
    write_detector(folder / "detector")
    return [Task(name, name, folder / name) for name in ("store", "detector", "checkpoint")]


@pytest.mark.timeout(7200)
def test_mutants_are_read_or_refused_and_nothing_else(
    rounds: Callable[[int, int], int], tmp_path: Path
) -> None:
    folders = write_folders(tmp_path / "folders")
    warm = write_good(tmp_path / "good", {reader for reader, _, _ in file_seeds()}) + folders
    count, refused = rounds(400, 5000), 0
    for first in range(0, count, BLOCK):
        made = tmp_path / "mutants"
        made.mkdir()
        tasks = write_mutants(made, range(first, min(first + BLOCK, count)), folders)
        found = run_guarded(tasks, warm=warm, mib=1024, seconds=10)
        wrong = {name: one for name, one in found.items() if one.outcome.startswith("!")}
        assert not wrong, "\n".join(f"mutant {name}: {one}" for name, one in wrong.items())
        refused += sum(one.outcome != "reads" for one in found.values())
        shutil.rmtree(made)
    assert 0.2 * count < refused < count  # neither all alike nor all read


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("parser", PARSERS)
def test_no_parser_of_ours_stumbles(
    parser: str, rounds: Callable[[int, int], int], tmp_path: Path
) -> None:
    seconds = rounds(2, 600)
    script = Path(__file__).with_name("fuzz_parsers.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, parser, str(seconds)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=seconds + 300,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'data_prep'}", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert "number_of_executed_units" in done.stderr
