"""SampleStore: n equal-shaped samples, their rows and their contract in one folder.

STORE/samples.npy   (n, h, w, c) uint8 or (n, d) float32, memory-mapped
STORE/samples.csv   one row per sample, in the same order
STORE/store.json    the contract: kind, shape, dtype, value range, mpp, specs, digests
"""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tokenize import TokenError
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from esad_med.base.errors import CaseError, ConfigError, StoreError
from esad_med.base.limits import Limits
from esad_med.base.runs import (
    atomic_folder,
    digest_file,
    output_error,
    read_json,
    write_json,
    write_text,
)
from esad_med.base.texts import check_table

FORMAT = "esad-med store 2"
REQUIRED_COLUMNS = ("sample_id", "case_id", "patient_id", "split", "semi_label", "truth")
_HEADER_BYTES = 128
_NPY = b"\x93NUMPY\x01\x00"  # of later versions NumPy allocates a header as long as it claims
# What NumPy is known to raise on a damaged header, which it reads as Python's literals.
_DAMAGED = (
    *(OSError, ValueError, TypeError, OverflowError),
    *(SyntaxError, TokenError, RecursionError, MemoryError),
)
_VERIFIED = 1024  # samples at a time
_CHUNK = 1 << 18  # bytes


class SampleStore:
    """An opened store. It does not open if counts, dtype, shape or digests disagree.

    Attributes:
        path: the folder.
        samples: (n, h, w, c) uint8 or (n, d) float32, read-only memory map.
        rows: n rows; ``semi_label`` is +1 / -1 (Int8), ``truth`` 0 / 1 or missing (Int8), the ids
            and ``split`` are strings, empty where unknown.
        contract: the content of ``store.json``.
    """

    def __init__(self, path: Path) -> None:
        """Open a store.

        Raises:
            StoreError: a part is missing or damaged, or two parts disagree.
        """
        self.path = Path(path)
        if not self.path.is_dir():
            raise StoreError(f"{path}: no such folder, expected a SampleStore (store.json inside)")
        if not (self.path / "store.json").exists():
            found = "is a detector" if (self.path / "contract.json").exists() else "no store.json"
            raise StoreError(f"{path}: {found}, expected a SampleStore made by `tile` or `import`")
        self.contract = read_json(self.path / "store.json", StoreError)
        if self.contract.get("format") != FORMAT:
            raise StoreError(
                f"{path}: format {self.contract.get('format')!r}, expected {FORMAT!r}; make the"
                " store again with this version"
            )
        self.samples = self._map_samples()
        self.rows = self._read_rows()
        self._check()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def digest(self) -> str:
        """SHA-256 of the samples' bytes, in order: the data a model was trained on."""
        return str(self.contract["digests"]["samples"])

    @property
    def value_range(self) -> tuple[float, float]:
        """The smallest and largest value a sample may hold, such as (0, 255)."""
        low, high = self.contract["value_range"]
        return float(low), float(high)

    def verify(self) -> None:
        """Read all samples and compare them with the digest in the contract.

        Raises:
            StoreError: the file was changed or damaged after it was written.
        """
        state = hashlib.sha256()
        for start in range(0, len(self), _VERIFIED):
            state.update(np.ascontiguousarray(self.samples[start : start + _VERIFIED]).data)
        if state.hexdigest() != self.digest:
            raise StoreError(f"{self.path}/samples.npy: its SHA-256 is not the one in store.json")

    def _map_samples(self) -> npt.NDArray[Any]:
        file = self.path / "samples.npy"
        try:
            with file.open("rb") as opened:
                if opened.read(len(_NPY)) != _NPY:
                    raise ValueError("not an array of NumPy's format 1.0")
            samples = np.lib.format.open_memmap(file, mode="r")
        except _DAMAGED as error:
            raise StoreError(f"{file}: not a readable array ({error})") from error
        return np.asarray(samples)

    def _read_rows(self) -> pd.DataFrame:
        file = self.path / "samples.csv"
        try:
            check_table(file, limits=Limits())
            rows = pd.read_csv(
                file,
                dtype=dict.fromkeys(REQUIRED_COLUMNS[:4], str),
                keep_default_na=False,  # a patient may be called "NA"
                na_values=[""],
            )
            for name in REQUIRED_COLUMNS[:4]:
                rows[name] = rows[name].fillna("")
            for name in REQUIRED_COLUMNS[4:]:
                rows[name] = rows[name].astype("Int8")
        except KeyError as error:
            raise StoreError(f"{file}: column {error} is missing") from error
        except (CaseError, OSError, ValueError, TypeError, ArithmeticError) as error:
            raise StoreError(f"{file}: not a table of samples ({error})") from error
        return rows

    def _check(self) -> None:
        contract, samples = self.contract, self.samples
        try:
            shape, dtype = list(contract["shape"]), str(contract["dtype"])
            digests = contract["digests"]
            low, high = self.value_range
            self.digest  # noqa: B018 - raises here if it is not there
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{self.path}/store.json: shape, dtype, value_range or digests is missing or wrong"
                f" ({error}); make the store again"
            ) from error
        if not -np.inf < low < high < np.inf:
            raise StoreError(f"{self.path}/store.json: value_range {low} to {high} is no range")
        if list(samples.shape) != shape or str(samples.dtype) != dtype:
            raise StoreError(
                f"{self.path}: samples.npy holds {samples.dtype} {list(samples.shape)}, store.json"
                f" says {dtype} {shape}; the parts come from different runs"
            )
        if len(self.rows) != len(samples):
            raise StoreError(
                f"{self.path}: samples.csv has {len(self.rows)} rows, samples.npy"
                f" {len(samples)} samples; the parts come from different runs"
            )
        if digest_file(self.path / "samples.csv") != digests.get("samples.csv"):
            raise StoreError(
                f"{self.path}/samples.csv: its SHA-256 is not the one in store.json; the table was"
                " edited or damaged after it was written"
            )
        if not self.rows["semi_label"].isin([1, -1]).all():
            raise StoreError(f"{self.path}/samples.csv: semi_label must be +1 or -1 in every row")
        if not self.rows["truth"].dropna().isin([0, 1]).all():
            raise StoreError(f"{self.path}/samples.csv: truth must be 0, 1 or empty")
        if self.rows["sample_id"].duplicated().any():
            raise StoreError(f"{self.path}/samples.csv: a sample_id stands in two rows")


