"""What a worker has done, and what it reports of a shard: the small things that travel to the driver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """What a worker has done since it started.

    Args:
        reasons: rejected rows by reason.
        notes: what happened to rows without rejecting them, by code.
    """

    ok: int = 0
    rejected: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    input_tokens: int = 0
    output_tokens: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Progress) -> Progress:
        return Progress(
            self.ok + other.ok,
            self.rejected + other.rejected,
            _sum(self.reasons, other.reasons),
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            _sum(self.notes, other.notes),
        )


def _sum(a: Mapping[str, int], b: Mapping[str, int]) -> Mapping[str, int]:
    # Added up at every completion, nearly all of which have nothing to say.
    return dict(Counter(a) + Counter(b)) if b else a


@dataclass(frozen=True)
class Receipt:
    """What the driver learns of a finished shard: small, the rows themselves are in the store.

    Args:
        won: whether this attempt's rows are the committed ones.
        progress: of the committed rows.
    """

    shard: int
    attempt: str
    won: bool
    progress: Progress
