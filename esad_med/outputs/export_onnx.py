"""A detector as ONNX, for ONNX Runtime and what else reads it."""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from esad_med.base.errors import ConfigError, ModelError
from esad_med.outputs.export_check import COLUMNS, Columns, Runtime, Samples
from esad_med.outputs.export_torch import INPUT, Program, quiet

# What the exporter writes by itself. A newer one brings this model nothing, and fewer programs
# read it.
OPSET = 20
_MOST_BYTES = 2_000_000_000  # a protobuf ends at 2 GiB


def check_onnx_installed() -> None:
    """Say what to install before anything is computed.

    Raises:
        ConfigError: a package of the extra ``onnx`` is missing.
    """
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(package) is None:
            raise ConfigError(
                f"ONNX needs the package {package}; run: pip install 'esad-med[onnx]'"
            )


def onnx_bytes(program: Program, facts: Mapping[str, str]) -> bytes:
    """The file ``model.onnx``, checked by ONNX itself.

    Args:
        program: of the whole detector.
        facts: texts kept in the model's ``metadata_props``.

    Raises:
        ModelError: ONNX lacks an operator of the detector, or the model is too large for it.
    """
    import onnx
    import torch

    size = sum(tensor.numel() * 4 for tensor in program.state_dict.values())
    if size > _MOST_BYTES:
        raise ModelError(
            f"the weights take {size / 1e9:.1f} GB, ONNX holds 2 GB in one file; export with"
            " --format torch-export"
        )
    try:
        with quiet():
            found = torch.onnx.export(
                program,
                input_names=[INPUT],
                output_names=list(COLUMNS),
                opset_version=OPSET,
                dynamic_shapes={INPUT: {0: "n"}},
                custom_translation_table=_translations(),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ModelError(
            f"ONNX has no operator for {_operator(error)}, which this detector computes with;"
            " export it with --format torch-export"
        ) from error
    assert found is not None
    model = found.model_proto
    model.producer_name = "esad-med"
    for node in model.graph.node:
        node.ClearField("metadata_props")  # how PyTorch came to it: larger than the node
    onnx.helper.set_model_props(model, dict(facts))
    onnx.checker.check_model(model, full_check=True)
    written: bytes = model.SerializeToString()
    return written


def open_onnx(path: Path) -> Runtime:
    """Run a model with ONNX Runtime on the CPU.

    Raises:
        ModelError: ONNX Runtime lacks an operator of it, or does not read it.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), settings, providers=["CPUExecutionProvider"]
        )
    except (errors.Fail, errors.InvalidGraph, errors.NotImplemented) as error:
        raise ModelError(
            f"ONNX Runtime {onnxruntime.__version__} does not run the model"
            f" ({str(error).splitlines()[0]}); update onnxruntime, or export with"
            " --format torch-export"
        ) from error

    def run(samples: Samples) -> Columns:
        return np.stack(session.run(list(COLUMNS), {INPUT: samples})).astype(np.float64)

    return run


def _operator(error: BaseException) -> str:
    """The operator that the exporter's errors speak of."""
    cause: BaseException | None = error
    while cause is not None:
        if found := re.search(r"op='([\w.:]+)'|torch\.ops\.([\w.]+)", str(cause)):
            return found[1] or found[2]
        cause = cause.__cause__
    return str(error).splitlines()[0]


def _translations() -> dict[Any, Any]:
    """Operators that PyTorch's exporter does not know."""
    import torch
    from onnxscript import opset20 as op

    def searchsorted(
        ranked: Any, values: Any, out_int32: bool = False, right: bool = False, **_: Any
    ) -> Any:
        """How many of the last axis of ``ranked`` lie below each value: ONNX has no search."""
        compare = op.LessOrEqual if right else op.Less
        below = compare(op.Unsqueeze(ranked, [-2]), op.Unsqueeze(values, [-1]))
        return op.ReduceSum(op.Cast(below, to=7), [-1], keepdims=0)  # 7: int64

    return {torch.ops.aten.searchsorted.Tensor: searchsorted}
