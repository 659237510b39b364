"""Writing a SampleStore piece by piece; one that was interrupted is gone on with."""

import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pandas as pd

from esad_med.base.errors import StoreError
from esad_med.base.locks import hold_output
from esad_med.base.runs import (
    JOURNAL,
    Journal,
    atomic_folder,
    digest_bytes,
    resumable_folder,
    versions,
    write_json,
)
from esad_med.base.store import FORMAT, REQUIRED_COLUMNS, SampleStore
from esad_med.base.texts import table_to_csv

_HEADER_BYTES = 128
_CHUNK = 1 << 18  # bytes


@dataclass
class _Growing:
    """A file that is appended to, and the digest of what was."""

    file: BinaryIO
    start: int  # bytes at its head that are written last and not digested
    size: int = 0
    digest: Any = None

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256()

    def append(self, chunk: memoryview | bytes) -> None:
        self.file.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk) if isinstance(chunk, bytes) else chunk.nbytes

    def mark(self) -> tuple[int, Any]:
        return self.size, self.digest.copy()

    def back_to(self, mark: tuple[int, Any]) -> None:
        self.size, self.digest = mark[0], mark[1].copy()
        self.file.seek(self.start + self.size)
        self.file.truncate()

    def take_up(self, size: int, digest: str) -> bool:
        """Go on after the first ``size`` bytes of an earlier run, if they are those it noted."""
        self.file.seek(self.start)
        left = size
        while left and (chunk := self.file.read(min(left, _CHUNK))):
            self.digest.update(chunk)
            left -= len(chunk)
        if left or self.digest.hexdigest() != digest:
            return False
        self.back_to((size, self.digest))
        return True


