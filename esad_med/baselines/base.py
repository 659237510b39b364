"""What every baseline is: its face, its settings, and the checks and choices they share."""

from typing import Annotated, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from esad_med.base.config import Spec
from esad_med.base.errors import CaseError

Floats = npt.NDArray[np.float32]  # vectors (n, d), z-scores; or images (n, c, h, w) in [0, 1]
Labels = npt.NDArray[np.int8]  # semi-labels (n,), +1 unlabeled or -1 labeled outlier
AnomalyScores = npt.NDArray[np.float64]  # (n,), higher is more anomalous
Indices = npt.NDArray[np.intp]

LEAST_UNLABELED = 10


class Baseline(Protocol):
    """A detector that learns from samples and semi-labels, as ESAD does."""

    def fit(self, samples: Floats, y: Labels) -> Self:
        """Learn from training samples.

        Args:
            samples: vectors (n, d), z-scores; or images (n, c, h, w) in [0, 1].
            y: semi-labels, (n,), +1 unlabeled or -1 labeled outlier.

        Raises:
            CaseError: samples that nothing can be learned from.
        """
        ...

    def score(self, samples: Floats) -> AnomalyScores:
        """Score samples of the same kind, (m,), higher is more anomalous."""
        ...


class BaselineSettings(Spec):
    """Every baseline's settings; the defaults are the paper's, with the networks for MNIST.

    The networks, their training and the generative model follow Deep SAD's published code, from
    which the paper takes these competitors (supplement, section D).
    """

    seed: int = Field(0, ge=0, lt=2**31, description="Of every random choice.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where networks train.")

    kernel_rows: int = Field(
        5000, ge=10, description="Most rows a kernel method trains on; labeled outliers all stay."
    )
    grid_rows: int = Field(
        2000, ge=10, description="The same for each trial of a choice on test labels."
    )
    svm_gamma: Annotated[float, Field(gt=0)] | Literal["scale"] = Field(
        "scale", description="γ of exp(-γ‖a - b‖²); scale is 1 / (d · variance of all values)."
    )
    nu: float = Field(0.1, gt=0, le=1, description="ν of OC-SVM: most share of rows left outside.")
    trees: int = Field(100, ge=1, description="Of the isolation forest.")
    subsample: int = Field(256, ge=2, description="Rows each of its trees sees.")
    kappa: float = Field(1.0, ge=0, description="κ of SSAD: weight of the margin γ.")
    eta_unlabeled: float = Field(1.0, gt=0, description="η_u of SSAD: price of their slack.")
    eta_labeled: float = Field(1.0, gt=0, description="η_l of SSAD: price of their slack.")

    hidden: tuple[int, ...] = Field(
        (32, 16, 8), min_length=1, description="Layers of the encoder for vectors, the code last."
    )
    channels: tuple[int, ...] = Field(
        (8, 4), min_length=1, description="Convolutions of the LeNet for images."
    )
    dense: tuple[int, ...] = Field(
        (32,), min_length=1, description="Dense layers of the LeNet, the code last."
    )
    epochs: int = Field(150, ge=1, description="Passes over the training rows.")
    pretrain_epochs: int = Field(150, ge=1, description="The same for the autoencoder.")
    most_steps: int | None = Field(
        None, ge=1, description="Fewer epochs where these would take more steps; at least one."
    )
    lr: float = Field(1e-4, gt=0, description="Learning rate of Adam.")
    lr_milestone: int = Field(50, ge=1, description="Epochs after which it falls to a tenth.")
    batch_size: int = Field(128, ge=2, description="Samples per step.")
    weight_decay: float = Field(0.5e-6, ge=0, description="Of Adam; half of the paper's λ = 1e-6.")

    deep_sad_eta: float = Field(1.0, gt=0, description="η of Deep SAD: weight of labeled rows.")
    soft_nu: float = Field(
        0.1, gt=0, le=1, description="ν of soft-boundary Deep SVDD: share outside the radius."
    )
    soft_warmup: int = Field(10, ge=0, description="Epochs before its radius follows the data.")
    dgm_latent: int = Field(32, ge=1, description="Latent size of SS-DGM.")
    dgm_hidden: tuple[int, ...] = Field(
        (128, 64), min_length=1, description="Hidden layers of SS-DGM."
    )
    dgm_alpha: float = Field(
        0.1, ge=0, description="Weight of its classifier, times (1 - r) / r for a labeled share r."
    )


def check_training(samples: Floats, y: Labels, *, method: str) -> None:
    """Refuse training samples that no baseline can learn from; constant columns are fine.

    Args:
        samples: (n, d) or (n, c, h, w).
        y: semi-labels, (n,).
        method: who asks, for the message.

    Raises:
        CaseError: a value that is not finite; fewer than 10 unlabeled samples.
        ValueError: labels that do not fit the samples, or are neither +1 nor -1.
    """
    if y.shape != samples.shape[:1] or not np.isin(y, (-1, 1)).all():
        raise ValueError(f"{method}: expected one label, +1 or -1, for each of {len(samples)}")
    check_finite(samples, method=method)
    if (unlabeled := int((y > 0).sum())) < LEAST_UNLABELED:
        raise CaseError(
            f"{method}: found {unlabeled} unlabeled training samples, expected at least"
            f" {LEAST_UNLABELED}; give more normals"
        )


def check_finite(samples: Floats, *, method: str) -> None:
    """Refuse values that are not finite.

    Raises:
        CaseError: naming the first sample and, of a vector, its column.
    """
    if np.isfinite(samples).all():
        return
    place = tuple(int(i) for i in np.argwhere(~np.isfinite(samples))[0])
    where = f"column {place[1]}" if samples.ndim == 2 else f"value {list(place[1:])}"
    raise CaseError(
        f"{method}: sample {place[0]}, {where}: found {samples[place]}, expected finite numbers;"
        " remove or impute it"
    )


def choose_rows(y: Labels, most: int, *, seed: int) -> Indices:
    """Choose at most so many rows at random, in order: all labeled outliers and some unlabeled.

    Kernel methods need memory by the square of their rows. At least 10 unlabeled rows are chosen,
    however many outliers there are.

    Args:
        y: semi-labels, (n,).
        most: how many rows.
        seed: of the choice.
    """
    if len(y) <= most:
        return np.arange(len(y))
    unlabeled, labeled = np.flatnonzero(y > 0), np.flatnonzero(y < 0)
    count = min(len(unlabeled), max(most - len(labeled), LEAST_UNLABELED))
    chosen = np.random.default_rng(seed).choice(unlabeled, count, replace=False)
    return np.sort(np.concatenate([labeled, chosen]))


def as_rows(samples: Floats) -> npt.NDArray[np.float64]:
    """Vectors as they are, images flattened: (n, d) float64, as kernel methods want them."""
    return samples.reshape(len(samples), -1).astype(np.float64)
