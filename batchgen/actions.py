"""What a scheduler asks whoever drives it to do."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.errors import BatchgenError
from batchgen.plan import Shard


@dataclass(frozen=True)
class StartEngine:
    """Start an engine; answered by `engine_ready` or `engine_start_failed`."""

    engine: int


@dataclass(frozen=True)
class Dispatch:
    """Run a shard on an engine.

    Answered by `shard_done`, `probe_done`, `shard_returned`, `shard_failed` or `engine_lost`.

    Args:
        rows: [start, stop) where only these rows run, to see whether the engine survives; nothing is committed.
        quarantined: rows that are rejected without being run, because each killed an engine.
    """

    engine: int
    shard: Shard
    rows: tuple[int, int] | None = None
    quarantined: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Recall:
    """Take a shard back where its engine has not begun to work on it.

    Its dispatch is answered by `shard_returned` then; where it is too late the answer is `recall_refused`.
    """

    engine: int
    shard: int


@dataclass(frozen=True)
class KillEngine:
    """Kill an engine at once, whatever it does; not answered."""

    engine: int


@dataclass(frozen=True)
class Finish:
    """The end: `error` is None where every shard is committed."""

    error: BatchgenError | None


Action = StartEngine | Dispatch | Recall | KillEngine | Finish
