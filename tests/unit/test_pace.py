"""How many requests a server is asked at once, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest

from batchgen.engines.pace import Pace

AT_ONCE = 0.0


def paced(test: Callable[[Pace], Coroutine[Any, Any, None]], most: int = 8) -> None:
    async def go() -> None:
        async with asyncio.timeout(10):
            await test(Pace(most))

    asyncio.run(go())


async def refuse(pace: Pace, beside: int = 0, told: float | None = AT_ONCE) -> None:
    """One request that is refused, with others under way."""
    async with AsyncExitStack() as others:
        began = [await others.enter_async_context(pace.turn()) for _ in range(beside + 1)]
        pace.refused(began[-1], told)


async def answer(pace: Pace, times: int) -> None:
    for _ in range(times):
        async with pace.turn():
            pace.answered()


async def at_once(pace: Pace, of: int = 20) -> int:
    """How many of many are let in as long as none of them is over."""
    entered, over = 0, asyncio.Event()

    async def ask() -> None:
        nonlocal entered
        async with pace.turn():
            entered += 1
            await over.wait()

    tasks = [asyncio.create_task(ask()) for _ in range(of)]
    await asyncio.sleep(0.05)
    found = entered
    over.set()
    await asyncio.gather(*tasks)
    return found


def pause_of(pace: Pace) -> float:
    """Seconds from the last refusal that counted until somebody is let in."""
    return pace._opens - pace._slowed


def test_as_many_as_there_may_be_are_let_in_at_once_and_one_more_as_soon_as_one_is_over():
    async def test(pace: Pace) -> None:
        async with AsyncExitStack() as stack:
            for _ in range(8):
                await stack.enter_async_context(pace.turn())
            late = asyncio.create_task(answer(pace, 1))
            await asyncio.sleep(0.01)
            assert not late.done()
        await late
        assert (pace.allowed, pace.slowed) == (8, False)
        assert [await at_once(pace) for _ in range(3)] == [8, 8, 8]

    paced(test)


def test_half_as_many_are_let_in_after_a_refusal_and_one_more_with_each_round_of_answers():
    async def test(pace: Pace) -> None:
        async with AsyncExitStack() as stack:
            began = [await stack.enter_async_context(pace.turn()) for _ in range(8)]
            for each in began:
                pace.refused(each, AT_ONCE)
            assert (pace.allowed, pace.slowed) == (4, True), "of a burst one refusal counts"
            waiting = [asyncio.create_task(answer(pace, 1)) for _ in range(3)]
            await asyncio.sleep(0.01)
            assert not any(task.done() for task in waiting), "the eight are still under way"
        await asyncio.gather(*waiting)
        assert [await at_once(pace) for _ in range(3)] == [4, 4, 4]
        found = []
        for _ in range(30):
            await answer(pace, 1)
            found.append(pace.allowed)
        assert found == sorted(found)
        assert (found[0], found[-1], pace.slowed) == (4, 8, False)
        assert all(abs(found.count(number) - number) <= 1 for number in (5, 6, 7)), found

    paced(test)


def test_one_is_always_let_in():
    async def test(pace: Pace) -> None:
        for _ in range(4):
            await refuse(pace)
            await asyncio.sleep(0.001)
        assert pace.allowed == 1
        await answer(pace, 1)

    paced(test)


def test_where_few_are_asked_at_once_half_of_those_are_let_in():
    async def test(pace: Pace) -> None:
        await refuse(pace, beside=3)
        assert pace.allowed == 2

    paced(test, most=100)


@pytest.mark.parametrize(("told", "pauses"), [(None, (0.1, 0.2, 0.4, 0.4)), (0.05, (0.05, 0.05, 0.05, 0.05))])
def test_nobody_is_let_in_for_a_while_after_a_refusal(
    monkeypatch: pytest.MonkeyPatch, told: float | None, pauses: tuple[float, ...]
):
    monkeypatch.setattr("batchgen.engines.pace._PAUSE", 0.1)
    monkeypatch.setattr("batchgen.engines.pace._LONGEST_PAUSE", 0.4)

    async def test(pace: Pace) -> None:
        for pause in pauses:
            await refuse(pace, told=told)
            assert pause_of(pace) == pytest.approx(pause)
            async with pace.turn() as began:
                assert pause * 0.9 <= began - pace._slowed < pause + 1

    paced(test)


def test_a_timer_that_comes_a_moment_early_is_set_again():
    async def test(pace: Pace) -> None:
        await refuse(pace, told=0.1)
        waiting = asyncio.create_task(answer(pace, 1))
        await asyncio.sleep(0.01)
        assert pace._timer is not None
        pace._timer.cancel()
        pace._open()
        await waiting

    paced(test)


def test_a_server_s_word_is_taken_for_a_minute_at_most(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.engines.pace._LONGEST_TOLD", 0.1)

    async def test(pace: Pace) -> None:
        await refuse(pace, told=86_400)
        assert pause_of(pace) == pytest.approx(0.1)
        await answer(pace, 1)

    paced(test)


def test_an_answer_ends_a_row_of_refusals(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.engines.pace._PAUSE", 0.01)

    async def test(pace: Pace) -> None:
        for _ in range(3):
            await refuse(pace, told=None)
            assert pause_of(pace) == pytest.approx(0.01), "not the next in a row"
            await answer(pace, 1)

    paced(test)


def test_where_nobody_is_let_in_all_may_see_that():
    """Then it is not there for the time being, which is waited for elsewhere."""

    async def test(pace: Pace) -> None:
        for _ in range(4):
            await refuse(pace, beside=pace.allowed - 1)
            await asyncio.sleep(0.001)
        assert pace.slowed
        await refuse(pace, beside=pace.allowed - 1, told=60)
        assert not pace.slowed
        assert await at_once(pace, 300) == 200
        pace.answered()
        assert pace.allowed == 2, "it begins anew"
        pace._opens = 0
        assert await at_once(pace) == 2

    paced(test, most=200)


def test_those_who_wait_see_it_too():
    async def test(pace: Pace) -> None:
        await refuse(pace)
        for _ in range(3):
            await asyncio.sleep(0.001)
            await refuse(pace)
        await asyncio.sleep(0.001)
        async with pace.turn() as began:
            waiting = [asyncio.create_task(answer(pace, 1)) for _ in range(3)]
            await asyncio.sleep(0.01)
            assert not any(task.done() for task in waiting)
            pace.refused(began, 60)
            await asyncio.gather(*waiting)

    paced(test)


def test_the_lowest_of_those_who_wait_goes_first_and_equal_ones_as_they_came():
    async def test(pace: Pace) -> None:
        order: list[str] = []

        async def ask(name: str, priority: int) -> None:
            async with pace.turn(priority):
                order.append(name)

        async with pace.turn():
            tasks = [asyncio.create_task(ask(name, int(name[0]))) for name in ("3a", "1a", "2", "1b", "3b")]
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        assert order == ["1a", "1b", "2", "3a", "3b"]

    paced(test, most=1)


@pytest.mark.parametrize("given", [False, True], ids=["while it waits", "as its turn comes"])
def test_who_is_cancelled_takes_nobody_s_turn(given: bool):
    async def test(pace: Pace) -> None:
        async with pace.turn():
            gone, stays = (asyncio.create_task(answer(pace, 1)) for _ in range(2))
            await asyncio.sleep(0.01)
            if not given:
                gone.cancel()
        if given:
            gone.cancel()
        await stays
        await answer(pace, 3)
        assert gone.cancelled()
        assert [await at_once(pace) for _ in range(2)] == [1, 1]

    paced(test, most=1)
