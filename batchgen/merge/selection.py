"""Which rows of the committed shards make a dataset: read, filter, deduplicate, with a count for every row dropped.

Whoever writes them reads them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.commit import Manifest, check_shard
from batchgen.conditions import met
from batchgen.job import Benchmark, Merge
from batchgen.merge.compared import Compared, Indices, Mask, highest_first, numbers
from batchgen.merge.conversations import ChatColumns
from batchgen.plan import Plan
from batchgen.rows import OK
from batchgen.store.base import ObjectStore
from batchgen.telling import Tell, paced, untold

if TYPE_CHECKING:
    from batchgen.merge.contamination import Contamination


# The reason of rows with texts in common with a benchmark, before its name.
CONTAMINATED = "contaminated"
OVER_LIMIT = "over the limit"
_TELL_SECONDS = 1.0


class Shards:
    """The rows of committed shards, a shard at a time and in order, as often as they are asked for.

    Args:
        tell: told about once a second how many rows have been taken.

    Attributes:
        manifests: of the shards, in their order.
    """

    def __init__(self, store: ObjectStore, plan: Plan, manifests: Mapping[int, Manifest], tell: Tell = untold) -> None:
        self._store = store
        self._plan = plan
        self._tell = tell
        self.manifests = [manifests[index] for index in sorted(manifests)]
        self.rows = sum(manifest.rows for manifest in self.manifests)

    def tables(self, done: str) -> Iterator[pa.Table]:
        """All rows.

        Args:
            done: what is done with them, to be told: `compared`.

        Raises:
            CorruptShard: a byte is not what was committed.
        """
        keys = [manifest.key for manifest in self.manifests]
        rows, tell = 0, paced(self._tell, _TELL_SECONDS)
        for manifest, data in zip(self.manifests, self._store.read_many(keys), strict=True):
            yield check_shard(self._plan, manifest, data)
            rows += manifest.rows
            tell(f"{rows:,} of {self.rows:,} rows {done}")


class Fates:
    """What becomes of every row: it is kept, or left out for the first reason that there is.

    Args:
        rows: of all shards.
    """

    def __init__(self, rows: int) -> None:
        self._codes = np.zeros(rows, np.int32)  # 0: kept; else the place of its reason
        self._reasons = [""]

    def leave_out(self, rows: Indices, reason: str) -> None:
        """Leaves rows out, by their indices, but for those that are already."""
        rows = rows[self._codes[rows] == 0]
        if len(rows):
            if reason not in self._reasons:
                self._reasons.append(reason)
            self._codes[rows] = self._reasons.index(reason)

    def kept(self, start: int = 0, stop: int | None = None) -> Indices:
        """The indices of the rows that are kept, of those from `start` to `stop`."""
        return start + np.flatnonzero(self._codes[start:stop] == 0)

    @property
    def keep(self) -> Mask:
        """Whether a row is kept, [rows]."""
        return np.asarray(self._codes == 0)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Rows left out, by reason."""
        counts = np.bincount(self._codes, minlength=len(self._reasons)).tolist()
        return dict(sorted(zip(self._reasons[1:], counts[1:], strict=True)))

    def of(self, reason: str) -> Indices:
        """The indices of the rows that are left out for a reason."""
        return np.flatnonzero(self._codes == self._reasons.index(reason))


@dataclass(frozen=True)
class Selection:
    """The rows of a dataset.

    Args:
        fates: of all rows of the shards.
        cluster_sizes: how many rows each row that is kept stands for; None where there is no conversation to compare.
        duplicates: by their indices, in order.
        originals: for each of them the row that is kept in its place; those are left out whose row is not.
    """

    fates: Fates
    cluster_sizes: Indices | None
    duplicates: Indices
    originals: Indices

    @property
    def keep(self) -> Mask:
        """Whether a row of the shards is one, [rows]."""
        return self.fates.keep

    @property
    def dropped(self) -> Mapping[str, int]:
        """Rows left out, by reason."""
        return self.fates.dropped


