"""Which samples of a store are trained on: labels, pollution, folds that keep cases whole."""

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from esad_med.base.errors import CaseError
from esad_med.base.store import SampleStore
from esad_med.method.config import DataConfig

logger = logging.getLogger(__name__)

Indices = npt.NDArray[np.int64]
MIN_NORMALS = 10
# As many normals are needed for a 99th percentile. Where a part holds fewer, normals are scarce,
# and each of them had better train most members.
MIN_SHARED = 100


@dataclass(frozen=True)
class TrainingSet:
    """The rows of a store that a training may touch.

    Attributes:
        normals: rows taken as normal (y = +1), pollution among them, (N,).
        outliers: rows of labeled outliers (y = -1), (M,).
        validation: rows of the split "val", normals and outliers; empty where there is none.
        groups: what may not be torn apart, a key per row of the store.
        held_out_by: "patient", "case" or "sample".
    """

    normals: Indices
    outliers: Indices
    validation: Indices
    groups: npt.NDArray[np.object_]
    held_out_by: str


@dataclass(frozen=True)
class Fold:
    """One division into a part to train on and a part held out; rows of the store."""

    normals: Indices
    outliers: Indices
    held_normals: Indices
    held_outliers: Indices


def labeled_outlier_count(unlabeled: int, gamma_l: float) -> int:
    """M for γl = M / (unlabeled + M), rounded down: 6000 at .05 gives 315."""
    return math.floor(gamma_l * unlabeled / (1 - gamma_l) + 1e-9)


def pollution_count(normals: int, gamma_p: float) -> int:
    """Anomalies hidden among the unlabeled, for γp = P / (normals + P), rounded down."""
    return math.floor(gamma_p * normals / (1 - gamma_p) + 1e-9)


def choose_training_set(store: SampleStore, config: DataConfig, *, seed: int) -> TrainingSet:
    """Choose unlabeled samples and labeled outliers among the training rows of a store.

    Rows of split "train" are used, or those without a split where no row says "train"; never
    "test". Without γl, M, γp: semi_label -1 are the labeled outliers, the others unlabeled. With
    any of them, both are drawn from all rows known as anomalous (semi_label -1 or truth 1), which
    are otherwise left out; no sample is both pollution and labeled.

    Raises:
        CaseError: no training rows, too few normals, too few anomalies for what was asked.
    """
    rows = store.rows
    train = np.asarray(rows["split"] == "train")
    if not train.any():
        train = np.asarray(rows["split"] == "")
    negative = np.asarray(rows["semi_label"] == -1, dtype=bool)
    drawn = config.labeled_ratio is not None or config.labeled_count is not None or config.pollution
    if drawn:
        anomalous = negative | np.asarray((rows["truth"] == 1).fillna(False), dtype=bool)
        normals, outliers = _draw(rows, train & ~anomalous, train & anomalous, config, seed)
    else:
        normals, outliers = np.flatnonzero(train & ~negative), np.flatnonzero(train & negative)
        outliers = _of_classes(rows, outliers, config, np.random.default_rng([seed, 1]))
    if len(normals) < MIN_NORMALS:
        raise CaseError(
            f"{store.path}: {len(normals)} normal or unlabeled training samples, expected at least"
            f" {MIN_NORMALS}; check the columns 'split' and 'semi_label' of samples.csv"
        )
    groups, held_out_by = _groups(rows)
    validation = np.flatnonzero(np.asarray(rows["split"] == "val"))
    return TrainingSet(normals, outliers, validation, groups, held_out_by)


def split_folds(
    chosen: TrainingSet, rows: pd.DataFrame, *, count: int, validation: float, seed: int
) -> list[Fold]:
    """Divide a training set into parts held out in turn; a patient or case is never torn apart.

    Rows of split "val", where there are any, are what every fold holds out. Otherwise groups are
    dealt to round(1 / validation) parts, fewer where there are fewer groups, those with labeled
    outliers first, so that each part holds some. Labeled outliers are held out in turn. Normals
    that all folds hold out alike come from groups without labeled outliers, so that they tell how
    the whole ensemble scores normals it never met; where these would be fewer than 100, or all of
    one large group, normals are held out in turn too. A group that alone holds labeled outliers is
    always trained on. Where all normals are of one group, samples are dealt instead, and the log
    says so.

    Args:
        chosen: the training set.
        rows: of the store.
        count: how many folds are asked for; they repeat when there are fewer parts.
        validation: share to hold out.
        seed: of the dealing.
    """
    if len(chosen.validation):
        held = chosen.validation
        negative = np.asarray(rows["semi_label"].iloc[held] == -1, dtype=bool)
        normal = ~negative & ~np.asarray((rows["truth"].iloc[held] == 1).fillna(False), dtype=bool)
        if normal.any():
            fold = Fold(chosen.normals, chosen.outliers, held[normal], held[negative])
            return [fold] * count
    parts, groups = max(2, round(1 / validation)), chosen.groups
    dealt = _deal(groups, chosen, parts, seed)
    if not _usable(dealt, chosen):
        logger.warning(
            "the training normals cannot be held out by %s (too few of them); they are held out"
            " by sample, so validation and percentiles are too good to be true",
            chosen.held_out_by,
        )
        groups = np.arange(len(groups)).astype(str).astype(object)
        dealt = _deal(groups, chosen, parts, seed)
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


