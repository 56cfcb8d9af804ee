"""When two texts count as the same or nearly so: normalised text, and MinHash over 3-grams of tokens.

Of each value of a MinHash signature the low byte is kept: 128 bytes a text, eight of them the key of a band. Two values
that differ have the same low byte once in 256 times, which `least_agreement` allows for.

Everything is a pure function of the texts, so that it is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

# White space that is no single space: most of it is, and replacing all of it by itself was most of what merging took.
_WIDE = r"[\t\n\f\r]\s*| \s+"
PERMUTATIONS = 128
BANDS = 16

_GENERATOR = np.random.default_rng(0x6D696E68617368)
_MULTIPLY = _GENERATOR.integers(1, 2**63, PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
_ADD = _GENERATOR.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)

Array = npt.NDArray[Any]
F = TypeVar("F", bound=Callable[..., Any])


def normalise(texts: pa.Array) -> pa.Array:
    """Texts as they are compared: NFKC, lower case, single spaces."""
    texts = pc.utf8_lower(pc.utf8_normalize(texts, form="NFKC"))
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, pattern=_WIDE, replacement=" "))


def compiled(function: F) -> F:
    """The function compiled by numba, whose work is kept on disk.

    numba refuses to keep it where neither the package's folder nor a home can be written, as in many containers.
    """
    try:
        return cast(F, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:
        return cast(F, numba.njit(nogil=True)(function))


@compiled
def mix(value: Any) -> Any:
    """SplitMix64's finaliser."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@compiled
def slot_of(table: Any, value: Any) -> Any:
    """Where a value is in a hash table with open addressing, or would be.

    Args:
        table: [a power of two] of uint64, with 0 where a slot is free; one is.
        value: not 0.
    """
    last = np.uint64(len(table) - 1)
    at = value & last
    while table[at] != 0 and table[at] != value:
        at = (at + np.uint64(1)) & last
    return at


@compiled
def _character(data: Any, at: Any) -> Any:
    """The code point that begins at `at` of valid UTF-8, and its number of bytes."""
    first = data[at]
    if first < 0x80:
        return np.int64(first), 1
    more = 1 if first < 0xE0 else 2 if first < 0xF0 else 3
    code = np.int64(first) & (0x3F >> more)
    for i in range(1, more + 1):
        code = (code << 6) | (np.int64(data[at + i]) & 0x3F)
    return code, more + 1


@compiled
def _in_word(code: Any) -> Any:
    """Whether a character of normalised text is part of a word, with the ones beside it.

    Signs are not, nor are characters of scripts that put no spaces between words (Chinese, Japanese, Thai, Lao,
    Tibetan, Burmese, Khmer): a sentence of theirs would be one word, and no sentence would be nearly another.
    """
    if code < 0x80:
        return 48 <= code <= 57 or 65 <= code <= 90 or 97 <= code <= 122
    alone = (
        code <= 0xBF  # Latin-1 signs; NFKC has made letters and digits of ª, º, µ, ¹, ², ³
        or code == 0xD7
        or code == 0xF7
        or code == 0x60C  # Arabic comma, semicolon, question mark, full stop; danda
        or code == 0x61B
        or code == 0x61F
        or code == 0x6D4
        or 0x964 <= code <= 0x965
        or 0xE00 <= code <= 0x109F  # Thai, Lao, Tibetan, Burmese
        or 0x1780 <= code <= 0x17FF  # Khmer
        or 0x2010 <= code <= 0x2BFF  # punctuation, currencies, arrows, operators, shapes
        or 0x2E00 <= code <= 0xA4CF  # punctuation, kana, ideographs, Yi
        or 0xF900 <= code <= 0xFAFF
        or 0xFE30 <= code <= 0xFE4F
        or 0x1F000 <= code <= 0x1FAFF  # emoji
        or code >= 0x20000  # rarer ideographs
    )
    return not alone


