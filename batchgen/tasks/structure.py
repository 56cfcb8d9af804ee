"""A step that calls no model and reads columns out of JSON that one wrote, as a judge by a rubric of the user's own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
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

    @field_validator("optional")
    @classmethod
    def _known(cls, optional: list[str], info: ValidationInfo) -> list[str]:
        if unknown := [name for name in optional if name not in info.data.get("columns", optional)]:
            raise PydanticCustomError("optional", "no column '{name}' is read", {"name": unknown[0]})
        return optional


def _outputs(parameters: ParseJson) -> Mapping[str, str]:
    return {name: kind + OPTIONAL * (name in parameters.optional) for name, kind in parameters.columns.items()}


def _finish(row: Row, parameters: ParseJson, notes: list[str]) -> Row:
    from batchgen.tasks.completions import parse_data  # with Arrow, which readers of the table do not need

    data = parse_data(row["generation"])
    if isinstance(data, list) and len(data) == 1:
        (data,) = data
    if not isinstance(data, dict):
        raise RowRejected("invalid_output")
    return {name: _read(data.get(name), kind) for name, kind in parameters.columns.items()}


def _read(value: Any, kind: str) -> Any:
    """A value of JSON as a column of a kind holds it; as it is where none does.

    Models write "4" where a number is asked for, and 4 where a text is.

    Raises:
        RowRejected: it is no number, or a list with nothing in one of its places.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind.startswith("list[") and isinstance(value, list):
        if None in value:
            raise RowRejected("invalid_output")
        return [_read(item, kind[5:-1]) for item in value]
    if kind == "conversation" and isinstance(value, list):
        return [_message(each) for each in value]
    if kind == "number" and value is not None:
        return _number(value)
    return json.dumps(value) if kind == "text" and is_number else value


def _message(given: Any) -> dict[str, str]:
    from batchgen.rows import as_message

    if not isinstance(given, dict) or (message := as_message(given)) is None:
        raise RowRejected("invalid_output")
    return message


def _number(value: Any) -> float | int:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
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
