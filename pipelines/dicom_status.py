"""`esad-med serve --status`: how a spool stands, read from its folders beside a running node."""

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esad_med.base.errors import ConfigError
from pipelines.outbox import Delivery, read_entries, read_peer
from pipelines.spool import PLACES, is_locked, read_conflicts, read_record

_SHOWN = 10  # set-aside studies in the text; --json has them all


@dataclass(frozen=True)
class SpoolStatus:
    """Counts of one spool, without identifiers.

    Attributes:
        running: whether a node works on it.
        images: kept now, in any state.
        waiting: studies to be triaged.
        triaged: studies that were, until their retention ends.
        set_aside: studies that could not be: short hash, error, message.
        unsent: result files on their way to the peer.
        sent: triages whose results have arrived, until their retention ends.
        last_error: of the last sending that failed; empty when all is well.
        next_try: seconds since 1970 when it is tried again; None when nothing waits for that.
        conflicts: images refused because another one has their SOP Instance UID.
        free_bytes: of the disk.
    """

    running: bool
    images: int
    waiting: int
    triaged: int
    set_aside: tuple[dict[str, str], ...]
    unsent: int
    sent: int
    last_error: str
    next_try: float | None
    conflicts: int
    free_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same for people."""
        lines = [
            f"node {'running' if self.running else 'not running'},"
            f" {self.free_bytes / 1e9:.1f} GB free",
            f"{self.images} images; studies: {self.waiting} waiting, {self.triaged} triaged,"
            f" {len(self.set_aside)} set aside",
            f"results: {self.unsent} unsent, {self.sent} studies' sent",
            f"{self.conflicts} conflicts"
            + (" (conflicts.jsonl in the spool)" if self.conflicts else ""),
        ]
        if self.last_error:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.next_try))
            lines.append(f"last sending failed: {self.last_error}; next try {when}")
        for study in self.set_aside[:_SHOWN]:
            lines.append(f"set aside {study['study']}: {study['error']}: {study['message']}")
        if len(self.set_aside) > _SHOWN:
            lines.append(f"and {len(self.set_aside) - _SHOWN} more (--json)")
        return lines


def read_status(root: Path) -> SpoolStatus:
    """Read how a spool stands; what moves meanwhile is counted before or after its move.

    Raises:
        ConfigError: no spool stands there.
    """
    if not (root / "lock").exists():
        raise ConfigError(
            "no spool stands there; give the folder that `serve` was given as --spool"
        )
    folders = {place: sorted((root / place).glob("*")) for place in PLACES}
    entries = read_entries(root, "outbox")
    failures = [state for state in (read_peer(root), *(e.delivery for e in entries)) if state.error]
    worst = max(failures, key=lambda state: state.next_try, default=Delivery())
    return SpoolStatus(
        running=is_locked(root),
        images=sum(1 for place in PLACES for _ in (root / place).glob("*/*.dcm")),
        waiting=len(folders["incoming"]),
        triaged=len(folders["done"]),
        set_aside=tuple(_reason(folder) for folder in folders["aside"]),
        unsent=sum(len(entry.unsent) for entry in entries),
        sent=len(read_entries(root, "sent")),
        last_error=worst.error,
        next_try=worst.next_try if worst.error else None,
        conflicts=len(read_conflicts(root)),
        free_bytes=shutil.disk_usage(root).free,
    )


def _reason(folder: Path) -> dict[str, str]:
    record = read_record(folder)
    return {"study": folder.name[:8], "error": record.error, "message": record.message}
