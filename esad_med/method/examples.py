"""Normal training samples a detector keeps, to be shown beside what it flags.

They are pictures of training patients: nothing is kept unless `keep_examples` asks for it, and no
name goes with them. DETECTOR/examples.safetensors holds `pictures`, `vectors` and `scale`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as arrays_to_bytes

from esad_med.base.errors import ModelError
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.limits import Limits, read_file

EXAMPLES = "examples.safetensors"
MOST_EXAMPLES = 2048
_CANDIDATES = 2  # times as many are looked at
_SUSPECT = 95.0  # percentile from which an unlabeled sample is not shown as normal
_LONGEST_PX = 128

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class Embeds(Protocol):
    """What examples need of a detector."""

    def embed(self, samples: npt.NDArray[Any]) -> Floats:
        """One vector per sample, (n, c)."""

    def score(self, batches: npt.NDArray[Any]) -> Any:
        """Scores of samples."""

    def percentile(self, score: npt.NDArray[Any]) -> Floats:
        """Among held-out normals, 0-100."""


@dataclass(frozen=True)
class Examples:
    """Normal training samples, found again by likeness.

    Attributes:
        pictures: (m, h, w, c) uint8, no side above 128.
        vectors: (m, c) float32 of `Detector.embed`.
        scale: (c,) float32, what a difference is divided by in each component.
    """

    pictures: Bytes
    vectors: Floats
    scale: Floats

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together.

        Raises:
            ValueError: saying which.
        """
        count, size = self.vectors.shape if self.vectors.ndim == 2 else (0, 0)
        if not 0 < count <= MOST_EXAMPLES or self.scale.shape != (size,):
            raise ValueError(f"vectors {self.vectors.shape}, scale {self.scale.shape}")
        if self.pictures.ndim != 4 or len(self.pictures) != count or not self.pictures.size:
            raise ValueError(f"pictures {self.pictures.shape}, expected {count} of them")
        if max(self.pictures.shape[1:3]) > _LONGEST_PX or self.pictures.shape[3] not in (1, 3):
            raise ValueError(f"pictures {self.pictures.shape}")
        if self.pictures.dtype != np.uint8 or self.vectors.dtype != np.float32:
            raise ValueError(f"pictures are {self.pictures.dtype}, vectors {self.vectors.dtype}")
        if not (np.isfinite(self.vectors).all() and (self.scale > 0).all()):
            raise ValueError("vectors or scale that are no numbers")

    def __len__(self) -> int:
        return len(self.vectors)

    def nearest(self, vectors: Floats, *, count: int = 3) -> tuple[npt.NDArray[np.int64], Floats]:
        """The most alike examples of each vector.

        Args:
            vectors: (n, c) of `Detector.embed`.
            count: how many, at most as many as there are.

        Returns:
            Indices and distances, both (n, count), nearest first. A distance is the root mean
            square difference in standard deviations of the examples: two of them drawn at random
            lie about 1.4 apart.
        """
        scaled, own = vectors / self.scale, self.vectors / self.scale
        squares = (scaled**2).sum(1)[:, None] + (own**2).sum(1) - 2 * scaled @ own.T
        distances = np.sqrt(np.maximum(squares, 0) / own.shape[1])
        order = np.argsort(distances, axis=1, kind="stable")[:, :count]
        return order, np.take_along_axis(distances, order, axis=1)

    def to_bytes(self) -> bytes:
        """The content of `EXAMPLES`."""
        parts = {"pictures": self.pictures, "vectors": self.vectors, "scale": self.scale}
        return arrays_to_bytes({name: np.ascontiguousarray(part) for name, part in parts.items()})


def read_examples(path: Path) -> Examples:
    """Read a detector's examples.

    Raises:
        ModelError: damaged, or no examples.
    """
    most = Limits().weights_mib
    try:
        content = read_file(path, most_mib=most, setting="weights_mib", error=ModelError)
        return Examples(**load_arrays(content))
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: not a detector's examples ({error})") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def choose_examples(
    samples: npt.NDArray[Any],
    normals: npt.NDArray[np.int64],
    groups: npt.NDArray[np.object_],
    detector: Embeds,
    *,
    count: int,
    value_range: tuple[float, float],
    seed: int,
) -> Examples | None:
    """Choose normal training samples that cover what the detector calls normal.

    Twice as many are drawn from all patients or cases in turn. Those the detector itself scores
    above its 95th percentile are left out, since unlabeled samples may hold anomalies. Of the rest
    those are kept that leave no other far from all of them (greedy k-center).

    Args:
        samples: (n, h, w, c) of the whole store.
        normals: rows trained on as normal.
        groups: (n,) patient or case of each row.
        detector: the trained one.
        count: how many to keep.
        value_range: of samples that are not uint8.
        seed: of the drawing.

    Returns:
        The examples, or None where not a single normal is left.
    """
    rows = _in_turn(normals, groups[normals], _CANDIDATES * count, np.random.default_rng([seed, 7]))
    candidates = samples[rows]
    usual = detector.percentile(detector.score(candidates).score) <= _SUSPECT
    candidates = candidates[usual]
    if not len(candidates):
        return None
    vectors = detector.embed(candidates)
    spread = vectors.std(axis=0)
    scale = np.where(spread > 1e-6 * max(float(spread.max()), 1e-6), spread, 1.0)
    chosen = np.sort(_cover((vectors / scale).astype(np.float32), count))
    return Examples(
        _pictures(candidates[chosen], value_range),
        vectors[chosen].astype(np.float32),
        scale.astype(np.float32),
    )


def _in_turn(
    rows: npt.NDArray[np.int64],
    groups: npt.NDArray[np.object_],
    count: int,
    random: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Rows drawn from all groups in turn, so that no patient fills the examples; rising."""
    order = random.permutation(len(rows))
    turns = np.empty(len(rows), np.int64)
    seen: dict[object, int] = {}
    for index in order:
        turns[index] = seen[groups[index]] = seen.get(groups[index], -1) + 1
    return np.sort(rows[order[np.argsort(turns[order], kind="stable")[:count]]])


def _cover(points: Floats, count: int) -> npt.NDArray[np.int64]:
    """Greedy k-center from the most central point: the point farthest from all chosen, repeated."""
    first = int(np.argmin(((points - points.mean(axis=0)) ** 2).sum(axis=1)))
    chosen = [first]
    away = ((points - points[first]) ** 2).sum(axis=1)
    while len(chosen) < min(count, len(points)) and away.max() > 0:
        raise_if_interrupted()
        chosen.append(int(np.argmax(away)))
        away = np.minimum(away, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    return np.asarray(chosen, np.int64)


def _pictures(samples: npt.NDArray[Any], value_range: tuple[float, float]) -> Bytes:
    """Samples as pictures of 8 bits, shrunk where they are large."""
    if samples.dtype == np.uint8 and max(samples.shape[1:3]) <= _LONGEST_PX:
        return np.ascontiguousarray(samples)
    low, high = (0.0, 255.0) if samples.dtype == np.uint8 else value_range
    shares = (samples.astype(np.float32) - low) / (high - low)
    zoom = min(1.0, _LONGEST_PX / max(samples.shape[1:3]))
    size = [max(1, round(side * zoom)) for side in samples.shape[1:3]]
    planes = torch.from_numpy(shares).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(planes, size=size, mode="area").permute(0, 2, 3, 1)
    return np.asarray(np.rint(255 * small.clamp(0, 1).numpy()), np.uint8)
