"""`esad-med serve`: images come in, studies are triaged, results go to the peer.

    C-STORE ──┐                        quiet                                      peer
              ├─ Intake ─ Spool ─ incoming/ ─ Worker(Triage) ─ Outbox ─ outbox/ ─ Sender ─ C-STORE
    --watch ──┘

Each arrow ends on the disk before its start is forgotten, so the node may die anywhere. It knows no
detector: it is handed a `Triage`.
"""

import errno
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from pynetdicom import _config as pynetdicom_config
from pynetdicom import build_context, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined] # made at import

from esad_med.base.errors import ConfigError, ImageError
from esad_med.base.runs import Say
from pipelines.dicom_header import read_identity
from pipelines.dicom_intake import SOP_CLASSES, SYNTAXES, Intake
from pipelines.dicom_metrics import Metrics, counting
from pipelines.dicom_sender import Sender
from pipelines.dicom_server import (
    OUT_OF_RESOURCES,
    TOO_LARGE,
    BoundedProvider,
    Discarded,
    NodeServer,
    start_server,
    stop_server,
)
from pipelines.dicom_settings import NodeConfig
from pipelines.dicom_watch import FolderWatch
from pipelines.dicom_worker import Triage, Worker
from pipelines.outbox import Backoff, Outbox
from pipelines.spool import Spool, SpoolFullError, opened_spool

__all__ = ["Node", "NodeConfig", "Triage", "serve"]

LOGGER = logging.getLogger(__name__)

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
DUPLICATE_INSTANCE = 0x0111
MISMATCH = 0xA900
UNREADABLE = 0xC000
_REFUSED = {
    OUT_OF_RESOURCES: "full",
    TOO_LARGE: "too_large",
    PROCESSING_FAILURE: "error",
    MISMATCH: "mismatch",
    UNREADABLE: "unreadable",
}

_HOUR = 3600.0
_TICK = 0.2


