"""Where tasks run: in this process, in one of their own, on Dask workers here or on a cluster.

An executor is that of `concurrent.futures`, so that whoever shares out work need not know which.
A task is a case or a block of cases: a slide, some studies, a chunk of runs.
"""

import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from esad_med.base.errors import CaseError, ConfigError, EsadError
from esad_med.base.guards import STOOD_STILL, TOO_LONG, be_quiet, guarded, is_out_of_memory
from esad_med.base.interrupts import raise_if_interrupted
from esad_med.base.limits import Limits
from esad_med.base.runs import Progress, no_progress

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE_SECONDS = 0.2  # between two looks for Ctrl-C and for progress
_listener: Progress = no_progress


@dataclass(frozen=True)
class Place:
    """Where the cases of a run are worked on. The results have the same bytes everywhere.

    Attributes:
        workers: 0 for this process, in which a case that crashes a library ends the run; 1 for one
            process of its own; more for so many local Dask workers.
        scheduler: address of a Dask scheduler instead, such as ``tls://host:8786``.
        resources: what a task needs of a cluster's worker, such as ``{"GPU": 1}``.
        trusted: connect to a scheduler beyond this machine without TLS.
    """

    workers: int = 0
    scheduler: str = ""
    resources: dict[str, float] = field(default_factory=dict)
    trusted: bool = False

    @classmethod
    def of(
        cls, workers: int, scheduler: str, resources: Sequence[str] | None, trusted: bool
    ) -> "Place":
        """The place that the command line's options name.

        Raises:
            ConfigError: a resource that is not NAME=NUMBER, or without a scheduler.
        """
        if resources and not scheduler:
            raise ConfigError(
                "--resource: is for the workers of a cluster, those of this machine have none and"
                " would wait for ever; add --scheduler, or leave it out"
            )
        needs = {}
        for text in resources or ():
            name, _, amount = text.partition("=")
            try:
                needs[name] = float(amount)
            except ValueError:
                raise ConfigError(
                    f"--resource {text}: expected NAME=NUMBER, such as GPU=1"
                ) from None
        return cls(workers, scheduler, needs, trusted)

    @property
    def silent(self) -> bool:
        """Whether what the work reports reaches nobody."""
        return bool(self.scheduler) or self.workers > 1

    @property
    def ahead(self) -> int:
        """How many tasks should be under way or wait: enough that no worker does."""
        return _CLUSTER_AHEAD if self.scheduler else max(1, 2 * self.workers)


HERE = Place()
#: Attribute of an unexpected error from another process: where it was raised there.
FRAMES = "frames_there"
_CLUSTER_AHEAD = 256


def report(label: str, done: int, total: int) -> None:
    """A `Progress` for work that may be done anywhere: it reaches who watches, if it can."""
    raise_if_interrupted()
    _listener(label, done, total)


def listen_with(listener: Progress) -> None:
    """Give what this process reports to ``listener``."""
    global _listener
    _listener = listener


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
def open_executor(
    place: Place, *, progress: Progress = no_progress, shared: Path | None = None
) -> Iterator[Executor]:
    """An executor for a place; its processes end with the block.

    What is submitted to others than this process, and what it returns, must be picklable. Local
    processes listen on the loopback only and inherit the environment; several compute with one
    thread each where it does not say ``OMP_NUM_THREADS`` and the like.

    Args:
        place: where.
        progress: receives what the work reports, from this process or the one of its own.
        shared: a folder that a cluster's workers must see.

    Raises:
        ConfigError: the extra ``cluster`` is not installed, or the scheduler cannot be used.
    """
    if place.scheduler or place.workers > 1:
        from esad_med.base.cluster import open_cluster

        with open_cluster(place, shared) as executor:
            yield executor
    elif place.workers:
        from esad_med.base.own_process import open_own_process

        with open_own_process(progress) as executor:
            yield executor
    else:
        before = _listener
        listen_with(progress)
        try:
            yield InProcess()
        finally:
            listen_with(before)


def _task(
    executor: Executor, work: Callable[[T], R], limits: Limits | None
) -> Callable[[T], R | CaseError]:
    return work if limits is None or isinstance(executor, InProcess) else _Guarded(work, limits)


@dataclass(frozen=True)
class _Guarded(Generic[T, R]):
    """Work within the limits of time and memory; one that wants more memory is a `CaseError`."""

    work: Callable[[T], R]
    limits: Limits

    def __call__(self, item: T) -> R | CaseError:
        be_quiet()
        try:
            with guarded(self.limits):
                return self.work(item)
        except CaseError as error:
            if is_out_of_memory(error.__cause__):
                return error
            raise
        except (EsadError, OSError):
            raise
        except Exception as error:  # neither its traceback nor every error of a library can be sent
            name = type(error).__name__
            stand_in = RuntimeError(name)
            frames = "".join(traceback.format_tb(error.__traceback__))
            vars(stand_in)[FRAMES] = f"{frames}{name}\n"
            raise stand_in from None


