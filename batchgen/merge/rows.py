"""From committed shards to the rows of a dataset: read, filter, deduplicate, with a count for every row dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from batchgen.commit import Manifest, read_shard
from batchgen.errors import JobError
from batchgen.job import Job, Merge, Step
from batchgen.merge import near
from batchgen.plan import Plan
from batchgen.rows import CONVERSATION, OK, kind_of
from batchgen.store.base import ObjectStore

Mask = npt.NDArray[np.bool_]
# Columns of a shard that say nothing about a row that was kept.
_DROPPED_COLUMNS = ("row_index", "outcome", "reason")


@dataclass(frozen=True)
class Merged:
    """The rows of a dataset.

    Args:
        table: in the order of (seed row, branch).
        read: rows in the committed shards.
        dropped: rows left out, by reason.
    """

    table: pa.Table
    read: int
    dropped: Mapping[str, int]


def chat_columns(job: Job, plan: Plan) -> tuple[str, str | None] | str | None:
    """The columns that make `messages`: (prompt, answer), or one conversation, or None.

    A prompt may be a conversation that the answer continues.

    Raises:
        JobError: `merge.answer` is given without anything to answer, or `messages` is another column already.
    """
    found = _found_columns(job, plan)
    if found is not None and "messages" in plan.schema.names and "messages" not in (found, found[0]):
        raise JobError("column 'messages' is where the dataset has the conversation; give yours another name")
    return found


def _found_columns(job: Job, plan: Plan) -> tuple[str, str | None] | str | None:
    kinds = {field.name: kind_of(field.type) for field in plan.schema}
    if job.merge.prompt:
        return job.merge.prompt, job.merge.answer
    if is_preference(plan):
        return "prompt", None
    for step in reversed(job.steps):
        mapped = step.output_mappings.get("conversation", "conversation")
        if step.outputs.get(mapped) == "conversation" and "conversation" in step.spec.outputs(step.parameters):
            return mapped
        chat = step.spec.chat(step.parameters)
        if chat is None:
            continue
        prompt = _column(step, chat[0])
        answer = _column(step, chat[1]) if chat[1] else None
        # A grouped answer is a list of them.
        if kinds.get(prompt) in ("text", "conversation") and (answer is None or kinds.get(answer) == "text"):
            return prompt, job.merge.answer or answer
    if job.merge.answer:
        raise JobError("merge.answer is given, but no step has a prompt that it would answer; give merge.prompt")
    return None


def is_preference(plan: Plan) -> bool:
    """Whether the rows are preference pairs, which TRL refuses to read beside `messages`."""
    return {"prompt", "chosen", "rejected"} <= set(plan.schema.names)


def _column(step: Step, name: str) -> str:
    return step.output_mappings.get(name, step.input_mappings.get(name, name))


def merge_rows(store: ObjectStore, plan: Plan, job: Job, manifests: Mapping[int, Manifest]) -> Merged:
    """Reads, filters and deduplicates the rows of all committed shards.

    Raises:
        CorruptShard: names the shard; nothing is written.
    """
    tables = [read_shard(store, plan, manifests[index]) for index in sorted(manifests)]
    table = pa.concat_tables(tables) if tables else plan.schema.empty_table()
    read = table.num_rows
    dropped: Counter[str] = Counter()

    reasons = table.filter(pc.not_equal(table["outcome"], OK))["reason"].to_pylist()
    dropped.update(f"rejected: {reason}" for reason in reasons)
    table = table.filter(pc.equal(table["outcome"], OK))

    if job.merge.drop_truncated:
        keep = pc.fill_null(pc.not_equal(table["finish_reason"], "length"), True)
        table = _keep(table, np.asarray(keep), "truncated", dropped)

    columns = chat_columns(job, plan)
    if columns is not None:
        messages = _messages(table, columns)
        if isinstance(columns, str):
            table = table.drop_columns([columns])  # `messages` is that conversation
        elif columns[0] == "messages":
            table = table.drop_columns(["messages"])  # `messages` is that conversation with its answer
        table = table.add_column(0, pa.field("messages", CONVERSATION), messages)
        table = _keep(table, _complete(messages), "empty", dropped)
        table = _deduplicate(table, job.merge, dropped)
        if is_preference(plan):
            table = table.drop_columns(["messages"])
    return Merged(table.drop_columns(list(_DROPPED_COLUMNS)), read, dict(sorted(dropped.items())))


def _keep(table: pa.Table, mask: Mask, reason: str, dropped: Counter[str]) -> pa.Table:
    mask = np.asarray(mask, dtype=bool)
    if lost := int((~mask).sum()):
        dropped[reason] += lost
    return table.filter(pa.array(mask))


def _messages(table: pa.Table, columns: tuple[str, str | None] | str) -> pa.Array:
    if isinstance(columns, str):
        return table[columns].combine_chunks()
    if kind_of(table.schema.field(columns[0]).type) == "conversation":
        return _continued(table, *columns)
    roles = [(role, name) for role, name in zip(("user", "assistant"), columns, strict=True) if name is not None]
    texts = [table[name].combine_chunks().cast(pa.string()) for _, name in roles]
    # One flat array, a message after the other: row 0's user, row 0's assistant, row 1's user ...
    width, rows = len(roles), table.num_rows
    order = np.arange(width * rows).reshape(width, rows).T.ravel()
    contents = pa.concat_arrays(texts).take(pa.array(order)) if rows else pa.array([], pa.string())
    roles_flat = pa.array([role for role, _ in roles] * rows, pa.string())
    structs = pa.StructArray.from_arrays([roles_flat, contents], fields=list(CONVERSATION.value_type))
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1) * width, pa.int32()), structs)


def _continued(table: pa.Table, conversation: str, answer: str | None) -> pa.Array:
    """Conversations with the answer, where there is one, as their last message."""
    answers = table[answer].to_pylist() if answer is not None else [None] * table.num_rows
    messages = [
        [{"role": message["role"], "content": message["content"]} for message in given or ()]
        + ([{"role": "assistant", "content": text}] if text is not None else [])
        for given, text in zip(table[conversation].to_pylist(), answers, strict=True)
    ]
    return pa.array(messages, CONVERSATION)


def _complete(messages: pa.Array | pa.ChunkedArray) -> Mask:
    """Whether a conversation has messages and none of them is blank."""
    return np.array(
        [
            bool(conversation) and all(message["content"] and message["content"].strip() for message in conversation)
            for conversation in messages.to_pylist()
        ],
        dtype=bool,
    )


def normalise(texts: pa.Array) -> pa.Array:
    """Texts as they are compared: NFKC, lower case, single spaces."""
    texts = pc.utf8_lower(pc.utf8_normalize(texts, form="NFKC"))
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, pattern=r"\s+", replacement=" "))


def _compared(table: pa.Table, merge: Merge) -> pa.Array:
    """The text of each row that no other row may share."""
    roles = ("user",) if merge.compare == "prompt" else ("user", "assistant")
    texts = [
        "\n".join(message["content"] for message in conversation if message["role"] in roles)
        for conversation in table["messages"].to_pylist()
    ]
    return normalise(pa.array(texts, pa.string()))


def _deduplicate(table: pa.Table, merge: Merge, dropped: Counter[str]) -> pa.Table:
    sizes = np.ones(table.num_rows, np.int64)
    if merge.exact and table.num_rows:
        hashes = [xxhash.xxh3_128_digest(text.encode()) for text in _compared(table, merge).to_pylist()]
        table, sizes = _first_of_each(table, sizes, _first_indices(hashes), "exact duplicate", dropped)
    if merge.near is not None and table.num_rows:
        first = near.clusters(_compared(table, merge), merge.near.threshold)
        table, sizes = _first_of_each(table, sizes, first, "near duplicate", dropped)
    return table.append_column(pa.field("cluster_size", pa.int64()), pa.array(sizes, pa.int64()))


def _first_indices(hashes: list[bytes]) -> npt.NDArray[np.int64]:
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(value, index) for index, value in enumerate(hashes)], dtype=np.int64)


def _first_of_each(
    table: pa.Table,
    sizes: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    reason: str,
    dropped: Counter[str],
) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Keeps the first row of every cluster; `first[i]` is that row's index for row i."""
    total = np.bincount(first, weights=sizes, minlength=len(first)).astype(np.int64)
    mask = first == np.arange(len(first))
    return _keep(table, mask, reason, dropped), total[mask]
