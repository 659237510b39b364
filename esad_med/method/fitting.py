"""Detectors from arrays in memory, many at once: for tables, benchmarks and the estimator."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from esad_med.base.errors import CaseError, ModelError
from esad_med.base.runs import Progress, digest_bytes, no_progress
from esad_med.method.config import TrainConfig
from esad_med.method.contract import InputContract
from esad_med.method.datasets import MIN_NORMALS, TrainingSet, group_rows
from esad_med.method.detector import Detector
from esad_med.method.devices import choose_device
from esad_med.method.member import Member, MemberData
from esad_med.method.problem import Problem, assemble_detector, pose_problem, use_bfloat16
from esad_med.method.stacked import Unit, can_stack, train_stacked

_ANY_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class TrainingData:
    """Samples in memory and their semi-labels.

    Attributes:
        samples: (n, h, w, c) uint8 or (n, d) float32.
        y: semi-label, (n,), +1 normal or unlabeled, -1 labeled outlier.
        modality: what is shown.
        rows: of a store, (n,), whose patients and cases are held out whole; None holds out
            samples.
    """

    samples: npt.NDArray[Any]
    y: npt.NDArray[Any]
    modality: str = "table"
    rows: pd.DataFrame | None = None


def fit_detector(data: TrainingData, config: TrainConfig) -> Detector:
    """Train one detector in memory.

    Raises:
        CaseError: too few samples, or values that are not finite.
        ConfigError: settings for another kind of samples.
        ModelError: the training diverged.
    """
    (found,) = fit_detectors([data], [config])
    if isinstance(found, ModelError):
        raise found
    return found


def fit_detectors(
    data: Sequence[TrainingData],
    configs: Sequence[TrainConfig],
    *,
    progress: Progress = no_progress,
) -> list[Detector | ModelError]:
    """Train a detector for each data set and its settings; small vector networks train together.

    Args:
        data: the training samples of each detector.
        configs: the settings of each, such as one seed each.
        progress: called with what is done, network-epochs done, network-epochs in all.

    Returns:
        The detectors in order; the error in place of one whose training diverged.

    Raises:
        CaseError: too few samples, or values that are not finite.
        ConfigError: settings for another kind of samples.
    """
    problems = [_pose(own, config) for own, config in zip(data, configs, strict=True)]
    watch = _Watch(problems, progress)
    units = [
        Unit(
            MemberData(problem.samples, fold, problem.transform),
            problem.config,
            problem.network,
            member,
        )
        for problem in problems
        for member, fold in enumerate(problem.folds)
    ]
    device = choose_device(configs[0].device) if configs else torch.device("cpu")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        weights = iter(_train(units, device, watch))
        return [
            _assemble(problem, [next(weights) for _ in problem.folds], device)
            for problem in problems
        ]


class _Watch:
    """Counts network-epochs for the progress bar."""

    def __init__(self, problems: list[Problem], progress: Progress) -> None:
        self.progress = progress
        self.done = 0.0
        self.total = sum(len(problem.folds) for problem in problems)

    def epoch(self, networks: int, epochs: int) -> None:
        self.done += networks / epochs
        self.progress("training", round(100 * self.done), 100 * self.total)


def _train(
    units: list[Unit], device: torch.device, watch: _Watch
) -> list[dict[str, Tensor] | ModelError]:
    together = [k for k, unit in enumerate(units) if can_stack(unit.config, unit.network)]
    stacked = train_stacked([units[k] for k in together], device, on_epoch=watch.epoch)
    found = dict(zip(together, stacked, strict=True))
    return [
        found[k] if k in found else _train_alone(unit, device, watch)
        for k, unit in enumerate(units)
    ]


def _train_alone(unit: Unit, device: torch.device, watch: _Watch) -> dict[str, Tensor] | ModelError:
    member = Member(
        unit.member,
        unit.data,
        unit.config,
        unit.network,
        device=device,
        bfloat16=use_bfloat16(unit.config, unit.network, device),
        checkpoints=None,
    )
    try:
        member.train(lambda _: watch.epoch(1, member.epochs))
    except ModelError as error:
        return error
    return member.weights()


def _assemble(
    problem: Problem, weights: list[dict[str, Tensor] | ModelError], device: torch.device
) -> Detector | ModelError:
    whole = []
    for own in weights:
        if isinstance(own, ModelError):
            return own
        whole.append(own)
    return assemble_detector(problem, whole, device)


def _pose(data: TrainingData, config: TrainConfig) -> Problem:
    samples, y = data.samples, np.asarray(data.y)
    normals, outliers = np.flatnonzero(y > 0), np.flatnonzero(y < 0)
    if len(normals) < MIN_NORMALS:
        raise CaseError(
            f"{len(normals)} normal or unlabeled training samples, expected at least {MIN_NORMALS}"
        )
    is_bytes = samples.dtype == np.uint8
    by_itself = np.arange(len(samples)).astype(str).astype(object)
    groups, held_out_by = (by_itself, "sample") if data.rows is None else group_rows(data.rows)
    return pose_problem(
        samples,
        TrainingSet(
            normals=normals,
            outliers=outliers,
            validation=np.empty(0, np.int64),
            groups=groups,
            held_out_by=held_out_by,
        ),
        pd.DataFrame(index=range(len(samples))),
        config,
        accepts=InputContract(
            modality=data.modality,
            sample_shape=samples.shape[1:],
            dtype=str(samples.dtype),
            value_range=(0.0, 255.0) if is_bytes else (-_ANY_FLOAT, _ANY_FLOAT),
        ),
        data_digest=digest_bytes(np.ascontiguousarray(samples).tobytes()),
        rows_digest=digest_bytes(y.tobytes()),
        preparation={},
    )
