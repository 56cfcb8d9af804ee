"""A step that calls no model and writes columns by chance, so that what is asked differs from row to row."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from batchgen.tasks.spec import Row, TaskParameters, TaskSpec, always, columns

_KINDS = {str: "text", bool: "boolean", int: "number", float: "number"}
# Up to it every whole number has a float of its own.
_MOST = 2**53


def _kind_of(option: Any) -> str | None:
    """The kind of a column with such a value; None where a column could not hold it as it is."""
    is_number = type(option) in (int, float)
    return None if is_number and not abs(option) <= _MOST else _KINDS.get(type(option))


def _options(given: Any) -> Any:
    """Checks what a column is drawn from.

    Raises:
        PydanticCustomError: it is neither a list of values of one kind nor a mapping of texts to weights.
    """
    if isinstance(given, dict):
        weights = [weight for weight in given.values() if type(weight) in (int, float) and 0 <= weight <= _MOST]
        if len(weights) < len(given) or not all(isinstance(option, str) for option in given):
            raise PydanticCustomError("options", "a mapping has texts and their weights, numbers of 0 or more")
        if not sum(weights) > 0:
            raise PydanticCustomError("options", "at least one weight must be above zero")
    elif not isinstance(given, list) or len({*map(_kind_of, given)}) != 1 or _kind_of(given[0]) is None:
        raise PydanticCustomError(
            "options", "must be a list of texts, of numbers or of booleans, or a mapping of texts to weights"
        )
    return given


class Choose(TaskParameters):
    """Draws a value for each of some columns."""

    columns: dict[str, Annotated[Any, AfterValidator(_options)]] = Field(
        min_length=1,
        description="what each new column is drawn from: a list, or a mapping of texts to weights, as in "
        "{topic: [algebra, geometry], level: {easy: 3, hard: 1}}",
    )


def _outputs(parameters: Choose) -> Mapping[str, str]:
    given = parameters.columns.items()
    return {column: "text" if isinstance(options, dict) else _KINDS[type(options[0])] for column, options in given}


def _drawn(parameters: Choose, seed: int) -> Row:
    from batchgen.rows import random_seed  # with Arrow, which readers of the table do not need

    return {column: _one_of(options, random_seed(seed, column)) for column, options in parameters.columns.items()}


def _one_of(options: Any, seed: int) -> Any:
    chance = random.Random(seed)
    if isinstance(options, list):
        return chance.choice(options)
    # The copy of a job in its run has the keys of mappings sorted.
    texts = sorted(options)
    return chance.choices(texts, [options[text] for text in texts])[0]


CHANCE: Mapping[str, TaskSpec] = {
    "choose": TaskSpec(
        summary="draws values for columns, such as a topic and a level, that prompts are made of",
        distilabel=None,
        parameters=Choose,
        inputs=columns(),
        outputs=_outputs,
        calls="0",
        single_call=False,
        chooses=always,
        draw=_drawn,
        example={"columns": {"topic": ["algebra", "geometry"], "level": {"easy": 3, "hard": 1}}},
    ),
}
