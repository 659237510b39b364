"""Dask workers: of this machine, or behind a scheduler on a network that can be trusted.

Dask's wire carries pickles: whoever can talk to a scheduler can run code on its workers and in its
clients. So a scheduler beyond this machine must speak TLS with certificates of both sides (named in
Dask's own configuration), unless the user says that the network is trusted.
"""

import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from esad_med.base.errors import ConfigError
from esad_med.base.execution import Place
from esad_med.base.guards import stay_with_parent
from esad_med.base.runs import OURS

# Dask's own list also makes malloc give memory back at once: every batch faults its pages in again.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_CONNECT_SECONDS = 20

logger = logging.getLogger(__name__)


@contextmanager
def open_cluster(place: Place, shared: Path | None) -> Iterator[Executor]:
    """The executor of local workers or of a cluster; local ones end with the block.

    Args:
        place: with a scheduler, or with two workers or more.
        shared: a folder that a cluster's workers must see.

    Raises:
        ConfigError: Dask is not installed, or the scheduler cannot be reached or trusted, or has
            workers with another version, without the shared folder or without what is needed.
    """
    try:
        import distributed  # noqa: F401 # only asked whether it is there
    except ImportError as error:
        asked = "--scheduler" if place.scheduler else f"--workers {place.workers}"
        raise ConfigError(
            f"{asked}: needs Dask; pip install 'esad-med[cluster]', or leave it out"
        ) from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # it tells of every connection
    with ExitStack() as stack:
        if place.scheduler:
            client = stack.enter_context(_client(place))
            _check_workers(client, shared, place)
        else:
            client = stack.enter_context(_local_client(place.workers))
        needs = {"resources": place.resources} if place.resources else {}
        yield client.get_executor(pure=False, **needs)


@contextmanager
def _local_client(workers: int) -> Iterator[Any]:
    """Workers of this machine, listening on the loopback."""
    import dask
    from distributed import Client, LocalCluster, WorkerPlugin

    levels = {name: logging.getLogger(name).level for name in OURS}

    class LikeTheCommand(WorkerPlugin):  # type: ignore[misc] # Dask has no types
        def setup(self, worker: Any) -> None:
            stay_with_parent()
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)

    settings = {
        "distributed.scheduler.allowed-failures": 0,  # `in_order` tries again, with nothing beside
        "distributed.nanny.pre-spawn-environ": dict.fromkeys(_THREADS, "1"),
    }
    with (
        _restored(_THREADS),
        dask.config.set(settings),
        tempfile.TemporaryDirectory(prefix="esad-med-") as folder,
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # status pages have a port of their own choice,
            scheduler_kwargs={"dashboard": False},  # and draw no plots
            memory_limit=0,
            local_directory=folder,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(LikeTheCommand())
        for name in OURS:  # a shared scheduler would forward every command's to every other
            client.forward_logging(name)
        yield client


@contextmanager
def _restored(names: Sequence[str]) -> Iterator[None]:
    """Dask sets its workers' variables in this process too, and leaves them there."""
    before = {name: os.environ[name] for name in names if name in os.environ}
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def _client(place: Place) -> Iterator[Any]:
    from distributed import Client

    check_address(place.scheduler, trusted=place.trusted)
    try:
        client = Client(place.scheduler, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError, TypeError) as error:  # TypeError: TLS without certificates
        raise ConfigError(
            f"--scheduler {place.scheduler}: no connection ({error}); expected a running Dask"
            " scheduler; for tls:// the files are named in Dask's configuration"
            " (distributed.comm.tls)"
        ) from error
    with client:
        yield client


def check_address(address: str, *, trusted: bool) -> None:
    """Refuse a scheduler whose pickles could come from anybody.

    Raises:
        ConfigError: no address, or neither TLS nor the loopback, and not ``trusted``.
    """
    try:
        parts = urlsplit(address)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        scheme, host, port = "", None, None
    if scheme not in {"tcp", "tls"} or not host or port is None:
        raise ConfigError(
            f"--scheduler {address}: no address, expected such as tls://host:8786 or"
            " tcp://127.0.0.1:8786"
        )
    if scheme == "tcp" and not trusted and not _is_loopback(host):
        raise ConfigError(
            f"--scheduler {address}: Dask sends pickles, which run code, and this connection is"
            " neither TLS nor to this machine; use tls://, or pass --trust-scheduler if nobody else"
            " can reach that network"
        )


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None)
        return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)
    except (OSError, ValueError, UnicodeError):
        return False


def _check_workers(client: Any, shared: Path | None, place: Place) -> None:
    """Workers compute with this version, see the folder results go to, and have what is needed."""
    found = client.run(_describe_worker, str(shared or ""), on_error="return")
    ours = metadata.version("esad-med")
    for worker, answer in found.items():
        if not isinstance(answer, tuple):
            raise ConfigError(
                f"worker {worker}: cannot run esad-med ({answer}); install version {ours} there"
            )
        version, sees = answer
        if version != ours:
            raise ConfigError(
                f"worker {worker}: has esad-med {version}, expected {ours}; install the same there"
            )
        if not sees:
            raise ConfigError(
                f"worker {worker}: does not see {shared}; put slides, detectors and results on"
                " storage that all machines have under the same path"
            )
    if not found:  # a cluster that grows with its work has none at first
        logger.warning("%s: has no worker yet, waiting for one", place.scheduler)
        return
    offers = [worker["resources"] for worker in client.scheduler_info()["workers"].values()]
    for name, amount in place.resources.items():
        if not any(offer.get(name, 0) >= amount for offer in offers):
            raise ConfigError(
                f"--resource {name}={amount:g}: no worker has it; start one with --resources"
                f" {name}={amount:g}, or leave it out"
            )


def _describe_worker(shared: str) -> tuple[str, bool]:
    return metadata.version("esad-med"), not shared or Path(shared).exists()
