"""Batches of a training: rows drawn per epoch, and what a batch of them is trained towards."""

from collections.abc import Iterator
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from esad_med.base.plain import is_plain
from esad_med.method.config import TrainConfig
from esad_med.method.datasets import Indices
from esad_med.method.folds import Fold
from esad_med.method.losses import Target
from esad_med.method.transforms import (
    InputTransform,
    as_batch,
    corrupt,
    draw_permutation,
    jitter,
    mix,
    normal_like,
    random_views,
    shift,
    turn,
    wrong_target,
)

_MOST_RESIDENT = 0.25  # of the device's free memory


class Batch(TypedDict):
    """Stored samples (b, ...) and rows (b,): normals, then outliers, then normals to be turned."""

    samples: Tensor
    rows: Tensor
    normals: int
    turned: int


class TrainingBatches:
    """The batches of one member, and their way to the network.

    All random numbers of an epoch come from (seed, member, epoch), so a resumed training draws
    what an uninterrupted one draws, and nothing of a generator needs to be stored.

    On CUDA the samples are held on the device, as bytes, where they fit.

    Attributes:
        epoch: 1, 2, ...; to be set by `start_epoch` before an epoch is drawn.
    """

    def __init__(
        self,
        samples: npt.NDArray[Any],
        fold: Fold,
        config: TrainConfig,
        *,
        transform: InputTransform,
        device: torch.device,
        member: int,
    ) -> None:
        self.samples = samples
        self.fold = fold
        self.config = config
        self.transform = transform
        self.member = member
        self.beside = config.data.outliers_per_batch if len(fold.outliers) else 0
        self.turned = config.data.turned_per_batch if samples.ndim == 4 else 0
        self.balanced = self.beside + self.turned > 0
        self.generator = torch.Generator(device)
        self._fixed: tuple[Tensor, Tensor] | None = None
        self._resident = _on_device(samples, device)
        self.start_epoch(1)

    def start_epoch(self, epoch: int) -> None:
        """Seed everything that an epoch draws."""
        self.epoch = epoch
        self.generator.manual_seed(derive_seed(self.config.seed, self.member, epoch, 0))

    @property
    def sizes(self) -> list[int]:
        """Samples in each batch of an epoch, the same in every epoch."""
        size = self.config.data.batch_size
        normals, outliers = len(self.fold.normals), len(self.fold.outliers)
        if self.balanced:
            beside = self.beside + self.turned
            return [min(normals, size) + beside] * max(1, -(-normals // size))
        count = normals + outliers
        sizes = [min(size, count - start) for start in range(0, count, size)]
        return sizes[:-1] if len(sizes) > 1 and sizes[-1] == 1 else sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Batch]:
        # A generator on purpose: ignite asks for the iterator before the epoch has started.
        rng = np.random.default_rng(derive_seed(self.config.seed, self.member, self.epoch, 1))
        for normals, outliers in self._balanced(rng) if self.balanced else self._mixed(rng):
            turned = rng.choice(normals, self.turned) if self.turned else normals[:0]
            rows = np.concatenate([normals, outliers, turned])
            yield Batch(
                samples=self._take(rows),
                rows=torch.from_numpy(rows),
                normals=len(normals),
                turned=len(turned),
            )

    def _take(self, rows: Indices) -> Tensor:
        if self._resident is None:
            return as_batch(self.samples, rows)
        chosen = torch.from_numpy(rows).to(self._resident.device, non_blocking=True)
        return self._resident.index_select(0, chosen)

    def prepare_batch(
        self, batch: Batch, device: torch.device, non_blocking: bool = False, **_: Any
    ) -> tuple[Tensor, Target]:
        """MONAI's hook: network input, and the target it is trained towards.

        Normals aim at themselves, labeled outliers at x_tilde; both are augmented first.
        """
        config, generator, first = self.config, self.generator, batch["normals"]
        x = self.transform(batch["samples"].to(device, non_blocking=non_blocking))
        x = shift(random_views(x, config.augment, generator), config.augment.shift, generator)
        x = jitter(x, config.augment, generator)
        y = torch.ones(len(x), device=x.device)
        y[first:] = -1
        if batch["turned"]:
            x[-batch["turned"] :] = turn(x[-batch["turned"] :], generator)
        target = x
        if first < len(x):
            x = x.clone()
            x[first:] = mix(x[first:], config.augment.mixup, generator)
            target = x.clone()
            if config.target.exists:
                target[first:] = self._wrong_targets(x[first:], batch["rows"][first:])
        return corrupt(x, config.augment, generator), Target(target, y)

    def _wrong_targets(self, x: Tensor, rows: Tensor) -> Tensor:
        """x_tilde, drawn anew or, for ``fixed``, always the same permutation and noise of a row."""
        spec = self.config.target
        if spec.draw == "fresh":
            return wrong_target(x, spec, self.generator)
        if x.ndim == 2:
            order, noise = self._fixed_draws(x)
            place = np.searchsorted(self.fold.outliers, rows.numpy())
            permuted = x.gather(1, order[place]) if spec.permute else x
            return permuted + spec.noise * noise[place]
        targets = []
        own = torch.Generator(x.device)
        for sample, row in zip(x, rows.tolist(), strict=True):
            own.manual_seed(derive_seed(self.config.seed, row, 0, 2))
            targets.append(wrong_target(sample[None], spec, own))
        return torch.cat(targets)

    def _fixed_draws(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The permutation and the noise that belong to each labeled outlier, (m, d) each."""
        if self._fixed is None:
            drawn = []
            own = torch.Generator(x.device)
            for row in self.fold.outliers.tolist():
                own.manual_seed(derive_seed(self.config.seed, row, 0, 2))
                drawn.append((draw_permutation(x[:1], own), normal_like(x[:1], own)))
            orders, noises = zip(*drawn, strict=True)
            self._fixed = torch.cat(orders), torch.cat(noises)
        return self._fixed

    def _balanced(self, rng: np.random.Generator) -> Iterator[tuple[Indices, Indices]]:
        """Each normal once per epoch, the last batch filled up; outliers with replacement."""
        size = self.config.data.batch_size
        order = rng.permutation(self.fold.normals)
        if len(order) > size:
            order = np.concatenate([order, order[: -len(order) % size]])
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            yield chosen, rng.choice(self.fold.outliers, self.beside) if self.beside else chosen[:0]

    def _mixed(self, rng: np.random.Generator) -> Iterator[tuple[Indices, Indices]]:
        """Normals and outliers shuffled together, each once; no last batch of a single sample."""
        size = self.config.data.batch_size
        rows = np.concatenate([self.fold.normals, self.fold.outliers])
        order = rng.permutation(len(rows))
        for number in range(len(self)):
            chosen = order[number * size : (number + 1) * size]
            normal = chosen < len(self.fold.normals)
            yield rows[chosen[normal]], rows[chosen[~normal]]


def _on_device(samples: npt.NDArray[Any], device: torch.device) -> Tensor | None:
    """All samples on a CUDA device, or None where they stay where they are."""
    if device.type != "cuda" or is_plain("device"):
        return None
    if samples.nbytes > _MOST_RESIDENT * torch.cuda.mem_get_info(device)[0]:
        return None
    return torch.from_numpy(np.array(samples)).to(device)


def derive_seed(*numbers: int) -> int:
    """A seed of 63 bits that depends on all the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
