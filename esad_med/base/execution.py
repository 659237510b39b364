"""Where tasks run: one after the other in this process, or on worker processes of this machine.

An executor is that of `concurrent.futures`, so that whoever shares out work need not know which.
"""

import logging
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from esad_med.base.errors import CaseError, ConfigError
from esad_med.base.interrupts import raise_if_interrupted

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE_SECONDS = 0.5  # between two looks for Ctrl-C
_TRIES = 2  # of a task whose worker died: the worker may have died of something else
# Dask's own list also makes malloc give memory back at once: every batch faults its pages in again.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_LOST = (
    "the worker process that had it died, also when nothing else was under way (out of memory, or a"
    " library crashed on its file); look at the file, or try it without --workers"
)


class InProcess(Executor):
    """Runs a task when it is submitted, in this process."""

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """The outcome of a call, there already; Ctrl-C is not kept in it but raised."""
        future: Future[R] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def open_executor(workers: int) -> Iterator[Executor]:
    """This process for one worker, so many local Dask workers for more; all end with the block.

    Workers listen on the loopback only and inherit the environment; where it does not say
    ``OMP_NUM_THREADS`` and the like, they compute with one thread. What is submitted to them, and
    what it returns, must be picklable.

    Raises:
        ConfigError: the extra ``cluster`` is not installed.
    """
    if workers == 1:
        yield InProcess()
        return
    try:
        import dask
        from distributed import Client, LocalCluster, WorkerPlugin
    except ImportError as error:
        raise ConfigError(
            f"--workers {workers}: needs Dask; pip install 'esad-med[cluster]', or leave it out"
        ) from error

    class IgnoreInterrupts(WorkerPlugin):  # type: ignore[misc] # Dask has no types
        """A terminal sends Ctrl-C to workers too; they end when this process lets them go."""

        def setup(self, worker: Any) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # it tells of every connection
    settings = {
        "distributed.scheduler.allowed-failures": _TRIES - 1,
        "distributed.nanny.pre-spawn-environ": dict.fromkeys(_THREADS, "1"),
    }
    with (
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
        client.register_plugin(IgnoreInterrupts())
        yield client.get_executor(pure=False)


def in_order(
    executor: Executor, work: Callable[[T], R], items: Iterable[T], *, ahead: int
) -> Iterator[tuple[T, R | CaseError]]:
    """Each item with what ``work`` made of it, in the order of the items.

    Args:
        executor: where the work is done.
        work: what is done with an item.
        items: taken as they are needed.
        ahead: how many may be under way or wait for those before them, at least 1.

    Yields:
        The item and its result; a `CaseError` in its place where its worker died.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
        Exception: what ``work`` raised.
    """
    rest = iter(items)
    waiting: deque[tuple[T, Future[R]]] = deque()
    while True:
        while len(waiting) < ahead:
            raise_if_interrupted()
            try:
                item = next(rest)
            except StopIteration:
                break
            waiting.append((item, executor.submit(work, item)))
        if not waiting:
            return
        item, future = waiting.popleft()
        result = _outcome(future)
        if isinstance(result, CaseError):
            # Dask blames all that a dead worker had: what is to blame shows with nothing beside it
            for _, other in waiting:
                _wait_for(other)
            result = _outcome(executor.submit(work, item))
        yield item, result


def _outcome(future: "Future[R]") -> R | CaseError:
    """What a task gave, or a `CaseError` where its worker died."""
    _wait_for(future)
    try:
        return future.result()
    except Exception as error:
        if type(error).__name__ != "KilledWorker":  # Dask's, which need not be installed
            raise
        return CaseError(_LOST)


def _wait_for(future: "Future[Any]") -> None:
    while not wait([future], timeout=_PATIENCE_SECONDS).done:
        raise_if_interrupted()
