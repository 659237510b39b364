"""The state of a member after an epoch, on disk; the digest tells a damaged one."""

import io
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from esad_med.base.errors import ModelError
from esad_med.base.runs import atomic_file, digest_bytes, read_json, write_json

State = dict[str, Any]

# What torch is known to raise on a file that is none of its own, or holds more than plain values
_UNREADABLE = (
    *(RuntimeError, UnpicklingError, EOFError, OSError, ValueError, TypeError),
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
    content = read_checkpoint(folder, member)
    return None if content is None else parse_checkpoint(content)


def read_checkpoint(folder: Path, member: int) -> bytes | None:
    """The last complete state of a member as it stands on disk, None where there is none.

    Raises:
        ModelError: the file is missing or damaged.
    """
    if not _pointer(folder, member).exists():
        return None
    pointer = read_json(_pointer(folder, member), ModelError)
    file = folder / str(pointer.get("file", ""))
    content = file.read_bytes() if file.parent == folder and file.is_file() else b""
    if digest_bytes(content) != pointer.get("sha256"):
        raise ModelError(
            f"{file}: the checkpoint is missing or damaged; delete {_pointer(folder, member)} to"
            " train this member again from the start"
        )
    return content


def parse_checkpoint(content: bytes) -> State:
    """The state that `read_checkpoint` found.

    Raises:
        ModelError: it was not written by `save_checkpoint`.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ModelError("the checkpoint is not readable; train anew with --overwrite") from error
    if not isinstance(state, dict):
        raise ModelError("the checkpoint is not readable; train anew with --overwrite")
    return state


def _pointer(folder: Path, member: int) -> Path:
    return folder / f"member{member}.json"
