"""Ctrl-C is noted and answered between steps; a second one, or a step too long, ends it at once."""

import signal
import threading
import time
import weakref

import pytest

from esad_med.base import interrupts
from esad_med.base.interrupts import noted_interrupts, raise_if_interrupted


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_is_answered_between_steps() -> None:
    before = signal.getsignal(signal.SIGINT)
    with noted_interrupts():
        press_ctrl_c()  # and the step goes on
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    assert signal.getsignal(signal.SIGINT) is before
    raise_if_interrupted()  # what was pressed in one run says nothing about the next


def test_sigterm_is_answered_like_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with noted_interrupts():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_inside_a_callback_is_not_lost() -> None:
    """Python swallows an exception there, so a KeyboardInterrupt would change nothing."""

    class Thing:
        pass

    thing = Thing()
    reference = weakref.ref(thing, lambda _: press_ctrl_c())
    with noted_interrupts():
        del thing
        assert reference() is None
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()


def test_a_second_one_does_not_wait() -> None:
    with noted_interrupts():
        press_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()


def test_a_step_that_takes_too_long_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "PATIENCE_SECONDS", 0.05)
    with noted_interrupts():
        press_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(20)


def test_no_timer_outlives_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "PATIENCE_SECONDS", 0.05)
    with noted_interrupts():
        press_ctrl_c()
    time.sleep(0.2)  # an interrupt now would fail this test


def test_what_was_to_be_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with noted_interrupts():
            press_ctrl_c()
            raise_if_interrupted()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_signals_alone() -> None:
    found = []

    def run() -> None:
        with noted_interrupts():
            found.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]
