"""Which rows of the committed shards make a dataset: read, filter, deduplicate, with a count for every row dropped.

Of a row no more is held than what it is compared by, its hash and its signature; whoever writes it reads it again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from batchgen.commit import Manifest, check_shard
from batchgen.job import Merge
from batchgen.merge.conversations import ChatColumns, batches, messages
from batchgen.plan import Plan
from batchgen.rows import OK
from batchgen.store.base import ObjectStore

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
_DIGEST = np.dtype([("high", np.uint64), ("low", np.uint64)])


class Shards:
    """The rows of committed shards, a shard at a time and in order, as often as they are asked for."""

    def __init__(self, store: ObjectStore, plan: Plan, manifests: Mapping[int, Manifest]) -> None:
        self._store = store
        self._plan = plan
        self._manifests = [manifests[index] for index in sorted(manifests)]
        self.rows = sum(manifest.rows for manifest in self._manifests)

    def __iter__(self) -> Iterator[pa.Table]:
        """Raises `CorruptShard` where a byte is not what was committed."""
        keys = [manifest.key for manifest in self._manifests]
        for manifest, data in zip(self._manifests, self._store.read_many(keys), strict=True):
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
    seen = _Compared(shards.rows, chat, merge) if chat is not None else None
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
    _count(dropped, "truncated", pc.sum(ok).as_py() or 0, pc.sum(whole).as_py() or 0)
    return _mask(whole)


def _mask(values: pa.ChunkedArray) -> Mask:
    return np.array(values.to_numpy(zero_copy_only=False), bool)


def _count(dropped: Counter[str], reason: str, before: int, after: int) -> None:
    if before > after:
        dropped[reason] += before - after


class _Compared:
    """What rows with a whole conversation are compared by.

    Args:
        most: rows that may come.
    """

    def __init__(self, most: int, chat: ChatColumns, merge: Merge) -> None:
        self._chat = chat
        self._merge = merge
        self._rows = 0
        # Of the memory of an array that is not filled yet none is used.
        self._digests = np.empty(most if merge.exact else 0, _DIGEST)
        if merge.near is not None:
            # With numba it takes more than a second to import, and most commands and ends of a run do not need it.
            from batchgen.minhash import PERMUTATIONS

            self._signatures = np.empty((most, PERMUTATIONS), np.uint8)

    def add(self, table: pa.Table, dropped: Counter[str]) -> Mask:
        """Takes rows in; says which of them have a conversation with no blank message in it."""
        complete: list[bool] = []
        for batch in batches(table):
            conversations = messages(batch, self._chat).to_pylist()
            known = [_is_complete(conversation) for conversation in conversations]
            self._take([each for each, whole in zip(conversations, known, strict=True) if whole])
            complete += known
        _count(dropped, "empty", len(complete), sum(complete))
        return np.array(complete, bool)

    def _take(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> None:
        if not conversations or not (self._merge.exact or self._merge.near):
            self._rows += len(conversations)
            return
        from batchgen.minhash import normalise, signatures

        roles = ("user",) if self._merge.compare == "prompt" else ("user", "assistant")
        texts = ["\n".join(part["content"] for part in each if part["role"] in roles) for each in conversations]
        # One question under two system prompts is two.
        systems = ["\n".join(part["content"] for part in each if part["role"] == "system") for each in conversations]
        normal = normalise(pa.array(texts, pa.string()))
        here = slice(self._rows, self._rows + len(texts))
        if self._merge.exact:
            pairs = zip(normal.to_pylist(), systems, strict=True)
            digests = b"".join(xxhash.xxh3_128_digest(f"{text}\0{system}".encode()) for text, system in pairs)
            self._digests[here] = np.frombuffer(digests, _DIGEST)
        if self._merge.near is not None:
            self._signatures[here] = signatures(normal)
            for row, system in enumerate(systems, self._rows):
                if system:
                    self._signatures[row] += _shift(system)
        self._rows += len(texts)

    def different(self, dropped: Counter[str]) -> tuple[Indices, Indices]:
        """The rows that stay, of those taken in, and how many each of them stands for."""
        stay, sizes = np.arange(self._rows), np.ones(self._rows, np.int64)
        if self._merge.exact and len(stay):
            stay, sizes = _firsts(stay, sizes, _first_alike(self._digests[: self._rows]))
            _count(dropped, "exact duplicate", self._rows, len(stay))
        if self._merge.near is not None and len(stay):
            from batchgen.merge import near

            before = len(stay)
            stay, sizes = _firsts(stay, sizes, near.clusters(self._signatures, self._merge.near.threshold, stay))
            _count(dropped, "near duplicate", before, len(stay))
        return stay, sizes


@lru_cache(maxsize=1024)
def _shift(system: str) -> npt.NDArray[np.uint8]:
    """What takes signatures of texts under a system prompt apart from all others, and leaves them alike: [128]."""
    from batchgen.minhash import PERMUTATIONS

    return np.frombuffer(hashlib.shake_128(system.encode()).digest(PERMUTATIONS), np.uint8)


def _is_complete(conversation: Sequence[Mapping[str, Any]] | None) -> bool:
    """Whether a conversation has messages and none of them is blank."""
    return bool(conversation) and all(
        message["content"] and message["content"].strip() for message in conversation or ()
    )


def _first_alike(digests: npt.NDArray[Any]) -> Indices:
    """For every digest the index of the first one that equals it."""
    order = np.lexsort((digests["low"], digests["high"]))  # stable: of equal ones the first stays the first
    ordered = digests[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    first = np.empty(len(digests), np.int64)
    first[order] = np.repeat(order[begins], np.diff(np.append(begins, len(digests))))
    return first


def _firsts(rows: Indices, sizes: Indices, first: Indices) -> tuple[Indices, Indices]:
    """Of some rows the first of every cluster, and how many each stands for then.

    Args:
        first: for the i-th of them, which of them is the first of its cluster.
    """
    total = np.bincount(first, weights=sizes, minlength=len(first)).astype(np.int64)
    stays = first == np.arange(len(first))
    return rows[stays], total[stays]
