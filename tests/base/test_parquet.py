"""Parquet: typed columns, equal bytes for equal tables, read as a CSV would be, within limits."""

import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from esad_med.base import parquet
from esad_med.base.errors import CaseError, ConfigError
from esad_med.base.limits import Limits
from esad_med.base.parquet import read_parquet, write_parquet

TABLE = pd.DataFrame(
    {
        "case_id": ["a", " b", ""],
        "score": np.array([0.1, np.nan, -3e-9], np.float32),
        "tiles": np.array([1, 2, 3], np.int64),
        "truth": pd.array([1, None, 0], dtype="Int8"),
        "mixed": ["x", None, 3],
    }
)


def test_columns_are_typed_and_texts_are_strings(tmp_path):
    write_parquet(tmp_path / "t.parquet", TABLE, {"esad_med.detector": "d"})
    schema = pq.read_schema(tmp_path / "t.parquet")
    assert [str(field.type) for field in schema] == ["string", "float", "int64", "int8", "string"]
    assert schema.metadata == {b"esad_med.detector": b"d"}
    assert pq.read_table(tmp_path / "t.parquet")["truth"].to_pylist() == [1, None, 0]


def test_equal_tables_give_equal_bytes(tmp_path):
    for name in "ab":
        write_parquet(tmp_path / name, TABLE, {"k": "v"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_cell_is_read_as_a_text(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_BATCH", 2)
    write_parquet(tmp_path / "t.parquet", TABLE, {})
    table = read_parquet(tmp_path / "t.parquet")
    assert table["case_id"].tolist() == ["a", "b", ""]
    assert table["truth"].tolist() == ["1", "", "0"]
    assert table["mixed"].tolist() == ["x", "", "3"]
    assert table["score"].tolist()[1] == ""
    np.testing.assert_array_equal(
        table["score"].iloc[[0, 2]].astype(np.float32), TABLE["score"].iloc[[0, 2]]
    )


def test_categories_and_empty_tables_are_read(tmp_path):
    pq.write_table(
        pa.table({"a": pa.array(["x", "x"]).dictionary_encode()}), tmp_path / "c.parquet"
    )
    assert read_parquet(tmp_path / "c.parquet")["a"].tolist() == ["x", "x"]
    write_parquet(tmp_path / "e.parquet", TABLE.iloc[:0], {})
    assert read_parquet(tmp_path / "e.parquet").columns.tolist() == TABLE.columns.tolist()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(table_columns=4), "limits.table_columns"),
        (Limits(table_mib=1e-6), "limits.table_mib"),
    ],
)
def test_what_is_too_large_is_refused(tmp_path, limits, message):
    write_parquet(tmp_path / "t.parquet", TABLE, {})
    with pytest.raises(CaseError, match=message):
        read_parquet(tmp_path / "t.parquet", limits=limits)


def test_a_few_bytes_that_stand_for_a_long_text_in_every_row_are_refused(tmp_path):
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), ["x" * 100_000])
    pq.write_table(pa.table({"a": text}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 100_000
    with pytest.raises(CaseError, match="its texts take more than"):
        read_parquet(tmp_path / "bomb.parquet", limits=Limits(table_mib=100))


def test_nested_columns_and_columns_that_stand_there_twice_are_refused(tmp_path):
    pq.write_table(pa.table({"a": [[1], [2, 3]]}), tmp_path / "n.parquet")
    with pytest.raises(CaseError, match="expected texts, numbers"):
        read_parquet(tmp_path / "n.parquet")
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(twice, tmp_path / "d.parquet")
    with pytest.raises(CaseError, match="stands there twice"):
        read_parquet(tmp_path / "d.parquet")


def test_damaged_files_are_refused_in_words(tmp_path):
    write_parquet(tmp_path / "t.parquet", pd.concat([TABLE] * 50), {})
    good = (tmp_path / "t.parquet").read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / "bad.parquet"
    refused = []
    for _ in range(150):
        data = bytearray(good[: random.integers(1, len(good))] if random.random() < 0.3 else good)
        for place in random.integers(0, len(data), 4):
            data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            read_parquet(path)
        except CaseError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all(message.startswith(f"{path}: ") for message in refused)
    with pytest.raises(CaseError):
        read_parquet(tmp_path / "missing.parquet")


def test_a_missing_extra_is_said_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'esad-med\[parquet\]'"):
        write_parquet(tmp_path / "t.parquet", TABLE, {})
    with pytest.raises(ConfigError, match="needs pyarrow"):
        read_parquet(tmp_path / "t.parquet")
