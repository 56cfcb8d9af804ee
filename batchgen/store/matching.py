"""Objects of a bucket by a pattern, as `glob` finds files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from batchgen.store.s3 import S3Store

_WILD = re.compile(r"[*?\[]")


def find_objects(pattern: str) -> tuple[S3Store, list[str]]:
    """The bucket of a pattern like `s3://bucket/seeds/**/*.jsonl`, and the keys there that match it, in order.

    A pattern without wild cards is a key, which may not be there; one that is itself a key is that one alone.

    Raises:
        UserError: it names no bucket.
        StoreError: the bucket cannot be listed.
    """
    bucket, _, key = pattern.removeprefix("s3://").partition("/")
    store = S3Store(f"s3://{bucket}")
    wild = _WILD.search(key)
    if wild is None:
        return store, [key]
    folder = key[: wild.start()].rpartition("/")[0]
    wanted = key.split("/")
    keys = [*store.list(folder)]
    return store, [key] if key in keys else [found for found in keys if _matches(found.split("/"), wanted)]


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_matches(parts[start:], wanted[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])
