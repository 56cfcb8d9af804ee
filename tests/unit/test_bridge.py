"""The bridge: synchronous code as coroutines."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from batchgen import bridge


async def later(value: int) -> int:
    await asyncio.sleep(0)
    return value


def test_waiting_code_gets_results_and_returns_its_own():
    def work() -> int:
        return bridge.wait(later(1)) + bridge.wait(later(2))

    assert asyncio.run(bridge.run_row(work, None, 0)) == 3


def test_what_an_awaitable_raises_is_raised_where_the_code_waits():
    async def fail() -> None:
        raise KeyError("x")

    def work() -> str:
        try:
            bridge.wait(fail())
        except KeyError:
            return "caught"
        return "missed"

    assert asyncio.run(bridge.run_row(work, None, 0)) == "caught"


def test_what_the_code_raises_leaves_the_coroutine():
    def work() -> None:
        bridge.wait(later(1))
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        asyncio.run(bridge.run_row(work, None, 0))


def test_a_thousand_rows_are_in_flight_at_once_each_with_its_context():
    waiting = 0
    most = 0

    async def slow() -> None:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0.05)
        waiting -= 1

    def work() -> int:
        bridge.wait(slow())
        return bridge.current_context()

    async def all_rows() -> list[int]:
        return await asyncio.gather(*(bridge.run_row(work, i, i) for i in range(1000)))

    assert asyncio.run(all_rows()) == list(range(1000))
    assert most == 1000


def test_random_choices_are_the_row_s_whatever_runs_beside_it():
    def work() -> list[float]:
        drawn = [random.random(), float(np.random.rand())]
        bridge.wait(later(0))
        return [*drawn, random.random(), float(np.random.rand())]

    async def rows(order: list[int]) -> dict[int, list[float]]:
        drawn = await asyncio.gather(*(bridge.run_row(work, None, seed) for seed in order))
        return dict(zip(order, drawn, strict=True))

    one, other = asyncio.run(rows([*range(99)])), asyncio.run(rows([*range(50, 99), *range(50)]))
    assert one == other
    # No two draws are alike, of `random` or of numpy's generator, in one row or in several.
    assert len({number for drawn in one.values() for number in drawn}) == 99 * 4


def test_the_process_s_random_numbers_stay_random():
    def draw() -> float:
        asyncio.run(bridge.run_row(lambda: bridge.wait(later(0)), None, 7))
        return random.random()

    assert draw() != draw()


def test_a_cancelled_row_unwinds_its_code():
    unwound = []

    async def forever() -> None:
        await asyncio.Event().wait()

    def work() -> None:
        try:
            bridge.wait(forever())
        finally:
            unwound.append(True)

    async def cancel() -> None:
        task = asyncio.create_task(bridge.run_row(work, None, 0))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert unwound == [True]


def test_waiting_outside_of_a_row_is_refused():
    with pytest.raises(RuntimeError, match="run_row"):
        bridge.current_context()
    awaitable = later(1)
    with pytest.raises(RuntimeError, match="run_row"):
        bridge.wait(awaitable)
    awaitable.close()
