"""Images are prepared on several threads, and come back in order."""

import threading
import time

import pytest

from esad_med.base.errors import ImageError
from pipelines.chest_xray import on_threads


def test_results_come_in_order_with_errors_in_their_place():
    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        if number % 5 == 0:
            raise ImageError(f"bad {number}")
        return number * 10

    found = list(on_threads(work, range(20)))
    assert [item for item, _ in found] == list(range(20))
    for item, result in found:
        if item % 5 == 0:
            assert isinstance(result, ImageError)
        else:
            assert result == item * 10


def test_no_more_is_read_ahead_than_asked_for():
    started = 0
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal started
        with lock:
            started += 1
        return number

    results = on_threads(work, range(1000), ahead=40)
    for _ in range(10):
        next(results)
    time.sleep(0.05)
    assert started <= 40 + 10
    results.close()


def test_what_is_no_error_of_the_user_s_is_raised():
    def work(number: int) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(on_threads(work, [1]))
