"""Feature files as TRIDENT writes them: a vector and a corner per tile of one slide, as HDF5."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from esad_med.base.runs import atomic_file

_CHUNK_BYTES = 1 << 18


class FeatureWriter:
    """Writes a slide's feature file, a batch of tiles at a time; it appears when all is written.

    with FeatureWriter(path, dim=1024, attributes=coordinate_attributes(...)) as writer:
        writer.append(features, xy_level0)
    """

    def __init__(
        self,
        path: Path,
        *,
        dim: int,
        attributes: Mapping[str, Any],
        facts: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Prepare; nothing is written before the block begins.

        Args:
            path: the HDF5 file.
            dim: length of a vector.
            attributes: of `coordinate_attributes`.
            facts: what else is to be known, as attributes of these names that hold JSON.
        """
        self._path, self._dim = path, dim
        self._attributes, self._facts = attributes, facts or {}
        self._stack = ExitStack()

    def __enter__(self) -> "FeatureWriter":
        """Begin the file.

        Raises:
            ConfigError: it cannot be written.
        """
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_file(self._path))
            file = stack.enter_context(h5py.File(temporary, "w"))
            self._features = _growing(file, "features", self._dim, np.float32)
            self._coords = _growing(file, "coords", 2, np.int64)
            self._features.attrs.update({"name": self._attributes["name"], "savetodir": "."})
            self._coords.attrs.update(self._attributes)
            for name, values in self._facts.items():
                self._features.attrs[name] = json.dumps(values)
            self._stack = stack.pop_all()
        return self

    def append(self, features: npt.NDArray[np.float32], xy_level0: npt.NDArray[np.int64]) -> None:
        """Add vectors (b, dim) and their corners (b, 2)."""
        for data, values in ((self._features, features), (self._coords, xy_level0)):
            before = len(data)
            data.resize(before + len(values), axis=0)
            data[before:] = values

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the file its name, or after an error drop it."""
        self._stack.__exit__(kind, error, trace)


def _growing(file: Any, name: str, width: int, dtype: Any) -> Any:
    rows = max(1, _CHUNK_BYTES // (width * np.dtype(dtype).itemsize))
    return file.create_dataset(
        name, shape=(0, width), maxshape=(None, width), chunks=(rows, width), dtype=dtype
    )
