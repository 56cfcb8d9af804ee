"""How long completions may take where a job does not say: the more tokens they may have, the longer.

A request to a server is given up before its engine counts as hung: its row would be blamed for that.
"""

from __future__ import annotations

# Where `max_tokens` is null, and leaves it to the model's context.
_LONG_COMPLETION = 32_768


def request_seconds(max_tokens: int | None) -> float:
    """Seconds from a request to a server to its answer, with all retries."""
    return max(600.0, (max_tokens or _LONG_COMPLETION) / 15)


def stall_seconds(max_tokens: int | None) -> float:
    """Seconds in which nothing comes of an engine until it is taken for hung.

    A server says nothing of a request before it has ended. At a run's end few of them are left, and each may be as long
    as it may be.
    """
    return max(900.0, (max_tokens or _LONG_COMPLETION) / 10)
