"""Stores of radiographs: published counts, patients that stay whole, images that are missing."""

import shutil

import numpy as np
import pytest
from PIL import Image

from data_prep.xray import read_xray
from data_prep.xray_chain import xray_chain
from esad_med.base.config import load_config
from esad_med.base.errors import CaseError, ConfigError
from esad_med.base.store import SampleStore
from esad_med.method.detector import Detector
from pipelines.xray_store import XrayStoreConfig, make_xray_store, plan_xray_store


def configure(*settings: str) -> XrayStoreConfig:
    return load_config(XrayStoreConfig, None, list(settings))


@pytest.mark.data
@pytest.mark.parametrize(
    ("view", "normal", "tested", "only", "quarter", "percent"),
    [
        ("PA", 34497, (4805, 6291), 4722, 1180, "3.31 %"),
        ("AP", 16003, (5056, 9444), 2605, 651, "3.91 %"),
    ],
)
def test_the_published_counts_come_out(data_root, view, normal, tested, only, quarter, percent):
    table = data_root / "nih_lists" / "Data_Entry_2017_v2020.csv.gz"
    official = [str(data_root / "nih_lists" / f"{n}_list.txt.gz") for n in ("train_val", "test")]
    names = ("normal_train", "normal_test", "anomaly_test", "infiltration_only_trainval")
    dpa = [str(data_root / "splits_dpa" / "nih" / f"{view}_{name}.txt.gz") for name in names]
    for lists in (official, dpa):
        rows, summary = plan_xray_store(table, lists, configure(f"view={view}"))
        counts = summary.counts
        assert counts["train_normal"] == normal
        assert (counts["test_normal"], counts["test_anomalous"]) == tested
        assert counts["train_labeled"] == quarter
        assert percent in str(summary)
        assert len(rows) == normal + quarter + sum(tested)
        every = plan_xray_store(table, lists, configure(f"view={view}", "outliers.fraction=1"))
        assert every[1].counts["train_labeled"] == only


@pytest.mark.data
def test_the_clear_subset_follows_its_lists(data_root):
    table = data_root / "nih_lists" / "Data_Entry_2017_v2020.csv.gz"
    folder = data_root / "splits_dpa" / "nih"
    config = configure("view=any", "outliers.finding=any", "outliers.fraction=1")
    names = ("normal_train", "normal_val", "anomaly_val", "normal_test", "anomaly_test")
    lists = [str(folder / f"subset_{name}.txt.gz") for name in names]
    _, summary = plan_xray_store(table, lists, config)
    found = summary.counts
    assert (found["train_normal"], found["val_normal"], found["val_anomalous"]) == (4261, 849, 857)
    assert (found["test_normal"], found["test_anomalous"]) == (677, 667)
    assert summary.disagreements == 30  # 19 + 2 of the test, as the lists' README counts, and 9
    joined = [f"train={text}" if "_val" in text else text for text in lists]
    _, summary = plan_xray_store(table, joined, config)
    assert (summary.counts["train_normal"], summary.counts["train_labeled"]) == (5110, 857)


def test_a_split_by_patient_keeps_patients_whole(nih):
    shares = []
    for seed in range(5):
        rows, _ = plan_xray_store(nih / "table.csv", [], configure("view=any", f"seed={seed}"))
        assert (rows.groupby("patient_id")["split"].nunique() == 1).all()
        shares.append(float((rows["split"] == "test").mean()))
    assert 0.35 < np.mean(shares) < 0.55
    first, second = (
        plan_xray_store(nih / "table.csv", [], configure("view=any", f"seed={seed}"))[0]
        for seed in (0, 1)
    )
    assert not first.equals(second)


def test_only_contains_and_the_fraction_choose_the_labeled(nih, tmp_path):
    table = nih / "table.csv"
    everything = tmp_path / "train_list.txt"
    names = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
    everything.write_text("\n".join(names))

    def labeled(*settings: str) -> set[str]:
        config = configure("view=any", *settings)
        rows, _ = plan_xray_store(table, [str(everything)], config)
        return set(rows.loc[rows["semi_label"] == -1, "findings"])

    def count(*settings: str) -> int:
        config = configure("view=any", *settings)
        return plan_xray_store(table, [str(everything)], config)[1].counts["train_labeled"]

    assert labeled("outliers.fraction=1") == {"Infiltration"}
    assert labeled("outliers.fraction=1", "outliers.match=contains") == {
        "Infiltration",
        "Effusion|Infiltration",
    }
    assert labeled("outliers.finding=Effusion", "outliers.fraction=1") == set()
    assert (count("outliers.fraction=1"), count("outliers.fraction=0.5")) == (8, 4)
    assert count("outliers.finding=any", "outliers.fraction=1") == 16
    rows, summary = plan_xray_store(
        table, [str(everything)], configure("view=any", "outliers.others=unlabeled")
    )
    hidden = rows[(rows["truth"] == 1) & (rows["semi_label"] == 1)]
    assert summary.counts["train_pollution"] == len(hidden) == 14


def test_a_patient_in_two_lists_is_refused(nih, tmp_path):
    (tmp_path / "train_list.txt").write_text("00000001_000.png\n")
    (tmp_path / "test_list.txt").write_text("00000001_001.png\n")
    lists = [str(tmp_path / "train_list.txt"), str(tmp_path / "test_list.txt")]
    with pytest.raises(CaseError, match="patient 1: found in split"):
        plan_xray_store(nih / "table.csv", lists, configure("view=any"))


