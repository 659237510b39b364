"""`audit`: what was planted is found; what cannot be checked is said; bad input is an error."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from esad_med.base.config import load_config
from esad_med.base.errors import ConfigError, ModelError, StoreError
from esad_med.base.store import SampleStore
from esad_med.base.store_writing import write_store
from pipelines.audit_results import write_audit
from pipelines.auditing import AuditConfig, audit_store

CONFIG = AuditConfig()
TABLES = ("leaks", "duplicates", "quality", "pollution", "label_next")


def tiles(count, seed=0, side=24):
    noise = np.random.default_rng(seed).normal(size=(count, side, side, 3))
    smooth = ndimage.gaussian_filter(noise, (0, 1.2, 1.2, 0))
    return np.clip(150 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def make_rows(count, **columns):
    table = {
        "sample_id": [f"s{i:03d}" for i in range(count)],
        "case_id": [f"case{i % 8}" for i in range(count)],
        "patient_id": [f"Jane Doe {i % 8}" for i in range(count)],
        "split": ["train" if i % 8 < 6 else "test" for i in range(count)],
        "semi_label": 1,
        "truth": pd.array([None] * count, dtype="Int8"),
    }
    return pd.DataFrame({**table, **columns})


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """160 tiles: darker ones labeled (0-5) or hidden (8-13), and copies of others at the end."""
    samples = tiles(160)
    dark = [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]
    samples[dark] //= 2
    samples[40] = 245
    samples[150], samples[151] = samples[20], np.rot90(samples[21])
    samples[152] = np.clip(samples[22] * 0.9 + 6, 0, 255).round()
    rows = make_rows(160)
    rows.loc[:5, "semi_label"] = -1
    rows.loc[:5, "truth"] = 1
    rows.loc[158, ["case_id", "patient_id"]] = ["case0", "Jane Doe 0"]  # row 158 is of split test
    path = tmp_path_factory.mktemp("audit") / "store"
    contract = {"kind": "tiles", "modality": "histology", "value_range": [0, 255]}
    write_store(path, samples, rows, contract)
    return path


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    random = np.random.default_rng(0)
    samples = random.normal(size=(80, 5)).astype(np.float32)
    samples[70], samples[71] = samples[3], samples[4] * 1.001
    samples[:, 4] = 1  # a constant column
    rows = make_rows(80, case_id="", patient_id="", split="")
    path = tmp_path_factory.mktemp("audit") / "vectors"
    write_store(path, samples, rows, {"kind": "vectors", "value_range": [-9, 9]})
    return path


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def audit(planted):
    return audit_store(SampleStore(planted), CONFIG)


def test_what_was_planted_is_found(audit):
    assert audit.look == "tissue"
    assert audit.copies.exact.tolist() == [[20, 150]]
    assert {tuple(pair) for pair in audit.copies.near.tolist()} == {(21, 151), (22, 152)}
    assert audit.copies.groups[20] == audit.copies.groups[150] != audit.copies.groups[21]
    kinds = {(leak.kind, leak.rows[-1]) for leak in audit.leaks}
    assert ("case", 158) in kinds
    assert ("patient", 158) in kinds
    assert ("sample", 150) in kinds  # case4 trains, case6 tests
    assert [(one.index, one.finding) for one in audit.quality][:1] == [(40, "white")]
    assert len(audit.quality) <= 3
    pollution = audit.pollution
    assert pollution is not None
    highest = pollution.rows[np.argsort(pollution.rank)][:6]
    assert len(set(highest) & {8, 9, 10, 11, 12, 13}) >= 5
    chosen = pollution.rows[[one.index for one in audit.to_label]]
    assert len(set(chosen)) == 20
    assert 40 not in chosen  # a label of a blank tile says nothing
    assert {check.status for check in audit.checks} <= {"done", "in part"}


def test_everything_is_written_and_can_be_read_back(planted, run_command, tmp_path):
    out = tmp_path / "out"
    outcome = run_command("audit", planted, "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    summary = json.loads(outcome.out)
    assert summary["leaks"]["case"] == 1
    files = {*(f"{name}.csv" for name in TABLES), "audit.json", "audit.html", "config.yaml"}
    assert {path.name for path in out.iterdir()} == files
    found = json.loads((out / "audit.json").read_text("utf-8"))
    assert {key: found[key] for key in summary} == summary
    assert load_config(AuditConfig, out / "config.yaml") == CONFIG
    copies = read(out / "duplicates.csv")
    assert [(row["kind"], row["sample_id_a"]) for row in copies[:1]] == [("exact", "s020")]
    by_name = {row["sample_id_b"]: row for row in copies}
    assert "90" in by_name["s151"]["orientation"] or "270" in by_name["s151"]["orientation"]
    assert read(out / "quality.csv")[0]["finding"] == "white"
    ranks = [int(row["rank"]) for row in read(out / "pollution.csv")]
    assert ranks == list(range(1, len(ranks) + 1))
    assert all(row["reason"].startswith("rank ") for row in read(out / "label_next.csv"))
    assert {row["id"] for row in read(out / "leaks.csv") if row["kind"] == "case"} == {"case0"}
    page = (out / "audit.html").read_text("utf-8")
    assert page.count("data:image/jpeg") > 30
    assert "Jane" not in page  # whose they are stands in leaks.csv only
    assert "Jane" not in outcome.out + outcome.err + json.dumps(found)


def test_equal_stores_give_equal_findings(audit, planted, tmp_path):
    write_audit(tmp_path / "a", audit, CONFIG)
    write_audit(tmp_path / "b", audit_store(SampleStore(planted), CONFIG), CONFIG)
    for name in TABLES:
        one, other = (tmp_path / folder / f"{name}.csv" for folder in "ab")
        assert one.read_bytes() == other.read_bytes()


def test_strict_says_so_by_its_exit_code(planted, vectors, run_command):
    quick = ("--set", "pollution.folds=2")
    assert run_command("audit", planted, "--strict", *quick).code == 3
    assert run_command("audit", vectors, "--strict", *quick).code == 0


def test_table_rows_are_audited_without_pictures(vectors, run_command, tmp_path):
    outcome = run_command("audit", vectors, "--out", tmp_path / "out", "--set", "labels=5")
    assert outcome.code == 0, outcome.err
    for reason in ("table rows, not pictures", "no splits", "no labeled outliers"):
        assert reason in outcome.out
    copies = read(tmp_path / "out" / "duplicates.csv")
    assert {(row["kind"], row["sample_id_a"]) for row in copies} == {
        ("exact", "s003"),
        ("near", "s004"),
    }
    assert len(read(tmp_path / "out" / "label_next.csv")) == 5
    assert "data:image" not in (tmp_path / "out" / "audit.html").read_text("utf-8")


def test_a_detector_counts_and_its_bias_is_said(store, trained, run_command, tmp_path):
    outcome = run_command("audit", store, "--detector", trained, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "trained on this very store" in outcome.out
    assert all(row["detector"] for row in read(tmp_path / "out" / "pollution.csv"))
    assert json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))["detector"]


def test_a_detector_of_other_samples_is_refused(planted, trained):
    with pytest.raises(ModelError):
        audit_store(SampleStore(planted), CONFIG, detector=trained)


def test_one_sample_is_no_store_to_rank(tmp_path, run_command):
    rows = make_rows(1)
    contract = {"kind": "tiles", "value_range": [0, 255]}
    write_store(tmp_path / "one", tiles(1), rows, contract)
    outcome = run_command("audit", tmp_path / "one", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "1 unlabeled training samples, expected at least 20" in outcome.out
    assert "fewer than 20 pictures" in outcome.out
    assert read(tmp_path / "out" / "label_next.csv") == []


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_store_without_training_samples(tmp_path, run_command, split):
    contract = {"kind": "tiles", "value_range": [0, 255]}
    write_store(tmp_path / "s", tiles(30), make_rows(30, split=split), contract)
    outcome = run_command("audit", tmp_path / "s")
    assert outcome.code == 0, outcome.err
    assert "0 unlabeled training samples" in outcome.out
    assert f"only split '{split}'" in outcome.out


def test_one_class_only(tmp_path, run_command):
    contract = {"kind": "tiles", "value_range": [0, 255]}
    write_store(tmp_path / "s", tiles(30), make_rows(30, semi_label=-1), contract)
    assert "0 unlabeled" in run_command("audit", tmp_path / "s").out
    write_store(tmp_path / "n", tiles(30), make_rows(30, truth=0), contract)
    outcome = run_command("audit", tmp_path / "n")
    assert "no labeled outliers" in outcome.out
    assert "every sample has a truth already" in outcome.out


def test_equal_samples_throughout(tmp_path, run_command):
    samples = np.repeat(tiles(1), 40, axis=0)
    contract = {"kind": "tiles", "value_range": [0, 255]}
    write_store(tmp_path / "s", samples, make_rows(40), contract)
    outcome = run_command("audit", tmp_path / "s", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["exact_copies"] == 39
    assert json.loads(outcome.out)["label_next"] == 1


def refused(run_command, *arguments):
    outcome = run_command("audit", *arguments)
    assert outcome.code == 4
    assert "Traceback" not in outcome.err
    return outcome.err


def test_bad_input_is_an_error_with_its_remedy(planted, vectors, run_command, tmp_path):
    assert "no such folder" in refused(run_command, tmp_path / "none")
    unknown = refused(run_command, planted, "--set", "copies.corelation=0.9")
    assert "did you mean 'correlation'?" in unknown
    assert "holds table rows" in refused(run_command, vectors, "--set", "look=tissue")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    said = refused(run_command, planted, "--out", tmp_path / "other")
    assert "no result of `audit`" in said
    assert (tmp_path / "other" / "thesis.txt").exists()
    tiny = {"kind": "tiles", "value_range": [0, 255]}
    write_store(tmp_path / "tiny", tiles(5, side=4), make_rows(5), tiny)
    assert "4x4 pixels" in refused(run_command, tmp_path / "tiny")


def test_damaged_samples_are_refused(planted, tmp_path):
    store = SampleStore(planted)
    copy = write_store(
        tmp_path / "copy", np.array(store.samples), make_rows(160), dict(store.contract)
    )
    with (tmp_path / "copy" / "samples.npy").open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff\x00\xff")
    with pytest.raises(StoreError, match="SHA-256"):
        audit_store(copy, CONFIG)


def test_rows_that_are_no_numbers_are_refused(tmp_path):
    samples = np.ones((30, 3), np.float32)
    samples[7, 1] = np.nan
    contract = {"kind": "vectors", "value_range": [0, 2]}
    store = write_store(tmp_path / "s", samples, make_rows(30), contract)
    with pytest.raises(StoreError, match="no numbers"):
        audit_store(store, CONFIG)


def test_an_audit_is_replaced_by_the_next(audit, tmp_path):
    write_audit(tmp_path / "out", audit, CONFIG)
    (tmp_path / "out" / "audit.html").write_text("old")
    write_audit(tmp_path / "out", audit, CONFIG)
    assert (tmp_path / "out" / "audit.html").read_text("utf-8") != "old"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="no result of"):
        write_audit(tmp_path / "file", audit, CONFIG)
