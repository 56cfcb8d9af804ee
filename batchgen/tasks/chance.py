"""A step that calls no model and writes columns by chance, so that what is asked differs from row to row."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from batchgen.complaint import complaint
from batchgen.tasks.spec import Row, TaskParameters, TaskSpec, always, columns

_KINDS = {str: "text", bool: "boolean", int: "number", float: "number"}
# Up to it every whole number has a float of its own.
_MOST = 2**53


def _kind_of(option: Any) -> str | None:
    """The kind of a column with such a value; None where a column could not hold it as it is."""
    is_number = type(option) in (int, float)
    return None if is_number and not abs(option) <= _MOST else _KINDS.get(type(option))


def _options(given: Any) -> Any:
    """Checks what a column is drawn from, as far as other columns are of no account.

    Raises:
        PydanticCustomError: it is neither a list of values of one kind, nor a mapping of texts to weights, nor such
            options for each value of another column.
    """
    if _depends(given):
        if not isinstance(given["by"], str) or not isinstance(given["of"], dict) or not given["of"]:
            raise complaint("`by` is the name of a column, and `of` what is drawn for each of its values")
        for value, options in given["of"].items():
            if not isinstance(value, str) or _depends(options):
                raise complaint("`of` has texts, and for each of them a list, or a mapping of texts to weights")
            _options(options)
        if len({*map(_kind, given["of"].values())}) > 1:
            raise complaint("what is drawn must be of one kind: texts, numbers or booleans")
    elif isinstance(given, dict):
        weights = [weight for weight in given.values() if type(weight) in (int, float) and 0 <= weight <= _MOST]
        if len(weights) < len(given) or not all(isinstance(option, str) for option in given):
            raise complaint("a mapping has texts and their weights, numbers of 0 or more; or `by` and `of`")
        if not sum(weights) > 0:
            raise complaint("at least one weight must be above zero")
    elif not isinstance(given, list) or len({*map(_kind_of, given)}) != 1 or _kind_of(given[0]) is None:
        raise complaint("must be a list of texts, of numbers or of booleans, or a mapping of texts to weights")
    return given


def _depends(options: Any) -> bool:
    """Whether what is drawn from options depends on another column."""
    if not isinstance(options, dict) or options.keys() != {"by", "of"}:
        return False
    return isinstance(options["by"], str) or isinstance(options["of"], dict)  # else they are texts with weights


def _kind(options: Any) -> str:
    """The kind of a column that is drawn from options."""
    if _depends(options):
        return _kind(next(iter(options["of"].values())))
    return "text" if isinstance(options, dict) else _KINDS[type(options[0])]


def _values(options: Any) -> tuple[set[str], set[str]]:
    """The texts that stand in options, and those of them that are ever drawn."""
    if _depends(options):
        parts = [_values(each) for each in options["of"].values()]
        return set().union(*(listed for listed, _ in parts)), set().union(*(drawn for _, drawn in parts))
    drawn = {text for text in options if not isinstance(options, dict) or options[text] > 0}
    return set(options), drawn


def _checked_dependence(columns: dict[str, Any]) -> dict[str, Any]:
    """Checks that a column on which another one depends is there, and that nothing is missing for its values.

    Raises:
        PydanticCustomError: with the path to what is wrong in its context.
    """
    for column, options in columns.items():
        seen = [column]
        while _depends(columns[seen[-1]]):
            by = columns[seen[-1]]["by"]
            if by not in columns:
                raise complaint(
                    f"no column {by!r} is drawn in this step; it draws {', '.join(columns)}", (seen[-1], "by")
                )
            if by in seen:
                raise complaint(f"columns depend on each other: {' by '.join([*seen, by])}", (column, "by"))
            seen.append(by)
        if _depends(options):
            by = options["by"]
            if _kind(columns[by]) != "text":
                raise complaint(
                    f"column {by!r} has no texts, and only by texts can another one be drawn", (column, "by")
                )
            listed, drawn = _values(columns[by])
            if missing := sorted(drawn - options["of"].keys()):
                raise complaint(
                    f"nothing to draw for {', '.join(map(repr, missing))}, of column {by!r}", (column, "of")
                )
            if unknown := sorted(options["of"].keys() - listed):
                raise complaint(
                    f"no value of column {by!r}; it has {', '.join(sorted(listed))}", (column, "of", unknown[0])
                )
    return columns


_Columns = Annotated[dict[str, Annotated[Any, AfterValidator(_options)]], AfterValidator(_checked_dependence)]


class Choose(TaskParameters):
    """Draws a value for each of some columns."""

    columns: _Columns = Field(
        min_length=1,
        description="what each new column is drawn from: a list, or a mapping of texts to weights, as in {topic: "
        "[algebra, geometry], level: {easy: 3, hard: 1}}; or, by the value of another one of these columns, what is "
        "given for that: {skill: {by: topic, of: {algebra: [factoring], geometry: [proving, measuring]}}}",
    )


def _outputs(parameters: Choose) -> Mapping[str, str]:
    return {column: _kind(options) for column, options in parameters.columns.items()}


def _drawn(parameters: Choose, seed: int) -> Row:
    return {column: _value(parameters.columns, column, seed) for column in parameters.columns}


def _value(columns: Mapping[str, Any], column: str, seed: int) -> Any:
    from batchgen.rows import random_seed  # with Arrow, which readers of the table do not need

    options = columns[column]
    if _depends(options):
        options = options["of"][_value(columns, options["by"], seed)]
    return _one_of(options, random_seed(seed, column))


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
