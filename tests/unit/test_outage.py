"""Stores and servers that are out of reach for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import pytest

from batchgen.engines.base import Completion, Request
from batchgen.engines.patient import PatientEngine
from batchgen.errors import EngineDead, EngineUnavailable, RowRejected, StoreError
from batchgen.outage import Outage, outlast_store
from tests.helpers import ScriptedEngine, untimed


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.outage._PAUSES", (0.02,))


def answers(given: Iterable[Exception | str]) -> Callable[[], Awaitable[str]]:
    """A call that raises, or gives, one after the other, and the last for ever."""
    left = list(given)

    async def call() -> str:
        await asyncio.sleep(0)
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return call


DISK_FULL = StoreError("disk full")
AWAY = EngineUnavailable("http://judge answers 503")


@pytest.mark.parametrize("error", [DISK_FULL, AWAY])
def test_a_call_is_made_again_until_it_succeeds_and_says_why_it_waits(error: Exception):
    async def go() -> None:
        outage = Outage(60)
        waiting = asyncio.create_task(outage.outlast(answers([error, error, error, "done"])))
        await asyncio.sleep(0.03)
        assert untimed(outage.reason) == str(error)
        assert await waiting == "done"
        assert outage.reason == ""
        assert outage.successes == 1

    asyncio.run(go())


@pytest.mark.parametrize("error", [DISK_FULL, AWAY])
def test_patience_ends_with_the_last_error_and_for_how_long_it_was_so(error: Exception):
    outage = Outage(0.1)
    with pytest.raises(type(error), match=r"; it has been like this for 0.1 s \(outage_seconds\)") as caught:
        asyncio.run(outage.outlast(answers([error])))
    assert str(caught.value).startswith(str(error))
    assert caught.value.waited == 0.1
    assert outage.reason == ""


def test_without_patience_the_first_error_is_the_last():
    with pytest.raises(StoreError, match=r"^disk full$") as caught:
        asyncio.run(Outage(0).outlast(answers([DISK_FULL, "done"])))
    assert caught.value.waited == 0


def test_what_stays_until_somebody_acts_is_not_waited_for():
    with pytest.raises(EngineUnavailable, match=r"^key refused$"):
        asyncio.run(Outage(60).outlast(answers([EngineUnavailable("key refused", final=True), "done"])))


def test_other_errors_are_nobody_s_to_wait_for():
    with pytest.raises(EngineDead):
        asyncio.run(Outage(60).outlast(answers([EngineDead("x"), "done"])))


def test_a_call_that_comes_late_waits_no_longer_than_those_that_wait_already():
    async def go() -> None:
        outage, loop = Outage(0.2), asyncio.get_running_loop()
        early = asyncio.create_task(outage.outlast(answers([DISK_FULL])))
        await asyncio.sleep(0.15)
        began = loop.time()
        with pytest.raises(StoreError):
            await outage.outlast(answers([DISK_FULL]))
        assert loop.time() - began < 0.15
        with pytest.raises(StoreError):
            await early

    asyncio.run(go())


def test_a_call_that_fails_for_itself_alone_gives_up_too():
    async def go() -> None:
        outage = Outage(0.1)

        async def well() -> None:
            while True:
                await outage.outlast(answers(["done"]))
                await asyncio.sleep(0.01)

        others = asyncio.create_task(well())
        with pytest.raises(StoreError):
            await asyncio.wait_for(outage.outlast(answers([DISK_FULL])), 5)
        others.cancel()

    asyncio.run(go())


def test_a_call_that_is_not_let_in_waits_for_as_long_as_others_are():
    async def go() -> None:
        outage, loop = Outage(0.1), asyncio.get_running_loop()

        async def well() -> None:
            while loop.time() < began + 0.4:
                await outage.outlast(answers(["done"]))
                await asyncio.sleep(0.01)

        async def not_let_in() -> str:
            await asyncio.sleep(0)
            if loop.time() < until:
                raise EngineUnavailable("http://judge answers 429", limited=True)
            return "done"

        began = loop.time()
        others, until = asyncio.create_task(well()), began + 0.3
        assert await outage.outlast(not_let_in) == "done"
        until = began + 60
        with pytest.raises(EngineUnavailable, match="answers 429; it has been like this"):
            await asyncio.wait_for(outage.outlast(not_let_in), 5)
        assert others.done()

    asyncio.run(go())


def test_patience_can_be_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.outage._PAUSES", (60,))

    async def go() -> None:
        outage = Outage(600)
        waiting = [asyncio.create_task(outage.outlast(answers([DISK_FULL, last]))) for last in (DISK_FULL, "done")]
        await asyncio.sleep(0.01)
        outage.give_up()
        failed, done = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
        assert (str(failed), done) == ("disk full", "done")

    asyncio.run(go())


def test_a_call_that_is_cancelled_waits_for_nothing():
    async def go() -> None:
        outage = Outage(60)
        waiting = asyncio.create_task(outage.outlast(answers([DISK_FULL])))
        await asyncio.sleep(0.01)
        assert outage.reason
        waiting.cancel()
        await asyncio.wait([waiting])
        assert outage.reason == ""

    asyncio.run(go())


def test_what_has_its_last_try_before_it_still_waits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.outage._PAUSES", (0.6,))

    async def go() -> None:
        outage = Outage(0.1)
        waiting = asyncio.create_task(outage.outlast(answers([DISK_FULL, DISK_FULL])))
        await asyncio.sleep(0.3)
        assert outage.reason == f"{DISK_FULL} (for 0 s more at most: outage_seconds)"
        with pytest.raises(StoreError):
            await waiting
        assert outage.reason == ""

    asyncio.run(go())


class Clock:
    """Time that goes by as somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        monkeypatch.setattr("batchgen.outage.time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_a_call_at_the_end_of_a_run_outlasts_its_store(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.outage._PAUSES", (1.0, 30.0))
    clock, told = Clock(monkeypatch), list[tuple[float, str]]()
    left = [StoreError(f"full {number}") for number in range(8)]

    def call() -> str:
        if left:
            raise left.pop(0)
        return "merged"

    def tell(reason: str) -> None:
        told.append((clock.now - 1000, reason))
        assert f"(for {1600 - clock.now:.0f} s more at most" in reason

    assert outlast_store(call, 600, tell) == "merged"
    assert clock.slept == [1, *[30] * 7]
    reasons = [(at, untimed(reason)) for at, reason in told]
    assert reasons == [(0, "full 0"), (61, "full 3"), (121, "full 5"), (181, "full 7")], "once a minute"


