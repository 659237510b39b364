"""Readers in a process of their own, with little memory and little time for each file.

What a file does shows in the outcome: "reads", the class of an `EsadError`, or, with a sign before
it, what must not be: ``!IndexError``, ``!MemoryError``, ``!SIGSEGV``, ``!hang``.
"""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_ALARM = signal.SIGALRM


class Task(NamedTuple):
    """A file for a reader."""

    name: str
    reader: str
    path: Path


class Found(NamedTuple):
    """What became of it: CPU seconds, MiB more than before, outcome, message."""

    seconds: float
    mib: float
    outcome: str
    message: str


def run_guarded(
    tasks: Sequence[Task], *, warm: Sequence[Task] = (), mib: int, seconds: int
) -> dict[str, Found]:
    """What each task leads to, by its name.

    Args:
        tasks: in this order, in one process; in a new one after one that killed it.
        warm: read before memory is limited, so that what they import does not count.
        mib: address space that a reader may take on top of that.
        seconds: after so many a task hangs.
    """
    found: dict[str, Found] = {}
    rest = list(tasks)
    while rest:
        before = len(found)
        for name, outcome in _in_process(rest, warm, mib, seconds):
            found[name] = outcome
        rest = rest[len(found) - before :]
    assert len(found) == len(tasks), "two tasks of one name"
    return found


def _in_process(
    tasks: Sequence[Task], warm: Sequence[Task], mib: int, seconds: int
) -> Iterator[tuple[str, Found]]:
    given = {"tasks": tasks, "warm": warm, "mib": mib, "seconds": seconds}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__],
        input=json.dumps(given, default=str),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines or not done.returncode, done.stderr[-2000:]
    results = [line for line in lines if len(line) > 1]
    yield from ((name, Found(*values)) for name, *values in results)
    if done.returncode:  # the last one that was begun killed it
        sign = signal.Signals(-done.returncode) if done.returncode < 0 else None
        outcome = "!hang" if sign == _ALARM else f"!{sign.name if sign else done.returncode}"
        yield tasks[len(results)].name, Found(seconds, mib, outcome, done.stderr[-300:])


def main() -> None:
    """The process: tasks as JSON on stdin, a line for each on stdout."""
    from readers import READERS

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    given = json.load(sys.stdin)
    for name, reader, path in given["warm"]:
        outcome = _try(READERS[reader], Path(path))[0]
        assert outcome == "reads", (name, outcome)
    held = _memory("VmSize:") + given["mib"] * 1024
    resource.setrlimit(resource.RLIMIT_AS, (held * 1024,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, reader, path in given["tasks"]:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        before, start = _memory("VmRSS:"), time.process_time()
        signal.alarm(given["seconds"])
        outcome, message = _try(READERS[reader], Path(path))
        signal.alarm(0)
        taken = (_memory("VmHWM:") - before) / 1024
        spent = time.process_time() - start
        print(json.dumps([name, round(spent, 3), round(taken, 1), outcome, message]), flush=True)


def _try(reader, path: Path) -> tuple[str, str]:
    from esad_med.base.errors import EsadError

    try:
        reader(path)
    except EsadError as error:
        chain: BaseException | None = error
        while chain is not None and not isinstance(chain, MemoryError):
            chain = chain.__cause__ or chain.__context__
        return ("!MemoryError" if chain else type(error).__name__), str(error)[:300]
    except Exception as error:
        import traceback

        return f"!{type(error).__name__}", traceback.format_exc()[-1500:]
    return "reads", ""


def _memory(field: str) -> int:
    """KiB of a field of /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])


if __name__ == "__main__":
    main()
