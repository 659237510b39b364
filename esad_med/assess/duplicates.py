"""Copies in a store: equal bytes, and pictures or rows that are nearly the same."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from esad_med.assess.descriptors import Bytes, Floats, shrink
from esad_med.base.interrupts import raise_if_interrupted

Indices = npt.NDArray[np.int64]

#: How a copy can lie, in the order of `orientations`: the last four are mirrored, too.
ORIENTATIONS = (
    *("as it is", "mirrored", "flipped", "turned by 180°"),
    *("transposed", "turned by 90°", "turned by 270°", "transposed, turned by 180°"),
)
_DIGEST = 16  # bytes: two samples in 10^18 would meet by chance
_COMPARED_EDGE = 32
_BLOCK = 65_536  # points looked up at a time


def digest_samples(samples: npt.NDArray[Any]) -> npt.NDArray[np.void]:
    """A digest of each sample's bytes, (n,)."""
    found = [hashlib.blake2b(np.ascontiguousarray(s).data, digest_size=_DIGEST) for s in samples]
    return np.frombuffer(b"".join(one.digest() for one in found), dtype=f"V{_DIGEST}")


def first_of_each(digests: npt.NDArray[np.void]) -> Indices:
    """For each sample the first one of the same bytes, itself where there is none before it."""
    _, first, member = np.unique(digests, return_index=True, return_inverse=True)
    found: Indices = first[member]
    return found


def candidate_pairs(
    points: Floats, rows: Indices, *, radius: float, neighbors: int
) -> Iterator[Indices]:
    """Pairs of points near each other, a block at a time; each pair once.

    Memory grows with n, never with its square: only the nearest few of each point are kept.

    Args:
        points: (n, k) float32.
        rows: which of them are looked at, such as one of each group of exact copies.
        radius: the largest distance.
        neighbors: how many of each point are looked at, at most.

    Yields:
        (m, 2) indices, the smaller one first.
    """
    if len(rows) < 2:
        return
    tree = cKDTree(points[rows])
    most = min(neighbors + 1, len(rows))
    for start in range(0, len(rows), _BLOCK):
        raise_if_interrupted()
        part = rows[start : start + _BLOCK]
        found = np.asarray(tree.query(points[part], k=most, distance_upper_bound=radius)[1])
        near = found < len(rows)  # the tree says n where it found none
        near &= found != np.arange(start, start + len(part))[:, None]
        own, place = np.nonzero(near)
        pairs = np.sort(np.stack([part[own], rows[found[own, place]]], axis=1), axis=1)
        yield np.unique(pairs, axis=0)


@dataclass(frozen=True)
class Likeness:
    """How alike the two samples of each pair are, all (m,).

    Attributes:
        correlation: of their pixels in the orientation that fits best, -1 to 1.
        residual: what brightness and contrast leave between them, root mean square, as a share of
            the value range; for rows the distance in standard deviations per column.
        orientation: index into `ORIENTATIONS`.
    """

    correlation: Floats
    residual: Floats
    orientation: npt.NDArray[np.int8]


def compare_pictures(one: Bytes, other: Bytes) -> Likeness:
    """Compare pictures pair by pair, at 32 pixels a side, in up to eight orientations.

    Args:
        one: (m, h, w, c).
        other: the same shape.
    """
    a, b = (_centered(part) for part in (one, other))
    lengths = [np.sqrt((part**2).sum(axis=(1, 2, 3))) for part in (a, b)]
    least = np.minimum(*lengths)
    product = np.maximum(lengths[0] * lengths[1], 1e-6)
    turned = orientations(b) if a.shape[2] == a.shape[3] else orientations(b)[:4]
    all_found = np.stack([(a * way).sum(axis=(1, 2, 3)) / product for way in turned])
    best = all_found.argmax(axis=0)
    correlation = np.clip(all_found.max(axis=0), -1, 1)
    left = least * np.sqrt(1 - correlation**2) / np.sqrt(a[0].size) / 255
    return Likeness(correlation.astype(np.float32), left.astype(np.float32), best.astype(np.int8))


def _centered(pictures: Bytes) -> Floats:
    planes = [pictures[..., channel].astype(np.float32) for channel in range(pictures.shape[3])]
    small = np.stack([shrink(plane, _COMPARED_EDGE) for plane in planes], axis=1)
    centered: Floats = small - small.mean(axis=(2, 3), keepdims=True)
    return centered


def orientations(pictures: Floats) -> list[Floats]:
    """Pictures (n, c, h, w) in their eight orientations, as `ORIENTATIONS` names them."""
    found = []
    for way in (pictures, pictures.swapaxes(2, 3)):
        found += [way, way[..., ::-1], way[:, :, ::-1], way[:, :, ::-1, ::-1]]
    return found


def compare_rows(one: Floats, other: Floats) -> Likeness:
    """Compare described rows (m, d) pair by pair; their distance is the residual."""
    distance = np.sqrt(((one - other) ** 2).sum(axis=1)).astype(np.float32)
    none = np.zeros(len(one), np.int8)
    return Likeness(np.full(len(one), np.nan, np.float32), distance, none)


def group_pairs(count: int, pairs: Indices) -> Indices:
    """A number per sample: those joined by pairs, however far apart in the chain, share one.

    Args:
        count: of samples.
        pairs: (m, 2).
    """
    ones = np.ones(len(pairs), np.int8)
    graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    found: Indices = connected_components(graph, directed=False)[1].astype(np.int64)
    return found
