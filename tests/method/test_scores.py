"""Slide score, AUC, and the fusion of terms and members."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score

from esad_med.method.fusion import (
    Fusion,
    FusionConfig,
    JudgedTerms,
    TermStatistics,
    fit_statistics,
    held_out_auc,
    learn_norm_weight,
)
from esad_med.method.scores import Scores, join_scores, rank_auc, slide_score


def test_slide_score_is_the_mean_of_the_top_one_percent_and_at_least_ten() -> None:
    assert slide_score(np.arange(2000)) == pytest.approx(np.arange(1980, 2000).mean())
    assert slide_score(np.arange(100)) == pytest.approx(94.5)  # 90 ... 99
    assert slide_score(np.array([1.0, 2.0, 6.0])) == 3  # all, as there are fewer than ten
    assert slide_score(np.arange(1001)) == pytest.approx(np.arange(990, 1001).mean())  # 11 tiles


def test_slide_score_needs_a_tile() -> None:
    with pytest.raises(ValueError, match="at least one"):
        slide_score(np.empty(0))


@given(
    hnp.arrays(np.int8, st.integers(1, 30)),
    hnp.arrays(np.int8, st.integers(1, 30)),
)
def test_rank_auc_is_scikit_learns(normal: np.ndarray, anomalous: np.ndarray) -> None:
    truth = np.r_[np.zeros(len(normal)), np.ones(len(anomalous))]
    expected = roc_auc_score(truth, np.r_[normal, anomalous].astype(float))
    assert rank_auc(normal, anomalous) == pytest.approx(expected)


def test_rank_auc_needs_both_classes() -> None:
    with pytest.raises(ValueError, match="both"):
        rank_auc(np.empty(0), np.ones(2))


def test_scores_need_no_torch() -> None:
    code = "import sys, esad_med.method.scores; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_joined_scores_keep_their_order() -> None:
    part = Scores(*(np.array([k, k + 3], "f4") for k in range(3)))
    joined = join_scores([part, part])
    assert joined.norm.tolist() == [2, 5, 2, 5]
    assert len(join_scores([]).score) == 0


def test_sum_is_eq_17_with_the_members_means() -> None:
    fusion = Fusion(mode="sum", reconstruction_weight=1, norm_weight=0.5)
    scores = fusion.fuse(np.array([[1.0], [3.0]]), np.array([[4.0], [8.0]]))
    assert scores.reconstruction == 2
    assert scores.norm == 6
    assert scores.score == 5


def test_the_median_shrugs_off_a_collapsed_member() -> None:
    terms = np.array([[1.0], [3.0], [1000.0]])
    fusion = Fusion(mode="sum", across="median", reconstruction_weight=1, norm_weight=1)
    assert fusion.fuse(terms, terms).score == 6


def test_standardized_terms_by_hand() -> None:
    members = (
        TermStatistics(
            reconstruction_center=1, reconstruction_scale=2, norm_center=0, norm_scale=1
        ),
        TermStatistics(
            reconstruction_center=0, reconstruction_scale=1, norm_center=2, norm_scale=4
        ),
    )
    fusion = Fusion(
        mode="standardized", members=members, reconstruction_weight=0.25, norm_weight=0.75
    )
    scores = fusion.fuse(np.array([[5.0], [4.0]]), np.array([[1.0], [6.0]]))
    # reconstruction (5-1)/2 = 2 and 4 -> 3; norm 1 and (6-2)/4 = 1 -> 1; .25 * 3 + .75 * 1
    assert scores.reconstruction == pytest.approx(3)
    assert scores.norm == pytest.approx(1)
    assert scores.score == pytest.approx(1.5)


def test_statistics_by_hand() -> None:
    values = np.array([1.0, 2.0, 3.0, 10.0])
    mean = fit_statistics(values, values, FusionConfig())
    assert (mean.reconstruction_center, mean.norm_scale) == pytest.approx((4, values.std()))
    median = fit_statistics(values, values, FusionConfig(center="median"))
    assert (median.norm_center, median.norm_scale) == pytest.approx((2.5, 1.4826))
    log = fit_statistics(np.exp(values) - 0.01, values, FusionConfig(transform="log"))
    assert log.reconstruction_center == pytest.approx(4)  # log(term + 0.01)
    constant = fit_statistics(values, np.zeros(4), FusionConfig())
    assert constant.norm_scale == pytest.approx(1e-3)  # a norm that is zero is not blown up
    nearly = fit_statistics(values, np.array([0.001, 0.002, 0.003]), FusionConfig(transform="log"))
    assert nearly.norm_scale == pytest.approx(0.1)  # nor logarithms of next to nothing


def _held_out(outliers: int, *, good: str) -> tuple[list[JudgedTerms], int]:
    rng = np.random.default_rng(0)
    shift = [[3.0], [-3.0]] if good == "reconstruction" else [[-3.0], [3.0]]
    anomalous = rng.normal(size=(2, outliers)) + shift
    halves = np.split(anomalous, [outliers // 2], axis=1)  # two members hold out a half each
    return [JudgedTerms(rng.normal(size=(2, 200)), half) for half in halves], outliers


def test_the_learned_weight_follows_the_term_that_separates() -> None:
    config = FusionConfig(shrinkage=2)
    to_norm = learn_norm_weight(*_held_out(40, good="norm"), config)
    to_reconstruction = learn_norm_weight(*_held_out(40, good="reconstruction"), config)
    assert to_norm is not None
    assert to_norm > 0.8
    assert to_reconstruction is not None
    assert to_reconstruction < 0.2


def test_the_learned_weight_is_shrunk_towards_the_norm_alone() -> None:
    table = _held_out(20, good="reconstruction")
    free = learn_norm_weight(*table, FusionConfig(shrinkage=0))
    shrunk = learn_norm_weight(*table, FusionConfig(shrinkage=20))
    assert free is not None
    assert free < 0.2
    assert shrunk == pytest.approx((free + 1) / 2)


@pytest.mark.parametrize(("normals", "outliers"), [(0, 20), (20, 0)])
def test_nothing_held_out_teaches_nothing(normals: int, outliers: int) -> None:
    nothing = [JudgedTerms(np.ones((2, normals)), np.ones((2, outliers)))]
    assert learn_norm_weight(nothing, outliers, FusionConfig()) is None


def test_held_out_auc_compares_within_a_member() -> None:
    """A member whose scale is off by 100 still ranks its own outliers above its own normals."""
    first = JudgedTerms(np.array([[0.0, 1.0], [0, 0]]), np.array([[2.0], [0]]))
    second = JudgedTerms(np.array([[100.0, 102], [0, 0]]), np.array([[101.0, 103, 103], [0, 0, 0]]))
    assert held_out_auc([first, second], (1.0, 0.0)) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert held_out_auc([first._replace(outliers=np.ones((2, 0)))], (1.0, 0.0)) is None
