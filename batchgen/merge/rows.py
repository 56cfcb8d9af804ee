"""From committed shards to the rows of a dataset: read, filter, deduplicate, with a count for every row dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from batchgen.commit import Manifest, check_shard
from batchgen.errors import JobError
from batchgen.job import Job, Merge, Step
from batchgen.plan import Plan, check_merge_columns
from batchgen.rows import CONVERSATION, OK, kind_of
from batchgen.store.base import ObjectStore

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
# The column that says how many rows a kept one stands for.
CLUSTER_SIZE = "cluster_size"
# Columns of a shard that say nothing about a row that was kept.
_DROPPED_COLUMNS = ("row_index", "outcome", "reason", "failed_completion")
# Rows that are worked on at a time. Texts as Python objects take several times their size, and no Arrow array of
# strings holds more than 2 GiB.
_BATCH_ROWS = 4096


# (prompt, answer), or the column of whole conversations.
ChatColumns = tuple[str, str | None] | str


@dataclass(frozen=True)
class Merged:
    """The rows of a dataset, finished as they are written: `messages` are as large as the texts that they repeat.

    Args:
        table: ok rows of the committed shards, in the order of (seed row, branch).
        positions: the dataset's rows in it, ascending.
        cluster_sizes: how many rows each of them stands for; None where there is no conversation to compare.
        chat: the columns that make `messages`; None where the dataset has none.
        read: rows in the committed shards.
        dropped: rows left out, by reason.
    """

    table: pa.Table
    positions: Indices
    cluster_sizes: Indices | None
    chat: ChatColumns | None
    read: int
    dropped: Mapping[str, int]

    def part(self, start: int, stop: int) -> pa.Table:
        """The dataset's rows [start, stop)."""
        positions = self.positions[start:stop]
        low, high = (positions[0], positions[-1] + 1) if len(positions) else (0, 0)
        mask = np.zeros(high - low, bool)
        mask[positions - low] = True
        rows = self.table.slice(low, high - low).filter(pa.array(mask))
        finished = pa.concat_tables([self._finished(batch) for batch in _batches(rows)])
        if self.cluster_sizes is None:
            return finished
        sizes = pa.array(self.cluster_sizes[start:stop], pa.int64())
        return finished.append_column(pa.field(CLUSTER_SIZE, pa.int64()), sizes)

    def _finished(self, rows: pa.Table) -> pa.Table:
        finished = rows.drop_columns([name for name in _DROPPED_COLUMNS if name in rows.column_names])
        if self.chat is None:
            return finished
        repeated = self.chat if isinstance(self.chat, str) else self.chat[0]
        if isinstance(self.chat, str) or repeated == "messages":
            finished = finished.drop_columns([repeated])  # `messages` is that conversation, perhaps with its answer
        return finished.add_column(0, pa.field("messages", CONVERSATION), _messages(rows, self.chat))


def chat_columns(job: Job, plan: Plan) -> ChatColumns | None:
    """The columns that make `messages`: (prompt, answer), or one conversation, or None.

    A prompt may be a conversation that the answer continues.

    Raises:
        JobError: `merge` names a column that is not there, or `merge.answer` has nothing to answer, or a column has a
            name that the dataset gives to one of its own.
    """
    found = _found_columns(job, plan)
    if found is not None and CLUSTER_SIZE in plan.schema.names:
        raise JobError(f"column {CLUSTER_SIZE!r} is where the dataset counts duplicates; give yours another name")
    if found is not None and "messages" in plan.schema.names and "messages" not in (found, found[0]):
        raise JobError("column 'messages' is where the dataset has the conversation; give yours another name")
    return found


def _found_columns(job: Job, plan: Plan) -> ChatColumns | None:
    kinds = {field.name: kind_of(field.type) for field in plan.schema}
    check_merge_columns(job, kinds)
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
    read = 0
    dropped: Counter[str] = Counter()
    kept = [plan.schema.empty_table()]
    ordered = [manifests[index] for index in sorted(manifests)]
    for manifest, data in zip(ordered, store.read_many([each.key for each in ordered]), strict=True):
        shard = check_shard(plan, manifest, data)
        read += shard.num_rows
        kept.append(_sound(shard, job.merge, dropped))
    # A list of the seeds that was spread over rows is in none of them.
    spread = {step.exploded[0] for step in job.steps if step.exploded is not None} - plan.step_columns.keys()
    table = pa.concat_tables(kept).drop_columns([name for name in plan.schema.names if name in spread])
    del kept

    chat = chat_columns(job, plan)
    if chat is None:
        return Merged(table, np.arange(table.num_rows), None, None, read, dict(sorted(dropped.items())))
    keep = _complete(table, chat)
    _count(dropped, "empty", len(keep) - int(keep.sum()))
    keep, sizes = _deduplicate(table, chat, keep, job.merge, dropped)
    shown = None if is_preference(plan) else chat
    return Merged(table, np.flatnonzero(keep), sizes, shown, read, dict(sorted(dropped.items())))


