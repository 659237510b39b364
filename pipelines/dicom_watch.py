"""`--watch DIR`: files that appear in a folder take the way of images from the network."""

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from esad_med.base.errors import ConfigError, EsadError, ImageError
from esad_med.base.runs import Say
from pipelines.dicom_header import is_uid, is_whole, read_identity, split_file
from pipelines.dicom_intake import Intake, kinds_accepted
from pipelines.dicom_metrics import Metrics
from pipelines.dicom_settings import NodeConfig
from pipelines.spool import SpoolFullError

LOGGER = logging.getLogger(__name__)

TAKEN, REFUSED = ".done", ".refused"
_PAUSE_SECONDS = 5.0


class FolderWatch:
    """Takes whole DICOM files from a folder and its subfolders.

    A file is looked at when its size and time did not change for `watch_seconds`, and taken when
    its data set is whole. Then it is moved to ``.done`` inside the folder, or to ``.refused`` where
    it can never be taken. Names that begin with a dot are left alone.

    Raises:
        ConfigError: the folder is missing or cannot be written to.
    """

    def __init__(
        self,
        root: Path,
        intake: Intake,
        config: NodeConfig,
        *,
        metrics: Metrics | None = None,
        say: Say,
    ) -> None:
        if not root.is_dir():
            raise ConfigError("--watch: no such folder; make it first")
        try:
            for name in (TAKEN, REFUSED):
                (root / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--watch: the folder cannot be written to ({error.strerror}); files that were"
                " taken are moved to .done in it"
            ) from error
        self._root = root
        self._intake = intake
        self._config = config
        self._metrics = metrics or Metrics()
        self._say = say
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}
        self._given_up: dict[Path, tuple[int, int]] = {}

    def run(self, stop: threading.Event) -> None:
        """Watch until stopped."""
        while not stop.wait(self._config.watch_seconds / 2):
            try:
                self.take_stable()
            except (OSError, SpoolFullError) as error:
                LOGGER.error("watched files wait (%s)", type(error).__name__)
                stop.wait(_PAUSE_SECONDS)

    def take_stable(self) -> int:
        """Take the files that are stable by now.

        Returns:
            How many were taken.

        Raises:
            SpoolFullError: no room; the files stay.
            OSError: the disk fails.
        """
        found = {path: (stat.st_size, stat.st_mtime_ns) for path, stat in self._files()}
        now = time.monotonic()
        self._seen = {
            path: self._seen[path]
            if path in self._seen and self._seen[path][0] == state
            else (state, now)
            for path, state in found.items()
        }
        self._given_up = {p: s for p, s in self._given_up.items() if found.get(p) == s}
        stable = [
            path
            for path, (state, since) in self._seen.items()
            if now - since >= self._config.watch_seconds and self._given_up.get(path) != state
        ]
        return sum(self._take(path, found[path]) for path in stable)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder, folders, names in os.walk(self._root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder, name)
                if name.startswith(".") or path.is_symlink() or not path.is_file():
                    continue
                with suppress(FileNotFoundError):  # taken away meanwhile
                    yield path, path.stat()

    def _take(self, path: Path, state: tuple[int, int]) -> bool:
        try:
            if state[0] > self._config.maximum_object:
                raise ImageError("larger than maximum_object_mib")
            file = path.read_bytes()
            syntax, data = split_file(file)
            identity = read_identity(data, syntax)
            if not is_uid(syntax) or (identity.sop_class, syntax) not in kinds_accepted():
                raise ImageError("not an image of a kind or encoding that is taken")
            if not is_whole(data, syntax):
                self._given_up[path] = state  # looked at again when it grows
                self._say("a watched file is not whole; it is left until it changes")
                return False
            outcome = self._intake.take(identity, file)
        except (SpoolFullError, FileNotFoundError):
            raise
        except EsadError as error:
            self._move(path, REFUSED)
            self._metrics.count("images", "unreadable")
            self._say(f"a watched file was refused ({error})")
            return False
        self._move(path, REFUSED if outcome == "conflict" else TAKEN)
        return outcome != "conflict"

    def _move(self, path: Path, where: str) -> None:
        """Move a file beside the others that were dealt with, overwriting none of them."""
        target = self._root / where / path.relative_to(self._root)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        number = 1
        while target.exists():
            number += 1
            target = target.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            path.rename(target)
        except OSError as error:
            if error.errno != errno.ENOENT:  # somebody else moved it
                raise
