import threading
from collections.abc import Iterator

import pytest

from esad_med.base.overlap import read_ahead


@pytest.fixture(params=["", "overlap"])
def plain(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ESAD_PLAIN", request.param)
    return str(request.param)


def test_items_come_in_order_with_and_without_a_thread(plain: str) -> None:
    with read_ahead(iter(range(100))) as items:
        assert list(items) == list(range(100))


def test_an_error_comes_where_its_item_would_have_come(plain: str) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("damaged")

    with read_ahead(items()) as taken:
        assert next(taken) == 1
        with pytest.raises(ValueError, match="damaged"):
            next(taken)


def test_items_are_made_in_another_thread_and_only_so_far_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ESAD_PLAIN", raising=False)
    made: list[int] = []
    third = threading.Event()

    def items() -> Iterator[str]:
        for number in range(10):
            made.append(number)
            if number == 3:
                third.set()
            yield threading.current_thread().name

    with read_ahead(items(), depth=2) as taken:
        assert next(taken) == "read-ahead"
        assert third.wait(5)  # made while nobody asked for it
        assert len(made) <= 5  # one taken, two waiting, one in hand
        rest = list(taken)
    assert len(rest) == 9


def test_leaving_early_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESAD_PLAIN", raising=False)
    with read_ahead(iter(range(1000)), depth=1) as taken:
        assert next(taken) == 0
    assert not [t for t in threading.enumerate() if t.name == "read-ahead"]
