"""How much of a text says again what it has said before, as a model that is caught in a loop does.

Of the measures of Gopher's quality filters (https://arxiv.org/abs/2112.11446, appendix A.1.1) the one of duplicate
5-grams, in words instead of characters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.minhash import Array, buffers, compiled, hash_tokens, mix, normalise, slot_of

GRAM = 5
# Of tables, rules and code: signs that come again. (RE2 takes a millisecond to read Unicode's classes of them.)
_SIGNS = r"[[:punct:]]+"


@compiled
def _shares(data: Any, offsets: Any, size: Any) -> Any:
    """The share of each text's tokens that are in an n-gram which stands in the text before, [texts]."""
    shares = np.zeros(len(offsets) - 1)
    longest = 1
    for at in range(len(shares)):
        longest = max(longest, offsets[at + 1] - offsets[at])
    words = np.empty(longest, np.uint64)
    for at in range(len(shares)):
        count = hash_tokens(data, offsets[at], offsets[at + 1], words)
        slots = 2
        while slots < 2 * count:
            slots *= 2
        seen = np.zeros(slots, np.uint64)
        repeated = 0
        covered = 0  # the tokens before this one are counted
        for first in range(count - size + 1):
            gram = np.uint64(0)
            for each in range(first, first + size):
                gram = mix(gram ^ words[each])
            gram = max(gram, np.uint64(1))  # 0 marks a slot that is free
            slot = slot_of(seen, gram)
            if seen[slot] == gram:
                repeated += first + size - max(first, covered)
                covered = first + size
            seen[slot] = gram
        if count:
            shares[at] = repeated / count
    return shares


def repeated_shares(texts: pa.Array) -> Array:
    """The share of each text's words that are in five words in a row which the text had before, [len(texts)].

    Upper case and ASCII's signs do not count. In scripts without spaces a character is a word.

    Args:
        texts: without nulls.
    """
    words = pc.replace_substring_regex(normalise(texts), pattern=_SIGNS, replacement=" ")
    return np.asarray(_shares(*buffers(words), GRAM))
