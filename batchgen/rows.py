"""Row identity, outcomes, random seeds, and the Arrow schema of a shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

Outcome = Literal["ok", "rejected"]
OK: Outcome = "ok"
REJECTED: Outcome = "rejected"

# Columns that every shard has, before the seed's and the steps' own.
META_FIELDS = (
    pa.field("row_id", pa.string(), nullable=False),
    pa.field("row_index", pa.int64(), nullable=False),
    pa.field("branch", pa.string(), nullable=False),
    pa.field("outcome", pa.string(), nullable=False),
    pa.field("reason", pa.string()),
    pa.field("model", pa.string(), nullable=False),
    pa.field("finish_reason", pa.string()),
    pa.field("input_tokens", pa.int64(), nullable=False),
    pa.field("output_tokens", pa.int64(), nullable=False),
)
META_NAMES = frozenset(field.name for field in META_FIELDS)

CONVERSATION = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
ARROW_TYPES: Mapping[str, pa.DataType] = {
    "text": pa.string(),
    "texts": pa.list_(pa.string()),
    "conversation": CONVERSATION,
}


@dataclass(frozen=True, slots=True)
class SeedRow:
    """One input row.

    Args:
        id: 32 hexadecimal digits, made from content and position.
        index: position in the source, from 0.
        data: the row's columns.
    """

    id: str
    index: int
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One row of a shard file: what became of a seed row, or of one branch of it after an `explode`.

    Args:
        branch: where the row stands among those of its seed row: "" without an explode, else the index in every
            exploded list, joined by dots.
    """

    seed: SeedRow
    branch: str
    outcome: Outcome
    reason: str | None
    data: Mapping[str, Any]
    model: str
    finish_reason: str | None
    input_tokens: int
    output_tokens: int

    def record(self) -> dict[str, Any]:
        """The row as a flat record of the shard's schema; columns that it never reached are absent."""
        return {
            **self.data,
            "row_id": self.seed.id,
            "row_index": self.seed.index,
            "branch": self.branch,
            "outcome": self.outcome,
            "reason": self.reason,
            "model": self.model,
            "finish_reason": self.finish_reason,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }


def canonical_json(value: Any) -> bytes:
    """One byte string for equal values: sorted keys, no white space, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return text.encode("utf-8", "surrogatepass")


def row_id(data: Mapping[str, Any], index: int) -> str:
    """The id of a seed row: 128 bits over its content and its position."""
    return hashlib.blake2b(canonical_json([index, dict(data)]), digest_size=16).hexdigest()


def random_seed(*parts: str | int) -> int:
    """A 63-bit seed that differs wherever any of the parts does."""
    digest = hashlib.blake2b(canonical_json(list(parts)), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def shard_schema(seed_fields: Sequence[pa.Field], step_columns: Mapping[str, str]) -> pa.Schema:
    """The schema of a shard file.

    Args:
        seed_fields: columns of the seed rows.
        step_columns: columns that the steps add, name to one of `ARROW_TYPES`.
    """
    added = [pa.field(name, ARROW_TYPES[kind]) for name, kind in step_columns.items()]
    return pa.schema([*META_FIELDS, *seed_fields, *added])
