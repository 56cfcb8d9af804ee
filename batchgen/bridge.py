"""Runs synchronous task code as a coroutine: a greenlet a row, over one event loop.

A task's `process([row])` runs in a greenlet of its own. Where it calls the LLM it *waits*: the greenlet hands an
awaitable to the coroutine that drives it and is switched back in with the result, as SQLAlchemy runs its synchronous
ORM over asynchronous drivers. Thousands of rows are in flight over one engine without a thread and without a barrier.

Between two switches task code runs alone, so the process-wide random generators can be seeded for the row each time it
is switched in: a row makes the same random choices whatever runs beside it.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar, cast

import greenlet
import numpy as np

from batchgen.rows import random_seed

Result = TypeVar("Result")


class RowGreenlet(greenlet.greenlet):  # type: ignore[misc]  # greenlet is untyped
    """The greenlet of one row; `context` is whatever `run_row` was given."""

    context: Any = None


def current_context() -> Any:
    """The context of the row whose task code is running.

    Raises:
        RuntimeError: the caller does not run under `run_row`.
    """
    running = greenlet.getcurrent()
    if not isinstance(running, RowGreenlet):
        raise RuntimeError("task code has to run under bridge.run_row")
    return running.context


def wait(awaitable: Awaitable[Result]) -> Result:
    """Waits for an awaitable from within synchronous task code."""
    running = greenlet.getcurrent()
    if not isinstance(running, RowGreenlet):
        raise RuntimeError("bridge.wait has to be called under bridge.run_row")
    return cast(Result, running.parent.switch(awaitable))


async def run_row(function: Callable[[], Result], context: Any, seed: int | None) -> Result:
    """Runs synchronous code that may `wait`, and returns what it returns.

    Args:
        function: task code for one row.
        context: what `current_context` gives to that code.
        seed: of the row's random choices; None where the code makes none.

    Raises:
        Whatever the function raises; what an awaitable raises is raised where the function waits.
    """
    row = RowGreenlet(function)
    row.context = context
    switch = _switch if seed is None else partial(_seeded_switch, itertools.count(), seed)
    yielded = switch(row)
    while not row.dead:
        try:
            value = await yielded
        except BaseException as error:
            yielded = switch(row, error=error)
        else:
            yielded = switch(row, value)
    return cast(Result, yielded)


def _switch(row: RowGreenlet, *values: Any, error: BaseException | None = None) -> Any:
    """Switches a row in: returns what it waits for, or what its code returns."""
    # At every switch: a task waits in its coroutine's greenlet, which is not always the one that made it.
    row.parent = greenlet.getcurrent()
    return row.throw(error) if error is not None else row.switch(*values)


def _seeded_switch(
    numbers: Iterator[int], seed: int, row: RowGreenlet, *values: Any, error: BaseException | None = None
) -> Any:
    """Switches a row in with random state of its own.

    Afterwards `random` is seeded from the operating system: restoring both generators' states would cost ten times
    as much, and nothing else in a worker draws from numpy's global one.
    """
    seed = random_seed(seed, next(numbers))
    random.seed(seed)
    np.random.seed(seed % 2**32)  # the generator that distilabel's tasks use
    try:
        return _switch(row, *values, error=error)
    finally:
        random.seed(int.from_bytes(os.urandom(8)))  # without an argument it asks for 2,496 bytes, in 10 us
