"""Executors: results in the order of the items, in this process and on Dask workers."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from esad_med.base import interrupts
from esad_med.base.errors import CaseError, ConfigError, SlideError
from esad_med.base.execution import HERE, InProcess, Place, in_order, open_executor


def square(number: int) -> int:
    return number * number


def die_of_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def refuse_three(number: int) -> int:
    if number == 3:
        raise SlideError("three.svs: damaged")
    return number


def test_here_is_this_process_and_takes_items_as_they_are_needed() -> None:
    taken = []
    with open_executor(HERE) as executor:
        assert isinstance(executor, InProcess)
        items = (taken.append(n) or n for n in range(5))
        results = in_order(executor, square, items, ahead=1)
        assert next(results) == (0, 0)
        assert taken == [0]
        assert list(results) == [(n, n * n) for n in range(1, 5)]


def test_results_keep_the_order_of_the_items_however_long_each_takes() -> None:
    last = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert last.wait(10)  # the first ends after the second
        else:
            last.set()
        return number

    with ThreadPoolExecutor(2) as executor:
        assert [n for _, n in in_order(executor, work, range(2), ahead=2)] == [0, 1]


def test_what_the_work_raises_comes_where_its_result_would() -> None:
    with open_executor(HERE) as executor:
        results = in_order(executor, refuse_three, range(2, 5), ahead=1)
        assert next(results) == (2, 2)
        with pytest.raises(SlideError, match=r"three\.svs"):
            next(results)


def test_a_noted_ctrl_c_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    noted = threading.Event()
    monkeypatch.setattr(interrupts, "_requested", noted)
    with ThreadPoolExecutor(1) as executor:
        results = in_order(executor, lambda _: (noted.set(), release.wait(10)), [1], ahead=1)
        with pytest.raises(KeyboardInterrupt):
            next(results)
        release.set()


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ConfigError, match=r"pip install 'esad-med\[cluster\]'"),
        open_executor(Place(2)),
    ):
        pass


def test_a_worker_that_dies_costs_its_item_alone() -> None:
    pytest.importorskip("distributed")
    with open_executor(Place(2)) as executor:
        found = dict(in_order(executor, die_of_three, range(6), ahead=4))
    assert isinstance(found[3], CaseError)
    assert "died" in str(found[3])
    others = {number: pid for number, pid in found.items() if number != 3}
    assert len(others) == 5
    assert os.getpid() not in others.values()


def test_what_only_waited_beside_a_deadly_item_is_tried_again() -> None:
    class KilledWorker(Exception):
        """Dask's, by its name."""

    tries: list[int] = []

    def work(item: int) -> int:
        tries.append(item)
        if item == 3 or (item == 4 and tries.count(4) == 1):
            raise KilledWorker
        return item

    with open_executor(HERE) as executor:
        found = dict(in_order(executor, work, range(6), ahead=4))
    assert isinstance(found.pop(3), CaseError)
    assert found == {0: 0, 1: 1, 2: 2, 4: 4, 5: 5}
    assert (tries.count(3), tries.count(4), len(tries)) == (2, 2, 8)


def test_workers_listen_on_the_loopback_only() -> None:
    pytest.importorskip("distributed")
    psutil = pytest.importorskip("psutil")
    with open_executor(Place(2)) as executor:
        assert executor.submit(square, 3).result(timeout=60) == 9
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        places = [
            connection.laddr.ip
            for process in family
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    assert len(family) > 2
    assert places
    assert set(places) <= {"127.0.0.1", "::1"}
    left = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
    assert [line for line in left if "spawn_main" in line] == []


def test_workers_inherit_the_environment_but_have_one_thread() -> None:
    pytest.importorskip("distributed")
    code = (
        "import os\n"
        "from esad_med.base.execution import Place, open_executor\n"
        "if __name__ == '__main__':\n"
        "    with open_executor(Place(2)) as executor:\n"
        "        for name in ('ESAD_PLAIN', 'OMP_NUM_THREADS', 'MALLOC_TRIM_THRESHOLD_'):\n"
        "            print(executor.submit(os.getenv, name).result(timeout=60))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "ESAD_PLAIN": "kernels"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["kernels", "1", "None"]  # the last is slow for large arrays


def warn_of(number: int) -> None:
    logging.getLogger("pipelines.somewhere").warning("seen %d", number)
    logging.getLogger("pipelines.somewhere").info("too much")
    logging.getLogger("somebody.else").warning("what stood in a file")


@pytest.mark.parametrize("workers", [1, 2])
def test_messages_of_ours_reach_the_command_from_its_workers(
    workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    if workers > 1:
        pytest.importorskip("distributed")
    with open_executor(Place(workers)) as executor:
        list(in_order(executor, warn_of, [1, 2], ahead=1))
        deadline = time.monotonic() + 10
        while len(caplog.messages) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert caplog.messages == ["seen 1", "seen 2"]


def own_number(_: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("pause", [0.0, 0.05, 0.3])
def test_a_process_that_dies_between_two_tasks_is_replaced(pause: float) -> None:
    with open_executor(Place(1)) as executor:
        seen = set()
        for number in range(3):
            ((_, process),) = in_order(executor, own_number, [number], ahead=1)
            assert isinstance(process, int)
            seen.add(process)
            os.kill(process, signal.SIGKILL)
            time.sleep(pause)
    assert len(seen) == 3


class Reluctant:
    """Cannot be unpickled: by an error that Pebble would pass over, or die of."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> tuple[object, tuple[Exception]]:
        return refuse, (self.error,)


def refuse(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("error", [ConfigError("detector: was changed"), RuntimeError("memory")])
def test_a_task_that_does_not_arrive_says_why(error: Exception) -> None:
    with open_executor(Place(1)) as executor:
        results = in_order(executor, own_number, [Reluctant(error)], ahead=1)  # type: ignore[list-item]
        with pytest.raises(type(error), match=str(error)):
            next(results)
        assert len(list(in_order(executor, own_number, [1], ahead=1))) == 1
