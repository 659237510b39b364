"""Writing results so that nothing half-written ever stands under a final name; the run folder."""

import csv
import errno
import hashlib
import io
import json
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from esad_med.base.errors import ConfigError, EsadError
from esad_med.base.limits import Limits
from esad_med.base.text_limits import read_json_within
from esad_med.base.texts import plain_cell

_VERSIONED = (
    "esad-med",
    "torch",
    "monai",
    "numpy",
    "openslide-python",
    "openslide-bin",
    "scikit-image",
)


#: The packages whose log messages are ours.
OURS = ("esad_med", "data_prep", "pipelines")

#: The file that notes a run's complete cases, and marks its folder.
JOURNAL = "journal.jsonl"

#: What the run at work in a folder holds; see `esad_med.base.locks`.
LOCK = ".lock"

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0 unknown)."""


Say = Callable[[str], None]
"""Called with one line for people, such as a slide's result."""


def no_progress(label: str, done: int, total: int) -> None:
    """Say nothing: the default where nobody watches."""


@dataclass(frozen=True)
class Failure:
    """A case that was set aside: at which stage, and why."""

    case_id: str
    stage: str
    error: str
    message: str

    @classmethod
    def of(cls, case_id: str, stage: str, error: EsadError) -> "Failure":
        """The failure that an error at a stage is, for ``failures.csv``."""
        return cls(case_id, stage, type(error).__name__, str(error))


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; fsync and rename it when the block ends well.

    Raises:
        ConfigError: no space, no permission, or no such folder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; rename it when the block ends well.

    An existing ``path`` is replaced only at that moment; where it is a link, what it points to.

    Raises:
        ConfigError: no space, no permission, ``path`` is a file or a mount point.
    """
    path = _check_place(path)
    with _output_errors(path):
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        )
        try:
            temporary.chmod(0o755)
            with _naming(path, temporary):
                yield temporary
            _sync_files(temporary)
            _put_in_place(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def resumable_folder(path: Path) -> Iterator[Path]:
    """`atomic_folder`, but what is unfinished stays beside ``path`` for the next run.

    A `JOURNAL` in it is dropped at the last moment.

    Raises:
        ConfigError: no space, no permission, ``path`` is a file or a mount point.
    """
    path = _check_place(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with _output_errors(path):
        unfinished.mkdir(exist_ok=True)
        with _naming(path, unfinished):
            yield unfinished
        _sync_files(unfinished)
        (unfinished / JOURNAL).unlink(missing_ok=True)
        _put_in_place(unfinished, path)


def _check_place(path: Path) -> Path:
    """The resolved path of a folder that can be made or replaced."""
    with _output_errors(path):
        path = path.resolve()  # "." has no name to put a temporary folder beside
        with suppress(FileNotFoundError):  # or another writer has moved it away for a moment
            if not stat.S_ISDIR(path.stat().st_mode):
                raise ConfigError(f"{path}: is a file, expected a folder; choose another --out")
            if path.is_mount():
                raise ConfigError(f"{path}: is a mount point; name a new folder inside it as --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


@contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Let errors name the folder that was asked for."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(temporary), str(path))) from error


def _sync_files(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _put_in_place(temporary: Path, path: Path) -> None:
    """Give a folder its final name, also where two workers finish the same case in one moment."""
    while not _renamed(temporary, path):
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
        try:
            path.rename(old)  # onto the empty folder; a kill here is mended by `locks`
        except FileNotFoundError:  # the other one has just moved it away, too
            old.rmdir()
            continue
        try:
            done = _renamed(temporary, path)
        except BaseException:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
        if done:
            break
    _sync_folder(path.parent)


def _renamed(temporary: Path, path: Path) -> bool:
    """Rename a folder unless one with content stands there."""
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder outlast a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def output_error(path: Path, error: OSError) -> ConfigError:
    """A ConfigError for a failed write, with the reason and the remedy."""
    reason = error.strerror or str(error)
    return ConfigError(f"{path}: cannot be written ({reason}); choose another --out or free space")


def ensure_folder(path: Path) -> Path:
    """Make a folder that can be written to, or say why not.

    Raises:
        ConfigError: a file of that name, no permission, no space.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise output_error(path, error) from error
    return path


