"""What some texts of a dataset are like together: their languages, and how varied they are."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from batchgen.language import language_of

# A model's answers may be long, and their first page is enough to tell.
_MOST_CHARACTERS = 2000
_LONGEST_GRAM = 3


@dataclass(frozen=True)
class Texts:
    """Some questions, or some answers.

    Args:
        name: what they are.
        number: how many.
        languages: how many are clearly in one, by its code; "" for those that are clearly in none. The most first.
        distinct: of their words and signs, of pairs and of triples of these, the share that is left where each counts
            once (distinct-n, https://arxiv.org/abs/1510.03055).
        compression: how many times as long they are as what zlib makes of them; what is alike in them costs it
            nothing (https://arxiv.org/abs/2403.00553).
    """

    name: str
    number: int
    languages: Sequence[tuple[str, int]]
    distinct: Sequence[float]
    compression: float


def figures_of(name: str, texts: Sequence[str | None]) -> Texts | None:
    """What texts are like; None where all are empty.

    Args:
        texts: of rows from all over a dataset, in its order.
    """
    said = [text[:_MOST_CHARACTERS] for text in texts if text and not text.isspace()]
    if not said:
        return None
    languages = Counter(language_of(text) or "" for text in said)
    data = "\n".join(said).encode("utf-8", "replace")
    return Texts(
        name,
        len(said),
        sorted(languages.items(), key=lambda item: (-item[1], item[0])),
        _distinct(said),
        len(data) / len(zlib.compress(data, 9)),
    )


def _distinct(texts: Sequence[str]) -> list[float]:
    """The share of n-grams that are distinct, for each n; 1 where there are none."""
    from batchgen.minhash import buffers, hash_tokens, normalise  # numba

    data, offsets = buffers(normalise(pa.array(texts, pa.string())))
    hashes = np.empty(max(1, int(np.diff(offsets).max())), np.uint64)
    counts = [Counter[tuple[int, ...]]() for _ in range(_LONGEST_GRAM)]
    for start, stop in pairwise(offsets):
        tokens = hashes[: hash_tokens(data, start, stop, hashes)].tolist()
        for size, count in enumerate(counts, 1):
            count.update(zip(*(tokens[first:] for first in range(size)), strict=False))
    return [len(count) / count.total() if count else 1.0 for count in counts]
