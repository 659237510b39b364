"""The six classic benchmarks of Tables 4 and 7, from ODDS' MATLAB files.

A file holds ``X`` (n, d) and ``y`` (n, 1), 1 for an outlier. ODDS (Rayana, 2016) has published
them as MATLAB v5 and as v7.3, which is HDF5 and holds arrays transposed; both are read.
"""

import hashlib
import io
import logging
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from scipy.io import loadmat, whosmat
from scipy.io.matlab import MatReadError

from esad_med.base.errors import CaseError, ConfigError

Shape = tuple[int, ...]

_MOST_BYTES = 64 << 20  # the largest has 0.3 MiB packed, 3.4 MiB as doubles
_HDF5 = b"\x89HDF\r\n\x1a\n"
#: What the readers raise on damaged files.
_DAMAGED = (
    *(MatReadError, zlib.error, struct.error, OSError, EOFError, ValueError, TypeError),
    *(LookupError, ArithmeticError, AttributeError, RuntimeError, MemoryError),
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """One benchmark, all of its rows.

    Attributes:
        name: one of `ODDS`.
        samples: as stored, unscaled, (n, d) float32.
        truth: 1 where a row is an outlier, else 0, (n,) int8.
    """

    name: str
    samples: npt.NDArray[np.float32]
    truth: npt.NDArray[np.int8]


@dataclass(frozen=True)
class Facts:
    """A line of Table 7, and the SHA-256 of the published file.

    Attributes:
        rows: of the table.
        columns: of the table.
        outliers: rows that are outliers.
        sha256: of the MATLAB v5 file, hexadecimal.
    """

    rows: int
    columns: int
    outliers: int
    sha256: str


TABLE_7 = {
    "arrhythmia": Facts(
        452, 274, 66, "e4d47e499591ae31e5d7f0cd983367092353eac240f48e14c9b36457edb3460d"
    ),
    "cardio": Facts(
        1831, 21, 176, "5e568b6a73711012c481fa6cc984ab9c68e9a4fa44d6aeb3b43efa381c3f695b"
    ),
    "satellite": Facts(
        6435, 36, 2036, "6feac3112b9c14e1c3e60afc437f2f3d29dc1000119c9f950c628078778d6aa0"
    ),
    "satimage-2": Facts(
        5803, 36, 71, "95c37a07cea2cb201f6900d14f521510e10b6b2f0074c06ac46d3157440ec67b"
    ),
    "shuttle": Facts(
        49097, 9, 3511, "b6e396c92354d5dcf5036901e36dc58e2913f2d1a5e138c35a2bedf9c69db899"
    ),
    "thyroid": Facts(
        3772, 6, 93, "49155d7861b977e90808faf68343ff67a67f63090c2744d514dbb67ac68e7e33"
    ),
}
ODDS: tuple[str, ...] = tuple(TABLE_7)


def read_odds(folder: Path, name: str) -> Table:
    """Read ``NAME.mat`` and hold it against Table 7.

    A file of other bytes than the published one is used if its shape and number of outliers fit,
    since many keep copies that were saved again; the log says so.

    Args:
        folder: holds the files.
        name: one of `ODDS`.

    Raises:
        ConfigError: no such benchmark.
        CaseError: missing, damaged, or not what Table 7 says.
    """
    if name not in TABLE_7:
        raise ConfigError(f"no benchmark '{name}', expected one of {', '.join(ODDS)}")
    path, facts = folder / f"{name}.mat", TABLE_7[name]
    data = _read_bytes(path)
    stored = _read_arrays(path, data, facts)
    table = Table(name, _samples(path, stored["X"]), _truth(path, stored["y"], facts))
    if hashlib.sha256(data).hexdigest() != facts.sha256:
        _log.warning(
            "%s: not the published file, though it has its shape and outliers; results may differ"
            " from those on ODDS' own",
            path,
        )
    return table


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():  # a pipe would be waited for
        raise CaseError(f"{path}: no such file; fetch it from ODDS (odds.cs.stonybrook.edu)")
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise CaseError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > _MOST_BYTES:
        raise CaseError(f"{path}: larger than {_MOST_BYTES >> 20} MiB, expected a file of ODDS")
    return data


def _read_arrays(path: Path, data: bytes, facts: Facts) -> Mapping[str, Any]:
    """``X`` and ``y``, whose shapes are checked before they are decoded."""
    try:
        if _HDF5 in (data[:8], data[512:520]):  # MATLAB puts 512 bytes of its own before it
            with h5py.File(io.BytesIO(data), "r") as file:
                arrays = {k: v for k, v in file.items() if isinstance(v, h5py.Dataset)}
                _check_shapes(path, {k: v.shape[::-1] for k, v in arrays.items()}, facts)
                return {k: _numbers(path, k, arrays[k])[()].T for k in ("X", "y")}
        _check_shapes(path, {k: tuple(shape) for k, shape, _ in whosmat(path)}, facts)
        return loadmat(path, variable_names=["X", "y"])
    except _DAMAGED as error:
        raise CaseError(
            f"{path}: not a MATLAB file, or damaged ({error}); fetch it again from ODDS"
            " (odds.cs.stonybrook.edu)"
        ) from error


def _check_shapes(path: Path, found: Mapping[str, Shape], facts: Facts) -> None:
    for variable, expected in (("X", (facts.rows, facts.columns)), ("y", (facts.rows, 1))):
        if variable not in found:
            raise CaseError(
                f"{path}: no variable '{variable}' (found {', '.join(found) or 'none'}); expected"
                " ODDS' X and y"
            )
        shape = found[variable]
        if shape != expected and (variable == "X" or prod(shape) != facts.rows):
            raise CaseError(
                f"{path}: {variable} is {_times(shape)}, expected {_times(expected)} (Table 7); is"
                " it another data set, or cut?"
            )


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _samples(path: Path, stored: Any) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        samples: npt.NDArray[np.float32] = _numbers(path, "X", stored).astype(np.float32)
    if wrong := int(np.count_nonzero(~np.isfinite(samples))):
        raise CaseError(
            f"{path}: X has {wrong} values that are NaN, infinite or beyond float32, expected"
            " none, as ODDS publishes it; fetch it again"
        )
    return samples


def _truth(path: Path, stored: Any, facts: Facts) -> npt.NDArray[np.int8]:
    labels: npt.NDArray[Any] = _numbers(path, "y", stored).ravel()
    if not np.isin(labels, (0, 1)).all():
        shown = ", ".join(f"{value:g}" for value in np.unique(labels)[:5])
        raise CaseError(f"{path}: y holds {shown}, expected 0 (inlier) and 1 (outlier)")
    if (outliers := int(labels.sum())) != facts.outliers:
        raise CaseError(
            f"{path}: y marks {outliers} outliers, expected {facts.outliers} (Table 7); is it"
            " another edition, or are 0 and 1 exchanged?"
        )
    return labels.astype(np.int8)


def _numbers(path: Path, variable: str, stored: Any) -> Any:
    """What was stored, an array or one of HDF5 not read yet, if it holds real numbers."""
    if not isinstance(stored, np.ndarray | h5py.Dataset) or stored.dtype.kind not in "buif":
        kind = getattr(stored, "dtype", type(stored).__name__)
        raise CaseError(f"{path}: {variable} is {kind}, expected a full array of real numbers")
    return stored
