"""Measures against numbers by hand, and the bootstrap against one written out in full."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from esad_med.assess.measures import (
    auc,
    average_precision,
    bootstrap_auc,
    roc_curve,
    sensitivity_at_specificity,
    set_aside_share,
)

TRUTH = [0, 0, 0, 0, 1, 1]
SCORE = [1.0, 2.0, 3.0, 5.0, 4.0, 6.0]


def test_measures_by_hand():
    # Of 4 x 2 pairs only (normal 5, anomalous 4) is the wrong way round.
    assert auc(TRUTH, SCORE) == pytest.approx(7 / 8)
    # Falling order: 6 (hit, 1/1), 5, 4 (hit, 2/3).
    assert average_precision(TRUTH, SCORE) == pytest.approx((1 + 2 / 3) / 2)
    assert sensitivity_at_specificity(TRUTH, SCORE, 1.0) == pytest.approx(0.5)
    assert sensitivity_at_specificity(TRUTH, SCORE, 0.75) == pytest.approx(1.0)
    assert sensitivity_at_specificity(TRUTH, SCORE, 0.76) == pytest.approx(0.5)
    # Both anomalous ones are found from 4 upward; three of four normals lie below.
    assert set_aside_share(TRUTH, SCORE) == pytest.approx(0.75)
    assert set_aside_share(TRUTH, SCORE, sensitivity=0.5) == pytest.approx(1.0)


def test_ties_count_one_half():
    assert auc([0, 1], [1.0, 1.0]) == 0.5
    assert bootstrap_auc([0, 1, 0, 1], [1.0] * 4, ["a", "a", "b", "b"]) == (0.5, 0.5)


def test_one_group_of_a_class_gives_no_interval():
    truth, score = [0, 0, 0, 1, 1, 1], [1, 2, 3, 2, 3, 4]
    assert np.isfinite(bootstrap_auc(truth, score, list("abcdee"))).all()
    assert np.isnan(bootstrap_auc(truth, score, list("abcddd"))).all()
    assert np.isnan(bootstrap_auc(truth, score, list("aaadef"))).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-5, 5)), min_size=2, max_size=40))
def test_auc_is_unchanged_by_a_rising_map_and_turned_by_a_falling_one(pairs):
    truth, score = np.array(pairs).T
    if truth.min() == truth.max():
        return
    plain = auc(truth, score)
    assert auc(truth, np.exp(score / 3)) == pytest.approx(plain)
    assert auc(truth, -score) == pytest.approx(1 - plain)
    assert 0 <= set_aside_share(truth, score) <= 1


@pytest.mark.parametrize("few", [1000, 0])
def test_bootstrap_equals_one_written_out_in_full(few, monkeypatch):
    monkeypatch.setattr("esad_med.assess.measures._FEW_GROUPS", few)
    random = np.random.default_rng(3)
    truth = random.random(90) < 0.4
    score = np.round(random.normal(size=90) + truth, 1)  # with ties
    groups = random.integers(0, 9, 90)
    low, high = bootstrap_auc(truth, score, groups, resamples=300, seed=5)
    again = np.random.default_rng(5)
    aucs = []
    names = pd.factorize(groups)[1]
    for drawn in again.integers(0, 9, size=(300, 9)):
        rows = np.concatenate([np.flatnonzero(groups == names[code]) for code in drawn])
        aucs.append(metrics.roc_auc_score(truth[rows], score[rows]))
    assert (low, high) == pytest.approx(tuple(np.quantile(aucs, [0.025, 0.975])))


def test_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    true_auc = 0.7602  # P(N(1,1) > N(0,1)) = Phi(1 / sqrt 2)
    hits = 0
    for trial in range(100):
        score = np.r_[random.normal(size=60), random.normal(1, 1, size=60)]
        low, high = bootstrap_auc(np.repeat([0, 1], 60), score, resamples=200, seed=trial)
        hits += low <= true_auc <= high
    assert 86 <= hits <= 100


def test_clustered_tiles_widen_the_interval():
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 50)
    truth = (groups % 2).astype(int)
    score = truth + 1.5 * random.normal(size=20)[groups] + 0.1 * random.normal(size=1000)
    by_tile = bootstrap_auc(truth, score)
    by_group = bootstrap_auc(truth, score, groups)
    assert by_group[1] - by_group[0] > 3 * (by_tile[1] - by_tile[0])


def test_chunks_of_resamples_do_not_change_the_interval(monkeypatch):
    random = np.random.default_rng(0)
    table = {"truth": np.arange(120) % 3 == 0, "score": random.normal(size=120)}
    table["case_id"] = np.arange(120) % 12
    monkeypatch.setattr("esad_med.assess.measures._FEW_GROUPS", 0)
    whole = bootstrap_auc(table["truth"], table["score"], table["case_id"], resamples=101)
    monkeypatch.setattr("esad_med.assess.measures.CHUNK", 1000)
    pieces = bootstrap_auc(table["truth"], table["score"], table["case_id"], resamples=101)
    assert pieces == whole


def test_one_group_has_no_interval():
    assert np.isnan(bootstrap_auc([0, 1, 0, 1], [1.0, 2.0, 3.0, 4.0], ["a"] * 4)).all()


def test_roc_curve_rises_from_corner_to_corner():
    fpr, tpr = roc_curve(TRUTH, SCORE)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()
    assert np.trapezoid(tpr, fpr) == pytest.approx(auc(TRUTH, SCORE))
