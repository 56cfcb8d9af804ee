"""An engine that is up, as the driver sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from batchgen.progress import Progress


@dataclass
class Pulse:
    """Whether an engine moves, and how far it has come. Times are monotonic, in seconds.

    Args:
        moved: when it was last seen to do something.
        held: shards that it has been handed and has not answered.
        live: what it says that it has done; None before it has said anything.
        receipted: what its committed shards hold of that.
        informed: whether its gates are to be told what rows of others have brought.
        open_rows: on which it works, by its last word; none where it said nothing when it was asked last.
    """

    moved: float
    held: int = 0
    live: Progress | None = None
    receipted: Progress = field(default_factory=Progress)
    informed: bool = False
    open_rows: Sequence[int] = ()

    @property
    def waiting(self) -> str:
        """What it waits for that is out of reach; "" where it works."""
        return self.live.waiting if self.live is not None else ""

    @property
    def in_flight(self) -> int:
        """Rows that it works on."""
        return self.live.in_flight if self.live is not None else 0

    def felt(self, progress: Progress | None, now: float) -> None:
        """Takes in what the engine says; one that says nothing has not moved, one that waits does not hang."""
        self.open_rows = progress.open_rows if progress is not None else ()
        if progress is not None and (progress.waiting or progress != self.live):
            self.live, self.moved = progress, now

    def hangs(self, now: float, seconds: float) -> bool:
        """Whether it has work and has not moved for so long."""
        return self.held > 0 and now - self.moved > seconds

    def beyond(self) -> Progress:
        """What it has generated beyond its committed shards; never less than nothing."""
        live, receipted = self.live or Progress(), self.receipted
        return Progress(
            max(0, live.ok - receipted.ok),
            max(0, live.rejected - receipted.rejected),
            dict(Counter(live.reasons) - Counter(receipted.reasons)),
            max(0, live.input_tokens - receipted.input_tokens),
            max(0, live.output_tokens - receipted.output_tokens),
            dict(Counter(live.notes) - Counter(receipted.notes)),
            max(0, live.ended_tokens - receipted.ended_tokens),
        )
