"""Ctrl-C without harm: it is answered between two steps, not in the middle of one.

Python raises KeyboardInterrupt wherever the main thread happens to be. Inside a destructor or a
weak reference's callback it is swallowed and the run goes on; between OpenSlide's closing of a file
and its noting so, the file is closed twice and the process crashes. So the command line only notes
Ctrl-C, and `raise_if_interrupted` answers it where nothing is half done.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: After this long in one step, Ctrl-C interrupts it in its middle after all, as a second one does.
PATIENCE_SECONDS = 5.0

_requested = threading.Event()


def raise_if_interrupted() -> None:
    """Answer a Ctrl-C that was noted; to be called between the steps of whatever takes long.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    if _requested.is_set():
        raise KeyboardInterrupt


@contextmanager
def noted_interrupts() -> Iterator[None]:
    """Note Ctrl-C instead of raising KeyboardInterrupt at once; only the main thread can.

    A Ctrl-C that the program was started to ignore (``nohup``, a shell's background job) stays
    ignored.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    waiting: list[threading.Timer] = []

    def note(_: int, __: FrameType | None) -> None:
        if _requested.is_set():
            raise KeyboardInterrupt
        _requested.set()
        again = (threading.main_thread().ident, signal.SIGINT)
        timer = threading.Timer(PATIENCE_SECONDS, signal.pthread_kill, again)
        timer.daemon = True
        timer.start()
        waiting.append(timer)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        for timer in waiting:
            timer.cancel()
        _requested.clear()
