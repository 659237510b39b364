"""Results by group: scanner, view, sex, bands of age, each held against the largest group."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from esad_med.assess.breakdown import (
    MOST_GROUPS,
    Breakdown,
    differences_row,
    measures_row,
    samples_of,
    with_warnings,
)
from esad_med.assess.subsets import Subset, measure_subsets
from esad_med.base.errors import CaseError

_BANDS = {"age": (18.0, 40.0, 60.0, 80.0)}
_MOST_NUMBERS = 8  # of a numeric column that still stand each for a group
_UNKNOWN = "unknown"


def tabulate_groups(
    table: pd.DataFrame,
    units: npt.ArrayLike,
    asked: Breakdown,
    *,
    threshold: float,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per group of each column, held against the column's largest group.

    Args:
        table: columns truth (0 / 1), score and the group columns, as text.
        units: (n,) number of the patient, slide or tile that each row is resampled with.
        asked: the columns and their bands.
        threshold: a score above is an alarm.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        column, group, n_normal, n_anomalous, units_normal, units_anomalous; each of `MEASURES` with
        _low and _high, and _difference to the reference with its own; reference (the largest
        group), warning.

    Raises:
        CaseError: bands of a column that holds no numbers, or far too many groups.
    """
    order = np.argsort(table["score"].to_numpy(dtype=float), kind="stable")
    table = table.iloc[order].reset_index(drop=True)
    samples = samples_of(table, np.asarray(units)[order])
    rows = []
    for column in asked.groups:
        names = band_column(table[column], column, asked.bands.get(column))
        parts = {str(name): (names == name).to_numpy() for name in names.cat.categories}
        found = measure_subsets(samples, parts, threshold=threshold, resamples=resamples, seed=seed)
        reference = max(found, key=lambda name: _size(found[name]))
        for name, subset in found.items():
            row = {"column": column, "group": name, **measures_row(subset), "reference": reference}
            rows.append(row | differences_row(subset, found[reference], same=name == reference))
    return with_warnings(pd.DataFrame(rows))


def band_column(values: pd.Series, name: str, edges: Sequence[float] | None = None) -> pd.Series:
    """A column as an ordered category: its own values, or bands of its numbers; empty: unknown.

    Raises:
        CaseError: edges for a column without numbers, or more than fifty groups.
    """
    text = values.astype(str).str.strip()
    numbers = pd.to_numeric(text.mask(text == ""), errors="coerce")
    numeric = bool(numbers.notna().sum() == (text != "").sum() and numbers.notna().any())
    if edges is not None and not numeric:
        raise CaseError(
            f"scores: column '{name}' holds no numbers, expected some to cut into bands"
        )
    if numeric and (edges is not None or numbers.nunique() > _MOST_NUMBERS):
        return _cut(numbers, edges or _BANDS.get(name) or _quartiles(numbers))
    named = text.mask(text == "", _UNKNOWN)
    categories = sorted(named.unique(), key=lambda value: (value == _UNKNOWN, value))
    if len(categories) > MOST_GROUPS:
        raise CaseError(
            f"scores: column '{name}' has {len(categories)} different values, expected at most"
            f" {MOST_GROUPS} groups; choose a coarser column"
        )
    return pd.Series(pd.Categorical(named, categories, ordered=True), index=values.index)


def _size(subset: Subset) -> int:
    return subset.n_normal + subset.n_anomalous


def _cut(numbers: pd.Series, edges: Sequence[float]) -> pd.Series:
    """Bands from each edge to below the next."""
    shown = [f"{edge:g}" for edge in edges]
    between = [f"{a} to <{b}" for a, b in pairwise(shown)]
    labels = [f"<{shown[0]}", *between, f"{shown[-1]} and more", _UNKNOWN]
    codes = np.searchsorted(np.asarray(edges), numbers.to_numpy(dtype=float), side="right")
    codes = np.where(numbers.isna(), len(labels) - 1, codes)
    cut = pd.Categorical([labels[code] for code in codes], labels, ordered=True)
    return pd.Series(cut.remove_unused_categories(), index=numbers.index)


def _quartiles(numbers: pd.Series) -> list[float]:
    values = numbers.dropna().quantile([0.25, 0.5, 0.75])
    return sorted({float(f"{value:.3g}") for value in values})
