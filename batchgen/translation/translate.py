"""A segment of a pipeline as a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgen.job import Job
from batchgen.rows import MESSAGES
from batchgen.step import MODEL_NAME
from batchgen.tasks.spec import ANY, OPTIONAL, TaskSpec, own_task
from batchgen.translation.llms import model_of, place_of, sampling_of
from batchgen.translation.segments import Segment
from batchgen.translation.steps import (
    COMBINE,
    GROUP,
    KEEP,
    class_name,
    flattens,
    generates,
    inputs_of,
    is_own,
    is_task,
    makes_chat,
    outputs_of,
    parameters_of,
    reads_of,
    runs_as_it_is,
    task_of,
    unread_of,
    writes_of,
)
from batchgen.translation.versions import Columns

# Where Magpie writes several turns, and distilabel's template its two.
_CONVERSATION = "conversation"
# What these write is the model's text as it comes, its thoughts included.
_ANSWERS = ("chat_generation", "magpie", "text_generation")


@dataclass(frozen=True)
class Translated:
    """A segment as a job.

    Args:
        seeds: the columns of the first rows that the job reads, with the names that they have here.
        columns: at the segment's end, as in distilabel, with their kinds.
    """

    job: Job
    seeds: Mapping[str, str]
    columns: Mapping[str, str]


def translate(
    segment: Segment,
    steps: Mapping[str, Any],
    first: Mapping[str, str],
    folder: Path,
    settings: Mapping[str, Any],
    kinds: Mapping[str, str] | None = None,
) -> Translated:
    """A segment's job.

    Args:
        steps: distilabel's, by name.
        first: columns of the rows that the segment starts from, with their kinds.
        folder: of the pipeline's runs.
        settings: further keys of the job.
        kinds: of columns that steps of the user's own write, where they are no texts.

    Raises:
        JobError: names the step that cannot be carried over, and why.
    """
    columns = Columns(segment, steps, first, kinds or {})
    models: list[dict[str, Any]] = []
    tree_steps: list[dict[str, Any]] = []
    own: dict[str, TaskSpec] = {}
    for name in segment.steps:
        step, kind = steps[name], class_name(type(steps[name]))
        if kind == GROUP:
            tree_steps += [_group(columns, name, *each) for each in zip(step.columns, step.outputs, strict=True)]
        elif kind not in (COMBINE, KEEP):
            tree = _step(columns, name, step)
            if is_task(step) and (index := place_of(models, model_of(name, step.llm))):
                tree["model"] = f"llm_{index}"
            tree_steps.append(tree)
            if runs_as_it_is(step):
                own[tree["task"]] = _own_entry(columns.before(name), step, kinds or {})
    starter = steps[segment.steps[0]]
    if not tree_steps:  # `KeepColumns` alone: `merge.columns` does it, and its own class has nothing to do
        own[f"own:{starter.name}"] = own_task(type(starter), {}, {})
        tree_steps.append({"task": f"own:{starter.name}", "columns": []})
    seeds = {"path": str(folder / "seeds" / f"{segment.name}.parquet")}
    job = {
        **settings,
        "name": segment.name,
        "source": {"count": getattr(starter, "num_rows", 1)} if generates(starter) else seeds,
        "model": models[0] if models else _uncalled(segment, steps),
        "models": {f"llm_{index}": model for index, model in enumerate(models) if index},
        "steps": tree_steps,
        "merge": _merge(columns, segment, steps),
        "output": str(folder / "runs" / segment.name),
    }
    return Translated(Job.of(job, tasks=own), columns.seeds, columns.last)


def _merge(columns: Columns, segment: Segment, steps: Mapping[str, Any]) -> dict[str, Any]:
    """A job's `merge`: every row, with the columns that distilabel's have."""
    merge: dict[str, Any] = {"exact": False, "near": False, "drop_truncated": False}
    # Rows that others go on from have distilabel's columns, and none that batchgen makes of them.
    if not segment.leaf or any(class_name(type(steps[name])) == KEEP for name in segment.steps):
        merge["columns"] = list(columns.last)
    # As they are, if they stay: neither with an answer, nor under the dataset's name alone.
    if columns.kind_of(MESSAGES) == "conversation":
        merge["prompt"] = MESSAGES
    elif columns.last.get(_CONVERSATION) == "conversation" and not _is_gone_on_with(columns, segment, steps):
        merge["prompt"] = _CONVERSATION
    return merge


def _is_gone_on_with(columns: Columns, segment: Segment, steps: Mapping[str, Any]) -> bool:
    """Whether a task answers the column `conversation` that is there at the end."""
    return any(
        makes_chat(steps[name])
        and _CONVERSATION in reads_of(steps[name], columns.before(name)).values()
        and columns.read(name, _CONVERSATION) == _CONVERSATION
        for name in segment.steps
    )


def _uncalled(segment: Segment, steps: Mapping[str, Any]) -> dict[str, Any]:
    """The model of a segment without tasks, which gets no engine: of the last task before, or of the first there is."""
    before: list[str] = []
    parent = segment.parent
    while parent is not None:
        before += reversed(parent.steps)
        parent = parent.parent
    name = next(name for name in (*before, *steps) if is_task(steps[name]))
    return model_of(name, steps[name].llm)


def _step(columns: Columns, name: str, step: Any) -> dict[str, Any]:
    """A task, or a step of the user's own, as a job's step, on the job's own model."""
    there = columns.before(name)
    task, reads, writes = task_of(step), reads_of(step, there), writes_of(step, there)
    tree = {"task": task, **parameters_of(name, step)}
    if is_task(step):
        tree["sampling"] = sampling_of(name, step.llm)
        # What a class of the user's own makes of thoughts is its own affair, as in distilabel.
        if task in _ANSWERS or runs_as_it_is(step):
            tree["reasoning"] = "keep"
        if MODEL_NAME in writes and columns.wants_model_name(name, writes[MODEL_NAME]):
            tree["model_name"] = True
        else:
            writes.pop(MODEL_NAME, None)
    mappings: dict[str, str | None] = {given: columns.read(name, column) for given, column in reads.items()}
    # A job's step reads the column of an input's name unless it is told not to.
    unread = [given for given in unread_of(step, reads) if columns.kind_of(given) is not None]
    tree["input_mappings"] = mappings | dict.fromkeys(unread)
    tree["output_mappings"] = {output: columns.written(name, column) for output, column in writes.items()}
    if flattens(step):
        several = f"tasks_of_{name}"
        tree["explode"] = f"{several} -> {tree['output_mappings'].pop('task')}"
        tree["output_mappings"]["tasks"] = several
    return tree


