"""ODDS' tables in both MATLAB formats; files that are damaged or another table are refused."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from data_prep.odds import ODDS, read_odds
from esad_med.base.errors import CaseError, ConfigError

Write = Callable[..., Path]
ROWS, COLUMNS, OUTLIERS = 3772, 6, 93  # thyroid, the smallest file


def thyroid(**changed: Any) -> dict[str, Any]:
    """A table of thyroid's shape, no value of which is another's."""
    samples = np.arange(ROWS * COLUMNS, dtype=np.float64).reshape(ROWS, COLUMNS) / 7
    outliers = np.zeros((ROWS, 1))
    outliers[:: ROWS // OUTLIERS][:OUTLIERS] = 1
    return {"X": samples, "y": outliers} | changed


def write_v5(folder: Path, **changed: Any) -> Path:
    path = folder / "thyroid.mat"
    savemat(path, thyroid(**changed), do_compression=True)
    return path


def write_v73(folder: Path, **changed: Any) -> Path:
    """As MATLAB does: arrays transposed, 512 bytes of its own before HDF5's."""
    path = folder / "thyroid.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in thyroid(**changed).items():
            file.create_dataset(name, data=np.asarray(values).T, compression="gzip")
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return path


@pytest.mark.parametrize("write", [write_v5, write_v73])
def test_both_formats_hold_the_same_table(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)
    with caplog.at_level(logging.WARNING, logger="data_prep.odds"):
        table = read_odds(tmp_path, "thyroid")
    expected = thyroid()
    np.testing.assert_array_equal(table.samples, expected["X"].astype(np.float32))
    np.testing.assert_array_equal(table.truth, expected["y"][:, 0])
    assert (table.name, table.samples.dtype.str, table.truth.dtype.str) == ("thyroid", "<f4", "|i1")
    assert "thyroid.mat: not the published file, though it has its shape" in caplog.text


@pytest.mark.parametrize("write", [write_v5, write_v73])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"X": np.zeros((ROWS - 1, COLUMNS))}, r"X is 3771x6, expected 3772x6 \(Table 7\)"),
        ({"X": np.zeros((COLUMNS, ROWS))}, "X is 6x3772, expected 3772x6"),
        ({"X": np.full((ROWS, COLUMNS), np.nan)}, "X has 22632 values that are NaN"),
        ({"X": np.full((ROWS, COLUMNS), 1e39)}, "22632 values that are NaN, infinite or beyond"),
        ({"X": np.full((ROWS, COLUMNS), 1j)}, "X is complex128, expected a full array of real"),
        ({"y": np.ones((ROWS, 2))}, "y is 3772x2, expected 3772x1"),
        ({"y": np.ones((ROWS, 1))}, "y marks 3772 outliers, expected 93"),
        ({"y": 1 - thyroid()["y"]}, "y marks 3679 outliers, expected 93 .* exchanged"),
        ({"y": 2 * thyroid()["y"] - 1}, "y holds -1, 1, expected 0"),
        ({"y": np.full((ROWS, 1), np.nan)}, "y holds nan"),
    ],
)
def test_another_table_is_refused(
    write: Write, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    write(tmp_path, **changed)
    with pytest.raises(CaseError, match=said):
        read_odds(tmp_path, "thyroid")


def test_the_labels_may_be_a_row_and_names_are_asked_for(tmp_path: Path) -> None:
    write_v5(tmp_path, y=thyroid()["y"].T.astype(np.uint8))
    assert read_odds(tmp_path, "thyroid").truth.sum() == OUTLIERS
    savemat(tmp_path / "thyroid.mat", {"data": np.zeros((2, 2)), "label": np.zeros((2, 1))})
    with pytest.raises(CaseError, match=r"no variable 'X' \(found data, label\); expected ODDS' X"):
        read_odds(tmp_path, "thyroid")


@pytest.mark.parametrize("write", [write_v5, write_v73])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9])
def test_a_cut_file_is_refused(write: Write, tmp_path: Path, share: float) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(
        CaseError, match=r"thyroid.mat: (not a MATLAB file, or damaged|no variable)"
    ):
        read_odds(tmp_path, "thyroid")


@pytest.mark.parametrize("content", [b"x" * 200, b"\x89PNG\r\n\x1a\n" + bytes(500), b"a,b\n1,2\n"])
def test_what_is_no_matlab_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cardio.mat").write_bytes(content)
    with pytest.raises(CaseError, match=r"cardio.mat: not a MATLAB file, or damaged .* from ODDS"):
        read_odds(tmp_path, "cardio")


def test_a_missing_or_huge_file_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"cardio.mat: no such file; fetch it from ODDS"):
        read_odds(tmp_path, "cardio")
    with (tmp_path / "cardio.mat").open("wb") as file:
        file.truncate(10**12)  # sparse: it takes no room, unless it were read
    with pytest.raises(CaseError, match="larger than 64 MiB"):
        read_odds(tmp_path, "cardio")
    with pytest.raises(ConfigError, match="no benchmark 'wine', expected one of arrhythmia, card"):
        read_odds(tmp_path, "wine")


def test_flipped_bytes_never_end_in_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for write in (write_v5, write_v73):
        whole = write(tmp_path).read_bytes()
        refused = 0
        for _ in range(40):
            damaged = np.frombuffer(whole, np.uint8).copy()
            damaged[rng.integers(0, 4096, 5)] = rng.integers(0, 256, 5)
            (tmp_path / "thyroid.mat").write_bytes(damaged.tobytes())
            try:
                read_odds(tmp_path, "thyroid")
            except CaseError:
                refused += 1
        assert refused > 10


@pytest.mark.data
@pytest.mark.parametrize("name", ODDS)
def test_the_published_files_are_those_of_table_7(
    data_root: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows, columns, outliers = {
        "arrhythmia": (452, 274, 66),
        "cardio": (1831, 21, 176),
        "satellite": (6435, 36, 2036),
        "satimage-2": (5803, 36, 71),
        "shuttle": (49097, 9, 3511),
        "thyroid": (3772, 6, 93),
    }[name]
    with caplog.at_level(logging.WARNING, logger="data_prep.odds"):
        table = read_odds(data_root / "odds", name)
    assert (table.samples.shape, table.truth.sum()) == ((rows, columns), outliers)
    assert not caplog.text
    sums = (data_root / "odds" / "SHA256SUMS").read_text().split()
    file = (data_root / "odds" / f"{name}.mat").read_bytes()
    assert sums[sums.index(f"{name}.mat") - 1] == hashlib.sha256(file).hexdigest()
