import numpy as np

from esad_med.assess.drift import LEAST_CASES, SCORE, batch_drift, unlike

RNG = np.random.default_rng(0)
REFERENCE = {"median score": RNG.normal(1, 0.1, 40).tolist(), "red": [200.0] * 40}


def test_a_case_within_the_calibration_is_not_unlike_it() -> None:
    assert unlike({"median score": 1.25, "red": 200.0, "blue": 7.0}, REFERENCE) == {}


def test_a_case_far_outside_says_what_was_found_and_expected() -> None:
    found = unlike({"median score": 3.0, "red": 200.1}, REFERENCE)
    assert set(found) == {"median score", "red"}  # the red of all normals is equal
    assert found["median score"].startswith("3, in the calibration 0.")


def test_too_few_cases_of_the_calibration_tell_nothing() -> None:
    assert unlike({"median score": 99.0}, {"median score": [1.0] * (LEAST_CASES - 1)}) == {}


def test_a_batch_of_another_scanner_is_noticed_and_one_alike_is_not() -> None:
    alike = [{"median score": float(v), "red": 200.0} for v in RNG.normal(1, 0.1, 12)]
    shifted = [{"median score": float(v), "red": 200.0} for v in RNG.normal(1.4, 0.1, 12)]
    assert batch_drift(alike, REFERENCE) == {}
    found = batch_drift(shifted, REFERENCE)
    assert list(found) == ["median score"]
    assert "over 12 cases, in the calibration" in found["median score"]
    assert batch_drift(shifted[: LEAST_CASES - 1], REFERENCE) == {}


def test_false_warnings_are_rare() -> None:
    rng = np.random.default_rng(1)
    warned = 0
    for _ in range(500):
        reference = {name: rng.normal(size=30).tolist() for name in "abcd"}
        batch = [{name: float(rng.normal()) for name in "abcd"} for _ in range(15)]
        warned += bool(batch_drift(batch, reference))
    assert warned <= 3  # once in a thousand


def test_anomalies_among_radiographs_are_no_drift_but_another_level_is() -> None:
    rng = np.random.default_rng(2)
    reference = {SCORE: rng.normal(size=200).tolist()}
    ill = [{SCORE: float(v)} for v in np.r_[rng.normal(size=140), rng.normal(3, 1, 60)]]
    shifted = [{SCORE: float(v)} for v in rng.normal(-0.8, 1, 200)]
    assert batch_drift(ill, reference) == {}
    assert list(batch_drift(shifted, reference)) == [SCORE]
    assert unlike({SCORE: 99.0}, reference) == {}


def test_a_fact_that_some_cases_lack_is_left_out() -> None:
    batch = [{"median score": 9.0}, *[{"red": 200.0, "median score": 9.0}] * 9]
    assert list(batch_drift(batch, REFERENCE)) == ["median score"]
