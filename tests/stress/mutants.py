"""Mutants of good files: flipped bits, overwritten, cut, doubled and removed pieces, splices.

A number decides everything, so that a culprit can be made again by its number alone.
"""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from good_files import good_files
from guarded import Task
from malformed_folders import fit_checksums
from xray_mutants import seeds

_TOKENS = (
    *(b"", b"\0", b"\xff" * 4, b"\x80" * 8, b"-1", b"9" * 400, b"1e999", b"nan", b"null", b"[]"),
    *(b'"', b"<", b"{", b"]", b"\n", b",", b"&a;", b"*a", b": ", b"\xed\xa0\x80"),
)


def mutate(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """One to four changes; most of them near the start, where headers are."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not made:
            break
        at = chance.randrange(len(made) if chance.random() < 0.5 else min(len(made), 600))
        size = chance.choice((1, 2, 4, 8, 40, 400))
        change = chance.randrange(9)
        if change == 0:
            made[at] ^= 1 << chance.randrange(8)
        elif change == 1:
            made[at : at + size] = chance.randbytes(size)
        elif change == 2:
            made[at : at + size] = chance.choice((b"\0", b"\xff", b"\x7f")) * size
        elif change == 3:
            del made[at + 1 :]
        elif change == 4:
            del made[at : at + size]
        elif change == 5:
            made[at:at] = made[at : at + size] * chance.choice((1, 1, 2, 50))
        elif change == 6:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            made[at : at + chance.choice((0, size))] = other[start : start + size]
        elif change == 7:
            made[at:at] = chance.choice(_TOKENS)
        else:
            made = made[:at] + bytearray(chance.choice(others)[at:])
    return bytes(made)


def file_seeds() -> list[tuple[str, str, bytes]]:
    """(reader, file name, content) of everything that is one file."""
    found = [(reader, *file) for reader, files in good_files().items() for file in files]
    return found + [("xray", f"seed{number}", data) for number, data in enumerate(seeds())]


def write_mutants(folder: Path, numbers: Sequence[int], folders: Sequence[Task]) -> list[Task]:
    """Mutants by their numbers, each in a folder of its own.

    Args:
        folder: where.
        numbers: seed of each.
        folders: good stores and detectors, one of whose files is mutated with fitting checksums.
    """
    files = file_seeds()
    contents = [data for _, _, data in files]
    tasks = []
    for number in numbers:
        chance = random.Random(number)
        here = folder / str(number)
        if folders and number % 8 == 0:
            tasks.append(_mutate_folder(here, number, chance.choice(folders), contents, chance))
            continue
        reader, name, data = chance.choice(files)
        same = [other for kind, _, other in files if kind == reader]
        here.mkdir()
        (here / name).write_bytes(mutate(data, chance.choice((same, contents)), chance))
        tasks.append(Task(f"{number} ({reader} {name})", reader, here / name))
    return tasks


def _mutate_folder(
    here: Path, number: int, good: Task, others: Sequence[bytes], chance: random.Random
) -> Task:
    shutil.copytree(good.path, here)
    file = chance.choice(sorted(path for path in here.iterdir() if path.is_file()))
    file.write_bytes(mutate(file.read_bytes(), [file.read_bytes(), *others], chance))
    if chance.random() < 0.8:
        _seal_any(here)
    return Task(f"{number} ({good.reader} {file.name})", good.reader, here)


def _seal_any(folder: Path) -> None:
    """Checksums that fit, of a checkpoint too."""
    fit_checksums(folder)
    pointer = folder / "member0.json"
    if pointer.exists():
        from esad_med.base.runs import digest_file

        try:
            values = json.loads(pointer.read_bytes())
            values["sha256"] = digest_file(folder / values["file"])
            pointer.write_text(json.dumps(values))
        except (ValueError, KeyError, TypeError, OSError, RecursionError):
            return  # the pointer itself is the mutant
