"""Which rows of the committed shards make a dataset: read, filter, deduplicate, with a count for every row dropped.

Whoever writes them reads them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.commit import Manifest, check_shard
from batchgen.job import Merge
from batchgen.merge.compared import Compared, Indices, Mask, count
from batchgen.merge.conversations import ChatColumns
from batchgen.plan import Plan
from batchgen.rows import OK
from batchgen.store.base import ObjectStore


class Shards:
    """The rows of committed shards, a shard at a time and in order, as often as they are asked for.

    Attributes:
        manifests: of the shards, in their order.
    """

    def __init__(self, store: ObjectStore, plan: Plan, manifests: Mapping[int, Manifest]) -> None:
        self._store = store
        self._plan = plan
        self.manifests = [manifests[index] for index in sorted(manifests)]
        self.rows = sum(manifest.rows for manifest in self.manifests)

    def __iter__(self) -> Iterator[pa.Table]:
        """Raises `CorruptShard` where a byte is not what was committed."""
        keys = [manifest.key for manifest in self.manifests]
        for manifest, data in zip(self.manifests, self._store.read_many(keys), strict=True):
            yield check_shard(self._plan, manifest, data)


@dataclass(frozen=True)
class Selection:
    """The rows of a dataset.

    Args:
        keep: whether a row of the shards is one, [rows].
        cluster_sizes: how many rows each of them stands for; None where there is no conversation to compare.
        dropped: rows left out, by reason.
    """

    keep: Mask
    cluster_sizes: Indices | None
    dropped: Mapping[str, int]


def select(shards: Shards, chat: ChatColumns | None, merge: Merge) -> Selection:
    """Chooses the rows of a dataset.

    Args:
        chat: the columns in which no two of them may be alike.

    Raises:
        CorruptShard: names the shard.
    """
    dropped = Counter[str]()
    keep = np.zeros(shards.rows, bool)
    seen = Compared(shards.rows, chat, merge) if chat is not None else None
    start = 0
    for table in shards:
        sound = _is_sound(table, merge, dropped)
        if seen is not None:
            sound[np.flatnonzero(sound)] = seen.add(table.filter(pa.array(sound)), dropped)
        keep[start : start + table.num_rows] = sound
        start += table.num_rows
    if seen is None:
        return Selection(keep, None, dict(sorted(dropped.items())))
    stay, sizes = seen.different(dropped)
    positions = np.flatnonzero(keep)[stay]
    keep[:] = False
    keep[positions] = True
    return Selection(keep, sizes, dict(sorted(dropped.items())))


def _is_sound(table: pa.Table, merge: Merge, dropped: Counter[str]) -> Mask:
    """Which rows of a shard are ok, and not cut where those are unwanted."""
    ok = pc.equal(table["outcome"], OK)
    dropped.update(f"rejected: {reason}" for reason in table.filter(pc.invert(ok))["reason"].to_pylist())
    if not merge.drop_truncated:
        return _mask(ok)
    whole = pc.and_(ok, pc.fill_null(pc.not_equal(table["finish_reason"], "length"), True))
    count(dropped, "truncated", (pc.sum(ok).as_py() or 0) - (pc.sum(whole).as_py() or 0))
    return _mask(whole)


def _mask(values: pa.ChunkedArray) -> Mask:
    return np.array(values.to_numpy(zero_copy_only=False), bool)
