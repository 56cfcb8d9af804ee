"""Texts of rows, and names that the makers of a dataset chose, as a terminal may be given them."""

from __future__ import annotations

import re

# Control characters, and those that turn the direction of what follows. Others that cannot be seen are part of a text:
# joiners of letters in Persian and Hindi, and of emoji, spaces that do not break in French.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# Half of a surrogate pair: in JSON and YAML a text can hold one, by its number; no file can.
HALF = re.compile("[\ud800-\udfff]")


def harmless(text: str) -> str:
    """A text with nothing in it that a terminal would obey, but for its tabs and line breaks."""
    return _COMMANDS.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """The same on one line, with single spaces."""
    return harmless(" ".join(text.split()))
