"""The object store contract that the commit protocol needs, and nothing more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol


class ObjectStore(Protocol):
    """Named immutable objects. Keys are relative, with `/`; none leaves the store.

    Every method raises `StoreError` when the store itself fails: full, read-only, unreachable.
    """

    @property
    def location(self) -> str:
        """What `open_store` takes to open this store again."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Creates an object, durably; False where one of that key exists. Of many callers one gets True."""

    def read(self, key: str) -> bytes | None:
        """An object's bytes, or None where there is none."""

    def upload(self, key: str, path: Path) -> None:
        """Moves a finished local file to a key that is the caller's alone, durably."""

    def open(self, key: str) -> BinaryIO:
        """An object for reading; raises FileNotFoundError where there is none."""

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that start with a folder name, in order."""

    def delete(self, key: str) -> None:
        """Removes an object; nothing happens where there is none."""
