"""A step of a distilabel pipeline: which task of the table it is, what it reads and writes, and its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from batchgen.errors import JobError
from batchgen.rows import KINDS, META_NAMES, is_kind
from batchgen.step import MODEL_NAME
from batchgen.tasks.generation import is_code
from batchgen.tasks.spec import TaskParameters, TaskSpec, bare
from batchgen.tasks.table import TASKS
from batchgen.translation.plain import EXPAND, PLAIN
from batchgen.trees import plain_fields

BY_CLASS: Mapping[str, str] = {str(spec.distilabel): name for name, spec in TASKS.items() if spec.distilabel}
_PROMPT_ALONE: Mapping[str, str] = {str(spec.distilabel): name for name, spec in TASKS.items() if spec.generator}
# Tasks that make rows out of nothing, one or as many as `num_rows` says: the same tasks over numbered rows.
GENERATORS: Mapping[str, str] = {"MagpieGenerator": "magpie", **_PROMPT_ALONE}
LOADERS = ("LoadDataFromDicts", "LoadDataFromDisk", "LoadDataFromFileSystem", "LoadDataFromHub")
# distilabel's own loader that draws its rows from others: it is run as it is.
_SAMPLER = "DataSampler"
KEEP = "KeepColumns"
GROUP = "GroupColumns"
COMBINE = "CombineOutputs"
# Those in which branches may meet.
JOINS = (GROUP, COMBINE)
# Outputs that have other names here: one is a column of batchgen's own, one would hide what it was made of.
_THEIR_NAMES = {"score_reason": "reason", "labelled_solutions": "solutions"}
_NO_DEFAULT = object()
_BASES = ("distilabel.steps.base", "distilabel.steps.tasks.base")


def class_name(kind: type) -> str:
    """What a class of distilabel's is called; another of the same name may do anything."""
    return kind.__name__ if kind.__module__.partition(".")[0] == "distilabel" else f"{kind.__name__} of your own"


def is_own(step: Any) -> bool:
    """Whether a step is of a class of the user's own that sees one row after the other."""
    own = type(step).__module__.partition(".")[0] != "distilabel"
    return own and hasattr(step, "process_applying_mappings") and not (step.is_global or step.is_generator)


def is_own_loader(step: Any) -> bool:
    """Whether a step makes rows by code of its own, without a model."""
    own = type(step).__module__.partition(".")[0] != "distilabel" or type(step).__name__ == _SAMPLER
    return own and bool(getattr(step, "is_generator", False)) and not hasattr(step, "llm")


def has_rows(step: Any) -> bool:
    """Whether a pipeline may begin with a step."""
    return loads(step) or generates(step)


def loads(step: Any) -> bool:
    """Whether a step has rows without a model."""
    return class_name(type(step)) in LOADERS or is_own_loader(step)


def generates(step: Any) -> bool:
    """Whether a step is a task that makes rows out of nothing."""
    return class_name(type(step)) in GENERATORS


def groups(step: Any) -> bool:
    """Whether a step puts several generations into lists."""
    return bool(getattr(step, "group_generations", False)) and not generates(step)  # which pass over it in distilabel


def flattens(step: Any) -> bool:
    """Whether a step spreads what it makes over rows."""
    return generates(step) and bool(getattr(step, "flatten_tasks", False))


def runs_as_it_is(step: Any) -> bool:
    """Whether a step's class itself runs, and no task of the table: the user's own, one of `PLAIN`, one with code."""
    return is_own(step) or class_name(type(step)) in PLAIN or has_code(step)


def has_code(step: Any) -> bool:
    """Whether a text generation has a template that the table's entry would not run, but which is the caller's own."""
    return class_name(type(step)) == "TextGeneration" and is_code(step.template)


def is_task(step: Any) -> bool:
    """Whether a step runs on a model."""
    if is_own(step):
        return hasattr(step, "llm")
    return class_name(type(step)) in (*BY_CLASS, *GENERATORS)


