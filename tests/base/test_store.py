"""SampleStore: what is written is what is read; parts that disagree do not open."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from esad_med.base.errors import ConfigError, StoreError
from esad_med.base.store import SampleStore, open_if_store
from esad_med.base.store_writing import StoreWriter, write_store


def rows(count, **columns):
    table = {
        "sample_id": [f"t{i}" for i in range(count)],
        "case_id": "s1",
        "patient_id": "NA",
        "split": "train",
        "semi_label": 1,
        "truth": 0,
    }
    return pd.DataFrame({**table, **columns})


@pytest.fixture
def store(tmp_path):
    samples = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    return write_store(tmp_path / "store", samples, rows(3), {"kind": "t", "value_range": [0, 255]})


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.float32]),
        hnp.array_shapes(min_dims=2, max_dims=4, max_side=5),
        elements={"allow_nan": False},
    )
)
def test_samples_come_back_equal(tmp_path_factory, samples):
    path = tmp_path_factory.mktemp("s") / "store"
    store = write_store(path, samples, rows(len(samples)), {"kind": "t", "value_range": [0, 1]})
    np.testing.assert_array_equal(store.samples, samples)
    store.verify()
    np.testing.assert_array_equal(np.load(path / "samples.npy"), samples)


def test_rows_keep_their_types(store):
    assert store.rows["patient_id"].tolist() == ["NA"] * 3
    assert store.rows["truth"].tolist() == [0, 0, 0]
    assert store.value_range == (0.0, 255.0)


def test_writing_twice_gives_equal_bytes(tmp_path, store):
    write_store(tmp_path / "again", store.samples, rows(3), {"kind": "t", "value_range": [0, 255]})
    for name in ("samples.npy", "samples.csv", "store.json"):
        assert (tmp_path / "again" / name).read_bytes() == (store.path / name).read_bytes()


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def write_and_fail():
        with StoreWriter(tmp_path / "s", sample_shape=(2,), dtype="float32") as writer:
            writer.append(np.zeros((1, 2), np.float32), rows(1))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_samples_are_on_the_disk_before_the_journal_says_so(tmp_path, monkeypatch):
    synced = []

    def sync(handle):
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        synced.append((name, os.fstat(handle).st_size))

    writer = StoreWriter(tmp_path / "s", sample_shape=(2,), dtype="float32", request="r")
    with writer:
        writer.contract.update(kind="t", value_range=[0, 1])
        monkeypatch.setattr(os, "fsync", sync)
        writer.append(np.zeros((3, 2), np.float32), rows(3))
        writer.record("a", {})
        monkeypatch.undo()
    names = [name for name, _ in synced]
    assert names == ["samples.npy", "samples.csv", "journal.jsonl"]
    assert synced[0] == ("samples.npy", 128 + 3 * 2 * 4)


def test_rollback_takes_back_the_last_appends(tmp_path):
    with StoreWriter(tmp_path / "s", sample_shape=(2,), dtype="float32") as writer:
        writer.contract.update(kind="t", value_range=[0, 1])
        writer.append(np.full((2, 2), 1, np.float32), rows(2))
        mark = writer.count
        writer.append(np.full((1, 2), 2, np.float32), rows(1))
        writer.append(np.full((1, 2), 3, np.float32), rows(1))
        writer.rollback(mark)
        writer.append(np.full((1, 2), 4, np.float32), rows(1, sample_id=["last"]))
    store = SampleStore(tmp_path / "s")
    assert store.samples[:, 0].tolist() == [1, 1, 4]
    store.verify()


def damage_count(path):
    np.save(path / "samples.npy", np.zeros((2, 4, 4, 3), np.uint8))


def damage_dtype(path):
    np.save(path / "samples.npy", np.zeros((3, 4, 4, 3), np.float32))


def damage_table(path):
    text = (path / "samples.csv").read_text()
    (path / "samples.csv").write_text(text.replace("t1", "t9"))


def drop_row(path):
    lines = (path / "samples.csv").read_text().splitlines()
    (path / "samples.csv").write_text("\n".join(lines[:-1]) + "\n")


def truncate_samples(path):
    content = (path / "samples.npy").read_bytes()
    (path / "samples.npy").write_bytes(content[:-10])


def pickle_samples(path):
    np.save(path / "samples.npy", np.array([{}, {}, {}], dtype=object))


def spoil_contract(path):
    (path / "store.json").write_text("{")


def other_format(path):
    contract = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps({**contract, "format": "x"}))


def no_range(path):
    contract = json.loads((path / "store.json").read_text())
    contract.pop("value_range")
    (path / "store.json").write_text(json.dumps(contract))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_count, "different runs"),
        (damage_dtype, "different runs"),
        (damage_table, "SHA-256"),
        (drop_row, "2 rows"),
        (truncate_samples, "not a readable array"),
        (pickle_samples, "not a readable array"),
        (spoil_contract, "not a JSON file"),
        (other_format, "format 'x'"),
        (no_range, "missing or wrong"),
        (lambda path: (path / "samples.csv").unlink(), "not a table"),
        (lambda path: (path / "store.json").unlink(), "no store.json, expected a SampleStore"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_parts_that_disagree_do_not_open(store, damage, message):
    damage(store.path)
    with pytest.raises(StoreError, match=message):
        SampleStore(store.path)


def test_the_digest_is_that_of_the_samples_bytes(tmp_path):
    samples = np.random.default_rng(0).integers(0, 256, (1500, 2, 2, 1), np.uint8)
    store = write_store(tmp_path / "s", samples, rows(1500), {"value_range": [0, 255]})
    assert store.digest == hashlib.sha256(samples.tobytes()).hexdigest()
    store.verify()


def test_changed_samples_are_found_by_verify(store):
    changed = np.array(store.samples)
    changed[0, 0, 0, 0] += 1
    np.save(store.path / "samples.npy", changed)
    with pytest.raises(StoreError, match="SHA-256"):
        SampleStore(store.path).verify()


@pytest.mark.parametrize(("column", "value"), [("semi_label", 0), ("truth", 2)])
def test_labels_out_of_range_are_refused(tmp_path, column, value):
    table = rows(1, **{column: value})
    with pytest.raises(StoreError, match=column):
        write_store(tmp_path / "s", np.zeros((1, 2), np.float32), table, {"value_range": [0, 1]})


def test_an_empty_store_is_refused_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(StoreError, match="no sample"),
        StoreWriter(tmp_path / "s", sample_shape=(2,), dtype="float32"),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_open_if_store_refuses_other_folders(tmp_path, store):
    assert open_if_store(tmp_path / "none") is None
    assert open_if_store(store.path) is not None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(ConfigError, match="not a SampleStore"):
        open_if_store(tmp_path / "other")
