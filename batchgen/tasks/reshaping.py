"""Tasks that call no model: they make columns out of the columns of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from batchgen.errors import RowRejected
from batchgen.tasks.spec import Row, TaskParameters, TaskSpec, columns


class GroupColumns(TaskParameters):
    """Makes one list of several columns."""

    columns: list[str] = Field(min_length=1)
    kind: Literal["text", "number", "boolean", "conversation", "list[text]", "list[number]"] = "text"

    @field_validator("columns")
    @classmethod
    def _once(cls, columns: list[str]) -> list[str]:
        if twice := sorted({name for name in columns if columns.count(name) > 1}):
            raise PydanticCustomError("columns", "name '{name}' twice", {"name": twice[0]})
        return columns


class Preference(TaskParameters):
    """Makes a preference pair out of rated answers."""

    min_difference: float = Field(default=0.0, ge=0.0)

    @field_validator("min_difference", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise PydanticCustomError("number", "must be a number")
        return float(value) if isinstance(value, int) else value


def _finish_group(row: Row, parameters: GroupColumns, notes: list[str]) -> Row:
    return {"grouped": [row[name] for name in parameters.columns]}


def _finish_preference(row: Row, parameters: Preference, notes: list[str]) -> Row:
    generations, ratings = row["generations"], row["ratings"]
    if len(generations) != len(ratings):
        raise RowRejected("invalid_input")
    rated = [(rating, text) for rating, text in zip(ratings, generations, strict=True) if rating is not None and text]
    # Of equal ratings the first generation counts, so that the choice depends on nothing else.
    best = max(rated, key=lambda pair: pair[0], default=(0.0, ""))
    # Judges rate the same answer differently, too.
    others = [(rating, text) for rating, text in rated if text.strip() != best[1].strip()]
    worst = min(others, key=lambda pair: pair[0], default=best)
    if best[0] - worst[0] <= 0 or best[0] - worst[0] < parameters.min_difference:
        raise RowRejected("no_preference")
    system_prompt = row.get("system_prompt") or ""
    system = [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []
    return {
        "prompt": [*system, {"role": "user", "content": row["instruction"]}],
        "chosen": [{"role": "assistant", "content": best[1]}],
        "rejected": [{"role": "assistant", "content": worst[1]}],
        "chosen_rating": best[0],
        "rejected_rating": worst[0],
    }


RESHAPING: Mapping[str, TaskSpec] = {
    "group_columns": TaskSpec(
        summary="makes one list of several columns, such as the answers of several models",
        distilabel=None,
        parameters=GroupColumns,
        inputs=lambda p: dict.fromkeys(p.columns, p.kind),
        outputs=lambda p: {"grouped": f"list[{p.kind}]"},
        calls="0",
        finish=_finish_group,
        single_call=False,
        groups=True,
        example={"columns": ["generation_a", "generation_b"]},
    ),
    "preference_pair": TaskSpec(
        summary="makes `chosen` and `rejected` out of rated answers, as TRL's DPO trainer reads them",
        distilabel=None,
        parameters=Preference,
        inputs=columns(instruction="text", generations="list[text]", ratings="list[number]", system_prompt="text?"),
        outputs=columns(
            prompt="conversation",
            chosen="conversation",
            rejected="conversation",
            chosen_rating="number",
            rejected_rating="number",
        ),
        calls="0",
        finish=_finish_preference,
        single_call=False,
    ),
}
