"""Rows that the merger leaves out, to look at: why, and of a duplicate the row that is kept in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from batchgen.commit import Manifest
from batchgen.job import Job, Merge
from batchgen.merge.contamination import InCommon
from batchgen.merge.conversations import chat_columns, settled
from batchgen.merge.selection import CONTAMINATED, Selection, Shards, contamination_of, select
from batchgen.plan import Plan
from batchgen.rows import REJECTED
from batchgen.store.base import ObjectStore
from batchgen.telling import Tell, untold

_Row = dict[str, Any]


@dataclass(frozen=True)
class DroppedRow:
    """An ok row that is in no dataset.

    Args:
        row: its columns, but for nulls.
        original: the columns of the row that is kept in its place; None where it is no duplicate.
        in_common: what it has in common with a benchmark; None where that is not why.
    """

    reason: str
    row: _Row
    original: _Row | None
    in_common: InCommon | None


class Dropped:
    """What a merge leaves out of the rows that are committed, but for rejected ones.

    Args:
        merge: its settings, as a version has them; by default those of the job.
        tell: told about once a second how far it is.

    Attributes:
        counts: rows by reason.

    Raises:
        UserError: a benchmark cannot be read.
        CorruptShard: names the shard.
    """

    def __init__(
        self,
        store: ObjectStore,
        plan: Plan,
        job: Job,
        manifests: Mapping[int, Manifest],
        merge: Merge | None = None,
        tell: Tell = untold,
    ) -> None:
        chat = chat_columns(job, plan)
        self._shards = Shards(store, plan, manifests, tell)
        merge = merge or settled(job, chat)
        self._contamination = contamination_of(merge.decontaminate)
        self._selection: Selection = select(self._shards, chat, merge, self._contamination)
        self.counts = {
            reason: rows for reason, rows in self._selection.dropped.items() if not reason.startswith(f"{REJECTED}: ")
        }

    def rows(self, reason: str | None = None, limit: int = 0) -> Iterator[DroppedRow]:
        """Rows in the order of their seeds.

        Args:
            reason: only these.
            limit: of each reason; 0: all.
        """
        reasons: dict[int, str] = {}
        for name in self.counts if reason is None else [reason]:
            rows = self._selection.fates.of(name)
            reasons |= dict.fromkeys(rows[: limit or len(rows)].tolist(), name)
        originals = {
            row: original
            for row, original in zip(
                self._selection.duplicates.tolist(), self._selection.originals.tolist(), strict=True
            )
            if row in reasons
        }
        # One that is preferred may come after its duplicates.
        kept = {index: row for index, row, _ in self._at(sorted({*originals.values()}))}
        for index, row, table in self._at(sorted(reasons)):
            original = kept[originals[index]] if index in originals else None
            yield DroppedRow(reasons[index], row, original, self._in_common(table, reasons[index]))

    def _in_common(self, row: pa.Table, reason: str) -> InCommon | None:
        kind, _, benchmark = reason.partition(": ")
        if self._contamination is None or kind != CONTAMINATED:
            return None
        return self._contamination.in_common(row, benchmark)

    def _at(self, indices: list[int]) -> Iterator[tuple[int, _Row, pa.Table]]:
        """Rows by their indices, which are in order, each also as a table."""
        start, wanted = 0, np.array(indices, np.int64)
        for table in self._shards.tables("read again"):
            here = wanted[slice(*np.searchsorted(wanted, (start, start + table.num_rows)))]
            found = table.take(pa.array(here - start))
            for place, (index, row) in enumerate(zip(here.tolist(), found.to_pylist(), strict=True)):
                yield index, {name: value for name, value in row.items() if value is not None}, found.slice(place, 1)
            start += table.num_rows