class StoreWriter:
    """Writes a SampleStore piece by piece; the folder appears only when all of it is written.

    with StoreWriter(out, sample_shape=(64, 64, 3), dtype="uint8") as writer:
        writer.append(samples, rows)
        writer.contract["mpp"] = 1.0
    """

    def __init__(self, path: Path, *, sample_shape: Sequence[int], dtype: str) -> None:
        self.path = path
        self.sample_shape = tuple(sample_shape)
        self.dtype = np.dtype(dtype)
        self.contract: dict[str, Any] = {}
        self._rows: list[pd.DataFrame] = []
        self._digest = hashlib.sha256()
        self._earlier: list[Any] = []  # the digest before each append
        self._count = 0
        self._sample_bytes = self.dtype.itemsize * int(np.prod(self.sample_shape))
        self._folder = atomic_folder(path)

    def __enter__(self) -> "StoreWriter":
        self.folder = self._folder.__enter__()
        self._file = (self.folder / "samples.npy").open("wb")
        self._file.write(b"\0" * _HEADER_BYTES)
        return self

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
        self._earlier.append(self._digest.copy())
        self._rows.append(rows)
        self._count += len(rows)
        for chunk in chunks:
            self._file.write(chunk)
            self._digest.update(chunk)

    def rollback(self, count: int) -> None:
        """Take back everything appended after the first ``count`` samples (a mark of `count`)."""
        while self._count > count:
            self._count -= len(self._rows.pop())
            self._digest = self._earlier.pop()
        if self._count != count:
            raise ValueError(f"{count} is not a mark between two appends")
        self._file.seek(_HEADER_BYTES + count * self._sample_bytes)
        self._file.truncate()

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
        if error is not None:
            with suppress(OSError):  # a full disk again, when buffered samples are flushed
                self._file.close()
            self._folder.__exit__(kind, error, trace)
            return
        try:
            self._finish()
        except BaseException as problem:
            with suppress(OSError):
                self._file.close()
            self._folder.__exit__(type(problem), problem, problem.__traceback__)
            raise
        self._folder.__exit__(None, None, None)

    def _finish(self) -> None:
        shape = (self._count, *self.sample_shape)
        self._file.seek(0)
        self._file.write(_npy_header(shape, self.dtype))
        self._file.close()
        if not self._count:
            raise StoreError(f"{self.path}: no sample was left to write; nothing was stored")
        rows = pd.concat(self._rows, ignore_index=True)
        order = [*REQUIRED_COLUMNS, *(c for c in rows.columns if c not in REQUIRED_COLUMNS)]
        write_text(
            self.folder / "samples.csv", rows[order].to_csv(index=False, lineterminator="\n")
        )
        write_json(
            self.folder / "store.json",
            {
                "format": FORMAT,
                "shape": list(shape),
                "dtype": str(self.dtype),
                **self.contract,
                "digests": {
                    "samples": self._digest.hexdigest(),
                    "samples.csv": digest_file(self.folder / "samples.csv"),
                },
            },
        )


class SamplePart:
    """Samples of one case on their way into a store, written by another process than the store's.

    The file holds their bytes and nothing else; their rows stay in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[pd.DataFrame] = []

    def __enter__(self) -> "SamplePart":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

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


def open_if_store(path: Path) -> SampleStore | None:
    """The store at ``path``, or None where there is none; refuses a folder that is something else.

    Raises:
        ConfigError: ``path`` is a file, or a folder with other content.
        StoreError: a damaged store.
    """
    refuse_other_folder(path)
    return SampleStore(path) if (path / "store.json").exists() else None


def refuse_other_folder(path: Path) -> None:
    """Refuse to put a store in the place of something else, whether to be overwritten or not.

    A damaged store passes, and so does a folder that is empty or holds a run's failures only.

    Raises:
        ConfigError: ``path`` is a file, cannot be looked into, or is a folder of other content.
    """
    try:
        if not path.exists() or (path / "store.json").exists():
            return
        if path.is_dir() and {file.name for file in path.iterdir()} <= {"failures.csv"}:
            return
    except OSError as error:
        raise output_error(path, error) from error
    raise ConfigError(f"{path}: exists and is not a SampleStore; choose another --out")


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
