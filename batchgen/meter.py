"""How fast a run gets on."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from batchgen.progress import Progress

_SECONDS = 15.0
_ROWS = 50
_MOST_SECONDS = 1800.0
# Ended rows of which the others are guessed.
_TELLING = 20


@dataclass
class Meter:
    """Rates of rows and tokens over the last quarter of a minute, or over the time that the last 50 rows took.

    Rows count as they end, and so do a server's completions: where each takes minutes, there are quarters in which none
    does.
    """

    samples: deque[tuple[float, int, int]] = field(default_factory=deque)

    def add(self, now: float, rows: int, tokens: int) -> None:
        """Notes how many rows and tokens there are by now."""
        self.samples.append((now, rows, tokens))
        while len(self.samples) > 2 and self._is_enough(*self.samples[1][:2]):
            self.samples.popleft()

    def _is_enough(self, since: float, before: int) -> bool:
        """Whether what came since then tells the rates, without the sample before it."""
        now, rows, _ = self.samples[-1]
        return now - since >= _SECONDS and (rows - before >= _ROWS or now - since >= _MOST_SECONDS)

    def clear(self) -> None:
        """Forgets what was: nothing is at work."""
        self.samples.clear()

    def rates(self) -> tuple[float, float]:
        """(rows, tokens) a second."""
        (t0, rows0, tokens0), (t1, rows1, tokens1) = self.samples[0], self.samples[-1]
        if t1 <= t0:
            return 0.0, 0.0
        return max(0.0, (rows1 - rows0) / (t1 - t0)), max(0.0, (tokens1 - tokens0) / (t1 - t0))

    def seconds_left(self, rows: int, done: Progress) -> float | None:
        """Until all rows have ended, at the rates of now; None where that cannot be told yet.

        By the tokens that they will take: those of rows in flight count, where a rate of rows means little until the
        first of them have run their whole length. By rows where there are no tokens, and once the last rows, which tend
        to be the longest, have had more than is usual.

        Args:
            rows: of the whole run.
            done: what has come of them.
        """
        ended = done.ok + done.rejected
        if ended >= rows:
            return 0.0
        if ended < min(_TELLING, rows / 10):
            return None
        row_rate, token_rate = self.rates()
        tokens = done.ended_tokens / ended * rows - done.output_tokens
        if tokens > 0 and token_rate > 0:
            return tokens / token_rate
        return (rows - ended) / row_rate if row_rate > 0 else None
