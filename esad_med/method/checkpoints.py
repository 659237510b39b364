"""The state of a member after an epoch, on disk; the digest tells a damaged one."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from esad_med.base.errors import ModelError
from esad_med.base.runs import atomic_file, digest_bytes, digest_file, read_json, write_json

State = dict[str, Any]

# What torch is known to raise on files that are none of its own.
_DAMAGED = (
    *(RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError),
    *(LookupError, AttributeError, OverflowError, MemoryError),
)


def save_checkpoint(folder: Path, member: int, state: State) -> None:
    """Write a member's state; the one before stays until this one is complete.

    Tensors, numbers, strings, lists and dicts only, so that it loads with ``weights_only``.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    name = f"member{member}-epoch{state['epoch']:05d}.pt"
    with atomic_file(folder / name) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    pointer = {"file": name, "epoch": state["epoch"], "sha256": digest_bytes(buffer.getvalue())}
    write_json(_pointer(folder, member), pointer)
    for old in folder.glob(f"member{member}-epoch*.pt"):
        if old.name != name:
            old.unlink()


def load_checkpoint(folder: Path, member: int) -> State | None:
    """The last complete state of a member, None where there is none.

    Raises:
        ModelError: the file is missing or damaged.
    """
    if not _pointer(folder, member).exists():
        return None
    pointer = read_json(_pointer(folder, member), ModelError)
    file = folder / str(pointer.get("file", ""))
    if file.parent != folder or not file.is_file() or digest_file(file) != pointer.get("sha256"):
        raise ModelError(
            f"{file}: the checkpoint is missing or damaged; delete {_pointer(folder, member)} to"
            " train this member again from the start"
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise ModelError(f"{file}: not a readable checkpoint") from error
    if not isinstance(state, dict):
        raise ModelError(f"{file}: holds {type(state).__name__}, expected a checkpoint")
    return state


def _pointer(folder: Path, member: int) -> Path:
    return folder / f"member{member}.json"
