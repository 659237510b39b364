"""A program of `torch.export` as an encoder: the face of ONNX Runtime's session over PyTorch.

PyTorch unpickles and evaluates what stands in such a file, so one is read only where its user says
that it may: `--trust-encoder`.
"""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from esad_med.base.errors import ModelError
from esad_med.base.limits import Limits, read_file
from esad_med.method.devices import choose_device

SUFFIX = ".pt2"


class ProgramSession:
    """A loaded program; its methods are those of `onnxruntime.InferenceSession` that are used.

    Attributes:
        data: the file's bytes.
    """

    def __init__(self, path: Path, *, device: str, limits: Limits) -> None:
        """Read and load a program that its user trusts.

        Raises:
            ConfigError: there is no such device.
            ModelError: too large, or not a program of this PyTorch.
        """
        import torch
        from torch.export.passes import move_to_device_pass

        self._device = choose_device(device)
        self.data = trusted = _read(path, limits)
        try:
            program = torch.export.load(io.BytesIO(trusted))
            self._program = move_to_device_pass(program, self._device)
            self._module = self._program.module()
        except Exception as error:  # whatever a stranger's file makes it raise
            text = str(error).strip().partition("\n")[0][:300] or type(error).__name__
            raise ModelError(
                f"{path}: not a program of torch.export that this PyTorch {torch.__version__} reads"
                f" ({text}); export it again"
            ) from error

    def get_inputs(self) -> list[SimpleNamespace]:
        """Name, type and shape of each input, in ONNX Runtime's words."""
        names = set(self._program.graph_signature.user_inputs)
        found = []
        for node in self._program.graph.nodes:
            if node.op == "placeholder" and node.name in names:
                value = node.meta["val"]
                shape = [size if isinstance(size, int) else str(size) for size in value.shape]
                found.append(SimpleNamespace(name=node.name, type=_type(value.dtype), shape=shape))
        return found

    def get_outputs(self) -> list[SimpleNamespace]:
        """Name of each output."""
        names = self._program.graph_signature.user_outputs
        return [SimpleNamespace(name=str(name)) for name in names]

    def get_modelmeta(self) -> SimpleNamespace:
        """A program says nothing of its preparation: that stands in the file beside it."""
        return SimpleNamespace(custom_metadata_map={})

    def run(
        self, names: list[str], feed: dict[str, npt.NDArray[Any]], options: object = None
    ) -> list[npt.NDArray[Any]]:
        """Outputs by name for the one input; ``options`` are ONNX Runtime's and not looked at."""
        import torch
        from torch.utils._pytree import tree_leaves

        (x,) = feed.values()
        with torch.inference_mode():
            found = tree_leaves(self._module(torch.from_numpy(x).to(self._device)))
        outputs = dict(zip((one.name for one in self.get_outputs()), found, strict=True))
        return [np.asarray(outputs[name].cpu().numpy()) for name in names]


def _read(path: Path, limits: Limits) -> bytes:
    try:
        most = limits.weights_mib
        return read_file(path, most_mib=most, setting="weights_mib", error=ModelError)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__


def _type(dtype: object) -> str:
    return {
        "torch.float32": "tensor(float)",
        "torch.float16": "tensor(float16)",
        "torch.uint8": "tensor(uint8)",
    }.get(str(dtype), str(dtype))