def _draw(
    rows: pd.DataFrame,
    normal: npt.NDArray[np.bool_],
    anomalous: npt.NDArray[np.bool_],
    config: DataConfig,
    seed: int,
) -> tuple[Indices, Indices]:
    """Pollution first, then labeled outliers of the chosen classes from what is left."""
    rng = np.random.default_rng([seed, 1])
    normals, pool = np.flatnonzero(normal), rng.permutation(np.flatnonzero(anomalous))
    hidden = _take(pool, pollution_count(len(normals), config.pollution), "pollution")
    left = _of_classes(rows, pool[len(hidden) :], config, rng)
    unlabeled = np.sort(np.concatenate([normals, hidden]))
    if config.labeled_count is not None:
        count = config.labeled_count
    elif config.labeled_ratio is not None:
        count = labeled_outlier_count(len(unlabeled), config.labeled_ratio)
    else:
        labeled = np.asarray(rows["semi_label"].iloc[left] == -1, dtype=bool)
        return unlabeled, np.sort(left[labeled])
    return unlabeled, np.sort(_take(left, count, "labeled outliers"))


def _take(pool: Indices, count: int, what: str) -> Indices:
    if count > len(pool):
        raise CaseError(
            f"{what}: {count} anomalous training samples are needed, found {len(pool)}; lower"
            " data.labeled_ratio, data.labeled_count or data.pollution"
        )
    return pool[:count]


def _of_classes(
    rows: pd.DataFrame, pool: Indices, config: DataConfig, rng: np.random.Generator
) -> Indices:
    """Only the pool's rows of the k_l classes that labeled outliers come from."""
    if config.labeled_classes is None or config.class_column is None:
        return pool
    if config.class_column not in rows:
        raise CaseError(f"samples.csv has no column '{config.class_column}' (data.class_column)")
    classes = rows[config.class_column].astype(str).to_numpy()[pool]
    known = np.unique(classes)
    if isinstance(config.labeled_classes, int):
        if config.labeled_classes > len(known):
            raise CaseError(
                f"data.labeled_classes: {config.labeled_classes}, but the training anomalies are of"
                f" {len(known)} classes"
            )
        wanted = rng.permutation(known)[: config.labeled_classes]
    else:
        wanted = np.array(config.labeled_classes)
        if missing := sorted(set(wanted) - set(known)):
            raise CaseError(f"data.labeled_classes: no training anomaly is of class {missing[0]}")
    return pool[np.isin(classes, wanted)]


def _groups(rows: pd.DataFrame) -> tuple[npt.NDArray[np.object_], str]:
    """A key per row: the patient, else the case, else the row itself."""
    case, patient = rows["case_id"].to_numpy(object), rows["patient_id"].to_numpy(object)
    of_case = dict(zip(case, patient, strict=True))
    of_case.update((c, p) for c, p in zip(case, patient, strict=True) if p)
    keys, kinds = [], set()
    for index, (c, p) in enumerate(zip(case, patient, strict=True)):
        p = p or (of_case[c] if c else "")
        kind, value = ("patient", p) if p else ("case", c) if c else ("sample", index)
        kinds.add(kind)
        keys.append(f"{kind} {value}")
    weakest = next(kind for kind in ("sample", "case", "patient") if kind in kinds)
    return np.array(keys, dtype=object), weakest


def _deal(groups: npt.NDArray[Any], chosen: TrainingSet, parts: int, seed: int) -> Indices:
    """The part 0 ... parts-1 that each row of the store is held out with; -1 is always trained."""
    names, member = np.unique(groups.astype(str), return_inverse=True)
    normals = np.bincount(member[chosen.normals], minlength=len(names))
    outliers = np.bincount(member[chosen.outliers], minlength=len(names))
    part = np.full(len(names), -1)
    marked, plain = np.flatnonzero(outliers), np.flatnonzero((outliers == 0) & (normals > 0))
    if len(marked) == 1:
        marked = marked[:0]  # the only source of labeled outliers stays in training
    parts = min(parts, max(1, int((normals[np.concatenate([marked, plain])] > 0).sum())))
    rng = np.random.default_rng([seed, 2])
    held = np.zeros((2, parts), np.int64)
    for group in [*_large_first(marked, outliers, rng), *_large_first(plain, normals, rng)]:
        first, second = (held[1], held[0]) if outliers[group] else (held[0], held[1])
        best = int(np.lexsort((second, first))[0])
        part[group] = best
        held[:, best] += normals[group], outliers[group]
    order = np.argsort(-held[0], kind="stable")  # parts without normals come last
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
    plain = of_normal[~np.isin(of_normal, groups[chosen.outliers])]
    names, sizes = np.unique(plain.astype(str), return_counts=True)
    part, load = np.zeros(len(names), np.int64), np.zeros(parts)
    rng = np.random.default_rng([seed, 3])
    for group in _large_first(np.arange(len(names)), sizes, rng):
        part[group] = load.argmin()
        load[part[group]] += sizes[group]
    fitting = (load >= MIN_SHARED) & (wanted / 2 <= load) & (load <= 2 * wanted)
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
