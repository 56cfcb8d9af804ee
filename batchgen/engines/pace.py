"""How many requests a server is asked at once: fewer, while it says that it is asked too often."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# Seconds without a request after a refusal, the double after each further one, as long as the server does not say.
_PAUSE = 0.5
_LONGEST_PAUSE = 8.0
_LONGEST_TOLD = 60.0
# So many in a row are no matter of pace: it lets nobody in, which is to be known of every request.
_SHUT = 5


class Pace:
    """Half as many at once after a refusal, and one more once all of them have been answered, as TCP does.

    Args:
        most: requests at once.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._allowed = float(most)
        self._under_way = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._came = itertools.count()
        self._refusals = 0
        self._slowed = float("-inf")
        self._opens = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    @property
    def slowed(self) -> bool:
        """Whether fewer requests than the most may be under way."""
        return self.allowed < self.most

    @property
    def allowed(self) -> int:
        """Requests that may be under way."""
        return self.most if self._refusals >= _SHUT else int(self._allowed)

    @asynccontextmanager
    async def turn(self, priority: int = 0) -> AsyncIterator[float]:
        """Waits until one more request may be made; gives the time at which it is, for `refused`.

        Args:
            priority: the lowest of those that wait goes first, equal ones as they came.
        """
        if self._waiting or not self._admits():
            await self._wait(priority)
        else:
            self._under_way += 1
        try:
            yield asyncio.get_running_loop().time()
        finally:
            self._under_way -= 1
            self._admit()

    def answered(self) -> None:
        """A request was let in."""
        if self._refusals >= _SHUT:
            self._allowed = 1.0
        self._refusals = 0
        self._allowed = min(float(self.most), self._allowed + 1 / self._allowed)

    def refused(self, began: float, told: float | None) -> None:
        """A request was refused as one too many.

        Args:
            began: when it was made. Those that were under way already as another one was refused tell nothing new.
            told: for how many seconds the server wants no other, if it says so.
        """
        if began <= self._slowed:
            return
        self._slowed = asyncio.get_running_loop().time()
        self._allowed = max(1.0, min(self._allowed, self._under_way) / 2)
        pause = min(_LONGEST_PAUSE, _PAUSE * 2**self._refusals) if told is None else min(_LONGEST_TOLD, told)
        self._opens = self._slowed + pause
        self._refusals += 1
        self._admit()

    def _admits(self) -> bool:
        shut = self._refusals < _SHUT and asyncio.get_running_loop().time() < self._opens
        return not shut and self._under_way < self.allowed

    async def _wait(self, priority: int) -> None:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting, (priority, next(self._came), turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given in the same moment
                self._under_way -= 1
                self._admit()
            raise

    def _admit(self) -> None:
        """Lets in who may be, and comes back when the next may."""
        while self._waiting and self._admits():
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                self._under_way += 1
                turn.set_result(None)
        loop = asyncio.get_running_loop()
        if self._waiting and loop.time() < self._opens and (self._timer is None or self._timer.when() < self._opens):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(self._opens, self._open)

    def _open(self) -> None:
        self._timer = None  # a loop's timers may be a moment early
        self._admit()
