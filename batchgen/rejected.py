"""Rejected rows, to look at: why they were, how far they came, and what the model had said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from batchgen.commit import Manifest, read_shard
from batchgen.plan import Plan
from batchgen.reasons import most_first
from batchgen.rows import META_NAMES, OK
from batchgen.store.base import ObjectStore

_EXAMPLES = 12


@dataclass(frozen=True)
class Example:
    """A rejected row, as one of its kind.

    Args:
        columns: with their values, as far as the row came, and the last completion.
    """

    reason: str
    columns: Sequence[tuple[str, Any]]


def examples_of(store: ObjectStore, plan: Plan, manifests: Mapping[int, Manifest]) -> list[Example]:
    """A row for each of the most frequent reasons, the most frequent first; no more than a shard is read for each.

    Raises:
        CorruptShard: names the shard.
    """
    reasons = [name for name, _ in most_first(_counts(manifests))[:_EXAMPLES]]
    rows = {row["reason"]: row for row in rejected_rows(store, plan, manifests, reasons, limit=1)}
    return [Example(reason, described(rows[reason])) for reason in reasons if reason in rows]


def described(row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The columns that a rejected row reached, and the last completion."""
    columns = [(name, value) for name, value in row.items() if name not in META_NAMES]
    said = row.get("failed_completion")
    return columns if said is None else [*columns, ("the last completion", said)]


def rejected_rows(
    store: ObjectStore,
    plan: Plan,
    manifests: Mapping[int, Manifest],
    reasons: Collection[str] | None = None,
    limit: int = 0,
) -> Iterator[dict[str, Any]]:
    """Rejected rows in the order of their seeds, without the columns that they never reached.

    Args:
        reasons: only rows that were rejected for one of these.
        limit: of each reason; 0: all.

    Raises:
        CorruptShard: names the shard.
    """
    counts = _counts(manifests)
    left = Counter(
        {name: min(count, limit or count) for name, count in counts.items() if reasons is None or name in reasons}
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


def _counts(manifests: Mapping[int, Manifest]) -> Counter[str]:
    counts = Counter[str]()
    for manifest in manifests.values():
        counts.update(manifest.reasons)
    return counts
