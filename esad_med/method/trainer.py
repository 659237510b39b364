"""Training: a SampleStore and settings in, a Detector out; an ensemble fitted crosswise.

OUT/config.yaml     the resolved settings
OUT/checkpoints/    the state of each member after its last epoch, and what the run was started with
OUT/metrics.csv     a row per member and epoch
OUT/tensorboard/    the same as curves
OUT/run.json        versions, device, times
OUT/...             the detector; see detector.py
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esad_med.base.errors import StoreError
from esad_med.base.runs import (
    Progress,
    no_progress,
    versions,
)
from esad_med.base.store import SampleStore
from esad_med.method.calibrating import calibrate
from esad_med.method.config import TrainConfig
from esad_med.method.contract import Contract, InputContract, Training
from esad_med.method.datasets import TrainingSet, choose_training_set
from esad_med.method.detector import Detector
from esad_med.method.devices import choose_device, computes_bfloat16
from esad_med.method.folds import Fold, held_out_by, split_folds
from esad_med.method.member import Member, MemberData, Row
from esad_med.method.networks import ImageNetworkSpec, NetworkSpec, VectorNetworkSpec
from esad_med.method.terms import TermSpec
from esad_med.method.training_folder import curves, open_folder, write_metrics, write_run
from esad_med.method.transforms import InputTransform

Say = Callable[[str], None]
_FEW_NORMALS = 100  # held out: a percentile is then a step of more than one percent


def train(
    store: SampleStore,
    config: TrainConfig,
    out: Path,
    *,
    preparation: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = no_progress,
    say: Say = lambda _: None,
) -> Detector:
    """Train the members one after the other, calibrate them together, write the detector.

    On a CPU the same store, settings and versions give the same weights bit by bit, also when the
    training was interrupted and resumed.

    Args:
        store: the samples; rows of split "test" are never touched.
        config: the settings.
        out: the detector's folder.
        preparation: how samples were made, kept in the contract; by default what the store says.
        resume: go on from the last completed epoch in ``out``.
        overwrite: start anew where ``out`` holds a training or detector.
        progress: called with (what, epochs done, epochs in all).
        say: called with a line per member.

    Raises:
        CaseError: the store's rows do not allow this training.
        ConfigError: ``out`` holds another training, or cannot be written.
        ModelError: the loss is no longer finite, or a checkpoint is damaged.
        StoreError: the samples are damaged, or neither pictures nor vectors.
    """
    started = time.time()
    store.verify()
    spec = network_spec(store, config)
    InputContract.of_store(store)  # what cannot be kept is refused before, not after the training
    chosen = choose_training_set(store, config.data, seed=config.seed)
    folds = _folds(chosen, store, config)
    device = choose_device(config.device)
    open_folder(out, store, config, resume=resume, overwrite=overwrite)
    say(_describe(chosen, folds, config))
    with _private_randomness(device):
        weights, history = _train_members(
            store, folds, config, spec, out, device, resume, progress, say
        )
        detector = _assemble(
            store, chosen, folds, config, spec, weights, preparation, device=device
        )
    write_metrics(out, history)
    write_run(out, config, device, started)
    detector.save(out)
    return detector


def network_spec(store: SampleStore, config: TrainConfig) -> NetworkSpec:
    """The network for a store's samples.

    Raises:
        StoreError: samples that are neither pictures nor vectors.
    """
    shape, net = store.samples.shape[1:], config.network
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
        )
    if len(shape) == 1:
        return VectorNetworkSpec(
            features=shape[0],
            hidden=net.hidden,
            normalization=net.normalization,
            latent_activation=net.latent_activation or "linear",
            dropout=net.dropout,
        )
    raise StoreError(f"{store.path}: samples of shape {list(shape)}, expected (h, w, c) or (d,)")


def use_bfloat16(config: TrainConfig, spec: NetworkSpec, device: torch.device) -> bool:
    """Whether to train in bfloat16: as set, or where the hardware computes in it."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if not isinstance(spec, ImageNetworkSpec):
        return False
    return computes_bfloat16(device)


