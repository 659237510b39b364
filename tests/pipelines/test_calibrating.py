"""Calibration end to end: what is promised, what is refused, and what reports then say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from esad_med.assess.calibration import least_units
from esad_med.base.config import build_spec
from esad_med.base.errors import CaseError, ConfigError, ModelError
from esad_med.base.runs import read_json, write_json
from esad_med.base.store import SampleStore
from esad_med.base.store_writing import write_store
from esad_med.method.decisions import (
    DECISIONS,
    Decisions,
    Level,
    Normals,
    OperatingPoint,
    load_decisions,
)
from esad_med.method.detector import Detector
from esad_med.method.scores import slide_score
from pipelines.calibrating import calibrate, calibrate_folder
from pipelines.calibration_levels import CalibrationConfig
from pipelines.deciding import CaseScore, decide
from pipelines.operating_points import describe_rule
from pipelines.slide_decisions import decide_slide
from pipelines.triage_scoring import ViewDetector, load_detectors

TILES = 6  # of each composed case


def settings(**changes) -> CalibrationConfig:
    return build_spec(CalibrationConfig, {"resamples": 100, **changes}, source="the test")


@pytest.fixture(scope="session")
def held_out(store, tmp_path_factory):
    """A store of cases drawn from the composed tiles, as if of other slides."""

    def make(normals=24, anomalous=3, *, split="", patients=None, contract=None, whole=True):
        own = SampleStore(store)
        rng = np.random.default_rng(5)
        truth = np.asarray(own.rows["truth"], dtype=int)
        cases = normals + anomalous
        rows, samples = [], []
        for case in range(cases):
            ill = case >= normals
            drawn = rng.choice(np.flatnonzero(truth == 0), TILES)
            if ill:
                drawn[0] = rng.choice(np.flatnonzero(truth == 1))
            noise = rng.integers(-3, 4, own.samples.shape[1:])
            samples.append(np.clip(own.samples[drawn].astype(int) + noise, 0, 255))
            for place, index in enumerate(drawn):
                rows.append((f"c{case}_{place}", f"c{case}", int(truth[index])))
        table = pd.DataFrame(rows, columns=["sample_id", "case_id", "truth"])
        numbers = table["case_id"].str[1:].astype(int)
        table["patient_id"] = "p" + (numbers % patients if patients else numbers).astype(str)
        table["split"], table["semi_label"] = split, 1
        names = ("kind", "modality", "value_range", "mpp", "preparation")
        said = {name: own.contract[name] for name in names} | (contract or {})
        said |= {"slides": [{"case_id": f"c{case}"} for case in range(cases)]} if whole else {}
        path = tmp_path_factory.mktemp("held_out") / "store"
        return write_store(path, np.concatenate(samples).astype(np.uint8), table, said)

    return make


@pytest.fixture
def own_copy(trained, tmp_path) -> Path:
    """A detector folder that the test may change."""
    Detector.load(trained).save(tmp_path / "detector")
    return tmp_path / "detector"


def test_slides_and_tiles_are_compared_with_held_out_ones(trained, held_out):
    store, detector = held_out(), Detector.load(trained)
    found = calibrate(detector, store, settings())
    score = detector.score(np.asarray(store.samples)).score.astype(float)
    by_case = pd.Series(score).groupby(store.rows["case_id"]).apply(lambda s: slide_score(s))
    normal = by_case[[f"c{i}" for i in range(24)]]
    assert found.cases is not None
    assert found.cases.kind == "slide"
    assert found.cases.normals.scores == pytest.approx(sorted(normal), abs=1e-5)
    assert found.cases.normals.units == found.samples.normals.units == 24
    assert found.cases.alarm.threshold == pytest.approx(normal.max(), abs=1e-5)
    assert found.samples.normals.count == 24 * TILES  # none of a case with a tumor
    assert found.samples.anomalous == found.cases.anomalous == 3
    assert [point.target for point in found.cases.others] == [0.1, 0.2]  # 1 % takes 99
    assert found.cases.sensitive is None
    assert "fewer than 19" in found.cases.review_rule
    assert {"median score", "mean red", "contrast"} <= set(found.reference)
    assert all(len(values) == 24 for values in found.reference.values())
    for point in (found.samples.alarm, *found.samples.others, found.cases.alarm):
        rate, low, high = point.false_alarms
        assert low <= rate <= high
        assert point.interval[0] <= point.threshold <= point.interval[1]


def test_slides_of_one_patient_weigh_as_one(trained, held_out):
    found = calibrate(
        Detector.load(trained), held_out(24, 0, patients=12), settings(false_alarms=0.1)
    )
    assert found.cases is not None
    assert (found.cases.normals.units, found.cases.normals.count) == (12, 24)
    assert found.cases.normals.unit == "patient"
    assert found.cases.alarm.sensitivity is None


def test_tiles_may_count_alone_and_slides_then_still_by_patient(trained, held_out):
    found = calibrate(Detector.load(trained), held_out(24, 0), settings(tiles_by="tile"))
    assert found.cases is not None
    assert (found.samples.normals.units, found.cases.normals.units) == (24 * TILES, 24)
    few = calibrate(Detector.load(trained), held_out(12, 0), settings(tiles_by="tile"))
    assert few.cases is None
    assert few.no_cases.startswith("12 independent normal slides, 19 are needed for 5 %")


def test_a_store_of_single_tiles_decides_nothing_about_slides(trained, held_out):
    found = calibrate(Detector.load(trained), held_out(whole=False), settings())
    assert found.cases is None
    assert "whole slides" in found.no_cases


def test_with_enough_anomalous_cases_the_zone_keeps_the_sensitivity(trained, held_out):
    found = calibrate(Detector.load(trained), held_out(24, 9), settings(sensitivity=0.9))
    assert found.cases is not None
    assert found.cases.sensitive is not None
    low = found.cases.sensitive.threshold
    assert found.cases.review == min(low, found.cases.alarm.threshold)
    assert found.cases.sensitive.sensitivity is not None
    assert found.cases.sensitive.sensitivity[0] == 0.9


def test_too_few_normals_say_how_many_are_needed(trained, held_out):
    with pytest.raises(CaseError, match=r"7 independent normals \(by patient\), 19 are needed"):
        calibrate(Detector.load(trained), held_out(7, 2), settings())
    calibrate(Detector.load(trained), held_out(7, 2), settings(false_alarms=0.125))
    with pytest.raises(CaseError, match=r"--false-alarms 0\.125 takes what is here"):
        calibrate(Detector.load(trained), held_out(7, 2), settings(false_alarms=0.12))
    with pytest.raises(CaseError, match=r"no normal samples .* 19 independent ones are needed"):
        calibrate(Detector.load(trained), held_out(0, 2), settings())
    assert least_units(0.125) == 7


def test_calibration_data_of_another_contract_is_refused(trained, held_out):
    with pytest.raises(ModelError, match=r"0\.5 µm per pixel, this detector expects 1\.0"):
        calibrate(Detector.load(trained), held_out(contract={"mpp": 0.5}), settings())


def test_slides_of_unknown_truth_are_neither_normal_nor_anomalous(trained, held_out, tmp_path):
    store = held_out(24, 0)
    rows = store.rows.copy()
    rows.loc[rows["case_id"] == "c0", "truth"] = pd.NA
    names = ("kind", "modality", "value_range", "mpp", "preparation", "slides")
    said = {name: store.contract[name] for name in names}
    store = write_store(tmp_path / "unknown", np.asarray(store.samples), rows, said)
    found = calibrate(Detector.load(trained), store, settings())
    assert found.cases is not None
    assert found.cases.normals.count == found.samples.normals.units == 23


def test_rows_of_another_store_that_train_are_left_out(trained, held_out):
    detector = Detector.load(trained)
    with pytest.raises(CaseError, match="all rows train"):
        calibrate(detector, held_out(split="train"), settings())
    with pytest.raises(CaseError, match="rows of split 'val' train detectors"):
        calibrate(detector, held_out(split="val"), settings(), split="val")


@pytest.mark.parametrize(
    "changes", [{"others": [0]}, {"others": [1.0]}, {"others": [-1]}, {"review": 0.9999999999}]
)
def test_rates_that_no_case_can_have_are_refused(changes):
    with pytest.raises(ConfigError, match=r"others|review"):
        settings(**changes)


def test_rows_that_trained_promise_nothing(trained, store):
    detector, own = Detector.load(trained), SampleStore(store)
    for split in ("train", "val"):
        with pytest.raises(CaseError, match=f"rows of split '{split}' train detectors"):
            calibrate(detector, own, settings(), split=split)
    with pytest.raises(CaseError, match="trained on this store, and it has no rows of split"):
        calibrate(detector, own, settings())


def test_rows_of_split_calibration_are_taken_by_themselves(trained, held_out):
    store = held_out(split="calibration")
    assert calibrate(Detector.load(trained), store, settings()).split == "calibration"
    with pytest.raises(CaseError, match="no sample of split 'test'"):
        calibrate(Detector.load(trained), store, settings(), split="test")


def test_decisions_stand_in_the_detector(own_copy, held_out, run_command):
    store = held_out()
    before = Detector.load(own_copy)
    outcome = run_command("calibrate", own_copy, store.path, "--set", "resamples=100", "--json")
    assert outcome.code == 0
    said = json.loads(outcome.out)
    assert {row["level"] for row in said["points"]} == {"tile", "slide"}
    after = Detector.load(own_copy)
    assert after.decisions is not None
    assert after.score_digest == before.digest
    assert after.digest != before.digest
    again = run_command("calibrate", own_copy, store.path)
    assert again.code == 4
    assert "--overwrite" in again.err
    assert run_command("calibrate", own_copy, store.path, "--overwrite").code == 0


def test_saving_keeps_decisions_and_another_detector_s_are_refused(trained, held_out, tmp_path):
    detector = Detector.load(trained)
    decisions = calibrate(detector, held_out(), settings())
    calibrated = Detector(detector.contract, detector.weights, decisions=decisions)
    calibrated.save(tmp_path / "a")
    assert Detector.load(tmp_path / "a").digest == calibrated.digest
    detector.save(tmp_path / "a")  # its training was resumed and had nothing left to do
    assert Detector.load(tmp_path / "a").digest == calibrated.digest
    contract = detector.contract.model_copy(update={"members": 1, "views": 2})
    fusion = contract.fusion.model_copy(update={"members": contract.fusion.members[:1]})
    Detector(contract.model_copy(update={"fusion": fusion}), detector.weights).save(tmp_path / "a")
    assert Detector.load(tmp_path / "a").decisions is None  # the old one's would not fit
    other = decisions.model_copy(update={"detector": "0" * 64})
    with pytest.raises(ModelError, match="calibrated for detector 000000000000"):
        Detector(detector.contract, detector.weights, decisions=other)


@pytest.mark.parametrize("damage", ["digest", "threshold", "shares", "text"])
def test_damaged_decisions_are_refused_at_load_and_made_anew(
    own_copy, held_out, run_command, damage
):
    detector = Detector.load(own_copy)
    calibrate_folder(own_copy, detector, held_out(), settings())
    path = own_copy / DECISIONS
    if damage == "text":
        path.write_text("{")
    else:
        values = read_json(path, ModelError)
        if damage == "digest":
            values["sha256"] = "0" * 64
        elif damage == "threshold":
            values["samples"]["alarm"]["threshold"] += 1e-3
        else:
            values["samples"]["normals"]["shares"][0] = 0.5
        write_json(path, values)
    with pytest.raises(ModelError, match=r"decisions\.json.* calibrate --overwrite"):
        Detector.load(own_copy)
    store = held_out()
    assert run_command("calibrate", own_copy, store.path).code == 4
    assert run_command("calibrate", own_copy, store.path, "--overwrite").code == 0
    assert Detector.load(own_copy).decisions is not None


def test_screening_says_what_is_decided(own_copy, held_out, composed, run_command, tmp_path):
    plain = tmp_path / "plain"
    slide = composed / "normal_0.tif"
    slide = slide if slide.exists() else sorted(composed.glob("*.tif"))[0]
    arguments = ("screen", slide, "--detector", own_copy, "--out")
    assert run_command(*arguments, plain).code == 0
    assert "decision" not in read_json(plain / slide.stem / "slide.json", CaseError)
    assert "not calibrated" in (plain / slide.stem / "report.html").read_text()

    calibrate_folder(own_copy, Detector.load(own_copy), held_out(), settings())
    out = tmp_path / "decided"
    outcome = run_command(*arguments, out)
    assert outcome.code == 0
    found = read_json(out / slide.stem / "slide.json", CaseError)
    decision = found["decision"]
    assert decision["outcome"] in ("alarm", "review", "no alarm")
    assert decision["outcome"] in outcome.err
    tiles = pd.read_csv(out / slide.stem / "scores.csv")
    assert tiles["p_value"].between(1 / 25, 1).all()
    order = tiles.sort_values("score")["p_value"].to_numpy()
    assert (np.diff(order) <= 0).all()
    assert int(tiles["pointed_at"].sum()) == decision["tiles_pointed_at"]
    slides = pd.read_csv(out / "slides.csv")
    assert slides.loc[0, "decision"] == decision["outcome"]
    assert slides.loc[0, "p_value"] == decision["p_value"]
    page = (out / slide.stem / "report.html").read_text()
    assert decision["outcome"].capitalize() in page
    assert "24 independent normals" in page
    assert read_json(out / "run.json", CaseError)["drift"] == []
    again = run_command(*arguments, out)  # complete for this calibration
    assert "slides kept" in (out / "run.json").read_text()
    assert again.code == 0


def test_a_slide_unlike_the_calibration_gets_a_caution(
    own_copy, held_out, composed, run_command, tmp_path
):
    detector = Detector.load(own_copy)
    found = calibrate(detector, held_out(), settings())
    shifted = {name: tuple(v + 1000 for v in values) for name, values in found.reference.items()}
    found.model_copy(update={"reference": shifted}).save(own_copy / DECISIONS)
    out = tmp_path / "out"
    outcome = run_command(
        "screen", composed, "--detector", own_copy, "--out", out, "--precision", "bfloat16"
    )
    assert outcome.code == 0
    slides = pd.read_csv(out / "slides.csv")
    decision = read_json(out / slides.loc[0, "case_id"] / "slide.json", CaseError)["decision"]
    assert any("unlike the normals of the calibration" in text for text in decision["caveats"])
    assert "calibrated in float32, scored in bfloat16" in decision["caveats"]


POINT = OperatingPoint(
    target=0.05, threshold=9.0, interval=(8.0, 10.0), false_alarms=(0.05, 0.01, 0.1)
)


def decisions_of(digest: str, *, scale: float = 1.0, kind: str = "study") -> Decisions:
    """Nineteen normals from 1 to 19, times a scale."""
    scores = tuple(scale * i for i in range(1, 20))
    normals = Normals(
        scores=scores,
        shares=tuple((19 - i) / 19 for i in range(19)),
        units=19,
        unit="patient",
        count=19,
    )
    alarm = POINT.model_copy(update={"threshold": 19 * scale})
    level = Level(
        kind=kind, normals=normals, anomalous=0, alarm=alarm, review=15 * scale, review_rule="so"
    )
    return Decisions(
        detector=digest,
        data="",
        split="",
        precision="float32",
        samples=level,
        cases=level,
        discoveries=0.1,
        created="2026-01-01",
    )


@pytest.mark.parametrize(
    ("score", "outcome", "p"),
    [
        (20.0, "alarm", 1 / 20),
        (19.0, "review", 2 / 20),
        (15.5, "review", 5 / 20),
        (1.0, "no alarm", 1),
    ],
)
def test_a_decision_by_hand(score, outcome, p):
    found = decide([CaseScore(score, decisions_of("0" * 64))])
    assert found["outcome"] == outcome
    assert found["p_value"] == pytest.approx(p)


def test_a_rate_is_said_as_it_was_asked_for():
    level = decisions_of("0" * 64).cases
    odd = level.model_copy(update={"alarm": POINT.model_copy(update={"target": 0.125})})
    assert "at most 12.5 %" in describe_rule(odd)


def test_two_detectors_count_twice():
    both = [CaseScore(20.0, decisions_of("0" * 64)), CaseScore(1.0, decisions_of("1" * 64))]
    found = decide(both)
    assert found["p_value"] == pytest.approx(2 / 20)  # no alarm at 5 %
    assert found["outcome"] == "review"
    assert decide([both[0], CaseScore(1.0, None)])["outcome"] == "not decided"


def test_the_highest_of_several_images_counts_once_for_each():
    """Against studies of one image each, two images have two chances."""
    alone = decisions_of("0" * 64)
    level = alone.cases.model_copy(update={"single": True})
    decisions = alone.model_copy(update={"cases": level})
    found = decide([CaseScore(20.0, decisions, images=2)])
    assert found["p_value"] == pytest.approx(2 / 20)
    assert found["outcome"] == "review"
    assert "no score can give an alarm" in found["rule"]
    assert decide([CaseScore(20.0, alone, images=2)])["outcome"] == "alarm"


def test_slides_on_another_grid_are_not_decided(trained, held_out):
    detector = Detector.load(trained)
    decisions = calibrate(detector, held_out(), settings())
    calibrated = Detector(detector.contract, detector.weights, decisions=decisions)
    scores = np.linspace(0, 1, 40)
    other = {**decisions.tiling, "tiles": {**decisions.tiling["tiles"], "stride_px": 16}}
    same, finer = (
        decide_slide(calibrated, scores, {}, "float32", tiling)
        for tiling in (decisions.tiling, other)
    )
    assert same.decision["outcome"] != "not decided"
    assert finer.decision["outcome"] == "not decided"
    assert "tiles.stride_px 16, there" in finer.decision["rule"]


def test_a_triage_says_what_is_decided(xray_detectors, write_dicom, tmp_path):
    from pipelines.triage import triage
    from pipelines.triage_intake import TriageConfig

    plain = load_detectors([xray_detectors["PA"]])
    one = plain["PA"]
    for number in range(3):
        write_dicom(tmp_path / "in" / f"{number}.dcm", seed=number, ViewPosition="PA")
    first = triage([tmp_path / "in"], plain, tmp_path / "plain", TriageConfig(), say=lambda _: None)
    scores = sorted(row["score"] for row in first.studies)
    middle = decisions_of(one.detector.digest)
    shift = scores[1] - 19 + 1e-4  # scores are rounded; the highest of three lies above all
    level = middle.samples
    moved = level.normals.model_copy(
        update={"scores": tuple(score + shift for score in level.normals.scores)}
    )
    alarm = level.alarm.model_copy(update={"threshold": level.alarm.threshold + shift})
    level = level.model_copy(
        update={"normals": moved, "alarm": alarm, "review": level.review + shift}
    )
    decisions = middle.model_copy(update={"samples": level, "cases": level})
    detector = Detector(one.detector.contract, one.detector.weights, decisions=decisions)
    calibrated = {"PA": ViewDetector(detector, detector.digest, one.spec)}
    said = []
    found = triage(
        [tmp_path / "in"], calibrated, tmp_path / "out", TriageConfig(), dicom=True, say=said.append
    )
    assert [row["decision"] for row in found.studies].count("alarm") == 1
    table = pd.read_csv(tmp_path / "out" / "worklist.csv")
    assert table["p_value"].tolist() == pytest.approx([row["p_value"] for row in found.studies])
    page = (tmp_path / "out" / "worklist.html").read_text()
    assert "1 of 3 studies give an alarm" in page
    assert "not calibrated" in (tmp_path / "plain" / "worklist.html").read_text()

    import pydicom

    codes = {}
    for row in found.studies:
        folder = tmp_path / "out" / "private" / "dicom" / row["case_id"]
        report = pydicom.dcmread(folder / "sr.dcm")
        text = str(report)
        codes[row["decision"]] = text
    assert "'ALARM'" in codes["alarm"]
    assert "Conformal p-value" in codes["alarm"]


def test_thresholds_travel_with_an_export(trained, held_out, tmp_path):
    from pipelines.exporting import export

    detector = Detector.load(trained)
    decisions = calibrate(detector, held_out(), settings())
    Detector(detector.contract, detector.weights, decisions=decisions).save(tmp_path / "detector")
    export(
        tmp_path / "detector",
        tmp_path / "out",
        format="torch-export",
        reference=None,
        overwrite=False,
    )
    assert load_decisions(tmp_path / "out" / DECISIONS) == decisions


def test_unknown_settings_are_named():
    with pytest.raises(ConfigError, match="did you mean 'sensitivity'"):
        settings(sensitivty=0.9)