@compiled
def _plain(code: Any) -> Any:
    """A typographic quotation mark or dash as ASCII has it: models write either."""
    if code == 0x2018 or code == 0x2019:
        return 39
    if code == 0x201C or code == 0x201D:
        return 34
    if 0x2010 <= code <= 0x2015 or code == 0x2212:
        return 45
    return code


@compiled
def _token(data: Any, at: Any, stop: Any) -> Any:
    """The hash of the token that begins at `at`, and where it ends: a word, or a character that stands alone.

    A sign is a token of its own: `5 + 3` and `5 - 3` are not the same text.
    """
    value = np.uint64(0xCBF29CE484222325)
    code, size = _character(data, at)
    if not _in_word(code):
        value = (value ^ np.uint64(_plain(code))) * np.uint64(0x100000001B3)
        return mix(value), at + size
    while at < stop:
        code, size = _character(data, at)
        if not _in_word(code):
            break
        for i in range(at, at + size):
            value = (value ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
        at += size
    return mix(value), at


@compiled
def hash_tokens(data: Any, start: Any, stop: Any, out: Any) -> Any:
    """Hashes of the tokens of a text; returns their number."""
    count = 0
    at = start
    while at < stop:
        if data[at] <= 32:
            at += 1
            continue
        out[count], at = _token(data, at, stop)
        count += 1
    return count


@compiled
def token_bounds(data: Any, start: Any, stop: Any, first: Any, last: Any) -> Any:
    """Where the tokens from number `first` to number `last` of a text begin and end, in bytes."""
    begins = stop
    count = 0
    at = start
    while at < stop and count <= last:
        if data[at] <= 32:
            at += 1
            continue
        if count == first:
            begins = at
        _, at = _token(data, at, stop)
        count += 1
    return begins, at


@compiled
def _signatures(data: Any, offsets: Any, multiply: Any, add: Any) -> Any:
    texts = len(offsets) - 1
    longest = 1
    for i in range(texts):
        longest = max(longest, offsets[i + 1] - offsets[i])
    tokens = np.empty(longest, np.uint64)
    least = np.empty(len(multiply), np.uint32)
    result = np.empty((texts, len(multiply)), np.uint8)
    for i in range(texts):
        least[:] = np.uint32(0xFFFFFFFF)
        count = hash_tokens(data, offsets[i], offsets[i + 1], tokens)
        for j in range(max(1, count - 2)):
            gram = np.uint64(count)  # a text of fewer than three tokens is one gram of its own length
            if count >= 3:
                gram = np.uint64(3)
            for k in range(j, min(j + 3, count)):
                gram = mix(gram ^ tokens[k]) + np.uint64(0x9E3779B97F4A7C15)
            for p in range(len(multiply)):
                value = np.uint32((gram * multiply[p] + add[p]) >> np.uint64(32))
                if value < least[p]:
                    least[p] = value
        for p in range(len(multiply)):
            result[i, p] = least[p] & np.uint32(0xFF)
    return result


def least_agreement(similarity: float) -> int:
    """In how many of 128 places the signatures of two texts of that Jaccard similarity are expected to agree."""
    return int(np.ceil(PERMUTATIONS * (similarity + (1 - similarity) / 256)))


def signatures(texts: pa.Array) -> Array:
    """MinHash signatures of normalised texts without nulls, [len(texts), 128] of uint8."""
    return np.asarray(_signatures(*buffers(texts), _MULTIPLY, _ADD))


def buffers(texts: pa.Array) -> tuple[Array, Array]:
    """The bytes of texts without nulls, and where each begins and the last one ends, [len(texts) + 1] of int64."""
    large = texts.cast(pa.large_string())
    _, offsets, data = large.buffers()
    bounds = np.frombuffer(offsets, np.int64)[large.offset : large.offset + len(large) + 1]
    raw = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
    return raw, bounds


def band_keys(matrix: Array) -> Array:
    """The keys of signatures' bands, [len(matrix), 16] of uint64."""
    return matrix.view(np.uint64)
