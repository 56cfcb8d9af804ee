"""A segment of a pipeline as a job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgen.job import Job
from batchgen.step import MODEL_NAME
from batchgen.translation.llms import model_of, place_of, sampling_of, share_memory
from batchgen.translation.segments import Segment
from batchgen.translation.steps import (
    COMBINE,
    EXPAND,
    GENERATORS,
    GROUP,
    KEEP,
    expanded,
    parameters_of,
    reads_of,
    task_of,
    writes_of,
)
from batchgen.translation.versions import Columns

# What these write is the model's text as it comes, its thoughts included.
_ANSWERS = ("chat_generation", "magpie", "text_generation")


@dataclass(frozen=True)
class Translated:
    """A segment as a job.

    Args:
        renamed: columns of the first rows that some step writes over, with the names that they have here.
        columns: at the segment's end, as in distilabel.
    """

    job: Job
    renamed: Mapping[str, str]
    columns: tuple[str, ...]


def translate(
    segment: Segment, steps: Mapping[str, Any], first: Iterable[str], folder: Path, settings: Mapping[str, Any]
) -> Translated:
    """A segment's job.

    Args:
        steps: distilabel's, by name.
        first: columns of the rows that the segment starts from.
        folder: of the pipeline's runs.
        settings: further keys of the job.

    Raises:
        JobError: names the step that cannot be carried over, and why.
    """
    columns = Columns(segment, steps, first)
    models: list[dict[str, Any]] = []
    tree_steps: list[dict[str, Any]] = []
    for name in segment.steps:
        step, kind = steps[name], type(steps[name]).__name__
        if kind == GROUP:
            tree_steps += [_group(columns, name, *each) for each in zip(step.columns, step.outputs, strict=True)]
        elif kind == EXPAND:
            listed, item = expanded(step)
            tree_steps[-1]["explode"] = f"{columns.read(name, listed)} -> {columns.written(name, item)}"
        elif kind not in (COMBINE, KEEP):
            index = place_of(models, model_of(name, step.llm))
            tree_steps.append(_step(columns, name, step) | ({"model": f"llm_{index}"} if index else {}))
    share_memory(models)
    merge: dict[str, Any] = {"exact": False, "near": False, "drop_truncated": False}
    if any(type(steps[name]).__name__ == KEEP for name in segment.steps):
        merge["columns"] = columns.last
    starter = steps[segment.steps[0]]
    seeds = {"path": str(folder / "seeds" / f"{segment.name}.parquet")}
    job = {
        **settings,
        "name": segment.name,
        "source": {"count": starter.num_rows} if type(starter).__name__ in GENERATORS else seeds,
        "model": models[0],
        "models": {f"llm_{index}": model for index, model in enumerate(models) if index},
        "steps": tree_steps,
        "merge": merge,
        "output": str(folder / "runs" / segment.name),
    }
    return Translated(Job.of(job), columns.renamed, tuple(columns.last))


def _step(columns: Columns, name: str, step: Any) -> dict[str, Any]:
    """A task as a job's step, on the job's own model."""
    task = task_of(step)
    writes = writes_of(step)
    named = writes.pop(MODEL_NAME)
    tree = {"task": task, "sampling": sampling_of(name, step.llm), **parameters_of(name, step)}
    if task in _ANSWERS:
        tree["reasoning"] = "keep"
    if columns.wants_model_name(name, named):
        tree["model_name"] = True
        writes[MODEL_NAME] = named
    tree["input_mappings"] = {given: columns.read(name, column) for given, column in reads_of(step).items()}
    tree["output_mappings"] = {output: columns.written(name, column) for output, column in writes.items()}
    return tree


def _group(columns: Columns, name: str, column: str, output: str) -> dict[str, Any]:
    """A column of a `GroupColumns` as a job's step."""
    return {
        "task": "group_columns",
        "columns": columns.grouped(name, column),
        "kind": columns.kind(name, output).removeprefix("list[").removesuffix("]"),
        "output_mappings": {"grouped": columns.written(name, output)},
    }
