"""The ranking of unlabeled samples, and what to label next."""

import numpy as np
import pytest

from esad_med.assess.label_next import choose_to_label
from esad_med.assess.pollution import Ranking, RankingRule, rank_pollution, with_detector

RULE = RankingRule(neighbors=10, references=10_000, folds=5, seed=0)


def samples(kinds=1, hidden=20, marked=20, seed=0):
    """Normals around the origin, anomalies around other points, the first of them hidden."""
    random = np.random.default_rng(seed)
    normal = random.normal(size=(400, 6))
    centers = 3 * np.eye(6)[:kinds]
    unlabeled = centers[random.integers(0, kinds, hidden)] + random.normal(0, 0.5, (hidden, 6))
    known = centers[0] + random.normal(0, 0.5, (marked, 6))
    together = np.concatenate([normal, unlabeled]).astype(np.float32)
    return together, known.astype(np.float32), np.arange(len(normal), len(together))


def recall(score, hidden):
    highest = np.argsort(-score)[: len(hidden)]
    return np.isin(hidden, highest).mean()


def rank(unlabeled, known, groups=None, known_groups=None):
    if groups is None:
        groups, known_groups = np.arange(len(unlabeled)), len(unlabeled) + np.arange(len(known))
    return rank_pollution(unlabeled, known, groups, known_groups, RULE)


def test_labeled_outliers_help_to_find_the_hidden_ones():
    unlabeled, known, hidden = samples()
    ranking = rank(unlabeled, known)
    assert recall(ranking.score, hidden) > 0.6  # 0.70 to 0.85 over three seeds; distance alone 0
    assert recall(ranking.score, hidden) > recall(ranking.distance, hidden) + 0.2
    assert ranking.weights[1] > 0.9


def test_without_labeled_outliers_the_far_ones_come_first():
    unlabeled, _, hidden = samples()
    unlabeled[hidden] += 3 + np.random.default_rng(9).normal(0, 1.5, (20, 6))
    ranking = rank(unlabeled, unlabeled[:0])
    assert ranking.likeness is None
    assert recall(ranking.score, hidden) > 0.9


def test_a_tight_cluster_is_found_in_part_only():
    unlabeled, _, hidden = samples()
    unlabeled[hidden] += 3  # twenty of a kind: each other's nearest, a known weakness
    assert recall(rank(unlabeled, unlabeled[:0]).score, hidden) > 0.2  # by neighbors alone: 0


def test_outliers_that_nothing_tells_apart_do_not_decide():
    unlabeled, _, hidden = samples()
    unlabeled[hidden] += 4
    random = np.random.default_rng(1)
    ranking = rank(unlabeled, random.normal(size=(20, 6)).astype(np.float32))
    assert max(ranking.weights) < 0.3


def test_a_group_does_not_vouch_for_itself():
    random = np.random.default_rng(0)
    unlabeled = random.normal(size=(300, 6)).astype(np.float32)
    groups = np.repeat(np.arange(10), 30)
    odd = np.flatnonzero(groups == 4)
    unlabeled[odd] = 2.5 + 0.1 * random.normal(size=(30, 6))
    whole = rank(unlabeled, unlabeled[:0], groups, groups[:0])
    torn = rank(unlabeled, unlabeled[:0])
    assert (whole.held_out_by, torn.held_out_by) == ("group", "group")  # each its own group
    assert recall(whole.score, odd) == 1
    assert recall(torn.score, odd) < 0.5
    few = rank(unlabeled, unlabeled[:0], np.minimum(groups, 3), groups[:0])
    assert few.held_out_by == "sample"


def test_few_or_equal_samples_are_ranked_too():
    same = np.zeros((3, 2), np.float32)
    assert np.isfinite(rank(same, same).score).all()
    one_group = np.zeros(30, int)
    unlabeled, known, _ = samples()
    ranking = rank(unlabeled[:30], known[:10], one_group, one_group[:10])
    assert np.isfinite(ranking.score).all()


def test_labeled_outliers_of_one_group_alone():
    unlabeled, known, hidden = samples()
    groups = np.arange(len(unlabeled)) % 10
    ranking = rank(unlabeled, known, groups, np.full(len(known), 3))
    assert recall(ranking.score, hidden) > 0.4


def test_equal_seeds_give_equal_rankings():
    unlabeled, known, _ = samples()
    assert np.array_equal(rank(unlabeled, known).score, rank(unlabeled, known).score)


def test_a_detector_counts_for_one_half():
    unlabeled, known, hidden = samples()
    ranking = rank(unlabeled, known)
    scores = np.zeros(len(unlabeled))
    scores[hidden] = 1
    standing, joined = with_detector(ranking, scores + np.random.default_rng(0).normal(0, 0.1, 420))
    assert recall(joined.score, hidden) == 1
    assert standing[hidden].min() > standing[: hidden[0]].max()


def make_ranking(score):
    score = np.asarray(score, float)
    return Ranking(score, score, None, (1.0, 0.0), "sample")


def choose(features, ranking, *, count, candidates=None, cases=None, copies=None):
    n = len(features)
    candidates = np.arange(n) if candidates is None else np.asarray(candidates, int)
    cases = np.arange(n) if cases is None else np.asarray(cases)
    copies = np.arange(n) if copies is None else np.asarray(copies)
    return choose_to_label(features, ranking, candidates, cases, copies, count=count, seed=0)


def test_labels_are_spread_over_kinds_and_spared_for_copies():
    random = np.random.default_rng(0)
    kinds = np.repeat(np.arange(3), 20)
    features = (10 * np.eye(3)[kinds] + random.normal(0, 0.1, (60, 3))).astype(np.float32)
    score = np.linspace(1, 0, 60)  # all of the first kind before those of the second
    chosen = [one.index for one in choose(features, make_ranking(score), count=20)]
    assert len(chosen) == len(set(chosen)) == 20
    assert set(kinds[chosen]) == {0, 1, 2}
    assert chosen[0] == 0
    copies = np.where(np.arange(60) < 20, 0, np.arange(60))
    spared = [one.index for one in choose(features, make_ranking(score), count=20, copies=copies)]
    assert sum(index < 20 for index in spared) == 1
    assert all(
        20 <= i < 40
        for i in (
            one.index
            for one in choose(features, make_ranking(score), count=5, candidates=np.arange(20, 40))
        )
    )


def test_cases_take_turns():
    features = np.zeros((30, 2), np.float32)
    cases = np.repeat(np.arange(5), 6)
    score = np.tile(np.linspace(1, 0, 6), 5)
    chosen = [one.index for one in choose(features, make_ranking(score), count=5, cases=cases)]
    assert len(set(cases[chosen])) >= 3


def test_some_labels_go_to_what_the_terms_disagree_on():
    random = np.random.default_rng(0)
    distance, likeness = random.normal(size=(2, 200))
    distance[50], likeness[50] = 9, -9
    score = distance + likeness
    ranking = Ranking(score, distance, likeness, (1, 1), "sample")
    chosen = choose(random.normal(size=(200, 3)).astype(np.float32), ranking, count=14)
    assert len(chosen) == 14
    assert 50 in [one.index for one in chosen if one.contested]


@pytest.mark.parametrize("count", [1, 5, 100])
def test_there_may_be_fewer_candidates_than_wanted(count):
    features = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    assert len(choose(features, make_ranking([4, 3, 2, 1]), count=count)) == min(4, count)
    assert choose(features, make_ranking([4, 3, 2, 1]), count=3, candidates=[]) == []
