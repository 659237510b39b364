"""Chunks of runs, one after the other or shared out to workers; one that dies is noted."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from esad_med.base.errors import CaseError
from esad_med.base.execution import HERE, Place, as_done, open_executor
from esad_med.base.interrupts import raise_if_interrupted
from pipelines.paper.runs import FailedRun, Outcome, Run

Chunk = Sequence[Run]
Work = Callable[[Chunk], Iterator[Outcome]]
"""Runs a chunk; elsewhere than in this process it must be picklable."""


def run_chunks(
    chunks: Sequence[Chunk], work: Work, *, place: Place = HERE, shared: Path | None = None
) -> Generator[Outcome, None, None]:
    """The outcomes of all runs, as they come.

    Args:
        chunks: runs that share something, such as an autoencoder; each is one worker's.
        work: runs a chunk.
        place: where; in this process every run is told at once, elsewhere every chunk.
        shared: a folder that a cluster's workers must see.

    Raises:
        EsadError: what stops the whole benchmark, as `work` raised it.
    """
    if place == HERE:
        for chunk in chunks:
            raise_if_interrupted()
            yield from work(chunk)
        return
    with open_executor(place, shared=shared) as executor:
        whole = partial(_outcomes, work)
        for chunk, found in as_done(executor, whole, chunks, ahead=place.ahead):
            if not isinstance(found, CaseError):
                yield from found
                continue
            for run in chunk:  # which of them was it?
                yield from _alone(run, found, chunk, executor, whole)


def _alone(
    run: Run,
    error: CaseError,
    chunk: Chunk,
    executor: Executor,
    whole: Callable[[Chunk], list[Outcome]],
) -> Iterator[Outcome]:
    """A run of a chunk that was lost twice, by itself."""
    if len(chunk) > 1:
        for _, found in as_done(executor, whole, [[run]], ahead=1):
            if not isinstance(found, CaseError):
                yield from found
                return
            error = found
    yield FailedRun(run, "WorkerDied", f"{error}; the next benchmark into this folder tries again")


def _outcomes(work: Work, chunk: Chunk) -> list[Outcome]:
    return list(work(chunk))
