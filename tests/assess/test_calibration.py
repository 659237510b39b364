"""Conformal p-values and thresholds: by hand, as laws, and by what they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from esad_med.assess.calibration import (
    alarm_threshold,
    bootstrap_rate,
    bootstrap_threshold,
    discoveries,
    false_alarm_interval,
    least_anomalous,
    least_units,
    normal_tail,
    p_values,
    sensitivity_threshold,
    share_above,
)

SCORES = st.lists(st.integers(-50, 50).map(float), min_size=1, max_size=60)


def test_p_values_by_hand() -> None:
    tail = normal_tail([4.0, 1.0, 3.0, 2.0])
    found = p_values([5.0, 4.0, 2.5, 0.0], tail)
    assert found.tolist() == pytest.approx([1 / 5, 2 / 5, 3 / 5, 1.0])


def test_a_patient_with_many_tiles_weighs_as_one() -> None:
    tail = normal_tail([9.0, 9.0, 9.0, 1.0], ["a", "a", "a", "b"])
    assert tail.units == 2
    # one of two patients scores at least 5, and the new one is the third
    assert p_values([5.0], tail)[0] == pytest.approx((1 + 1) / 3)
    assert p_values([5.0], normal_tail([9.0, 9.0, 9.0, 1.0]))[0] == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("rate", "units"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.5, 1), (1 / 3, 2), (0.003, 333)]
)
def test_least_units_is_the_least_for_an_alarm(rate: float, units: int) -> None:
    assert least_units(rate) == units
    assert alarm_threshold(normal_tail(np.arange(units)), rate) == units - 1
    if units > 1:
        assert alarm_threshold(normal_tail(np.arange(units - 1)), rate) is None


@given(SCORES, st.data())
def test_above_the_threshold_means_a_small_p_value(
    scores: list[float], data: st.DataObject
) -> None:
    units = data.draw(st.lists(st.integers(0, 9), min_size=len(scores), max_size=len(scores)))
    rate = data.draw(st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5]))
    tail = normal_tail(scores, units)
    threshold = alarm_threshold(tail, rate)
    probes = np.linspace(-60, 60, 241)
    small = p_values(probes, tail) <= rate + 1e-9
    if threshold is None:
        assert not small.any()
    else:
        assert (small == (probes > threshold)).all()
        assert share_above(tail, threshold) <= rate


@given(SCORES, st.integers(4, 20))
def test_fewer_steps_never_make_a_p_value_smaller(scores: list[float], points: int) -> None:
    whole, thinned = normal_tail(scores), normal_tail(scores, points=points)
    probes = np.linspace(-60, 60, 241)
    exact, found = p_values(probes, whole), p_values(probes, thinned)
    assert (found >= exact - 1e-12).all()
    assert len(thinned.scores) <= max(points, 4)
    high = probes > np.sort(np.unique(scores))[-(points // 2) :][0]
    assert found[high].tolist() == exact[high].tolist()


def test_the_false_alarm_rate_follows_its_beta_binomial_law() -> None:
    rng = np.random.default_rng(0)
    normals, fresh, rate = 99, 50, 0.05
    counts = np.empty(2000)
    for trial in range(len(counts)):
        threshold = alarm_threshold(normal_tail(rng.normal(size=normals)), rate)
        counts[trial] = (rng.normal(size=fresh) > threshold).sum()
    law = stats.betabinom(fresh, 5, 95)
    assert counts.mean() == pytest.approx(law.mean(), abs=4 * law.std() / np.sqrt(len(counts)))
    assert counts.var() == pytest.approx(law.var(), rel=0.15)
    low, high = false_alarm_interval(normals, rate)
    assert stats.beta(5, 95).cdf(high) - stats.beta(5, 95).cdf(low) == pytest.approx(0.95)


def test_tiles_of_a_new_patient_keep_the_promise_only_by_patient() -> None:
    """Patients with few tiles score higher: counted tile by tile they are hardly in the tail."""
    rng = np.random.default_rng(1)

    def patient() -> np.ndarray:
        few = rng.random() < 0.5
        return rng.normal(1.5 if few else 0.0, 0.5, size=2 if few else 60) + rng.normal(0, 0.5)

    hits = {"patient": [], "tile": []}
    for _ in range(400):
        drawn = [patient() for _ in range(39)]
        score = np.concatenate(drawn)
        names = np.repeat(np.arange(39), [len(tiles) for tiles in drawn])
        new = rng.choice(patient())
        hits["patient"].append(p_values([new], normal_tail(score, names))[0] <= 0.1)
        hits["tile"].append(p_values([new], normal_tail(score))[0] <= 0.1)
    assert np.mean(hits["patient"]) <= 0.1 + 3 * np.sqrt(0.09 / 400)
    assert np.mean(hits["tile"]) > 0.2


def test_a_sensitivity_is_kept_for_new_anomalous_cases() -> None:
    assert least_anomalous(0.95) == 19
    assert sensitivity_threshold(np.arange(18.0), 0.95) is None
    lowest = sensitivity_threshold(np.arange(19.0), 0.95)
    assert lowest is not None
    assert -1e-9 < lowest < 0.0  # all nineteen lie above
    rng = np.random.default_rng(2)
    kept = [
        rng.normal() > (sensitivity_threshold(rng.normal(size=39), 0.9) or 0) for _ in range(3000)
    ]
    assert np.mean(kept) == pytest.approx(36.0 / 40, abs=0.02)  # 4 of 40 ranks lie below


def test_benjamini_hochberg_by_hand() -> None:
    p = [0.01, 0.9, 0.02, 0.03, 0.5]  # limits at 10 %: .02, .04, .06, .08, .1
    assert discoveries(p, 0.1).tolist() == [True, False, True, True, False]
    assert not discoveries([0.3, 0.9], 0.1).any()
    assert discoveries([], 0.1).shape == (0,)


def test_intervals_by_patient_are_wider_than_by_tile() -> None:
    rng = np.random.default_rng(3)
    names = np.repeat(np.arange(30), 20)
    score = np.repeat(rng.normal(size=30), 20) + rng.normal(0, 0.1, size=600)
    threshold = alarm_threshold(normal_tail(score, names), 0.1)
    by_patient = bootstrap_threshold(score, 0.1, names, resamples=300)
    by_tile = bootstrap_threshold(score, 0.1, resamples=300)
    assert threshold is not None
    assert by_patient[0] <= threshold <= by_patient[1]
    assert by_patient[1] - by_patient[0] > 2 * (by_tile[1] - by_tile[0])


def test_rates_and_their_intervals() -> None:
    rate, low, high = bootstrap_rate([True] * 10)
    assert (rate, high) == (1.0, 1.0)
    assert low == pytest.approx(0.6915, abs=1e-4)  # Clopper-Pearson
    rate, low, high = bootstrap_rate([True] * 90 + [False], ["a"] * 90 + ["b"], resamples=200)
    assert rate == 0.5
    assert (low, high) == (0.0, 1.0)


@pytest.mark.parametrize("scores", [[], [1.0, float("nan")], [float("inf")]])
def test_no_tail_without_finite_scores(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        normal_tail(scores)