def names_model(step: Any) -> bool:
    """Whether a step's rows have the name of its model: a task's; not those of any step that has an LLM."""
    return is_task(step) and (hasattr(step, "format_input") or class_name(type(step)) in _PROMPT_ALONE)


def makes_chat(step: Any) -> bool:
    """Whether a dataset's conversation is made of what a step reads and writes, where it is the last of its kind."""
    return is_task(step) and not runs_as_it_is(step) and _spec(step).chat(_parameters(step)) is not None


def task_of(step: Any) -> str:
    """The name that a step's task has in a job: of the table's entry, or of one for the user's own class."""
    kind = type(step).__name__
    return f"own:{step.name}" if runs_as_it_is(step) else GENERATORS.get(kind) or BY_CLASS[kind]


def inputs_of(step: Any) -> dict[str, bool]:
    """The inputs of a step; whether they must be there."""
    inputs = step.inputs if isinstance(step.inputs, dict) else dict.fromkeys(step.inputs, True)
    return {**dict.fromkeys(getattr(step, "optional_inputs", ()), False), **inputs}


def reads_of(step: Any, there: Mapping[str, str]) -> dict[str, str]:
    """The inputs of a step with their columns.

    Args:
        there: columns of a row; an input that may be absent counts where its column is among them, or is mapped. A
            column that is mapped to one input is not there for another, as distilabel renames it.
    """
    inputs, mapped = inputs_of(step), step.input_mappings
    there = {column: kind for column, kind in there.items() if column not in mapped.values()}
    known = inputs if runs_as_it_is(step) else _spec(step).inputs(_parameters(step))
    # Classes of the user's own see the whole row, whatever they say that they read.
    others = [column for column in there if is_own(step) and column not in (*inputs, *mapped, MODEL_NAME)]
    return {
        name: column
        for name, column in ((name, mapped.get(name, name)) for name in inputs)
        if inputs[name] or name in mapped or (name in known and column in there)
    } | dict(zip(others, others, strict=True))


def unread_of(step: Any, reads: Mapping[str, str]) -> list[str]:
    """The inputs of the table's task that a step does not read, and that a job's step would."""
    return [] if runs_as_it_is(step) else [name for name in _spec(step).inputs(_parameters(step)) if name not in reads]


def writes_of(step: Any, there: Mapping[str, str]) -> dict[str, str]:
    """The outputs of a step with their columns; among them, of a task, the name of its model.

    Args:
        there: columns of a row before the step, with their kinds.
    """
    names = [*outputs_of(step, there, {}), *([MODEL_NAME] if names_model(step) else [])]
    if runs_as_it_is(step):
        return {output: _column_of(step, output) for output in names}
    written = {}
    for output in names:
        column = _column_of(step, _THEIR_NAMES.get(output, output))
        written[output] = output if column in META_NAMES else column
    return written


def _column_of(step: Any, output: str) -> str:
    """The column of an output: in distilabel that of the input of the same name, unless it is mapped itself."""
    return str(step.output_mappings.get(output) or step.input_mappings.get(output, output))


def outputs_of(step: Any, there: Mapping[str, str], kinds: Mapping[str, str]) -> Mapping[str, str]:
    """The outputs of a step with their kinds.

    Args:
        there: columns of a row before the step, with their kinds.
        kinds: of columns that steps of the user's own write, where they are no texts.
    """
    if flattens(step):
        return {"task": "text"}
    if not runs_as_it_is(step):
        return _spec(step).outputs(_parameters(step))
    if class_name(type(step)) in PLAIN:
        return PLAIN[class_name(type(step))](
            step, {name: there[column] for name, column in reads_of(step, there).items() if column in there}
        )
    left_out = ("distilabel_metadata", *([MODEL_NAME] if names_model(step) else []))
    names = [name for name in step.outputs if name not in left_out]
    return {name: kinds.get(_column_of(step, name), "text") for name in names}


