"""A store read once, block by block: of each sample a digest, what finds its copies, its kind."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from esad_med.assess.descriptors import (
    Floats,
    Look,
    Projection,
    describe_for_copies,
    describe_for_kinds,
    rows_describer,
    to_bytes,
    to_gray,
)
from esad_med.assess.duplicates import Likeness, compare_pictures, compare_rows, digest_samples
from esad_med.assess.picture_quality import measure_pictures
from esad_med.base.errors import StoreError
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.runs import Progress
from esad_med.base.store import SampleStore

_BLOCK = 256  # samples at a time
_LEARNED_FROM = 4096  # samples, from which the directions of difference are learned
_COPY_DIRECTIONS = 16
Samples = npt.NDArray[Any]


@dataclass(frozen=True)
class Looks:
    """What was kept of each of n samples: less than half a kilobyte.

    Attributes:
        digests: of the bytes, (n,).
        copies: points that lie near each other where samples are nearly the same, (n, 17 at most).
        kinds: features that tell kinds apart, (n, k).
        measures: of `measure_pictures`, (n, 4); None for table rows.
    """

    digests: npt.NDArray[np.void]
    copies: Floats
    kinds: Floats
    measures: Floats | None


class StoreLooks:
    """How the samples of a store are looked at; what that needs is learned from some of them."""

    def __init__(self, store: SampleStore, look: Look, *, components: int, seed: int) -> None:
        self.store, self.look = store, look
        random = np.random.default_rng(seed)
        some = np.sort(random.permutation(len(store))[:_LEARNED_FROM])
        if look == "vector":
            self._describe_rows: Callable[[Samples], Floats] = rows_describer(store.samples[some])
        parts = [some[i : i + _BLOCK] for i in range(0, len(some), _BLOCK)]
        blocks = [self._describe(store.samples[part]) for part in parts]
        copies = [np.concatenate([block[0] for block in blocks])]
        kinds = [np.concatenate(same) for same in zip(*(b[1] for b in blocks), strict=True)]
        self._copies = Projection.fit(copies, _COPY_DIRECTIONS, balanced=False)
        self._kinds = Projection.fit(kinds, components, balanced=look != "vector")

    def _describe(self, samples: Samples) -> tuple[Floats, list[Floats]]:
        if self.look == "vector":
            if not np.isfinite(samples).all():
                raise StoreError(
                    f"{self.store.path}/samples.npy: holds values that are no numbers (NaN or"
                    " infinite); leave these rows out, or fill them, and make the store again"
                )
            found = self._describe_rows(samples)
            return found, [found]
        pictures = to_bytes(samples, self.store.value_range)
        return describe_for_copies(to_gray(pictures)), describe_for_kinds(pictures, self.look)

    def read(self, progress: Progress) -> Looks:
        """Look at every sample."""
        store, parts = self.store, []
        for start in range(0, len(store), _BLOCK):
            raise_if_interrupted()
            samples = np.asarray(store.samples[start : start + _BLOCK])
            copies, kinds = self._describe(samples)
            placed = self._copies(copies), self._kinds(np.concatenate(kinds, axis=1))
            measures = None
            if self.look != "vector":
                pictures = to_bytes(samples, store.value_range)
                measures = measure_pictures(pictures, self.look)
            parts.append((digest_samples(samples), *placed, measures))
            progress("reading samples", min(start + _BLOCK, len(store)), len(store))
        digests, copied, kind, measured = zip(*parts, strict=True)
        return Looks(
            np.concatenate(digests),
            np.concatenate(copied),
            np.concatenate(kind),
            np.concatenate(measured) if self.look != "vector" else None,
        )

    def compare(self, pairs: npt.NDArray[np.int64]) -> Likeness:
        """How alike the samples of each pair (m, 2) are; they are read again, a block at a time."""
        found = []
        for start in range(0, len(pairs), _BLOCK):
            raise_if_interrupted()
            one, other = (self.store.samples[side] for side in pairs[start : start + _BLOCK].T)
            if self.look == "vector":
                found.append(compare_rows(self._describe_rows(one), self._describe_rows(other)))
            else:
                value_range = self.store.value_range
                found.append(
                    compare_pictures(to_bytes(one, value_range), to_bytes(other, value_range))
                )
        return Likeness(
            np.concatenate([part.correlation for part in found]),
            np.concatenate([part.residual for part in found]),
            np.concatenate([part.orientation for part in found]),
        )
