"""The command line in a process of its own, which can be killed, and what it leaves."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

RUN = "from esad_med.cli import main; main()"
#: Temporary names; none may be left when a run has ended well.
LEFTOVERS = (".partial", ".old", ".unfinished", ".lock")


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start `esad-med` with these arguments."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("ESAD_WORKERS", None)
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(*arguments: object) -> tuple[int, str, str, float]:
    """Exit code, stdout, stderr and seconds of a command."""
    started = time.monotonic()
    with start(*arguments) as process:
        out, err = process.communicate(timeout=600)
    return process.returncode, out, err, time.monotonic() - started


def kill_until_done(
    arguments: Sequence[object],
    delays: Callable[[], float],
    check: Callable[[], None],
    *,
    most: int,
) -> int:
    """Start a command and kill it, again and again, until it ends by itself; how many kills.

    Args:
        arguments: of the command.
        delays: seconds to the next kill.
        check: called after each kill: what stands under a final name must be complete.
        most: kills; then the command is let go on to its end.
    """
    kills = 0
    while True:
        with start(*arguments) as process:
            try:
                _, err = process.communicate(timeout=delays() if kills < most else 600)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                check()
                continue
        assert process.returncode in (0, 3), err
        return kills


def contents(folder: Path, *, but: Sequence[str] = ()) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in but
    }


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders below a folder."""
    return [path for path in folder.rglob(".*") if path.name.endswith(LEFTOVERS)]
