"""Small encoders as ONNX, composed by code: random weights, sound shapes, and damaged kinds."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def conv_nodes(channels: int, dim: int, seed: int) -> tuple[list[Any], list[Any]]:
    """A strided convolution, ReLU, global mean and a linear map: (n, c, h, w) -> (n, dim)."""
    random = np.random.default_rng(seed)
    weights = {
        "kernel": random.normal(0, 0.2, (16, channels, 5, 5)).astype(np.float32),
        "map": random.normal(0, 1, (16, dim)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["pictures", "kernel"], ["maps"], strides=[2, 2]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "map"], ["embedding"]),
    ]
    return nodes, [numpy_helper.from_array(value, name) for name, value in weights.items()]


def write_encoder(
    path: Path,
    *,
    channels: int = 3,
    edge: int | str = "edge",
    dim: int = 12,
    seed: int = 0,
    metadata: dict[str, str] | None = None,
    batch: int | str = "n",
) -> Path:
    """An encoder that takes (batch, channels, edge, edge) and gives (batch, dim)."""
    nodes, weights = conv_nodes(channels, dim, seed)
    shape = [batch, channels, edge, edge]
    return write_graph(path, nodes, weights, shape, [batch, dim], metadata=metadata)


def write_graph(
    path: Path,
    nodes: list[Any],
    weights: list[Any],
    shape: list[Any],
    output: list[Any],
    *,
    kind: int = TensorProto.FLOAT,
    metadata: dict[str, str] | None = None,
    domains: tuple[str, ...] = (),
) -> Path:
    """A model of these nodes from ``pictures`` to ``embedding``."""
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("pictures", kind, shape)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, output)],
        initializer=weights,
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(name, 1) for name in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, str(path))
    return path
