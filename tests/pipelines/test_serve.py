"""`esad-med serve` as a whole: real detectors, an image in, a report and a picture back."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest
from dicom_objects import free_port, wait_for
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt


@pytest.fixture
def peer(tmp_path):
    """A storage provider that keeps what it receives; its folder and its port."""
    folder = tmp_path / "received"
    folder.mkdir()

    def keep(event) -> int:
        name = f"{event.request.AffectedSOPInstanceUID}.dcm"
        (folder / name).write_bytes(event.encoded_dataset())
        return 0x0000

    ae = AE(ae_title="PACS")
    ae.supported_contexts = AllStoragePresentationContexts
    port = free_port()
    server = ae.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)]
    )
    yield folder, port
    server.shutdown()


def send(path: Path, port: int) -> int:
    dataset = pydicom.dcmread(path)
    ae = AE(ae_title="CR_ROOM_1")
    ae.add_requested_context(dataset.SOPClassUID, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", port, ae_title="ESAD")
    assert association.is_established
    status = association.send_c_store(dataset).Status
    association.release()
    return int(status)


@contextmanager
def running(spool: Path, log: Path, *flags: object) -> Iterator[tuple[int, int]]:
    """A node's port and process; it must stop by itself when told."""
    port = free_port()
    command = [sys.executable, "-c", "from esad_med.cli import main; main()", "serve"]
    command += ["--spool", spool, "--port", port, "--allow", "CR_ROOM_1", *flags]
    with log.open("w") as file:
        node = subprocess.Popen(
            [str(part) for part in command],
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        wait_for(lambda: "takes images from" in log.read_text(), seconds=90)
        yield port, node.pid
    finally:
        node.terminate()
        assert node.wait(30) == 0


def test_an_image_goes_in_and_its_report_and_picture_come_back(
    xray_detectors, write_dicom, peer, tmp_path
):
    received, peer_port = peer
    spool, log = tmp_path / "spool", tmp_path / "log"
    flags = ["--peer", f"PACS@127.0.0.1:{peer_port}", "--quiet-seconds", "0.5"]
    flags += ["--detector", xray_detectors["PA"], "--detector", xray_detectors["AP"]]
    good = write_dicom(tmp_path / "pa.dcm", seed=1)
    lateral = write_dicom(tmp_path / "lateral.dcm", seed=2, ViewPosition="LL")
    with running(spool, log, *flags) as (port, _):
        assert send(good, port) == send(lateral, port) == 0
        wait_for(lambda: len(list(received.iterdir())) == 2, seconds=60)
        wait_for(lambda: "set aside" in log.read_text(), seconds=60)
        status = read_status(spool)
    found = [pydicom.dcmread(path, force=True) for path in received.iterdir()]
    source = pydicom.dcmread(good)
    assert {dataset.Modality for dataset in found} == {"SR", "OT"}
    assert {dataset.StudyInstanceUID for dataset in found} == {source.StudyInstanceUID}
    assert {dataset.PatientID for dataset in found} == {source.PatientID}
    assert status["running"] is True
    assert "lateral view" in json.dumps(status)
    assert "SECRET" not in log.read_text() + json.dumps(status)


def test_a_study_that_ends_its_process_is_set_aside_and_the_node_goes_on(
    xray_detectors, write_dicom, tmp_path
):
    spool, log = tmp_path / "spool", tmp_path / "log"
    flags = ["--detector", xray_detectors["PA"], "--quiet-seconds", "0.1"]
    flags += ["--triage-set", "limits.case_seconds=0.001"]
    with running(spool, log, *flags) as (port, _):
        for count, name in enumerate(("one.dcm", "two.dcm"), start=1):
            assert send(write_dicom(tmp_path / name, seed=count), port) == 0
            wait_for(lambda n=count: log.read_text().count("set aside") == n, seconds=60)
        status = read_status(spool)
    assert len(status["set_aside"]) == 2
    assert json.dumps(status).count("took longer than limits.case_seconds") == 2


def triaging_process(node: int) -> int:
    """The process beside a node."""
    threads = Path(f"/proc/{node}/task").iterdir()
    children = [child for t in threads for child in (t / "children").read_text().split()]
    (found,) = (c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes())
    return int(found)


def test_the_process_that_triages_may_be_killed_or_hang(xray_detectors, write_dicom, tmp_path):
    spool, log = tmp_path / "spool", tmp_path / "log"
    flags = ["--detector", xray_detectors["PA"], "--quiet-seconds", "0.1"]
    flags += ["--set", "stop_seconds=1"]
    with running(spool, log, *flags) as (port, node):
        for count in (1, 2):
            assert send(write_dicom(tmp_path / f"{count}.dcm", seed=count), port) == 0
            wait_for(lambda n=count: log.read_text().count("triaged, 2 results") == n, seconds=60)
            os.kill(triaging_process(node), signal.SIGKILL)
        assert send(write_dicom(tmp_path / "3.dcm", seed=3), port) == 0
        wait_for(lambda: log.read_text().count("triaged, 2 results") == 3, seconds=60)
        hanging = triaging_process(node)
        os.kill(hanging, signal.SIGSTOP)
        assert send(write_dicom(tmp_path / "4.dcm", seed=4), port) == 0
        wait_for(lambda: any(spool.glob("incoming/*/study.json")), seconds=60)  # its attempt
    os.kill(hanging, signal.SIGKILL)
    assert "the triage under way was cut off; it is done at the next start" in log.read_text()
    (record,) = spool.glob("incoming/*/study.json")
    assert json.loads(record.read_text())["attempts"] == 0


def test_a_detector_that_changes_under_a_node_sets_nothing_aside(
    xray_detectors, write_dicom, tmp_path
):
    spool, log, detector = tmp_path / "spool", tmp_path / "log", tmp_path / "detector"
    shutil.copytree(xray_detectors["PA"], detector)
    flags = ["--detector", detector, "--quiet-seconds", "0.1"]
    with running(spool, log, *flags) as (port, _):
        detector.rename(tmp_path / "elsewhere")
        assert send(write_dicom(tmp_path / "1.dcm", seed=1), port) == 0
        wait_for(lambda: "not triaged now" in log.read_text(), seconds=60)
        assert "detector: no such folder" in log.read_text()
        assert "Traceback" not in log.read_text()
        (tmp_path / "elsewhere").rename(detector)
        wait_for(lambda: "triaged, 2 results" in log.read_text(), seconds=90)
    assert "set aside" not in log.read_text()


def read_status(spool: Path) -> dict:
    code = "from esad_med.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--status", "--spool", str(spool), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3  # a study is set aside
    return json.loads(done.stdout)