def write_text(path: Path, text: str) -> None:
    """Write text atomically, UTF-8."""
    with atomic_file(path) as temporary:
        # a file name that is no UTF-8 comes as lone surrogates, which cannot be written
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, readable and in the given key order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV atomically, with Unix line ends, so that equal content is equal bytes.

    No cell of it is a formula, see `plain_cell`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(plain_cell, columns))
    writer.writerows(map(plain_cell, row) for row in rows)
    write_text(path, text.getvalue())


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Write ``failures.csv``: the cases set aside, by stage and reason."""
    write_csv(
        path,
        ("case_id", "stage", "error", "message"),
        [(f.case_id, f.stage, f.error, f.message) for f in failures],
    )


def read_json(path: Path, error: type[EsadError]) -> dict[str, Any]:
    """Read a JSON object, or raise ``error`` with the file's name and what is wrong with it."""
    value = read_json_within(path, error, limits=Limits())
    if not isinstance(value, dict):
        raise error(f"{path}: found {type(value).__name__}, expected a JSON object")
    return value


def digest_bytes(*parts: bytes) -> str:
    """The SHA-256 of all parts, one after the other, as hexadecimal."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.hexdigest()


def digest_file(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """The versions that decide a result: Python and the libraries that touch pixels and weights."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def claim_run_folder(out: Path, command: str) -> None:
    """Make ``out`` the run folder of a command, or find that it is one already.

    Raises:
        ConfigError: it cannot be written, or holds something else, such as another command's run.
    """
    try:
        used = out.is_dir() and any(file.name != LOCK for file in out.iterdir())
        begun = (out / JOURNAL).exists()
    except OSError as error:
        raise output_error(out, error) from error
    if used and not (begun and _command_of(out) in {"", command}):
        raise ConfigError(f"{out}: exists and is no result of `{command}`; choose another --out")
    ensure_folder(out)
    (out / JOURNAL).touch()  # tells a run's folder from any other


def _command_of(out: Path) -> str:
    """Whose run it is, by its ``run.json``; empty where the run was cut off before it."""
    try:
        return str(read_json(out / "run.json", ConfigError).get("command", ""))
    except ConfigError:
        return ""


class Journal:
    """Which cases of a run folder are complete, and for which inputs and settings.

    One JSON line per completed case, appended and synced after its files stand under their final
    names. A case counts as done only for the same ``key``, so changed settings redo it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._done: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    self._done[entry["case_id"]] = {"key": entry["key"], **entry}
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue  # a line cut off by a crash: that case is simply done again

    def is_done(self, case_id: str, key: str) -> bool:
        """Whether this case was completed with this key."""
        return self.key_of(case_id) == key

    def key_of(self, case_id: str) -> str:
        """The key a case was completed with, empty where it was not."""
        return str(self.facts_of(case_id).get("key", ""))

    @property
    def last(self) -> dict[str, Any]:
        """All that was noted of the case completed last, empty where there is none."""
        return next(reversed(self._done.values()), {})

    def facts_of(self, case_id: str) -> dict[str, Any]:
        """All that was noted of a completed case, empty where it was not."""
        return self._done.get(case_id, {})

    def record(self, case_id: str, key: str, facts: Mapping[str, object] | None = None) -> None:
        """Note a case as complete."""
        entry = {"case_id": case_id, "key": key, **(facts or {})}
        line = json.dumps(entry, ensure_ascii=False)
        try:
            with self.path.open("ab+") as handle:
                if handle.tell() and not _ends_line(handle):  # a crash cut the last one off
                    handle.write(b"\n")
                handle.write(line.encode() + b"\n")
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise output_error(self.path, error) from error
        self._done.pop(case_id, None)  # the last one done is the last one here
        self._done[case_id] = entry


def _ends_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