def _own_entry(there: Mapping[str, str], step: Any, kinds: Mapping[str, str]) -> TaskSpec:
    """The entry of a step that runs as it is."""
    required, outputs, reads = inputs_of(step), outputs_of(step, there, kinds), reads_of(step, there)
    if is_own(step) and not is_task(step):
        # It gets a null and writes one, as in distilabel; neither a prompt nor one of distilabel's steps can have one.
        required = dict.fromkeys(required, False)
        outputs = {name: kind + OPTIONAL for name, kind in outputs.items()}
    inputs = {
        name: there[column] if required[name] else there[column] + OPTIONAL
        for name, column in reads.items()
        if name in required
    }
    inputs |= {name: ANY + OPTIONAL for name in reads if name not in required}
    # Replicas of a task are the engines' affair.
    threads = step.resources.replicas if step.resources.replicas > 1 and not is_task(step) else 0
    return own_task(type(step), inputs, outputs, threads=threads)


def _group(columns: Columns, name: str, column: str, output: str) -> dict[str, Any]:
    """A column of a `GroupColumns` as a job's step."""
    return {
        "task": "group_columns",
        "columns": columns.grouped(name, column),
        "kind": columns.kind(name, output).removeprefix("list[").removesuffix("]"),
        "output_mappings": {"grouped": columns.written(name, output)},
    }
