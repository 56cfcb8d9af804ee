"""What a run's dataset would be by now: a model that repeats itself is known after its first thousand rows."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa

from batchgen.commit import Manifest, committed
from batchgen.conditions import languages_of
from batchgen.errors import CorruptShard, StoreError
from batchgen.job import Job
from batchgen.merge.conversations import chat_columns, settled
from batchgen.merge.selection import Selection, Shards, contamination_of, select
from batchgen.plan import Plan
from batchgen.progress import TRUNCATED, cut_hint
from batchgen.rows import REJECTED
from batchgen.store.base import ObjectStore

if TYPE_CHECKING:
    from batchgen.merge.contamination import Contamination

# Committed seed rows at which it looks. A look at 100,000 short rows took a second; a merge of a million takes half a
# minute (`python -m tests.bench merge`), too much beside a run.
LOOKS = (1_000, 10_000, 100_000)
# Up to here where it has to tell languages, which takes most of a millisecond for a long text.
_LAST_SLOW_LOOK = 10_000
# Of the rows that it reads: so many duplicates are worth a word about what they cost.
_MANY = 0.2
# For a shard that is being read as a run ends: Arrow must not be at work when the process does.
_READ_SECONDS = 10.0


class Outlook:
    """Tells now and then what the merger would make of the rows that are committed.

    It does what the merger does, short of writing, in a thread beside the run.

    Args:
        rows: seed rows that were committed before.
    """

    def __init__(self, store: ObjectStore, plan: Plan, job: Job, rows: int) -> None:
        self._store = store
        self._plan = plan
        self._job = job
        last = _LAST_SLOW_LOOK if languages_of(job.merge.keep) else max(LOOKS)
        self._looks = [look for look in LOOKS if rows < look <= last]
        self._found: deque[str] = deque()
        self._closed = threading.Event()
        self._reader: threading.Thread | None = None

    def news(self, rows: int) -> tuple[str, ...]:
        """What has been found since the last call, a line each; begins to look where it is time to.

        Args:
            rows: seed rows that are committed by now.
        """
        if self._looks and rows >= self._looks[0] and not (self._reader and self._reader.is_alive()):
            self._looks = [look for look in self._looks if look > rows]
            self._reader = threading.Thread(target=self._look, daemon=True)
            self._reader.start()
        # The thread may add to it meanwhile.
        return tuple(self._found.popleft() for _ in range(len(self._found)))

    def close(self) -> None:
        """Waits for what is being read, but not for long."""
        self._closed.set()
        if self._reader is not None:
            self._reader.join(_READ_SECONDS)

    @cached_property
    def _contamination(self) -> Contamination | None:
        return contamination_of(self._job.merge.decontaminate)

    def _look(self) -> None:
        try:
            shards = _Closable(self._store, self._plan, committed(self._store, self._plan), self._closed)
            chat = chat_columns(self._job, self._plan)
            # How many rows there are in the end is not known yet.
            merge = settled(self._job, chat).model_copy(update={"limit": None})
            selection = select(shards, chat, merge, self._contamination)
        except (StoreError, _Closed):
            return  # what is out of reach is told by those who need it
        except CorruptShard as error:
            self._found.append(str(error))
        except Exception as error:  # a defect, which is none of the run's; its text may quote a row
            self._found.append(f"what a merge would keep cannot be told: {type(error).__name__}")
        else:
            self._found.append(self._line(selection))

    def _line(self, selection: Selection) -> str:
        dropped = {why: count for why, count in selection.dropped.items() if not why.startswith(REJECTED)}
        kept = int(selection.keep.sum())
        rows = kept + sum(dropped.values())
        listed = ", ".join(f"{why} {count:,}" for why, count in dropped.items())
        line = f"of the first {rows:,} ok rows a merge would keep {kept:,}" + (f"; dropped: {listed}" if listed else "")
        duplicates = sum(count for why, count in dropped.items() if why.endswith("duplicate"))
        # Rejected rows too: they may have been good before the text that was cut.
        lost = sum(count for why, count in selection.dropped.items() if why.startswith(f"{REJECTED}: {TRUNCATED}"))
        hints = [cut_hint(selection.dropped, kept + sum(selection.dropped.values()), self._job.loses_turns)]
        line += f"; {lost:,} more are rejected as truncated" if hints[0] and lost else ""
        if duplicates >= _MANY * rows and all(step.spec.gate is None for step in self._job.steps):
            hints.append("a drop_duplicates step ends duplicates before their answers are generated")
        told = "; ".join(filter(None, hints))
        return f"{line} ({told})" if told else line


class _Closed(Exception):
    """The run has ended."""


class _Closable(Shards):
    """Shards that come to an end with the run."""

    def __init__(
        self, store: ObjectStore, plan: Plan, manifests: Mapping[int, Manifest], closed: threading.Event
    ) -> None:
        super().__init__(store, plan, manifests)
        self._closed = closed

    def tables(self, done: str) -> Iterator[pa.Table]:
        """Raises `_Closed` once it has."""
        for table in super().tables(done):
            if self._closed.is_set():
                raise _Closed
            yield table
