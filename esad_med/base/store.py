"""SampleStore: n equal-shaped samples, their rows and their contract in one folder.

STORE/samples.npy   (n, h, w, c) uint8 or (n, d) float32, memory-mapped
STORE/samples.csv   one row per sample, in the same order
STORE/store.json    the contract: kind, shape, dtype, value range, mpp, specs, digests
"""

import hashlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from esad_med.base.cases import read_table
from esad_med.base.errors import CaseError, ConfigError, StoreError
from esad_med.base.limits import Limits
from esad_med.base.runs import Failure, digest_file, output_error, read_json
from esad_med.base.text_limits import check_table

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


def open_if_store(path: Path) -> SampleStore | None:
    """The store at ``path``, or None where there is none; refuses a folder that is something else.

    Raises:
        ConfigError: ``path`` is a file, or a folder with other content.
        StoreError: a damaged store.
    """
    refuse_other_folder(path)
    return SampleStore(path) if (path / "store.json").exists() else None


def read_failures(path: Path) -> list[Failure]:
    """What was set aside when a store was made: its ``failures.csv``.

    Raises:
        StoreError: it is missing or damaged.
    """
    try:
        rows = read_table(path / "failures.csv").to_dict("records")
        return [Failure(**{str(k): str(v) for k, v in row.items()}) for row in rows]
    except (CaseError, TypeError) as error:
        raise StoreError(
            f"{path}: failures.csv was edited or damaged ({error}); pass --overwrite"
        ) from error


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