def test_samples_are_the_chain_s_and_what_is_missing_is_recorded(nih, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(nih, folder)
    gone = next(folder.rglob("00000001_000.png"))
    gone.unlink()
    next(folder.rglob("00000003_000.png")).write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    Image.new("L", (100, 100)).save(folder / "images_001" / "stray.png")
    out = tmp_path / "store"
    config = configure("view=any", "outliers.fraction=1", "outliers.match=contains")
    summary = make_xray_store([folder], folder / "table.csv", out, config)
    store = SampleStore(out)
    reasons = {failure.case_id: failure.message for failure in summary.failures}
    assert "no such file" in reasons["00000001_000.png"]
    assert "PNG" in reasons["00000003_000.png"]
    assert "no row of the table" in reasons["stray.png"]
    assert len(reasons) == 3
    again = make_xray_store([folder], folder / "table.csv", out, config)
    assert again.complete_already
    assert again.failures == summary.failures
    assert store.samples.shape[1:] == (64, 64, 1)
    for row in (0, len(store) - 1):
        path = next(folder.rglob(store.rows["image"][row]))
        expected = xray_chain(config.xray)(read_xray(path).pixels)
        assert np.array_equal(store.samples[row], expected)
    assert store.contract["view_positions"] == ["AP", "PA"]
    assert sum(
        summary.counts[name]
        for name in ("train_normal", "train_labeled", "test_normal", "test_anomalous")
    ) == len(store)


def test_a_rerun_finds_the_store_complete_and_other_settings_are_refused(nih, tmp_path):
    out = tmp_path / "store"
    first = make_xray_store([nih], nih / "table.csv", out, configure("view=PA"))
    before = (out / "samples.npy").stat().st_mtime_ns
    again = make_xray_store([nih], nih / "table.csv", out, configure("view=PA"))
    assert again.complete_already
    assert again.counts == first.counts
    assert (out / "samples.npy").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="other images or settings"):
        make_xray_store([nih], nih / "table.csv", out, configure("view=AP"))
    changed = make_xray_store([nih], nih / "table.csv", out, configure("view=AP"), overwrite=True)
    assert not changed.complete_already


def test_what_other_limits_set_aside_is_tried_again(nih, tmp_path):
    table, out = nih / "table.csv", tmp_path / "s"

    def stop(label, done, total):
        raise KeyboardInterrupt

    low = configure("limits.megapixels=0.0001")
    with pytest.raises(KeyboardInterrupt):
        make_xray_store([nih], table, out, low, progress=stop)
    assert (tmp_path / ".s.unfinished" / "journal.jsonl").exists()
    assert make_xray_store([nih], table, out, configure()).failures == []


def test_no_image_at_all_is_an_error(nih, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaseError, match="none of the"):
        make_xray_store([tmp_path / "empty"], nih / "table.csv", tmp_path / "s", configure())


def test_images_in_another_format_are_found_by_their_stem(nih, tmp_path):
    folder = tmp_path / "jpeg"
    folder.mkdir()
    for path in nih.rglob("*.png"):
        Image.open(path).save(folder / f"{path.stem}.jpg", quality=95)
    summary = make_xray_store(
        [folder], nih / "table.csv", tmp_path / "store", configure("view=any")
    )
    assert summary.failures == []


def test_a_detector_knows_its_view_and_crop(xray_detectors):
    detector = Detector.load(xray_detectors["PA"])
    assert detector.input.modality == "chest radiograph"
    assert detector.input.view_positions == ("PA",)
    assert detector.input.crop_share == 0.75
    low, high = detector.contract.calibration.residual_limits
    assert 0 <= low < high


def test_a_store_of_another_view_or_crop_is_refused(nih, xray_detectors, tmp_path, run_command):
    for name, settings, word in (
        ("ap", ["view=AP"], "views AP"),
        ("crop", ["view=PA", "xray.crop_share=1"], "crop share 1.0"),
    ):
        make_xray_store([nih], nih / "table.csv", tmp_path / name, configure(*settings))
        done = run_command(
            "score",
            tmp_path / name,
            "--detector",
            xray_detectors["PA"],
            "--out",
            tmp_path / "x.csv",
        )
        assert done.code == 4
        assert word in done.err


def test_the_command_counts_makes_and_reports(nih, tmp_path, run_command):
    table = ["--table", nih / "table.csv"]
    counted = run_command("xray", *table, "--view", "any", "--dry-run")
    assert counted.code == 0
    assert "view any" in counted.out
    made = run_command("xray", nih, *table, "--out", tmp_path / "store", "--view", "AP", "--json")
    assert made.code == 0
    assert '"view": "AP"' in made.out
    Image.new("L", (90, 90)).save(tmp_path / "stray.png")
    extra = run_command("xray", nih, tmp_path, *table, "--out", tmp_path / "more")
    assert extra.code == 3
    assert "stray.png" in extra.err
    missing = run_command("xray", nih, "--out", tmp_path / "x", "--table", tmp_path / "no.csv")
    assert missing.code == 4
    assert run_command("xray", *table).code == 2
    wrong = run_command("xray", *table, "--dry-run", "--finding", "Infiltrations")
    assert wrong.code == 4
    assert "expected any, or one of" in wrong.err
