"""Signatures of texts as they come, and whether one of them is nearly another text."""

from __future__ import annotations

from typing import Any

import numpy as np

from batchgen.minhash import BANDS, PERMUTATIONS, Array, band_keys, compiled, least_agreement, mix

# Texts of one table, which is never made larger: an engine's rows would wait for that.
_TEXTS = 1 << 17


@compiled
def _place(table: Any, keys: Any, band: Any, key: Any) -> Any:
    """Where in a band's table a key is, or would be."""
    mask = table.shape[1] - 1
    at = np.int64(mix(key) & np.uint64(mask))
    while table[band, at] >= 0 and keys[table[band, at], band] != key:
        at = (at + 1) & mask
    return at


@compiled
def _insert(table: Any, keys: Any, start: Any, stop: Any) -> Any:
    """Enters texts in every band; of those that share a key the first one stays."""
    for text in range(start, stop):
        for band in range(table.shape[0]):
            at = _place(table, keys, band, keys[text, band])
            if table[band, at] < 0:
                table[band, at] = text


@compiled
def _has_another(table: Any, keys: Any, values: Any, rows: Any, own_keys: Any, own: Any, row: Any, least: Any) -> Any:
    """Whether a text of another row shares a band and agrees in at least `least` places."""
    for band in range(table.shape[0]):
        text = table[band, _place(table, keys, band, own_keys[band])]
        if text < 0 or rows[text] == row:
            continue
        equal = 0
        for place in range(len(own)):
            equal += values[text, place] == own[place]
        if equal >= least:
            return True
    return False


class _Segment:
    """Some of the texts: their signatures, the rows that they are of, and a table for every band."""

    def __init__(self) -> None:
        self.values = np.empty((_TEXTS, PERMUTATIONS), np.uint8)
        self.keys = band_keys(self.values)
        self.rows = np.empty(_TEXTS, np.int64)
        self.table = np.full((BANDS, 2 * _TEXTS), -1, np.int32)
        self.count = 0

    def add(self, values: Array, row: int) -> int:
        """Takes as many texts as there is room for, and says how many."""
        stop = min(_TEXTS, self.count + len(values))
        taken = stop - self.count
        self.values[self.count : stop] = values[:taken]
        self.rows[self.count : stop] = row
        _insert(self.table, self.keys, self.count, stop)
        self.count = stop
        return taken


class NearIndex:
    """Texts, and the rows that they are of: 136 bytes each, and a table of 17 MB for every 131,072 of them.

    Args:
        threshold: least similarity of two texts that are nearly the same.
    """

    def __init__(self, threshold: float) -> None:
        self._least = least_agreement(threshold)
        self._segments = [_Segment()]
        self.has_another(np.zeros(PERMUTATIONS, np.uint8), 0)  # compiles, which is not to happen among rows
        self._segments[0].add(np.zeros((0, PERMUTATIONS), np.uint8), 0)

    def has_another(self, values: Array, row: int) -> bool:
        """Whether a text is nearly one of another row.

        Args:
            values: its signature, [128] of uint8.
            row: a number that is its row's own.
        """
        keys = band_keys(values[None])[0]
        return any(
            bool(_has_another(each.table, each.keys, each.values, each.rows, keys, values, row, self._least))
            for each in self._segments
        )

    def add(self, values: Array, row: int) -> None:
        """Takes texts of a row in.

        Args:
            values: their signatures, [texts, 128] of uint8.
        """
        while len(values):
            values = values[self._segments[-1].add(values, row) :]
            if len(values):
                self._segments.append(_Segment())