def test_patience_at_the_end_of_a_run_ends_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.outage._PAUSES", (10.0,))
    clock = Clock(monkeypatch)

    def call() -> None:
        raise StoreError("full")

    with pytest.raises(StoreError, match=r"^full$"):
        outlast_store(call, 60, lambda _: None)
    assert clock.slept == [10] * 6
    with pytest.raises(StoreError):
        outlast_store(call, 0, lambda _: None)
    assert clock.slept == [10] * 6

    def defect() -> None:
        raise EngineDead("x")

    with pytest.raises(EngineDead):
        outlast_store(defect, 60, lambda _: None)


class Judge(ScriptedEngine):
    """Fails at some requests as a server does that has a defect, or at all of them."""

    def __init__(self, *failing: str, how: str = "500") -> None:
        super().__init__(lambda prompt, number: "fine")
        self.failing = failing
        self.how = how
        self.failed = 0

    async def generate(self, request: Request) -> Completion:
        """Fails, or answers."""
        if any(word in request.key for word in self.failing):
            await asyncio.sleep(0)
            self.failed += 1
            raise EngineUnavailable("http://judge answers 500", perhaps_row=self.how)
        return await super().generate(request)


@pytest.mark.parametrize(("how", "times"), [("500", 3), ("timeout", 3), ("no_completion", 5)])
def test_a_row_at_which_a_server_fails_alone_is_rejected(monkeypatch: pytest.MonkeyPatch, how: str, times: int):
    monkeypatch.setattr("batchgen.outage._PAUSES", (0.05,))
    judge = Judge("poison", how=how)

    async def go() -> list[Completion | BaseException]:
        engine = PatientEngine(judge, Outage(60))
        assert (engine.model_name, engine.slots, engine.chat is None) == ("scripted", 8, False)
        await engine.start()

        async def well() -> Completion:
            for _ in range(60):
                answer = await engine.generate(Request([1], {}, seed=0, key="good"))
                await asyncio.sleep(0.01)
            return answer

        found = await asyncio.gather(
            engine.generate(Request([1], {}, seed=0, key="poison")), well(), return_exceptions=True
        )
        await engine.stop()
        return found

    rejected, answer = asyncio.run(go())
    assert isinstance(rejected, RowRejected)
    assert rejected.reason == f"refused_by_server:{how}"
    assert isinstance(answer, Completion)
    assert times <= judge.failed <= times + 1  # one may fall between two answers to others