class Node:
    """A running node on an open spool.

    Args:
        spool: where images are kept; this process holds its lock.
        triage: what is done with a complete study.
        config: names, limits, peer.
        watch: a folder to take files from, instead of listening.
        metrics: counts what happens.
        say: one line per event, without identifiers.

    Raises:
        ConfigError: an address that cannot be listened on, TLS files that cannot be used, a watched
            folder that cannot be written to.
    """

    def __init__(
        self,
        spool: Spool,
        triage: Triage,
        config: NodeConfig,
        *,
        watch: Path | None = None,
        metrics: Metrics | None = None,
        say: Say,
    ) -> None:
        _quiet_pynetdicom()
        self._metrics = metrics = metrics or Metrics()
        self._config = config
        self._spool = spool
        self._say = say
        self._stopping = threading.Event()
        self._storing = 0
        self._stored = threading.Condition()
        backoff = Backoff(config.retry_seconds, config.retry_cap_seconds)
        self._outbox = Outbox(spool.root, backoff=backoff)
        self._intake = Intake(spool, self._outbox, metrics=metrics, say=say)
        self._worker = Worker(spool, self._outbox, triage, config, metrics=metrics, say=say)
        loops: dict[str, Callable[[threading.Event], None]] = {"triage": self._worker.run}
        if config.destination is not None:
            sender = Sender(self._outbox, config.destination, config, metrics=metrics, say=say)
            loops["sending"] = sender.run
        self._server: NodeServer | None = None
        if watch is None:
            self._server = self._listen()
        else:
            folder = FolderWatch(watch, self._intake, config, metrics=metrics, say=say)
            loops["watching"] = folder.run
        self._threads = {
            name: threading.Thread(target=loop, args=(self._stopping,), name=name, daemon=True)
            for name, loop in loops.items()
        }
        for thread in self._threads.values():
            thread.start()

    @property
    def port(self) -> int:
        """The port that is listened on; 0 for a watched folder."""
        return 0 if self._server is None else int(self._server.server_address[1])

    def check(self) -> None:
        """Notice a thread that died, which nothing here expects.

        Raises:
            RuntimeError: one did; the process should end and be started again.
        """
        for name, thread in self._threads.items():
            if not thread.is_alive():
                raise RuntimeError(f"the thread for {name} died")

    def tidy(self) -> None:
        """Remove what is older than its retention; nothing unsent, nothing untriaged."""
        config, unsent = self._config, self._outbox.has_unsent
        removed = self._spool.remove_older("done", config.retention_days, keep=unsent)
        if config.set_aside_days is not None:
            removed += self._spool.remove_older("aside", config.set_aside_days, keep=unsent)
        self._outbox.remove_older(config.retention_days)
        if removed:
            self._say(f"{removed} studies removed after their retention")

    def stop(self) -> None:
        """Accept nothing more, finish the stores under way, leave the rest for the next start.

        A triage that outlives `stop_seconds` is left running in its thread; it does not count as an
        attempt, and is done again.
        """
        deadline = time.monotonic() + self._config.stop_seconds
        self._stopping.set()
        if self._server is not None:
            with self._stored:
                self._stored.wait_for(lambda: not self._storing, self._config.stop_seconds)
            stop_server(self._server, seconds=1.0)
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._threads["triage"].is_alive():
            self._worker.forget_running()

    def _listen(self) -> NodeServer:
        contexts = [build_context(kind, list(SYNTAXES)) for kind in SOP_CLASSES]
        try:
            return start_server(
                self._config,
                [build_context(Verification), *contexts],
                [(evt.EVT_C_STORE, self._on_store)],
            )
        except OSError as error:
            reason = "in use" if error.errno == errno.EADDRINUSE else error.strerror
            raise ConfigError(
                f"{self._config.host}:{self._config.port} cannot be listened on ({reason});"
                " choose another --host or --port"
            ) from error

    def _on_store(self, event: evt.Event) -> int:
        """Answer a C-STORE; success means that the image is on the disk to stay."""
        with self._stored:
            if self._stopping.is_set():
                return OUT_OF_RESOURCES  # the sender tries again when the node is back
            self._storing += 1
        status = self._answer(event)
        if status in _REFUSED:
            self._metrics.count("images", _REFUSED[status])
        return status

    def _answer(self, event: evt.Event) -> int:
        try:
            return self._store(event)
        except SpoolFullError as error:
            self._say(f"an image refused: {error}")
            return OUT_OF_RESOURCES
        except ImageError as error:
            self._say(f"an image refused: {error}")
            return UNREADABLE
        except Exception as error:  # of the disk; anything unanswered would hang the sender
            LOGGER.error("an image refused: %s", type(error).__name__)
            return PROCESSING_FAILURE
        finally:
            if isinstance(event.assoc.dimse, BoundedProvider):
                event.assoc.dimse.held = 0
            with self._stored:
                self._storing -= 1
                self._stored.notify_all()

    def _store(self, event: evt.Event) -> int:
        request, syntax = cast(C_STORE, event.request), str(event.context.transfer_syntax)
        if isinstance(request.DataSet, Discarded):
            self._say("an image refused: too large, or too many at a time")
            return request.DataSet.status
        identity = read_identity(event.encoded_dataset(include_meta=False), syntax)
        command = (str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        found = (identity.sop_class, identity.sop_instance)
        if command != found or command[0] != str(event.context.abstract_syntax):
            self._say("an image refused: it is not what its C-STORE says")
            return MISMATCH
        outcome = self._intake.take(identity, event.encoded_dataset())
        return DUPLICATE_INSTANCE if outcome == "conflict" else SUCCESS


def serve(
    spool: Path,
    triage: Triage,
    config: NodeConfig,
    *,
    watch: Path | None = None,
    say: Say,
    stop: threading.Event,
    started: Callable[[int], None] = lambda _: None,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Run a node until stopped.

    Args:
        spool: its folder.
        triage: what is done with a complete study.
        config: names, limits, peer.
        watch: a folder to take files from, instead of listening.
        say: one line per event.
        stop: ends the node when set.
        started: called with the port once the node listens.
        tick: called several times a second; what it raises ends the node.

    Raises:
        ConfigError: the spool is in use or cannot be written, or see `Node`.
        RuntimeError: a thread of the node died.
    """
    with (
        opened_spool(spool, reserve=config.reserve, maximum_images=config.maximum_images) as opened,
        counting(spool, config, say=say) as metrics,
    ):
        node = Node(opened, triage, config, watch=watch, metrics=metrics, say=say)
        try:
            started(node.port)
            tidied = 0.0
            while not stop.wait(_TICK):
                tick()
                node.check()
                if not tidied or time.monotonic() - tidied > _HOUR:
                    tidied = time.monotonic()
                    _tidy(node)
        finally:
            node.stop()


def _tidy(node: Node) -> None:
    try:
        node.tidy()
    except OSError as error:
        LOGGER.error("nothing removed now (%s)", error.strerror)


def _quiet_pynetdicom() -> None:
    """Keep pynetdicom from logging what passes through it: AE titles, UIDs, addresses."""
    pynetdicom_config.LOG_HANDLER_LEVEL = "none"
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
