"""The DICOM node as its neighbors see it: by the network, by kill -9, by what lies in its spool."""

import errno
import io
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType

import pytest
from dicom_objects import (
    STORESCU,
    NodeProcess,
    compose,
    encoded,
    free_port,
    shut_down,
    storescu,
    uid,
    wait_for,
    write,
)
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.transport import AssociationSocket

import esad_med.cli.serve  # noqa: F401 # registers the command
from esad_med.base.config import build_spec
from esad_med.base.errors import ConfigError
from esad_med.base.execution import Place, in_order, open_executor
from esad_med.base.limits import Limits
from pipelines.dicom_header import content_digest, hashed, read_identity, split_file
from pipelines.dicom_settings import NodeConfig
from pipelines.dicom_status import read_status
from pipelines.dicom_worker import Worker
from pipelines.outbox import Backoff, Outbox, read_entries
from pipelines.spool import PLACES, Spool, opened_spool, read_conflicts, read_record


@pytest.fixture(autouse=True)
def closed_sockets(monkeypatch):
    """pynetdicom 3.0 leaves a client's socket that reached nobody to the garbage collector."""
    monkeypatch.setattr(AssociationSocket, "_shutdown_socket", shut_down)


needs_dcmtk = pytest.mark.skipif(not STORESCU, reason="dcmtk is not installed")


@pytest.fixture
def spool(tmp_path):
    return tmp_path / "spool"


@contextmanager
def association(port, *, kind=ComputedRadiographyImageStorage, called="ESAD", calling="TESTER"):
    entity = AE(calling)
    entity.acse_timeout = entity.dimse_timeout = entity.connection_timeout = 10
    entity.add_requested_context(kind, "1.2.840.10008.1.2.1")
    entity.add_requested_context("1.2.840.10008.1.1")
    opened = entity.associate("127.0.0.1", port, ae_title=called)
    try:
        yield opened
    finally:
        if opened.is_established:
            opened.release()


def send(port, *datasets):
    """The status of each C-STORE."""
    with association(port) as opened:
        assert opened.is_established
        return [int(opened.send_c_store(ds).Status) for ds in datasets]