class StoreWriter:
    """Writes a SampleStore piece by piece; the folder appears only when all of it is written.

    with StoreWriter(out, sample_shape=(64, 64, 3), dtype="uint8") as writer:
        writer.append(samples, rows)
        writer.contract["mpp"] = 1.0

    With a ``request`` what was written up to the last `record` outlasts a kill, a full disk and
    Ctrl-C: the next writer with the same request goes on after it.
    """

    def __init__(
        self, path: Path, *, sample_shape: Sequence[int], dtype: str, request: str = ""
    ) -> None:
        """Prepare; nothing is written before the block begins.

        Args:
            path: the store's folder.
            sample_shape: of one sample.
            dtype: of the samples.
            request: what is asked for, as a digest; empty for a store that cannot be gone on with.
        """
        self.path = path
        self.sample_shape = tuple(sample_shape)
        self.dtype = np.dtype(dtype)
        self.contract: dict[str, Any] = {}
        self._key = request and digest_bytes(request.encode(), json.dumps(versions()).encode())
        self._columns: list[str] = []
        self._earlier: list[tuple[int, Any, Any]] = []  # count and files before each append
        self._count = 0
        self._sample_bytes = self.dtype.itemsize * int(np.prod(self.sample_shape))
        self._stack = ExitStack()

    def __enter__(self) -> "StoreWriter":
        """Begin, or go on where an earlier run with the same request was cut off.

        Raises:
            ConfigError: it cannot be written, or another run makes the same store.
        """
        with ExitStack() as stack:
            stack.enter_context(hold_output(self.path))
            if self._key:
                self.folder = stack.enter_context(resumable_folder(self.path))
            else:
                self.folder = stack.enter_context(atomic_folder(self.path))
            self._begin()
            self._stack = stack.pop_all()
        return self

    def _begin(self) -> None:
        self._journal = Journal(self.folder / JOURNAL)
        if self._journal.last.get("key") == self._key and self._take_up(self._journal.last):
            return
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._journal = Journal(self.folder / JOURNAL)
        self._samples = _Growing((self.folder / "samples.npy").open("w+b"), _HEADER_BYTES)
        self._samples.file.write(b"\0" * _HEADER_BYTES)
        self._rows = _Growing((self.folder / "samples.csv").open("w+b"), 0)

    def _take_up(self, last: Mapping[str, Any]) -> bool:
        """Go on after what an earlier run recorded last; whether its files are as it left them."""
        try:
            self._samples = _Growing((self.folder / "samples.npy").open("r+b"), _HEADER_BYTES)
            self._rows = _Growing((self.folder / "samples.csv").open("r+b"), 0)
        except FileNotFoundError:
            return False
        self._count, self._columns = int(last["count"]), list(last["columns"])
        size = self._count * self._sample_bytes
        return self._samples.take_up(size, last["samples"]) and self._rows.take_up(
            last["rows_bytes"], last["rows"]
        )

    def recorded(self, case_id: str) -> dict[str, Any] | None:
        """The facts of a case that an earlier run recorded, None where it did not."""
        entry = self._journal.facts_of(case_id)
        return entry.get("facts") if entry else None

    def record(self, case_id: str, facts: Mapping[str, Any]) -> None:
        """Note that all samples of a case, and of those before it, are written.

        Args:
            case_id: which; cases come in the same order in every run.
            facts: what else is to be known of it when the store is finished, as JSON values.
        """
        if not self._key:
            raise ValueError("only a store with a request can be gone on with")
        for growing in (self._samples, self._rows):
            growing.file.flush()
            os.fsync(growing.file.fileno())  # or a power cut leaves a journal of lost samples
        noted = {
            "count": self._count,
            "columns": self._columns,
            "samples": self._samples.digest.hexdigest(),
            "rows": self._rows.digest.hexdigest(),
            "rows_bytes": self._rows.size,
            "facts": facts,
        }
        self._journal.record(case_id, self._key, noted)
        self._earlier.clear()

    def abandon(self) -> None:
        """Keep nothing for a later run: the block is about to end in an error that would recur."""
        (self.folder / JOURNAL).unlink(missing_ok=True)

    def append(self, samples: npt.NDArray[Any], rows: pd.DataFrame) -> None:
        """Add samples (b, *sample_shape) and their rows, in order."""
        if samples.shape[1:] != self.sample_shape or len(samples) != len(rows):
            raise ValueError(f"samples {samples.shape} and {len(rows)} rows do not fit the store")
        self._append([np.ascontiguousarray(samples, dtype=self.dtype).data], rows)

    def append_part(self, path: Path, rows: pd.DataFrame) -> None:
        """Add what a `SamplePart` holds, and remove its file."""
        if path.stat().st_size != len(rows) * self._sample_bytes:
            raise ValueError(f"{path}: {path.stat().st_size} bytes and {len(rows)} rows do not fit")
        buffer = memoryview(bytearray(_CHUNK))  # small: what was read is hashed out of the cache
        with path.open("rb", buffering=0) as part:
            self._append((buffer[:n] for n in iter(lambda: part.readinto(buffer), 0)), rows)
        path.unlink()

    def _append(self, chunks: Iterable[memoryview], rows: pd.DataFrame) -> None:
        first = not self._columns
        if first:
            others = [str(name) for name in rows.columns if name not in REQUIRED_COLUMNS]
            self._columns = [*REQUIRED_COLUMNS, *others]
        if set(rows.columns) != set(self._columns):
            raise ValueError(f"rows have columns {list(rows.columns)}, expected {self._columns}")
        self._earlier.append((self._count, self._samples.mark(), self._rows.mark()))
        self._count += len(rows)
        for chunk in chunks:
            self._samples.append(chunk)
        text = table_to_csv(rows[self._columns], header=first)
        self._rows.append(text.encode("utf-8", "backslashreplace"))

    def rollback(self, count: int) -> None:
        """Take back everything appended after the first ``count`` samples (a mark of `count`)."""
        while self._count > count:
            self._count, samples, rows = self._earlier.pop()
            self._samples.back_to(samples)
            self._rows.back_to(rows)
        if self._count != count:
            raise ValueError(f"{count} is not a mark between two appends")
        if not count:
            self._columns = []

    @property
    def count(self) -> int:
        """How many samples were appended so far."""
        return self._count

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the store its name, or after an error keep what was recorded, if anything was."""
        try:
            if error is None:
                self._finish()
        except BaseException as problem:
            self._leave(problem)
            raise
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        for growing in (self._samples, self._rows):
            with suppress(OSError):  # a full disk again, when buffered samples are flushed
                growing.file.close()
        if error is not None and self._key and not (self.folder / JOURNAL).exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._stack.__exit__(type(error) if error else None, error, None)

    def _finish(self) -> None:
        shape = (self._count, *self.sample_shape)
        self._samples.file.seek(0)
        self._samples.file.write(_npy_header(shape, self.dtype))
        for growing in (self._samples, self._rows):
            growing.file.close()
        if not self._count:
            self.abandon()
            raise StoreError(f"{self.path}: no sample was left to write; nothing was stored")
        write_json(
            self.folder / "store.json",
            {
                "format": FORMAT,
                "shape": list(shape),
                "dtype": str(self.dtype),
                **self.contract,
                "digests": {
                    "samples": self._samples.digest.hexdigest(),
                    "samples.csv": self._rows.digest.hexdigest(),
                },
            },
        )


class SamplePart:
    """Samples of one case on their way into a store, written by another process than the store's.

    The file holds their bytes and nothing else; their rows stay in memory. It gets its name at the
    end: a process that is thought dead may still be writing another one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        self._rows: list[pd.DataFrame] = []

    def __enter__(self) -> "SamplePart":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._temporary.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._file.close()
            if kind is None:
                self._temporary.replace(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def append(self, samples: npt.NDArray[Any], rows: pd.DataFrame) -> None:
        """Add samples (b, ...), of the store's dtype, and their rows, in order."""
        self._file.write(np.ascontiguousarray(samples).data)
        self._rows.append(rows)

    def rows(self) -> pd.DataFrame:
        """The rows of all samples, in order; at least one was appended."""
        return pd.concat(self._rows, ignore_index=True)


def write_store(
    path: Path, samples: npt.NDArray[Any], rows: pd.DataFrame, contract: Mapping[str, Any]
) -> SampleStore:
    """Write a whole store from arrays and open it.

    Args:
        path: the folder to make.
        samples: (n, h, w, c) uint8 or (n, d) float32.
        rows: n rows with at least `REQUIRED_COLUMNS`.
        contract: at least ``kind`` and ``value_range``; goes into ``store.json``.
    """
    with StoreWriter(path, sample_shape=samples.shape[1:], dtype=str(samples.dtype)) as writer:
        writer.contract.update(contract)
        writer.append(samples, rows)
    return SampleStore(path)


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    buffer = io.BytesIO()
    description = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": description, "fortran_order": False, "shape": shape}
    )
    header = buffer.getvalue()
    body = header[10:].rstrip(b" \n")
    padding = _HEADER_BYTES - 11 - len(body)
    assert padding >= 0, "a sample shape too long for the fixed header"
    return header[:8] + (_HEADER_BYTES - 10).to_bytes(2, "little") + body + b" " * padding + b"\n"
