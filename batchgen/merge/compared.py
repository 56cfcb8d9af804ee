"""What rows are compared by, and which of them stay.

Of a row no more is held than hashes of what it is compared by, and a signature: its texts are gone by then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from batchgen.job import Merge
from batchgen.merge.conversations import ChatColumns, batches, messages

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
_Conversation = Sequence[Mapping[str, str]]
_DIGEST = np.dtype([("high", np.uint64), ("low", np.uint64)])


@dataclass(frozen=True)
class Alike:
    """What rows are to each other.

    Args:
        stays: whether a row does, [rows].
        first: the row that stays for it, [rows]; its own index where it does itself.
        exact: whether it equals that row, and is not only nearly so, [rows].
    """

    stays: Mask
    first: Indices
    exact: Mask

    @property
    def sizes(self) -> Indices:
        """How many rows each of those stands for that stay."""
        return np.bincount(self.first, minlength=len(self.first))[self.stays]


class Compared:
    """The rows with a whole conversation, in the order in which they come.

    Args:
        most: rows that may come.
        merge: a job's, with what it leaves open.
    """

    def __init__(self, most: int, chat: ChatColumns, merge: Merge) -> None:
        self._chat = chat
        self._merge = merge
        self._rows = 0
        self._by_answers = merge.compare == "answers"
        # Of the memory of an array that is not filled yet none is used.
        self._texts = np.empty(most if merge.exact else 0, _DIGEST)
        self._questions = np.empty(most if self._by_answers else 0, _DIGEST)
        self._answers = np.empty(most if self._by_answers else 0, _DIGEST)
        self._values = np.empty(most if merge.prefer else 0, np.float64)
        if merge.near is not None:
            # With numba it takes more than a second to import, and most commands and ends of a run do not need it.
            from batchgen.minhash import PERMUTATIONS

            self._signatures = np.empty((most, PERMUTATIONS), np.uint8)

    def add(self, table: pa.Table) -> Mask:
        """Takes rows in; says which of them have a conversation with no blank message in it."""
        complete: list[bool] = []
        for batch in batches(table):
            conversations = messages(batch, self._chat).to_pylist()
            known = [_is_complete(conversation) for conversation in conversations]
            pairs = zip(batch["row_index"].to_pylist(), conversations, known, strict=True)
            rows = [(seed, each) for seed, each, whole in pairs if whole]
            if self._merge.prefer:
                values = numbers(batch[self._merge.prefer])[np.array(known, bool)]
                self._values[self._rows : self._rows + len(rows)] = values
            self._take(rows)
            complete += known
        return np.array(complete, bool)

    def _take(self, rows: Sequence[tuple[int, _Conversation]]) -> None:
        """Takes conversations in, each with the number of its seed row."""
        here = slice(self._rows, self._rows + len(rows))
        self._rows += len(rows)
        if not rows or not (self._merge.exact or self._merge.near):
            return
        from batchgen.minhash import normalise, signatures

        def said(*roles: str) -> pa.Array:
            texts = ("\n".join(part["content"] for part in each if part["role"] in roles) for _, each in rows)
            return normalise(pa.array(texts, pa.string()))

        normal = said("user", "assistant") if self._merge.compare == "conversation" else said("user")
        # One question under two system prompts is two.
        systems = ["\n".join(part["content"] for part in each if part["role"] == "system") for _, each in rows]
        texts = [f"{text}\0{system}" for text, system in zip(normal.to_pylist(), systems, strict=True)]
        if self._merge.exact:
            self._texts[here] = _digests(texts)
        if self._by_answers:
            questions = [f"{seed}\0{text}" for (seed, _), text in zip(rows, texts, strict=True)]
            self._questions[here] = _digests(questions)
            answers = zip(questions, said("assistant").to_pylist(), strict=True)
            self._answers[here] = _digests(f"{question}\0{answer}" for question, answer in answers)
        if self._merge.near is not None:
            self._signatures[here] = signatures(normal)
            for row, system in enumerate(systems, here.start):
                if system:
                    self._signatures[row] += _shift(system)

    def alike(self) -> Alike:
        """Which of the rows that were taken in stay, and for which others."""
        own = np.arange(self._rows)
        rank = self._rank() if self._merge.prefer else own
        equal = _first_alike(self._texts[: self._rows], rank) if self._merge.exact and len(own) else own
        alike = self._first_near(equal, rank)
        if self._by_answers:
            # The answers to the first question of a cluster, where no other equals them; of other questions none.
            siblings = self._questions[own] == self._questions[alike]
            same = _first_alike(self._answers[: self._rows], rank) if self._merge.exact and len(own) else own
            stays, stands_with = siblings & (same == own), np.where(siblings, same, alike)
            exact = siblings | (equal == alike)
        else:
            stays, stands_with, exact = alike == own, alike, equal != own
        return Alike(stays, stands_with, exact)

    def _rank(self) -> Indices:
        """How many rows are preferred to each: those with a higher value, and of equal ones those before it; [rows]."""
        rank = np.empty(self._rows, np.int64)
        rank[highest_first(self._values[: self._rows])] = np.arange(self._rows)
        return rank

    def _first_near(self, equal: Indices, rank: Indices) -> Indices:
        """For every row the first one by rank of its cluster, where equal ones are known already."""
        if self._merge.near is None or not len(equal):
            return equal
        from batchgen.merge import near

        firsts = np.flatnonzero(equal == np.arange(len(equal)))
        firsts = firsts[np.argsort(rank[firsts])]
        first_near = equal.copy()
        first_near[firsts] = firsts[near.clusters(self._signatures, self._merge.near.threshold, firsts)]
        return first_near[equal]


def numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """The values of a column of numbers, NaN where there is none; [rows]."""
    return np.asarray(pc.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy(), np.float64)


def highest_first(values: npt.NDArray[np.float64]) -> Indices:
    """The places of values from the highest to the lowest, and NaN after that; equal ones as they come; [values]."""
    falling = np.where(np.isnan(values), np.inf, -values)
    return np.argsort(falling, kind="stable")


@lru_cache(maxsize=1024)
def _shift(system: str) -> npt.NDArray[np.uint8]:
    """What takes signatures of texts under a system prompt apart from all others, and leaves them alike: [128]."""
    from batchgen.minhash import PERMUTATIONS

    return np.frombuffer(hashlib.shake_128(system.encode()).digest(PERMUTATIONS), np.uint8)


def _is_complete(conversation: _Conversation | None) -> bool:
    """Whether a conversation has messages and none of them is blank."""
    return bool(conversation) and all(
        message["content"] and message["content"].strip() for message in conversation or ()
    )


def _digests(texts: Iterable[str]) -> npt.NDArray[Any]:
    return np.frombuffer(b"".join(xxhash.xxh3_128_digest(text.encode()) for text in texts), _DIGEST)


def _first_alike(digests: npt.NDArray[Any], rank: Indices) -> Indices:
    """For every digest the index of the first one by rank that equals it."""
    order = np.lexsort((rank, digests["low"], digests["high"]))
    ordered = digests[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    first = np.empty(len(digests), np.int64)
    first[order] = np.repeat(order[begins], np.diff(np.append(begins, len(digests))))
    return first
