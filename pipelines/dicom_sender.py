"""Sending the outbox to the peer with C-STORE; a peer that is down only makes results wait."""

import logging
import threading
from collections.abc import Sequence

from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.association import Association

from esad_med.base.errors import EsadError
from esad_med.base.runs import Say
from pipelines.dicom_metrics import Metrics
from pipelines.dicom_settings import NodeConfig, Peer, client_tls
from pipelines.outbox import Entry, Outbox

LOGGER = logging.getLogger(__name__)

_PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_DUPLICATE = 0x0111  # our UIDs are made of the content: a duplicate is the very same object
_NOT_TAKEN = "the peer takes no objects of this kind or encoding"
_POLL_SECONDS = 0.5


class Sender:
    """Sends what is due in an outbox to one peer.

    Raises:
        ConfigError: TLS files that cannot be used.
    """

    def __init__(
        self,
        outbox: Outbox,
        peer: Peer,
        config: NodeConfig,
        *,
        metrics: Metrics | None = None,
        say: Say,
    ) -> None:
        self._outbox = outbox
        self._peer = peer
        self._config = config
        self._tls = client_tls(config)
        self._metrics = metrics or Metrics()
        self._say = say

    def run(self, stop: threading.Event) -> None:
        """Send until stopped."""
        while not stop.wait(_POLL_SECONDS):
            try:
                self.send_due(stop)
            except (OSError, EsadError) as error:  # the disk is full: results wait
                LOGGER.error("the outbox cannot be used (%s)", type(error).__name__)
                stop.wait(self._config.retry_seconds)

    def send_due(self, stop: threading.Event) -> None:
        """Send every entry that is due, until done, stopped, or the peer is lost.

        Raises:
            OSError: the outbox cannot be read.
            ConfigError: its state cannot be written.
        """
        if not self._outbox.peer_is_due():
            return
        for entry in self._outbox.due():
            try:
                if stop.is_set() or not self._send_entry(entry, stop):
                    return
            except (OSError, EsadError):
                raise
            except Exception as error:  # a file damaged on the disk can raise anything
                self._failed(entry, f"it cannot be read ({type(error).__name__})")

    def _send_entry(self, entry: Entry, stop: threading.Event) -> bool:
        """Send one triage's results over one association; False: the peer cannot be reached."""
        datasets = [(path, dcmread(path)) for path in entry.unsent]
        association = self._associate([dataset for _, dataset in datasets])
        try:
            if not association.is_established and not association.rejected_contexts:
                reason = "refused" if association.is_rejected else "not reached"
                self._peer_failed(f"association with the peer {reason}")
                return False
            self._outbox.peer_answered()
            if not association.is_established:
                self._failed(entry, _NOT_TAKEN)
                return True
            for path, dataset in datasets:
                with self._metrics.timed("send"):
                    failure = _store(association, dataset)
                if failure is not None:  # a later object must not overtake it
                    self._failed(entry, failure)
                    return True
                entry = self._outbox.mark_sent(entry, path)
                self._metrics.count("results", "sent")
                if stop.is_set():
                    return True
            self._say(f"study {entry.study[:8]}: {len(datasets)} results sent")
            return True
        finally:
            if association.is_established:
                association.release()

    def _associate(self, datasets: Sequence[Dataset]) -> Association:
        config = self._config
        entity = AE(config.ae_title)
        entity.acse_timeout = config.acse_timeout
        entity.dimse_timeout = config.dimse_timeout
        entity.network_timeout = config.network_timeout
        entity.connection_timeout = config.acse_timeout
        kinds = {(str(ds.SOPClassUID), str(ds.file_meta.TransferSyntaxUID)) for ds in datasets}
        return entity.associate(
            self._peer.host,
            self._peer.port,
            # what is not compressed may be asked for in the syntax that everybody must know
            contexts=[
                build_context(kind, list(_PLAIN) if syntax in _PLAIN else syntax)
                for kind, syntax in sorted(kinds)
            ],
            ae_title=self._peer.ae_title,
            max_pdu=config.maximum_pdu,
            tls_args=(self._tls, self._peer.host) if self._tls else None,
        )

    def _failed(self, entry: Entry, reason: str) -> None:
        self._outbox.mark_failed(entry, reason)
        self._metrics.count("results", "failed")
        self._say(f"study {entry.study[:8]}: result not sent ({reason}), tried again later")

    def _peer_failed(self, reason: str) -> None:
        self._outbox.peer_failed(reason)
        self._metrics.count("results", "failed")
        self._say(f"results wait: {reason}")


def _store(association: Association, dataset: Dataset) -> str | None:
    """Send one object; None when the peer has it, or why it has not."""
    try:
        status = association.send_c_store(dataset)
    except ValueError:  # pynetdicom's words for a context that was not accepted
        return _NOT_TAKEN
    except RuntimeError:
        return "the peer ended the association"
    if "Status" not in status:
        return "the peer ended the association"
    code = int(status.Status)
    if code in (0x0000, _DUPLICATE) or 0xB000 <= code <= 0xBFFF:
        return None
    return f"status 0x{code:04X}"
