"""Signals that stop a run: its driver is asked to stop, and an exception ends what comes before and after that."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from batchgen.errors import Stopped

_REASONS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "told to stop (SIGTERM)",
    signal.SIGHUP: "its terminal was closed (SIGHUP)",
}


class _Told(KeyboardInterrupt):
    """No `Exception`: what libraries do with those would swallow it."""


def _set(handlers: Mapping[signal.Signals, Any]) -> None:
    with contextlib.suppress(ValueError):  # not in the main thread, which alone gets signals
        for number, handler in handlers.items():
            if handler is not None:  # one that is not Python's
                signal.signal(number, handler)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Has SIGTERM and SIGHUP end what is within; SIGINT raises `KeyboardInterrupt` as ever.

    Raises:
        Stopped: with the reason.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    told = set[int]()

    def tell(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and number in told:
            return  # see `handled_in_loop`
        told.add(number)
        raise _Told(_REASONS[signal.Signals(number)])

    try:
        _set({number: tell for number, handler in before.items() if handler is not signal.SIG_IGN})
        yield
    except _Told as error:
        raise Stopped(str(error)) from None
    finally:
        _set(before)


@contextlib.contextmanager
def handled_in_loop(stop: Callable[[str], None]) -> Iterator[None]:
    """Has the running loop call `stop` with the reason at each of the signals, and leaves the handlers as they were."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in _REASONS}
    hung_up = False

    def hang_up() -> None:
        # The kernel and the shell send one each: two of them do not mean that somebody is in a hurry. (Another handler
        # would come too late for the second: the loop may have both at once.)
        nonlocal hung_up
        if not hung_up:
            hung_up = True
            stop(_REASONS[signal.SIGHUP])

    with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread: the caller's handlers stay
        loop.add_signal_handler(signal.SIGINT, stop, _REASONS[signal.SIGINT])
        loop.add_signal_handler(signal.SIGTERM, stop, _REASONS[signal.SIGTERM])
        if before[signal.SIGHUP] is not signal.SIG_IGN:  # nohup: it is to outlive its terminal
            loop.add_signal_handler(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        for number in before:
            loop.remove_signal_handler(number)
        _set(before)


@contextlib.contextmanager
def signals_put_off() -> Iterator[None]:
    """Has the signals wait until what is within has ended, for code that must not be left half done.

    A second one shows that somebody will not wait, and does what it would have done.
    """
    before = {number: signal.getsignal(number) for number in _REASONS}
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted and number != signal.SIGHUP:
            _set(before)
            signal.raise_signal(number)
        noted.append(number)

    _set({number: note for number, handler in before.items() if handler is not signal.SIG_IGN})
    try:
        yield
    finally:
        _set(before)
        if noted:
            signal.raise_signal(noted[0])
