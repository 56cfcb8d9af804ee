"""A step of a distilabel pipeline: which task of the table it is, what it reads and writes, and its parameters."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from batchgen.errors import JobError
from batchgen.rows import KINDS, is_kind
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
_BASES = ("distilabel.steps.base", "distilabel.steps.tasks.base")


def class_name(kind: type) -> str:
    """What a class of distilabel's is called; another of the same name may do anything."""
    return kind.__name__ if kind.__module__.partition(".")[0] == "distilabel" else f"{kind.__name__} of your own"


def is_own(step: Any) -> bool:
    """Whether a step is of a class of the user's own that makes one row of one."""
    own = type(step).__module__.partition(".")[0] != "distilabel"
    return own and hasattr(step, "process_applying_mappings") and not (step.is_global or step.is_generator)


def is_task(step: Any) -> bool:
    """Whether a step runs on a model."""
    if is_own(step):
        return hasattr(step, "llm")
    return class_name(type(step)) in (*BY_CLASS, *GENERATORS)


def task_of(step: Any) -> str:
    """The name that a step's task has in a job: of the table's entry, or of one for the user's own class."""
    kind = type(step).__name__
    return f"own:{step.name}" if is_own(step) else GENERATORS.get(kind) or BY_CLASS[kind]


def reads_of(step: Any, there: Container[str]) -> dict[str, str]:
    """The inputs of a step with their columns.

    Args:
        there: columns of a row; an input that may be absent counts where its column is among them, or is mapped.
    """
    inputs = step.inputs if isinstance(step.inputs, dict) else dict.fromkeys(step.inputs, True)
    known = inputs if is_own(step) else _spec(step).inputs(_parameters(step))
    mapped = step.input_mappings
    return {
        name: column
        for name, column in ((name, mapped.get(name, name)) for name in inputs)
        if inputs[name] or name in mapped or (name in known and column in there)
    }


def writes_of(step: Any) -> dict[str, str]:
    """The outputs of a step with their columns; among them, of a task, the name of its model."""
    names = [*outputs_of(step, {}), *([MODEL_NAME] if is_task(step) else [])]
    return {output: step.output_mappings.get(output, output) for output in names}


def outputs_of(step: Any, kinds: Mapping[str, str]) -> Mapping[str, str]:
    """The outputs of a step with their kinds.

    Args:
        kinds: of columns that steps of the user's own write, where they are no texts.
    """
    if not is_own(step):
        return _spec(step).outputs(_parameters(step))
    left_out = ("distilabel_metadata", *([MODEL_NAME] if is_task(step) else []))
    names = [name for name in step.outputs if name not in left_out]
    return {name: kinds.get(step.output_mappings.get(name, name), "text") for name in names}


def columns_of(step: Any, kinds: Mapping[str, str]) -> dict[str, str]:
    """The columns that a step writes with their kinds; the further argument is that of `outputs_of`."""
    form = "list[{}]" if getattr(step, "group_generations", False) else "{}"
    of_outputs = {output: form.format(bare(kind)) for output, kind in outputs_of(step, kinds).items()}
    return {column: of_outputs.get(output, "text") for output, column in writes_of(step).items()}


def check_kinds(steps: Iterable[Any], kinds: Mapping[str, str]) -> None:
    """Checks what is said of the columns that steps of the user's own write.

    Raises:
        JobError: there is no such column, or no such kind.
    """
    own = {column for step in steps if is_own(step) for column in columns_of(step, {})} - {MODEL_NAME}
    for column, kind in kinds.items():
        if column not in own:
            legal = ", ".join(sorted(own)) or "there are none"
            raise JobError(f"kinds: no class of your own writes a column {column!r}; legal: {legal}")
        if not is_kind(kind):
            raise JobError(f"kinds[{column!r}]: expected {KINDS}, got {kind!r}")


def expanded(step: Any) -> tuple[str, str]:
    """(list column, column of its items) of an `ExpandColumns`."""
    ((column, new),) = step.columns.items()
    return step.input_mappings.get(column, column), step.output_mappings.get(new or column, new or column)


def parameters_of(name: str, step: Any) -> dict[str, Any]:
    """The keys of a job's step that a step's fields make.

    Raises:
        JobError: it has fields that make none.
    """
    if is_own(step):
        given = _own_fields(step)
    else:
        given = _given(step, _spec(step).parameters.model_fields)
        columns = [step.columns] if isinstance(getattr(step, "columns", None), str) else getattr(step, "columns", None)
        if columns not in (None, ["instruction"]) and "template" not in given:
            raise JobError(f"step {name!r}: `columns` without a template that uses them")
    for field in ("num_generations", "group_generations"):
        if value := getattr(step, field, None):
            given[field] = value
    return given


def _spec(step: Any) -> TaskSpec:
    return TASKS[task_of(step)]


def _parameters(step: Any) -> TaskParameters:
    spec = _spec(step)
    try:
        return spec.parameters.model_validate(_given(step, spec.parameters.model_fields))
    except ValidationError as error:
        first = error.errors()[0]
        raise JobError(f"step {step.name!r}: {first['loc'][0]}: {first['msg']}") from None


def _own_fields(step: Any) -> dict[str, Any]:
    """The fields of a class of the user's own that distilabel's bases of all steps and tasks do not have."""
    bases = [kind for kind in type(step).__mro__ if kind.__module__ in _BASES and hasattr(kind, "model_fields")]
    common = {field for base in bases for field in base.model_fields} - {"use_default_structured_output"}
    return _given(step, [field for field in type(step).model_fields if field not in common])


def _given(step: Any, fields: Iterable[str]) -> dict[str, Any]:
    """Fields that differ from the class's defaults, as a job has them."""
    given: dict[str, Any] = {}
    for field in fields:
        info = type(step).model_fields.get(field)
        value = vars(step).get(field)  # asked for by name, distilabel's older fields warn
        if info is not None and value is not None and (info.is_required() or value != info.default):
            given[field] = value
    return plain_tree(given)
