"""What pictures look like in a few numbers: for finding copies, and for telling kinds apart."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Look = Literal["tissue", "upright", "vector"]

_EDGE = 16  # pixels of a thumbnail's side
_LEAST_CONTRAST = 4.0  # gray levels: below it noise would be all that is compared
_CELLS, _DIRECTIONS = 4, 8
_SCALES = (0, 1, 2)  # octaves
_FLAT = 1.0  # squared gray levels: what counts as no gradient


def to_bytes(samples: npt.NDArray[Any], value_range: tuple[float, float]) -> Bytes:
    """Pictures (n, h, w, c) in gray levels, 0 to 255, whatever range their values have."""
    if samples.dtype == np.uint8 and value_range == (0, 255):
        return np.asarray(samples)
    low, high = value_range
    levels = (samples.astype(np.float32) - low) * np.float32(255 / (high - low))
    found: Bytes = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return found


def to_gray(pictures: Bytes) -> Floats:
    """Mean over channels, (n, h, w), 0 to 255."""
    channels = pictures.shape[3]
    total = pictures[..., 0].astype(np.float32)
    for channel in range(1, channels):  # much quicker than a mean over so short an axis
        total += pictures[..., channel]
    return total / np.float32(channels)


def shrink(planes: Floats, edge: int) -> Floats:
    """Means over areas, (n, h, w) to (n, edge, edge); sides of fewer pixels stay as they are.

    It commutes with turning and mirroring.
    """
    n, height, width = planes.shape
    rows, columns = (_areas(side, min(side, edge)) for side in (height, width))
    narrow = (planes.reshape(-1, width) @ columns.T).reshape(n, height, -1)
    upright = np.ascontiguousarray(narrow.transpose(0, 2, 1)).reshape(-1, height) @ rows.T
    found: Floats = upright.reshape(n, len(columns), len(rows)).transpose(0, 2, 1)
    return found


def _areas(side: int, edge: int) -> Floats:
    """The share that each of ``side`` pixels has in each of ``edge`` means, (edge, side)."""
    ends = np.linspace(0, side, edge + 1)
    pixel = np.arange(side)
    overlap = np.minimum(ends[1:, None], pixel + 1) - np.maximum(ends[:-1, None], pixel)
    found: Floats = (np.clip(overlap, 0, None) * edge / side).astype(np.float32)
    return found


def describe_for_copies(gray: Floats) -> Floats:
    """256 numbers of a picture that turns, mirrors and a change of brightness leave as they are.

    The thumbnail, without its mean and contrast, is split into its parts that are even or odd under
    both mirrors and under exchanging the axes. A turn only changes the signs of the odd ones, or
    exchanges two of them; so their absolute values, and of an exchanged pair the larger and the
    smaller one, stay. None of these steps moves two pictures further apart: the distance of two
    descriptors is at most that of the two thumbnails in their best orientation. Within one
    radius, a search among descriptors brings false candidates but misses none.

    Args:
        gray: (n, h, w), 0 to 255.

    Returns:
        (n, 256) float32; unit vectors but for pictures of next to no contrast.
    """
    small = shrink(gray, _EDGE)
    if small.shape[1:] != (_EDGE, _EDGE):  # smaller than a thumbnail
        small = shrink(np.kron(small, np.ones((1, _EDGE, _EDGE), np.float32)), _EDGE)
    small = small - small.mean(axis=(1, 2), keepdims=True)
    contrast = np.sqrt((small**2).mean(axis=(1, 2), keepdims=True))
    return _invariants(small / np.maximum(contrast, _LEAST_CONTRAST)) / np.float32(_EDGE)


def _invariants(small: Floats) -> Floats:
    half = _EDGE // 2
    a, b = small[:, :half, :half], small[:, :half, ::-1][:, :, :half]
    c, d = small[:, ::-1][:, :half, :half], small[:, ::-1, ::-1][:, :half, :half]
    even: Floats = (a + b + c + d) / np.float32(2)
    odd: Floats = (a - b - c + d) / np.float32(2)
    across = np.abs(a - b + c - d).reshape(len(small), -1) / 2
    down = np.abs(a + b - c - d).transpose(0, 2, 1).reshape(len(small), -1) / 2
    same, turned = _by_exchange(even)
    return np.concatenate(
        (
            *(same, np.abs(turned), *map(np.abs, _by_exchange(odd))),
            *(np.maximum(across, down), np.minimum(across, down)),
        ),
        axis=1,
    )


def _by_exchange(part: Floats) -> tuple[Floats, Floats]:
    """The parts that are even and odd under exchanging the axes."""
    other = part.transpose(0, 2, 1)
    row, column = np.triu_indices(part.shape[1], 1)
    diagonal = np.arange(part.shape[1])
    root = np.float32(np.sqrt(0.5))
    even = np.concatenate([(part + other)[:, row, column] * root, part[:, diagonal, diagonal]], 1)
    return even, (part - other)[:, row, column] * root


def describe_for_kinds(pictures: Bytes, look: Look) -> list[Floats]:
    """Blocks of features that tell kinds of pictures apart; each block counts alike.

    Tissue has no upright: the shares of its colors, and textures. Upright pictures: the thumbnail,
    and the directions of edges in 4x4 cells.

    Args:
        pictures: (n, h, w, c).
        look: "tissue" or "upright".

    Returns:
        Arrays (n, d) float32.
    """
    gray = to_gray(pictures)
    if look == "tissue":
        return [_color_shares(pictures), _textures(gray)]
    planes = [pictures[..., channel].astype(np.float32) for channel in range(pictures.shape[3])]
    thumbnail = [shrink(plane, _EDGE).reshape(len(gray), -1) / 255 for plane in planes]
    return [np.concatenate(thumbnail, axis=1), _edge_directions(gray)]


def _color_shares(pictures: Bytes) -> Floats:
    """Square roots of the shares of 512 colors, or of 32 grays."""
    if pictures.shape[3] == 3:
        red, green, blue = ((pictures[..., c] >> 5).astype(np.int16) for c in range(3))
        return np.sqrt(_shares((red << 6) + (green << 3) + blue, 512))
    return np.sqrt(_shares((to_gray(pictures) / 8).astype(np.int16), 32))


def _shares(codes: npt.NDArray[np.integer[Any]], bins: int) -> Floats:
    """How often each code occurs in each picture, (n, bins)."""
    counts = [np.bincount(one.ravel(), minlength=bins) for one in codes]
    return np.stack(counts).astype(np.float32) / np.float32(codes[0].size)


def _textures(gray: Floats) -> Floats:
    """Local binary patterns, and mean and spread of log gradients, by octave."""
    blocks = [np.sqrt(_binary_patterns(gray.astype(np.int16), step)) for step in (1, 2)]
    for octave in _SCALES:
        coarse = shrink(gray, max(2, min(gray.shape[1:]) >> octave)) if octave else gray
        down, right = np.diff(coarse, axis=1)[:, :, :-1], np.diff(coarse, axis=2)[:, :-1]
        steep = np.log(down**2 + right**2 + np.float32(_FLAT)).reshape(len(gray), -1)
        blocks.append(np.stack([steep.mean(axis=1), steep.std(axis=1)], axis=1))
    return np.concatenate(blocks, axis=1)


def _binary_patterns(gray: npt.NDArray[np.int16], step: int) -> Floats:
    """Shares of the ten rotation-invariant uniform patterns (Ojala et al., 2002), (n, 10)."""
    height, width = (side - 2 * step for side in gray.shape[1:])
    ring = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    middle = gray[:, step : step + height, step : step + width]
    brighter = [
        (gray[:, y * step : y * step + height, x * step : x * step + width] > middle).view(np.int8)
        for y, x in ring
    ]
    count, changes = np.zeros((2, *middle.shape), np.int8)
    for index, one in enumerate(brighter):
        count += one
        changes += one ^ brighter[index - 1]
    return _shares(np.where(changes <= 2, count, 9), 10)


def _edge_directions(gray: Floats) -> Floats:
    """Square roots of the shares of gradient by cell and direction (Dalal and Triggs, 2005)."""
    down, right = np.gradient(gray, axis=(1, 2))
    strength = np.sqrt(down**2 + right**2)
    turn = (np.arctan2(down, right) % np.float32(np.pi)) * np.float32(_DIRECTIONS / np.pi)
    direction = turn.astype(np.int8) % _DIRECTIONS
    cells = [shrink(strength * (direction == one), _CELLS) for one in range(_DIRECTIONS)]
    found = np.stack(cells, axis=-1).reshape(len(gray), -1)
    shares: Floats = np.sqrt(found / (found.sum(axis=1, keepdims=True) + np.float32(1e-6)))
    return shares


@dataclass(frozen=True)
class Projection:
    """The directions in which descriptors of a store differ most.

    Attributes:
        mean: (d,).
        scale: by what each number is divided, (d,).
        axes: (d, k), orthonormal columns.
    """

    mean: Floats
    scale: Floats
    axes: Floats

    def __call__(self, found: Floats) -> Floats:
        """Descriptors (n, d) in the k directions, and how far they lie from these, (n, k + 1)."""
        centered = (found - self.mean) / self.scale
        placed = centered @ self.axes
        left = (centered**2).sum(axis=1) - (placed**2).sum(axis=1)
        return np.concatenate([placed, np.sqrt(np.maximum(left, 0))[:, None]], axis=1)

    @classmethod
    def fit(cls, blocks: list[Floats], most: int, *, balanced: bool = True) -> "Projection":
        """From the descriptors of a random part of the store.

        Args:
            blocks: arrays (m, d).
            most: directions at most.
            balanced: each block counts alike, whatever its unit.
        """
        found = np.concatenate(blocks, axis=1).astype(np.float64)
        mean = found.mean(axis=0)
        spread = [max(float(np.sqrt(b.var(axis=0).sum())), 1e-9) for b in blocks]
        units = spread if balanced else [1.0] * len(blocks)
        scale = np.repeat(units, [b.shape[1] for b in blocks])
        _, sizes, axes = np.linalg.svd((found - mean) / scale, full_matrices=False)
        kept = axes[: min(most, max(1, int((sizes > 1e-6 * max(sizes[0], 1e-12)).sum())))]
        return cls(*(part.astype(np.float32) for part in (mean, scale, kept.T)))


def rows_describer(rows: npt.NDArray[Any]) -> Callable[[npt.NDArray[Any]], Floats]:
    """How table rows (n, d) become comparable numbers, learned from a random part of them.

    A column is divided by its standard deviation within the middle 98 %; constant columns are left
    out. The distance of two rows, divided by the root of their number of columns, is then in
    standard deviations per column.
    """
    known = rows.astype(np.float64)
    low, high = np.quantile(known, [0.01, 0.99], axis=0)
    inner = np.clip(known, low, high)
    spread = np.where(inner.std(axis=0) > 0, inner.std(axis=0), known.std(axis=0))
    used = np.flatnonzero(spread > 1e-9 * np.maximum(1, np.abs(known).max(axis=0)))
    center, width = np.median(known, axis=0)[used], spread[used] * np.sqrt(max(1, len(used)))

    def describe(part: npt.NDArray[Any]) -> Floats:
        if not len(used):
            return np.zeros((len(part), 1), np.float32)
        found: Floats = ((part[:, used] - center) / width).astype(np.float32)
        return found

    return describe
