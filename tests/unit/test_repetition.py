"""How much of a text is said again: by hand, and against a plain count."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from batchgen.repetition import GRAM, repeated_shares


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("one two three four five", 0),
        ("one two three four five one two three four", 0),  # four in a row are none yet
        ("one two three four five one two three four five", 5 / 10),
        ("one two three four five x one two three four five y", 5 / 12),
        ("one two three four five six one two three four five six", 6 / 12),
        ("no no no no no no", 5 / 6),  # the first one is not said again
        ("One, two: three! four five. ONE TWO THREE FOUR FIVE?", 5 / 10),
        ("| --- | --- | --- | --- | --- | --- |\n" * 5, 0),
        ("谁写了哈姆雷特谁写了哈姆雷特", 7 / 14),
        ("I need it for my friend. " * 20, 114 / 120),
    ],
)
def test_the_share_of_words_that_are_said_again(text: str, expected: float):
    shares = repeated_shares(pa.array(["Another text.", text, "What else?"]))
    assert shares.tolist() == [0, pytest.approx(expected), 0]


def test_it_is_what_sets_of_n_grams_find():
    rng = random.Random(3)
    texts = [" ".join(rng.choices("abc", k=rng.randrange(60))) for _ in range(800)]
    texts += [" ".join(rng.choices([f"w{n}" for n in range(12)], k=rng.randrange(400))) for _ in range(200)]
    expected = []
    for text in texts:
        words, seen, again = text.split(), set(), set()
        for first in range(len(words) - GRAM + 1):
            gram = tuple(words[first : first + GRAM])
            again |= set(range(first, first + GRAM)) if gram in seen else set()
            seen.add(gram)
        expected.append(len(again) / len(words) if words else 0)
    np.testing.assert_allclose(repeated_shares(pa.array(texts)), expected)
    assert 100 < np.count_nonzero(expected) < len(texts) - 100
