"""Gates: steps that call no engine and let a row go on or end it, before what comes next is paid for."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from batchgen.tasks.spec import Gate, TaskParameters, TaskSpec, columns


class DropDuplicates(TaskParameters):
    """Ends a row whose text another row had."""

    threshold: float | None = Field(
        None, ge=0.5, le=1.0, description="ends near-duplicates as well: at least so alike (Jaccard, by MinHash)"
    )


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
}
