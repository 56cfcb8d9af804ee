"""The simulation's object store, whose every operation is a point at which the simulation decides who goes on."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import greenlet

from batchgen.errors import StoreError

BEFORE, AFTER = "fails before it has happened", "fails after it has happened"


class SimStore:
    """An object store in memory, whose every operation is a point of decision."""

    location = "sim"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def _at(self, effect: Callable[[], Any]) -> Any:
        """Performs an operation when, and as far as, the simulation lets it."""
        running = greenlet.getcurrent()
        fault = running.parent.switch("point") if running.parent is not None else None
        if fault == BEFORE:
            raise StoreError("sim: " + BEFORE)
        result = effect()
        if fault == AFTER:
            raise StoreError("sim: " + AFTER)
        return result

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return bool(self._at(lambda: self.objects.setdefault(key, data) is data))

    def put(self, key: str, data: bytes) -> None:
        self._at(lambda: self.objects.__setitem__(key, data))

    def read(self, key: str) -> bytes | None:
        found: bytes | None = self._at(lambda: self.objects.get(key))
        return found

    def read_many(self, keys: Sequence[str]) -> Iterator[bytes | None]:
        return map(self.read, keys)

    def upload(self, key: str, path: Path) -> None:
        data = path.read_bytes()
        self._at(lambda: self.objects.__setitem__(key, data))

    def open(self, key: str) -> BinaryIO:
        data = self.read(key)
        if data is None:
            raise FileNotFoundError(key)
        return io.BytesIO(data)

    def size(self, key: str) -> int:
        return len(self.objects.get(key, b""))

    def list(self, prefix: str) -> Iterator[str]:
        found: list[str] = self._at(lambda: sorted(key for key in self.objects if key.startswith(f"{prefix}/")))
        yield from found

    def delete(self, key: str) -> None:
        self._at(lambda: self.objects.pop(key, None))

    def unfinished(self, prefix: str) -> Iterator[str]:
        return iter(())