def contamination_of(benchmarks: Sequence[Benchmark]) -> Contamination | None:
    """What is known of the texts of benchmarks; None of none. Errors are those of `Contamination`."""
    if not benchmarks:
        return None
    from batchgen.merge.contamination import Contamination  # numba, which a merge without them may do without

    return Contamination(benchmarks)


def select(
    shards: Shards, chat: ChatColumns | None, merge: Merge, contamination: Contamination | None = None
) -> Selection:
    """Chooses the rows of a dataset.

    Args:
        chat: the columns in which no two of them may be alike.
        contamination: what is known of the texts of `merge.decontaminate`; read here by default.

    Raises:
        CorruptShard: names the shard.
    """
    contamination = contamination or contamination_of(merge.decontaminate)
    fates = Fates(shards.rows)
    seen = Compared(shards.rows, chat, merge) if chat is not None else None
    values = np.full(shards.rows if merge.limit and merge.prefer else 0, np.nan)
    start = 0
    for table in shards.tables("compared"):
        stop = start + table.num_rows
        if len(values):
            values[start:stop] = numbers(table[merge.prefer])
        _leave_out_unsound(table, start, merge, fates)
        if contamination is not None:
            rows = fates.kept(start, stop)
            for benchmark, found in contamination.found(_taken(table, rows - start)).items():
                fates.leave_out(rows[found], f"{CONTAMINATED}: {benchmark}")
        if seen is not None:
            rows = fates.kept(start, stop)
            fates.leave_out(rows[~seen.add(_taken(table, rows - start))], "empty")
        start = stop
    none = np.empty(0, np.int64)
    if seen is None:
        return _limited(Selection(fates, None, none, none), merge.limit, values)
    rows, alike = fates.kept(), seen.alike()
    fates.leave_out(rows[~alike.stays & alike.exact], "exact duplicate")
    fates.leave_out(rows[~alike.stays & ~alike.exact], "near duplicate")
    selection = Selection(fates, alike.sizes, rows[~alike.stays], rows[alike.first[~alike.stays]])
    return _limited(selection, merge.limit, values)


def _limited(selection: Selection, most: int | None, values: npt.NDArray[np.float64]) -> Selection:
    """A selection of so many rows at most.

    Args:
        values: the rows with the highest ones stay; none where the first rows do, [rows].
    """
    rows = selection.fates.kept()
    if most is None or len(rows) <= most:
        return selection
    selection.fates.leave_out((rows[highest_first(values[rows])] if len(values) else rows)[most:], OVER_LIMIT)
    keep, sizes = selection.keep, selection.cluster_sizes
    known = keep[selection.originals]
    return replace(
        selection,
        cluster_sizes=None if sizes is None else sizes[keep[rows]],
        duplicates=selection.duplicates[known],
        originals=selection.originals[known],
    )


def _leave_out_unsound(table: pa.Table, start: int, merge: Merge, fates: Fates) -> None:
    """Leaves out the rows of a shard that are rejected, or cut where those are unwanted, or that miss a condition.

    Args:
        start: the index of its first row.
    """
    rejected = np.flatnonzero(~_mask(pc.equal(table["outcome"], OK)))
    reasons = np.array(table["reason"].take(rejected).to_pylist(), object)
    for reason in dict.fromkeys(reasons):
        fates.leave_out(start + rejected[reasons == reason], f"rejected: {reason}")
    if merge.drop_truncated:
        cut = _mask(pc.fill_null(pc.equal(table["finish_reason"], "length"), False))
        fates.leave_out(start + np.flatnonzero(cut), "truncated")
    for column, condition in merge.keep.items():
        fates.leave_out(start + np.flatnonzero(~met(table[column].combine_chunks(), condition)), f"filtered: {column}")


def _taken(table: pa.Table, rows: Indices) -> pa.Table:
    """Some rows of a shard, in order; mostly all of them, which need no copy."""
    return table if len(rows) == table.num_rows else table.take(rows)


def _mask(values: pa.ChunkedArray) -> Mask:
    return np.array(values.to_numpy(zero_copy_only=False), bool)
