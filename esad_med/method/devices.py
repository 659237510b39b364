"""Where to compute, and what the hardware is good at."""

from contextlib import AbstractContextManager, nullcontext

import torch

from esad_med.base.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device of a setting: auto is CUDA where there is one.

    Raises:
        ConfigError: another name than auto, cpu or cuda; CUDA was asked for and there is none.
    """
    if name not in {"auto", "cpu", "cuda"}:
        raise ConfigError(f"device {name!r} is unknown; expected auto, cpu or cuda")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: no CUDA device is found; set device to auto or cpu")
    return torch.device(name)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bfloat16, so that it is faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def fastest_kernels(device: torch.device) -> AbstractContextManager[object]:
    """Let cuDNN try its kernels for each shape: the shapes of training repeat."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(
        enabled=True,
        benchmark=True,
        deterministic=False,
        allow_tf32=torch.backends.cudnn.allow_tf32,
    )
