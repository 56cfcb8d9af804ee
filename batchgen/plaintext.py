"""Texts of rows, and names that the makers of a dataset chose, as a terminal may be given them."""

from __future__ import annotations


def harmless(text: str) -> str:
    """A text with nothing in it that a terminal would obey, but for its line breaks."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(text: str) -> str:
    """The same on one line, with single spaces."""
    return harmless(" ".join(text.split()))
