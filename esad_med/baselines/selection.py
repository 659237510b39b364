"""The paper's choice of kernel settings ON TEST LABELS: unfair on purpose, never a default."""

from itertools import product
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from esad_med.base.interrupts import raise_if_interrupted
from esad_med.baselines.base import BaselineSettings, Floats, Indices, Labels
from esad_med.baselines.catalog import check_name, make_baseline

if TYPE_CHECKING:
    from esad_med.baselines.autoencoder import Autoencoder

GAMMAS: tuple[float, ...] = tuple(2.0**k for k in range(-7, 3))
NUS: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2, 0.5)
_SHARE = 0.1  # of the test set
_SEED_STREAM = 1  # apart from the choice of training rows


def select_on_test(
    name: str,
    settings: BaselineSettings,
    train: Floats,
    y: Labels,
    test: Floats,
    truth: Labels,
    autoencoder: "Autoencoder | None" = None,
) -> BaselineSettings:
    """Choose γ (and ν) of a kernel method BY THE LABELS OF THE TEST SET.

    THIS LOOKS AT TEST LABELS. The paper gives OC-SVM, SSAD and their hybrids this unfair advantage
    "to establish a strong baseline" (supplement, section D). What comes of it may only be reported
    as such, beside the same method with its default settings.

    The best AUC on a tenth of the test set decides, drawn by the seed; each trial trains on at most
    `grid_rows` samples. γ is one of 2^-7 ... 2^2; ν of OC-SVM one of .01, .05, .1, .2, .5. The
    paper chooses ν by the final results of a whole table; here it is chosen like γ. The tenth is
    drawn from normals and anomalous samples apart, so that neither is missing (ours).

    Args:
        name: one of `BASELINES`; for those without a kernel the settings come back unchanged.
        settings: what all but γ and ν is taken from.
        train: training samples.
        y: their semi-labels, (n,).
        test: test samples.
        truth: 1 anomalous or 0, (m,).
        autoencoder: a fitted one, for hybrids.

    Raises:
        ConfigError: an unknown name.
        ValueError: a hybrid without an autoencoder, which each trial would train anew; test
            samples of one kind only.
    """
    check_name(name)
    grid = _grid(name)
    if len(grid) == 1:
        return settings
    if name.endswith("-hybrid") and autoencoder is None:
        raise ValueError(f"{name}: give the fitted autoencoder")
    part = _tenth(truth, settings.seed)
    test, truth = test[part], truth[part]
    if autoencoder is not None and name.endswith("-hybrid"):  # once, rather than in each trial
        train, test = autoencoder.encode(train), autoencoder.encode(test)
        autoencoder = cast("Autoencoder", _Encoded())

    def auc(changes: dict[str, Any]) -> float:
        raise_if_interrupted()
        own = settings.model_copy(update={**changes, "kernel_rows": settings.grid_rows})
        baseline = make_baseline(name, own, autoencoder).fit(train, y)
        return float(roc_auc_score(truth, baseline.score(test)))

    return settings.model_copy(update=max(grid, key=auc))


class _Encoded:
    """Stands for the autoencoder where samples are codes already."""

    def encode(self, samples: Floats) -> Floats:
        return samples


def _grid(name: str) -> list[dict[str, Any]]:
    """The settings to try; a single one, of no change, for methods without a kernel."""
    match name.removesuffix("-hybrid"):
        case "oc-svm":
            return [{"svm_gamma": gamma, "nu": nu} for gamma, nu in product(GAMMAS, NUS)]
        case "ssad":
            return [{"svm_gamma": gamma} for gamma in GAMMAS]
    return [{}]


def _tenth(truth: npt.NDArray[Any], seed: int) -> Indices:
    """A random tenth of the normals and of the anomalous samples, rounded up."""
    rng = np.random.default_rng((seed, _SEED_STREAM))
    parts = []
    for value in (0, 1):
        members = np.flatnonzero(truth == value)
        if not len(members):
            raise ValueError(f"no test sample has truth {value}; expected normals and anomalous")
        parts.append(rng.choice(members, int(np.ceil(_SHARE * len(members))), replace=False))
    return np.sort(np.concatenate(parts))
