"""The columns that rows have on their way through the steps of a job, and those that its merger is told of."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from batchgen.conditions import Conditions, is_for, kind_for
from batchgen.errors import JobError
from batchgen.job import Job
from batchgen.rows import CLUSTER_SIZE, MESSAGES, META_KINDS, META_NAMES, in_words
from batchgen.step import Step
from batchgen.tasks.spec import bare, is_required, takes


def trace_columns(job: Job, seed_columns: Mapping[str, str]) -> dict[str, str]:
    """The columns that the steps add, in order, with their kinds; checks every step on the way.

    Args:
        seed_columns: name to kind.

    Raises:
        JobError: a step reads a column that nobody writes, or writes one that exists.
    """
    columns = dict(seed_columns)
    added: dict[str, str] = {}

    def add(name: str, kind: str, where: str) -> None:
        if name in META_NAMES:
            raise JobError(f"{where}: column {name!r} is one that batchgen writes itself; choose another name")
        # A list of the seeds that was spread over rows is gone from them, and has its place in the shards still.
        if name in columns or name in seed_columns:
            raise JobError(f"{where}: column {name!r} already exists; give the new one another name (output_mappings)")
        columns[name] = added[name] = kind

    for index, step in enumerate(job.steps):
        where = f"steps[{index}] ({step.task})"
        _check_inputs(step, columns, where)
        conditions = step.spec.keep(step.parameters)
        check_conditions({step.reads[name]: each for name, each in conditions.items()}, columns, f"{where}.keep")
        for name, kind in step.outputs.items():
            add(name, kind, where)
        spread: list[tuple[str, str]] = []
        for column, new in step.exploded.items():
            if column not in columns:
                raise JobError(f"{where}.explode: no column {column!r}; {_existing(columns, column)}")
            kind = columns[column]
            if not kind.startswith("list["):
                lists = [name for name, other in columns.items() if other.startswith("list[")]
                raise JobError(
                    f"{where}.explode: column {column!r} is not a list (it is {kind}); "
                    f"{'lists: ' + ', '.join(lists) if lists else 'there is no list'}"
                )
            spread.append((new, kind[5:-1]))
            # A list that was spread over rows is no column of theirs any more.
            del columns[column]
            added.pop(column, None)
        for new, kind in spread:
            add(new, kind, f"{where}.explode")
    check_merge_columns(job, columns)
    return added


def check_merge_columns(job: Job, columns: Mapping[str, str]) -> None:
    """Refuses a `merge` that names columns which are not there, or cannot be messages."""
    for given, kinds in ((job.merge.prompt, ("text", "conversation")), (job.merge.answer, ("text",))):
        fitting = {name: kind for name, kind in columns.items() if kind in kinds}
        if given is not None and given not in fitting:
            raise JobError(f"merge: no {' or '.join(kinds)} column {given!r}; {_existing(fitting, given)}")
    known = {**META_KINDS, **columns}
    check_conditions(job.merge.keep, known, "merge.keep")
    prefer, numbers = job.merge.prefer, {name: kind for name, kind in known.items() if kind == "number"}
    if prefer is not None and prefer not in numbers:
        raise JobError(f"merge.prefer: no column {prefer!r} with numbers; {_existing(numbers, prefer)}")
    for name in job.merge.columns or ():
        if name not in (*columns, *META_NAMES, MESSAGES, CLUSTER_SIZE):
            there = {**columns, MESSAGES: "conversation"}
            raise JobError(f"merge.columns: no column {name!r}; {_existing(there, name)}")


def check_conditions(conditions: Conditions, columns: Mapping[str, str], where: str) -> None:
    """Refuses conditions on columns that are not there, or hold something else."""
    for column, condition in conditions.items():
        if column not in columns:
            raise JobError(f"{where}: no column {column!r}; {_existing(columns, column)}")
        if not is_for(condition, columns[column]):
            message = f"a condition on {in_words(kind_for(condition))}, and the column holds"
            raise JobError(f"{where}.{column}: {message} {in_words(columns[column])}")


def _check_inputs(step: Step, columns: Mapping[str, str], where: str) -> None:
    for task_input, column in step.reads.items():
        kind = bare(step.inputs[task_input])
        if column in columns:
            if not takes(kind, columns[column]):
                found = f"input {task_input!r} takes {in_words(kind)}, and column {column!r} holds"
                raise JobError(f"{where}: {found} {in_words(columns[column])}{_reshaped(column, columns, kind, 'NEW')}")
        elif is_required(step.inputs[task_input]) or task_input in step.input_mappings:
            near = difflib.get_close_matches(column, columns, n=1)
            hint = _reshaped(near[0], columns, kind, column) if near else ""
            raise JobError(
                f"{where}: reads column {column!r}, which no step writes; {_existing(columns, column)} "
                f"(map it with input_mappings: {{{task_input}: ...}}{hint})"
            )


def _reshaped(column: str, columns: Mapping[str, str], wanted: str, new: str) -> str:
    """How the step that writes a column can write what is wanted; "" where none can."""
    if columns[column] == f"list[{wanted}]":
        return f"; to spread {column!r} over rows: explode: {column} -> {new} on the step before"
    if wanted == f"list[{columns[column]}]":
        return f"; for lists of {column!r}: num_generations and group_generations: true on the step that writes it"
    return ""


def _existing(columns: Mapping[str, str], name: str) -> str:
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}{'available: ' + ', '.join(columns) if columns else 'there are no columns'}"
