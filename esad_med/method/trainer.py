"""Training: a SampleStore and settings in, a Detector out; an ensemble fitted crosswise.

OUT/config.yaml     the resolved settings
OUT/checkpoints/    the state of each member after its last epoch, and what the run was started with
OUT/metrics.csv     a row per member and epoch
OUT/tensorboard/    the same as curves
OUT/run.json        versions, device, times
OUT/...             the detector, with examples where they were asked for; see detector.py
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esad_med.base.locks import hold_folder
from esad_med.base.runs import Progress, ensure_folder, no_progress, versions
from esad_med.base.store import SampleStore
from esad_med.method.config import TrainConfig
from esad_med.method.contract import InputContract
from esad_med.method.datasets import choose_training_set
from esad_med.method.detector import Detector
from esad_med.method.distributed import Ranks, open_ranks
from esad_med.method.examples import Examples, choose_examples
from esad_med.method.folds import held_out_by
from esad_med.method.member import Member, MemberData, Row
from esad_med.method.problem import (
    Problem,
    assemble_detector,
    network_spec,
    pose_problem,
    use_bfloat16,
)
from esad_med.method.training_folder import (
    curves,
    open_folder,
    refuse_other_folder,
    write_metrics,
    write_run,
)

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

    Started by `torchrun`, all its processes train together (`distributed.py`); they go on from the
    last completed epoch where it started them again.

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
        ConfigError: ``out`` holds another training, cannot be written, or another run is at work
            there; the device's memory does not hold a batch; another process was lost, or is asked
            for another training.
        ModelError: the loss is no longer finite, or a checkpoint is damaged.
        StoreError: the samples are damaged, or neither pictures nor vectors.
    """
    started = time.time()
    store.verify()
    problem = _pose(store, config, preparation)
    with open_ranks(config.device) as ranks, ExitStack() as alone:
        if not ranks.is_first:
            progress, say = no_progress, _say_nothing
        ranks.check_alike(_identity(problem, ranks))
        if ranks.is_first:
            refuse_other_folder(out)
            alone.enter_context(hold_folder(ensure_folder(out)))
            resume = resume or ranks.has_noted(f"began {out}")
            open_folder(out, store, config, resume=resume, overwrite=overwrite)
            ranks.note(f"began {out}")
        say(_describe(problem))
        with _private_randomness(ranks.device):
            weights, history = _train_members(problem, out, ranks, progress, say)
            detector = assemble_detector(problem, weights, ranks.device)
        if ranks.is_first:
            write_metrics(out, history)
            write_run(out, config, ranks, started)
            if config.keep_examples:
                detector.examples = _choose_examples(problem, detector)
            detector.save(out)
        ranks.wait()
    return detector


def _choose_examples(problem: Problem, detector: Detector) -> Examples | None:
    return choose_examples(
        problem.samples,
        problem.chosen.normals,
        problem.chosen.groups,
        detector,
        count=problem.config.keep_examples,
        value_range=problem.input.value_range,
        seed=problem.config.seed,
    )


def _identity(problem: Problem, ranks: Ranks) -> dict[str, str]:
    """What processes that train together must have in common."""
    return {
        "samples": problem.data_digest + problem.rows_digest,
        "settings": problem.config.model_dump_json(),
        "versions": str(versions()),
        "precisions": str(use_bfloat16(problem.config, problem.network, ranks.device)),
    }


def _say_nothing(_: str) -> None:
    """The ranks behind the first."""


def _draw_nothing(_: Row) -> None:
    """The ranks behind the first."""


def _pose(
    store: SampleStore, config: TrainConfig, preparation: Mapping[str, Any] | None
) -> Problem:
    """What cannot be trained or kept is refused here, before anything is written."""
    network_spec(store.samples.shape[1:], config, source=str(store.path))
    accepts = InputContract.of_store(store)
    return pose_problem(
        store.samples,
        choose_training_set(store, config.data, seed=config.seed),
        store.rows,
        config,
        accepts=accepts,
        data_digest=store.digest,
        rows_digest=str(store.contract["digests"]["samples.csv"]),
        preparation=preparation or store.contract.get("preparation") or {},
        source=str(store.path),
    )


def _train_members(
    problem: Problem,
    out: Path,
    ranks: Ranks,
    progress: Progress,
    say: Say,
) -> tuple[list[dict[str, Tensor]], list[Row]]:
    """Train one member after the other; their weights and the log of all epochs."""
    config = problem.config
    weights, history = [], []
    for index, fold in enumerate(problem.folds):
        member = Member(
            index,
            MemberData(problem.samples, fold, problem.transform),
            config,
            problem.network,
            device=ranks.device,
            bfloat16=use_bfloat16(config, problem.network, ranks.device),
            checkpoints=out / "checkpoints",
            ranks=ranks,
        )
        if member.resume() and member.history:
            say(f"member {index}: resumed after epoch {len(member.history)}")
        with curves(out, index) if ranks.is_first else nullcontext(_draw_nothing) as draw:

            def on_epoch(
                row: Row,
                index: int = index,
                epochs: int = member.epochs,
                draw: Callable[[Row], None] = draw,
            ) -> None:
                draw(row)
                done = index * epochs + int(row["epoch"])
                label = f"training member {index + 1} of {config.members}"
                progress(label, done, epochs * config.members)

            member.train(on_epoch)
        say(_member_line(member))
        weights.append(member.weights())
        history += member.history
    return weights, history


@contextmanager
def _private_randomness(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators as they were: initial weights and dropout use them."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _describe(problem: Problem) -> str:
    chosen, folds, config = problem.chosen, problem.folds, problem.config
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
