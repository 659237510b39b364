"""The files of an ONNX model, looked at before ONNX Runtime reads them."""

import hashlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esad_med.base.errors import ConfigError, ModelError
from esad_med.base.limits import Limits, read_file
from esad_med.base.runs import digest_file

_MIB = 1 << 20
_PROTOBUF_MIB = 2048  # no protobuf message is longer
_LOOPS = ("Loop", "Scan")  # a picture's embedding takes none, and they need not end
_STANDARD = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


@dataclass(frozen=True)
class ModelFiles:
    """What a model consists of.

    Attributes:
        data: the content of the file where all of the model is in it, else None.
        beside: files of weights in its folder, in order.
    """

    data: bytes | None
    beside: tuple[Path, ...]


def check_model(path: Path, limits: Limits) -> ModelFiles:
    """Read a model's file as far as is needed to know what belongs to it.

    Raises:
        ConfigError: the extra ``onnx`` is not installed.
        ModelError: no ONNX model, too large, with operations that are no standard ones, or with
            data that lie outside its folder.
    """
    if path.suffix.lower() in {".pt2", ".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"}:
        raise ModelError(
            f"{path}: files of torch can run programs when they are read (PyTorch unpickles and"
            " evaluates what stands in them), so none is; export the model to ONNX where you trust"
            " it, by torch.onnx.export(model, (example,), FILE, dynamo=True), or pass"
            " --trust-encoder with a .pt2 of torch.export whose maker you trust"
        )
    try:
        import onnx
        import onnxruntime  # noqa: F401 - said here, not in the middle of a run
    except ImportError as error:
        raise ConfigError(
            f"--encoder needs ONNX ({error.name} is missing); install it with"
            " pip install 'esad-med[onnx]'"
        ) from error
    most = min(limits.weights_mib, _PROTOBUF_MIB)
    try:
        data = read_file(path, most_mib=most, setting="weights_mib", error=ModelError)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's own, of a library without types
        raise ModelError(f"{path}: not an ONNX model ({error}); export it again") from error
    if not model.ir_version or not model.graph.node:
        raise ModelError(f"{path}: not an ONNX model (no graph inside); export it again")
    names = _check_graph(path, model)
    beside = tuple(_beside(path, name, limits) for name in sorted(names))
    return ModelFiles(None if beside else data, beside)


def digest_model(path: Path, files: ModelFiles) -> str:
    """SHA-256 over the model's file, then over each file of weights beside it."""
    state = hashlib.sha256()
    state.update(files.data if files.data is not None else bytes.fromhex(digest_file(path)))
    for file in files.beside:
        state.update(file.name.encode() + bytes.fromhex(digest_file(file)))
    return state.hexdigest()


def _check_graph(path: Path, model: Any) -> set[str]:
    """Names of the files that hold weights; refuses loops and operations of strangers."""
    own = {(function.domain, function.name) for function in model.functions}
    names: set[str] = set()
    for kind, part in _parts(model):
        if kind == "tensor":
            if part.data_location == 1:  # EXTERNAL
                names.add(next((e.value for e in part.external_data if e.key == "location"), ""))
            continue
        known = part.domain in _STANDARD or (part.domain, part.op_type) in own
        if not known:
            raise ModelError(
                f"{path}: operation '{part.op_type}' of domain '{part.domain}', expected standard"
                " ones only: no library of custom operations is loaded; export it without"
            )
        if part.op_type in _LOOPS and part.domain in ("", "ai.onnx"):
            raise ModelError(
                f"{path}: holds a {part.op_type}, which need not end, expected a plain network;"
                " export it with loops unrolled"
            )
    return names


def _parts(model: Any) -> Iterator[tuple[str, Any]]:
    """Every operation and every tensor of a model, those of inner graphs and functions too."""
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        for tensor in getattr(graph, "initializer", ()):
            yield "tensor", tensor
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield "tensor", sparse.values
            yield "tensor", sparse.indices
        for node in graph.node:
            yield "node", node
            for attribute in node.attribute:
                for tensor in (attribute.t, *attribute.tensors):
                    yield "tensor", tensor
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield "tensor", sparse.values
                    yield "tensor", sparse.indices
                waiting += [attribute.g, *attribute.graphs]


def _beside(path: Path, name: str, limits: Limits) -> Path:
    """A file of weights, which must lie in the model's own folder and be no link out of it."""
    plain = name not in {"", ".", ".."} and not set(name) & set("/\\\0")
    if not plain:
        raise ModelError(
            f"{path}: its weights lie in {name[:200]!r}, expected a file beside it; export it again"
            " into one folder"
        )
    file = path.parent / name
    try:
        found = file.lstat()
    except OSError as error:
        raise ModelError(f"{path}: its weights in {name!r} are missing; copy both files") from error
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{path}: its weights in {name!r} are no regular file; copy them here")
    if found.st_size > limits.weights_mib * _MIB:
        raise ModelError(
            f"{path}: its weights in {name!r} take more than {limits.weights_mib:g} MiB"
            " (limits.weights_mib)"
        )
    return file
