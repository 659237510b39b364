"""A detector as a program of `torch.export`: one file that PyTorch runs without esad-med."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from esad_med.outputs.export_check import Columns, Runtime, Samples

# torch is loaded where it is needed, so its classes have no name here
Module = Any
Program = Any

INPUT = "samples"


def trace(module: Module, shape: Sequence[int], dtype: str, *, name: str = INPUT) -> Program:
    """The program of a module for batches of any size.

    It is traced on zeros, since a program keeps its example, and without the places in the source
    that PyTorch notes down.

    Args:
        module: takes a batch.
        shape: of a sample.
        dtype: of its values.
        name: of the module's argument.
    """
    import torch

    example = torch.from_numpy(np.zeros((2, *shape), dtype))
    batch = {name: {0: torch.export.Dim("n", min=1)}}
    with quiet(), torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=batch)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def program_bytes(program: Program) -> bytes:
    """The file ``model.pt2``."""
    import torch

    written = io.BytesIO()
    with quiet():
        torch.export.save(program, written)
    return written.getvalue()


def open_program(path: Path) -> Runtime:
    """Run a program that this process has just written.

    Such a file may hold Python objects, which PyTorch unpacks by running them: a stranger's is not
    to be opened like this.
    """
    import torch

    written = io.BytesIO(path.read_bytes())
    with quiet():
        module = torch.export.load(written).module()

    def run(samples: Samples) -> Columns:
        with torch.no_grad():
            columns: Any = module(torch.from_numpy(samples))
        return np.stack([column.numpy() for column in columns]).astype(np.float64)

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """PyTorch warns of its own parts that it will replace; the user cannot do anything about it."""
    import logging

    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
