"""The conversations of rows: which columns make a dataset's `messages`, and the messages themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.columns import check_merge_columns
from batchgen.errors import JobError
from batchgen.job import Job, Merge
from batchgen.plan import Plan
from batchgen.rows import CLUSTER_SIZE, CONVERSATION, MESSAGES, as_message, kind_of, up_to_question
from batchgen.step import Step
from batchgen.tasks.spec import Chat

# Rows that are worked on at a time. Texts as Python objects take several times their size, and no Arrow array of
# strings holds more than 2 GiB.
_BATCH_ROWS = 4096

# In place of one without role or content, for which its row is dropped as empty.
_NO_MESSAGE: dict[str, Any] = {"role": None, "content": None}

# The columns of a conversation's parts, or the one of whole conversations.
ChatColumns = Chat | str


def chat_columns(job: Job, plan: Plan) -> ChatColumns | None:
    """The columns that make `messages`; None where there are none.

    Raises:
        JobError: `merge` names a column that is not there, or `merge.answer` has nothing to answer, or a column has a
            name that the dataset gives to one of its own.
    """
    found = _found_columns(job, plan)
    if found is not None:
        taken = {CLUSTER_SIZE: "counts duplicates"}
        taken |= {MESSAGES: "has the conversation"} if prompt_column(found) != MESSAGES else {}
        for name in sorted(taken.keys() & set(plan.schema.names)):
            hint = f"give yours another name (one of the seeds by source.columns: {{{name}: NEW, ...}})"
            raise JobError(f"column {name!r} is where the dataset {taken[name]}; {hint}")
    if (
        MESSAGES in (job.merge.columns or ())
        and MESSAGES not in plan.schema.names
        and not has_messages(job, plan, found)
    ):
        raise JobError("merge.columns: the rows of this job have no 'messages'")
    return found


def prompt_column(chat: ChatColumns) -> str:
    """The column that conversations begin with."""
    return chat if isinstance(chat, str) else chat.prompt


def has_messages(job: Job, plan: Plan, chat: ChatColumns | None) -> bool:
    """Whether the dataset has a column of conversations made of others; TRL refuses to read one beside preferences."""
    wanted = job.merge.columns is None or MESSAGES in job.merge.columns
    return wanted and chat is not None and not _is_preference(plan)


def settled(job: Job, chat: ChatColumns | None) -> Merge:
    """A job's `merge`, with the text that has to differ where the job leaves that open; None where there is no text."""
    compare = None
    if chat is not None:
        repeated = _repeats(job, prompt_column(chat))
        compare = job.merge.compare or ("answers" if repeated else "prompt")
    return job.merge.model_copy(update={"compare": compare})


def _repeats(job: Job, prompt: str) -> bool:
    """Whether rows with one prompt are asked for: several generations of its answer, or a list spread over rows."""
    there = all(prompt not in _written(step) for step in job.steps)
    for step in job.steps:
        there = there or prompt in step.common_columns
        if there and job.generations(step) > 1 and not step.group_generations:
            return True
        there = there or prompt in _written(step)
        if there and step.exploded and prompt not in step.exploded.values():
            return True
    return False


def _written(step: Step) -> set[str]:
    """The columns that a step's rows have more than the ones before it."""
    return {*step.outputs, *step.exploded.values()}


