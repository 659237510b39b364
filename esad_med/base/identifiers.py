"""Keyed hashes instead of patient and study identifiers, and the private map that resolves them.

RUN/private/key        32 random bytes, mode 0600: who does not have it cannot try identifiers out
RUN/private/map.csv    case_id, kind, identifier; mode 0600

An identifier that a spreadsheet would compute stands in the map behind an apostrophe.
"""

import csv
import hashlib
import hmac
import io
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from esad_med.base.errors import ConfigError
from esad_med.base.runs import atomic_file, output_error
from esad_med.base.texts import plain_cell

_KEY_BYTES = 32
_SHOWN = 16  # hexadecimal digits: 64 bits, two of a million studies meet once in 40 million runs


class Pseudonyms:
    """Names for identifiers: the same key and identifier give the same name, always.

    Attributes:
        folder: ``private``, mode 0700; holds the map and, where none was given, the key.
    """

    def __init__(self, folder: Path, *, key_file: Path | None = None) -> None:
        """Read the key, or draw one where there is none yet.

        Args:
            folder: where ``map.csv`` is kept; made where it is missing.
            key_file: a key shared by several runs, so that they give a patient the same name.

        Raises:
            ConfigError: a folder that cannot be written, or a file that is no key.
        """
        self.folder = folder
        key = read_or_draw_key(key_file) if key_file else None  # before anything is made
        _make_private(folder)
        self._key = key or read_or_draw_key(folder / "key")
        self._map = folder / "map.csv"
        self._known = self._read_map()
        self._added: dict[str, tuple[str, str]] = {}

    @property
    def fingerprint(self) -> str:
        """Tells two keys apart without giving them away."""
        return hmac.new(self._key, b"fingerprint", hashlib.sha256).hexdigest()[:_SHOWN]

    def name(self, kind: str, identifier: str) -> str:
        """The name of an identifier, such as ``study-3f9a...``; empty for an empty identifier.

        Args:
            kind: patient, study or image; equal identifiers of two kinds get different names.
            identifier: what must not be shown.
        """
        if not identifier:
            return ""
        digest = hmac.new(self._key, _to_bytes(f"{kind}\0{identifier}"), hashlib.sha256)
        name = f"{kind}-{digest.hexdigest()[:_SHOWN]}"
        if name not in self._known:
            self._known[name] = self._added[name] = (kind, identifier)
        return name

    def resolve(self, name: str) -> str:
        """The identifier behind a name, empty where it is unknown."""
        return self._known.get(name, ("", ""))[1]

    def save(self) -> None:
        """Add the new names to ``map.csv``, which is written as a whole: a crash loses none.

        Raises:
            ConfigError: it cannot be written.
        """
        if not self._added and self._map.exists():
            return
        rows = [(name, kind, _shown(text)) for name, (kind, text) in self._known.items()]
        text = _to_csv([("case_id", "kind", "identifier"), *rows])
        with atomic_file(self._map) as temporary:
            os.close(_open_private(temporary, os.O_EXCL))
            temporary.write_bytes(_to_bytes(text))
        self._added.clear()

    def _read_map(self) -> dict[str, tuple[str, str]]:
        if not self._map.exists():
            return {}
        try:  # by csv, to the letter: pandas would strip identifiers
            text = self._map.read_bytes().decode("utf-8", "surrogatepass")
            _, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
            return {name: (kind, text.removeprefix("'")) for name, kind, text in rows}
        except OSError as error:
            raise output_error(self._map, error) from error
        except (ValueError, csv.Error) as error:
            raise ConfigError(
                f"{self._map}: not a map of identifiers, so it was edited or damaged; move it away"
                " (its names cannot be resolved without it), a new one is begun"
            ) from error


def _shown(identifier: str) -> str:
    """As it stands in the map: no formula, and read back to the letter."""
    odd = identifier.startswith("'") or plain_cell(identifier) != identifier
    return f"'{identifier}" if odd else identifier


def _to_bytes(text: str) -> bytes:
    """UTF-8, also of file names that are none."""
    return text.encode("utf-8", "surrogatepass")


def _to_csv(rows: Iterable[tuple[str, str, str]]) -> str:
    file = io.StringIO(newline="")
    # all quoted: Python leaves a lone carriage return bare, at which readers end the line
    csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    return file.getvalue()


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise output_error(folder, error) from error


def _open_private(path: Path, flags: int) -> int:
    """Open for writing, readable by the owner alone from the first moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def read_or_draw_key(path: Path) -> bytes:
    """The key in a file, which is made where there is none.

    Raises:
        ConfigError: no key, or it cannot be read or made.
    """
    try:
        if not path.exists():
            with os.fdopen(_open_private(path, os.O_EXCL), "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
        key = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{path}: no key can be read or made there ({reason}); name another file as --key"
        ) from error
    if len(key) != _KEY_BYTES:
        raise ConfigError(
            f"{path}: {len(key)} bytes, expected a key of {_KEY_BYTES}; name another file, one that"
            " does not exist is made"
        )
    return key
