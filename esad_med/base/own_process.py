"""An executor of one process beside this one: what crashes there costs its case, not the run."""

import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from esad_med.base.execution import listen_with
from esad_med.base.guards import stay_with_parent
from esad_med.base.runs import OURS, Progress

R = TypeVar("R")

_PATIENCE_SECONDS = 0.1


class OwnProcess(Executor):
    """Runs one task after the other in a process that is replaced when it dies."""

    def __init__(self, told: "Connection[Any, Any]") -> None:
        from pebble import ProcessPool

        self._pool = ProcessPool(
            max_workers=1,
            initializer=_begin,
            initargs=(told, {name: logging.getLogger(name).level for name in OURS}),
            context=multiprocessing.get_context("spawn"),  # a fork would inherit torch's threads
        )

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """The outcome of a call; `pebble.ProcessExpired` in its place where the process died."""
        future: Future[R] = self._pool.schedule(fn, args=args, kwargs=kwargs)
        return future

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._pool.stop()  # type: ignore[no-untyped-call] # Pebble's
        self._pool.join()


@contextmanager
def open_own_process(progress: Progress) -> Iterator[OwnProcess]:
    """One process, which ends with the block; what its work reports goes to ``progress``."""
    heard, told = multiprocessing.Pipe(duplex=False)
    executor = OwnProcess(told)
    ended = threading.Event()
    listener = threading.Thread(target=_listen, args=(heard, progress, ended), daemon=True)
    listener.start()
    try:
        yield executor
    finally:
        executor.stop()
        ended.set()
        listener.join()
        heard.close()
        told.close()


def _listen(heard: "Connection[Any, Any]", progress: Progress, ended: threading.Event) -> None:
    while not ended.is_set():
        # the main thread answers Ctrl-C; a process that died amid a message leaves half of it, and
        # whatever is wrong with one, or with showing it: a full pipe would hold up the cases
        with suppress(KeyboardInterrupt, Exception):
            if not heard.poll(_PATIENCE_SECONDS):
                continue
            kind, *values = heard.recv()
            if kind == "log":
                name, level, message = values
                logging.getLogger(name).log(level, "%s", message)
            else:
                progress(*values)


class _Forward(logging.Handler):
    """Sends our own messages to the command, which decides what is shown."""

    def __init__(self, told: "Connection[Any, Any]") -> None:
        super().__init__()
        self._told = told
        self.addFilter(lambda record: record.name.partition(".")[0] in OURS)

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            self._told.send(("log", record.name, record.levelno, record.getMessage()))


def _begin(told: "Connection[Any, Any]", levels: dict[str, int]) -> None:
    stay_with_parent()
    logging.getLogger().addHandler(_Forward(told))
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    spoken = -1.0

    def tell(label: str, done: int, total: int) -> None:
        nonlocal spoken
        now = time.monotonic()
        if now - spoken > _PATIENCE_SECONDS or done == total:
            spoken = now
            told.send(("progress", label, done, total))

    listen_with(tell)