def columns_of(step: Any, there: Mapping[str, str], kinds: Mapping[str, str]) -> dict[str, str]:
    """The columns that a step writes with their kinds; the further arguments are those of `outputs_of`."""
    form = "list[{}]" if groups(step) else "{}"
    of_outputs = {output: form.format(bare(kind)) for output, kind in outputs_of(step, there, kinds).items()}
    return {column: of_outputs.get(output, "text") for output, column in writes_of(step, there).items()}


def check_kinds(steps: Iterable[Any], kinds: Mapping[str, str]) -> None:
    """Checks what is said of the columns that steps of the user's own write.

    Raises:
        JobError: there is no such column, or no such kind.
    """
    own = {column for step in steps if is_own(step) for column in columns_of(step, {}, {})} - {MODEL_NAME}
    for column, kind in kinds.items():
        if column not in own:
            legal = ", ".join(sorted(own)) or "there are none"
            raise JobError(f"kinds: no class of your own writes a column {column!r}; legal: {legal}")
        if not is_kind(kind):
            raise JobError(f"kinds[{column!r}]: expected {KINDS}, got {kind!r}")


def parameters_of(name: str, step: Any) -> dict[str, Any]:
    """The keys of a job's step that a step's fields make.

    Raises:
        JobError: it has fields that make none.
    """
    if runs_as_it_is(step):
        given = _own_fields(step)
        if class_name(type(step)) == EXPAND:
            given.pop("split_statistics", None)  # of `distilabel_metadata`; tokens are counted once in any case
    else:
        given = _given(step, _spec(step).parameters.model_fields)
        columns = [step.columns] if isinstance(getattr(step, "columns", None), str) else getattr(step, "columns", None)
        if columns not in (None, ["instruction"]) and "template" not in given:
            raise JobError(f"step {name!r}: `columns` without a template that uses them")
    if value := getattr(step, "num_generations", None):
        given["num_generations"] = value
    return given | ({"group_generations": True} if groups(step) else {})


def _spec(step: Any) -> TaskSpec:
    return TASKS[task_of(step)]


def _parameters(step: Any) -> TaskParameters:
    spec = _spec(step)
    try:
        return spec.parameters.model_validate(_given(step, spec.parameters.model_fields))
    except ValidationError as error:
        first = error.errors()[0]
        field = "".join(f"{part}: " for part in first["loc"][:1])  # none of what is said of several together
        raise JobError(f"step {step.name!r}: {field}{first['msg']}") from None


def _own_fields(step: Any) -> dict[str, Any]:
    """The fields of a class that runs as it is, but for those that distilabel's bases of all steps and tasks have."""
    bases = [kind for kind in type(step).__mro__ if kind.__module__ in _BASES and hasattr(kind, "model_fields")]
    common = {"llm", *(field for base in bases for field in base.model_fields)} - {"use_default_structured_output"}
    return _given(step, [field for field in type(step).model_fields if field not in common])


def _given(step: Any, fields: Iterable[str]) -> dict[str, Any]:
    """Fields that differ from the class's defaults, as a job has them."""
    given: dict[str, Any] = {}
    for field in fields:
        info = type(step).model_fields.get(field)
        value = vars(step).get(field)  # asked for by name, distilabel's older fields warn
        if info is None or _equal(value, default := _default(step, info)):
            continue
        if value is None and not runs_as_it_is(step):
            # In a job null is the task's own text. Where distilabel takes None for no text, it takes "" for that, too.
            value = "" if isinstance(default, str) else None
        given[field] = value
    return plain_fields(given, f"step {step.name!r}")


def _equal(value: Any, other: Any) -> bool:
    """Whether two values are equal, where their types say so in one word: an array does not."""
    try:
        return bool(value == other)
    except Exception:
        return False


def _default(step: Any, info: Any) -> Any:
    """What a field is unless it is set.

    What a factory gives is made anew where the step runs, and not kept with the run: it may be a key of the
    environment.
    """
    try:
        return info.get_default(call_default_factory=True, validated_data=vars(step))
    except Exception:
        return _NO_DEFAULT  # a factory that reads what is not there, as the field was set
