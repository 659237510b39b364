"""Scores and what is made of them: Eq. 17 with its terms, tile scores to a slide score, AUC."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

TOP_SHARE = 0.01
TOP_COUNT = 10
SLIDE_RULE = "mean of the highest 1 % of tile scores, at least 10 tiles, all if there are fewer"


class Scores(NamedTuple):
    """Scores of n samples; higher is more anomalous.

    Attributes:
        score: (n,), the detector's weights applied to the two terms below.
        reconstruction: (n,), the first term of Eq. 17, ‖x_hat - x‖²; with standardized fusion in
            standard deviations above the mean of held-out normals.
        norm: (n,), the second term, ‖z_hat‖, likewise.
    """

    score: Floats
    reconstruction: Floats
    norm: Floats


def join_scores(parts: Iterable[Scores]) -> Scores:
    """The scores of several batches as one, in their order."""
    columns = list(zip(*parts, strict=True)) or [(), (), ()]
    return Scores(*(np.concatenate([np.empty(0, np.float32), *c]).astype("f4") for c in columns))


def slide_score(scores: npt.NDArray[Any]) -> float:
    """The score of a slide from its tiles' scores (n,): `SLIDE_RULE`.

    Raises:
        ValueError: there are no tiles.
    """
    if len(scores) == 0:
        raise ValueError("a slide score needs at least one tile")
    count = min(len(scores), max(TOP_COUNT, int(np.ceil(TOP_SHARE * len(scores)))))
    return float(np.partition(np.asarray(scores, np.float64), -count)[-count:].mean())


def rank_auc(normal: npt.NDArray[Any], anomalous: npt.NDArray[Any]) -> float:
    """Share of (normal, anomalous) pairs in the right order, ties counted half; 0 to 1.

    Raises:
        ValueError: one of the two is empty.
    """
    if not len(normal) or not len(anomalous):
        raise ValueError("an AUC needs scores of both classes")
    ranked = np.sort(normal)
    below = np.searchsorted(ranked, anomalous, "left")
    up_to = np.searchsorted(ranked, anomalous, "right")
    return float((below + up_to).mean() / (2 * len(ranked)))