def _sound(table: pa.Table, merge: Merge, dropped: Counter[str]) -> pa.Table:
    """A shard's rows that are ok, and not cut where those are unwanted."""
    reasons = table.filter(pc.not_equal(table["outcome"], OK))["reason"].to_pylist()
    dropped.update(f"rejected: {reason}" for reason in reasons)
    table = table.filter(pc.equal(table["outcome"], OK))
    if not merge.drop_truncated:
        return table
    whole = table.filter(pc.fill_null(pc.not_equal(table["finish_reason"], "length"), True))
    _count(dropped, "truncated", table.num_rows - whole.num_rows)
    return whole


def _batches(table: pa.Table) -> Iterator[pa.Table]:
    """At least one, if an empty one."""
    for start in range(0, max(1, table.num_rows), _BATCH_ROWS):
        yield table.slice(start, _BATCH_ROWS)


def _count(dropped: Counter[str], reason: str, rows: int) -> None:
    if rows:
        dropped[reason] += rows


def _messages(table: pa.Table, columns: ChatColumns) -> pa.Array:
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


def _complete(table: pa.Table, chat: ChatColumns) -> Mask:
    """Whether a row's conversation has messages and none of them is blank."""
    return np.array(
        [
            bool(conversation) and all(message["content"] and message["content"].strip() for message in conversation)
            for batch in _batches(table)
            for conversation in _messages(batch, chat).to_pylist()
        ],
        dtype=bool,
    )


def _compared(table: pa.Table, chat: ChatColumns, keep: Mask, merge: Merge) -> Iterator[pa.Array]:
    """The texts of rows that no other row may share, a batch after the other."""
    roles = ("user",) if merge.compare == "prompt" else ("user", "assistant")
    for number, batch in enumerate(_batches(table)):
        wanted = batch.filter(pa.array(keep[number * _BATCH_ROWS : (number + 1) * _BATCH_ROWS]))
        texts = [
            "\n".join(message["content"] for message in conversation if message["role"] in roles)
            for conversation in _messages(wanted, chat).to_pylist()
        ]
        yield pa.array(texts, pa.string())


def _deduplicate(
    table: pa.Table, chat: ChatColumns, keep: Mask, merge: Merge, dropped: Counter[str]
) -> tuple[Mask, Indices]:
    """Which of some rows stay, and how many each of those stands for."""
    # numba and scipy take more than a second to import, and most commands and ends of a run need neither.
    from batchgen.merge import near
    from batchgen.minhash import normalise, signatures

    sizes = np.ones(int(keep.sum()), np.int64)
    if merge.exact and keep.any():
        texts = (text for batch in _compared(table, chat, keep, merge) for text in normalise(batch).to_pylist())
        first = _first_indices(xxhash.xxh3_128_digest(text.encode()) for text in texts)
        keep, sizes = _first_of_each(keep, sizes, first, "exact duplicate", dropped)
    if merge.near is not None and keep.any():
        matrix = np.concatenate([signatures(normalise(texts)) for texts in _compared(table, chat, keep, merge)])
        first = near.clusters(matrix, merge.near.threshold)
        keep, sizes = _first_of_each(keep, sizes, first, "near duplicate", dropped)
    return keep, sizes


def _first_indices(hashes: Iterable[bytes]) -> Indices:
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(value, index) for index, value in enumerate(hashes)], dtype=np.int64)


def _first_of_each(
    keep: Mask, sizes: Indices, first: Indices, reason: str, dropped: Counter[str]
) -> tuple[Mask, Indices]:
    """Of the rows kept so far the first of every cluster; `first[i]` is that row's index among them for the i-th."""
    total = np.bincount(first, weights=sizes, minlength=len(first)).astype(np.int64)
    stays = first == np.arange(len(first))
    _count(dropped, reason, len(stays) - int(stays.sum()))
    kept = np.zeros_like(keep)
    kept[np.flatnonzero(keep)[stays]] = True
    return kept, total[stays]
