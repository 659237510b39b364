"""Prometheus at the node: what is counted is what happened, on loopback, without names."""

import socket
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from dicom_objects import NodeProcess, compose, free_port, shut_down, uid, wait_for
from prometheus_client.parser import text_string_to_metric_families
from pynetdicom import AE, evt
from pynetdicom.sop_class import ComputedRadiographyImageStorage, SecondaryCaptureImageStorage
from pynetdicom.transport import AssociationSocket

from esad_med.base.config import build_spec
from esad_med.base.errors import ConfigError
from pipelines.dicom_metrics import Metrics, PrometheusMetrics, counting
from pipelines.dicom_settings import NodeConfig


@pytest.fixture(autouse=True)
def closed_sockets(monkeypatch):
    monkeypatch.setattr(AssociationSocket, "_shutdown_socket", shut_down)


def scrape(port: int) -> tuple[dict[tuple[str, str], float], str]:
    """Every sample by name and its label's value, and the page itself."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    return {
        (sample.name, ",".join(v for k, v in sample.labels.items() if k != "le")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }, page


def send(port: int, *datasets) -> list[int]:
    entity = AE("TESTER")
    entity.acse_timeout = entity.dimse_timeout = entity.connection_timeout = 10
    entity.add_requested_context(ComputedRadiographyImageStorage, "1.2.840.10008.1.2.1")
    opened = entity.associate("127.0.0.1", port, ae_title="ESAD")
    try:
        return [int(opened.send_c_store(ds).Status) for ds in datasets]
    finally:
        opened.release()


@contextmanager
def peer(port: int):
    entity = AE("PACS")
    entity.add_supported_context(SecondaryCaptureImageStorage)
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: 0)]
    )
    try:
        yield
    finally:
        server.shutdown()


def test_a_node_counts_what_happened(tmp_path):
    spool, metrics, pacs = tmp_path / "spool", free_port(), free_port()
    settings = {"metrics_port": metrics, "retry_seconds": 0.2, "quiet_seconds": 0.3}
    image, other = compose(), compose(value=9)
    unreadable = compose("s2", "i2")
    unreadable.StudyInstanceUID = "../../etc"
    with NodeProcess(spool, peer=f"PACS@127.0.0.1:{pacs}", **settings) as node:
        assert send(node.port, image, image, other, unreadable) == [0, 0, 0x0111, 0xC000]
        wait_for(lambda: scrape(metrics)[0].get(("esad_results_total", "failed")))
        waiting, _ = scrape(metrics)
        with peer(pacs):
            wait_for(lambda: scrape(metrics)[0].get(("esad_results_total", "sent")))
        found, page = scrape(metrics)
    images = {key[1]: n for key, n in found.items() if key[0] == "esad_images_total"}
    assert images == {"stored": 1, "duplicate": 1, "conflict": 1, "unreadable": 1}
    assert found["esad_studies_total", "triaged"] == 1
    assert found["esad_stage_seconds_count", "store"] == 3
    assert found["esad_stage_seconds_count", "triage"] == 1
    assert found["esad_stage_seconds_count", "send"] == 1
    assert waiting["esad_queue", "unsent"] == 1
    assert (found["esad_queue", "incoming"], found["esad_queue", "unsent"]) == (0, 0)
    assert found["esad_disk_free_bytes", ""] > 0
    for name in ("Doe", "4711", uid("s1"), "TESTER", "PACS"):
        assert name not in page


def test_a_study_set_aside_is_counted(tmp_path):
    metrics = free_port()
    with NodeProcess(tmp_path / "spool", "refuse", metrics_port=metrics) as node:
        send(node.port, compose())
        wait_for(lambda: scrape(metrics)[0].get(("esad_studies_total", "set_aside")))
        wait_for(lambda: scrape(metrics)[0]["esad_queue", "set_aside"] == 1)


def test_metrics_are_off_by_default_and_on_loopback_alone(tmp_path):
    said: list[str] = []
    with counting(tmp_path, NodeConfig(), say=said.append) as counts:
        assert type(counts) is Metrics
    assert said == []
    assert NodeConfig().metrics_host == "127.0.0.1"
    config = build_spec(NodeConfig, {"metrics_port": 0}, source="test")
    with counting(tmp_path, config, say=said.append) as counts:
        assert isinstance(counts, PrometheusMetrics)
        assert said == [f"metrics at http://127.0.0.1:{counts.port}/metrics"]
        assert counts._server.server_address[0] == "127.0.0.1"
    with pytest.raises(OSError, match="refused"):
        scrape(counts.port)


def test_a_port_in_use_is_said(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="cannot be listened on"):
            PrometheusMetrics(tmp_path, host="127.0.0.1", port=port)
