"""From committed shards to the rows of a dataset, as they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from batchgen.commit import Manifest
from batchgen.job import Job, Merge
from batchgen.merge.conversations import (
    ChatColumns,
    batches,
    chat_columns,
    has_messages,
    messages,
    prompt_column,
    settled,
)
from batchgen.merge.selection import Selection, Shards, select
from batchgen.plan import Plan
from batchgen.rows import CLUSTER_SIZE, CONVERSATION, MESSAGES, META_NAMES, SHARD_ONLY
from batchgen.store.base import ObjectStore
from batchgen.telling import Tell


@dataclass(frozen=True)
class Merged:
    """The rows of a dataset, in the order of (seed row, branch); none of them is held.

    Args:
        merge: the job's, with what it leaves open.
        selection: which rows of the shards they are.
        chat: the columns that make `messages`; None where the dataset has none.
        left_out: columns of the shards that the dataset has not.
        schema: of the dataset.
    """

    shards: Shards
    merge: Merge
    selection: Selection
    chat: ChatColumns | None
    left_out: frozenset[str]
    schema: pa.Schema

    @property
    def rows(self) -> int:
        """Rows of the dataset."""
        return int(self.selection.keep.sum())

    def tables(self) -> Iterator[pa.Table]:
        """All rows; a shard is read and checked as its rows' turn comes.

        Raises:
            CorruptShard: names the shard.
        """
        keep, start, at = self.selection.keep, 0, 0
        for shard in self.shards.tables("written"):
            kept = shard.filter(pa.array(keep[start : start + shard.num_rows]))
            start += shard.num_rows
            for batch in batches(kept):
                finished = _finished(batch, self.chat, self.left_out)
                if self.selection.cluster_sizes is not None:
                    sizes = pa.array(self.selection.cluster_sizes[at : at + batch.num_rows], pa.int64())
                    finished = finished.append_column(pa.field(CLUSTER_SIZE, pa.int64()), sizes)
                at += batch.num_rows
                yield finished


class Reader:
    """Tables of rows, one after the other, in pieces of other sizes."""

    def __init__(self, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
        self._tables = tables
        self._left = schema.empty_table()

    def take(self, rows: int) -> pa.Table:
        """The next `rows` rows, or those that are left."""
        parts, missing = [self._left], rows - self._left.num_rows
        while missing > 0 and (table := next(self._tables, None)) is not None:
            parts.append(table)
            missing -= table.num_rows
        found = pa.concat_tables(parts)
        self._left = found.slice(rows)
        return found.slice(0, rows)


def merge_rows(store: ObjectStore, plan: Plan, job: Job, manifests: Mapping[int, Manifest], tell: Tell) -> Merged:
    """Reads, filters and deduplicates the rows of all committed shards.

    Raises:
        CorruptShard: names the shard; nothing is written.
    """
    chat = chat_columns(job, plan)
    shards = Shards(store, plan, manifests, tell)
    merge = settled(job, chat)
    selection = select(shards, chat, merge)
    # A list of the seeds that was spread over rows is in none of them.
    spread = {column for step in job.steps for column in step.exploded} - plan.step_columns.keys()
    unwanted: set[str] = set()
    if job.merge.columns is not None:
        unwanted = set(plan.schema.names) - META_NAMES - set(job.merge.columns)
    left_out = frozenset(spread | unwanted | SHARD_ONLY)
    shown = chat if has_messages(job, plan, chat) else None
    schema = _finished(plan.schema.empty_table(), shown, left_out).schema
    if selection.cluster_sizes is not None:
        schema = schema.append(pa.field(CLUSTER_SIZE, pa.int64()))
    return Merged(shards, merge, selection, shown, left_out, schema)


def _finished(rows: pa.Table, chat: ChatColumns | None, left_out: frozenset[str]) -> pa.Table:
    """Rows as the dataset has them, but for what only all of them together tell."""
    finished = rows.drop_columns([name for name in rows.column_names if name in left_out])
    if chat is None:
        return finished
    repeated = prompt_column(chat)
    if (isinstance(chat, str) or repeated == MESSAGES) and repeated not in left_out:
        finished = finished.drop_columns([repeated])  # `messages` is that conversation, perhaps with its answer
    return finished.add_column(0, pa.field(MESSAGES, CONVERSATION), messages(rows, chat))
