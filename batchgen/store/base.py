"""The object store contract that the commit protocol needs, and nothing more."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from batchgen.errors import StoreError, UserError


class ObjectStore(Protocol):
    """Named immutable objects. Keys are relative, with `/`; none leaves the store.

    Every method raises `StoreError` when the store itself fails: full, read-only, unreachable.
    """

    @property
    def location(self) -> str:
        """What `open_store` takes to open this store again."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Creates an object, durably; False where one of that key exists. Of many callers one gets True."""

    def put(self, key: str, data: bytes) -> None:
        """Creates or replaces an object, all at once: the last writer wins. For what may be written again."""

    def read(self, key: str) -> bytes | None:
        """An object's bytes, or None where there is none."""

    def read_many(self, keys: Sequence[str]) -> Iterator[bytes | None]:
        """What `read` gives for each key, in order; some at once where every read is a journey, never all."""

    def upload(self, key: str, path: Path) -> None:
        """Moves a finished local file to a key that is the caller's alone, durably."""

    def open(self, key: str) -> BinaryIO:
        """An object for reading; raises FileNotFoundError where there is none."""

    def size(self, key: str) -> int:
        """An object's length in bytes; 0 where there is none."""

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that start with a folder name, in order; with "" all of them."""

    def delete(self, key: str) -> None:
        """Removes an object; nothing happens where there is none."""

    def unfinished(self, prefix: str) -> Iterator[str]:
        """Keys under a folder name of what writers, perhaps killed ones, have not finished; `list` leaves them out."""


def probe(store: ObjectStore) -> None:
    """Makes sure, before anything is started, that a store can be written and that its create-if-absent excludes.

    Raises:
        UserError: it cannot, or two writers of one key could both succeed.
        StoreError: it cannot now, and is not to blame on anybody's input.
    """
    key = f"probe-{uuid.uuid4().hex}"
    try:
        first, second = store.put_if_absent(key, b"first"), store.put_if_absent(key, b"second")
        kept = store.read(key)
        store.delete(key)
    except StoreError as error:
        if error.busy:
            raise
        raise UserError(f"output: {store.location!r} cannot be written: {error}") from error
    if (first, second, kept) != (True, False, b"first"):
        raise UserError(
            f"output: {store.location!r} lets two writers create one object (it ignores If-None-Match), so shards "
            "could be committed twice; use another store"
        )
