"""The records that a run is made of (plan, manifests, versions), as JSON that ends in a digest of itself.

A record is written once and read for as long as the run lives; one that a disk, an editor or another program has
changed is refused whole, whatever it still says.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from batchgen.rows import canonical_json

Record = TypeVar("Record")
_SEALED = re.compile(rb'(\{.*),"digest":"([0-9a-f]{32})"\}', re.DOTALL)


class RecordError(ValueError):
    """A record cannot be used; its text goes on from the record's name."""


class OtherFormat(RecordError):
    """A record of another version of batchgen."""


def seal(tree: Mapping[str, Any], format: int) -> bytes:
    """The bytes of a record.

    Args:
        tree: has a field at least, and none that is called `format` or `digest`.
        format: of this kind of record; a reader of another one refuses it.
    """
    body = canonical_json({**tree, "format": format})[:-1]
    return body + b',"digest":"' + _digest(body) + b'"}'


def unseal(data: bytes, format: int) -> dict[str, Any]:
    """What was sealed.

    Raises:
        RecordError: it is torn, of another format, or not what was written.
    """
    try:
        tree = json.loads(data)
    except ValueError as error:
        raise RecordError(f"cannot be read ({type(error).__name__})") from error
    found = tree.get("format") if isinstance(tree, dict) else None
    if isinstance(found, int) and found != format:
        raise OtherFormat(f"is of another version of batchgen (format {found}; this one reads {format})")
    sealed = _SEALED.fullmatch(data)
    if sealed is None or _digest(sealed[1]) != sealed[2]:
        raise RecordError("was changed after it was written")
    return {name: value for name, value in tree.items() if name not in ("format", "digest")}


def read_record(kind: type[Record], data: bytes, format: int) -> Record:
    """A dataclass from a record.

    Raises:
        RecordError: as `unseal` does, or it lacks a field, or a field is of another type.
    """
    unseal(data, format)
    try:
        return cast(Record, _adapter(kind).validate_json(data, strict=True))  # type: ignore[arg-type]  # hashable
    except ValidationError as error:
        raise RecordError("has other fields than this batchgen reads") from error


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).hexdigest().encode()


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
