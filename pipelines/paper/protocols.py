"""Who trains and who tests in the paper's experiments: tables, natural and medical images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.natural import LabeledImages
from data_prep.odds import Table
from esad_med.base.errors import CaseError, ConfigError
from esad_med.base.store import SampleStore
from esad_med.method.datasets import (
    MIN_NORMALS,
    labeled_outlier_count,
    pollution_count,
    take_anomalies,
)

_TRAIN_SHARE = 0.6
_take_anomalies = partial(take_anomalies, lower="gamma_l or gamma_p")
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class RunData:
    """The samples of one run.

    Attributes:
        train: (n, d) float32 or (n, h, w, c) uint8, unlabeled samples first, then the labeled
            outliers.
        y: semi-label, (n,), +1 unlabeled or -1 labeled outlier.
        test: (m, ...) of the same kind.
        truth: (m,), 1 anomalous, 0 normal.
        test_classes: (m,), class of each test sample; its truth where there are no classes.
    """

    train: npt.NDArray[Any]
    y: npt.NDArray[np.int8]
    test: npt.NDArray[Any]
    truth: npt.NDArray[np.int8]
    test_classes: npt.NDArray[Any]


def odds_run(table: Table, *, seed: int, gamma_l: float = 0.01, leaking: bool = False) -> RunData:
    """Split a table 60:40 per class, once; label a share γl of the training set.

    Training outliers that are not labeled are dropped (γp = 0).

    Args:
        table: samples and truth.
        seed: of the split and of which outliers are labeled.
        gamma_l: M / (N + M), rounded down.
        leaking: draw the test rows by a second split from the same random state, as Deep SAD's
            published code does, so that about 60 % of their normals are training rows. For
            comparison only.

    Raises:
        CaseError: fewer than 10 normals, or too few outliers for γl.
        ConfigError: γl outside [0, 1).
    """
    _check_share("gamma_l", gamma_l)
    random = np.random.default_rng([seed, 60])
    train, test = _split(table.truth, random)
    if leaking:
        _, test = _split(table.truth, random)
    normals, anomalous = (train[table.truth[train] == kind] for kind in (0, 1))
    if len(normals) < MIN_NORMALS:
        raise CaseError(
            f"{table.name}: {len(normals)} training normals, expected at least {MIN_NORMALS}"
        )
    outliers = _take_anomalies(anomalous, labeled_outlier_count(len(normals), gamma_l), table.name)
    return RunData(
        train=table.samples[np.concatenate([normals, outliers])],
        y=_semi_labels(len(normals), len(outliers)),
        test=table.samples[test],
        truth=table.truth[test],
        test_classes=table.truth[test],
    )


def natural_run(
    images: LabeledImages,
    *,
    normal: int,
    outlier_classes: Sequence[int],
    gamma_l: float,
    gamma_p: float,
    seed: int,
) -> RunData:
    """All training images of a class as unlabeled, pollution among them, and labeled outliers.

    Pollution is drawn from all other classes and never labeled; the test set is the whole official
    one.

    Args:
        images: the data set.
        normal: number of the normal class.
        outlier_classes: numbers of the k_l classes that labeled outliers come from.
        gamma_l: M / (unlabeled + M), rounded down.
        gamma_p: pollution / unlabeled, rounded down.
        seed: of the pollution and of which outliers are labeled.

    Raises:
        CaseError: a class without enough images for what was asked.
        ConfigError: a class that does not exist, or contradictory ones; a share outside [0, 1).
    """
    _check_share("gamma_l", gamma_l)
    _check_share("gamma_p", gamma_p)
    _check_classes(normal, outlier_classes, len(images.classes), gamma_l)
    labels, random = images.train_labels, np.random.default_rng([seed, normal, 61])
    own = np.flatnonzero(labels == normal)
    if len(own) < MIN_NORMALS:
        raise CaseError(
            f"class {normal} ({images.classes[normal]}): {len(own)} training images, expected at"
            f" least {MIN_NORMALS}"
        )
    others = random.permutation(np.flatnonzero(labels != normal))
    hidden = _take_anomalies(others, pollution_count(len(own), gamma_p), "pollution")
    left = others[len(hidden) :]
    pool = left[np.isin(labels[left], list(outlier_classes))]
    count = len(own) + len(hidden)
    named = f"classes {', '.join(map(str, outlier_classes))}"
    outliers = _take_anomalies(pool, labeled_outlier_count(count, gamma_l), named)
    return RunData(
        train=images.train[np.concatenate([own, hidden, outliers])],
        y=_semi_labels(count, len(outliers)),
        test=images.test,
        truth=(images.test_labels != normal).astype(np.int8),
        test_classes=images.test_labels,
    )


def store_run(store: SampleStore, *, labeled: bool) -> tuple[RunData, Indices, Indices]:
    """Train and test as a store says; it draws nothing.

    Args:
        store: with splits "train" and "test".
        labeled: whether its labeled outliers are trained on; they are never unlabeled ones.

    Returns:
        The samples, and the rows of the store that train and that test.

    Raises:
        CaseError: fewer than 10 training normals, or a test set without normals or anomalies.
    """
    rows = store.rows
    train, test = (np.asarray(rows["split"] == split) for split in ("train", "test"))
    negative = np.asarray(rows["semi_label"] == -1, dtype=bool)
    normals, tested = np.flatnonzero(train & ~negative), np.flatnonzero(test)
    outliers = np.flatnonzero(train & negative & labeled)
    truth = rows["truth"].iloc[tested].to_numpy(np.int8)
    for what, count, least in (
        ("training normals", len(normals), MIN_NORMALS),
        ("normal test samples", int((truth == 0).sum()), 1),
        ("anomalous test samples", int((truth == 1).sum()), 1),
    ):
        if count < least:
            raise CaseError(
                f"{store.path}: found {count} {what}, expected at least {least}; leave it out with"
                " --set data_sets=[...], or choose another --out, and --data with more of the"
                " published images"
            )
    trained = np.concatenate([normals, outliers])
    data = RunData(
        train=store.samples[trained],
        y=_semi_labels(len(normals), len(outliers)),
        test=store.samples[tested],
        truth=truth,
        test_classes=truth,
    )
    return data, trained, tested


def _split(truth: npt.NDArray[np.int8], random: np.random.Generator) -> tuple[Indices, Indices]:
    """Rows of the training and the test part, in random order, 60:40 of each class."""
    parts: list[list[Indices]] = [[], []]
    for kind in (0, 1):
        rows = random.permutation(np.flatnonzero(truth == kind))
        cut = int(_TRAIN_SHARE * len(rows) + 1e-9)
        parts[0].append(rows[:cut])
        parts[1].append(rows[cut:])
    return np.concatenate(parts[0]), np.concatenate(parts[1])


def _semi_labels(unlabeled: int, outliers: int) -> npt.NDArray[np.int8]:
    return np.repeat(np.array([1, -1], np.int8), [unlabeled, outliers])


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{name}: found {value}, expected a share of at least 0 and below 1")


def _check_classes(normal: int, outliers: Sequence[int], count: int, gamma_l: float) -> None:
    for number in (normal, *outliers):
        if not 0 <= number < count:
            raise ConfigError(f"class {number} does not exist; classes are 0 to {count - 1}")
    if normal in outliers:
        raise ConfigError(f"class {normal} is the normal one and among the labeled outliers")
    if gamma_l > 0 and not outliers:
        raise ConfigError(f"gamma_l is {gamma_l}, but no class is given for the labeled outliers")