def _folds(chosen: TrainingSet, store: SampleStore, config: TrainConfig) -> list[Fold]:
    count = config.members if config.folds == "cross" else 1
    folds = split_folds(
        chosen, store.rows, count=count, validation=config.data.validation, seed=config.seed
    )
    return folds if config.folds == "cross" else folds * config.members


def _train_members(
    store: SampleStore,
    folds: list[Fold],
    config: TrainConfig,
    spec: NetworkSpec,
    out: Path,
    device: torch.device,
    resume: bool,
    progress: Progress,
    say: Say,
) -> tuple[list[dict[str, Tensor]], list[Row]]:
    """Train one member after the other; their weights and the log of all epochs."""
    transform = InputTransform(value_range=store.value_range, image=spec.kind == "image")
    weights, history = [], []
    for index, fold in enumerate(folds):
        member = Member(
            index,
            MemberData(store.samples, fold, transform),
            config,
            spec,
            device=device,
            bfloat16=use_bfloat16(config, spec, device),
            checkpoints=out / "checkpoints",
        )
        if resume and member.resume() and member.history:
            say(f"member {index}: resumed after epoch {len(member.history)}")
        with curves(out, index) as draw:

            def on_epoch(row: Row, index: int = index, draw: Callable[[Row], None] = draw) -> None:
                draw(row)
                total = config.epochs * config.members
                done = index * config.epochs + int(row["epoch"])
                progress(f"training member {index + 1} of {config.members}", done, total)

            member.train(on_epoch)
        say(_member_line(member))
        weights.append(member.weights())
        history += member.history
    return weights, history


def _assemble(
    store: SampleStore,
    chosen: TrainingSet,
    folds: list[Fold],
    config: TrainConfig,
    spec: NetworkSpec,
    weights: list[dict[str, Tensor]],
    preparation: Mapping[str, Any] | None,
    *,
    device: torch.device,
) -> Detector:
    """Calibrate the trained members on what they held out, and put the detector together."""
    own = InputContract.of_store(store)
    views = config.test_time_augmentation if own.is_image else 1
    transform = InputTransform(value_range=store.value_range, image=own.is_image)
    fusion, calibration = calibrate(
        store.samples,
        folds,
        weights,
        config,
        spec,
        transform=transform,
        views=views,
        device=device,
        held_out_by=held_out_by(chosen, folds),
    )
    contract = Contract(
        input=own,
        network=spec,
        members=len(weights),
        terms=TermSpec(**{name: getattr(config.loss, name) for name in TermSpec.model_fields}),
        views=views,
        fusion=fusion,
        calibration=calibration,
        preparation=dict(preparation or store.contract.get("preparation") or {}),
        training=Training(
            preset=config.preset,
            seed=config.seed,
            config=config.model_dump(mode="json"),
            normals=len(chosen.normals),
            outliers=len(chosen.outliers),
            data_digest=store.digest,
            rows_digest=str(store.contract["digests"]["samples.csv"]),
            versions=versions(),
        ),
    )
    named = {f"member{k}.{n}": t for k, own in enumerate(weights) for n, t in own.items()}
    return Detector(contract, named, device=config.device)


@contextmanager
def _private_randomness(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators as they were: initial weights and dropout use them."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _describe(chosen: TrainingSet, folds: list[Fold], config: TrainConfig) -> str:
    held = len(folds[0].held_normals)
    warnings = "" if held >= _FEW_NORMALS else "; so few give coarse percentiles"
    if not len(chosen.outliers):
        warnings += "; without labeled outliers only unusual reconstructions can be told"
    return (
        f"{len(chosen.normals)} normal or unlabeled samples and {len(chosen.outliers)} labeled"
        f" outliers; {config.members} member(s), about {held} normals held out by"
        f" {held_out_by(chosen, folds)} for each{warnings}"
    )


def _member_line(member: Member) -> str:
    last = member.history[-1]
    auc = last["validation_auc"]
    text = "" if math.isnan(auc) else f", held-out AUC {100 * auc:.1f} %"
    return f"member {member.index}: {len(member.history)} epochs, loss {last['loss']:.4f}{text}"
