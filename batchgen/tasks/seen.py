"""The texts that rows brought to a gate, so that a duplicate is known before its answer is paid for.

The merger finds every duplicate of a run; this finds most of them when it saves something. It knows what came since its
engine started, and asks nobody.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import xxhash

from batchgen.minhash import BANDS, ROWS_PER_BAND, Array, normalise, signatures, similarity


class Seen:
    """A `Gate` that ends rows whose text is a duplicate, or nearly one, of another row's.

    A row that comes again, in another attempt at its shard or to see whether an engine survives it, is no duplicate
    of itself, whatever its text is then.

    Args:
        threshold: least similarity of near-duplicates, as the merger's; None: only equal texts are duplicates.
    """

    def __init__(self, threshold: float | None) -> None:
        self._rows: dict[bytes, int] = {}
        self._near = _Near(threshold) if threshold is not None else None

    def reason(self, text: str, row: int) -> str | None:
        """Why a row ends here, or None.

        Args:
            row: a number that is the row's own.
        """
        texts = normalise(pa.array([text]))
        digest = xxhash.xxh3_128_digest(texts[0].as_py().encode())
        if self._rows.get(digest, row) != row:
            return "duplicate"
        if self._near is not None and self._near.has_another(texts, row):
            return "near_duplicate"
        self._rows[digest] = row
        return None


class _Near:
    """Signatures by their bands; of texts that share a band, the first one's. 3 kB a text."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._bands: list[dict[bytes, int]] = [{} for _ in range(BANDS)]
        self._signatures: list[Array] = []
        self._rows: list[int] = []
        signatures(pa.array([""]))  # compiles, which is not to happen among rows

    def has_another(self, texts: pa.Array, row: int) -> bool:
        """Whether a row's text is nearly that of another row; if not, it is kept for those to come."""
        (signature,) = signatures(texts)
        keys = [xxhash.xxh3_64_digest(band.tobytes()) for band in signature.reshape(BANDS, ROWS_PER_BAND)]
        found = {band[key] for band, key in zip(self._bands, keys, strict=True) if key in band}
        if any(self._rows[at] != row and self._alike(at, signature) for at in found):
            return True
        for band, key in zip(self._bands, keys, strict=True):
            band.setdefault(key, len(self._rows))
        self._rows.append(row)
        self._signatures.append(np.array(signature))
        return False

    def _alike(self, at: int, signature: Array) -> bool:
        return similarity(self._signatures[at], signature) >= self._threshold
