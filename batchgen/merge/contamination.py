"""Rows that have a text in common with a benchmark, whose results they would make worthless.

A row is contaminated if one of its texts has as many words in a row as `ngram` says that a text of the benchmark has,
or, where the benchmark's text is shorter than that, if it is the same text. Words are compared in lower case and
without signs, as n-gram overlap usually is: https://arxiv.org/abs/2005.14165 (appendix C) took 13. A whole text is
compared with its signs, but for those around it: `2 + 2` is not `2 - 2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.benchmarks import benchmark_name, flat_texts, holds_texts, read_benchmarks
from batchgen.job import Benchmark
from batchgen.minhash import Array, buffers, compiled, hash_tokens, mix, normalise, slot_of, token_bounds
from batchgen.rows import META_NAMES, kind_of

# A text of fewer words, such as an answer, is in too many others to mean anything.
LEAST_WORDS = 3
# Texts that are worked on at a time: of each byte of theirs 16 are needed.
_BATCH_TEXTS = 4096
_SIGNS = r"[\p{P}\p{S}]+"
_AROUND = r"\A[\p{P}\p{S}\s]+|[\p{P}\p{S}\s]+\z"
_BASE = np.uint64(0x9E3779B97F4A7C15)


@compiled
def _grams_of(words: Any, count: Any, size: Any, out: Any) -> Any:
    """Hashes of the n-grams of a text with at least as many words; returns their number."""
    leading = np.uint64(1)
    for _ in range(size):
        leading *= _BASE
    value = np.uint64(0)
    for i in range(count):
        value = value * _BASE + words[i]
        if i >= size:
            value -= leading * words[i - size]
        if i >= size - 1:
            # 0 marks a place of the table that is free.
            out[i - size + 1] = max(mix(value ^ np.uint64(size)), np.uint64(1))
    return count - size + 1


@compiled
def _marks(text: Any, whole: Any, at: Any, size: Any, words: Any, out: Any) -> Any:
    """Hashes by which a text is known: its n-grams, or all of it where it has fewer words; returns their number."""
    data, offsets = text
    count = hash_tokens(data, offsets[at], offsets[at + 1], words)
    if count >= size:
        return _grams_of(words, count, size, out)
    if count < LEAST_WORDS:
        return 0
    data, offsets = whole
    count = hash_tokens(data, offsets[at], offsets[at + 1], words)
    return _grams_of(words, count, count, out)


@compiled
def _all_marks(text: Any, whole: Any, size: Any) -> Any:
    """The hashes by which texts are known, of all of them."""
    offsets = whole[1]
    result = np.empty(offsets[-1] - offsets[0] + 1, np.uint64)
    words = np.empty(len(result), np.uint64)
    total = 0
    for at in range(len(offsets) - 1):
        total += _marks(text, whole, at, size, words, result[total:])
    return result[:total]


@compiled
def _table(grams: Any, slots: Any) -> Any:
    """A hash table with open addressing; [a power of two] of uint64."""
    table = np.zeros(slots, np.uint64)
    for gram in grams:
        table[slot_of(table, gram)] = gram
    return table


@compiled
def _has(table: Any, mark: Any) -> Any:
    return table[slot_of(table, mark)] == mark


@compiled
def _meets(text: Any, whole: Any, size: Any, table: Any) -> Any:
    """Which texts have a hash that is in the table."""
    offsets = whole[1]
    longest = 1
    for at in range(len(offsets) - 1):
        longest = max(longest, offsets[at + 1] - offsets[at])
    words, marks = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    result = np.zeros(len(offsets) - 1, np.bool_)
    for text_at in range(len(result)):
        for j in range(_marks(text, whole, text_at, size, words, marks)):
            if _has(table, marks[j]):
                result[text_at] = True
                break
    return result


@compiled
def _first_run(text: Any, whole: Any, size: Any, table: Any) -> Any:
    """Of a single text: where its first words in a row that are in the table begin and end, in bytes.

    (-1, -1) where there are none, (0, -1) where it is all of the text that is.
    """
    room = whole[1][1] - whole[1][0] + 1
    words, marks = np.empty(room, np.uint64), np.empty(room, np.uint64)
    count = _marks(text, whole, 0, size, words, marks)
    first = 0
    while first < count and not _has(table, marks[first]):
        first += 1
    after = first
    while after < count and _has(table, marks[after]):
        after += 1
    data, offsets = text
    if after == first:
        return -1, -1
    if hash_tokens(data, offsets[0], offsets[1], words) < size:
        return 0, -1
    return token_bounds(data, offsets[0], offsets[1], first, after + size - 2)


def _forms(texts: pa.Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Texts without signs, and without those around them, as bytes and offsets."""
    normal = normalise(texts.cast(pa.large_string()))
    words = pc.replace_substring_regex(normal, pattern=_SIGNS, replacement=" ")
    # No longer than the other, so that what has room for its tokens has it for theirs.
    return buffers(words), buffers(pc.replace_substring_regex(normal, pattern=_AROUND, replacement=""))


class InCommon(NamedTuple):
    """What a row has in common with a benchmark: the first words of it, as they are compared, and their column."""

    column: str
    words: str


class Contamination:
    """What is known of benchmarks' texts: 16 to 32 bytes for each of their n-grams.

    Raises:
        UserError: one of them cannot be read.
        StoreError: it cannot be read just now.
    """

    def __init__(self, benchmarks: Sequence[Benchmark]) -> None:
        self._known: list[tuple[str, int, Array]] = []
        for benchmark, texts in zip(benchmarks, read_benchmarks(benchmarks), strict=True):
            parts = [texts.slice(start, _BATCH_TEXTS) for start in range(0, len(texts), _BATCH_TEXTS)]
            hashes = [_all_marks(*_forms(part), benchmark.ngram) for part in parts]
            grams = np.concatenate([np.empty(0, np.uint64), *hashes])
            slots = 1 << (2 * len(grams) + 1).bit_length()
            self._known.append((benchmark_name(benchmark), benchmark.ngram, _table(grams, slots)))

    def found(self, table: pa.Table) -> dict[str, npt.NDArray[np.bool_]]:
        """Which rows have a text in common with a benchmark, by its name, [rows] each.

        Args:
            table: rows of a shard; all of their own columns with texts count.
        """
        found = {name: np.zeros(table.num_rows, bool) for name, _, _ in self._known}
        for column in _columns(table) if self._known else ():
            texts, rows = flat_texts(table[column].combine_chunks())
            forms = _forms(texts)
            for name, size, grams in self._known:
                found[name][rows[_meets(*forms, size, grams)]] = True
        return found

    def in_common(self, row: pa.Table, benchmark: str) -> InCommon | None:
        """What a row has in common with a benchmark of that name; None if nothing.

        Args:
            row: of a shard, alone.
        """
        for column in _columns(row):
            texts, _ = flat_texts(row[column].combine_chunks())
            for text in range(len(texts)):
                words, whole = _forms(texts.slice(text, 1))
                for _, size, grams in (each for each in self._known if each[0] == benchmark):
                    begin, end = _first_run(words, whole, size, grams)
                    if begin >= 0:
                        data, (first, last) = whole
                        found = data[first:last] if end < 0 else words[0][begin:end]
                        return InCommon(column, " ".join(found.tobytes().decode().split()))
        return None


def _columns(table: pa.Table) -> list[str]:
    """The columns of a row's own with texts."""
    return [field.name for field in table.schema if field.name not in META_NAMES and holds_texts(kind_of(field.type))]
