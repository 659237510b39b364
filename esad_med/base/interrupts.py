"""Ctrl-C and SIGTERM without harm: answered between two steps, not in the middle of one.

Python raises KeyboardInterrupt wherever the main thread happens to be. Inside a destructor or a
weak reference's callback it is swallowed and the run goes on; between OpenSlide's closing of a file
and its noting so, the file is closed twice and the process crashes. So the command line only notes
Ctrl-C, and `raise_if_interrupted` answers it where nothing is half done. SIGTERM, by which a batch
system or a container ends a process, is answered alike.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: After this long in one step, Ctrl-C interrupts it in its middle after all, as a second one does.
PATIENCE_SECONDS = 5.0

_requested = threading.Event()


_last_step = time.monotonic()


def raise_if_interrupted() -> None:
    """Answer a Ctrl-C that was noted; to be called between the steps of whatever takes long.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    global _last_step
    _last_step = time.monotonic()
    if _requested.is_set():
        raise KeyboardInterrupt


def seconds_since_last_step() -> float:
    """How long ago this process last called `raise_if_interrupted`: is it getting anywhere?"""
    return time.monotonic() - _last_step


@contextmanager
def noted_interrupts() -> Iterator[None]:
    """Note Ctrl-C and SIGTERM instead of ending at once; only the main thread can.

    What the program was started to ignore (``nohup``, a shell's background job) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(number)) not in {signal.SIG_IGN, None}
    }
    waiting: list[threading.Timer] = []

    def note(number: int, _: FrameType | None) -> None:
        if _requested.is_set():
            raise KeyboardInterrupt
        _requested.set()
        again = (threading.main_thread().ident, number)
        timer = threading.Timer(PATIENCE_SECONDS, signal.pthread_kill, again)
        timer.daemon = True
        timer.start()
        waiting.append(timer)

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in waiting:
            timer.cancel()
        _requested.clear()
