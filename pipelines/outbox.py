"""The outbox: results on their way to the peer, in order, tried until they have arrived.

    SPOOL/outbox/ENTRY/     the results of one triage that are not all with the peer yet
    SPOOL/sent/ENTRY/       those that are, until retention removes them
    SPOOL/outbox/peer.json  since when the peer cannot be reached at all

ENTRY is NUMBER-STUDY-IMAGES: counted in the order of the triages, so that a study's second result
never overtakes its first, and told apart by the set of images, so that a triage repeated after a
crash puts nothing in twice. ``entry.json`` says what is in it, ``state.json`` how far it got.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from esad_med.base.errors import ConfigError, ImageError
from esad_med.base.runs import read_json, write_json
from pipelines.dicom_header import hashed, read_identity, split_file
from pipelines.spool import make_private, sync_paths

_DIGEST = 16  # hexadecimal digits of the image set in an entry's name


@dataclass(frozen=True)
class Backoff:
    """Waits between failures: `first` seconds, doubling, never above `cap`."""

    first: float
    cap: float

    def wait(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        return min(self.first * 2.0 ** min(max(failures - 1, 0), 60), self.cap)


@dataclass(frozen=True)
class Delivery:
    """How far a sending got: an entry's ``state.json``, or ``peer.json``.

    Attributes:
        sent: names of the files that the peer has.
        failures: in a row, since the last success.
        next_try: seconds since 1970.
        error: the last failure, without identifiers.
    """

    sent: tuple[str, ...] = ()
    failures: int = 0
    next_try: float = 0.0
    error: str = ""

    def failed(self, error: str, backoff: Backoff) -> "Delivery":
        """The same after one more failure."""
        failures = self.failures + 1
        when = time.time() + backoff.wait(failures)
        return replace(self, failures=failures, next_try=when, error=error)

    def seconds_left(self, backoff: Backoff) -> float:
        """Until the next try; never more than the cap, whatever became of the clock."""
        return min(self.next_try - time.time(), backoff.cap) if self.failures else 0.0


@dataclass(frozen=True)
class Entry:
    """The results of one triage."""

    folder: Path
    number: int
    study: str
    images: str
    delivery: Delivery = field(default_factory=Delivery)

    @property
    def files(self) -> list[Path]:
        """All its result files, in the order the triage named them."""
        return sorted(self.folder.glob("*.dcm"))

    @property
    def unsent(self) -> list[Path]:
        """Those that the peer does not have yet."""
        return [path for path in self.files if path.name not in self.delivery.sent]


class Outbox:
    """The results of one spool. The triage adds, one sender takes; both may do so at a time."""

    def __init__(self, root: Path, *, backoff: Backoff) -> None:
        self.root = root
        self.backoff = backoff
        self._mutex = Lock()
        for name in ("outbox", "sent"):
            make_private(root / name)
        for left in (root / "outbox").glob(".*"):
            shutil.rmtree(left, ignore_errors=True)  # half put together when the node died
        entries = [*read_entries(root, "outbox"), *read_entries(root, "sent")]
        self._next = max((entry.number for entry in entries), default=0) + 1
        self._own = {name for entry in entries for name in _objects(entry.folder)}

    def holds(self, study: str, images: str) -> bool:
        """Whether results of this set of images were put in before."""
        name = f"[0-9]*-{study}-{images[:_DIGEST]}"
        return any(True for where in ("outbox", "sent") for _ in (self.root / where).glob(name))

    def is_own(self, sop_instance: str) -> bool:
        """Whether this is an object of ours: a PACS that sends it back must not start a loop."""
        return hashed(sop_instance) in self._own

    def add(self, study: str, images: str, files: Sequence[Path]) -> None:
        """Put the results of a triage in, durably and all at once. The files are moved.

        Args:
            study: hash of the study.
            images: which set of images was triaged.
            files: DICOM files on the disk of the spool, in the order they shall arrive.

        Raises:
            ImageError: a file that is not DICOM.
            OSError: the disk fails.
        """
        objects = [hashed(_sop_instance(path)) for path in files]
        with self._mutex:
            name = f"{self._next:08d}-{study}-{images[:_DIGEST]}"
            partial = self.root / "outbox" / f".{name}"
            shutil.rmtree(partial, ignore_errors=True)  # of a try that the full disk ended
            partial.mkdir(mode=0o700)
            for index, path in enumerate(files):
                path.chmod(0o600)
                path.rename(partial / f"{index:04d}.dcm")
            write_json(partial / "entry.json", {"objects": objects})
            sync_paths(*partial.iterdir(), partial)
            partial.rename(self.root / "outbox" / name)
            sync_paths(self.root / "outbox")
            self._own.update(objects)
            self._next += 1

    def due(self) -> Iterator[Entry]:
        """Entries to be sent now: of each study the first unsent, once its wait is over.

        Raises:
            OSError: the outbox cannot be read.
        """
        waiting = set()
        for entry in read_entries(self.root, "outbox"):
            if not entry.unsent:  # the node died before it was moved
                self._complete(entry)
                continue
            if entry.study not in waiting and entry.delivery.seconds_left(self.backoff) <= 0:
                yield entry
            waiting.add(entry.study)

    def mark_sent(self, entry: Entry, file: Path) -> Entry:
        """Note that the peer has this file; the last one moves the entry to ``sent``."""
        delivery = Delivery(sent=(*entry.delivery.sent, file.name))
        entry = replace(entry, delivery=delivery)
        write_json(entry.folder / "state.json", asdict(delivery))
        if not entry.unsent:
            self._complete(entry)
        return entry

    def mark_failed(self, entry: Entry, error: str) -> None:
        """Note that the peer refused it; it is tried again later."""
        delivery = entry.delivery.failed(error, self.backoff)
        write_json(entry.folder / "state.json", asdict(delivery))

    def peer_failed(self, error: str) -> None:
        """Note that the peer cannot be reached; nothing is sent before the next try."""
        state = read_peer(self.root).failed(error, self.backoff)
        write_json(self.root / "outbox" / "peer.json", asdict(state))

    def peer_answered(self) -> None:
        """Note that the peer can be reached, and so let everything be sent again."""
        (self.root / "outbox" / "peer.json").unlink(missing_ok=True)

    def peer_is_due(self) -> bool:
        """Whether the peer may be called now."""
        return read_peer(self.root).seconds_left(self.backoff) <= 0

    def has_unsent(self, study: str) -> bool:
        """Whether results of this study wait."""
        return any(True for _ in (self.root / "outbox").glob(f"[0-9]*-{study}-*"))

    def remove_older(self, days: float) -> int:
        """Remove what was sent so many days ago.

        Returns:
            How many entries.
        """
        limit = time.time() - days * 86400
        entries = read_entries(self.root, "sent")
        old = [entry for entry in entries if entry.folder.stat().st_mtime < limit]
        for entry in old:
            shutil.rmtree(entry.folder, ignore_errors=True)
        return len(old)

    def _complete(self, entry: Entry) -> None:
        with self._mutex:
            entry.folder.rename(self.root / "sent" / entry.folder.name)


def read_entries(root: Path, where: str) -> list[Entry]:
    """The entries of ``outbox`` or ``sent``, in their order; a damaged state means unsent."""
    entries = []
    for folder in sorted((root / where).glob("[0-9]*-*-*")):
        number, study, images = folder.name.split("-", 2)
        if number.isdecimal():
            entries.append(Entry(folder, int(number), study, images, read_delivery(folder)))
    return entries


def read_delivery(folder: Path) -> Delivery:
    """How far an entry got."""
    return _delivery(folder / "state.json")


def read_peer(root: Path) -> Delivery:
    """Whether the peer could be reached lately."""
    return _delivery(root / "outbox" / "peer.json")


def _delivery(path: Path) -> Delivery:
    try:
        values: dict[str, Any] = read_json(path, ConfigError)
        return Delivery(
            tuple(map(str, values["sent"])),
            int(values["failures"]),
            float(values["next_try"]),
            str(values["error"]),
        )
    except (ConfigError, KeyError, TypeError, ValueError):
        return Delivery()  # sent again: the peer knows the object by its UID


def _objects(folder: Path) -> list[str]:
    try:
        return list(map(str, read_json(folder / "entry.json", ConfigError)["objects"]))
    except (ConfigError, KeyError, TypeError):
        return []


def _sop_instance(path: Path) -> str:
    try:
        syntax, data = split_file(path.read_bytes())
        return read_identity(data, syntax).sop_instance
    except ImageError as error:
        raise ImageError(f"a result of the triage cannot be sent: {error}") from error
