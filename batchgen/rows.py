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
    pa.field("notes", pa.list_(pa.string()), nullable=False),
    pa.field("failed_completion", pa.string()),
)
META_NAMES = frozenset(field.name for field in META_FIELDS)
# Columns that a dataset has besides: the conversation that is made of others, and how many rows a kept one stands for.
MESSAGES = "messages"
CLUSTER_SIZE = "cluster_size"

# Columns of a shard that say nothing about a row that was kept, so that a dataset has them not.
SHARD_ONLY = frozenset(("row_index", "outcome", "reason", "failed_completion"))

CONVERSATION = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
_TYPES: Mapping[str, pa.DataType] = {
    "text": pa.string(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "conversation": CONVERSATION,
}


KINDS = "text, number, boolean, conversation, or list[...] of one of these"


def is_kind(text: str) -> bool:
    """Whether a text is the kind of a column."""
    return text in _TYPES or (text.startswith("list[") and text.endswith("]") and is_kind(text[5:-1]))


def arrow_type(kind: str) -> pa.DataType:
    """The Arrow type of a column's kind: `text`, `number`, `boolean`, `conversation`, or `list[...]` of a kind."""
    return pa.list_(arrow_type(kind[5:-1])) if kind.startswith("list[") else _TYPES[kind]


# A message of a conversation has either pair of keys; the second one is that of ShareGPT's files.
_MESSAGE_KEYS = (("role", "content"), ("from", "value"))
# Whom those files tell apart by other names than chat templates do.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}


def as_message(given: Mapping[str, Any] | None) -> dict[str, str] | None:
    """A message as chat templates read it, with role and content; None where it lacks either."""
    for keys in _MESSAGE_KEYS:
        role, content = ((given or {}).get(key) for key in keys)
        if isinstance(role, str) and isinstance(content, str):
            return {"role": role if "role" in keys else _ROLES.get(role, role), "content": content}
    return None


def up_to_question(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation up to the user's last message; empty where there is none."""
    last = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=-1)
    return list(messages[: last + 1])


def kind_of(type: pa.DataType) -> str:
    """The kind of a column of seed rows; `other` where no task can read it."""
    if pa.types.is_string(type) or pa.types.is_large_string(type):
        return "text"
    if pa.types.is_boolean(type):
        return "boolean"
    if pa.types.is_integer(type) or pa.types.is_floating(type):
        return "number"
    if pa.types.is_list(type) or pa.types.is_large_list(type):
        item = type.value_type
        if pa.types.is_struct(item):
            names = {field.name for field in item if kind_of(field.type) == "text"}
            return "conversation" if any(names.issuperset(keys) for keys in _MESSAGE_KEYS) else "other"
        inner = kind_of(item)
        return "other" if inner == "other" else f"list[{inner}]"
    return "other"


META_KINDS: Mapping[str, str] = {field.name: kind_of(field.type) for field in META_FIELDS}
_WORDS: Mapping[str, str] = {
    "text": "texts",
    "number": "numbers",
    "boolean": "booleans",
    "conversation": "conversations (lists of messages with `role` and `content`, or `from` and `value`)",
    "printable": "texts, numbers or booleans",
    "other": "values of a type that no task reads",
}


def in_words(kind: str) -> str:
    """What a column of a kind holds, for messages."""
    return f"lists of {in_words(kind[5:-1])}" if kind.startswith("list[") else _WORDS[kind]


_UNREADABLE = (
    pa.types.is_map,
    pa.types.is_interval,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
    pa.types.is_run_end_encoded,
    pa.types.is_union,
    pa.types.is_decimal32,
    pa.types.is_decimal64,
    # These it can read, but Arrow 26 cannot pick rows out of them.
    pa.types.is_string_view,
    pa.types.is_binary_view,
)


def is_publishable(type: pa.DataType) -> bool:
    """Whether a column of a type can be merged, and read by the datasets library: some that Parquet keeps cannot."""
    if isinstance(type, pa.BaseExtensionType):
        return bool(type.extension_name == "arrow.json")
    fields = [type.field(index) for index in range(type.num_fields)]
    return not any(check(type) for check in _UNREADABLE) and all(is_publishable(field.type) for field in fields)


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
        branch: where the row stands among those of its seed row: "" where there is one, else the index in every
            exploded list and of every generation, joined by dots.
        notes: what happened on the way that did not reject the row, a short code each.
        failed_completion: of a rejected row, the last completion before it was, as the model wrote it; None where there
            was none.
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
    notes: Sequence[str] = ()
    failed_completion: str | None = None

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
            "notes": list(self.notes),
            "failed_completion": self.failed_completion,
        }


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def canonical_json(value: Any) -> bytes:
    """One byte string for equal values: sorted keys, no white space, UTF-8."""
    return _CANONICAL.encode(value).encode("utf-8", "surrogatepass")


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
        step_columns: columns that the steps add, name to kind.
    """
    added = [pa.field(name, arrow_type(kind)) for name, kind in step_columns.items()]
    return pa.schema([*META_FIELDS, *seed_fields, *added])
