"""An engine as the scheduler sees it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from batchgen.plan import Shard
from batchgen.suspects import Isolated

# Rows that an engine should hold per slot of it. A worker has two in flight; some are finished and wait for the slow
# rows of their shards, and the rest are at hand when a slot falls free.
HELD_ROWS_PER_SLOT = 6
HELD_SHARDS = 2
# With fewer an engine runs short: that many the worker has in flight (`inflight.ROWS_PER_SLOT`).
BUSY_ROWS_PER_SLOT = 2


@dataclass
class EngineState:
    """One engine: what it holds, and whether it takes more."""

    slots: int = 0
    # It has a place to run on; it is up; it has done something since.
    placed: bool = False
    ready: bool = False
    worked: bool = False
    # In the order in which they were handed out, which is that in which a worker begins with them.
    shards: dict[int, Shard] = field(default_factory=dict)
    # Of these: asked back and not answered yet; known to be worked on.
    asked: set[int] = field(default_factory=set)
    begun: set[int] = field(default_factory=set)
    # Shards that failed on it, while it was well, since it did one.
    failed: list[int] = field(default_factory=list)
    # What it holds alone; `reserved`: it is to hold something alone as soon as it is empty.
    alone: Isolated | None = None
    reserved: bool = False

    @property
    def free(self) -> bool:
        """Whether it takes shards at all."""
        return self.ready and not self.reserved and self.alone is None

    @property
    def load(self) -> float:
        """Rows per slot, without those of shards that are asked back."""
        rows = sum(shard.stop - shard.start for index, shard in self.shards.items() if index not in self.asked)
        return rows / max(1, self.slots)

    @property
    def wants_more(self) -> bool:
        return self.free and (len(self.shards) < HELD_SHARDS or self.load < HELD_ROWS_PER_SLOT)

    def is_better_for(self, shard: Shard, holder: EngineState) -> bool:
        """Whether a shard that another engine holds and has not begun ends sooner here, as far as loads tell."""
        return self.load + (shard.stop - shard.start) / max(1, self.slots) < holder.load

    def recallable(self) -> list[Shard]:
        """Those that may not be worked on yet and are not asked back, last come first."""
        if self.alone is not None:
            return []
        last_come = reversed(self.shards.values())
        waiting = itertools.takewhile(lambda shard: shard.index not in self.begun, last_come)
        return [shard for shard in waiting if shard.index not in self.asked]
