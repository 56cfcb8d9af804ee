"""Steps that call no engine and let a row go on or end it, before what comes next is paid for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from batchgen.conditions import checked_conditions, met
from batchgen.errors import RowRejected
from batchgen.progress import FILTERED
from batchgen.tasks.spec import ANY, Gate, Row, TaskParameters, TaskSpec, columns


class DropDuplicates(TaskParameters):
    """Ends a row whose text another row had."""

    threshold: float | None = Field(
        None, ge=0.5, le=1.0, description="ends near-duplicates as well: at least so alike (Jaccard, by MinHash)"
    )


class Filter(TaskParameters):
    """Ends a row that does not meet a condition."""

    keep: dict[str, Any] = Field(
        description="conditions by column, as in merge.keep: {score: {min: 4}}, {label: [math, code]}"
    )

    @field_validator("keep")
    @classmethod
    def _conditions(cls, keep: dict[str, Any]) -> dict[str, Any]:
        if not keep:
            raise PydanticCustomError("keep", "there must be at least one condition, like {score: {min: 4}}")
        return checked_conditions(keep)


def _filtered(row: Row, parameters: Filter, notes: list[str]) -> Row:
    import pyarrow as pa

    for column, condition in parameters.keep.items():
        if not met(pa.array([row.get(column)]), condition)[0]:
            raise RowRejected(f"{FILTERED}:{column}")
    return row


def _seen(parameters: DropDuplicates) -> Gate:
    from batchgen.tasks.seen import Seen  # numba and all

    return Seen(parameters.threshold)


GATES: Mapping[str, TaskSpec] = {
    "drop_duplicates": TaskSpec(
        summary="ends a row whose text another row had, or with `threshold` nearly had",
        distilabel=None,
        parameters=DropDuplicates,
        inputs=columns(instruction="text"),
        outputs=columns(),
        calls="0",
        single_call=False,
        gate=_seen,
    ),
    "filter": TaskSpec(
        summary="ends a row whose columns do not meet conditions, such as a score that is too low",
        distilabel=None,
        parameters=Filter,
        inputs=lambda parameters: dict.fromkeys(parameters.keep, f"{ANY}?"),
        outputs=columns(),
        calls="0",
        single_call=False,
        finish=_filtered,
        keep=lambda parameters: parameters.keep,
        example={"keep": {"score": {"min": 4}}},
    ),
}
