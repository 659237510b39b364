"""The outbox: results arrive once, in order, however often the peer or the node is away."""

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from dicom_objects import compose, encoded, free_port, shut_down, uid, write
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.transport import AssociationSocket

from esad_med.base.errors import ImageError
from pipelines.dicom_sender import Sender
from pipelines.dicom_settings import NodeConfig
from pipelines.outbox import Backoff, Delivery, Outbox, read_entries, read_peer


@pytest.fixture(autouse=True)
def closed_sockets(monkeypatch):
    """pynetdicom 3.0 leaves a client's socket that reached nobody to the garbage collector."""
    monkeypatch.setattr(AssociationSocket, "_shutdown_socket", shut_down)


STUDY, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def outbox(tmp_path):
    return Outbox(tmp_path, backoff=Backoff(10, 900))


def put(outbox, study=STUDY, images="1" * 64, names=("r1", "r2")):
    files = [write(outbox.root / f"{name}.tmp", compose(study, name)) for name in names]
    outbox.add(study, images, files)


def reopened(outbox):
    return Outbox(outbox.root, backoff=outbox.backoff)


def names(root, where):
    return [entry.folder.name[:10] for entry in read_entries(root, where)]


class PeerNode:
    """A PACS that notes what it is sent, and answers as it is told."""

    def __init__(self, kinds=(SecondaryCaptureImageStorage, ComputedRadiographyImageStorage)):
        self.port = free_port()
        self.received = []
        self.status = {}
        self.kinds = kinds
        self.syntaxes = None

    @contextmanager
    def listening(self):
        entity = AE("PACS")
        for kind in self.kinds:
            if self.syntaxes:
                entity.add_supported_context(kind, self.syntaxes)
            else:
                entity.add_supported_context(kind)
        server = entity.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        try:
            yield self
        finally:
            server.shutdown()

    def _store(self, event):
        name = str(event.request.AffectedSOPInstanceUID)
        status = self.status.get(name, 0x0000)
        if status != 0xA700:
            self.received.append(name)
            self.last = event.dataset
        return status


@pytest.fixture
def peer():
    return PeerNode()


def sender(outbox, peer, said=None, **settings):
    config = NodeConfig(peer=f"PACS@127.0.0.1:{peer.port}", **settings)
    say = (lambda _: None) if said is None else said.append
    return Sender(outbox, config.destination, config, say=say)


def send(outbox, peer, said=None):
    sender(outbox, peer, said).send_due(threading.Event())


@given(st.floats(0.1, 100), st.floats(1, 1000), st.integers(1, 10_000))
def test_waits_double_and_end_at_the_cap(first, cap, failures):
    backoff = Backoff(first, cap)
    assert backoff.wait(1) == min(first, cap)
    assert backoff.wait(failures) <= cap
    assert backoff.wait(failures + 1) == pytest.approx(min(2 * backoff.wait(failures), cap))


def test_results_are_whole_or_not_there(outbox, tmp_path):
    put(outbox)
    (entry,) = read_entries(tmp_path, "outbox")
    assert [path.name for path in entry.files] == ["0000.dcm", "0001.dcm"]
    assert entry.files[0].read_bytes() == encoded(compose(STUDY, "r1"))
    assert [path.stat().st_mode & 0o077 for path in (entry.folder, *entry.files)] == [0, 0, 0]
    bad = tmp_path / "bad.tmp"
    bad.write_bytes(b"no DICOM")
    with pytest.raises(ImageError, match="cannot be sent"):
        outbox.add(OTHER, "2" * 64, [write(tmp_path / "good.tmp", compose()), bad])
    assert names(tmp_path, "outbox") == ["00000001-a"]
    (tmp_path / "outbox" / f".00000002-{OTHER}-2").mkdir()  # the node died putting it together
    assert not reopened(outbox).holds(OTHER, "2" * 64)
    assert list((tmp_path / "outbox").glob(".*")) == []


def test_it_knows_after_a_restart_what_it_held_and_counts_on(outbox, tmp_path):
    put(outbox)
    again = reopened(outbox)
    assert again.holds(STUDY, "1" * 64)
    assert not again.holds(STUDY, "2" * 64)
    assert not again.holds(OTHER, "1" * 64)
    assert again.is_own(uid(STUDY, "r1"))
    assert not again.is_own(uid(STUDY, "r3"))
    put(again, images="2" * 64, names=("r3",))
    assert names(tmp_path, "outbox") == ["00000001-a", "00000002-a"]


def test_results_arrive_in_their_order_and_once(outbox, peer, tmp_path):
    put(outbox)
    put(outbox, images="2" * 64, names=("r3",))
    put(outbox, OTHER, names=("r1",))
    with peer.listening():
        send(outbox, peer)  # of each study the first
        send(outbox, peer)
        send(outbox, peer)
    own = [uid(STUDY, name) for name in ("r1", "r2", "r3")]
    assert [name for name in peer.received if name in own] == own
    assert sorted(peer.received) == sorted([*own, uid(OTHER, "r1")])
    assert names(tmp_path, "outbox") == []
    assert len(names(tmp_path, "sent")) == 3
    assert outbox.holds(STUDY, "1" * 64)


