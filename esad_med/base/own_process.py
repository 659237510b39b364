"""An executor of one process beside this one: what crashes there costs its case, not the run."""

import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from esad_med.base.execution import listen_with
from esad_med.base.guards import stay_with_parent
from esad_med.base.runs import OURS, Progress

R = TypeVar("R")

_PATIENCE_SECONDS = 0.1


class OwnProcess(Executor):
    """Runs one task after the other in a process that is replaced when it dies.

    A pool of Pebble replaces one that dies amid a task. One that dies between two tasks breaks the
    pool, which is replaced here, and which may forget a task that came in that moment.
    """

    def __init__(self, told: "Connection[Any, Any]") -> None:
        self._told = told
        self._pool = self._new_pool()
        self._waiting: list[Future[Any]] = []
        self._seen_broken = False
        self._ended = False

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """The outcome of a call; a Pebble or pool error in its place where the process died."""
        if self._ended:
            raise RuntimeError("the executor has ended")
        if not self._pool.active:
            self._end_pool()
            self._pool = self._new_pool()
        # Pebble cannot answer for a task that fails to unpickle: the process dies, or waits on
        packed = bytes(ForkingPickler.dumps((fn, args, kwargs)))
        future: Future[R] = self._pool.schedule(_perform, args=(packed,))
        self._waiting = [other for other in self._waiting if not other.done()] + [future]
        return future

    def look(self) -> None:
        """Give up what a broken pool forgot; called now and then."""
        pool, waiting = self._pool, [future for future in self._waiting if not future.done()]
        broken = bool(waiting) and not pool.active
        if broken and self._seen_broken:  # at the first look the pool may still be giving them up
            _give_up(waiting)
        self._seen_broken = broken

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._ended = True
        self._end_pool()

    def _new_pool(self) -> Any:
        from pebble import ProcessPool

        return ProcessPool(
            max_workers=1,
            initializer=_begin,
            initargs=(self._told, {name: logging.getLogger(name).level for name in OURS}),
            context=multiprocessing.get_context("spawn"),  # a fork would inherit torch's threads
        )

    def _end_pool(self) -> None:
        self._pool.stop()
        self._pool.join()
        _give_up(self._waiting)


def _perform(packed: bytes) -> Any:
    fn, args, kwargs = ForkingPickler.loads(packed)
    return fn(*args, **kwargs)


def _give_up(waiting: list[Future[Any]]) -> None:
    for future in waiting:
        with suppress(InvalidStateError):  # done meanwhile
            future.set_exception(BrokenProcessPool("its process died"))


@contextmanager
def open_own_process(progress: Progress) -> Iterator[OwnProcess]:
    """One process, which ends with the block; what its work reports goes to ``progress``."""
    heard, told = multiprocessing.Pipe(duplex=False)
    executor = OwnProcess(told)
    ended = threading.Event()
    listener = threading.Thread(
        target=_listen, args=(heard, progress, executor.look, ended), daemon=True
    )
    listener.start()
    try:
        yield executor
    finally:
        executor.stop()
        ended.set()
        listener.join()
        heard.close()
        told.close()


def _listen(
    heard: "Connection[Any, Any]",
    progress: Progress,
    look: Callable[[], None],
    ended: threading.Event,
) -> None:
    while not ended.is_set():
        # the main thread answers Ctrl-C; a process that died amid a message leaves half of it, and
        # whatever is wrong with one, or with showing it: a full pipe would hold up the cases
        with suppress(KeyboardInterrupt, Exception):
            if not heard.poll(_PATIENCE_SECONDS):
                look()
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
