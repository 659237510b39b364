"""Reading ahead in a thread, so that one part of the work is done while another waits."""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from esad_med.base.plain import is_plain

T = TypeVar("T")
_END = object()


@contextmanager
def read_ahead(items: Iterable[T], *, depth: int = 2) -> Iterator[Iterator[T]]:
    """The items in their order, made by a thread up to ``depth`` items ahead.

    What the thread raises is raised where the item would have come. The block does not end before
    the thread has: whatever the items read may be closed afterwards.
    """
    if is_plain("overlap"):
        yield iter(items)
        return
    waiting: queue.Queue[object] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:
            put(_Raised(error))

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        yield _taken(waiting)
    finally:
        stopped.set()
        thread.join()


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _taken(waiting: "queue.Queue[object]") -> Generator[T, None, None]:
    while (item := waiting.get()) is not _END:
        if isinstance(item, _Raised):
            raise item.error
        yield item  # type: ignore[misc] # only items of T, the end and errors are put