def send_raw(opened, sop_instance, data, *, kind=ComputedRadiographyImageStorage):
    """A C-STORE that says one thing and carries another; pynetdicom would not send it."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID = kind
    request.AffectedSOPInstanceUID = sop_instance
    request.DataSet = io.BytesIO(data)
    opened._reactor_checkpoint.clear()
    wait_for(lambda: opened._is_paused)
    try:
        opened.dimse.send_msg(request, 1)
        _, answer = opened.dimse.get_msg(block=True)
    finally:
        opened._reactor_checkpoint.set()
    return None if answer is None else int(answer.Status)


def kept(spool):
    """What the spool holds: the digest of each image by its name."""
    paths = [path for place in PLACES for path in (spool / place).glob("*/*.dcm")]
    return {path.name: content_digest(*split_file(path.read_bytes())) for path in paths}


def expected(*datasets):
    return {
        f"{hashed(ds.SOPInstanceUID)}.dcm": content_digest(*split_file(encoded(ds)))
        for ds in datasets
    }


def studies(spool, place):
    return sorted(path.name for path in (spool / place).iterdir())


@contextmanager
def pacs(port=None, received=None):
    """A peer that keeps what it is sent."""
    entity = AE("PACS")
    entity.add_supported_context(SecondaryCaptureImageStorage)

    def store(event):
        ds = event.dataset
        ds.file_meta = event.file_meta
        received.append(ds)
        return 0x0000

    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)]
    )
    try:
        yield
    finally:
        server.shutdown()


@needs_dcmtk
def test_dcmtk_sends_a_study_that_is_triaged_and_only_hashes_show(spool, tmp_path):
    images = [compose("s1", "a"), compose("s1", "b"), compose("s2", "a")]
    files = [write(tmp_path / f"{index}.dcm", ds) for index, ds in enumerate(images)]
    with NodeProcess(spool) as node:
        echo = ["echoscu", "-aet", "TESTER", "-aec", "ESAD", "127.0.0.1", str(node.port)]
        assert subprocess.run(echo, check=False).returncode == 0
        assert storescu(node.port, *files).returncode == 0
        assert kept(spool) == expected(*images)
        wait_for(lambda: len(studies(spool, "done")) == 2)
        status = read_status(spool)
        assert (status.running, status.images, status.triaged, status.unsent) == (True, 3, 2, 2)
        assert node.terminate() == 0
    assert not read_status(spool).running
    shown = node.log.read_text() + "".join(map(str, spool.rglob("*")))
    shown += (spool / "done" / studies(spool, "done")[0] / "study.json").read_text()
    for secret in ("Doe", "4711", uid("s1"), images[0].SOPInstanceUID, "TESTER", str(tmp_path)):
        assert secret not in shown.replace(str(spool), "")
    assert "triaged" in shown


@pytest.mark.parametrize(
    ("settings", "calling", "called", "welcome"),
    [
        ({}, "ANYBODY", "ESAD", True),
        ({}, "ANYBODY", "OTHER", False),
        ({"require_called_ae": False}, "ANYBODY", "OTHER", True),
        ({"allow": ["MODALITY", "PACS"]}, "PACS", "ESAD", True),
        ({"allow": ["MODALITY", "PACS"]}, "ANYBODY", "ESAD", False),
    ],
)
def test_only_known_callers_that_call_us_get_in(spool, settings, calling, called, welcome):
    with (
        NodeProcess(spool, **settings) as node,
        association(node.port, calling=calling, called=called) as opened,
    ):
        assert opened.is_established is welcome
        assert opened.is_rejected is not welcome


def test_kinds_that_are_no_radiographs_are_not_negotiated(spool):
    kind = DigitalXRayImageStorageForProcessing
    with NodeProcess(spool) as node, association(node.port, kind=kind) as opened:
        assert [str(c.abstract_syntax) for c in opened.rejected_contexts] == [kind]


@pytest.mark.timeout(60)
def test_idle_sockets_lock_nobody_out(spool):
    settings = {"maximum_associations": 2, "maximum_pending": 20, "acse_timeout": 60}
    with NodeProcess(spool, **settings) as node, ExitStack() as stack:
        begun = time.monotonic()
        idle = [
            stack.enter_context(socket.create_connection(("127.0.0.1", node.port)))
            for _ in range(60)
        ]
        for index, client in enumerate(idle[45:]):  # some begin a request, and stop in it
            client.sendall(b"\1\0\0\0\2\0"[: index % 7])
        for index in range(5):
            assert send(node.port, compose("s1", index)) == [0]
        assert time.monotonic() - begun < 15
        idle[0].settimeout(5)
        assert idle[0].recv(1) == b""  # the oldest gave way


@pytest.mark.timeout(60)
def test_a_connection_that_says_nothing_is_ended_soon(spool):
    with (
        NodeProcess(spool, acse_timeout=0.5) as node,
        socket.create_connection(("127.0.0.1", node.port), timeout=10) as client,
    ):
        assert client.recv(1) == b""


@pytest.mark.timeout(60)
def test_a_request_of_gigabytes_is_not_read(spool):
    with NodeProcess(spool, network_timeout=30) as node:
        with socket.create_connection(("127.0.0.1", node.port), timeout=10) as client:
            client.sendall(b"\1\0\xff\xff\xff\xff" + b"\0" * 1000)
            with suppress(ConnectionResetError):  # depends on what was read before the end
                assert client.recv(1) == b""
        assert send(node.port, compose()) == [0]


@pytest.mark.timeout(60)
def test_a_request_that_trickles_in_is_given_up(spool):
    with NodeProcess(spool, network_timeout=1, acse_timeout=1) as node:
        with socket.create_connection(("127.0.0.1", node.port), timeout=10) as client:
            client.sendall(b"\1\0\0\0\1\0")

            def trickle():
                try:
                    client.sendall(b"\0")
                except OSError:
                    return True
                return False

            wait_for(trickle, seconds=10, every=0.1)
        assert send(node.port, compose()) == [0]


def test_an_association_more_than_allowed_is_refused_for_now(spool):
    with (
        NodeProcess(spool, maximum_associations=1) as node,
        association(node.port) as first,
    ):
        assert first.is_established
        with association(node.port) as second:
            assert second.is_rejected
        first.release()

        def welcome():
            with association(node.port) as third:
                return third.is_established

        wait_for(welcome, seconds=5)


@pytest.mark.parametrize(
    ("said", "study", "status"),
    [
        ("../../etc/passwd", None, 0xA900),
        ("1.2.3", None, 0xA900),
        (None, "../../../../tmp/x", 0xC000),
        (None, "/etc/passwd", 0xC000),
    ],
)
def test_uids_that_lie_or_are_paths_are_refused(spool, said, study, status):
    ds = compose()
    data = split_file(encoded(ds))[1]
    if study:
        own = uid("s1").encode()
        data = data.replace(own, study.encode().ljust(len(own), b"\0"))
    with NodeProcess(spool) as node, association(node.port) as opened:
        assert send_raw(opened, said or ds.SOPInstanceUID, data) == status
        assert send_raw(opened, ds.SOPInstanceUID, split_file(encoded(ds))[1]) == 0
    assert kept(spool) == expected(ds)


def test_paths_as_uids_on_both_sides_stay_outside(spool):
    ds = compose()
    own, path = ds.SOPInstanceUID.encode(), b"../../etc/passwd"
    data = split_file(encoded(ds))[1].replace(own, path.ljust(len(own), b"\0"))
    before = {p for p in spool.parent.rglob("*") if "spool" not in p.name}
    with NodeProcess(spool) as node, association(node.port) as opened:
        assert send_raw(opened, path.decode(), data) == 0xC000
    assert kept(spool) == {}
    after = {p for p in spool.parent.rglob("*") if p != spool and spool not in p.parents}
    assert {p.name for p in after - before} <= {"spool.log"}


@pytest.mark.parametrize("data", [b"", b"\0", b"garbage" * 99, encoded(compose())[:300]])
def test_what_cannot_be_read_is_refused_and_the_association_goes_on(spool, data):
    with NodeProcess(spool) as node, association(node.port) as opened:
        assert send_raw(opened, "1.2.3", data or b"\0") == 0xC000
        assert int(opened.send_c_store(compose()).Status) == 0


def test_the_same_image_again_changes_nothing_and_another_one_is_a_conflict(spool):
    first, other = compose(value=1), compose(value=2)
    with NodeProcess(spool) as node:
        assert send(node.port, first, first) == [0, 0]
        wait_for(lambda: studies(spool, "done"))
        assert send(node.port, first, other, other, first) == [0, 0x0111, 0x0111, 0]
        time.sleep(0.6)  # longer than the quiet period
        assert len(studies(spool, "done")) == 1
        assert len(read_entries(spool, "outbox")) == 1
        assert kept(spool) == expected(first)
        assert len(read_conflicts(spool)) == 1
        assert read_status(spool).conflicts == 1


def test_a_full_disk_is_said_to_the_sender_and_it_may_try_again(spool):
    with NodeProcess(spool, reserve_mib=1e9) as node:
        assert send(node.port, compose()) == [0xA700]
        assert kept(spool) == {}
        node.terminate()
        node.settings["reserve_mib"] = 0
        node.start()
        assert send(node.port, compose()) == [0]


def test_images_too_large_are_refused_and_dropped_while_they_come(spool):
    large = compose("s1", "large", PixelData=b"\0" * 3 * 2**20)
    with NodeProcess(spool, maximum_object_mib=2) as node:
        assert send(node.port, large, compose()) == [0xA701, 0]
        assert kept(spool) == expected(compose())
    shutil.rmtree(spool)
    with NodeProcess(spool, maximum_memory_mib=1) as node:
        assert send(node.port, large, compose()) == [0xA700, 0]
    shutil.rmtree(spool)
    with NodeProcess(spool, maximum_object_mib=0.5) as node, association(node.port) as opened:
        assert "Status" not in opened.send_c_store(large)  # without end: aborted


class Senders:
    """Threads that send images until each is acknowledged, whatever becomes of the node."""

    def __init__(self, port, images, *, threads):
        self._port = port
        self._expected = {ds.SOPInstanceUID: expected(ds) for ds in images}
        self._guard = threading.Lock()
        self._acknowledged = {}
        self._over = threading.Event()
        self.threads = [
            threading.Thread(target=self._send, args=(images[index::threads],), daemon=True)
            for index in range(threads)
        ]

    def acknowledged(self):
        with self._guard:
            return dict(self._acknowledged)

    def count(self):
        return len(self._acknowledged)

    def _send(self, images):
        waiting = list(images)
        while waiting and not self._over.wait(0.02):
            with association(self._port) as opened:
                while waiting and opened.is_established and not self._over.is_set():
                    answer = opened.send_c_store(waiting[-1])
                    if "Status" not in answer:
                        opened.abort()  # a release would wait for the answer of the dead
                    elif answer.Status == 0:
                        stored = self._expected[waiting.pop().SOPInstanceUID]
                        with self._guard:
                            self._acknowledged.update(stored)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self.threads:
            thread.join(15)


@pytest.mark.timeout(240)
def test_a_thousand_images_and_ten_kills_lose_nothing_acknowledged(spool):
    total, kills = 1000, 10
    images = [compose(f"s{index // 20}", index, value=index) for index in range(total)]
    with NodeProcess(spool) as node, Senders(node.port, images, threads=4) as senders:
        for kill in range(kills):
            goal = total * (kill + 1) // (kills + 1)
            wait_for(lambda goal=goal: senders.count() >= goal, seconds=60, every=0.005)
            node.kill()
            promised = senders.acknowledged()
            found = kept(spool)
            assert {name: found.get(name) for name in promised} == promised
            node.start()
        wait_for(lambda: senders.count() == total, seconds=60)
        assert kept(spool) == expected(*images)
        wait_for(lambda: len(studies(spool, "done")) == 50, seconds=60)
        assert studies(spool, "incoming") == studies(spool, "aside") == []


def test_kills_during_triages_repeat_them_and_each_result_arrives_once(spool):
    port, received = free_port(), []
    with (
        pacs(port, received),
        NodeProcess(spool, peer=f"PACS@127.0.0.1:{port}", quiet_seconds=0.05) as node,
    ):
        for index in range(6):
            assert send(node.port, compose("s1", index)) == [0]
            time.sleep(0.1 * index)
            node.kill()
            node.start()
        wait_for(lambda: not studies(spool, "incoming") and not read_entries(spool, "outbox"))
        last = uid("result", *sorted(uid("s1", index) for index in range(6)))
        wait_for(lambda: received and received[-1].SOPInstanceUID == last)


def test_a_study_that_kills_the_node_is_set_aside_and_the_others_are_triaged(spool):
    with NodeProcess(spool, "crash", maximum_attempts=2) as node:
        assert send(node.port, compose("bad", "a")) == [0]
        assert node.wait() == 9
        node.start()
        assert node.wait() == 9
        node.triage = "capture"
        node.start()
        assert send(node.port, compose("good", "a")) == [0]
        wait_for(lambda: studies(spool, "done") == [hashed(uid("good"))])
        assert studies(spool, "aside") == [hashed(uid("bad"))]
        (reason,) = read_status(spool).set_aside
        assert reason["error"] == "Crash"
        assert "2 times" in reason["message"]
        assert kept(spool).keys() == expected(compose("bad", "a"), compose("good", "a")).keys()


@pytest.mark.parametrize(
    ("triage", "error", "message"),
    [("refuse", "ImageError", "no view PA or AP"), ("defect", "ValueError", "unexpected error")],
)
def test_a_triage_that_fails_sets_its_study_aside_with_the_reason(spool, triage, error, message):
    with NodeProcess(spool, triage) as node:
        assert send(node.port, compose()) == [0]
        wait_for(lambda: studies(spool, "aside"))
        (reason,) = read_status(spool).set_aside
        assert reason["error"] == error
        assert message in reason["message"]
        assert "Doe" not in json.dumps(reason) + node.log.read_text()
        assert ("in defect" in node.log.read_text()) == (triage == "defect")  # where it was
        node.terminate()
        folder = spool / "aside" / hashed(uid("s1"))
        folder.rename(spool / "incoming" / folder.name)  # as the docs say it is tried again
        node.triage = "nothing"
        node.start()
        wait_for(lambda: studies(spool, "done") == [folder.name])
        assert read_record(spool / "done" / folder.name).error == ""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_triage_that_the_full_disk_ends_is_done_again_and_is_no_attempt(spool, number):
    fails = iter([True] * 5)

    def triage(images, folder):
        if next(fails, False):
            try:
                raise OSError(number, os.strerror(number))
            except OSError as error:
                raise ConfigError("cannot be written") from error
        return []

    with opened_spool(spool) as opened:
        opened.store(*identity_and_file(compose()))
        outbox = Outbox(spool, backoff=Backoff(1, 1))
        worker = Worker(opened, outbox, triage, NodeConfig(), say=lambda _: None)
        for _ in range(5):
            with pytest.raises(ConfigError):
                worker.work_on(hashed(uid("s1")))
            assert studies(spool, "aside") == studies(spool, "receiving") == []
        worker.work_on(hashed(uid("s1")))
        assert studies(spool, "done") == [hashed(uid("s1"))]


def divide(item):
    return item / 0


def test_an_unexpected_error_beside_the_node_keeps_its_name_and_place(spool, caplog):
    with opened_spool(spool) as opened, open_executor(Place(1)) as executor:

        def triage(images, folder):
            ((_, result),) = in_order(executor, divide, [1], ahead=1, limits=Limits())
            return result

        opened.store(*identity_and_file(compose()))
        outbox = Outbox(spool, backoff=Backoff(1, 1))
        Worker(opened, outbox, triage, NodeConfig(), say=lambda _: None).work_on(hashed(uid("s1")))
    (reason,) = read_status(spool).set_aside
    assert reason["error"] == "ZeroDivisionError"
    assert "in divide" in caplog.text


def test_a_node_that_died_behind_the_outbox_triages_nothing_twice(spool, tmp_path, monkeypatch):
    triaged = []

    def triage(images, folder):
        triaged.append(len(images))
        return [write(folder / "sc.dcm", compose("s1", "result"))]

    def work(opened):
        outbox = Outbox(spool, backoff=Backoff(1, 1))
        worker = Worker(opened, outbox, triage, NodeConfig(), say=lambda _: None)
        worker.work_on(hashed(uid("s1")))

    with opened_spool(spool) as opened, monkeypatch.context() as patch:
        opened.store(*identity_and_file(compose()))
        patch.setattr(Spool, "finish", lambda *_: sys.exit("killed here"))
        with pytest.raises(SystemExit):
            work(opened)
    with opened_spool(spool) as opened:
        work(opened)
        assert triaged == [1]
        assert len(read_entries(spool, "outbox")) == 1
        assert studies(spool, "done") == [hashed(uid("s1"))]
        opened.store(*identity_and_file(compose("s1", "late")))
        work(opened)
        assert triaged == [1, 2]
        assert len(read_entries(spool, "outbox")) == 2


def test_a_stop_in_a_triage_is_quick_clean_and_no_attempt(spool):
    with NodeProcess(spool, "slow", stop_seconds=0.5) as node:
        assert send(node.port, compose()) == [0]
        record = spool / "incoming" / hashed(uid("s1"))
        wait_for(lambda: read_record(record).attempts == 1)
        begun = time.monotonic()
        assert node.terminate() == 0
        assert time.monotonic() - begun < 8
        assert read_record(record).attempts == 0


def test_a_stop_ends_open_associations(spool):
    with NodeProcess(spool) as node, association(node.port) as opened:
        assert int(opened.send_c_store(compose()).Status) == 0
        begun = time.monotonic()
        assert node.terminate() == 0
        assert time.monotonic() - begun < 5
        wait_for(lambda: not opened.is_established)
    assert kept(spool) == expected(compose())


def test_a_late_image_is_triaged_with_the_others_and_its_result_comes_second(spool):
    port, received = free_port(), []
    with NodeProcess(spool, peer=f"PACS@127.0.0.1:{port}", retry_seconds=0.2) as node:
        send(node.port, compose("s1", "a"))
        wait_for(lambda: studies(spool, "done"))
        send(node.port, compose("s1", "b"))
        wait_for(lambda: len(read_entries(spool, "outbox")) == 2)
        wait_for(lambda: read_status(spool).last_error)
        with pacs(port, received):  # it was down all the time
            wait_for(lambda: len(received) == 2)
            wait_for(lambda: len(read_entries(spool, "sent")) == 2)
            one = uid("result", uid("s1", "a"))
            both = uid("result", *sorted([uid("s1", "a"), uid("s1", "b")]))
            assert [ds.SOPInstanceUID for ds in received] == [one, both]
            assert read_status(spool).last_error == ""
            # a PACS that forwards our own result back starts no loop
            with association(node.port, kind=SecondaryCaptureImageStorage) as opened:
                assert int(opened.send_c_store(received[1]).Status) == 0
            time.sleep(0.6)
            assert len(received) == 2
            assert len(kept(spool)) == 2


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A CA, and certificates of it for the node and its callers."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    def request(name, *more):
        subject = ("-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key")
        openssl("req", *more, *subject, "-subj", f"/CN={name}")

    request("ca", "-x509", "-days", "2", "-out", "ca.pem")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("node", "caller"):
        request(name, "-new", "-out", f"{name}.csr")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        out = ("-extfile", "names", "-out", f"{name}.pem")
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, *out)
    return folder


def node_tls(folder):
    names = {"tls_cert": "node.pem", "tls_key": "node.key", "tls_ca": "ca.pem"}
    return {key: str(folder / name) for key, name in names.items()}


@needs_dcmtk
def test_mutual_tls_lets_in_who_shows_a_certificate_and_nobody_else(spool, tmp_path, certificates):
    file = write(tmp_path / "a.dcm", compose())
    trust = ("+cf", str(certificates / "ca.pem"))
    own = ("+tls", str(certificates / "caller.key"), str(certificates / "caller.pem"))
    with NodeProcess(spool, **node_tls(certificates)) as node, ExitStack() as stack:
        for _ in range(15):  # a handshake that never begins holds up nobody's
            stack.enter_context(socket.create_connection(("127.0.0.1", node.port)))
        begun = time.monotonic()
        assert storescu(node.port, file).returncode != 0
        assert storescu(node.port, file, options=("+tla", *trust)).returncode != 0
        assert kept(spool) == {}
        assert storescu(node.port, file, options=(*own, *trust)).returncode == 0
        assert time.monotonic() - begun < 20
    assert kept(spool) == expected(compose())


def test_results_go_to_the_peer_over_tls(spool, certificates):
    port, received = free_port(), []
    entity = AE("PACS")
    entity.add_supported_context(SecondaryCaptureImageStorage)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "caller.pem", certificates / "caller.key")
    context.load_verify_locations(certificates / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED

    def store(event):
        received.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    server = entity.start_server(
        ("127.0.0.1", port),
        block=False,
        ssl_context=context,
        evt_handlers=[(evt.EVT_C_STORE, store)],
    )
    root = Spool(spool)
    root.store(*identity_and_file(compose()))
    root.close()
    try:
        peer = {"peer": f"PACS@127.0.0.1:{port}"}
        with NodeProcess(spool, **peer, **node_tls(certificates)):
            wait_for(lambda: received == [uid("result", uid("s1", "i1"))])
    finally:
        server.shutdown()


def identity_and_file(ds):
    file = encoded(ds)
    syntax, data = split_file(file)
    return read_identity(data, syntax), file


def test_files_in_a_watched_folder_take_the_same_way(spool, tmp_path):
    watched = tmp_path / "watched"
    (watched / "Doe Jane").mkdir(parents=True)
    (watched / ".hidden").mkdir()
    first = write(watched / "Doe Jane" / "a.dcm", compose())
    write(watched / ".hidden" / "a.dcm", compose("hidden"))
    (watched / "notes.txt").write_text("no DICOM")
    write(watched / "mr.dcm", compose("mr", SOPClassUID="1.2.840.10008.5.1.4.1.1.4"))
    half = watched / "half.dcm"
    half.write_bytes(encoded(compose("s2"))[:-100])
    with NodeProcess(spool, watch=watched, watch_seconds=0.3) as node:
        wait_for(lambda: (watched / ".done" / "Doe Jane" / "a.dcm").exists())
        wait_for(lambda: (watched / ".refused" / "notes.txt").exists())
        wait_for(lambda: (watched / ".refused" / "mr.dcm").exists())
        wait_for(lambda: "not whole" in node.log.read_text())
        assert half.exists()
        write(half, compose("s2"))
        wait_for(lambda: (watched / ".done" / "half.dcm").exists())
        assert kept(spool) == expected(compose(), compose("s2"))
        write(first, compose())  # the same again, and another one under its UID
        wait_for(lambda: (watched / ".done" / "Doe Jane" / "a-2.dcm").exists())
        write(first, compose(value=1))
        wait_for(lambda: (watched / ".refused" / "Doe Jane" / "a.dcm").exists())
        assert kept(spool) == expected(compose(), compose("s2"))
        wait_for(lambda: len(studies(spool, "done")) == 2)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", node.port))
        assert "Doe" not in node.log.read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "no calling AE title is allowed"),
        ({"host": "pacs.example"}, "no calling AE title is allowed"),
        ({"tls_cert": "a.pem"}, "both or neither"),
        ({"tls_ca": "ca.pem"}, "checks nothing"),
        ({"peer_tls": True}, "needs tls_cert"),
        ({"peer": "PACS"}, "AET@host:port"),
        ({"peer": "PACS@host:99999"}, "AET@host:port"),
        ({"peer": "A TITLE THAT IS TOO LONG@host:104"}, "1 to 16"),
        ({"ae_title": "  "}, "1 to 16"),
        ({"ae_title": "A\\B"}, "1 to 16"),
        ({"allow": ["GOOD", ""]}, "1 to 16"),
        ({"quiet": 3}, "did you mean 'quiet_seconds'"),
    ],
)
def test_settings_that_leave_a_door_open_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_spec(NodeConfig, settings, source="test")


def test_beyond_loopback_a_node_needs_its_callers_named_or_to_be_told():
    for settings in ({"allow": ["PACS"]}, {"allow_any_caller": True}):
        assert build_spec(NodeConfig, {"host": "0.0.0.0", **settings}, source="test")
    for host in ("127.0.0.2", "::1", "localhost"):
        assert build_spec(NodeConfig, {"host": host}, source="test")


@pytest.fixture
def stand_in(monkeypatch):
    """`pipelines.dicom_triage` with a triage that gives nothing."""
    module = ModuleType("pipelines.dicom_triage")
    module.calls = []

    def make_study_triage(detectors, *, out, config, settings, device, executor, encoder):
        assert encoder is None
        module.calls.append((list(detectors), out, config, list(settings), device))
        return lambda images, folder: []

    module.make_study_triage = make_study_triage
    monkeypatch.setitem(sys.modules, "pipelines.dicom_triage", module)
    return module


def serve_until(run_command, signal_number, when, *arguments):
    """Run `esad-med serve` here, and send this process a signal when something is true."""

    serving = threading.Event()
    serving.set()

    def strike():
        try:
            wait_for(when)
        finally:
            if serving.is_set():  # else this process would end, and all other tests with it
                os.kill(os.getpid(), signal_number)

    thread = threading.Thread(target=strike)
    thread.start()
    outcome = run_command("serve", *arguments)
    serving.clear()
    thread.join()
    return outcome


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_command_serves_until_it_is_stopped(run_command, spool, stand_in, number, code):
    port = free_port()

    def triaged():
        try:
            assert send(port, compose()) == [0]
        except (AssertionError, OSError):
            return False
        wait_for(lambda: studies(spool, "done"))
        return True

    options = ("--detector", "det", "--port", port, "--allow", "TESTER", "--allow", "PACS")
    options += ("--quiet-seconds", "0.1", "--set", "reserve_mib=0", "--triage-set", "view=PA")
    outcome = serve_until(run_command, number, triaged, "--spool", spool, *options)
    assert outcome.code == code, outcome.err
    assert f"127.0.0.1:{port}" in outcome.err
    assert "not for diagnosis" in outcome.err
    assert stand_in.calls == [([Path("det")], spool / "triage", None, ["view=PA"], "auto")]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))

    status = run_command("serve", "--status", "--spool", spool, "--json")
    assert status.code == 0
    shown = json.loads(status.out)
    assert (shown["running"], shown["images"], shown["triaged"]) == (False, 1, 1)
    text = run_command("serve", "--status", "--spool", spool).out
    assert "1 images; studies: 0 waiting, 1 triaged, 0 set aside" in text


def test_the_status_of_a_spool_with_set_aside_studies_says_so_by_its_exit_code(run_command, spool):
    with NodeProcess(spool, "refuse") as node:
        send(node.port, compose())
        wait_for(lambda: studies(spool, "aside"))
        outcome = run_command("serve", "--status", "--spool", spool)
    assert outcome.code == 3
    assert f"set aside {hashed(uid('s1'))[:8]}: ImageError: no view PA or AP" in outcome.out
    assert "node running" in outcome.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--detector", "det", "--port", "{busy}"), "in use"),
        (("--detector", "det", "--host", "0.0.0.0"), "no calling AE title"),
        (("--detector", "det", "--watch", "missing"), "no such folder"),
        (("--detector", "det", "--tls-cert", "a", "--tls-key", "b"), "TLS"),
        ((), "--detector"),
        (("--status",), "no spool"),
    ],
)
def test_the_command_says_why_it_does_not_start(run_command, spool, stand_in, options, message):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        busy = listener.getsockname()[1]
        given = [option.format(busy=busy) for option in options]
        outcome = run_command("serve", "--spool", spool, *given)
    assert outcome.code == 4
    assert message in outcome.err


def test_without_pynetdicom_the_command_names_the_extra(run_command, spool, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    outcome = run_command("serve", "--spool", spool, "--detector", "det")
    assert outcome.code == 4
    assert "pip install 'esad-med[dicom]'" in outcome.err


def test_a_second_node_on_the_spool_is_refused(run_command, spool, stand_in):
    with NodeProcess(spool):
        outcome = run_command("serve", "--spool", spool, "--detector", "det", "--port", free_port())
    assert outcome.code == 4
    assert "another node works on this spool" in outcome.err


def test_the_node_needs_no_torch(tmp_path):
    code = "import sys, pipelines.dicom_node, pipelines.dicom_status;"
    code += "sys.exit(sum(name in sys.modules for name in ('torch', 'monai', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
