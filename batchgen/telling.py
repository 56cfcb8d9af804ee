"""Telling somebody how far something is that may take minutes."""

from __future__ import annotations

import time
from collections.abc import Callable

Tell = Callable[[str], None]


def untold(text: str) -> None:
    """A `Tell` of nobody."""


def paced(tell: Tell, seconds: float) -> Tell:
    """A `Tell` that passes a text on where the last one was so many seconds ago, or this was made so long ago."""
    told = time.monotonic()

    def now_and_then(text: str) -> None:
        nonlocal told
        if (now := time.monotonic()) - told >= seconds:
            told = now
            tell(text)

    return now_and_then