def test_a_peer_that_is_down_makes_results_wait_and_nothing_is_lost(outbox, peer, tmp_path):
    put(outbox)
    put(outbox, OTHER)
    said = []
    send(outbox, peer, said)
    send(outbox, peer, said)  # too early: not even called
    assert said == ["results wait: association with the peer not reached"]
    assert read_peer(tmp_path).failures == 1
    assert not outbox.peer_is_due()
    state = json.loads((tmp_path / "outbox" / "peer.json").read_text())
    (tmp_path / "outbox" / "peer.json").write_text(json.dumps({**state, "next_try": 0.0}))
    send(reopened(outbox), peer, said)
    assert read_peer(tmp_path).failures == 2
    (tmp_path / "outbox" / "peer.json").write_text(json.dumps({**state, "next_try": 0.0}))
    with peer.listening():
        send(reopened(outbox), peer)
    assert len(peer.received) == 4
    assert read_peer(tmp_path) == Delivery()


def test_a_refused_result_is_tried_again_and_holds_back_only_its_study(outbox, peer, tmp_path):
    put(outbox)
    put(outbox, images="2" * 64, names=("r3",))
    put(outbox, OTHER, names=("r4",))
    peer.status[uid(STUDY, "r2")] = 0xA700
    with peer.listening():
        send(outbox, peer)
        send(outbox, peer)
        assert peer.received == [uid(STUDY, "r1"), uid(OTHER, "r4")]
        entry, later = read_entries(tmp_path, "outbox")
        assert entry.delivery.error == "status 0xA700"
        assert entry.delivery.sent == ("0000.dcm",)
        assert 8 < entry.delivery.seconds_left(outbox.backoff) <= 10
        peer.status.clear()
        due = replace(entry.delivery, next_try=0.0)
        (entry.folder / "state.json").write_text(json.dumps(due.__dict__))
        again = reopened(outbox)
        send(again, peer)
        send(again, peer)
    own = [name for name in peer.received if name != uid(OTHER, "r4")]
    assert own == [uid(STUDY, name) for name in ("r1", "r2", "r3")]
    assert later.number == 2


@pytest.mark.parametrize("status", [0x0000, 0x0111, 0xB000, 0xB007])
def test_warnings_and_duplicates_count_as_arrived(outbox, peer, tmp_path, status):
    put(outbox, names=("r1",))
    peer.status[uid(STUDY, "r1")] = status
    with peer.listening():
        send(outbox, peer)
    assert names(tmp_path, "outbox") == []


def test_a_peer_that_takes_no_such_objects_is_told_apart(outbox, tmp_path):
    peer = PeerNode(kinds=(SecondaryCaptureImageStorage,))
    put(outbox)  # computed radiographs
    put(outbox, images="2" * 64, names=("r3",))
    said = []
    with peer.listening():
        send(outbox, peer, said)
    assert peer.received == []
    assert len(names(tmp_path, "outbox")) == 2
    first = read_entries(tmp_path, "outbox")[0].delivery
    assert (first.failures, first.error) == (
        1,
        "the peer takes no objects of this kind or encoding",
    )
    assert outbox.peer_is_due()


def test_a_peer_that_knows_only_the_default_syntax_gets_the_same_content(outbox, peer):
    peer.syntaxes = [ImplicitVRLittleEndian]
    put(outbox, names=("r1",))
    with peer.listening():
        send(outbox, peer)
    sent = compose(STUDY, "r1")
    assert {e.tag: e.value for e in peer.last} == {e.tag: e.value for e in sent}


def test_a_result_damaged_on_the_disk_stops_nobody_else(outbox, peer, tmp_path):
    put(outbox, names=("r1",))
    put(outbox, OTHER, names=("r2",))
    read_entries(tmp_path, "outbox")[0].files[0].write_bytes(b"rotten")
    with peer.listening():
        send(outbox, peer)
    assert peer.received == [uid(OTHER, "r2")]
    assert "cannot be read" in read_entries(tmp_path, "outbox")[0].delivery.error


def test_a_node_that_died_behind_the_last_note_moves_the_entry(outbox, peer, tmp_path):
    put(outbox, names=("r1",))
    (entry,) = read_entries(tmp_path, "outbox")
    state = {"sent": ["0000.dcm"], "failures": 0, "next_try": 0.0, "error": ""}
    (entry.folder / "state.json").write_text(json.dumps(state))
    assert list(reopened(outbox).due()) == []
    assert names(tmp_path, "sent") == ["00000001-a"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sent": 3}', '{"sent": [], "failures": "x"}'])
def test_a_damaged_state_means_sending_again(outbox, peer, tmp_path, text):
    put(outbox, names=("r1",))
    (entry,) = read_entries(tmp_path, "outbox")
    (entry.folder / "state.json").write_text(text)
    with peer.listening():
        send(outbox, peer)
    assert peer.received == [uid(STUDY, "r1")]


def test_a_clock_set_back_lengthens_no_wait_beyond_the_cap(outbox):
    state = Delivery(failures=1, next_try=time.time() + 10**8)
    assert state.seconds_left(outbox.backoff) == 900


def test_retention_removes_only_what_was_sent(outbox, peer, tmp_path):
    put(outbox, names=("r1",))
    with peer.listening():
        send(outbox, peer)
    put(outbox, OTHER, names=("r2",))
    assert outbox.remove_older(1) == 0
    assert outbox.remove_older(-1) == 1
    assert names(tmp_path, "sent") == []
    assert names(tmp_path, "outbox") == ["00000002-b"]
