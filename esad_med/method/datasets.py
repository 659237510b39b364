"""Which samples of a store are trained on: labels, pollution, classes."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from esad_med.base.errors import CaseError
from esad_med.base.store import SampleStore
from esad_med.method.config import DataConfig

Indices = npt.NDArray[np.int64]
MIN_NORMALS = 10


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
    groups, held_out_by = group_rows(rows)
    validation = np.flatnonzero(np.asarray(rows["split"] == "val"))
    return TrainingSet(normals, outliers, validation, groups, held_out_by)


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
    hidden = take_anomalies(pool, pollution_count(len(normals), config.pollution), "pollution")
    left = _of_classes(rows, pool[len(hidden) :], config, rng)
    unlabeled = np.sort(np.concatenate([normals, hidden]))
    if config.labeled_count is not None:
        count = config.labeled_count
    elif config.labeled_ratio is not None:
        count = labeled_outlier_count(len(unlabeled), config.labeled_ratio)
    else:
        labeled = np.asarray(rows["semi_label"].iloc[left] == -1, dtype=bool)
        return unlabeled, np.sort(left[labeled])
    return unlabeled, np.sort(take_anomalies(left, count, "labeled outliers"))


def take_anomalies(
    pool: Indices,
    count: int,
    what: str,
    *,
    lower: str = "data.labeled_ratio, data.labeled_count or data.pollution",
) -> Indices:
    """The first rows of a pool of anomalies.

    Args:
        pool: rows in random order.
        count: how many are needed.
        what: for what, for the message.
        lower: the settings that ask for fewer.

    Raises:
        CaseError: the pool holds fewer.
    """
    if count > len(pool):
        raise CaseError(
            f"{what}: {count} anomalous training samples are needed, found {len(pool)}; lower"
            f" {lower}"
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


def group_rows(rows: pd.DataFrame) -> tuple[npt.NDArray[np.object_], str]:
    """What may not be torn apart: the patient, else the case, else the row itself.

    Args:
        rows: of a store, or some of them, with `case_id` and `patient_id`.

    Returns:
        A key per row, and the weakest kind of key: "patient", "case" or "sample".
    """
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
