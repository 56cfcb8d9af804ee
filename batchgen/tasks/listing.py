"""The step table for readers: as data, as text, and as the README's Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from batchgen.tasks.spec import TaskSpec
from batchgen.tasks.table import TASKS


def described(name: str, spec: TaskSpec) -> dict[str, Any]:
    """One entry: its parameters with defaults ("required" where there is none), columns, engine calls and paper.

    Of parameters that take few values, these are there as well; of all, what they mean.
    """
    parameters = spec.parameters.model_validate(dict(spec.example))
    fields = spec.parameters.model_fields
    return {
        "name": name,
        "summary": spec.summary,
        "parameters": {
            field: "required" if info.default is PydanticUndefined else info.default for field, info in fields.items()
        },
        "legal": {field: legal for field, info in fields.items() if (legal := _literals(info.annotation))},
        "meaning": {field: info.description for field, info in fields.items()},
        "inputs": dict(spec.inputs(parameters)),
        "outputs": dict(spec.outputs(parameters)),
        "calls": spec.calls,
        "paper": f"https://arxiv.org/abs/{spec.paper}" if spec.paper else None,
        "distilabel": spec.distilabel,
    }


def listing() -> list[dict[str, Any]]:
    """Every entry of the table, by name."""
    return [described(name, spec) for name, spec in TASKS.items()]


def text() -> str:
    """The table for a terminal."""
    lines = []
    for task in listing():
        lines += _lines(task)
        if task["parameters"]:
            lines.append(f"    set     {', '.join(_parameter(task, name) for name in task['parameters'])}")
    return "\n".join([*lines, "", "what a task's parameters mean: batchgen tasks NAME"])


def explained(names: Sequence[str]) -> str:
    """Entries for a terminal, with what their parameters mean."""
    return "\n\n".join(_explained(described(name, TASKS[name])) for name in names)


def _explained(task: Mapping[str, Any]) -> str:
    lines = _lines(task)
    for parameter in task["parameters"]:
        lines.append(f"    {_parameter(task, parameter)}")
        lines += textwrap.wrap(task["meaning"][parameter], 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


def markdown() -> str:
    """The table of the README."""
    lines = ["| task | does | reads | writes | parameters | calls a row |", "| --- | --- | --- | --- | --- | --- |"]
    for task in listing():
        name = f"[`{task['name']}`]({task['paper']})" if task["paper"] else f"`{task['name']}`"
        reads, writes = (", ".join(f"`{column}`" for column in task[side]) for side in ("inputs", "outputs"))
        parameters = ", ".join(f"`{parameter}`" for parameter in task["parameters"])
        lines.append(f"| {name} | {task['summary']} | {reads} | {writes} | {parameters} | {task['calls']} |")
    return "\n".join(lines)


def _lines(task: Mapping[str, Any]) -> list[str]:
    return [
        f"{task['name']}: {task['summary']}",
        f"    reads   {_columns(task['inputs']) or 'nothing'}",
        f"    writes  {_columns(task['outputs']) or 'nothing'}",
        f"    calls   {task['calls']} a row" + (f"; {task['paper']}" if task["paper"] else ""),
    ]


def _columns(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" if kind != "text" else name for name, kind in kinds.items())


def _parameter(task: Mapping[str, Any], name: str) -> str:
    value, legal = task["parameters"][name], task["legal"].get(name)
    written = name if value is None else f"{name}={str(value).lower() if isinstance(value, bool) else value}"
    return f"{written} ({' | '.join(map(_written, legal))})" if legal else written


def _written(value: Any) -> str:
    """A value as YAML has it: a text that reads like a number needs its quotes."""
    return f'"{value}"' if isinstance(value, str) and value.replace(".", "").isdecimal() else str(value)


def _literals(annotation: Any) -> list[Any]:
    """The values that an annotation names."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for part in get_args(annotation) for value in _literals(part)]
