"""The folder of a training: may it be used, can it be resumed, its log and its facts."""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from esad_med.base.config import dump_yaml
from esad_med.base.errors import ConfigError
from esad_med.base.runs import (
    LOCK,
    digest_bytes,
    ensure_folder,
    output_error,
    read_json,
    versions,
    write_csv,
    write_json,
    write_text,
)
from esad_med.base.store import SampleStore
from esad_med.method.config import TrainConfig
from esad_med.method.detector import CHECKSUMS, CONTRACT
from esad_med.method.distributed import Ranks
from esad_med.method.member import Row

_RESUMABLE = {
    "epochs",
    "patience",
    "device",
    "keep_examples",
}  # may change between a run and its continuation


def open_folder(
    out: Path, store: SampleStore, config: TrainConfig, *, resume: bool, overwrite: bool
) -> None:
    """Make the folder ready: empty, or holding the same training, started before.

    Raises:
        ConfigError: it holds a training and neither resume nor overwrite is asked for, another
            training than the one to resume, or something else than a training.
    """
    refuse_other_folder(out)
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
    elif resume and (out / CHECKSUMS).exists() and not overwrite:
        raise ConfigError(
            f"{out}: a finished detector without its checkpoints, which cannot be resumed; choose"
            " another --out, or pass --overwrite to start anew"
        )
    else:
        ensure_folder(out)
        for mark in (out / CHECKSUMS, known):  # first: nobody goes on with what is half removed
            mark.unlink(missing_ok=True)
        for folder in ("checkpoints", "tensorboard"):
            shutil.rmtree(out / folder, ignore_errors=True)
            ensure_folder(out / folder)
        total = {**request, "epochs": config.epochs}
        write_json(known, total)
    write_text(out / "config.yaml", dump_yaml(config))


def refuse_other_folder(out: Path) -> None:
    """Refuse a folder of something else: a training writes README.md and empties checkpoints/.

    Raises:
        ConfigError: it holds other files, or cannot be looked into.
    """
    try:
        if not out.exists():
            return
        ours = {CONTRACT, CHECKSUMS, "checkpoints/request.json"}
        if out.is_dir() and (
            any((out / name).exists() for name in ours)
            or not any(path.is_file() and not _is_ours(path) for path in out.rglob("*"))
        ):
            return
    except OSError as error:
        raise output_error(out, error) from error
    raise ConfigError(f"{out}: exists and is not a detector's folder; choose another --out")


def _is_ours(path: Path) -> bool:
    """The lock of a training, and what a killed one was about to write."""
    return path.name == LOCK or path.suffix == ".partial"


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
def curves(out: Path, member: int) -> Iterator[Callable[[Row], None]]:
    """A function that draws an epoch's row into TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(out / "tensorboard" / f"member{member}")) as writer:

        def draw(row: Row) -> None:
            for name, value in row.items():
                if name not in {"member", "epoch"} and not math.isnan(value):
                    writer.add_scalar(name, value, int(row["epoch"]))
            writer.flush()

        yield draw


def write_metrics(out: Path, history: list[Row]) -> None:
    """``metrics.csv``: a row per member and epoch."""
    columns = list(history[0])
    rows = [
        [
            int(row[c]) if c in {"member", "epoch"} else "" if math.isnan(row[c]) else row[c]
            for c in columns
        ]
        for row in history
    ]
    write_csv(out / "metrics.csv", columns, rows)


def write_run(out: Path, config: TrainConfig, ranks: Ranks, started: float) -> None:
    """``run.json``: versions, device, duration; what may differ between equal trainings."""
    device = ranks.device
    write_json(
        out / "run.json",
        {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - started, 1),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "ranks": ranks.count,
            "threads": torch.get_num_threads(),
            "seed": config.seed,
            "settings": digest_bytes(dump_yaml(config).encode()),
            "versions": versions(),
        },
    )