def _found_columns(job: Job, plan: Plan) -> ChatColumns | None:
    kinds = {field.name: kind_of(field.type) for field in plan.schema}
    check_merge_columns(job, kinds)
    if job.merge.prompt:
        return Chat(job.merge.prompt, job.merge.answer)
    if _is_preference(plan):
        return Chat("prompt")
    # Where the items of lists are, and those of lists that are made of several columns; None where they are in no rows.
    spread: dict[str | None, str] = {}
    alternatives: dict[str | None, str | None] = {}
    for index, step in reversed(list(enumerate(job.steps))):
        spread |= dict(step.exploded.items())
        if step.spec.groups:
            (grouped,) = step.outputs
            alternatives |= dict.fromkeys((_column(step, name) for name in step.inputs), spread.get(grouped))
        if "conversation" in step.spec.outputs(step.parameters):
            written = step.output_mappings.get("conversation", "conversation")
            if kinds.get(whole := spread.get(written, written)) == "conversation":
                return whole
        chat = step.spec.chat(step.parameters)
        if chat is None:
            continue
        prompt = _column(step, chat.prompt)
        prompt = spread.get(prompt, prompt)
        answer = _column(step, chat.answer) if chat.answer is not None else None
        system = _system_column(job.steps[: index + 1])
        # An answer may be a list of them, or go into one.
        answered = alternatives.get(answer, spread.get(answer, answer))
        if kinds.get(prompt) in ("text", "conversation") and (answer is None or kinds.get(answered) == "text"):
            answer = job.merge.answer or answered
            return Chat(prompt, answer, system if system in kinds else None, regenerated=chat.regenerated)
    if job.merge.answer:
        raise JobError("merge.answer is given, but no step has a prompt that it would answer; give merge.prompt")
    return None


def _system_column(steps: Sequence[Step]) -> str | None:
    """The column of system prompts under which the last step's answers, or those that they were made of, were given."""
    step, chat = steps[-1], steps[-1].spec.chat(steps[-1].parameters)
    if chat is None or chat.revised is None:
        return step.reads.get(chat.system) if chat is not None and chat.system is not None else None
    revised = step.reads.get(chat.revised)
    for index in range(len(steps) - 1, 0, -1):
        earlier = steps[index - 1].spec.chat(steps[index - 1].parameters)
        if earlier is not None and earlier.answer and _column(steps[index - 1], earlier.answer) == revised:
            return _system_column(steps[:index])
    return None


def _is_preference(plan: Plan) -> bool:
    return {"prompt", "chosen", "rejected"} <= set(plan.schema.names)


def _column(step: Step, name: str) -> str:
    return step.output_mappings.get(name, step.reads.get(name, name))


def batches(table: pa.Table) -> Iterator[pa.Table]:
    """A table in pieces: at least one, if an empty one."""
    for start in range(0, max(1, table.num_rows), _BATCH_ROWS):
        yield table.slice(start, _BATCH_ROWS)


def messages(table: pa.Table, columns: ChatColumns) -> pa.Array:
    """The conversation of every row."""
    if isinstance(columns, str):
        return table[columns].combine_chunks()
    if kind_of(table.schema.field(columns.prompt).type) == "conversation":
        return _continued(table, columns)
    parts = (("system", columns.system), ("user", columns.prompt), ("assistant", columns.answer))
    roles = [(role, name) for role, name in parts if name is not None]
    texts = [table[name].combine_chunks().cast(pa.string()) for _, name in roles]
    # One flat array, a message after the other: row 0's user, row 0's assistant, row 1's user ...
    width, rows = len(roles), table.num_rows
    order = np.arange(width * rows).reshape(width, rows).T.ravel()
    contents = pa.concat_arrays(texts).take(pa.array(order)) if rows else pa.array([], pa.string())
    roles_flat = pa.array([role for role, _ in roles] * rows, pa.string())
    structs = pa.StructArray.from_arrays([roles_flat, contents], fields=list(CONVERSATION.value_type))
    if columns.system is None:
        return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1) * width, pa.int32()), structs)
    there = np.ones((rows, width), bool)
    there[:, 0] = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(texts[0]), ""), False)
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs.filter(pa.array(there.ravel())))


def _continued(table: pa.Table, chat: Chat) -> pa.Array:
    """Conversations with the answer, where there is one, as their last message."""
    answers = table[chat.answer].to_pylist() if chat.answer is not None else [None] * table.num_rows
    continued = []
    for given, text in zip(table[chat.prompt].to_pylist(), answers, strict=True):
        said: list[dict[str, Any]] = [as_message(message) or _NO_MESSAGE for message in given or ()]
        said = up_to_question(said) if chat.regenerated else said
        continued.append([*said, {"role": "assistant", "content": text}] if text is not None else said)
    return pa.array(continued, CONVERSATION)
