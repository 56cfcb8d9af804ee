"""The slots of engines without a scheduler: who waits gets one in the order of priorities, and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from batchgen.engines.slots import Slots


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 5))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def free(slots: Slots) -> int:
    """How many slots can be had at once."""
    held = []
    while True:
        held.append(slots.held(0))
        waiting = asyncio.create_task(held[-1].__aenter__())
        await settle()
        if not waiting.done():
            waiting.cancel()
            return len(held) - 1


def test_lower_priorities_first_and_equal_ones_as_they_came():
    async def go() -> None:
        slots, order = Slots(1), []

        async def one(name: str, priority: int) -> None:
            async with slots.held(priority):
                order.append(name)
                await asyncio.sleep(0)

        async with slots.held(9):
            waiting = [asyncio.create_task(one(*each)) for each in (("a", 2), ("b", 1), ("c", 2), ("d", 0), ("e", 1))]
            await settle()
            assert order == []
        await asyncio.gather(*waiting)
        assert order == ["d", "b", "e", "a", "c"]
        assert await free(slots) == 1

    run(go())


def test_no_more_at_once_than_there_are():
    async def go() -> None:
        slots, inside, most = Slots(3), 0, 0

        async def one(priority: int) -> None:
            nonlocal inside, most
            async with slots.held(priority):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

        await asyncio.gather(*(one(number % 4) for number in range(40)))
        assert most == 3
        assert await free(slots) == 3

    run(go())


def test_one_that_no_longer_waits_is_passed_over():
    async def go() -> None:
        slots = Slots(1)
        async with slots.held(0):
            held = [slots.held(priority) for priority in (1, 2)]
            gone, next_one = (asyncio.create_task(each.__aenter__()) for each in held)
            await settle()
            gone.cancel()
            await settle()
        await next_one
        assert await free(slots) == 0

    run(go())


def test_a_slot_that_is_given_to_one_that_ends_in_that_moment_is_not_lost():
    async def go() -> None:
        slots = Slots(1)
        async with slots.held(0):
            held = slots.held(1)
            given = asyncio.create_task(held.__aenter__())
            await settle()
        given.cancel()  # its turn has come, and it has not run since
        with pytest.raises(asyncio.CancelledError):
            await given
        assert await free(slots) == 1

    run(go())


def test_a_slot_comes_back_where_what_held_it_fails():
    async def go() -> None:
        slots = Slots(2)
        with pytest.raises(ValueError, match="x"):
            async with slots.held(0):
                raise ValueError("x")
        assert await free(slots) == 2

    run(go())
