"""Clusters of near-duplicates: candidate pairs share one of 16 bands of their MinHash signatures.

An edge is a pair whose signatures agree at the threshold; connected components are the clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from batchgen.minhash import BANDS, PERMUTATIONS, ROWS_PER_BAND, Array, compiled

# Members of one bucket are each compared with at most so many of the ones before them; template-like output makes
# buckets of thousands, and all pairs of those would be quadratic. A component needs only a chain.
MAX_COMPARED = 32


@compiled
def _agreeing_pairs(order: Any, keys: Any, matrix: Any, rows: Any, least: Any, most: Any) -> Any:
    """Pairs within runs of equal keys whose signatures agree in at least `least` places, [pairs, 2]."""
    pairs = []
    run = 0
    for position in range(1, len(order)):
        if keys[order[position]] != keys[order[run]]:
            run = position
            continue
        for other in range(max(run, position - most), position):
            a, b = order[other], order[position]
            equal = 0
            for p in range(matrix.shape[1]):
                equal += matrix[rows[a], p] == matrix[rows[b], p]
            if equal >= least:
                pairs.append((a, b))
    edges = np.empty((len(pairs), 2), np.int64)
    for i in range(len(pairs)):
        edges[i, 0], edges[i, 1] = pairs[i]
    return edges


def _edges(matrix: Array, rows: Array, threshold: float) -> Iterator[Array]:
    """Edges that the buckets of a band give, a band after the other."""
    least = int(np.ceil(threshold * PERMUTATIONS))
    for band in range(BANDS):
        part = np.ascontiguousarray(matrix[rows, band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND])
        _, keys = np.unique(part, axis=0, return_inverse=True)
        keys = keys.reshape(-1)
        # A stable sort keeps texts of one bucket in their order.
        order = np.argsort(keys, kind="stable")
        yield _agreeing_pairs(order, keys, matrix, rows, least, MAX_COMPARED)


def clusters(matrix: Array, threshold: float, rows: Array | None = None) -> Array:
    """For every text the index of the first text of its cluster; its own where it is the first or alone.

    Args:
        matrix: the texts' signatures.
        threshold: least estimated Jaccard similarity of an edge, from 0 to 1.
        rows: of the matrix, where not all of it is meant; indices are of these, then.
    """
    rows = np.arange(len(matrix)) if rows is None else rows
    count = len(rows)
    first = np.arange(count)
    if count < 2:
        return first
    for edges in _edges(matrix, rows, threshold):
        # What earlier bands joined stays so by one edge a text: texts that are all alike have hundreds each.
        joined = first != np.arange(count)
        rows = np.concatenate([edges[:, 0], np.flatnonzero(joined)])
        columns = np.concatenate([edges[:, 1], first[joined]])
        graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
        _, labels = connected_components(graph, directed=False)
        _, earliest = np.unique(labels, return_index=True)
        first = np.asarray(earliest[labels])
    return first
