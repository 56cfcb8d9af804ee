"""What a worker has done: the small thing that travels to the driver; rows are in the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

# The note of a good row with a text that was cut at max_tokens; reasons for which others are rejected begin with it.
TRUNCATED = "truncated"
# The reason for which a filter rejects a row, before the column that it fails by; alone, that of a step of the user's.
FILTERED = "filtered"
TRUNCATED_REASONING = "truncated_reasoning"
THOUGHTS_OFF = "many templates leave thoughts out with model.chat_template_kwargs: {enable_thinking: false}"
_MANY_CUT = 0.1


@dataclass(frozen=True)
class Progress:
    """What a worker has done since it started.

    Args:
        output_tokens: of all completions; of those that have not ended, as far as the engine tells.
        ended_tokens: those of them that belong to rows that have ended.
        reasons: rejected rows by reason.
        notes: what happened to rows without rejecting them, by code.
        waiting: what it waits for that is out of reach; "" where it works.
        in_flight: rows that it works on, which is nothing that it has done.
        slowed: why it works on fewer requests than it could; "" where it does not.
        open_rows: positions of these; none where they are many.
    """

    ok: int = 0
    rejected: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    input_tokens: int = 0
    output_tokens: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)
    ended_tokens: int = 0
    waiting: str = ""
    in_flight: int = field(default=0, compare=False)
    slowed: str = field(default="", compare=False)
    open_rows: Sequence[int] = field(default=(), compare=False)

    def __add__(self, other: Progress) -> Progress:
        return Progress(
            self.ok + other.ok,
            self.rejected + other.rejected,
            _sum(self.reasons, other.reasons),
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            _sum(self.notes, other.notes),
            self.ended_tokens + other.ended_tokens,
        )


@dataclass
class Tally:
    """A worker's progress as it comes: a count a completion, and a row now and then."""

    ok: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    input_tokens: int = 0
    output_tokens: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    ended_tokens: int = 0

    def row(self, ok: bool, reasons: Iterable[str], notes: Iterable[str], output_tokens: int) -> None:
        """Counts a seed row that has ended; its tokens have been counted as they came."""
        self.ok += ok
        self.rejected += not ok
        self.reasons.update(reasons)
        self.notes.update(notes)
        self.ended_tokens += output_tokens

    @property
    def progress(self) -> Progress:
        """What has come by now."""
        return Progress(
            self.ok,
            self.rejected,
            dict(self.reasons),
            self.input_tokens,
            self.output_tokens,
            dict(self.notes),
            self.ended_tokens,
        )


def _sum(a: Mapping[str, int], b: Mapping[str, int]) -> Mapping[str, int]:
    return dict(Counter(a) + Counter(b)) if b else a


def cut_hint(dropped: Mapping[str, int], rows: int, turns_lost: bool = False) -> str:
    """What can be done where a merge leaves many of its rows out because a text was cut; "" where it does not.

    Args:
        turns_lost: whether a turn that was cut costs the ones before it.
    """
    rejected = {reason: count for reason, count in dropped.items() if reason.startswith(f"rejected: {TRUNCATED}")}
    if dropped.get(TRUNCATED, 0) + sum(rejected.values()) < max(1, _MANY_CUT * rows):
        return ""
    hints = ["a larger sampling.max_tokens (within max_model_len) cuts fewer"]
    if not rejected:  # such a row is not there to be kept
        hints.append("merge.drop_truncated: false keeps them")
    if rejected and turns_lost:
        hints.append("magpie's keep_shorter: true keeps the turns before the cut")
    if f"rejected: {TRUNCATED_REASONING}" in rejected:
        hints.append(THOUGHTS_OFF)
    return "; ".join(hints)
