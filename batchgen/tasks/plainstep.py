"""Runs a step that uses no model: between the engine's requests, or on threads beside them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from batchgen import bridge
from batchgen.errors import RowRejected
from batchgen.progress import FILTERED
from batchgen.tasks.llm import CallLog
from batchgen.tasks.spec import Row, TaskParameters, TaskSpec


class PlainStep:
    """A class of distilabel's, or of the user's own, that makes rows of one.

    Args:
        name: of the step, for distilabel's metadata.
        spec: of the step; its `threads` says on how many threads rows run, each with an instance of the class.
        parameters: as the job set them.
    """

    def __init__(self, name: str, spec: TaskSpec, parameters: TaskParameters) -> None:
        self._free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(spec.threads or 1):
            self._free.put(_built(name, spec, parameters))
        self._threads = ThreadPoolExecutor(spec.threads, "plain-step") if spec.threads else None

    async def run(self, inputs: Row, log: CallLog, seed: int | None) -> list[Row]:
        """What it makes of a row; at least one.

        Args:
            seed: of the random choices; on threads they have none, as the generators belong to the whole process.

        Raises:
            RowRejected: it leaves the row out.
            Whatever the class raises.
        """
        if self._threads is None:
            return await bridge.run_row(lambda: self._process(inputs), log, seed)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._process, inputs)

    def _process(self, inputs: Row) -> list[Row]:
        step = self._free.get()  # there is one for every thread
        try:
            made = [dict(row) for rows in step.process_applying_mappings([inputs]) for row in rows]
        finally:
            self._free.put(step)
        if not made:
            raise RowRejected(FILTERED)
        return made


def _built(name: str, spec: TaskSpec, parameters: TaskParameters) -> Any:
    step: type = spec.distilabel  # type: ignore[assignment]  # the table has no such entry by name
    given = parameters.for_distilabel()
    made: Any = step(name=name, **given)
    made.set_runtime_parameters({key: value for key, value in given.items() if key in made.runtime_parameters_names})
    made.load()
    return made
