"""A step of a distilabel pipeline: which task of the table it is, what it reads and writes, and its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from batchgen.errors import JobError
from batchgen.step import MODEL_NAME
from batchgen.tasks.spec import TaskParameters, TaskSpec, bare
from batchgen.tasks.table import TASKS
from batchgen.trees import plain_tree

BY_CLASS: Mapping[str, str] = {str(spec.distilabel): name for name, spec in TASKS.items() if spec.distilabel}
# A task that makes its rows out of nothing, as many as its `num_rows` says: the same task over numbered rows.
GENERATORS: Mapping[str, str] = {"MagpieGenerator": "magpie"}
LOADERS = ("LoadDataFromDicts", "LoadDataFromDisk", "LoadDataFromFileSystem", "LoadDataFromHub")
EXPAND = "ExpandColumns"
KEEP = "KeepColumns"
GROUP = "GroupColumns"
COMBINE = "CombineOutputs"
# Those in which branches may meet.
JOINS = (GROUP, COMBINE)


def class_name(kind: type) -> str:
    """What a class of distilabel's is called; another of the same name may do anything."""
    return kind.__name__ if kind.__module__.partition(".")[0] == "distilabel" else f"{kind.__name__} of your own"


def is_task(step: Any) -> bool:
    """Whether a step is a task of the table."""
    return class_name(type(step)) in (*BY_CLASS, *GENERATORS)


def task_of(step: Any) -> str:
    """The entry of the table for a task."""
    kind = class_name(type(step))
    return GENERATORS.get(kind) or BY_CLASS[kind]


def reads_of(step: Any) -> dict[str, str]:
    """The inputs of a task that are there for sure, or that a mapping names, with their columns."""
    inputs = step.inputs if isinstance(step.inputs, dict) else dict.fromkeys(step.inputs, True)
    mapped = step.input_mappings
    return {name: mapped.get(name, name) for name, required in inputs.items() if required or name in mapped}


def writes_of(step: Any) -> dict[str, str]:
    """The outputs of a task with their columns, and the column of its model's name."""
    return {output: step.output_mappings.get(output, output) for output in (*_outputs(step), MODEL_NAME)}


def kinds_of(step: Any) -> dict[str, str]:
    """The columns that a task writes with their kinds."""
    form = "list[{}]" if getattr(step, "group_generations", False) else "{}"
    kinds = {output: form.format(bare(kind)) for output, kind in _outputs(step).items()} | {MODEL_NAME: "text"}
    return {column: kinds[output] for output, column in writes_of(step).items()}


def expanded(step: Any) -> tuple[str, str]:
    """(list column, column of its items) of an `ExpandColumns`."""
    ((column, new),) = step.columns.items()
    return step.input_mappings.get(column, column), step.output_mappings.get(new or column, new or column)


def parameters_of(name: str, step: Any) -> dict[str, Any]:
    """The keys of a job's step that a task's fields make.

    Raises:
        JobError: it has fields that make none.
    """
    given = _own_parameters(step, TASKS[task_of(step)])
    columns = [step.columns] if isinstance(getattr(step, "columns", None), str) else getattr(step, "columns", None)
    if columns not in (None, ["instruction"]) and "template" not in given:
        raise JobError(f"step {name!r}: `columns` without a template that uses them")
    for field in ("num_generations", "group_generations"):
        if value := getattr(step, field, None):
            given[field] = value
    return given


def _outputs(step: Any) -> Mapping[str, str]:
    spec = TASKS[task_of(step)]
    try:
        parameters: TaskParameters = spec.parameters.model_validate(_own_parameters(step, spec))
    except ValidationError as error:
        first = error.errors()[0]
        raise JobError(f"step {step.name!r}: {first['loc'][0]}: {first['msg']}") from None
    return spec.outputs(parameters)


def _own_parameters(step: Any, spec: TaskSpec) -> dict[str, Any]:
    """The task's parameters that differ from distilabel's defaults, as a job has them."""
    given: dict[str, Any] = {}
    for field in spec.parameters.model_fields:
        info = type(step).model_fields.get(field)
        value = getattr(step, field, None)
        if info is not None and value is not None and (info.is_required() or value != info.default):
            given[field] = value
    return plain_tree(given)
