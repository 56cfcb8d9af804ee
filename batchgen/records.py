"""Reads the records that batchgen itself wrote as JSON, and refuses what can be none of them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

Record = TypeVar("Record")


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read_record(kind: type[Record], data: bytes) -> Record:
    """A dataclass, or any other type, from JSON.

    Raises:
        ValueError: it is no JSON, lacks a field, or a field is of another type.
    """
    adapter = _adapter(kind)  # type: ignore[arg-type]  # types are hashable
    return cast(Record, adapter.validate_json(data, strict=True))
