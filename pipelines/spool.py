"""The spool: received images on disk, so that nothing acknowledged is lost, whatever dies.

    SPOOL/lock              held by the one node that may work here
    SPOOL/receiving/        what is being written; emptied at every start
    SPOOL/incoming/STUDY/   images of studies that wait for the end of the study or for their triage
    SPOOL/done/STUDY/       images of triaged studies, until retention removes them
    SPOOL/aside/STUDY/      images of studies that could not be triaged
    SPOOL/conflicts.jsonl   refused images that had another's SOP Instance UID

Where a study's folder stands is its state, and moving it is one rename: no moment leaves a study in
two states. ``study.json`` in it says how often it was tried and how that ended. STUDY and the names
of the images are hashes of the UIDs.
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Literal

from esad_med.base.errors import ConfigError, EsadError, ImageError
from esad_med.base.runs import digest_bytes, read_json, write_json
from pipelines.dicom_header import Identity, content_digest, hashed, split_file

LOGGER = logging.getLogger(__name__)

Stored = Literal["stored", "duplicate", "conflict"]
Place = Literal["incoming", "done", "aside"]
PLACES: tuple[Place, ...] = ("incoming", "done", "aside")

_RECORD = "study.json"
_LOCK_PATIENCE = 1.0  # seconds: `--status` holds the lock for a moment
_MOST_CONFLICTS = 10_000  # a sender gone wild does not fill the disk with reports
_FULL = (errno.ENOSPC, errno.EDQUOT)


class SpoolFullError(EsadError):
    """The disk has no room for another image, or the study has enough of them."""


@dataclass(frozen=True)
class StudyRecord:
    """What became of a study so far; ``study.json``.

    Attributes:
        images: which set of images `attempts` and the end speak of.
        attempts: triages begun on this set that never ended.
        ended: seconds since 1970 when it was triaged or set aside; 0 for neither.
        results: how many result files the triage gave.
        error: class of the error it was set aside for.
        message: the error's text, without identifiers.
    """

    images: str = ""
    attempts: int = 0
    ended: float = 0.0
    results: int = 0
    error: str = ""
    message: str = ""


class Spool:
    """One node's spool. Threads may share it; a second process is refused.

    Args:
        root: its folder, made where missing, readable by nobody else.
        reserve: bytes of the disk that stay free.
        maximum_images: images of one study.

    Raises:
        ConfigError: another node works there, or the folder cannot be written to.
    """

    def __init__(self, root: Path, *, reserve: int = 0, maximum_images: int = 200) -> None:
        self.root = root
        self.reserve = reserve
        self.maximum_images = maximum_images
        self._mutex = Lock()
        self._handle = _locked(root)
        try:
            shutil.rmtree(root / "receiving", ignore_errors=True)  # never acknowledged
            for name in ("receiving", *PLACES):
                make_private(root / name)
            sync_paths(root)
            self._study_of = {
                path.name: path.parent.name
                for place in PLACES
                for path in (root / place).glob("*/*.dcm")
            }
            now, wall = time.monotonic(), time.time()
            self._arrived = {
                study: now - max(0.0, wall - _newest(self.images(study)))
                for study in self.studies("incoming")
            }
            self._conflicts = {(line["object"], line["refused"]) for line in read_conflicts(root)}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._handle)

    def store(self, identity: Identity, file: bytes) -> Stored:
        """Keep an image durably; returning means it survives a crash of the machine.

        Args:
            identity: what the image says it is.
            file: the whole DICOM file, file meta information included.

        Returns:
            ``duplicate`` if the very same data set is kept already, ``conflict`` if another one is
            kept under its SOP Instance UID, which stays as it is.

        Raises:
            SpoolFullError: no room; nothing was kept.
            ImageError: not a DICOM file.
            OSError: the disk fails otherwise.
        """
        study, name = hashed(identity.study), f"{hashed(identity.sop_instance)}.dcm"
        digest = content_digest(*split_file(file))
        with self._mutex:
            known = self._compare(name, digest)
        if known is not None:
            return known
        self._check_room(study, len(file))
        partial = self.scratch(".dcm")
        try:
            _write_durably(partial, file)
            with self._mutex:
                known = self._compare(name, digest)  # the same image, sent twice at a time
                if known is not None:
                    return known
                folder = self._opened(study)
                partial.rename(folder / name)
                self._study_of[name] = study
                self._arrived[study] = time.monotonic()
                handles = [os.open(path, os.O_RDONLY) for path in (folder, folder.parent)]
            _sync(handles)  # outside: the folder may move on meanwhile
        except OSError as error:
            if error.errno in _FULL:
                raise SpoolFullError("no space left on the disk of the spool") from error
            raise
        finally:
            partial.unlink(missing_ok=True)
        return "stored"

    def has_room(self) -> bool:
        """Whether triages may write: of the reserve that images leave alone, most is theirs."""
        return shutil.disk_usage(self.root).free > self.reserve // 10

    def scratch(self, suffix: str = "") -> Path:
        """A fresh name in ``receiving/``, on the same disk as everything else."""
        return self.root / "receiving" / f"{uuid.uuid4().hex}{suffix}"

    def studies(self, place: Place) -> list[str]:
        """The studies that stand there."""
        return sorted(path.name for path in (self.root / place).iterdir() if path.is_dir())

    def images(self, study: str) -> list[Path]:
        """The images of a study, in the order of their names; none if it is unknown."""
        folder = self._find(study)
        return sorted(folder.glob("*.dcm")) if folder else []

    def quiet_studies(self, quiet_seconds: float) -> list[str]:
        """Incoming studies that got no image for so long, the longest waiting first."""
        now = time.monotonic()
        with self._mutex:
            arrived = {
                study: self._arrived.setdefault(study, now) for study in self.studies("incoming")
            }
        quiet = [study for study, when in arrived.items() if now - when >= quiet_seconds]
        return sorted(quiet, key=lambda study: (arrived[study], study))

    def postpone(self, study: str) -> None:
        """Let a study wait for another quiet period."""
        with self._mutex:
            self._arrived[study] = time.monotonic()

    def record(self, study: str) -> StudyRecord:
        """What became of a study so far; a damaged record counts as none."""
        folder = self._find(study)
        return read_record(folder) if folder else StudyRecord()

    def write_record(self, study: str, record: StudyRecord) -> None:
        """Note it beside the images.

        Raises:
            ConfigError: it cannot be written.
        """
        with self._mutex:
            folder = self._find(study)
            assert folder is not None, "a study that is worked on stays"
            write_json(folder / _RECORD, asdict(record))

    def finish(self, study: str, record: StudyRecord) -> bool:
        """Note a triage's end, and move the study to ``done`` or, with an error, ``aside``.

        Returns:
            False if images came meanwhile: the study stays where it is and is triaged again.
        """
        record = replace(record, attempts=0, ended=time.time())
        self.write_record(study, record)
        with self._mutex:
            if image_set(self.images(study)) != record.images:
                return False
            place: Place = "aside" if record.error else "done"
            (self.root / "incoming" / study).rename(self.root / place / study)
            self._arrived.pop(study, None)
        return True

    def remove_older(
        self, place: Place, days: float, *, keep: Callable[[str], bool] = lambda _: False
    ) -> int:
        """Remove the studies that ended so many days ago.

        Args:
            place: ``done`` or ``aside``.
            days: since they ended.
            keep: which studies stay whatever their age.

        Returns:
            How many were removed.
        """
        limit = time.time() - days * 86400
        ended = {study: self.record(study).ended for study in self.studies(place)}
        old = [study for study, when in ended.items() if 0 < when < limit and not keep(study)]
        return sum(self._remove(place, study) for study in old)

    def note_conflict(self, identity: Identity, file: bytes) -> None:
        """Report an image that was refused for another one under its UID, once per content."""
        name = hashed(identity.sop_instance)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "study": hashed(identity.study),
            "object": name,
            "refused": content_digest(*split_file(file)),
        }
        with self._mutex:
            known = (name, line["refused"]) in self._conflicts
            if known or len(self._conflicts) >= _MOST_CONFLICTS:
                return
            self._conflicts.add((name, line["refused"]))
            _append(self.root / "conflicts.jsonl", json.dumps(line))

    def _find(self, study: str) -> Path | None:
        folders = (self.root / place / study for place in PLACES)
        return next((folder for folder in folders if folder.is_dir()), None)

    def _compare(self, name: str, digest: str) -> Stored | None:
        """What the kept image of this name is to another one; None where there is none."""
        study = self._study_of.get(name)
        folder = self._find(study) if study else None
        if folder is None or not (folder / name).exists():
            return None
        try:
            kept = content_digest(*split_file((folder / name).read_bytes()))
        except ImageError:
            kept = "damaged"  # on the disk: never overwritten either
        if kept != digest:
            return "conflict"
        sync_paths(folder, folder.parent)
        return "duplicate"

    def _check_room(self, study: str, size: int) -> None:
        if shutil.disk_usage(self.root).free - size < self.reserve:
            raise SpoolFullError("the disk of the spool is full up to its reserve")
        if len(self.images(study)) >= self.maximum_images:
            raise SpoolFullError(f"the study has {self.maximum_images} images already")

    def _opened(self, study: str) -> Path:
        """The study's folder in ``incoming``: as it is, brought back, or new."""
        folder = self.root / "incoming" / study
        found = self._find(study)
        if found is None:
            make_private(folder)
        elif found != folder:
            found.rename(folder)
        return folder

    def _remove(self, place: Place, study: str) -> bool:
        trash = self.scratch()
        with self._mutex:
            folder = self.root / place / study
            if not folder.is_dir():
                return False  # opened again meanwhile
            names = [path.name for path in folder.glob("*.dcm")]
            folder.rename(trash)
            for name in names:
                self._study_of.pop(name, None)
        shutil.rmtree(trash, ignore_errors=True)
        return True