def test_what_a_gateway_says_of_its_server_is_a_row_s_fault_only_at_the_end_of_all_patience():
    judge = Judge("poison", how="502")

    async def go() -> float:
        engine, loop = PatientEngine(judge, Outage(0.5)), asyncio.get_running_loop()
        began = loop.time()
        asking = asyncio.create_task(engine.generate(Request([1], {}, seed=0, key="poison")))
        while not asking.done():
            await engine.generate(Request([1], {}, seed=0, key="good"))
            await asyncio.sleep(0.01)
        with pytest.raises(RowRejected, match="refused_by_server:502"):
            await asking
        return loop.time() - began

    assert asyncio.run(go()) >= 0.5
    assert judge.failed > 8


def test_a_server_that_went_away_under_a_request_is_not_its_row_s_fault():
    async def go() -> None:
        engine = PatientEngine(Judge("poison", how="502"), Outage(0.3))
        asking = asyncio.create_task(engine.generate(Request([1], {}, seed=0, key="poison")))
        await asyncio.sleep(0.05)
        await engine.generate(Request([1], {}, seed=0, key="good"))  # the last that was answered
        await asking

    with pytest.raises(EngineUnavailable, match="it has been like this"):
        asyncio.run(go())


def test_a_row_that_is_not_let_in_again_and_again_is_not_to_blame():
    limited, late = EngineUnavailable("429", limited=True), EngineUnavailable("late", perhaps_row="timeout")
    answer = answers([*[limited] * 10, late, limited, late, "fine"])

    class Limited(ScriptedEngine):
        async def generate(self, request: Request) -> Completion:
            if request.key == "unlucky":
                await answer()
            return await super().generate(request)

    async def go() -> None:
        engine = PatientEngine(Limited(lambda prompt, number: "fine"), Outage(60))
        asking = asyncio.create_task(engine.generate(Request([1], {}, seed=0, key="unlucky")))
        while not asking.done():
            await engine.generate(Request([1], {}, seed=0, key="good"))
            await asyncio.sleep(0.01)
        assert (await asking).text == "fine"

    asyncio.run(go())


@pytest.mark.parametrize(("gives_up", "kind"), [(False, RowRejected), (True, EngineUnavailable)])
def test_a_row_that_failed_alone_when_patience_ends_is_rejected_unless_the_run_stops(
    monkeypatch: pytest.MonkeyPatch, gives_up: bool, kind: type[Exception]
):
    monkeypatch.setattr("batchgen.outage._PAUSES", (0.1,))

    async def go() -> None:
        outage = Outage(60 if gives_up else 0.05)
        engine = PatientEngine(Judge("poison"), outage)
        asking = asyncio.create_task(engine.generate(Request([1], {}, seed=0, key="poison")))
        await asyncio.sleep(0.02)
        await engine.generate(Request([1], {}, seed=0, key="good"))
        if gives_up:
            outage.give_up()
        await asking

    with pytest.raises(kind):
        asyncio.run(go())


def test_a_server_that_fails_at_everything_is_no_row_s_fault():
    engine = PatientEngine(Judge("a", "b"), Outage(0.3))

    async def go() -> None:
        await asyncio.gather(*(engine.generate(Request([1], {}, seed=0, key=key)) for key in "ab"))

    with pytest.raises(EngineUnavailable, match="answers 500; it has been like this"):
        asyncio.run(go())
