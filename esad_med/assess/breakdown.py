"""Whom a detector serves and what it finds: results by group of patients and by kind of outlier."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from esad_med.assess.subsets import MEASURES, Samples, Subset, difference
from esad_med.base.errors import ConfigError

FEW_UNITS = 20  # of a class: below, an interval is wide, and a row says so
MOST_GROUPS = 50


@dataclass(frozen=True)
class Breakdown:
    """What results are to be broken down by.

    Attributes:
        groups: columns such as view, sex, age or a scanner; numbers are cut into bands.
        bands: column -> rising edges; a band holds its lower edge. By default age is cut at 18, 40,
            60 and 80, other columns of many numbers at their quartiles.
        threshold: a score above is an alarm; None takes the one that ``specificity`` of the
            normals here do not exceed.
        specificity: for that, 0-1.
        kind: a column of outlier kinds, several of them separated by ``|``, or None.
        seen: kinds that the detector was trained with; empty takes those of labeled outliers.
    """

    groups: Sequence[str] = ()
    bands: Mapping[str, Sequence[float]] = field(default_factory=dict)
    threshold: float | None = None
    specificity: float = 0.95
    kind: str | None = None
    seen: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse what would have no effect.

        Raises:
            ConfigError: saying which option lacks its other half.
        """
        if other := [name for name in self.bands if name not in self.groups]:
            raise ConfigError(f"--bands {other[0]}: is no --group; add --group {other[0]}")
        if self.seen and self.kind is None:
            raise ConfigError(f"--seen {self.seen[0]}: of which column? Add --kind COLUMN")
        if self.threshold is not None and not self.columns:
            raise ConfigError("--threshold: holds for --group and --kind; add one of them")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table must have."""
        return (*self.groups, *([self.kind] if self.kind else []))


def read_bands(texts: Sequence[str]) -> dict[str, list[float]]:
    """Bands as given on the command line, ``age=18,40,60``.

    Raises:
        ConfigError: not of this form, or edges that do not rise.
    """
    bands = {}
    for text in texts:
        name, _, values = text.partition("=")
        try:
            edges = [float(value) for value in values.split(",")]
        except ValueError:
            edges = []
        if not name or not edges or not all(a < b for a, b in pairwise(edges)):
            raise ConfigError(f"--bands {text}: expected COLUMN and rising edges, age=18,40,60")
        bands[name] = edges
    return bands


def alarm_threshold(truth: pd.Series, score: pd.Series, asked: Breakdown) -> tuple[float, str]:
    """The threshold of a breakdown and where it comes from."""
    if asked.threshold is not None:
        return asked.threshold, "given"
    normals = np.sort(score[truth == 0].to_numpy(dtype=float))
    at = math.ceil(asked.specificity * len(normals) - 1e-9) - 1
    return float(normals[max(at, 0)]), (
        f"set here: {100 * asked.specificity:g} % of all normals do not exceed it"
    )


def samples_of(table: pd.DataFrame, units: npt.ArrayLike) -> Samples:
    """The arrays of a table that is sorted by score."""
    return Samples(
        table["truth"].to_numpy() == 1,
        table["score"].to_numpy(dtype=float),
        np.asarray(units, dtype=np.intp),
    )


def measures_row(subset: Subset) -> dict[str, object]:
    """Counts, and each measure with its interval."""
    row: dict[str, object] = {
        name: getattr(subset, name)
        for name in ("n_normal", "n_anomalous", "units_normal", "units_anomalous")
    }
    for name in MEASURES:
        low, high = subset.intervals[name]
        row |= {name: subset.values[name], f"{name}_low": low, f"{name}_high": high}
    return row


def differences_row(subset: Subset, other: Subset, *, same: bool) -> dict[str, object]:
    """Each measure against another subset; NaN where it is the same."""
    row: dict[str, object] = {}
    for name in MEASURES:
        apart, (low, high) = (
            (math.nan, (math.nan, math.nan)) if same else difference(subset, other, name)
        )
        key = f"{name}_difference"
        row |= {key: apart, f"{key}_low": low, f"{key}_high": high}
    return row


def with_warnings(rows: pd.DataFrame) -> pd.DataFrame:
    """With what to beware of in each row."""
    warnings = []
    for row in rows.to_dict("records"):
        few = [
            f"{row[f'units_{name}']} {name}"
            for name in ("normal", "anomalous")
            if row[f"units_{name}"] < FEW_UNITS
        ]
        warnings.append(f"few: {', '.join(few)}" if few else "")
    return rows.assign(warning=warnings)
