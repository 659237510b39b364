"""Counts of a running node for Prometheus: how many, how long, how full, and never who.

esad_images_total{outcome}     stored, duplicate; or why refused: conflict, full, too_large ...
esad_studies_total{outcome}    triaged, set_aside; again: images came meanwhile
esad_results_total{outcome}    sent, failed (tried again later)
esad_stage_seconds{stage}      histogram of store, triage, send
esad_queue{queue}              incoming and set-aside studies, triages with unsent results
esad_disk_free_bytes           of the spool's disk
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from esad_med.base.errors import ConfigError
from esad_med.base.runs import Say
from pipelines.dicom_settings import NodeConfig

Counted = Literal["images", "studies", "results"]
Stage = Literal["store", "triage", "send"]

_TEXTS: dict[Counted, str] = {
    "images": "Images that came, by what became of them.",
    "studies": "Triages that ended, by their end.",
    "results": "Result files sent, and sendings that failed.",
}
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_QUEUES = {"incoming": "incoming/*", "set_aside": "aside/*", "unsent": "outbox/[0-9]*"}


class Metrics:
    """Counts nothing: what a node has that was not asked for metrics."""

    def count(self, what: Counted, outcome: str) -> None:
        """Note what became of an image, a study or a result."""

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Time a stage, however it ends."""
        yield


class PrometheusMetrics(Metrics):
    """Counts, and answers at ``http://HOST:PORT/metrics``.

    Args:
        spool: its queues and its disk are looked at whenever somebody asks.
        host: address to listen on; whoever reaches it may read the counts.
        port: 0 takes any free one.

    Raises:
        ConfigError: prometheus_client is not installed, or the address cannot be listened on.
    """

    def __init__(self, spool: Path, *, host: str, port: int) -> None:
        try:
            from prometheus_client import (
                CollectorRegistry,
                Counter,
                Gauge,
                Histogram,
                start_http_server,
            )
        except ImportError as error:
            raise ConfigError(
                "metrics: prometheus_client is not installed; pip install 'esad-med[dicom]'"
            ) from error
        own = CollectorRegistry()
        self._counters = {
            what: Counter(f"esad_{what}", text, ["outcome"], registry=own)
            for what, text in _TEXTS.items()
        }
        self._seconds = Histogram(
            "esad_stage_seconds", "Time of a stage.", ["stage"], buckets=_SECONDS, registry=own
        )
        queues = Gauge("esad_queue", "What waits in the spool.", ["queue"], registry=own)
        for name, pattern in _QUEUES.items():
            queues.labels(name).set_function(partial(_count, spool, pattern))
        free = Gauge("esad_disk_free_bytes", "Of the spool's disk.", registry=own)
        free.set_function(lambda: shutil.disk_usage(spool).free)
        try:
            self._server, _ = start_http_server(port, addr=host, registry=own)
        except OSError as error:
            raise ConfigError(
                f"metrics: {host}:{port} cannot be listened on ({error.strerror}); choose another"
                " --metrics-port"
            ) from error

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()

    def count(self, what: Counted, outcome: str) -> None:
        """Note what became of an image, a study or a result."""
        self._counters[what].labels(outcome).inc()

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Time a stage, however it ends."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds.labels(stage).observe(time.monotonic() - started)


def _count(spool: Path, pattern: str) -> int:
    return sum(1 for _ in spool.glob(pattern))


@contextmanager
def counting(spool: Path, config: NodeConfig, *, say: Say) -> Iterator[Metrics]:
    """The node's counts for the length of a block, answered where its settings ask for it.

    Raises:
        ConfigError: see `PrometheusMetrics`.
    """
    if config.metrics_port is None:
        yield Metrics()
        return
    metrics = PrometheusMetrics(spool, host=config.metrics_host, port=config.metrics_port)
    say(f"metrics at http://{config.metrics_host}:{metrics.port}/metrics")
    try:
        yield metrics
    finally:
        metrics.close()
