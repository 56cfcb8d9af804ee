"""A step that calls no model and reads columns out of JSON that one wrote, as a judge by a rubric of the user's own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from batchgen.errors import RowRejected
from batchgen.tasks.spec import OPTIONAL, Row, TaskParameters, TaskSpec, columns


def _kind(given: Any) -> Any:
    from batchgen.rows import KINDS, is_kind

    if not isinstance(given, str) or not is_kind(given):
        raise PydanticCustomError("kind", "expected {legal}, got {given}", {"legal": KINDS, "given": repr(given)})
    return given


class ParseJson(TaskParameters):
    """Reads columns out of a JSON object."""

    columns: dict[str, Annotated[Any, AfterValidator(_kind)]] = Field(
        min_length=1,
        description="the keys that are read, and what they hold, as in {rationale: text, score: number}: text, number, "
        "boolean, conversation, or list[...] of one of these",
    )
    optional: list[str] = Field([], description="those of the keys that may be absent or null")
    several: bool = Field(
        False,
        description="whether there is a list of such objects: then the columns are lists, side by side, as for "
        "explode: [question -> question, answer -> answer]; objects that are not of the form are left out",
    )

    @field_validator("optional")
    @classmethod
    def _known(cls, optional: list[str], info: ValidationInfo) -> list[str]:
        if unknown := [name for name in optional if name not in info.data.get("columns", optional)]:
            raise PydanticCustomError("optional", "no column '{name}' is read", {"name": unknown[0]})
        return optional


def _outputs(parameters: ParseJson) -> Mapping[str, str]:
    if parameters.several:
        return {name: f"list[{kind}]" for name, kind in parameters.columns.items()}
    return {name: kind + OPTIONAL * (name in parameters.optional) for name, kind in parameters.columns.items()}


def _finish(row: Row, parameters: ParseJson, notes: list[str]) -> Row:
    from batchgen.tasks.completions import parse_data  # with Arrow, which readers of the table do not need

    data = parse_data(row["generation"])
    if not parameters.several:
        return _columns(data[0] if isinstance(data, list) and len(data) == 1 else data, parameters)
    read = []
    for each in _objects(data):
        try:
            read.append(_columns(each, parameters))
        except RowRejected:
            notes.append("object_left_out")
    if not read:
        raise RowRejected("invalid_output")
    return {name: [each[name] for each in read] for name in parameters.columns}


def _objects(data: Any) -> Sequence[Any]:
    """The objects of a list, which may be the one thing in an object around it, as some servers want it."""
    if isinstance(data, dict) and len(data) == 1 and isinstance(inner := next(iter(data.values())), list):
        return inner
    return data if isinstance(data, list) else [data]


def _columns(data: Any, parameters: ParseJson) -> Row:
    """What is read of an object.

    Raises:
        RowRejected: it is none, or lacks a key, or holds something else there.
    """
    if not isinstance(data, dict):
        raise RowRejected("invalid_output")
    absent = {name for name in parameters.columns if data.get(name) is None}
    if not absent <= set(parameters.optional):
        raise RowRejected("invalid_output")
    return {name: None if name in absent else _read(data[name], kind) for name, kind in parameters.columns.items()}


def _read(value: Any, kind: str) -> Any:
    """A value of JSON, which is not null, as a column of a kind holds it.

    Models write "4" where a number is asked for, and 4 where a text is.

    Raises:
        RowRejected: it is something else.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind.startswith("list[") and isinstance(value, list):
        return [_read(item, kind[5:-1]) for item in value]
    if kind == "conversation" and isinstance(value, list):
        return [_message(each) for each in value]
    if kind == "number" and (is_number or isinstance(value, str)):
        return _number(value)
    if kind == "text" and (is_number or isinstance(value, str)):
        return value if isinstance(value, str) else json.dumps(value)
    if kind == "boolean" and isinstance(value, bool):
        return value
    raise RowRejected("invalid_output")


def _message(given: Any) -> dict[str, str]:
    from batchgen.rows import as_message

    if not isinstance(given, dict) or (message := as_message(given)) is None:
        raise RowRejected("invalid_output")
    return message


def _number(value: str | int | float) -> float | int:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowRejected("invalid_output")
    return value if isinstance(value, int) else number


STRUCTURE: Mapping[str, TaskSpec] = {
    "parse_json": TaskSpec(
        summary="reads columns out of JSON that a model wrote, such as a judge's score and its rationale",
        distilabel=None,
        parameters=ParseJson,
        inputs=columns(generation="text"),
        outputs=_outputs,
        calls="0",
        finish=_finish,
        single_call=False,
        example={"columns": {"rationale": "text", "score": "number"}},
    ),
}
