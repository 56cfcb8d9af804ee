"""Finds the rows that kill engines: pure, and without a clock.

When an engine dies, any of the rows in flight may have done it, or none: a node was preempted. A shard that was there
at several deaths runs alone on an engine from then on, which clears its neighbours. If it dies alone as well, it is
bisected: parts of its rows run alone, to see whether the engine survives. A row that killed two engines all by itself
is quarantined, which rejects it with `engine_crash`; the rest of its shard is generated as ever. One death, even
alone, may be chance: somebody killed the process. Once an engine has died, each new one shows first that it survives
rows which another one did: it may be a machine that kills.

Of an engine that hangs it may be known which rows had begun and not ended. No other row is to blame, and the search
begins among those; where it is one alone, at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from batchgen.plan import Shard

# Deaths that a shard may be near before it runs alone: one is what a preempted node costs everybody on it.
DEATHS_AMONG_OTHERS = 2
_TRIAL_ROWS = 8


@dataclass(frozen=True)
class Isolated:
    """What runs on an engine that holds nothing else.

    Args:
        rows: [start, stop) of a probe, whose rows are thrown away; None: the whole shard, to be committed.
        trial: of the engine itself, by rows that another one survived.
    """

    shard: Shard
    rows: tuple[int, int] | None = None
    trial: bool = False


class Suspects:
    """Shards and rows that may have killed an engine."""

    def __init__(self) -> None:
        self._deaths: dict[int, int] = {}
        self._waiting: deque[Isolated] = deque()
        # Rows among which a shard's killer is, for shards that died alone.
        self._ranges: dict[int, tuple[int, int]] = {}
        # Rows by themselves with which an engine died once.
        self._accused: set[int] = set()
        self._quarantined: dict[int, set[int]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def quarantined(self, shard: Shard) -> frozenset[int]:
        """Rows of a shard that killed engines by themselves."""
        return frozenset(self._quarantined.get(shard.index, ()))

    def next(self) -> Isolated:
        """What is to run alone next; there has to be something."""
        return self._waiting.popleft()

    @staticmethod
    def trial(sound: Shard) -> Isolated:
        """Some rows of a shard that is done, for an engine of which nobody knows that it works at all."""
        return Isolated(sound, (sound.start, min(sound.stop, sound.start + _TRIAL_ROWS)), trial=True)

    def put_back(self, work: Isolated) -> None:
        """What did not run to an end, for no fault of its own."""
        if not work.trial:
            self._waiting.appendleft(work)

    def died_among(self, shards: Sequence[Shard], open_rows: Collection[int] = ()) -> list[Shard]:
        """An engine died that held several shards; returns those that go on among others.

        Args:
            open_rows: had begun and not ended; none where it is not known.
        """
        free = []
        for shard in shards:
            span = _span(open_rows, shard.start, shard.stop)
            if open_rows and span is None:
                free.append(shard)
                continue
            self._deaths[shard.index] = self._deaths.get(shard.index, 0) + 1
            if span is not None and span[1] - span[0] == 1:
                self._waiting.append(self._part(shard, span))
            elif self._deaths[shard.index] < DEATHS_AMONG_OTHERS:
                free.append(shard)
            else:
                self._waiting.append(Isolated(shard))
        return free

    def died_alone(self, work: Isolated, open_rows: Collection[int] = ()) -> None:
        """An engine died that held nothing else; of `open_rows`, see `died_among`."""
        ran = work.rows or (work.shard.start, work.shard.stop)
        rows = _span(open_rows, *ran) or ran
        if rows != ran or rows[1] - rows[0] > 1:
            self._waiting.appendleft(self._part(work.shard, rows))
        elif rows[0] not in self._accused:
            self._accused.add(rows[0])
            self._waiting.appendleft(work)
        else:
            self._quarantined.setdefault(work.shard.index, set()).add(rows[0])
            self._ranges.pop(work.shard.index, None)
            self._waiting.appendleft(Isolated(work.shard))

    def survived(self, work: Isolated) -> None:
        """An engine outlived what it held alone."""
        if work.trial:
            return
        self._accused.difference_update(range(*(work.rows or (work.shard.start, work.shard.stop))))
        if work.rows is None:
            self._deaths.pop(work.shard.index, None)
            return
        _, stop = self._ranges.pop(work.shard.index)
        rest = (work.rows[1], stop)
        if rest[0] < rest[1]:
            # One row that is left is tried as well: none is quarantined that has not killed an engine alone.
            self._waiting.appendleft(self._part(work.shard, rest))
        else:
            # No part of the shard kills an engine by itself: it was chance, or rows that do it together.
            self._waiting.append(Isolated(work.shard))

    def _part(self, shard: Shard, rows: tuple[int, int]) -> Isolated:
        """The first half of the rows among which a shard's killer is."""
        self._ranges[shard.index] = rows
        return Isolated(shard, (rows[0], rows[1] if rows[1] - rows[0] == 1 else sum(rows) // 2))


def _span(rows: Collection[int], start: int, stop: int) -> tuple[int, int] | None:
    """[first, last + 1) of those rows that are in [start, stop); None where none is."""
    within = [row for row in rows if start <= row < stop]
    return (min(within), max(within) + 1) if within else None