def image_set(images: Sequence[Path]) -> str:
    """Which images these are: their content never changes, so their names say it."""
    return digest_bytes("\n".join(sorted(path.name for path in images)).encode())


def read_record(folder: Path) -> StudyRecord:
    """The record in a study's folder; a damaged or missing one counts as none."""
    try:
        values = read_json(folder / _RECORD, ConfigError)
        return StudyRecord(
            str(values["images"]),
            int(values["attempts"]),
            float(values["ended"]),
            int(values["results"]),
            str(values["error"]),
            str(values["message"]),
        )
    except (ConfigError, KeyError, TypeError, ValueError):
        return StudyRecord()


def read_conflicts(root: Path) -> list[dict[str, str]]:
    """The lines of ``conflicts.jsonl``; one cut off by a crash is left out."""
    lines = []
    with suppress(FileNotFoundError):
        for text in (root / "conflicts.jsonl").read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                line = json.loads(text)
                lines.append(
                    {key: str(line[key]) for key in ("time", "study", "object", "refused")}
                )
    return lines


def is_locked(root: Path) -> bool:
    """Whether a node works on this spool now."""
    try:
        handle = os.open(root / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def make_private(folder: Path) -> None:
    """Make a folder that only its owner may enter: patients' data lie in it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextmanager
def opened_spool(root: Path, *, reserve: int = 0, maximum_images: int = 200) -> Iterator[Spool]:
    """A spool for the length of a block."""
    spool = Spool(root, reserve=reserve, maximum_images=maximum_images)
    try:
        yield spool
    finally:
        spool.close()


def _locked(root: Path) -> int:
    """The handle of the lock file, locked; the kernel unlocks it however the process ends."""
    try:
        make_private(root)
        root.chmod(0o700)
        handle = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"the spool cannot be used ({error.strerror}); choose another --spool"
        ) from error
    patience = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > patience:
                os.close(handle)
                raise ConfigError(
                    "another node works on this spool; stop it, or choose another --spool"
                ) from None
            time.sleep(0.05)


def _newest(images: Sequence[Path]) -> float:
    return max((path.stat().st_mtime for path in images), default=0.0)


def _write_durably(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_paths(*paths: Path) -> None:
    """Fsync folders or files, so that what they say outlives a crash of the machine."""
    _sync([os.open(path, os.O_RDONLY) for path in paths])


def _sync(handles: Sequence[int]) -> None:
    """Fsync and close."""
    try:
        for handle in handles:
            os.fsync(handle)
    finally:
        for handle in handles:
            os.close(handle)


def _append(path: Path, line: str) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        LOGGER.warning("a conflict could not be written down (%s)", error.strerror)
