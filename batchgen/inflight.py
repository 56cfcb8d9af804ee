"""The rows that an engine has in flight: how many at a time, which of them go first, and what it has not begun yet."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from batchgen.rows import SeedRow

# Rows in flight per engine slot. A row between two of its calls holds no slot; at 1.1 the engine ran at 0.77 of its
# speed for that reason, from 1.5 on at 0.98.
ROWS_PER_SLOT = 2.0
# So few rows in flight are told one by one: where an engine hangs, one of them is to blame.
_TOLD_ROWS = 64


@dataclass
class Held:
    """A shard that a worker holds, or what stands for one where rows are only tried.

    Args:
        attempt: at it.
        rows: tasks, of which each gives the results of one.
        first: the number of the first of its rows that began; None before one has.
        worked: whether something has come of one of them: a completion, a text at a gate, its end.
    """

    attempt: str
    rows: Sequence[asyncio.Task[Any]] = ()
    first: int | None = None
    worked: bool = False


@dataclass(eq=False)
class Begun:
    """A seed row in flight.

    Args:
        number: of rows that this engine began before it.
        calls: completions that it has had.
    """

    seed: SeedRow
    held: Held
    number: int
    calls: int = 0


class InFlight:
    """The rows of one worker. Not thread-safe.

    Args:
        most: rows at a time; first come, first served, so that a shard begins when all that came before it have.
        slots: requests at a time of the engine to which rows' first requests go.

    Attributes:
        draining: whether, as things are, no shard is to come and none to be given back.
    """

    def __init__(self, most: int, slots: int) -> None:
        self._most = most
        self._slots = slots
        self._room = asyncio.Semaphore(most)
        self._to_begin = 0
        self._numbers = itertools.count()
        self._open: set[int] = set()
        # How often each row waits for that engine.
        self._waits = Counter[Begun]()
        self.draining = False

    def __len__(self) -> int:
        return len(self._open)

    @property
    def told(self) -> Sequence[int]:
        """Positions of the rows in flight; none where they are many."""
        return sorted(self._open) if len(self._open) <= _TOLD_ROWS else ()

    async def begin(self, seed: SeedRow, held: Held) -> Begun:
        """Waits for room, which `end` makes again."""
        self._to_begin += 1
        try:
            await self._room.acquire()
        finally:
            self._to_begin -= 1
        row = Begun(seed, held, next(self._numbers))
        if held.first is None:
            held.first = row.number
        self._open.add(seed.index)
        return row

    def end(self, row: Begun) -> None:
        """A row has ended, whatever came of it."""
        self._open.discard(row.seed.index)
        self._room.release()

    @contextmanager
    def waiting(self, row: Begun) -> Iterator[None]:
        """Counts a row among those that wait for the engine of first requests."""
        self._waits[row] += 1
        try:
            yield
        finally:
            self._waits[row] -= 1
            if not self._waits[row]:
                del self._waits[row]

    def works_on(self, held: Held) -> bool:
        """Whether something has come of a shard, or may come of it soon.

        Until then all of its requests are their rows' first ones. As long as requests of rows before it are as many
        as the engine of those has slots, its own are waiting.
        """
        if held.worked or held.first is None:
            return held.worked
        before = sum(waits for row, waits in self._waits.items() if self.priority(row) < held.first)
        return before < self._slots

    def priority(self, row: Begun) -> int:
        """Of a row's next request.

        What began earlier goes first: the next turn of a conversation then comes while the engine still has the turns
        before it, and shards end one by one, where all rows in flight would otherwise take turns. Once the last rows
        have begun, those go first that have come least far: else they would run through all their calls while more and
        more slots are empty.
        """
        last = self.draining and not self._to_begin
        return row.number + row.calls * self._most * last
