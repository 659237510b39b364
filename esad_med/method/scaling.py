"""Scaling of vectors: centers and scales of the columns, fitted on the rows trained on."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from esad_med.base.config import Spec
from esad_med.base.errors import CaseError

_CONSTANT = 1e-6  # a column that spreads by less than this share of its size is constant


class ScaleConfig(Spec):
    """How the columns of vectors are scaled; pictures have a value range instead."""

    method: Literal["none", "standard"] = Field(
        "standard", description="standard: z-scores over the rows trained on; vectors only."
    )
    clip: float | None = Field(3.0, gt=0, description="Largest z-score either way, or null.")


class Scaling(Spec):
    """A fitted scaling: (x - center) / scale, clipped.

    Attributes:
        center: of each column, (d,).
        scale: of each column, (d,); 1 for columns that were constant in training.
        clip: largest value either way after scaling, None for no limit.
    """

    center: tuple[float, ...]
    scale: tuple[float, ...]
    clip: float | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Scale x (n, d)."""
        center, scale = (torch.tensor(v, device=x.device) for v in (self.center, self.scale))
        z = (x - center) / scale
        return z if self.clip is None else z.clamp(-self.clip, self.clip)


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
    center, scale = x.mean(0), x.std(0)
    constant = scale <= _CONSTANT * np.maximum(np.abs(x).max(0), 1e-30)
    scale[constant] = 1
    return Scaling(center=tuple(center), scale=tuple(scale), clip=config.clip)
