"""From the two terms of each ensemble member to one score: plain Eq. 17, or standardized terms."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from esad_med.base.config import Spec
from esad_med.method.scores import Scores, rank_auc

Values = npt.NDArray[np.float64]
_GRID = np.linspace(0, 1, 41)
# Under the logarithm: a term below it counts as zero, so that exact zeros are nothing special.
OFFSET = 0.01
# A term that hardly varies over the normals (a norm that is zero for all of them) is not blown up.
# Under the logarithm that is one that varies by less than a tenth.
_SMALLEST_SCALE = {"linear": 1e-3, "log": 0.1}


class FusionConfig(Spec):
    """How members and terms are put together."""

    mode: Literal["sum", "standardized"] = Field(
        "standardized",
        description="sum is Eq. 17 literally; standardized takes both terms in standard deviations"
        " of each member's held-out normals.",
    )
    transform: Literal["linear", "log"] = Field(
        "linear", description="Taken of a term first; log is log(term + 0.01)."
    )
    center: Literal["mean", "median"] = Field(
        "mean", description="Mean and standard deviation, or median and 1.4826 MAD."
    )
    statistics: Literal["member", "pooled"] = Field(
        "member", description="Center and scale of each member's own held-out normals, or of all."
    )
    across: Literal["mean", "median"] = Field(
        "mean", description="Over the members; the median shrugs off one that collapsed."
    )
    norm_weight: float = Field(
        0.8, ge=0, le=1, description="Share of the norm term where none is learned."
    )
    learn_weight: bool = Field(
        True, description="Learn the share from held-out normals and held-out labeled outliers."
    )
    min_outliers: int = Field(
        10,
        ge=1,
        description="With fewer labeled outliers none is held out, and the default stays.",
    )
    shrinkage: float = Field(
        10.0,
        ge=0,
        description="How many outliers speak beforehand for the norm term alone, which was trained"
        " on outliers.",
    )


class TermStatistics(Spec):
    """Center and scale of one member's two terms on normals it was not trained on."""

    reconstruction_center: float
    reconstruction_scale: float = Field(gt=0)
    norm_center: float
    norm_scale: float = Field(gt=0)


class JudgedTerms(NamedTuple):
    """Reconstruction and norm term of one member on its held-out samples, on the common scale.

    Attributes:
        normals: (2, n).
        outliers: labeled ones, (2, m).
    """

    normals: Values
    outliers: Values


class Fusion(Spec):
    """A fitted fusion: what turns the members' terms into `Scores`.

    Attributes:
        across: how the members' terms become the reported ones.
        members: statistics per member; empty for ``sum``.
        reconstruction_weight: factor on the reported reconstruction term.
        norm_weight: factor on the reported norm term.
        learned: whether the weights were learned from held-out labeled outliers.
    """

    mode: Literal["sum", "standardized"]
    transform: Literal["linear", "log"] = "linear"
    across: Literal["mean", "median"] = "mean"
    members: tuple[TermStatistics, ...] = ()
    reconstruction_weight: float = Field(ge=0)
    norm_weight: float = Field(ge=0)
    learned: bool = False

    def fuse(self, reconstruction: npt.NDArray[Any], norm: npt.NDArray[Any]) -> Scores:
        """Scores of n samples from the terms of m members, each (m, n).

        The reported terms are means (or medians) over the members, the score their weighted sum.
        """
        first, second = self.standardize(reconstruction, norm)
        over = np.mean if self.across == "mean" else np.median
        return self.weigh(np.asarray(over(first, axis=0)), np.asarray(over(second, axis=0)))

    def standardize(
        self, reconstruction: npt.NDArray[Any], norm: npt.NDArray[Any]
    ) -> tuple[Values, Values]:
        """Each member's terms on a common scale, (m, n); unchanged for ``sum``."""
        first, second = np.asarray(reconstruction, np.float64), np.asarray(norm, np.float64)
        if self.mode == "sum":
            return first, second
        first, second = take(first, self.transform), take(second, self.transform)
        table = np.array(
            [
                (m.reconstruction_center, m.reconstruction_scale, m.norm_center, m.norm_scale)
                for m in self.members
            ]
        )[:, :, None]
        return (first - table[:, 0]) / table[:, 1], (second - table[:, 2]) / table[:, 3]

    def weigh(self, reconstruction: Values, norm: Values) -> Scores:
        """The score of two reported terms, each (n,)."""
        score = self.reconstruction_weight * reconstruction + self.norm_weight * norm
        return Scores(score.astype("f4"), reconstruction.astype("f4"), norm.astype("f4"))


def take(values: Values, transform: Literal["linear", "log"]) -> Values:
    """The values or their logarithm."""
    return np.log(values + OFFSET) if transform == "log" else values


def fit_statistics(
    reconstruction: npt.NDArray[Any], norm: npt.NDArray[Any], config: FusionConfig
) -> TermStatistics:
    """Center and scale of a member's terms on its held-out normals, each (n,)."""
    pairs = [
        _center_scale(take(np.asarray(values, np.float64), config.transform), config)
        for values in (reconstruction, norm)
    ]
    return TermStatistics(
        reconstruction_center=pairs[0][0],
        reconstruction_scale=pairs[0][1],
        norm_center=pairs[1][0],
        norm_scale=pairs[1][1],
    )


def learn_norm_weight(
    judged: Sequence[JudgedTerms], outliers: int, config: FusionConfig
) -> float | None:
    """The norm term's share in [0, 1] that separates held-out outliers best, shrunk towards 1.

    Every share of a grid is judged by `held_out_auc`. The mean of the best shares is averaged with
    1, which counts as ``shrinkage`` outliers: of the two terms only the norm was trained to tell
    outliers, so reconstruction must show its worth. Test labels play no part.

    Args:
        judged: of each member, its terms on what it was not trained on.
        outliers: how many labeled outliers these are, each counted once.
        config: the shrinkage.

    Returns:
        The share, or None where no outliers or no normals were held out to learn from.
    """
    found = [held_out_auc(judged, (1 - w, w)) for w in _GRID]
    if None in found:
        return None
    aucs = np.array(found, np.float64)
    best = float(_GRID[aucs >= aucs.max() - 1e-12].mean())
    return (outliers * best + config.shrinkage) / (outliers + config.shrinkage)


def held_out_auc(judged: Sequence[JudgedTerms], weights: tuple[float, float]) -> float | None:
    """AUC of held-out labeled outliers against held-out normals, both scored by the same member.

    The mean over the members, each counted as often as it holds out outliers; None where no member
    holds out both. One member alone does worse than the ensemble, so it is a cautious estimate.

    Args:
        judged: of each member, its terms on what it was not trained on.
        weights: of the reconstruction and the norm term.
    """
    parts = [part for part in judged if part.normals.shape[1] and part.outliers.shape[1]]
    if not parts:
        return None
    share = np.array(weights)
    aucs = [rank_auc(share @ part.normals, share @ part.outliers) for part in parts]
    return float(np.average(aucs, weights=[part.outliers.shape[1] for part in parts]))


def _center_scale(values: Values, config: FusionConfig) -> tuple[float, float]:
    if config.center == "mean":
        center, scale = values.mean(), values.std()
    else:
        center = np.median(values)
        scale = 1.4826 * np.median(np.abs(values - center))
    return float(center), float(max(scale, _SMALLEST_SCALE[config.transform]))
