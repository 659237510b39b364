"""pynetdicom's server with limits of its own, so that no caller can lock the others out.

pynetdicom 3.0 counts connections that never ask for an association as associations, does the TLS
handshake in the thread that accepts connections, reads PDUs and data sets of any length into memory
and waits for the rest of a PDU without end. Each of it is bounded here.
"""

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import (
    AssociationSocket,
    RequestHandler,
    ThreadedAssociationServer,
)

from pipelines.dicom_settings import NodeConfig, server_tls

LOGGER = logging.getLogger(__name__)

OUT_OF_RESOURCES = 0xA700
TOO_LARGE = 0xA701  # of the same range, "refused: out of resources"

_MIB = 2**20
_LONGEST_REQUEST = _MIB  # bytes of an A-ASSOCIATE-RQ: 128 contexts of 20 syntaxes are 200 kB
_LONGEST_COMMAND = 65536  # bytes of a command set; a C-STORE's are 200
_MOST_QUEUED = 2  # messages sent before the answer to the first: we negotiate none


class Discarded(BytesIO):
    """A data set that was received and dropped; `status` says why."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status

    def write(self, content: Any) -> int:
        """Keep nothing."""
        return len(content)


class NodeEntity(AE):
    """An application entity that counts as associations only those that were asked for."""

    @property
    def active_associations(self) -> list[Association]:
        """The threads of associations, without the connections that said nothing yet."""
        found = super().active_associations
        return [a for a in found if a.is_requestor or a.requestor.primitive is not None]

    def held(self) -> int:
        """Bytes of all messages being received."""
        providers = [association.dimse for association in self.active_associations]
        return sum(p.held for p in providers if isinstance(p, BoundedProvider))


class BoundedProvider(DIMSEServiceProvider):
    """Receives messages, but keeps no more of a data set than is allowed."""

    def __init__(self, association: Association, entity: NodeEntity, config: NodeConfig) -> None:
        super().__init__(association)
        self._entity = entity
        self._largest = config.maximum_object
        self._memory = int(config.maximum_memory_mib * _MIB)
        self.held = 0
        self._data = self._command = 0

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take the next fragments of a message."""
        if self.message is None:
            self.message = DIMSEMessage()
            self.held = self._data = self._command = 0
        before = self._data
        for _, fragment in primitive.presentation_data_value_list:
            if fragment[0] & 1:
                self._command += len(fragment) - 1
            else:
                self._data += len(fragment) - 1
        if self._is_abuse():
            self.dul.event_queue.put("Evt19")  # an invalid PDU: the association is aborted
            return
        if not isinstance(self.message.data_set, Discarded):
            self.held = self._data
            if self._data > self._largest:
                self._discard(TOO_LARGE)
            elif before // _MIB != self._data // _MIB and self._entity.held() > self._memory:
                self._discard(OUT_OF_RESOURCES)
        super().receive_primitive(primitive)

    def _is_abuse(self) -> bool:
        return (
            self._command > _LONGEST_COMMAND
            or self._data > 4 * self._largest  # so far it is read, to be answered
            or self.msg_queue.qsize() >= _MOST_QUEUED
        )

    def _discard(self, status: int) -> None:
        assert self.message is not None
        self.message.data_set = Discarded(status)
        self.held = 0


