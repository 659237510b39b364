"""Scaling of vectors: z-scores and normal scores of the columns, fitted on the rows trained on."""

from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from scipy.special import ndtr
from torch import Tensor

from esad_med.base.config import Spec
from esad_med.base.errors import CaseError

_CONSTANT = 1e-6  # a column that spreads by less than this share of its size is constant
_LEVELS = 61  # quantiles kept of a column
_LIMIT = 3.0  # the outermost of them, as a normal score, where nothing is clipped


class ScaleConfig(Spec):
    """How the columns of vectors are scaled; pictures have a value range instead."""

    method: Literal["none", "standard", "normal_scores"] = Field(
        "standard",
        description="standard: z-scores over the rows trained on; normal_scores: beside each the"
        " rank among these rows, as a value of the normal distribution. Vectors only.",
    )
    clip: float | None = Field(3.0, gt=0, description="Largest value either way, or null.")

    @property
    def inputs_per_column(self) -> int:
        """How many inputs of the network a column becomes."""
        return 2 if self.method == "normal_scores" else 1


class Scaling(Spec):
    """A fitted scaling: (x - center) / scale, clipped, of the columns and their normal scores.

    Normal scores (van der Waerden, 1952) do not hang on a column's unit or tail: a long-tailed
    column is drawn in, a crowded one spread out.

    Attributes:
        center: of each column, then of each normal score: (d,) or (2 d,).
        scale: of the same; 1 for what was constant in training.
        clip: largest value either way after scaling, None for no limit.
        quantiles: of each column, (d, k), at normal scores evenly spaced up to the clip either way,
            or up to 3; empty without normal scores.
    """

    center: tuple[float, ...]
    scale: tuple[float, ...]
    clip: float | None = None
    quantiles: tuple[tuple[float, ...], ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Scale x (n, d) to (n, d), or with normal scores to (n, 2 d)."""
        center, scale, quantiles = (t.to(x.device) for t in self._tensors)
        if self.quantiles:
            x = torch.cat([x, normal_scores(x, quantiles, _limit(self.clip))], 1)
        z = (x - center) / scale
        return z if self.clip is None else z.clamp(-self.clip, self.clip)

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.tensor(self.center), torch.tensor(self.scale), torch.tensor(self.quantiles)

    @model_validator(mode="after")
    def _of_one_length(self) -> "Scaling":
        columns = len(self.quantiles) or len(self.center)
        inputs = columns * (2 if self.quantiles else 1)
        if not len(self.center) == len(self.scale) == inputs:
            raise ValueError(f"center and scale must hold {inputs} values")
        if len({len(own) for own in self.quantiles}) > 1:
            raise ValueError("quantiles differ in number from column to column")
        return self


def fit_scaling(samples: npt.NDArray[Any], config: ScaleConfig) -> Scaling | None:
    """Fit the scaling on the rows a training uses.

    Args:
        samples: (n, d) of any number type.
        config: the method.

    Raises:
        CaseError: a value is not finite.
    """
    x = np.asarray(samples, np.float64)
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise CaseError(
            f"column {column}, training row {row}: found {x[row, column]}, expected finite numbers;"
            " fill in or drop the missing values"
        )
    if config.method == "none":
        return None
    center, scale = _center_scale(x)
    if config.method == "standard":
        return Scaling(center=tuple(center), scale=tuple(scale), clip=config.clip)
    limit = _limit(config.clip)
    levels = np.linspace(-limit, limit, _LEVELS)
    quantiles = np.ascontiguousarray(np.quantile(x, ndtr(levels), axis=0).T)  # (d, levels)
    constant = _is_constant(x)
    quantiles[constant] = center[constant, None] + levels  # as its z-score: ranks would be noise
    kept = torch.tensor(quantiles, dtype=torch.float32)
    scores = normal_scores(torch.tensor(x, dtype=torch.float32), kept, limit)
    pairs = zip((center, scale), _center_scale(scores.double().numpy()), strict=True)
    center, scale = (np.concatenate(pair) for pair in pairs)
    return Scaling(
        center=tuple(center),
        scale=tuple(scale),
        clip=config.clip,
        quantiles=tuple(map(tuple, quantiles.tolist())),
    )


def normal_scores(x: Tensor, quantiles: Tensor, limit: float) -> Tensor:
    """The normal score of each value, (n, d), from -limit to limit.

    Between two quantiles it is interpolated; a value that many rows share has the mean of the
    scores that they span.

    Args:
        x: (n, d).
        quantiles: ascending, of each column, (d, k), at evenly spaced normal scores.
        limit: the outermost of these scores.
    """
    values, last = x.T.contiguous(), quantiles.shape[1] - 1  # (d, n)
    below = torch.searchsorted(quantiles, values)  # how many quantiles lie below the value
    up_to = torch.searchsorted(quantiles, values, right=True)
    left, right = (below - 1).clamp(min=0), below.clamp(max=last)
    low, high = quantiles.gather(1, left), quantiles.gather(1, right)
    share = torch.where(high > low, (values - low) / (high - low), 0)
    between = left + share * (right - left)
    place = torch.where(up_to > below, (below + up_to - 1) / 2, between)
    return (2 * limit / last * place - limit).T


def _limit(clip: float | None) -> float:
    """The outermost normal score."""
    return _LIMIT if clip is None else clip


def _center_scale(x: npt.NDArray[np.float64]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    center, scale = x.mean(0), x.std(0)
    return center, np.where(_is_constant(x), 1, scale)


def _is_constant(x: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    small: npt.NDArray[np.bool_] = x.std(0) <= _CONSTANT * np.maximum(np.abs(x).max(0), 1e-30)
    return small
