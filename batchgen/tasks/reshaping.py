"""Tasks that call no model: they make columns out of the columns of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from batchgen.errors import RowRejected
from batchgen.tasks.generation import checked_template, placeholders, render_template
from batchgen.tasks.spec import PRINTABLE, Row, TaskParameters, TaskSpec


class GroupColumns(TaskParameters):
    """Makes one list of several columns."""

    columns: list[str] = Field(min_length=1, description="the columns, in the order of the list")
    kind: Literal["text", "number", "boolean", "conversation", "list[text]", "list[number]"] = Field(
        "text", description="what they hold"
    )

    @field_validator("columns")
    @classmethod
    def _once(cls, columns: list[str]) -> list[str]:
        if twice := sorted({name for name in columns if columns.count(name) > 1}):
            raise PydanticCustomError("columns", "name '{name}' twice", {"name": twice[0]})
        return columns


class FillTemplate(TaskParameters):
    """Writes a text of several columns."""

    template: str = Field(description="the text, with `{{ column }}` where a column's value goes")

    @field_validator("template")
    @classmethod
    def _plain(cls, template: str) -> str:
        return checked_template(template)


class FirstQuestion(TaskParameters):
    """Takes a conversation's first question as an instruction."""


class Preference(TaskParameters):
    """Makes a preference pair out of rated answers."""

    min_difference: float = Field(
        default=0.0, ge=0.0, description="rejects a row whose best and worst rating are less apart"
    )
    name_models: bool = Field(
        False, description="reads the answers' models from the column `generation_models`, and writes those of the pair"
    )

    @field_validator("min_difference", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise PydanticCustomError("number", "must be a number")
        return float(value) if isinstance(value, int) else value


def _finish_group(row: Row, parameters: GroupColumns, notes: list[str]) -> Row:
    return {"grouped": [row[name] for name in parameters.columns]}


def _finish_template(row: Row, parameters: FillTemplate, notes: list[str]) -> Row:
    return {"text": render_template(parameters.template, row)}


def _finish_question(row: Row, parameters: FirstQuestion, notes: list[str]) -> Row:
    said = {message["role"]: message["content"] for message in reversed(row["messages"])}  # the first of each role
    if not (said.get("user") or "").strip():
        raise RowRejected("no_question")
    return {"instruction": said["user"], "system_prompt": said.get("system")}


class _Rated(NamedTuple):
    rating: float
    text: str
    model: str | None = None


def _finish_preference(row: Row, parameters: Preference, notes: list[str]) -> Row:
    generations, ratings = row["generations"], row["ratings"]
    models = row["generation_models"] if parameters.name_models else [None] * len(generations)
    if not len(generations) == len(ratings) == len(models):
        raise RowRejected("invalid_input")
    answers = zip(ratings, generations, models, strict=True)
    rated = [_Rated(*each) for each in answers if each[0] is not None and each[1]]
    # Of equal ratings the first generation counts, so that the choice depends on nothing else.
    best = max(rated, key=lambda each: each.rating, default=_Rated(0.0, ""))
    # Judges rate the same answer differently, too.
    others = [each for each in rated if each.text.strip() != best.text.strip()]
    worst = min(others, key=lambda each: each.rating, default=best)
    if best.rating - worst.rating <= 0 or best.rating - worst.rating < parameters.min_difference:
        raise RowRejected("no_preference")
    system_prompt = row.get("system_prompt") or ""
    system = [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []
    return {
        "prompt": [*system, {"role": "user", "content": row["instruction"]}],
        "chosen": [{"role": "assistant", "content": best.text}],
        "rejected": [{"role": "assistant", "content": worst.text}],
        "chosen_rating": best.rating,
        "rejected_rating": worst.rating,
        **({"chosen_model": best.model, "rejected_model": worst.model} if parameters.name_models else {}),
    }


def _preference_inputs(parameters: Preference) -> Mapping[str, str]:
    inputs = {"instruction": "text", "generations": "list[text]", "ratings": "list[number]", "system_prompt": "text?"}
    return inputs | ({"generation_models": "list[text]"} if parameters.name_models else {})


def _preference_outputs(parameters: Preference) -> Mapping[str, str]:
    outputs = dict.fromkeys(("prompt", "chosen", "rejected"), "conversation")
    outputs |= dict.fromkeys(("chosen_rating", "rejected_rating"), "number")
    return outputs | (dict.fromkeys(("chosen_model", "rejected_model"), "text") if parameters.name_models else {})


RESHAPING: Mapping[str, TaskSpec] = {
    "fill_template": TaskSpec(
        summary="writes a text with a row's columns in it, such as a system prompt",
        distilabel=None,
        parameters=FillTemplate,
        inputs=lambda p: dict.fromkeys(placeholders(p.template), PRINTABLE),
        outputs=lambda p: {"text": "text"},
        calls="0",
        finish=_finish_template,
        single_call=False,
        example={"template": "You are an expert on {{ topic }}."},
    ),
    "first_question": TaskSpec(
        summary="takes a conversation's first question, and its system prompt, for steps that read an instruction",
        distilabel=None,
        parameters=FirstQuestion,
        inputs=lambda p: {"messages": "conversation"},
        outputs=lambda p: {"instruction": "text", "system_prompt": "text?"},
        calls="0",
        finish=_finish_question,
        single_call=False,
    ),
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
        inputs=_preference_inputs,
        outputs=_preference_outputs,
        calls="0",
        finish=_finish_preference,
        single_call=False,
        differing="generations",
    ),
}