def in_order(
    executor: Executor,
    work: Callable[[T], R],
    items: Iterable[T],
    *,
    ahead: int,
    limits: Limits | None = None,
) -> Iterator[tuple[T, R | CaseError]]:
    """Each item with what ``work`` made of it, in the order of the items.

    Args:
        executor: where the work is done.
        work: what is done with an item.
        items: taken as they are needed.
        ahead: how many may be under way or wait for those before them, at least 1.
        limits: of time and memory for an item, where it is not worked on in this process; or None.

    Yields:
        The item and its result; a `CaseError` in its place where its worker died, twice, or where
        it wanted too much memory.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
        ConfigError: the scheduler of a cluster is gone.
        Exception: what ``work`` raised.
    """
    rest = iter(items)
    task = _task(executor, work, limits)
    waiting: deque[tuple[T, Future[R | CaseError]]] = deque()
    while True:
        waiting.extend(_submitted(executor, task, islice(rest, ahead - len(waiting))))
        if not waiting:
            return
        item, future = waiting.popleft()
        result = _outcome(future)
        if isinstance(result, _Lost):
            # Dask blames all that a dead worker had: what is to blame shows with nothing beside it
            for _, other in waiting:
                _wait_for(other)
            result = _outcome(executor.submit(task, item))
        yield item, CaseError(result.why) if isinstance(result, _Lost) else result


def _submitted(
    executor: Executor, task: Callable[[T], R], items: Iterable[T]
) -> Iterator[tuple[T, Future[R]]]:
    for item in items:
        raise_if_interrupted()
        yield item, executor.submit(task, item)


def as_done(
    executor: Executor,
    work: Callable[[T], R],
    items: Iterable[T],
    *,
    ahead: int,
    limits: Limits | None = None,
) -> Iterator[tuple[T, R | CaseError]]:
    """Like `in_order`, but each item as soon as it is done: for items that take hours.

    What a dead worker had is tried again at the end, with nothing beside it.
    """
    rest = iter(items)
    task = _task(executor, work, limits)
    waiting: dict[Future[R | CaseError], T] = {}
    suspects: list[T] = []
    while True:
        more = _submitted(executor, task, islice(rest, ahead - len(waiting)))
        waiting |= {future: item for item, future in more}
        if not waiting:
            break
        done = wait(waiting, timeout=_PATIENCE_SECONDS, return_when=FIRST_COMPLETED).done
        raise_if_interrupted()
        for future in done:
            item, result = waiting.pop(future), _outcome(future)
            if isinstance(result, _Lost):
                suspects.append(item)
            else:
                yield item, result
    yield from in_order(executor, work, suspects, ahead=1, limits=limits)


def in_blocks(
    executor: Executor,
    work: Callable[[Sequence[T]], Sequence[R]],
    blocks: Iterable[Sequence[T]],
    *,
    ahead: int,
    limits: Limits | None = None,
) -> Iterator[tuple[T, R | CaseError]]:
    """`in_order` for items that are worked on in blocks; one that is to blame costs itself alone.

    Args:
        executor: where the work is done.
        work: what is done with a block: a result for each of its items, in their order.
        blocks: of items.
        ahead: how many blocks may be under way.
        limits: of time and memory for a block.
    """
    for block, results in in_order(executor, work, blocks, ahead=ahead, limits=limits):
        if not isinstance(results, CaseError):
            yield from zip(block, results, strict=True)
        elif len(block) == 1:
            yield block[0], results
        else:
            single = ([item] for item in block)
            yield from in_blocks(executor, work, single, ahead=1, limits=limits)


@dataclass(frozen=True)
class _Lost:
    """The process that had a task died; why, as far as it is known."""

    why: str


def _outcome(future: "Future[R]") -> R | _Lost:
    """What a task gave, or that its worker died."""
    _wait_for(future)
    try:
        return future.result()
    except BaseException as error:
        name = type(error).__name__  # Dask's and Pebble's, which this module does not import
        if name == "BrokenProcessPool":
            return _Lost(f"{_DIED}; {_REMEDY}")
        if name == "ProcessExpired":
            return _Lost(_why(int(getattr(error, "exitcode", 0) or 0)))
        if name == "KilledWorker":
            return _Lost(f"{_DIED}, {_OR_TOO_LONG}; {_REMEDY}")
        if name in {"CancelledError", "FutureCancelledError", "CommClosedError"}:
            raise ConfigError(
                "the Dask scheduler is gone; start it and the same command again, finished cases"
                " are kept"
            ) from error
        raise


_DIED = "its process died twice (out of memory, or a library crashed on its file)"
_OR_TOO_LONG = "or took longer than limits.case_seconds or limits.still_seconds"
_REMEDY = "look at the file"


def _why(code: int) -> str:
    if code == TOO_LONG:
        return f"took longer than limits.case_seconds; {_REMEDY}, or allow more"
    if code == STOOD_STILL:
        return f"got no further within limits.still_seconds; {_REMEDY}, or allow more"
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{_DIED}: {how}; {_REMEDY}"


def _wait_for(future: "Future[Any]") -> None:
    while not wait([future], timeout=_PATIENCE_SECONDS).done:
        raise_if_interrupted()
