"""Chunks of runs in worker processes: the same outcomes, a death noted, an error for all, Ctrl-C.

This module imports little at its top: every worker imports it to find the stand-ins below.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from esad_med.base.errors import ConfigError
from esad_med.base.execution import Place
from pipelines.paper.jobs import Chunk, run_chunks
from pipelines.paper.runs import FailedRun, Outcome, Result, Run


def runs(*seeds: int) -> list[Run]:
    return [Run("odds", "cardio", "oc-svm", seed) for seed in seeds]


def measure(chunk: Chunk) -> Iterator[Outcome]:
    for run in chunk:
        if run.seed == 66:
            os.kill(os.getpid(), signal.SIGKILL)
        if run.seed == 77:
            raise ConfigError("no run can have this setting")
        yield Result(run, run.seed / 100, None, None, 9, 1, 5, 5, seconds=0.0)


def threads(chunk: Chunk) -> Iterator[Outcome]:
    yield FailedRun(chunk[0], "Threads", os.environ["OMP_NUM_THREADS"])


def wait(chunk: Chunk) -> Iterator[Outcome]:
    os.write(1, f"{os.getpid()}\n".encode())  # in one piece: two workers share the pipe
    time.sleep(200)
    yield from measure(chunk)


def by_seed(outcomes: Iterator[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda outcome: outcome.run.seed)


def test_workers_give_what_one_process_gives():
    chunks = [runs(1, 2), runs(3), runs(4, 5, 6)]
    together = by_seed(run_chunks(chunks, measure, place=Place(2)))
    assert together == by_seed(run_chunks(chunks, measure))
    assert [outcome.run.seed for outcome in together] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_kills_its_worker_fails_alone():
    outcomes = by_seed(
        run_chunks([runs(1, 66, 67), runs(3), runs(4), runs(5)], measure, place=Place(2))
    )
    assert [outcome.run.seed for outcome in outcomes] == [1, 3, 4, 5, 66, 67]
    (lost,) = [outcome for outcome in outcomes if not isinstance(outcome, Result)]
    assert isinstance(lost, FailedRun)
    assert (lost.run.seed, lost.error) == (66, "WorkerDied")
    assert "its process died" in lost.message
    assert "the next benchmark into this folder tries again" in lost.message


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_what_no_run_can_have_stops_all(workers):
    with pytest.raises(ConfigError, match="no run can have"):
        list(run_chunks([runs(77), runs(1)], measure, place=Place(workers)))


def test_a_worker_has_one_thread_and_this_process_keeps_its_own(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    outcome, _ = run_chunks([runs(1), runs(2)], threads, place=Place(2))
    assert isinstance(outcome, FailedRun)
    assert outcome.message == "1"
    assert "OMP_NUM_THREADS" not in os.environ


def test_workers_end_with_a_parent_that_is_killed():
    chunks = "[t.runs(1), t.runs(2)]"
    program = f"import test_paper_jobs as t; list(t.run_chunks({chunks}, t.wait, place=t.Place(2)))"
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        os.kill(workers[0], 0)  # it is there
        parent.kill()
        assert parent.stdout.read() == ""  # read to the end: nobody holds it open any more
    finally:
        parent.kill()
        parent.communicate()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_ctrl_c_is_answered_between_runs(workers, monkeypatch):
    seen: list[Outcome] = []

    def interrupt() -> None:
        if seen:
            raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.paper.jobs.raise_if_interrupted", interrupt)
    monkeypatch.setattr("esad_med.base.execution.raise_if_interrupted", interrupt)
    outcomes = run_chunks([runs(n) for n in range(9)], measure, place=Place(workers))
    with pytest.raises(KeyboardInterrupt):
        deque(map(seen.append, outcomes))
    assert 1 <= len(seen) < 9
    assert not multiprocessing.active_children()
