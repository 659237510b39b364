"""Time and memory of a case: whoever exceeds them loses the case, and the run goes on."""

import ctypes
import logging
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from esad_med.base.errors import CaseError
from esad_med.base.execution import Place, in_blocks, in_order, open_executor, report
from esad_med.base.limits import Limits
from esad_med.base.own_process import _listen
from esad_med.cli.logs import say_unexpected, set_up_logs

BESIDE = Place(1)


def hang(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def hang_but_report(seconds: float) -> float:
    for step in range(int(10 * seconds)):
        time.sleep(0.1)
        report("hanging", step, int(10 * seconds))
    return seconds


def take(gib: float) -> int:
    return len(np.ones(int(gib * 2**30), np.uint8))


def take_for_torch(gib: float) -> int:
    import torch

    return len(torch.ones(int(gib * 2**30), dtype=torch.uint8))


def crash(block: list[int]) -> list[int]:
    if 3 in block:
        ctypes.string_at(0)  # a library that reads where nothing is
    return [number * number for number in block]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_case_that_stands_still_is_set_aside(workers: int) -> None:
    limits = Limits(still_seconds=1)
    with open_executor(Place(workers)) as executor:
        found = dict(in_order(executor, hang, [0, 30, 0.1], ahead=1, limits=limits))
    assert (found[0], found[0.1]) == (0, 0.1)
    assert isinstance(found[30], CaseError)
    assert "limits.still_seconds" in str(found[30])


def test_a_case_that_gets_further_may_take_its_time_up_to_a_limit() -> None:
    limits = Limits(still_seconds=1, case_seconds=2.5)
    told: list[tuple[str, int, int]] = []
    with open_executor(BESIDE, progress=lambda *step: told.append(step)) as executor:
        found = dict(in_order(executor, hang_but_report, [1.5, 30], ahead=1, limits=limits))
    assert found[1.5] == 1.5
    assert isinstance(found[30], CaseError)
    assert "limits.case_seconds" in str(found[30])
    assert ("hanging", 0, 15) in told


@pytest.mark.parametrize("take", [take, take_for_torch])
def test_a_case_that_wants_too_much_memory_is_set_aside(take: Callable[[float], int]) -> None:
    limits = Limits(case_gib=0.5)
    with open_executor(BESIDE) as executor:
        found = dict(in_order(executor, take, [0.25, 1.0, 0.125], ahead=1, limits=limits))
    assert found[0.25] == 2**28
    assert isinstance(found[1.0], CaseError)
    assert "needs more than 0.5 GiB" in str(found[1.0])
    assert found[0.125] == 2**27


def test_of_a_block_that_crashes_only_the_one_to_blame_is_lost() -> None:
    with open_executor(BESIDE) as executor:
        found = dict(in_blocks(executor, crash, [[1, 2], [3, 4], [5]], ahead=1, limits=Limits()))
    assert isinstance(found.pop(3), CaseError)
    assert found == {1: 1, 2: 4, 4: 16, 5: 25}


def test_a_process_of_its_own_ends_with_the_block(tmp_path: Path) -> None:
    with open_executor(BESIDE) as executor:
        pid = executor.submit(os.getpid).result(timeout=60)
        assert pid != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def talk(path: str) -> str:
    warnings.warn(f"{path}: Secret^Sam", stacklevel=1)
    logging.getLogger("pydicom").warning("Secret^Sam")
    logging.getLogger("data_prep.slides").warning("%s: no pixels there", path)
    return path


def fail_oddly(path: str) -> str:
    raise KeyError(path)


class OddError(Exception):
    """Of a library: cannot be made of what it was pickled to."""

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)


def fail_unreadably(path: str) -> str:
    raise OddError(path, 3)


def test_an_error_that_cannot_be_sent_says_where_it_was_raised(capfd) -> None:
    with open_executor(BESIDE) as executor:
        results = in_order(executor, fail_unreadably, ["Secret^Sam"], ahead=1, limits=Limits())
        with pytest.raises(RuntimeError) as caught:
            next(results)
    set_up_logs()
    say_unexpected(caught.value)
    said = "".join(capfd.readouterr())
    assert "in fail_unreadably" in said
    assert "OddError" in said
    assert "Secret^Sam" not in said


def test_messages_are_taken_whatever_is_wrong_with_one() -> None:
    heard, told = multiprocessing.Pipe(duplex=False)
    shown: list[str] = []
    ended = threading.Event()

    def show(label: str, done: int, total: int) -> None:
        if label == "two":
            raise UnicodeEncodeError("ascii", "µ", 0, 1, "a terminal that knows none")
        shown.append(label)
        ended.set()

    told.send_bytes(b"half a mess")
    told.send(1)
    for label in ("two", "three"):
        told.send(("progress", label, 1, 2))
    _listen(heard, show, lambda: None, ended)
    assert shown == ["three"]


def test_our_own_messages_come_through_and_those_of_libraries_do_not(caplog, capfd) -> None:
    with open_executor(BESIDE) as executor:
        assert list(in_order(executor, talk, ["a"], ahead=1, limits=Limits())) == [("a", "a")]
        time.sleep(0.5)
    assert "a: no pixels there" in caplog.text
    assert "Sam" not in caplog.text + "".join(capfd.readouterr())


def test_an_unexpected_error_says_where_it_was_raised(caplog, capfd) -> None:
    with open_executor(BESIDE) as executor:
        results = in_order(executor, fail_oddly, ["Secret^" + "Sam"], ahead=1, limits=Limits())
        with pytest.raises(RuntimeError) as caught:
            next(results)
    set_up_logs()
    say_unexpected(caught.value)
    said = "".join(capfd.readouterr())
    assert "in fail_oddly" in said
    assert "Secret^Sam" not in said
