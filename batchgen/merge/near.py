"""Clusters of near-duplicates: candidate pairs share one of 16 bands of their MinHash signatures.

An edge is a pair whose signatures agree at the threshold; connected components are the clusters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from batchgen.minhash import BANDS, Array, band_keys, compiled, least_agreement

# Members of one bucket are each compared with at most so many of the ones before them; template-like output makes
# buckets of thousands, and all pairs of those would be quadratic. A component needs only a chain.
MAX_COMPARED = 32


@compiled
def _root(parents: Any, text: Any) -> Any:
    """The first text of a text's component."""
    while parents[text] != text:
        parents[text] = parents[parents[text]]
        text = parents[text]
    return text


@compiled
def _join(parents: Any, order: Any, keys: Any, matrix: Any, rows: Any, least: Any, most: Any) -> None:
    """Joins texts of equal keys whose signatures agree in at least `least` places."""
    run = 0
    for position in range(1, len(order)):
        text = order[position]
        if keys[text] != keys[order[run]]:
            run = position
        for before in range(max(run, position - most), position):
            one, other = _root(parents, order[before]), _root(parents, text)
            if one == other:
                continue
            equal = 0
            for place in range(matrix.shape[1]):
                equal += matrix[rows[order[before]], place] == matrix[rows[text], place]
            if equal >= least:
                parents[max(one, other)] = min(one, other)


@compiled
def _flatten(parents: Any) -> None:
    for text in range(len(parents)):
        parents[text] = parents[parents[text]]  # a parent comes before its texts, so it has been here


def clusters(matrix: Array, threshold: float, rows: Array | None = None) -> Array:
    """For every text the index of the first text of its cluster; its own where it is the first or alone.

    Args:
        matrix: the texts' signatures, [texts, 128] of uint8.
        threshold: least estimated Jaccard similarity of an edge, from 0 to 1.
        rows: of the matrix, where not all of it is meant; indices are of these, then.
    """
    rows = np.arange(len(matrix)) if rows is None else rows
    first = np.arange(len(rows))
    least = least_agreement(threshold)
    for band in range(BANDS):
        keys = band_keys(matrix)[rows, band]
        # A stable sort keeps texts of one bucket in their order.
        order = np.argsort(keys, kind="stable")
        _join(first, order, keys, matrix, rows, least, MAX_COMPARED)
    _flatten(first)
    return first
