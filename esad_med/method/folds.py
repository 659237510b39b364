"""What is held out from training, in folds that keep patients and cases whole."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from esad_med.method.datasets import MIN_NORMALS, Indices, TrainingSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fold:
    """One division into a part to train on and a part held out; rows of the store."""

    normals: Indices
    outliers: Indices
    held_normals: Indices
    held_outliers: Indices


def split_folds(
    chosen: TrainingSet,
    rows: pd.DataFrame,
    *,
    count: int,
    validation: float,
    seed: int,
    hold_outliers: bool = True,
) -> list[Fold]:
    """Divide a training set into parts held out in turn; a patient or case is never torn apart.

    Rows of split "val", where there are any, are what every fold holds out. Otherwise groups are
    dealt to round(1 / validation) parts, fewer where there are fewer groups, those with labeled
    outliers first, so that each part holds some. Labeled outliers are held out in turn. Normals
    that all folds hold out alike come from groups without labeled outliers, so that they tell how
    the whole ensemble scores normals it never met; where these would be fewer than 10, or all of
    one large group, normals are held out in turn too. A group that alone holds labeled outliers is
    always trained on. Where all normals are of one group, samples are dealt instead, and the log
    says so.

    Args:
        chosen: the training set.
        rows: of the store.
        count: how many folds are asked for; they repeat when there are fewer parts.
        validation: share to hold out.
        seed: of the dealing.
        hold_outliers: whether groups with labeled outliers are held out at all.
    """
    if len(chosen.validation):
        held = chosen.validation
        negative = np.asarray(rows["semi_label"].iloc[held] == -1, dtype=bool)
        normal = ~negative & ~np.asarray((rows["truth"].iloc[held] == 1).fillna(False), dtype=bool)
        if normal.any():
            fold = Fold(chosen.normals, chosen.outliers, held[normal], held[negative])
            return [fold] * count
    parts, groups = max(2, round(1 / validation)), chosen.groups
    dealt = _deal(groups, chosen, parts, seed, hold_outliers)
    if not _usable(dealt, chosen):
        logger.warning(
            "the training normals cannot be held out by %s (too few of them); they are held out"
            " by sample, so validation and percentiles are too good to be true",
            chosen.held_out_by,
        )
        groups = np.arange(len(groups)).astype(str).astype(object)
        dealt = _deal(groups, chosen, parts, seed, hold_outliers)
    used = int(dealt.max()) + 1
    folds = [_fold(dealt, chosen, k % used) for k in range(count)]
    return _share_normals(folds, chosen, groups, parts, seed) or folds


def held_out_by(chosen: TrainingSet, folds: list[Fold]) -> str:
    """What the folds really keep whole: "sample" where a group stands on both sides."""
    for fold in folds:
        train = set(chosen.groups[np.concatenate([fold.normals, fold.outliers])])
        if train & set(chosen.groups[np.concatenate([fold.held_normals, fold.held_outliers])]):
            return "sample"
    return chosen.held_out_by


def _deal(
    groups: npt.NDArray[Any], chosen: TrainingSet, parts: int, seed: int, hold_outliers: bool
) -> Indices:
    """The part 0 ... parts-1 that each row of the store is held out with; -1 is always trained."""
    names, member = np.unique(groups.astype(str), return_inverse=True)
    normals = np.bincount(member[chosen.normals], minlength=len(names))
    outliers = np.bincount(member[chosen.outliers], minlength=len(names))
    part = np.full(len(names), -1)
    marked, plain = np.flatnonzero(outliers), np.flatnonzero((outliers == 0) & (normals > 0))
    if len(marked) == 1 or not hold_outliers:
        marked = marked[:0]  # the only source of labeled outliers stays in training
    parts = min(parts, max(1, int((normals[np.concatenate([marked, plain])] > 0).sum())))
    rng = np.random.default_rng([seed, 2])
    held = np.zeros((2, parts), np.int64)
    for group in [*_large_first(marked, outliers, rng), *_large_first(plain, normals, rng)]:
        first, second = (held[1], held[0]) if outliers[group] else (held[0], held[1])
        best = int(np.lexsort((second, first))[0])
        part[group] = best
        held[:, best] += normals[group], outliers[group]
    # Fewer folds than parts hold out as many outliers as they can; parts without normals are last.
    order = np.lexsort((-held[0], -held[1], held[0] == 0))
    rank = np.empty(parts, np.int64)
    rank[order] = np.arange(parts)
    filled = int((held[0] > 0).sum())
    part = np.where(part >= 0, rank[part], -1)
    return np.where(part < filled, part, -1)[member]


def _share_normals(
    folds: list[Fold], chosen: TrainingSet, groups: npt.NDArray[Any], parts: int, seed: int
) -> list[Fold] | None:
    """The folds with one and the same part of the normals held out, or None where none fits.

    The part is of groups without labeled outliers, nearest to 1 / parts of all normals. A group
    whose labeled outliers a fold holds out is not trained on by that fold.
    """
    of_normal, wanted = groups[chosen.normals], len(chosen.normals) / parts
    most = max(2 * wanted, len(chosen.normals) / 3)
    plain = of_normal[~np.isin(of_normal, groups[chosen.outliers])]
    names, sizes = np.unique(plain.astype(str), return_counts=True)
    part, load = np.zeros(len(names), np.int64), np.zeros(parts)
    rng = np.random.default_rng([seed, 3])
    for group in _large_first(np.arange(len(names)), sizes, rng):
        part[group] = load.argmin()
        load[part[group]] += sizes[group]
    fitting = (load >= MIN_NORMALS) & (wanted / 2 <= load) & (load <= most)
    if not fitting.any():
        return None
    nearest = np.where(fitting, np.abs(load - wanted), np.inf).argmin()
    held = np.isin(of_normal.astype(str), names[part == nearest])
    shared = []
    for fold in folds:
        left_out = held | np.isin(of_normal, groups[fold.held_outliers])
        if left_out.sum() > len(left_out) - MIN_NORMALS // 2:
            return None
        normals = chosen.normals[~left_out]
        shared.append(Fold(normals, fold.outliers, chosen.normals[held], fold.held_outliers))
    return shared


def _large_first(groups: Indices, size: Indices, rng: np.random.Generator) -> Indices:
    shuffled = rng.permutation(groups)
    return shuffled[np.argsort(-size[shuffled], kind="stable")]


def _usable(dealt: Indices, chosen: TrainingSet) -> bool:
    """Whether there is a part to hold out and enough to train on without it."""
    held = dealt[chosen.normals]
    if held.max() < 0:
        return False
    left = [np.sum(held != part) for part in range(int(held.max()) + 1)]
    return bool(min(left) >= MIN_NORMALS // 2)


def _fold(dealt: Indices, chosen: TrainingSet, part: int) -> Fold:
    normals, outliers = chosen.normals, chosen.outliers
    return Fold(
        normals=normals[dealt[normals] != part],
        outliers=outliers[dealt[outliers] != part],
        held_normals=normals[dealt[normals] == part],
        held_outliers=outliers[dealt[outliers] == part],
    )
