"""One member of the ensemble: MONAI's SupervisedTrainer, wired up for ESAD."""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents, SupervisedTrainer
from monai.inferers import SimpleInferer
from monai.transforms import Compose
from torch import Tensor, nn

from esad_med.base.errors import ConfigError, ModelError
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.plain import is_plain
from esad_med.method.batches import TrainingBatches, derive_seed
from esad_med.method.checkpoints import (
    State,
    parse_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from esad_med.method.config import TrainConfig
from esad_med.method.datasets import Indices
from esad_med.method.devices import fastest_kernels
from esad_med.method.distributed import Ranks
from esad_med.method.folds import Fold
from esad_med.method.fusion import Fusion, fit_statistics
from esad_med.method.graphs import GraphedStep, update_with
from esad_med.method.losses import EsadLoss, Target
from esad_med.method.memory import BatchesThatFit
from esad_med.method.networks import Network, NetworkSpec, build_network, place
from esad_med.method.optimization import WeightAverage, learning_rate, make_optimizer
from esad_med.method.scores import rank_auc
from esad_med.method.scoring_networks import network_terms
from esad_med.method.shared_norm import share_batch_norm
from esad_med.method.terms import residual_map
from esad_med.method.transforms import InputTransform, as_batch
from esad_med.method.whitening import fit_whitening

_engine_logger = logging.getLogger(f"{__name__}.engine")
_engine_logger.setLevel(logging.CRITICAL + 1)  # ignite logs every exception that we raise anyway
SCORING_BATCH = 256
_STEPS_UNSEEN = 50  # between looks at the loss on CUDA, each of which waits for the device
_WHITENED_PIXELS = 500 * 64 * 64

Row = dict[str, float]


class HeldOutTerms(NamedTuple):
    """Both terms of Eq. 17 on a member's held-out samples, each (n,)."""

    reconstruction: npt.NDArray[np.float64]
    norm: npt.NDArray[np.float64]


class MemberData(NamedTuple):
    """What one member is trained on and judged by."""

    samples: npt.NDArray[Any]
    fold: Fold
    transform: InputTransform


class Member:
    """Trains one network on one fold, epoch by epoch, and can go on where it stopped.

    Where several ranks train together, each holds the whole state; the first writes it.

    Attributes:
        epochs: how many will be trained.
        history: a row per epoch: loss terms, learning rate, validation AUC of score and terms.
    """

    def __init__(
        self,
        index: int,
        data: MemberData,
        config: TrainConfig,
        spec: NetworkSpec,
        *,
        device: torch.device,
        bfloat16: bool,
        checkpoints: Path | None,
        ranks: Ranks | None = None,
    ) -> None:
        self.index = index
        self.data = data
        self.config = config
        self.device = device
        self.ranks = ranks or Ranks(device)
        self.checkpoints = checkpoints
        self.bfloat16 = bfloat16
        self.network = initial_network(spec, config, index, device)
        if self.ranks.count > 1:
            share_batch_norm(self.network)
        if spec.kind == "image" and spec.whiten:
            fit_whitening(self.network, self._some_normals())
        self.average = WeightAverage(self.network, config.ema)
        pairs = [(p, p.ndim > 1) for p in self.network.parameters()]
        self.optimizer = make_optimizer(pairs, config.optimizer, fused=device.type == "cuda")
        self.loss = EsadLoss(config.loss, wrong_targets=config.target.exists)
        self.batches = TrainingBatches(
            data.samples,
            data.fold,
            config,
            transform=Compose([data.transform]),
            device=device,
            member=index,
        )
        self.epochs = config.planned_epochs(len(self.batches))
        self.history: list[Row] = []
        self.finished = False
        self.best: dict[str, Any] = {"value": -math.inf, "epoch": 0, "weights": {}}
        self._infer = AutocastInferer(device, enabled=bfloat16)
        self._sums = torch.zeros(5, device=device)  # loss, its three terms; finite gradients

    def train(self, on_epoch: Callable[[Row], None]) -> None:
        """Train up to the planned epochs; a checkpoint is kept after each where there is a folder.

        Raises:
            ConfigError: the device's memory does not hold a batch, or another rank was lost.
            ModelError: the loss or the weights are no longer finite.
        """
        done = len(self.history)
        if self.finished or done >= self.epochs:
            return
        together = self.ranks.count > 1
        graphed = self.device.type == "cuda" and not together and not is_plain("graphs")
        parameters = list(self.network.parameters())
        trainer = SupervisedTrainer(
            device=self.device,
            max_epochs=self.epochs,
            train_data_loader=self.batches,
            network=self.ranks.wrap(self.network),
            optimizer=self.optimizer,
            loss_function=self.loss,
            epoch_length=len(self.batches),
            prepare_batch=self._prepare_batch,
            iteration_update=update_with(GraphedStep(self._backward, parameters))
            if graphed
            else None,
            inferer=self._infer,
            non_blocking=True,
            decollate=False,
            optim_set_to_none=True,
        )
        trainer.logger = _engine_logger
        trainer.state.epoch = done
        trainer.state.iteration = done * len(self.batches)
        self._attach(trainer, on_epoch)
        try:
            with fastest_kernels(self.device):
                trainer.run()
        except torch.OutOfMemoryError as error:
            raise self._too_large(trainer.state.epoch) from error

    def weights(self) -> dict[str, Tensor]:
        """The weights that the settings choose: averaged or raw, of the last or the best epoch."""
        if self.config.select == "best" and self.best["weights"]:
            return dict(self.best["weights"])
        return copy_weights(self._judged())

    def resume(self) -> bool:
        """Take up the last checkpoint, if there is one."""
        reads = self.checkpoints if self.ranks.is_first else None
        content = self.ranks.from_first(read_checkpoint(reads, self.index) if reads else None)
        if content is None:
            return False
        state = parse_checkpoint(content)
        self.network.load_state_dict(state["network"])
        self.average.load(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.best, self.finished = state["history"], state["best"], state["finished"]
        return True

    def _prepare_batch(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Target]:
        return self.ranks.share_batch(*self.batches.prepare_batch(*args, **kwargs))

    def _some_normals(self) -> Tensor:
        """Training normals of about two million pixels as network input, the same each time."""
        rows = self.data.fold.normals
        count = max(1, _WHITENED_PIXELS // math.prod(self.data.samples.shape[1:3]))
        chosen = rows[:: max(1, len(rows) // count)][:count]
        return self.data.transform(as_batch(self.data.samples, chosen)).to(self.device)

    def _attach(self, trainer: SupervisedTrainer, on_epoch: Callable[[Row], None]) -> None:
        """What happens besides forward, backward and step, in the order it happens."""

        def start_epoch(engine: Engine) -> None:
            self.batches.start_epoch(engine.state.epoch)
            own = [self.ranks.rank] if self.ranks.rank else []  # what is dropped in each share
            seed = derive_seed(self.config.seed, self.index, engine.state.epoch, 4, *own)
            torch.manual_seed(seed)
            self._sums.zero_()

        def start_step(engine: Engine) -> None:
            raise_if_interrupted()
            step, length = engine.state.iteration - 1, len(self.batches)
            rate = learning_rate(step, length, self.epochs, self.config.optimizer)
            for group in self.optimizer.param_groups:
                group["lr"] = rate

        def end_step(engine: Engine) -> None:
            self.average.update()
            if self.device.type != "cuda" or engine.state.iteration % _STEPS_UNSEEN == 0:
                self._check_sums(engine.state.epoch)

        def end_epoch(engine: Engine) -> None:
            self._check_sums(engine.state.epoch)
            if not all(torch.isfinite(p).all() for p in self.network.state_dict().values()):
                raise self._diverged(engine.state.epoch, "the weights")
            row = self._judge(engine.state.epoch)
            self._remember(row)
            on_epoch(row)
            if self.finished:
                engine.terminate()

        trainer.add_event_handler(Events.EPOCH_STARTED, start_epoch)
        trainer.add_event_handler(Events.ITERATION_STARTED, start_step)
        trainer.add_event_handler(
            IterationEvents.LOSS_COMPLETED, lambda engine: self._add(engine.state.output["loss"])
        )
        trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lambda _: self._clip())
        trainer.add_event_handler(Events.ITERATION_COMPLETED, end_step)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, end_epoch)

    def _backward(self, x: Tensor, target: Target) -> Tensor:
        """What MONAI's iteration does between the batch and the optimizer, for a graph."""
        loss: Tensor = self.loss(self._infer(x, self.network), target)
        self._add(loss)
        loss.backward()  # type: ignore[no-untyped-call] # torch's own
        self._clip()
        return loss.detach()

    def _add(self, loss: Tensor) -> None:
        assert self.loss.terms is not None
        self._sums[:4] += torch.stack([loss.detach(), *self.loss.terms])

    def _clip(self) -> None:
        limit = self.config.optimizer.clip
        if limit is not None:
            size = nn.utils.clip_grad_norm_(self.network.parameters(), limit)
            self._sums[4] += 0 * size  # NaN where the gradient is not finite

    def _check_sums(self, epoch: int) -> None:
        *loss, gradient = self.ranks.add(self._sums).tolist()
        if not (all(map(math.isfinite, loss)) and math.isfinite(gradient)):
            found = "the gradient" if all(map(math.isfinite, loss)) else "the loss"
            raise self._diverged(epoch, found)

    def _judge(self, epoch: int) -> Row:
        """The log's row of an epoch: mean loss terms, and AUC on the held-out samples."""
        sums = self.ranks.add(self._sums[:4]) / len(self.batches)
        loss, reconstruction, norm, assistance = sums.tolist()
        row = {
            "member": float(self.index),
            "epoch": float(epoch),
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "loss": loss,
            "reconstruction": reconstruction,
            "norm": norm,
            "assistance": assistance,
        }
        return {**row, **self._validate(epoch)}

    def _validate(self, epoch: int) -> Row:
        fold, network = self.data.fold, self._judged()
        normal = self._held_out_terms(network, fold.held_normals)
        outlier = self._held_out_terms(network, fold.held_outliers)
        if not all(np.isfinite(terms).all() for terms in (*normal, *outlier)):
            raise self._diverged(epoch, "a held-out score")
        level = float(normal.reconstruction.mean())
        level += self.config.loss.lambda1 * float(normal.norm.mean())
        nothing = {"validation_score": level}
        if not len(fold.held_outliers):
            return {**nothing, **dict.fromkeys(_AUCS, math.nan)}
        fusion = self._provisional_fusion(normal)
        first = fusion.fuse(normal.reconstruction[None], normal.norm[None])
        second = fusion.fuse(outlier.reconstruction[None], outlier.norm[None])
        aucs = [rank_auc(a, b) for a, b in zip(first, second, strict=True)]
        return {**nothing, **dict(zip(_AUCS, aucs, strict=True))}

    def _held_out_terms(self, network: Network, rows: Indices) -> HeldOutTerms:
        """Each rank scores its share; the sum puts the shares together."""
        terms = torch.zeros(2, len(rows), dtype=torch.float64)
        own = held_out_terms(network, self.data, rows[self.ranks.share], self.config)
        terms[:, self.ranks.share] = torch.from_numpy(np.stack(own))
        return HeldOutTerms(*self.ranks.add(terms).numpy())

    def _provisional_fusion(self, normal: HeldOutTerms) -> Fusion:
        """The fusion with default weights: those learned are not known before the end."""
        config = self.config
        if config.fusion.mode == "sum":
            weights = (1.0, config.loss.lambda1)
            return Fusion(mode="sum", reconstruction_weight=1.0, norm_weight=weights[1])
        share = config.fusion.norm_weight
        return Fusion(
            mode="standardized",
            transform=config.fusion.transform,
            members=(fit_statistics(normal.reconstruction, normal.norm, config.fusion),),
            reconstruction_weight=1 - share,
            norm_weight=share,
        )

    def _remember(self, row: Row) -> None:
        """Note the epoch, keep the best weights, decide whether to stop, write the checkpoint."""
        self.history.append(row)
        auc = row["validation_auc"]
        value = -row["validation_score"] if math.isnan(auc) else auc
        if value > self.best["value"]:
            keep = self.config.select == "best"
            weights = copy_weights(self._judged()) if keep else {}
            self.best = {"value": value, "epoch": int(row["epoch"]), "weights": weights}
        patience = self.config.patience
        self.finished = patience is not None and row["epoch"] - self.best["epoch"] >= patience
        if self.checkpoints and self.ranks.is_first:
            save_checkpoint(self.checkpoints, self.index, self._state())

    def _state(self) -> State:
        return {
            "epoch": len(self.history),
            "network": self.network.state_dict(),
            "average": self.average.state(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "best": self.best,
            "finished": self.finished,
        }

    def _judged(self) -> Network:
        return self.average.network or self.network

    def _too_large(self, epoch: int) -> ConfigError:
        size = self.config.data.batch_size
        return ConfigError(
            f"member {self.index}, epoch {epoch}: out of memory on {self.device} with"
            f" {max(self.batches.sizes)} samples in a batch, {self.ranks.count} device(s) sharing"
            " it; free the device of other programs, or share a batch among more devices"
            " (torchrun --nproc-per-node), and go on with --resume; or train anew in smaller"
            f" batches with --set data.batch_size={max(1, size // 2)} --overwrite"
        )

    def _diverged(self, epoch: int, what: str) -> ModelError:
        kept = len(self.history)
        last = (
            f"the last good checkpoint, of epoch {kept}, is kept in {self.checkpoints}; finish from"
            f" it with --resume --set epochs={kept}, or train anew (--overwrite)"
            if kept and self.checkpoints
            else "train anew"
        )
        return diverged(self.index, epoch, what, last)


def initial_network(
    spec: NetworkSpec, config: TrainConfig, member: int, device: torch.device
) -> Network:
    """A member's network before its first step: its weights follow from (seed, member)."""
    torch.manual_seed(derive_seed(config.seed, member, 0, 3))
    return place(build_network(spec), device)


def diverged(member: int, epoch: int, what: str, remedy: str = "train anew") -> ModelError:
    """The error of a training whose numbers are no longer finite."""
    return ModelError(
        f"member {member}, epoch {epoch}: {what} is not finite (NaN or infinite); {remedy} with a"
        " lower optimizer.lr, optimizer.clip=1, loss.norm=rms or loss.reduction=mean"
    )


_AUCS = ("validation_auc", "validation_auc_reconstruction", "validation_auc_norm")


class AutocastInferer(SimpleInferer):  # type: ignore[misc] # MONAI is untyped
    """The forward pass in bfloat16 where asked for; MONAI's own `amp` knows CUDA only."""

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        super().__init__()
        self.device = device
        self.enabled = enabled

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the network."""
        cast = torch.autocast(self.device.type, torch.bfloat16) if self.enabled else nullcontext()
        with cast:
            return super().__call__(inputs, network, *args, **kwargs)


def held_out_terms(
    network: Network,
    data: MemberData,
    rows: Indices,
    config: TrainConfig,
    *,
    views: int = 1,
    distance: bool = False,
) -> HeldOutTerms:
    """Both terms of Eq. 17 for rows of the store by one network, in evaluation mode, float32.

    While it trains, the norm is ‖z_hat‖: a distance is fitted when the weights are final.
    """
    device = next(network.parameters()).device

    def judge(chosen: Indices) -> npt.NDArray[np.float64]:
        x = data.transform(as_batch(data.samples, chosen).to(device))
        terms = network_terms(network, x, spec=config.loss, views=views, distance=distance)
        found: npt.NDArray[np.float64] = torch.stack(terms).double().cpu().numpy()
        return found

    training, fitting = network.training, BatchesThatFit()
    network.eval()
    parts: list[npt.NDArray[np.float64]] = []
    with torch.inference_mode():
        for start in range(0, len(rows), SCORING_BATCH):
            parts += fitting.each(judge, rows[start : start + SCORING_BATCH])
    network.train(training)
    joined = np.concatenate([np.empty((2, 0)), *parts], axis=1)
    return HeldOutTerms(joined[0], joined[1])


def residual_quantiles(network: Network, data: MemberData, rows: Indices) -> tuple[float, float]:
    """Median and 99th percentile of the residual maps' pixels on some pictures of the store."""
    device = next(network.parameters()).device
    network.eval()
    with torch.inference_mode():
        x = data.transform(as_batch(data.samples, rows[:SCORING_BATCH]).to(device))
        pixels = residual_map(network(x).x_hat, x).cpu().numpy()
    median, high = np.quantile(pixels, (0.5, 0.99))
    return float(median), float(high)


def copy_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights on the CPU, in the plain memory layout that safetensors wants."""
    form = torch.contiguous_format
    return {k: v.detach().cpu().clone(memory_format=form) for k, v in network.state_dict().items()}


def load_weights(spec: NetworkSpec, weights: Mapping[str, Tensor], device: torch.device) -> Network:
    """A network with these weights, for judging the held-out part."""
    with torch.device("meta"):
        network = build_network(spec)
    network.load_state_dict(dict(weights), assign=True)
    return place(network, device)
