"""Which samples a person should label next: suspicious or contested, and unlike each other."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from esad_med.assess.pollution import Indices, Ranking

_POOL = 3  # candidates looked at per label asked for
_NEXT = 5  # of a cluster, among which a case chosen less often goes first
_CONTESTED = 7  # one label in so many goes to what the two terms disagree on


@dataclass(frozen=True)
class Choice:
    """A sample to label: which, why, and how many candidates it stands for.

    Attributes:
        index: into the ranked samples.
        contested: chosen because distance and likeness disagree, not for its score.
        alike: candidates of its cluster.
        cluster: number of it.
    """

    index: int
    contested: bool
    alike: int
    cluster: int


def choose_to_label(
    features: npt.NDArray[np.float32],
    ranking: Ranking,
    candidates: Indices,
    cases: Indices,
    copies: Indices,
    *,
    count: int,
    seed: int,
) -> list[Choice]:
    """Choose samples that are suspicious, of many kinds and cases, and no copies of each other.

    The highest three per label asked for are divided into as many clusters as labels are asked for;
    clusters take turns, the most suspicious first, and give their highest sample of a case that was
    chosen less often than others. One label in seven goes to samples on which distance and likeness
    disagree most, where there are both.

    Args:
        features: (n, k) of the ranked samples.
        ranking: of all of them.
        candidates: those that may be chosen: whose label is not known.
        cases: a number per sample; different numbers where cases are unknown.
        copies: a number per sample; samples of one number are copies of each other.
        count: how many are wanted.
        seed: of the clusters.
    """
    contested = _most_contested(ranking, candidates, count // _CONTESTED)
    order = candidates[np.argsort(-ranking.score[candidates], kind="stable")]
    pool = order[: _POOL * count]
    chosen = _spread(features, pool, cases, copies, count=count - len(contested), seed=seed)
    taken = {copies[one.index] for one in chosen}
    for index in contested:
        if copies[index] not in taken:
            taken.add(copies[index])
            chosen.append(Choice(int(index), True, 1, -1))
    return chosen


def _most_contested(ranking: Ranking, candidates: Indices, count: int) -> Indices:
    if ranking.likeness is None or not count:
        return candidates[:0]
    ranks = [_ranks(term)[candidates] for term in (ranking.distance, ranking.likeness)]
    doubt = np.abs(ranks[0] - ranks[1]) * np.maximum(*ranks)
    return candidates[np.argsort(-doubt, kind="stable")[:count]]


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The share of values below each, 0 to 1."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") / max(1, len(values) - 1)


def _spread(
    features: npt.NDArray[np.float32],
    pool: Indices,
    cases: Indices,
    copies: Indices,
    *,
    count: int,
    seed: int,
) -> list[Choice]:
    """Samples of the pool, which is in falling order, by clusters in turn."""
    if not len(pool) or count < 1:
        return []
    clusters = min(count, len(np.unique(features[pool], axis=0)))
    model = KMeans(n_clusters=clusters, n_init=1, random_state=seed)
    member = model.fit_predict(features[pool]) if clusters > 1 else np.zeros(len(pool), int)
    waiting = {int(c): list(pool[member == c]) for c in dict.fromkeys(member.tolist())}
    size = {cluster: len(rows) for cluster, rows in waiting.items()}
    chosen: list[Choice] = []
    often: dict[int, int] = {}
    taken: set[int] = set()
    while len(chosen) < count and any(waiting.values()):
        for cluster, rows in waiting.items():
            left = [row for row in rows if int(copies[row]) not in taken]
            waiting[cluster] = left
            if not left or len(chosen) == count:
                continue
            # the first of the least chosen case among the cluster's next few
            best = min(left[:_NEXT], key=lambda row: often.get(int(cases[row]), 0))
            often[int(cases[best])] = often.get(int(cases[best]), 0) + 1
            taken.add(int(copies[best]))
            chosen.append(Choice(int(best), False, size[cluster], cluster))
    return chosen