class BoundedSocket(AssociationSocket):
    """Reads no PDU longer than `longest` bytes, and none that takes longer than `seconds`."""

    def __init__(
        self, association: Association, client: socket.socket, *, longest: int, seconds: float
    ) -> None:
        super().__init__(association, client_socket=client)
        self._longest = longest
        self._seconds = seconds

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes, or what came before the connection ended.

        Raises:
            OSError: too many were announced, or they take too long.
        """
        received = bytearray()
        try:
            if nr_bytes > self._longest:
                raise OSError("a PDU longer than allowed")
            received = self._read(nr_bytes)
        finally:
            unasked = self.assoc.requestor.primitive is None
            if len(received) < nr_bytes and unasked:  # ends the thread that waits for a request
                queue: Any = self.assoc.dul.to_user_queue
                queue.put(None)  # read as a timeout
        return received

    def _read(self, nr_bytes: int) -> bytearray:
        assert self.socket is not None
        received = bytearray(nr_bytes)
        view, count = memoryview(received), 0
        deadline = time.monotonic() + self._seconds
        while count < nr_bytes:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("a PDU that takes too long")
            self.socket.settimeout(left)
            more = self.socket.recv_into(view[count:])
            if not more:
                break
            count += more
        self.socket.settimeout(self._seconds)
        return bytearray(view[:count])


class NodeHandler(RequestHandler):
    """Makes the associations of a `NodeServer`."""

    def _create_association(self) -> Association:
        association = super()._create_association()
        server = self.server
        assert isinstance(server, NodeServer)
        config = server.config
        association.dimse = BoundedProvider(association, server.entity, config)
        association.dul.event_queue.get_nowait()  # the first socket's "connected"; ours says it
        association.dul.socket = BoundedSocket(
            association,
            self.request,
            longest=max(config.maximum_pdu, _LONGEST_REQUEST),
            seconds=config.network_timeout,
        )
        return association


class NodeServer(ThreadedAssociationServer):
    """Accepts connections; of those that say nothing the oldest give way to new ones."""

    daemon_threads = True
    request_queue_size = 128
    entity: NodeEntity
    config: NodeConfig

    def __init__(self, entity: NodeEntity, *arguments: Any, **named: Any) -> None:
        self._pending: dict[socket.socket, None] = {}  # in the order of their coming
        self._guard = threading.Lock()
        self.entity = entity
        self.config = named.pop("config")
        super().__init__(entity, *arguments, **named)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a connection; its TLS handshake is done in its own thread."""
        assert self.socket is not None
        client, address = self.socket.accept()
        client.settimeout(self.config.acse_timeout)
        if self.ssl_context:
            client = self.ssl_context.wrap_socket(
                client, server_side=True, do_handshake_on_connect=False
            )
        self._make_room(client)
        return client, address

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Do the TLS handshake, then hand the connection to an association."""
        if isinstance(request, ssl.SSLSocket):
            request.do_handshake()
        super().finish_request(request, client_address)

    def asked(self, client: socket.socket | None) -> None:
        """Note that a connection asked for an association."""
        with self._guard:
            self._pending.pop(client, None)  # type: ignore[arg-type] # None is simply not in it

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note a connection that failed, without its address or a traceback."""
        LOGGER.info("a connection failed before it asked for an association")

    def drop_pending(self) -> None:
        """End the connections that said nothing yet."""
        with self._guard:
            for client in self._pending:
                _cut(client)

    def _make_room(self, newcomer: socket.socket) -> None:
        with self._guard:
            self._pending = {client: None for client in self._pending if client.fileno() >= 0}
            while len(self._pending) >= self.config.maximum_pending:
                oldest = next(iter(self._pending))
                del self._pending[oldest]
                _cut(oldest)
            self._pending[newcomer] = None


def start_server(
    config: NodeConfig,
    contexts: list[PresentationContext],
    handlers: list[tuple[evt.InterventionEvent, Callable[[evt.Event], int]]],
) -> NodeServer:
    """Listen, and serve in a thread of its own.

    Raises:
        ConfigError: TLS files that cannot be used.
        OSError: the address cannot be listened on.
    """
    entity = NodeEntity(config.ae_title)
    entity.require_called_aet = config.require_called_ae
    entity.require_calling_aet = list(config.allow)
    entity.maximum_associations = config.maximum_associations
    entity.maximum_pdu_size = config.maximum_pdu
    entity.acse_timeout = config.acse_timeout
    entity.dimse_timeout = config.dimse_timeout
    entity.network_timeout = config.network_timeout
    server = entity.make_server(
        (config.host, config.port),
        contexts=contexts,
        ssl_context=server_tls(config),
        evt_handlers=[(evt.EVT_REQUESTED, _note_request), *handlers],
        server_class=NodeServer,
        request_handler=NodeHandler,
        config=config,
    )
    assert isinstance(server, NodeServer)
    entity._servers.append(server)
    threading.Thread(target=server.serve_forever, name="dicom accept", daemon=True).start()
    return server


def stop_server(server: NodeServer, *, seconds: float) -> None:
    """Accept nothing more, abort what is open, and wait a little for the threads to end."""
    server.shutdown()
    server.drop_pending()
    for association in server.active_associations:
        if association.is_established:
            association.abort(block=False)
    deadline = time.monotonic() + seconds
    while server.active_associations and time.monotonic() < deadline:
        time.sleep(0.02)
    for association in server.active_associations:
        transport = association.dul.socket
        if transport is not None and transport.socket is not None:
            _cut(transport.socket)


def _note_request(event: evt.Event) -> None:
    server, transport = event.assoc._server, event.assoc.dul.socket
    if isinstance(server, NodeServer) and transport is not None:
        server.asked(transport.socket)


def _cut(client: socket.socket) -> None:
    """Shut a connection down under whoever reads it; TLS's own way would wait for the other."""
    with suppress(OSError):
        socket.socket.shutdown(client, socket.SHUT_RDWR)
