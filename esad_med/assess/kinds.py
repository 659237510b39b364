"""Results by kind of outlier: those seen in training, those unseen, and each by itself."""

from collections.abc import Sequence

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
from esad_med.assess.subsets import measure_subsets
from esad_med.base.errors import CaseError

_SEPARATOR = "|"  # between the findings of one radiograph


def tabulate_kinds(
    table: pd.DataFrame,
    units: npt.ArrayLike,
    asked: Breakdown,
    *,
    threshold: float,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[pd.DataFrame, str]:
    """One row per kind of outlier, each against all normals; kinds seen in training and unseen.

    An outlier of several kinds counts for each of them, and as seen if any of them was. Labeled
    outliers that the detector was trained with are left out.

    Args:
        table: columns truth, score, the kind column; semi_label and split where known.
        units: as in `tabulate_groups`.
        asked: the column and what was seen.
        threshold: a score above is an alarm.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The rows: kind, training ("seen", "unseen" or empty where unknown), counts and measures as
        in `tabulate_groups`; first all seen and all unseen. And a note on what "seen" means here.

    Raises:
        CaseError: a kind said to be seen that no outlier has, or too many kinds.
    """
    column = str(asked.kind)
    sets = [
        {part.strip() for part in str(value).split(_SEPARATOR)} - {""} for value in table[column]
    ]
    truth = table["truth"].to_numpy() == 1
    labeled = _labeled(table)
    kinds = sorted({kind for own, bad in zip(sets, truth, strict=True) if bad for kind in own})
    if len(kinds) > MOST_GROUPS:
        raise CaseError(
            f"scores: column '{column}' has {len(kinds)} kinds of outliers, expected at most"
            f" {MOST_GROUPS}"
        )
    seen, note = _seen(asked, kinds, sets, labeled, column)
    keep = ~_trained_on(table, labeled)
    if left_out := int((~keep).sum()):
        note += f"; {left_out} labeled outliers of the training split were left out"
    parts = {f"kind {kind}": np.array([kind in own for own in sets]) for kind in kinds}
    if seen:
        of_seen = np.array([bool(own & seen) for own in sets])
        unseen = np.array([bool(own) for own in sets]) & ~of_seen  # no kind named: neither
        parts = {"all seen": of_seen, "all unseen": unseen, **parts}
    order = np.argsort(table["score"].to_numpy(dtype=float), kind="stable")
    order = order[keep[order]]
    samples = samples_of(table.iloc[order], np.asarray(units)[order])
    parts = {name: (part[order] | ~samples.truth) for name, part in parts.items()}
    found = measure_subsets(samples, parts, threshold=threshold, resamples=resamples, seed=seed)
    rows = [
        {
            "kind": name.removeprefix("kind "),
            "training": _training(name, seen),
            **measures_row(subset),
        }
        | (differences_row(subset, found["all seen"], same=name == "all seen") if seen else {})
        for name, subset in found.items()
    ]
    return with_warnings(pd.DataFrame(rows)), note


def _labeled(table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    if "semi_label" not in table:
        return np.zeros(len(table), bool)
    return (pd.to_numeric(table["semi_label"], errors="coerce") == -1).to_numpy()


def _trained_on(table: pd.DataFrame, labeled: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    if "split" not in table:
        return labeled & False
    return labeled & table["split"].astype(str).isin(["train", "val"]).to_numpy()


def _seen(
    asked: Breakdown,
    kinds: Sequence[str],
    sets: Sequence[set[str]],
    labeled: npt.NDArray[np.bool_],
    column: str,
) -> tuple[set[str], str]:
    """The kinds seen in training, and how that is known."""
    if asked.seen:
        if unknown := [kind for kind in asked.seen if kind not in kinds]:
            raise CaseError(
                f"scores: no outlier of kind '{unknown[0]}' in column '{column}'; found"
                f" {', '.join(kinds[:10])}"
            )
        return set(asked.seen), f"seen in training, as given: {', '.join(asked.seen)}"
    own = [kinds for kinds, chosen in zip(sets, labeled, strict=True) if chosen]
    found = set().union(*own)
    if found:
        return found, f"seen in training, as labeled in this table: {', '.join(sorted(found))}"
    return set(), "which kinds were seen in training is not known; name them with --seen"


def _training(name: str, seen: set[str]) -> str:
    if not seen:
        return ""
    if not name.startswith("kind "):
        return name.removeprefix("all ")
    return "seen" if name.removeprefix("kind ") in seen else "unseen"
