"""The texts that rows brought to a gate, so that a duplicate is known before its answer is paid for.

The merger finds every duplicate of a run; this finds those of which it knows. It knows what came since its engine
started, and what it is told of rows that are committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from batchgen.minhash import PERMUTATIONS, normalise, signatures
from batchgen.tasks.nearindex import NearIndex

_DIGEST_BYTES = 16
_RECORD = np.dtype([("digest", np.void, _DIGEST_BYTES), ("signature", np.uint8, PERMUTATIONS)])
# No row of this engine's has it: theirs are 0 and more.
_ELSEWHERE = -1


class Seen:
    """A `Gate` that ends rows whose text is a duplicate, or nearly one, of another row's.

    A row that comes again, in another attempt at its shard or to see whether an engine survives it, is no duplicate
    of itself, whatever its text is then.

    Args:
        threshold: least similarity of near-duplicates, as the merger's; None: only equal texts are duplicates.
    """

    def __init__(self, threshold: float | None) -> None:
        self._rows: dict[bytes, int] = {}
        self._near = NearIndex(threshold) if threshold is not None else None
        if self._near is not None:
            signatures(pa.array([""]))  # compiles, which is not to happen among rows

    def reason(self, text: str, row: int) -> str | None:
        """Why a row ends here, or None.

        Args:
            row: a number that is the row's own, not negative.
        """
        texts = normalise(pa.array([text]))
        (digest,) = _digests(texts)
        if self._rows.get(digest, row) != row:
            return "duplicate"
        if self._near is not None:
            values = signatures(texts)
            if self._near.has_another(values[0], row):
                return "near_duplicate"
            self._near.add(values, row)
        self._rows[digest] = row
        return None

    def describe(self, texts: Sequence[str]) -> bytes:
        """What `learn` of another gate like this one takes, 16 bytes a text, with a threshold 144."""
        normal = normalise(pa.array(texts, pa.string()))
        digests = b"".join(_digests(normal))
        if self._near is None:
            return digests
        records = np.empty(len(texts), _RECORD)
        records["digest"] = np.frombuffer(digests, records["digest"].dtype)
        records["signature"] = signatures(normal)
        return records.tobytes()

    def learn(self, records: bytes) -> None:
        """Takes in texts of rows that ran elsewhere: any number of what `describe` gives, one after the other."""
        digests = records
        if self._near is not None:
            found: Any = np.frombuffer(records, _RECORD)
            digests = found["digest"].tobytes()
            self._near.add(found["signature"], _ELSEWHERE)
        for start in range(0, len(digests), _DIGEST_BYTES):
            self._rows.setdefault(digests[start : start + _DIGEST_BYTES], _ELSEWHERE)


def _digests(normal: pa.Array) -> list[bytes]:
    """128-bit hashes of normalised texts."""
    return [xxhash.xxh3_128_digest(text.encode()) for text in normal.to_pylist()]
