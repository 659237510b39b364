"""The samples of a run, read and drawn by the paper's protocols, and as baselines want them."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from data_prep import natural
from data_prep.odds import Table, read_odds
from esad_med.base.store import SampleStore
from pipelines.paper.protocols import RunData, natural_run, odds_run, store_run
from pipelines.paper.runs import Run
from pipelines.paper.settings import MEDICAL
from pipelines.paper.stores import describe_store

Floats = npt.NDArray[np.float32]

_READERS = {
    "mnist": natural.read_mnist,
    "fmnist": natural.read_fashion_mnist,
    "cifar10": natural.read_cifar10,
}


@dataclass(frozen=True)
class Loaded:
    """The samples of a run.

    Attributes:
        data: who trains and who tests.
        source: what they were read from, see `Result`.
        train_rows: of a store, in the order of the training samples; else None.
        test_rows: the same of the test samples.
    """

    data: RunData
    source: str = ""
    train_rows: pd.DataFrame | None = None
    test_rows: pd.DataFrame | None = None


def is_vector(run: Run) -> bool:
    """Whether the samples of a run are vectors rather than images."""
    return run.suite == "odds"


def read_run(run: Run, *, folder: Path, leaking: bool) -> Loaded:
    """Read the data set of a run, and draw its training and test samples.

    Args:
        run: which.
        folder: the files of the suite, or its stores.
        leaking: see `odds_run`.

    Raises:
        CaseError: files that are missing or damaged, or too few samples for the protocol.
        StoreError: a store that is missing or damaged.
    """
    if is_vector(run):
        table = _table(folder, run.data)
        return Loaded(odds_run(table, seed=run.seed, gamma_l=run.gamma_l, leaking=leaking))
    if run.data in MEDICAL:
        store = SampleStore(folder / run.data)
        data, train, test = store_run(store, labeled=run.gamma_l > 0)
        rows = store.rows
        return Loaded(data, describe_store(store), rows.iloc[train], rows.iloc[test])
    images = _images(folder, run.suite)
    data = natural_run(
        images,
        normal=int(run.normal),
        outlier_classes=[int(name) for name in run.outlier_classes],
        gamma_l=run.gamma_l,
        gamma_p=run.gamma_p,
        seed=run.seed,
    )
    return Loaded(data, images.source)


@lru_cache(maxsize=8)
def _table(folder: Path, name: str) -> Table:
    return read_odds(folder, name)


@lru_cache(maxsize=1)
def _images(folder: Path, suite: str) -> natural.LabeledImages:
    return _READERS[suite](folder)


def as_input(data: RunData) -> tuple[Floats, Floats]:
    """Training and test samples as baselines want them.

    Vectors become z-scores fitted on the training rows, constant columns 0; images float32
    (n, c, h, w) in [0, 1].
    """
    if data.train.ndim == 2:
        mean, sd = data.train.mean(axis=0, dtype="f8"), data.train.std(axis=0, dtype="f8")
        scale = np.where(sd > 0, 1 / np.where(sd > 0, sd, 1), 0)
        train, test = (
            ((part - mean) * scale).astype(np.float32) for part in (data.train, data.test)
        )
        return train, test
    return _in_unit_range(data.train), _in_unit_range(data.test)


def _in_unit_range(images: npt.NDArray[np.uint8]) -> Floats:
    first = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
    first /= 255
    return first
