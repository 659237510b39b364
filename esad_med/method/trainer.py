"""Training: a SampleStore and settings in, a Detector out; an ensemble fitted crosswise.

OUT/config.yaml     the resolved settings
OUT/checkpoints/    the state of each member after its last epoch, and what the run was started with
OUT/metrics.csv     a row per member and epoch
OUT/tensorboard/    the same as curves
OUT/run.json        versions, device, times
OUT/...             the detector; see detector.py
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esad_med.base.config import dump_yaml
from esad_med.base.errors import ConfigError, StoreError
from esad_med.base.runs import (
    Progress,
    digest_bytes,
    ensure_folder,
    no_progress,
    read_json,
    versions,
    write_csv,
    write_json,
    write_text,
)
from esad_med.base.store import SampleStore
from esad_med.method.calibrating import calibrate
from esad_med.method.config import TrainConfig
from esad_med.method.contract import Contract, InputContract, Training
from esad_med.method.datasets import (
    Fold,
    TrainingSet,
    choose_training_set,
    held_out_by,
    split_folds,
)
from esad_med.method.detector import CHECKSUMS, Detector, choose_device
from esad_med.method.member import Member, MemberData, Row
from esad_med.method.networks import ImageNetworkSpec, NetworkSpec, VectorNetworkSpec
from esad_med.method.terms import TermSpec
from esad_med.method.transforms import InputTransform

Say = Callable[[str], None]
_RESUMABLE = {"epochs", "patience", "device"}  # may change between a run and its continuation


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
        StoreError: the samples are damaged, or not finite.
    """
    started = time.time()
    store.verify()
    spec = network_spec(store, config)
    chosen = choose_training_set(store, config.data, seed=config.seed)
    folds = _folds(chosen, store, config)
    device = choose_device(config.device)
    _open_folder(out, store, config, resume=resume, overwrite=overwrite)
    say(_describe(chosen, folds, config))
    with _private_randomness(device):
        weights, history = _train_members(
            store, folds, config, spec, out, device, resume, progress, say
        )
        detector = _assemble(
            store, chosen, folds, config, spec, weights, preparation, device=device
        )
    _write_metrics(out, history)
    _write_run(out, config, device, started)
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
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


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
        with _curves(out, index) as draw:

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


def _open_folder(
    out: Path, store: SampleStore, config: TrainConfig, *, resume: bool, overwrite: bool
) -> None:
    """Make the folder ready: empty, or holding the same training, started before.

    Raises:
        ConfigError: it holds a training and neither resume nor overwrite is asked for, or another
            training than the one to resume.
    """
    request = {
        "samples": store.digest,
        "rows": store.contract["digests"]["samples.csv"],
        "config": config.model_dump(mode="json", exclude=_RESUMABLE),
    }
    known = out / "checkpoints" / "request.json"
    if resume and known.exists():
        _check_request(out, read_json(known, ConfigError), request, config)
    elif (known.exists() or (out / CHECKSUMS).exists()) and not (overwrite or resume):
        raise ConfigError(
            f"{out}: holds a training already; pass --resume to go on with it, --overwrite to start"
            " anew, or choose another --out"
        )
    else:
        ensure_folder(out)
        for folder in ("checkpoints", "tensorboard"):
            shutil.rmtree(out / folder, ignore_errors=True)
            ensure_folder(out / folder)
        (out / CHECKSUMS).unlink(missing_ok=True)
        total = {**request, "epochs": config.epochs}
        write_json(known, total)
    write_text(out / "config.yaml", dump_yaml(config))


def _check_request(
    out: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], config: TrainConfig
) -> None:
    for name in ("samples", "rows"):
        if found.get(name) != wanted[name]:
            raise ConfigError(
                f"{out}: was trained on another store ({name} differ); resume with that one, or"
                " choose another --out"
            )
    if difference := _first_difference(found.get("config"), wanted["config"]):
        raise ConfigError(
            f"{out}: cannot be resumed, {difference}; resume with the settings in"
            f" {out / 'config.yaml'}"
        )
    moving = config.optimizer.schedule in {"cosine", "onecycle"}
    if moving and config.epochs > int(found.get("epochs", 0)):
        raise ConfigError(
            f"{out}: cannot be resumed with more epochs: schedule {config.optimizer.schedule} was"
            f" laid out for {found.get('epochs')}"
        )


def _first_difference(found: Any, wanted: Any, path: str = "") -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in {**found, **wanted}:
            inner = f"{path}.{key}" if path else str(key)
            if text := _first_difference(found.get(key), wanted.get(key), inner):
                return text
        return ""
    return "" if found == wanted else f"{path} was {found!r}, now {wanted!r}"


@contextmanager
def _private_randomness(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators as they were: initial weights and dropout use them."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def _curves(out: Path, member: int) -> Iterator[Callable[[Row], None]]:
    """A function that draws an epoch's row into TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(out / "tensorboard" / f"member{member}")) as writer:

        def draw(row: Row) -> None:
            for name, value in row.items():
                if name not in {"member", "epoch"} and not math.isnan(value):
                    writer.add_scalar(name, value, int(row["epoch"]))
            writer.flush()

        yield draw


def _write_metrics(out: Path, history: list[Row]) -> None:
    columns = list(history[0])
    rows = [
        [
            int(row[c]) if c in {"member", "epoch"} else "" if math.isnan(row[c]) else row[c]
            for c in columns
        ]
        for row in history
    ]
    write_csv(out / "metrics.csv", columns, rows)


def _write_run(out: Path, config: TrainConfig, device: torch.device, started: float) -> None:
    write_json(
        out / "run.json",
        {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - started, 1),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "seed": config.seed,
            "settings": digest_bytes(dump_yaml(config).encode()),
            "versions": versions(),
        },
    )


def _describe(chosen: TrainingSet, folds: list[Fold], config: TrainConfig) -> str:
    held = len(folds[0].held_normals)
    return (
        f"{len(chosen.normals)} normal or unlabelled samples and {len(chosen.outliers)} labelled"
        f" outliers; {config.members} member(s), about {held} normals held out by"
        f" {held_out_by(chosen, folds)} for each"
    )


def _member_line(member: Member) -> str:
    last = member.history[-1]
    auc = last["validation_auc"]
    text = "" if math.isnan(auc) else f", held-out AUC {100 * auc:.1f} %"
    return f"member {member.index}: {len(member.history)} epochs, loss {last['loss']:.4f}{text}"
