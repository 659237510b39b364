"""One run at a time on an output, and what a killed one left behind.

A run holds a lock file as long as it works: `OUT/.lock` in a run folder, `.NAME.lock` beside a
store or file that appears as a whole. The kernel lets go of it when the process dies, however it
dies; the file that then stays tells the next run to sweep temporary files away.
"""

import fcntl
import glob
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esad_med.base.errors import ConfigError
from esad_med.base.runs import LOCK, output_error

_PATIENCE_SECONDS = 5.0  # a network file system may show a new file late, or empty
# of `atomic_file` (a process number) and `atomic_folder` (eight random characters)
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(\d+|[a-z0-9_]{8})\.(?P<kind>partial|old)")


@dataclass(frozen=True)
class Turn:
    """A run's turn at an output; picklable, for a cluster's workers may outlive the command.

    Attributes:
        lock: its file.
        name: of this run and no other, as the file has it.
    """

    lock: Path
    name: str

    def check(self) -> None:
        """Refuse to write for a run that is over.

        Raises:
            ConfigError: it has ended, or another one has begun.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not (found := _written_in(self.lock)) and time.monotonic() < deadline:
            time.sleep(_PATIENCE_SECONDS / 20)
        if found[2:] != [self.name]:
            raise ConfigError(
                f"{self.lock.parent}: the run that asked for this has ended; its results are not"
                " written, start the command again"
            )


@contextmanager
def hold_folder(out: Path) -> Iterator[Turn]:
    """Be the only run in an existing run folder while the block lasts.

    Raises:
        ConfigError: another run works in it, or it cannot be written.
    """
    with _hold(out / LOCK, out) as (turn, killed):
        if killed:
            sweep_folder(out)
        try:
            yield turn
        finally:
            sweep_folder(out)  # its workers may have been killed


def sweep_folder(folder: Path) -> None:
    """Remove the temporary files below a folder that nobody writes to any more."""
    _sweep(_temporaries(folder.rglob(".*")))


@contextmanager
def hold_output(out: Path) -> Iterator[None]:
    """Be the only run that makes the file or folder ``out``, which need not exist yet.

    Raises:
        ConfigError: another run makes it, or its parent folder cannot be written.
    """
    try:
        out = out.resolve()  # "." has no name to put a lock beside
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(out, error) from error
    with _hold(out.with_name(f".{out.name}{LOCK}"), out):
        beside = _temporaries(out.parent.glob(f".{glob.escape(out.name)}.*"))
        _sweep([found for found in beside if found[1].name == out.name])  # not those of NAME.v2
        yield


@contextmanager
def _hold(lock: Path, out: Path) -> Iterator[tuple[Turn, bool]]:
    """Hold a lock file; whether a killed run had left it."""
    turn = Turn(lock.resolve(), uuid.uuid4().hex)
    try:
        handle, left = _open_locked(lock, turn.name)
    except BlockingIOError as error:
        raise ConfigError(
            f"{out}: another run is writing here{_holder(lock)}; wait for it, or take another"
            " folder"
        ) from error
    except OSError as error:
        raise output_error(out, error) from error
    try:
        yield turn, left
    finally:
        with suppress(OSError):  # a full disk or a folder that is gone: nothing is left to do
            lock.unlink(missing_ok=True)  # before letting go: nobody else holds this file yet
        os.close(handle)


def _open_locked(lock: Path, name: str) -> tuple[int, bool]:
    """Open and lock the file that stands under this name now; whether it stood there before."""
    while True:
        left = lock.exists()
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.exists() and os.path.samestat(os.fstat(handle), lock.stat()):
                os.truncate(handle, 0)
                os.write(handle, json.dumps([socket.gethostname(), os.getpid(), name]).encode())
                os.fsync(handle)  # workers of other machines read it
                return handle, left
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its owner removed it between our opening and our locking


def _holder(lock: Path) -> str:
    """Who holds a lock, as far as the file says."""
    try:
        host, process, _ = _written_in(lock)
        return f" (process {int(process)} on {host})"
    except (ValueError, TypeError):
        return ""


def _written_in(lock: Path) -> list[Any]:
    """Machine, process and name of the run that holds a lock; empty where the file says nothing."""
    try:
        found = json.loads(lock.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def _temporaries(files: Iterable[Path]) -> list[tuple[Path, Path, str]]:
    """Those that are temporary, each with the path it was for and its kind."""
    named = ((path, _TEMPORARY.fullmatch(path.name)) for path in files)
    return [(path, path.with_name(found["name"]), found["kind"]) for path, found in named if found]


def _sweep(files: Iterable[tuple[Path, Path, str]]) -> None:
    """Remove temporary files; what a killed run had moved away to replace it is put back."""
    for path, original, kind in files:
        if kind == "old" and not original.exists():
            path.rename(original)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
