"""A store in a bucket of S3, or of anything that speaks it, over the Rust client that `obstore` wraps.

Endpoint, region and credentials come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `AWS_REGION`, a
machine's or a pod's role). An object is created with `If-None-Match: *`, about which the server decides; a key that
only one attempt has needs no condition. A multipart upload that fails is aborted by the client.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from batchgen.errors import StoreError, UserError

T = TypeVar("T")

_LOCATION = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")
# A conditional write that meets another one to the same key may be refused without either having been done.
_CONFLICTS = 6
_RETRY_SECONDS = 60
# Seconds before a request that the client gave up at once, though AWS's own clients send it again, is sent again.
_PAUSES = (0.1, 0.5, 2.0, 5.0)
_READERS = 32
# Signs in the client's errors of why a server was not reached, and words that hold nothing of a request.
_NO_HOST = "there is no such host"
_TORN = "the answer ended before its time"
# A server's word for a body that came too slowly: a 400, which would else mean that the request is wrong.
_SLOW_BODY = "RequestTimeout\\b"
_CAUSES = {
    "dns error": _NO_HOST,
    "kind: ConnectionRefused": "connection refused",
    "kind: ConnectionReset": "connection reset",
    "kind: HostUnreachable": "no route to the host",
    "kind: NetworkUnreachable": "the network is unreachable",
    "kind: Timeout": "no answer in time",
    "kind: Interrupted": _TORN,
}
_PASSING = re.compile(
    "|".join([r"\b429 ", r"\b5\d\d ", _SLOW_BODY, *(words for words in _CAUSES.values() if words != _NO_HOST)])
)
_SENT_AGAIN = re.compile(f"{_TORN}|{_SLOW_BODY}")


class S3Store:
    """An `ObjectStore` under a prefix of a bucket."""

    def __init__(self, location: str) -> None:
        match = _LOCATION.fullmatch(location.rstrip("/"))
        if match is None:
            raise UserError(
                f"{location!r} is not an S3 location; it must read s3://bucket/prefix, where the bucket's name has "
                "3 to 63 of a-z, 0-9, '.' and '-'"
            )
        self._bucket, self._prefix = match[1], match[2] or None
        self.location = location.rstrip("/")
        self._opened: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the connection, which belongs to its process."""
        return {**self.__dict__, "_opened": None}

    @property
    def _store(self) -> Any:
        if self._opened is None:
            from obstore.store import S3Store as Client

            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            self._opened = Client(
                self._bucket,
                prefix=self._prefix,
                config={"endpoint": endpoint} if endpoint else {},
                client_options={
                    "allow_http": bool(endpoint and endpoint.startswith("http://")),
                    "connect_timeout": timedelta(seconds=10),
                    "timeout": timedelta(seconds=120),
                },
                retry_config={"max_retries": 8, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)},
            )
        return self._opened

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Creates an object; False where another of that key exists.

        The client sends a request again whose answer was lost, and then meets its own object: one with the very bytes
        that were to be written counts as created.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def create() -> bool:
            try:
                obstore.put(self._store, _checked(key), data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        for attempt in range(_CONFLICTS):
            if self._asked("write", key, create):
                return True
            existing = self.read(key)
            if existing is not None:
                return existing == data
            time.sleep(0.05 * 2**attempt)
        raise StoreError(f"cannot write {self.location}/{key}: another writer keeps getting in the way", busy=True)

    def put(self, key: str, data: bytes) -> None:
        """Creates or replaces an object, all at once."""
        import obstore

        self._asked("write", key, lambda: obstore.put(self._store, _checked(key), data))

    def read(self, key: str) -> bytes | None:
        """An object's bytes, or None where there is none."""
        import obstore
        from obstore.exceptions import NotFoundError

        def get() -> bytes | None:
            try:
                return bytes(obstore.get(self._store, _checked(key)).bytes())
            except (NotFoundError, FileNotFoundError):
                return None

        return self._asked("read", key, get)

    def read_many(self, keys: Sequence[str]) -> Iterator[bytes | None]:
        """What `read` gives for each key, in order; some are under way at once, and no more are held than those."""
        with ThreadPoolExecutor(_READERS) as pool:
            coming: deque[Future[bytes | None]] = deque()
            for key in keys:
                if len(coming) == _READERS:
                    yield coming.popleft().result()
                coming.append(pool.submit(self.read, key))
            while coming:
                yield coming.popleft().result()

    def upload(self, key: str, path: Path) -> None:
        """Moves a finished local file to a key that is the caller's alone."""
        import obstore

        self._asked("write", key, lambda: obstore.put(self._store, _checked(key), path))
        with suppress(OSError):  # it is there, whatever becomes of the file
            path.unlink()

    def open(self, key: str) -> BinaryIO:
        """An object for reading; raises FileNotFoundError where there is none."""
        data = self.read(key)
        if data is None:
            raise FileNotFoundError(f"{self.location}/{key}")
        return io.BytesIO(data)

    def size(self, key: str) -> int:
        """An object's length in bytes; 0 where there is none."""
        import obstore
        from obstore.exceptions import NotFoundError

        def head() -> int:
            try:
                return int(obstore.head(self._store, _checked(key))["size"])
            except (NotFoundError, FileNotFoundError):
                return 0

        return self._asked("read", key, head)

    def list(self, prefix: str) -> Iterator[str]:
        """Keys under a folder, in order; all of them where it has no name."""
        import obstore

        def every() -> list[str]:
            pages = obstore.list(self._store, prefix=_checked(prefix.rstrip("/")) if prefix else None)
            return sorted(str(item["path"]) for page in pages for item in page)

        yield from self._asked("list", prefix, every)

    def delete(self, key: str) -> None:
        """Removes an object; nothing happens where there is none."""
        import obstore
        from obstore.exceptions import NotFoundError

        def remove() -> None:
            with suppress(NotFoundError, FileNotFoundError):
                obstore.delete(self._store, _checked(key))

        self._asked("delete", key, remove)

    def unfinished(self, prefix: str) -> Iterator[str]:
        """None: an object is there whole, or not at all."""
        return iter(())

    def _asked(self, what: str, key: str, ask: Callable[[], T]) -> T:
        """What a server answers, asked again where that may help and does no harm twice.

        The client's errors become the store's: their texts may hold request headers, so only the kind is told.
        """
        from obstore.exceptions import BaseError

        for pause in (*_PAUSES, None):
            try:
                return ask()
            except (BaseError, OSError) as error:
                kind = _kind(error)
                if pause is None or not _SENT_AGAIN.search(kind):
                    denied, busy = re.search(r"\b40[13] ", kind) is not None, _PASSING.search(kind) is not None
                    raise StoreError(f"cannot {what} {self.location}/{key}: {kind}", denied, busy) from None
            time.sleep(pause)
        raise AssertionError


def _kind(error: BaseException) -> str:
    """What went wrong, in words that hold nothing of a request."""
    status = re.search(r"\b(4\d\d|5\d\d) [A-Z][A-Za-z ]+", str(error))
    code = re.search(r"<Code>(\w+)</Code>", str(error))
    cause = next((words for sign, words in _CAUSES.items() if sign in str(error)), None)
    details = [part for part in (status and status[0].strip(), code and code[1], cause) if part]
    return f"{type(error).__name__}{': ' + ', '.join(details) if details else ''}"


def _checked(key: str) -> str:
    """A key that stays in the store."""
    if not key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"not a key of a store: {key!r}")
    return key
