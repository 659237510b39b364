"""Tables and JSON within limits: looked at in one cheap pass before a parser takes memory."""

import gzip
import json
import re
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np

from esad_med.base.errors import CaseError, EsadError
from esad_med.base.limits import Limits, read_file

_CHUNK = 1 << 20
_CELLS_PER_BYTE = 2  # short rows are filled up, so that a few bytes could ask for gigabytes
_SLACK = 1 << 20  # cells, or bytes: small tables are never looked at so closely
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1
# possessive, and an open end counts: linear in whatever stands there
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)


def check_table(path: Path, *, limits: Limits) -> None:
    """Refuse a CSV that is too large; a ``.gz`` is unpacked as far as that, and thrown away.

    Raises:
        CaseError: too many bytes or columns, rows that would be filled up with far more cells than
            there are bytes, a line of more than a MiB, or damaged gzip data.
        OSError: the file cannot be read.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise CaseError(f"{path}: not a regular file")  # a pipe would be waited for
    packed = path.suffix.lower() == ".gz"
    most = limits.table_mib * (1 << 20)
    if packed:
        most = min(most, limits.table_ratio * path.stat().st_size + _SLACK)
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            _count(path, file, most, limits)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CaseError(f"{path}: damaged gzip data ({error}); copy it again") from error


def _count(path: Path, file: BufferedIOBase, most: float, limits: Limits) -> None:
    rows = size = line = 0
    columns = None
    while chunk := file.read(_CHUNK):
        size += len(chunk)
        ends = max(b"\n", b"\r", key=chunk.count)
        first, last = chunk.find(ends), chunk.rfind(ends)
        if columns is None:
            columns = chunk[: first if first >= 0 else None].count(b",") + 1
        rows += chunk.count(ends)
        line = line + len(chunk) if last < 0 else len(chunk) - last
        if size > most:
            raise CaseError(
                f"{path}: takes more than {most / 2**20:,.0f} MiB, unpacked where it is gzip"
                " (limits.table_mib, limits.table_ratio)"
            )
        if columns > limits.table_columns:
            raise CaseError(
                f"{path}: more than {limits.table_columns:,} columns (limits.table_columns)"
            )
        if line > _CHUNK:
            raise CaseError(f"{path}: a line of more than a MiB; is it a CSV?")
        if rows * columns > _CELLS_PER_BYTE * size + _SLACK:
            raise CaseError(f"{path}: far more cells than bytes; give each row its commas")


def parse_json(data: bytes, *, nesting: int) -> Any:
    """JSON that is not nested too deep.

    Raises:
        ValueError: no UTF-8, no JSON, or brackets in more than ``nesting`` levels.
    """
    if _depth(_STRING.sub(b"", data)) > nesting:
        raise ValueError(f"nested more than {nesting} deep (limits.nesting)")
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError as error:  # where a higher limit was set
        raise ValueError("nested too deep") from error


def read_json_within(path: Path, error: type[EsadError], *, limits: Limits) -> Any:
    """A JSON file of `Limits.json_mib` at most, or ``error`` with its name and what is wrong."""
    try:
        data = read_file(path, most_mib=limits.json_mib, setting="json_mib", error=error)
        return parse_json(data, nesting=limits.nesting)
    except error as problem:
        raise error(f"{path}: {problem}") from problem.__cause__
    except ValueError as problem:
        raise error(f"{path}: not a JSON file ({problem})") from problem


def _depth(text: bytes) -> int:
    """How deep brackets are nested."""
    depth = deepest = 0
    for start in range(0, len(text), _CHUNK):
        part = np.frombuffer(text[start : start + _CHUNK], np.uint8)
        steps = np.cumsum(_STEP[part], dtype=np.int32)
        deepest = max(deepest, depth + int(steps.max()))
        depth += int(steps[-1])
    return deepest
