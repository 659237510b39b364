"""Chunks of runs, one after the other or shared out to worker processes; one that dies is noted."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from esad_med.base.errors import EsadError
from esad_med.base.interrupts import raise_if_interrupted
from pipelines.paper.runs import FailedRun, Outcome, Run

Chunk = Sequence[Run]
Work = Callable[[Chunk], Iterator[Outcome]]
"""Runs a chunk; for several jobs it must be picklable."""

_PATIENCE_SECONDS = 0.5  # between two looks for Ctrl-C
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_chunks(
    chunks: Sequence[Chunk], work: Work, *, jobs: int = 1
) -> Generator[Outcome, None, None]:
    """The outcomes of all runs, as they come.

    Args:
        chunks: runs that share something, such as an autoencoder; each is one worker's.
        work: runs a chunk.
        jobs: worker processes, one thread each; 1 works in this process, with its threads.

    Raises:
        EsadError: what stops the whole benchmark, as `work` raised it.
    """
    if jobs > 1:
        yield from _share_out(deque(chunks), work, min(jobs, len(chunks)))
        return
    for chunk in chunks:
        raise_if_interrupted()
        yield from work(chunk)


def _share_out(waiting: deque[Chunk], work: Work, jobs: int) -> Iterator[Outcome]:
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.busy for worker in workers):
            while len(workers) < min(jobs, len(waiting) + sum(w.busy for w in workers)):
                workers.append(_Worker(work))
            for worker in workers:
                if waiting and not worker.busy:
                    worker.begin(waiting.popleft())
            ready = wait([worker.pipe for worker in workers], timeout=_PATIENCE_SECONDS)
            raise_if_interrupted()
            for worker in [worker for worker in workers if worker.pipe in ready]:
                yield from worker.heard()
            workers = [worker for worker in workers if not worker.dead]
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that runs one chunk at a time; its pipe tells of every run, then None."""

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        with _one_thread():
            self.process.start()
        theirs.close()
        self.left: list[Run] = []
        self.busy = self.dead = False

    def begin(self, chunk: Chunk) -> None:
        self.left, self.busy = list(chunk), True
        with suppress(OSError):  # it died: its pipe says so when it is read
            self.pipe.send(chunk)

    def heard(self) -> Iterator[Outcome]:
        """One message; of a process that is gone, its runs as failed."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            self.stop()
            self.dead, self.busy = True, False
            yield from (FailedRun(run, "WorkerDied", self._why()) for run in self.left)
            return
        if isinstance(message, EsadError):
            raise message
        if message is None:
            self.busy = False
            return
        self.left.remove(message.run)
        yield message

    def _why(self) -> str:
        code = self.process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = "; if memory was short, take fewer --jobs" if code == -signal.SIGKILL else ""
        return f"the worker process {how}{hint}; the next benchmark into this folder tries again"

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(0.2)  # one that is at its end may say how it ended
        self.process.terminate()
        self.process.join()


def _serve(pipe: Connection, work: Work) -> None:
    """The worker's loop; Ctrl-C is the parent's to answer, which then ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError):  # the parent is gone
        while True:
            chunk: Any = pipe.recv()
            try:
                for outcome in work(chunk):
                    pipe.send(outcome)
            except EsadError as error:
                pipe.send(error)
            pipe.send(None)


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers, and a run may take hours."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """What is started meanwhile computes on one thread, unless the user said how many."""
    added = [name for name in _THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
