"""Facts of a case that show whether it is like others: its colors, stains and ordinary scores."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from esad_med.assess.drift import SCORE

_COLORS = {1: ("brightness",), 3: ("red", "green", "blue")}
_STAINS = ("hematoxylin", "eosin")


class CaseColors:
    """Mean color and contrast of a case's pictures, gathered a batch at a time."""

    def __init__(self) -> None:
        """Begin with no picture."""
        self._count = 0
        self._sums: npt.NDArray[np.float64] | None = None
        self._contrast = 0.0

    def add(self, samples: npt.NDArray[Any]) -> None:
        """Take in pictures (n, h, w, c); vectors have no color."""
        if samples.ndim != 4 or not len(samples):
            return
        flat = samples.reshape(len(samples), -1, samples.shape[-1])
        if flat.dtype == np.uint8:  # exact, and far quicker than means in floating point
            means = flat.sum(axis=1, dtype=np.uint32) / flat.shape[1]
        else:
            means = flat.mean(axis=1, dtype=np.float64)
        gray = flat[..., samples.shape[-1] // 2]
        self._count += len(samples)
        self._sums = means.sum(axis=0) + (0 if self._sums is None else self._sums)
        self._contrast += float(gray.std(axis=1, dtype=np.float32).sum(dtype=np.float64))

    def to_dict(self) -> dict[str, float]:
        """Fact -> value; empty without pictures."""
        if self._sums is None:
            return {}
        names = _COLORS.get(len(self._sums)) or [f"channel {i}" for i in range(len(self._sums))]
        means = (self._sums / self._count).tolist()
        facts = {f"mean {name}": mean for name, mean in zip(names, means, strict=True)}
        return {**facts, "contrast": self._contrast / self._count}


def stain_facts(stain: Mapping[str, Any]) -> dict[str, float]:
    """What was found of a slide's stains: red share of each one's color, and how much there is.

    Args:
        stain: a `Stain` as plain values; what its method does not find is zero and left out.
    """
    facts = {}
    for name, color, most in zip(_STAINS, stain["matrix"], stain["max_concentration"], strict=True):
        if sum(color) > 0:
            facts[f"{name} red share"] = float(color[0] / sum(color))
        if most > 0:
            facts[f"{name} concentration"] = float(most)
    if any(stain["lab_std"]):
        facts |= {f"LAB mean {i}": float(v) for i, v in enumerate(stain["lab_mean"], 1)}
    return facts


def score_facts(scores: npt.NDArray[Any], *, single: bool = False) -> dict[str, float]:
    """The median score: lesions are small, so it moves with scanner and stain, not with disease.

    Args:
        scores: of the case's samples.
        single: of an image the one score is the finding itself; it counts in batches only.
    """
    return {SCORE if single else "median score": float(np.median(scores))}


def tiling_of(preparation: Mapping[str, Any]) -> dict[str, Any]:
    """How a slide's tissue is found and tiled: slide scores of other grids do not compare."""
    return {name: preparation[name] for name in ("tissue", "tiles") if name in preparation}
