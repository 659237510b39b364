"""What one detector is trained from, and how trained members are put together to a detector."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from esad_med.base.errors import ConfigError, StoreError
from esad_med.base.runs import versions
from esad_med.method.calibrating import calibrate, fit_distance
from esad_med.method.config import TrainConfig
from esad_med.method.contract import Contract, InputContract, Training
from esad_med.method.datasets import TrainingSet
from esad_med.method.detector import Detector
from esad_med.method.devices import computes_bfloat16
from esad_med.method.folds import Fold, held_out_by, split_folds
from esad_med.method.member import MemberData
from esad_med.method.networks import (
    ImageNetworkSpec,
    NetworkSpec,
    VectorNetworkSpec,
    default_hidden,
)
from esad_med.method.scaling import Scaling, fit_scaling
from esad_med.method.terms import TermSpec
from esad_med.method.transforms import InputTransform

_MOST_AT_ONCE = 1 << 28  # values of vectors: 1 GiB, and four times that on the way


@dataclass(frozen=True)
class Problem:
    """Samples, which of them each member trains on and holds out, the network, the settings.

    Attributes:
        samples: of all rows, pictures (n, h, w, c), or vectors (n, d).
        input: what the detector will accept.
        chosen: the rows trained on.
        folds: one per member.
        config: the settings.
        network: the network of every member.
        scaling: of vectors, fitted on the rows trained on.
        data_digest: SHA-256 of the samples.
        rows_digest: SHA-256 of their labels.
        preparation: how the samples were made.
        scaled: whether the vectors are scaled already; where they are too many for the memory each
            batch is.
    """

    samples: npt.NDArray[Any]
    input: InputContract
    chosen: TrainingSet
    folds: list[Fold]
    config: TrainConfig
    network: NetworkSpec
    scaling: Scaling | None
    data_digest: str
    rows_digest: str
    preparation: Mapping[str, Any] = field(default_factory=dict)
    scaled: bool = True

    @property
    def transform(self) -> InputTransform:
        """From these samples to network input."""
        return InputTransform(
            value_range=self.input.value_range,
            image=self.input.is_image,
            scaling=None if self.scaled else self.scaling,
        )


def pose_problem(
    samples: npt.NDArray[Any],
    chosen: TrainingSet,
    rows: pd.DataFrame,
    config: TrainConfig,
    *,
    accepts: InputContract,
    data_digest: str,
    rows_digest: str,
    preparation: Mapping[str, Any],
    source: str = "samples",
) -> Problem:
    """Divide the training rows into folds, fit the scaling of vectors, choose the network.

    Labeled outliers are held out only where the weight of the terms is to be learned from them and
    there are enough of them, or where the best epoch is to be told by them.

    Raises:
        CaseError: values of vectors that are not finite.
        ConfigError: settings for another kind of samples.
        StoreError: samples that are neither pictures nor vectors.
    """
    spec = network_spec(accepts.sample_shape, config, source=source)
    learned = config.fusion.learn_weight and len(chosen.outliers) >= config.fusion.min_outliers
    folds = split_folds(
        chosen,
        rows,
        count=config.members if config.folds == "cross" else 1,
        validation=config.data.validation,
        hold_outliers=learned or config.patience is not None or config.select == "best",
        seed=config.seed,
    )
    scaling, at_once = None, True
    if spec.kind == "vector":
        used = np.concatenate([chosen.normals, chosen.outliers])
        at_once = samples.size <= _MOST_AT_ONCE
        step = max(1, used.size * samples.shape[1] // _MOST_AT_ONCE)
        scaling = fit_scaling(samples[used[::step]], config.scale)
        if at_once:
            scaled = InputTransform(value_range=accepts.value_range, image=False, scaling=scaling)
            samples = scaled(np.array(samples)).numpy()  # once, not in every batch
    return Problem(
        samples=samples,
        input=accepts,
        chosen=chosen,
        folds=folds if config.folds == "cross" else folds * config.members,
        config=config,
        network=spec,
        scaling=scaling,
        data_digest=data_digest,
        rows_digest=rows_digest,
        preparation=preparation,
        scaled=at_once,
    )


def assemble_detector(
    problem: Problem, weights: list[dict[str, Tensor]], device: torch.device
) -> Detector:
    """Calibrate the trained members on what they held out, and put the detector together."""
    config, chosen = problem.config, problem.chosen
    views = config.test_time_augmentation if problem.input.is_image else 1
    if problem.network.distance != "none":
        weights = [
            fit_distance(
                MemberData(problem.samples, fold, problem.transform), own, problem.network, device
            )
            for fold, own in zip(problem.folds, weights, strict=True)
        ]
    fusion, calibration = calibrate(
        problem.samples,
        problem.folds,
        weights,
        config,
        problem.network,
        transform=problem.transform,
        views=views,
        device=device,
        held_out_by=held_out_by(chosen, problem.folds),
    )
    contract = Contract(
        input=problem.input,
        network=problem.network,
        members=len(weights),
        terms=TermSpec(**{name: getattr(config.loss, name) for name in TermSpec.model_fields}),
        views=views,
        scaling=problem.scaling,
        fusion=fusion,
        calibration=calibration,
        preparation=dict(problem.preparation),
        training=Training(
            preset=config.preset,
            seed=config.seed,
            config=config.model_dump(mode="json"),
            normals=len(chosen.normals),
            outliers=len(chosen.outliers),
            data_digest=problem.data_digest,
            rows_digest=problem.rows_digest,
            versions=_versions(),
        ),
    )
    named = {f"member{k}.{n}": t for k, own in enumerate(weights) for n, t in own.items()}
    return Detector(contract, named, device=config.device)


@cache
def _versions() -> dict[str, str]:
    """Looked up once: they do not change under a running process, and many small fits ask."""
    return versions()


def network_spec(shape: tuple[int, ...], config: TrainConfig, *, source: str) -> NetworkSpec:
    """The network for samples of a shape.

    Raises:
        ConfigError: settings for another kind of samples.
        StoreError: samples that are neither pictures nor vectors.
    """
    if len(shape) not in (1, 3):
        raise StoreError(f"{source}: samples of shape {list(shape)}, expected (h, w, c) or (d,)")
    kinds, net = ("image", "upright") if len(shape) == 3 else ("vector",), config.network
    if config.kind not in kinds:
        raise ConfigError(
            f"{source}: samples of shape {list(shape)} need kind={' or '.join(kinds)}, the settings"
            f" say kind={config.kind}; set kind={kinds[0]}"
        )
    if len(shape) == 3:
        return ImageNetworkSpec(
            channels=shape[2],
            width=net.width,
            skip=net.skip,
            normalization=net.normalization,
            latent_activation=net.latent_activation or "relu",
            dropout=net.dropout,
            pooling=net.pooling,
            whiten=net.whiten,
            second_encoder=net.second_encoder,
            distance=net.distance,
        )
    return VectorNetworkSpec(
        features=shape[0] * config.scale.inputs_per_column,
        hidden=net.hidden or default_hidden(shape[0]),
        normalization=net.normalization,
        latent_activation=net.latent_activation or "linear",
        dropout=net.dropout,
        second_encoder=net.second_encoder,
        distance=net.distance,
    )


def use_bfloat16(config: TrainConfig, spec: NetworkSpec, device: torch.device) -> bool:
    """Whether to train in bfloat16: as set, or where the hardware computes in it."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    return isinstance(spec, ImageNetworkSpec) and computes_bfloat16(device)
