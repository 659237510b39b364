"""Limits of time and memory on the case at work in this process, which ends where it must."""

import logging
import multiprocessing
import os
import resource
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esad_med.base.errors import CaseError
from esad_med.base.interrupts import raise_if_interrupted, seconds_since_last_step
from esad_med.base.limits import Limits

#: Exit codes of a process that ended itself.
TOO_LONG, STOOD_STILL = 75, 76

_LOOKS_PER_SECOND = 4
_GIB = 1 << 30
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "can't start new thread")


def stay_with_parent() -> None:
    """End this process as soon as its parent is gone, and leave Ctrl-C to the parent.

    A terminal sends Ctrl-C to all processes of a command. A parent that was killed cannot end its
    workers, which would go on writing beside the next run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def be_quiet() -> None:
    """Let no library's words about a file's values reach this process's stderr.

    The command line drops them as well; here they would pass it by.
    """
    warnings.simplefilter("ignore")
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.NullHandler())


@contextmanager
def guarded(limits: Limits) -> Iterator[None]:
    """Work on one case within the limits of time and memory.

    Time cannot be taken from a library that hangs, so the whole process ends, with exit code
    `TOO_LONG` or `STOOD_STILL`. Memory is refused, not taken away.

    Raises:
        CaseError: the case wanted more memory than ``limits.case_gib``.
    """
    done = threading.Event()
    threading.Thread(target=_watch, args=(limits, done), daemon=True).start()
    try:
        with _bounded_memory(int(limits.case_gib * _GIB)):
            yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise CaseError(
            f"needs more than {limits.case_gib:g} GiB of memory (limits.case_gib), expected a case"
            " of ordinary size; look at the file, or allow more"
        ) from error
    finally:
        done.set()


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory was refused: torch and threads say so by a RuntimeError."""
    said = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or any(words in said for words in _OUT_OF_MEMORY)


def _watch(limits: Limits, done: threading.Event) -> None:
    started = time.monotonic()
    raise_if_interrupted()  # a first step
    while not done.wait(1 / _LOOKS_PER_SECOND):
        if time.monotonic() - started > limits.case_seconds:
            os._exit(TOO_LONG)
        if seconds_since_last_step() > limits.still_seconds:
            os._exit(STOOD_STILL)


@contextmanager
def _bounded_memory(allowed: int) -> Iterator[None]:
    """Let this process take so many bytes more; CUDA's reserved addresses do not count."""
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    now = _data_bytes()
    if now is None:  # not Linux
        yield
        return
    bound = now + allowed if hard == resource.RLIM_INFINITY else min(now + allowed, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def _data_bytes() -> int | None:
    """Private writable memory of this process, which RLIMIT_DATA bounds."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    line = next(line for line in status.splitlines() if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024
