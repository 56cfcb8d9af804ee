"""Rejected rows, to look at: why they were, how far they came, and what the model had said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.compute as pc

from batchgen.commit import Manifest, read_shard
from batchgen.plan import Plan
from batchgen.rows import OK
from batchgen.store.base import ObjectStore


def rejected_rows(
    store: ObjectStore, plan: Plan, manifests: Mapping[int, Manifest], reason: str | None = None, limit: int = 0
) -> Iterator[dict[str, Any]]:
    """Rejected rows in the order of their seeds, without the columns that they never reached.

    Args:
        reason: only these.
        limit: of each reason; 0: all.

    Raises:
        CorruptShard: names the shard.
    """
    counts = Counter[str]()
    for manifest in manifests.values():
        counts.update(manifest.reasons)
    left = Counter(
        {name: min(count, limit or count) for name, count in counts.items() if reason is None or name == reason}
    )
    for index in sorted(manifests):
        # A run may have thousands of shards: those that can have nothing to show are not read.
        if not any(left[name] for name in manifests[index].reasons):
            continue
        table = read_shard(store, plan, manifests[index])
        for row in table.filter(pc.not_equal(table["outcome"], OK)).to_pylist():
            if left[row["reason"]]:
                left[row["reason"]] -= 1
                yield {name: value for name, value in row.items() if value is not None}
