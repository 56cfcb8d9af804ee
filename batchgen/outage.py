"""Outlasts a store, or a model server, that is out of reach for a while: a run of a night is not to end for minutes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from batchgen.errors import EngineUnavailable, StoreError

Result = TypeVar("Result")
# Between two notes about something that goes on.
TELL_SECONDS = 60.0
_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)


def outlast_store(call: Callable[[], Result], patience: float, tell: Callable[[str], None]) -> Result:
    """What a call gives, which is made again and again while the store fails: one that is safe to make twice.

    Args:
        patience: seconds from the first failure until it is given up.
        tell: told why it waits, now and then.

    Raises:
        StoreError: of the last try.
    """
    first = told = None
    for tries in itertools.count():
        try:
            return call()
        except StoreError as error:
            now = time.monotonic()
            first = now if first is None else first
            if now - first >= patience:
                raise
            if told is None or now - told >= TELL_SECONDS:
                told = now
                tell(_while_waiting(str(error), first + patience - now))
        time.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
    raise AssertionError("it is tried for ever")


def _while_waiting(reason: str, left: float) -> str:
    return f"{reason} (for {max(left, 0):.0f} s more at most: outage_seconds)"


class Outage:
    """Calls to one thing elsewhere, which share what they know of it.

    Args:
        patience: seconds from the first call that failed until those that wait give up.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._since: float | None = None
        self._waiting: set[object] = set()
        self._reason = ""
        self._given_up = asyncio.Event()
        self.successes = 0

    @property
    def reason(self) -> str:
        """Why calls wait and for how long they may yet; "" where none does."""
        if not self._waiting or self._since is None:
            return ""
        left = self._since + self._patience - time.monotonic()
        # The last try comes after a pause that began just before the patience ended.
        return _while_waiting(self._reason, left) if left >= -_PAUSES[-1] else ""

    @property
    def patient(self) -> bool:
        """Whether calls wait at all."""
        return self._patience > 0

    def give_up(self) -> None:
        """Ends the patience: what waits fails at its next try, which is made at once."""
        self._patience = 0
        self._given_up.set()

    async def outlast(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """What a call gives, which is made again and again while it raises `StoreError` or `EngineUnavailable`.

        Raises:
            StoreError, EngineUnavailable: of the last try, with how long it was waited for.
        """
        me = object()
        first = float("inf")
        try:
            for tries in itertools.count():
                try:
                    result = await call()
                except (StoreError, EngineUnavailable) as error:
                    # One that has to wait while others are let in waits on, until none is.
                    first = float("inf") if getattr(error, "limited", False) else min(first, time.monotonic())
                    self._failed(error, first)
                    self._waiting.add(me)
                else:
                    self._since = None
                    self.successes += 1
                    return result
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._given_up.wait(), _PAUSES[min(tries, len(_PAUSES) - 1)])
        finally:
            self._waiting.discard(me)
        raise AssertionError("it is tried for ever")

    def _failed(self, error: StoreError | EngineUnavailable, first: float) -> None:
        """Notes a failure; raises where it is no use to wait any more."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if not self.patient or getattr(error, "final", False):
            raise error
        # What works for others and not for this call is not waited for any longer either.
        if now - min(first, self._since) >= self._patience:
            last = type(error)(f"{error}; it has been like this for {self._patience:g} s (outage_seconds)")
            last.waited = self._patience
            if isinstance(last, EngineUnavailable):
                last.alone = now - self._since < self._patience / 2
            raise last from None
        self._reason = str(error)
