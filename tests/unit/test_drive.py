"""The driver over engines in this process: hangs, stores that fail, statuses that add up."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from batchgen import run
from batchgen.api import stall_after
from batchgen.commit import committed, read_shard
from batchgen.drive import Driver, Status
from batchgen.engines.chaos import ChaosEngine
from batchgen.engines.openai import OpenAIEngine
from batchgen.engines.weights import Weights
from batchgen.enginestate import HELD_ROWS_PER_SLOT
from batchgen.errors import (
    BatchgenError,
    EngineDead,
    EngineStartError,
    EngineStopped,
    EngineUnavailable,
    Stopped,
    StoreError,
)
from batchgen.fleet import Answer, HostConfig, Work
from batchgen.host import EngineHost, LocalFleet
from batchgen.job import Job
from batchgen.known import Texts
from batchgen.plan import PLAN_KEY
from batchgen.progress import Progress
from batchgen.pulse import Pulse
from batchgen.schedule import Scheduler
from batchgen.settle import read_plan
from batchgen.store import LocalStore
from tests.faults import ledger
from tests.helpers import chaos_job, planned, untimed


def drive(
    job,
    stall_seconds: float = 60.0,
    engines: int = 1,
    store: str | None = None,
    start_seconds: float = 60.0,
    fleets: type[LocalFleet] = LocalFleet,
):
    plan, seeds, opened = planned(job)
    statuses: list[Status] = []
    fleet = fleets(HostConfig(job, plan, store or opened.location, 0))
    driver = Driver(
        Scheduler(plan.shards, engines),
        fleet,
        seeds,
        shards=len(plan.shards),
        shards_before=0,
        before=Progress(),
        engines=engines,
        watch=statuses.append,
        stall_seconds=stall_seconds,
        start_seconds=start_seconds,
    )
    asyncio.run(driver.run())
    return committed(opened, plan), plan, statuses


def test_all_shards_are_committed_and_the_last_status_says_so(tmp_path: Path):
    manifests, plan, statuses = drive(chaos_job(tmp_path, source={"count": 300}), engines=3)
    assert len(manifests) == len(plan.shards)
    last = statuses[-1]
    assert max(status.rows_in_flight for status in statuses) <= 3 * 32, "two a slot of each engine"
    assert all(status.eta is None or 0 <= status.eta < 60 for status in statuses)
    assert last.eta in (None, 0.0)
    assert (last.done.ok, last.done.rejected, last.shards_done) == (300, 0, len(plan.shards))
    assert last.done.output_tokens == sum(manifest.output_tokens for manifest in manifests.values())


def test_rates_and_what_is_left_are_told_as_long_as_an_engine_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = 1000.0
    monkeypatch.setattr("batchgen.drive.time", SimpleNamespace(monotonic=lambda: now))
    job = chaos_job(tmp_path, source={"count": 300})
    plan, seeds, store = planned(job)
    scheduler = Scheduler(plan.shards, 1)
    statuses: list[Status] = []
    fleet = LocalFleet(HostConfig(job, plan, store.location, 0))
    driver = Driver(scheduler, fleet, seeds, len(plan.shards), 0, Progress(), 1, statuses.append)
    scheduler.start()
    driver._show()
    assert (statuses[-1].tokens_per_second, statuses[-1].eta) == (0.0, None)
    scheduler.engine_ready(0, 16)
    driver._up[0] = Pulse(moved=now)
    for rows in (0, 50, 100):
        tokens = 12 * rows
        live = Progress(ok=rows, output_tokens=tokens + 60, ended_tokens=tokens, in_flight=32)
        driver._up[0].felt(live, now)
        driver._show()
        now += 10.0
    status = statuses[-1]
    assert (status.done.ok, status.rows_in_flight, status.tokens_per_second) == (100, 32, 60.0)
    assert status.eta == (300 * 12 - 1260) / 60, "tokens that are left: rows that are on their way have some of theirs"
    scheduler.engine_lost(0, "gone", machine=True)
    driver._up.clear()
    driver._show()
    assert (statuses[-1].engines_ready, statuses[-1].tokens_per_second, statuses[-1].eta) == (0, 0.0, None)


def test_an_engine_that_hangs_is_taken_for_dead_and_replaced(tmp_path: Path):
    script = {"hang_on": "stuck", "once_file": str(tmp_path / "hung")}
    job = chaos_job(
        tmp_path / "run",
        source={"rows": [{"instruction": "stuck" if i == 7 else f"row {i}"} for i in range(20)]},
        model={"path": "chaos", "engine": script},
        steps=[{"task": "text_generation"}],
    )
    manifests, plan, statuses = drive(job, stall_seconds=1.0)
    assert len(manifests) == len(plan.shards)
    assert any("taken for hung" in note for status in statuses for note in status.notes)
    ledger.record("engine hangs", 1, tmp_path / "run", 20)


def test_an_engine_that_writes_does_not_hang_however_long_a_completion_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("batchgen.drive.POLL_SECONDS", 0.05)
    monkeypatch.setattr("batchgen.engines.chaos.random.expovariate", lambda rate: 1 / rate)
    script = {"latency": 1.5, "tokens": 2000, "slots": 4}
    job = chaos_job(tmp_path, source={"count": 4}, shard_rows=4, model={"path": "chaos", "engine": script})
    manifests, plan, statuses = drive(job, stall_seconds=0.4)
    assert len(manifests) == len(plan.shards) == 1
    assert not any("taken for hung" in note for status in statuses for note in status.notes)
    rowless = [status for status in statuses if not status.done.ok and status.done.output_tokens]
    assert len({status.done.output_tokens for status in rowless}) > 3


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, 900),
        ({"sampling": {"max_tokens": 32_768}}, 3276.8),
        ({"sampling": {"max_tokens": None}}, 3276.8),
        ({"steps": [{"task": "magpie", "sampling": {"max_tokens": 20_000}}]}, 2000),
        ({"sampling": {"max_tokens": 32_768}, "stall_seconds": 60}, 60),
    ],
)
def test_a_completion_may_take_its_time_until_an_engine_counts_as_hung(tmp_path: Path, changes, seconds: float):
    assert stall_after(chaos_job(tmp_path, **changes)) == seconds


class RecordingFleet(LocalFleet):
    """Notes what its engines answer; the second one comes up when the first has all the work."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.answers: list[tuple[int, str]] = []
        RecordingFleet.last = self

    async def start(self, engine: int) -> int:
        await asyncio.sleep(0.05 * engine)
        return await super().start(engine)

    async def run(self, engine: int, work: Work) -> Answer:
        answer = await super().run(engine, work)
        self.answers.append((engine, answer.kind))
        return answer


def test_an_engine_that_comes_up_when_all_is_handed_out_takes_over_what_has_not_begun(tmp_path: Path):
    script = {"slots": 8, "latency": 0.1}
    job = chaos_job(tmp_path, source={"count": 48}, shard_rows=4, model={"path": "chaos", "engine": script})
    manifests, plan, _ = drive(job, engines=2, fleets=RecordingFleet)
    assert len(manifests) == len(plan.shards)
    answers = Counter(RecordingFleet.last.answers)
    # One that comes back when the first engine has less left than the second goes to the first again.
    assert answers[0, "returned"] >= answers[1, "done"] >= 4, "all were the first engine's"
    assert answers[0, "done"] + answers[1, "done"] == len(plan.shards)


class TwoAnswersAtOnce(LocalFleet):
    """Its first engine gives one shard back, and dies of the other in the same moment."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.first: asyncio.Event | None = None
        self.dead: list[int] = []
        TwoAnswersAtOnce.last = self

    async def run(self, engine: int, work: Work) -> Answer:
        if engine not in self._hosts:
            self.dead.append(engine)
        if engine > 0 or self.dead:
            return await super().run(engine, work)
        if self.first is None:
            self.first = asyncio.Event()
            await self.first.wait()
            return Answer("returned")
        self.first.set()
        await asyncio.sleep(0)
        return Answer("engine_dead", error="scripted")


def test_an_engine_that_dies_as_it_is_handed_a_shard_is_asked_for_nothing_more(tmp_path: Path):
    manifests, plan, statuses = drive(chaos_job(tmp_path, source={"count": 8}, shard_rows=4), fleets=TwoAnswersAtOnce)
    assert len(manifests) == len(plan.shards) == 2
    assert TwoAnswersAtOnce.last.dead == []
    notes = [note for status in statuses for note in status.notes]
    assert [note for note in notes if "killed" in note] == []
    assert any("scripted" in note for note in notes)


class ToldFleet(LocalFleet):
    """Notes what its engine is told, and how many shards it holds then."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.told: list[tuple[bool, int]] = []
        ToldFleet.last = self

    async def progress(self, engine: int, draining: bool = False) -> Progress | None:
        progress = await super().progress(engine, draining)
        worker = self._hosts[engine]._worker if engine in self._hosts else None
        if worker is not None:
            assert worker.in_flight.draining == draining
            self.told.append((draining, len(worker._held)))
        return progress


def test_an_engine_is_told_that_nothing_more_is_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.drive.POLL_SECONDS", 0.02)
    model = {"path": "chaos", "engine": {"latency": 0.02, "slots": 4}}
    drive(chaos_job(tmp_path, source={"count": 120}, shard_rows=8, model=model), fleets=ToldFleet)
    told = [draining for draining, _ in ToldFleet.last.told]
    assert told == sorted(told), "first not, then always"
    assert {False, True} == set(told)
    assert max(held for draining, held in ToldFleet.last.told if draining) > 1


class SilentFleet(LocalFleet):
    """Its first engine takes work and never says a word again, as a process does that is stopped."""

    async def progress(self, engine: int, draining: bool = False) -> Progress | None:
        return None if engine == 0 else await super().progress(engine, draining)

    async def run(self, engine: int, work: Work) -> Answer:
        return await (asyncio.Event().wait() if engine == 0 else super().run(engine, work))


def test_an_engine_that_does_not_even_say_how_far_it_is_is_replaced(tmp_path: Path):
    manifests, plan, statuses = drive(chaos_job(tmp_path, source={"count": 20}), stall_seconds=1.0, fleets=SilentFleet)
    assert len(manifests) == len(plan.shards)
    assert any("engine 0: nothing came of it for 1 s" in note for status in statuses for note in status.notes)


def test_the_model_whose_engine_does_not_start_is_named_where_there_are_several(tmp_path: Path):
    again = {"input_mappings": {"instruction": "generation"}, "output_mappings": {"generation": "again"}}
    answer = {"task": "text_generation"}
    broken = {"path": "chaos", "engine": {"start_failures": True}}
    for model, judge, name in (({"path": "chaos"}, broken, r"models\.judge: "), (broken, {"path": "chaos"}, "")):
        job = chaos_job(
            tmp_path,
            source={"rows": [{"instruction": "a"}]},
            model=model,
            models={"judge": judge},
            steps=[answer, {**answer, **again, "model": "judge"}],
        )
        with pytest.raises(EngineStartError, match=rf": {name}chaos: this engine never starts"):
            drive(job)


def test_an_engine_that_hangs_as_it_starts_is_replaced_and_three_in_a_row_end_the_run(tmp_path: Path):
    script = {"start_hangs": True, "once_file": str(tmp_path / "hung")}
    job = chaos_job(tmp_path / "run", source={"count": 20}, model={"path": "chaos", "engine": script})
    manifests, plan, statuses = drive(job, start_seconds=0.3)
    assert len(manifests) == len(plan.shards)
    assert any("was not up after" in note for status in statuses for note in status.notes)
    ledger.record("engine hangs as it starts", 1, tmp_path / "run", 20)

    script = {"start_hangs": True}
    job = chaos_job(tmp_path / "other", source={"count": 20}, model={"path": "chaos", "engine": script})
    with pytest.raises(EngineStartError, match=r"failed to start 3 times in a row.*start_seconds"):
        drive(job, start_seconds=0.1)


class HalfBrokenFleet(LocalFleet):
    """Two places, in one of which no engine ever starts."""

    tries = 0

    async def start(self, engine: int) -> int:
        if engine:
            HalfBrokenFleet.tries += 1
            raise EngineStartError("no driver", final=engine % 2 == 0)
        return await super().start(engine)


def test_a_machine_on_which_no_engine_starts_ends_no_run_in_which_others_work(tmp_path: Path):
    job = chaos_job(tmp_path, source={"count": 200}, shard_rows=8, model={"path": "chaos", "engine": {"latency": 0.01}})
    manifests, plan, statuses = drive(job, engines=2, fleets=HalfBrokenFleet)
    assert len(manifests) == len(plan.shards) == 25
    # Three times in a row, and at most once more for every four shards that the other has done: some end together.
    assert 3 < HalfBrokenFleet.tries <= 9
    assert max(status.engines_ready for status in statuses) == 1
    ledger.record("machine where no engine starts, beside one that works", HalfBrokenFleet.tries, tmp_path, 200)


class FirstPlaceBrokenFleet(LocalFleet):
    """Two places; in the one that an engine gets first where both are free, none ever starts."""

    broken: int | None = None
    tries = 0

    async def place(self, engine: int) -> None:
        if self.broken is None:
            self.broken = engine

    async def start(self, engine: int) -> int:
        if engine != self.broken:
            return await super().start(engine)
        FirstPlaceBrokenFleet.tries += 1
        await asyncio.sleep(0.1)
        self.broken = None
        raise EngineStartError("no driver")


def test_the_last_shard_alone_gets_an_engine_beside_a_broken_place(tmp_path: Path):
    manifests, plan, _ = drive(chaos_job(tmp_path, source={"count": 4}), engines=2, fleets=FirstPlaceBrokenFleet)
    assert len(manifests) == len(plan.shards) == 1
    assert FirstPlaceBrokenFleet.tries in (1, 2)


@pytest.mark.parametrize(("error", "ends"), [(EngineStopped("told to end"), False), (EngineDead("XID 79"), True)])
def test_an_engine_that_somebody_ends_is_no_crash(
    tmp_path: Path, error: EngineDead, ends: bool, monkeypatch: pytest.MonkeyPatch
):
    generate, ended = ChaosEngine.generate, [0]

    async def ended_now_and_then(self, request):
        done = len(list((tmp_path / "commits").glob("*/0000.json")))
        if done >= ended[-1] + 3:
            ended.append(done)
            raise error
        return await generate(self, request)

    monkeypatch.setattr(ChaosEngine, "generate", ended_now_and_then)
    model = {"path": "chaos", "engine": {"slots": 4, "latency": 0.005}}
    job = chaos_job(tmp_path, source={"count": 100}, shard_rows=4, model=model, max_engine_deaths=3)
    if ends:
        with pytest.raises(EngineDead, match="3 engines died, which is as many as a run may lose"):
            run(job, in_process=True)
    else:
        assert run(job, in_process=True).progress.ok == 100
        assert len(ended) > 4


class DeadlyFleet(LocalFleet):
    """Two places; engines come up in both, and die of whatever they are given in one of them."""

    deaths = 0

    async def run(self, engine: int, work: Work) -> Answer:
        if engine == 0:
            return await super().run(engine, work)
        await asyncio.sleep(0.005)
        DeadlyFleet.deaths += 1
        return Answer("engine_dead", error="XID 79")


def test_a_machine_that_kills_its_engines_costs_no_row(tmp_path: Path):
    job = chaos_job(tmp_path, source={"count": 400}, shard_rows=8, model={"path": "chaos", "engine": {"latency": 0.01}})
    manifests, plan, _ = drive(job, engines=2, fleets=DeadlyFleet)
    assert len(manifests) == len(plan.shards) == 50
    assert sum(manifest.ok for manifest in manifests.values()) == 400, "no row is taken for the killer"
    assert DeadlyFleet.deaths > 4
    ledger.record("machine that kills its engines, beside one that works", DeadlyFleet.deaths, tmp_path, 400)


class TrialFleet(LocalFleet):
    """Notes how many requests engines have served when they have been tried out."""

    served: ClassVar[list[int]] = []

    async def run(self, engine: int, work: Work) -> Answer:
        answer = await super().run(engine, work)
        if work.probe:
            chaos = self._hosts[engine]._engines[None]
            assert isinstance(chaos, ChaosEngine)
            self.served.append(chaos._served)
        return answer


def test_an_engine_that_is_tried_out_does_not_take_committed_rows_for_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They bring the texts that they brought before, on the chaos engine, and would all end at the gate."""
    monkeypatch.setattr("batchgen.drive.POLL_SECONDS", 0.01)
    script = {"slots": 2, "latency": 0.02, "crash_after": 60, "once_file": str(tmp_path / "crashed")}
    job = chaos_job(
        tmp_path / "run",
        source={"rows": [{"instruction": f"row {i}"} for i in range(80)]},
        model={"path": "chaos", "engine": script},
        steps=[
            {"task": "text_generation", "output_mappings": {"generation": "draft"}},
            {"task": "drop_duplicates", "input_mappings": {"instruction": "draft"}},
            {"task": "text_generation", "input_mappings": {"instruction": "draft"}},
        ],
        shard_rows=8,
    )
    drive(job, fleets=TrialFleet)
    assert TrialFleet.served == [2 * 8], "two calls for each of eight rows"


@pytest.mark.parametrize("fails", [False, True], ids=["hangs", "fails"])
def test_a_store_that_hangs_or_fails_as_earlier_rows_are_read_keeps_no_run_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
):
    monkeypatch.setattr("batchgen.known._READ_SECONDS", 0.1)
    go_on = threading.Event()

    def texts() -> Iterator[Texts]:
        yield (b"16 bytes of text",)
        if fails:
            raise ValueError("what is wrong with the row's text")
        go_on.wait()

    job = chaos_job(tmp_path, source={"count": 20})
    plan, seeds, store = planned(job)
    statuses: list[Status] = []
    scheduler, fleet = Scheduler(plan.shards, 1), LocalFleet(HostConfig(job, plan, store.location, 0))
    driver = Driver(scheduler, fleet, seeds, len(plan.shards), 0, Progress(), 1, statuses.append, texts_before=texts())
    asyncio.run(asyncio.wait_for(driver.run(), 30))
    go_on.set()
    assert len(committed(store, plan)) == len(plan.shards)
    notes = [note for status in statuses for note in status.notes]
    assert notes == ["duplicates of rows from before are left to the merger: ValueError"] * fails


def test_an_engine_that_waits_for_room_is_told_and_does_not_count_as_hung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def full_for_a_while(*_: object) -> None:
        await asyncio.sleep(0.5)

    monkeypatch.setattr(LocalFleet, "place", full_for_a_while)
    monkeypatch.setattr("batchgen.drive._PLACE_SECONDS", 0.1)
    manifests, plan, statuses = drive(chaos_job(tmp_path), start_seconds=0.3)
    assert len(manifests) == len(plan.shards)
    assert any("waits for room" in note for status in statuses for note in status.notes)


class OneHasRoom(LocalFleet):
    """Its second engine finds no place, and fails as the fleet's end takes its actor away."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._taken_away = asyncio.Event()

    async def place(self, engine: int) -> None:
        if engine == 1:
            await self._taken_away.wait()
            raise EngineStartError("the engine's process died")
        await super().place(engine)

    async def close(self) -> None:
        self._taken_away.set()
        await asyncio.sleep(0.01)
        await super().close()


def test_an_engine_that_still_waits_for_room_as_a_run_ends_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    manifests, plan, statuses = drive(chaos_job(tmp_path), engines=2, fleets=OneHasRoom)
    assert len(manifests) == len(plan.shards)
    assert caplog.messages == []
    assert [note for status in statuses for note in status.notes] == []


def deadly(tmp_path: Path, rows: int, *killers: int, **engine):
    """A job in which some rows kill every engine that they run on."""
    return chaos_job(
        tmp_path,
        source={"rows": [{"instruction": "deadly" if i in killers else f"row {i}"} for i in range(rows)]},
        model={"path": "chaos", "engine": {"crash_on": "deadly", **engine}},
        steps=[{"task": "text_generation"}],
    )


@pytest.mark.parametrize("killers", [(3,), (0,), (63,), (9, 10), (5, 40, 41)])
@pytest.mark.parametrize("engines", [1, 3])
def test_rows_that_kill_engines_are_quarantined_and_all_others_are_generated(
    tmp_path: Path, killers: tuple[int, ...], engines: int
):
    job = deadly(tmp_path, 64, *killers)
    manifests, plan, _ = drive(job, engines=engines)
    rows = [row for i, m in manifests.items() for row in read_shard(LocalStore(job.output), plan, m).to_pylist()]
    assert sorted(row["row_index"] for row in rows) == list(range(64))
    assert {row["row_index"]: row["reason"] for row in rows if row["outcome"] == "rejected"} == dict.fromkeys(
        killers, "engine_crash"
    )
    ledger.record("row that kills its engine", len(killers), tmp_path, 64)


def test_a_row_that_hangs_engines_is_quarantined_too(tmp_path: Path):
    job = chaos_job(
        tmp_path,
        source={"rows": [{"instruction": "stuck" if i == 2 else f"row {i}"} for i in range(4)]},
        model={"path": "chaos", "engine": {"hang_on": "stuck"}},
        steps=[{"task": "text_generation"}],
    )
    manifests, _, _ = drive(job, stall_seconds=0.6)
    assert manifests[0].reasons == {"engine_crash": 1}
    ledger.record("row that hangs its engine", 1, tmp_path, 4)


def test_a_row_that_hangs_while_all_others_end_costs_three_engines(tmp_path: Path):
    job = chaos_job(
        tmp_path,
        source={"rows": [{"instruction": "stuck" if i == 77 else f"row {i}"} for i in range(256)]},
        shard_rows=128,
        model={"path": "chaos", "engine": {"hang_on": "stuck", "slots": 8}},
        steps=[{"task": "text_generation"}],
    )
    manifests, plan, statuses = drive(job, stall_seconds=1.0)
    rows = [row for m in manifests.values() for row in read_shard(LocalStore(job.output), plan, m).to_pylist()]
    assert {row["row_index"]: row["reason"] for row in rows if row["outcome"] == "rejected"} == {77: "engine_crash"}
    assert len({row["row_index"] for row in rows}) == 256
    notes = [note for status in statuses for note in status.notes]
    # One more where a slow machine takes an engine for hung that only waits for its disk; 11 when the shard is halved.
    assert sum("taken for hung (seed rows that have not ended: 77)" in note for note in notes) in (3, 4)
    ledger.record("row that hangs its engine", 1, tmp_path, 256)


def test_a_run_that_loses_too_many_engines_fails_with_a_list_of_them(tmp_path: Path):
    job = Job.of({**deadly(tmp_path, 8, *range(8)).tree(), "max_engine_deaths": 7})
    with pytest.raises(
        EngineDead, match=r"(?s)7 engines died.*max_engine_deaths.*engine 6, with shard 000000 \(seed rows"
    ) as caught:
        run(job, in_process=True)
    assert caught.value.exit_code == 1


def test_a_store_that_fails_ends_the_run_resumable_and_blames_no_row(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "attempts").write_text("in the way")
    with pytest.raises(Stopped, match=r"cannot write.* it has been like this for 1 s \(outage_seconds\)") as caught:
        drive(chaos_job(tmp_path / "run", outage_seconds=1))
    assert caught.value.exit_code == 75
    assert issubclass(StoreError, Stopped)


def test_a_run_that_is_to_stop_waits_for_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.outage._PAUSES", (60.0,))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "attempts").write_text("in the way")

    def watch(status: Status) -> None:
        if any("waits" in note for note in status.notes):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match="interrupted"):
        run(chaos_job(tmp_path / "run"), watch=watch, in_process=True)


def test_the_hangups_of_kernel_and_shell_count_once_even_together(tmp_path: Path):
    script = {"slots": 8, "latency": 0.4}
    job = chaos_job(tmp_path / "run", source={"count": 400}, shard_rows=8, model={"path": "chaos", "engine": script})
    before = 0

    def watch(status: Status) -> None:
        nonlocal before
        if status.shards_done and not before:
            before = status.shards_done
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)

    with pytest.raises(Stopped, match="SIGHUP"):
        run(job, watch=watch, in_process=True)
    attempts = {path.parent.name for path in (tmp_path / "run").glob("attempts/*/*")}
    commits = {path.parent.name for path in (tmp_path / "run").glob("commits/*/0000.json")}
    assert attempts == commits
    assert before < len(commits) < 50, "what was in flight has been committed, and no more"


def test_a_store_that_is_away_for_a_while_is_waited_for_and_its_engine_does_not_count_as_hung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("batchgen.outage._PAUSES", (0.1,))
    way = tmp_path / "run" / "attempts"
    way.parent.mkdir()
    way.write_text("in the way")

    class Watched(RecordingFleet):
        async def progress(self, engine: int, draining: bool = False) -> Progress | None:
            progress = await super().progress(engine, draining)
            if progress is not None and progress.waiting:
                self.waited = getattr(self, "waited", 0) + 1
                if self.waited == 3:
                    way.unlink()
                # The store's own reasons name another attempt each time.
                return replace(progress, waiting="cannot write")
            return progress

    manifests, plan, statuses = drive(chaos_job(tmp_path / "run"), stall_seconds=0.5, fleets=Watched)
    assert len(manifests) == len(plan.shards)
    notes = [note for status in statuses for note in status.notes]
    assert [note for note in notes if "engine 0 waits: cannot write" in note] == notes
    assert {kind for _, kind in RecordingFleet.last.answers} == {"done"}
    ledger.record("store away for a while", 1, tmp_path / "run", 40)


class CutOffFleet(RecordingFleet):
    """Two machines; on the second one, which is up first, the run's folder is there and cannot be written."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._second_up = asyncio.Event()

    async def start(self, engine: int) -> int:
        if engine == 0:
            await self._second_up.wait()
            return await super().start(engine)
        here = Path(self._config.store)
        there = here.parent / "stale"
        if not there.exists():
            there.mkdir()
            shutil.copy(here / PLAN_KEY, there)
            (there / "attempts").write_text("in the way")
        host = EngineHost(replace(self._config, store=str(there)))
        slots = await host.start()
        self._hosts[engine], self._running[engine] = host, set()
        self._second_up.set()
        return slots


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outages are looked at often; what waits says so for five seconds more than `outage_seconds`."""
    monkeypatch.setattr("batchgen.outage._PAUSES", (0.1,) * 100 + (5.0,))
    monkeypatch.setattr("batchgen.drive.POLL_SECONDS", 0.1)


def store_job(folder: Path, shards: int, outage_seconds: float, latency: float = 0.05) -> Job:
    script = {"slots": 8, "latency": latency}
    return chaos_job(
        folder,
        source={"count": 8 * shards},
        shard_rows=8,
        model={"path": "chaos", "engine": script},
        outage_seconds=outage_seconds,
    )


@pytest.mark.usefixtures("impatient")
def test_a_store_that_one_machine_alone_does_not_reach_ends_no_run(tmp_path: Path):
    manifests, plan, statuses = drive(store_job(tmp_path / "run", 50, 0.5), engines=2, fleets=CutOffFleet)
    assert len(manifests) == len(plan.shards)
    answers = Counter(RecordingFleet.last.answers)
    assert answers[0, "done"] == len(plan.shards)
    cut_off = sorted(engine for engine, kind in answers if kind == "unavailable")
    assert len(cut_off) > 1, "the place was tried again"
    notes = " ".join(note for status in statuses for note in status.notes)
    assert "it has been like this for 0.5 s (outage_seconds)" in notes
    ledger.record("store out of reach of one machine, beside one that works", len(cut_off), tmp_path / "run", 400)


class LateFleet(CutOffFleet):
    """The machine that works comes up when all others have what they can hold, and nothing is given back."""

    others = 1

    async def start(self, engine: int) -> int:
        while engine == 0 and sum(bool(host.progress.waiting) for host in self._hosts.values()) < self.others:
            await asyncio.sleep(0.01)
        return await super().start(engine)

    async def recall(self, engine: int, shard: int) -> bool:
        return False


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("engines", (2, 4))
def test_so_it_is_where_the_others_had_nothing_to_do_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: int
):
    """All engines but the first one are on the machine that does not reach it, and hold all shards."""
    monkeypatch.setattr(LateFleet, "others", engines - 1)
    # Of such shards an engine holds as many as make up its rows per slot.
    job = store_job(tmp_path / "run", HELD_ROWS_PER_SLOT * (engines - 1), 2.0)
    manifests, plan, _ = drive(job, engines=engines, fleets=LateFleet)
    assert len(manifests) == len(plan.shards)
    answers = Counter(RecordingFleet.last.answers)
    assert answers[0, "done"] == len(plan.shards)
    assert {engine for engine, kind in answers if kind == "unavailable"} >= set(range(1, engines))


@pytest.mark.usefixtures("impatient")
def test_so_it_is_again_and_again_where_shards_take_longer_than_an_outage(tmp_path: Path):
    manifests, plan, _ = drive(store_job(tmp_path / "run", 16, 0.2, latency=0.4), engines=2, fleets=CutOffFleet)
    assert len(manifests) == len(plan.shards)
    assert len({engine for engine, kind in RecordingFleet.last.answers if kind == "unavailable"}) > 1


class FailedBefore(CutOffFleet):
    """The machine that works fails at a shard before the other one's outage, and takes its time for all others."""

    async def run(self, engine: int, work: Work) -> Answer:
        if engine:
            return await super().run(engine, work)
        if not any(kind == "failed" for _, kind in self.answers):
            self.answers.append((engine, "failed"))
            return Answer("failed", error="OSError in somewhere:1")
        await asyncio.sleep(3)
        return await super().run(engine, work)


@pytest.mark.usefixtures("impatient")
def test_a_failure_of_another_kind_is_no_try_to_take_over(tmp_path: Path):
    job = store_job(tmp_path / "run", 2 * HELD_ROWS_PER_SLOT, 0.5)
    manifests, plan, _ = drive(job, engines=2, fleets=FailedBefore)
    assert len(manifests) == len(plan.shards)
    assert (1, "unavailable") in RecordingFleet.last.answers


class GoneAfterwards(CutOffFleet):
    """What the second machine does not reach goes away for the first one, too, a moment later.

    More than the 0.1 seconds between two tries, so that the second one's patience ends first.
    """

    waits_since = float("inf")

    async def run(self, engine: int, work: Work) -> Answer:
        answer = await super().run(engine, work)
        attempts = Path(self._config.store) / "attempts"
        if answer.kind == "done" and attempts.is_dir() and 1 in self._hosts and self._hosts[1].progress.waiting:
            self.waits_since = min(self.waits_since, time.monotonic())
            if time.monotonic() - self.waits_since > 0.3:
                attempts.rename(attempts.parent / "kept")
                attempts.write_text("in the way")
        return answer


@pytest.mark.usefixtures("impatient")
def test_commits_at_the_beginning_of_an_outage_do_not_say_that_it_is_one_machine_s(tmp_path: Path):
    # The second machine's failure ends the run: it is not set aside, for the first one's to do so.
    with pytest.raises(Stopped, match=r"/stale/.*outage_seconds"):
        drive(store_job(tmp_path / "run", 400, 5.0), engines=2, fleets=GoneAfterwards)
    assert Counter(RecordingFleet.last.answers)[0, "done"] > 0


class GoingAway(RecordingFleet):
    """The store goes away for all once `after` shards are done; the last shard begins then, at the earliest."""

    after = 5

    async def run(self, engine: int, work: Work) -> Answer:
        while work.shard is self._config.plan.shards[-1] and self.done < self.after:
            await asyncio.sleep(0.02)
        answer = await super().run(engine, work)
        attempts = Path(self._config.store) / "attempts"
        if self.done == self.after and attempts.is_dir():
            attempts.rename(attempts.parent / "kept")
            attempts.write_text("in the way")
        return answer

    @property
    def done(self) -> int:
        return sum(kind == "done" for _, kind in self.answers)


@pytest.mark.usefixtures("impatient")
def test_a_store_that_goes_away_for_all_still_ends_the_run(tmp_path: Path):
    with pytest.raises(Stopped, match="outage_seconds"):
        drive(store_job(tmp_path / "run", 50, 0.6), engines=3, fleets=GoingAway)
    kinds = Counter(kind for _, kind in RecordingFleet.last.answers)
    assert {engine for engine, kind in RecordingFleet.last.answers if kind == "unavailable"} == {0, 1, 2}
    assert set(kinds) <= {"done", "unavailable", "returned"}, "none was given up with what it had begun"


@pytest.mark.usefixtures("impatient")
def test_one_more_engine_of_many_that_are_idle_finds_out_that_it_is_away_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(GoingAway, "after", 3)
    with pytest.raises(Stopped, match="outage_seconds"):
        drive(store_job(tmp_path / "run", 4, 1.0), engines=4, fleets=GoingAway)
    tried = [engine for engine, kind in RecordingFleet.last.answers if kind == "unavailable"]
    assert len(tried) == len(set(tried)) == 2


class FailingFleet(RecordingFleet):
    """Two machines, on one of which every shard fails at once while its engines are well."""

    async def run(self, engine: int, work: Work) -> Answer:
        if engine == 0:
            return await super().run(engine, work)
        await asyncio.sleep(0.005)
        self.answers.append((engine, "failed"))
        return Answer("failed", error="OSError in somewhere:1")


def test_a_machine_on_which_every_shard_fails_ends_no_run_in_which_others_work(tmp_path: Path):
    job = chaos_job(tmp_path, source={"count": 400}, shard_rows=8, model={"path": "chaos", "engine": {"latency": 0.01}})
    manifests, plan, _ = drive(job, engines=2, fleets=FailingFleet)
    assert len(manifests) == len(plan.shards) == 50
    failed = sum(kind == "failed" for _, kind in RecordingFleet.last.answers)
    assert 4 < failed < 100, "a shard is not handed to it without end, on a busy machine either"
    ledger.record("machine on which every shard fails, beside one that works", failed, tmp_path, 400)


def test_a_store_that_is_away_when_the_rows_are_merged_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.outage._PAUSES", (0.05,))
    monkeypatch.setattr("batchgen.outage.TELL_SECONDS", 0.1)
    way = tmp_path / "run" / "versions"
    way.parent.mkdir()
    way.write_text("in the way")
    waits: list[Status] = []

    def watch(status: Status) -> None:
        waits.extend([status] if any("the merge waits: " in note for note in status.notes) else [])
        if len(waits) == 2:
            way.unlink(missing_ok=True)

    job = chaos_job(tmp_path / "run", outage_seconds=20)
    assert run(job, watch=watch, in_process=True).version.read == 40
    assert len(waits) == 2
    assert (waits[0].done.ok, waits[0].shards_done) == (40, waits[0].shards)
    assert waits[0].engines == waits[0].engines_ready == 0, "none is starting"
    way.rename(tmp_path / "kept")
    way.write_text("in the way")
    with pytest.raises(StoreError, match="cannot write"):
        run(chaos_job(tmp_path / "run", outage_seconds=0.2, merge={"exact": False}), in_process=True)
    ledger.record("store away when the rows are merged", 1, tmp_path / "run", 40)


@pytest.mark.parametrize(("other", "found"), [(None, "is not there"), (50, "holds another run")])
def test_an_engine_that_does_not_find_the_run_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: int | None, found: str
):
    monkeypatch.setattr("batchgen.host._VISIBLE_SECONDS", 0.0)
    if other:
        planned(chaos_job(tmp_path / "elsewhere", source={"count": other}))
    with pytest.raises(EngineStartError, match=f"elsewhere {found} on the machine of .* that all machines share"):
        drive(chaos_job(tmp_path / "run"), store=str(tmp_path / "elsewhere"))


def test_an_engine_waits_until_it_sees_the_run(tmp_path: Path):
    job = chaos_job(tmp_path / "run")
    plan, _, store = planned(job)
    hidden = tmp_path / "run" / ".plan.json"
    store.path("plan.json").rename(hidden)

    async def start() -> int:
        starting = asyncio.create_task(EngineHost(HostConfig(job, plan, store.location, 0)).start())
        await asyncio.sleep(0.1)
        assert not starting.done()
        hidden.rename(store.path("plan.json"))
        return await starting

    assert asyncio.run(start()) == 16


def test_an_engine_that_starts_waits_for_a_store_that_is_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.outage._PAUSES", (0.1,))
    monkeypatch.setattr("batchgen.drive.POLL_SECONDS", 0.05)
    job = chaos_job(tmp_path / "run")
    _, _, store = planned(job)
    way, kept = Path(store.path(PLAN_KEY)), tmp_path / "kept"

    def close() -> None:
        way.rename(kept)
        way.mkdir()

    class Closed(LocalFleet):
        async def place(self, engine: int) -> None:
            close()

        async def progress(self, engine: int, draining: bool = False) -> Progress | None:
            progress = await super().progress(engine, draining)
            if progress is not None and progress.waiting and kept.exists() and self._config.job.outage_seconds > 1:
                way.rmdir()
                kept.rename(way)
            return progress

    manifests, plan, statuses = drive(job, fleets=Closed)
    assert len(manifests) == len(plan.shards)
    notes = [note for status in statuses for note in status.notes]
    assert [note.partition(": cannot read ")[0] for note in notes] == ["engine 0 waits"]
    ledger.record("store away as an engine starts", 1, tmp_path / "run", 40)
    with pytest.raises(EngineStartError, match=r"^cannot read .* it has been like this for 0\.3 s \(outage_seconds\)"):
        drive(chaos_job(tmp_path / "run", outage_seconds=0.3), fleets=Closed)


def test_a_download_that_moves_is_told_and_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.drive.POLL_SECONDS", 0.05)
    coming: list[str] = []

    async def fetch(weights: Weights) -> None:
        coming.append("it is being downloaded")
        await asyncio.sleep(4.0)
        coming.clear()

    monkeypatch.setattr(Weights, "fetch", fetch)
    monkeypatch.setattr(Weights, "reason", property(lambda weights: "".join(coming)))
    manifests, plan, statuses = drive(chaos_job(tmp_path / "run"), start_seconds=2.0)
    assert len(manifests) == len(plan.shards)
    assert {note for status in statuses for note in status.notes} == {"engine 0 waits: it is being downloaded"}
    monkeypatch.setattr(Weights, "reason", "")
    with pytest.raises(EngineStartError, match="not up after 1 s: taken for hung"):
        drive(chaos_job(tmp_path / "still"), start_seconds=1.0)


def test_servers_are_asked_before_weights_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    async def fetch(weights: Weights) -> None:
        asked.append(f"weights of {weights._spec.path}")

    async def refuse(server: OpenAIEngine) -> None:
        asked.append("server")
        raise EngineUnavailable("it does not let us in", final=True)

    monkeypatch.setattr(Weights, "fetch", fetch)
    monkeypatch.setattr(OpenAIEngine, "start", refuse)
    judge = {"path": "served", "backend": "openai", "engine": {"base_url": "http://127.0.0.1:9/v1"}}
    steps = [
        {"task": "magpie"},
        {"task": "text_generation", "model": "another", "output_mappings": {"generation": "second"}},
        {"task": "text_generation", "model": "judge", "output_mappings": {"generation": "verdict"}},
    ]
    job = chaos_job(tmp_path, models={"another": {"path": "chaos"}, "judge": judge}, steps=steps)
    plan, _, store = planned(job)
    with pytest.raises(EngineStartError, match="it does not let us in"):
        asyncio.run(EngineHost(HostConfig(job, plan, store.location, 0)).start())
    assert asked == ["weights of served", "server"]


def test_a_defect_of_a_fleet_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def broken(*_: object) -> None:
        raise LookupError("a defect")

    monkeypatch.setattr(LocalFleet, "run", broken)
    with pytest.raises(LookupError, match="a defect"):
        drive(chaos_job(tmp_path))


def test_a_run_in_which_every_row_is_rejected_is_no_success(tmp_path: Path):
    job = chaos_job(
        tmp_path,
        source={"rows": [{"instruction": "x"}]},
        model={"path": "chaos", "engine": {"empty_on": "x"}},
        steps=[{"task": "text_generation"}],
    )
    message = rf"all 1 rows were rejected \(empty_completion 1\).* batchgen rejected {tmp_path}"
    with pytest.raises(BatchgenError, match=message):
        run(job, in_process=True)


@pytest.mark.parametrize("good", [None, 0])
@pytest.mark.parametrize("limit", [40, None])
def test_a_run_that_begins_with_rejected_rows_alone_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, good: int | None
):
    monkeypatch.setattr("batchgen.drive.POLL_SECONDS", 0.05)
    rows = [{"instruction": "fine" if number == good else f"x {number}"} for number in range(400)]
    job = chaos_job(
        tmp_path,
        source={"rows": rows},
        shard_rows=10,
        model={"path": "chaos", "engine": {"empty_on": "x", "latency": 0.02, "slots": 4}},
        steps=[{"task": "text_generation"}],
        fail_after_rejected=limit,
    )
    if good is not None:
        assert run(job, in_process=True).progress.rejected == 399
        return
    rows_at_end = []
    for _ in range(2):  # the same command goes on with as many again
        with pytest.raises(BatchgenError, match=r"rejected \(empty_completion \d+\)") as caught:
            run(job, in_process=True)
        assert ("all of the first" in str(caught.value)) == (limit is not None)
        store = LocalStore(job.output)
        rows_at_end.append(sum(manifest.rejected for manifest in committed(store, read_plan(store)).values()))
    if limit is None:
        assert rows_at_end == [400, 400]
    else:
        assert 0 < rows_at_end[0] < rows_at_end[1] < 400
        assert f"(fail_after_rejected: {limit}). To look at them: batchgen rejected {job.output}" in str(caught.value)


def cut_job(folder: Path, **changes: Any) -> Job:
    """One whose texts are all cut at their length, but those of prompts with "fine"; every tenth is empty."""
    rows = [{"instruction": f"x {number}" + " empty" * (number % 10 == 0)} for number in range(400)]
    engine = {"truncate_on": "x", "empty_on": "empty", "latency": 0.02, "slots": 4}
    given = {"source": {"rows": rows}, "shard_rows": 10, "steps": [{"task": "text_generation"}], **changes}
    return chaos_job(folder, model={"path": "chaos", "engine": engine}, fail_after_rejected=40, **given)


def test_a_run_whose_texts_are_all_cut_gives_up_where_the_merger_would_drop_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("batchgen.drive.POLL_SECONDS", 0.05)
    with pytest.raises(BatchgenError) as caught:
        run(cut_job(tmp_path / "a"), in_process=True)
    told = re.fullmatch(
        r"all of the first (\d+) rows were cut at max_tokens or rejected \(\d+\), and the merger drops such rows; "
        r"more are not tried \(fail_after_rejected: 40\): raise sampling.max_tokens \(within max_model_len\), or "
        r"keep rows that were cut with merge.drop_truncated=false",
        str(caught.value),
    )
    assert told is not None
    assert 40 <= int(told[1]) < 400
    status = LocalStore(tmp_path / "a")
    # Some of those rows are of shards that had not ended.
    assert 0 < sum(manifest.rows for manifest in committed(status, read_plan(status)).values()) < 400


@pytest.mark.parametrize(
    "changes",
    [
        {"merge": {"drop_truncated": False, "near": False}},
        {"source": {"rows": [{"instruction": "whole" if number == 0 else "x"} for number in range(400)]}},
    ],
)
def test_a_run_with_texts_that_are_kept_goes_on(tmp_path: Path, changes: dict[str, Any]):
    progress = run(cut_job(tmp_path, **changes), in_process=True).progress
    assert progress.ok + progress.rejected == 400


def test_where_a_row_becomes_several_of_which_some_may_be_whole_a_run_goes_on(tmp_path: Path):
    steps = [{"task": "text_generation", "num_generations": 2}]
    with pytest.raises(BatchgenError, match="the merge left out all 800 rows"):
        run(cut_job(tmp_path, steps=steps), in_process=True)


def test_odd_seed_rows_are_rejected_alone_or_generated(tmp_path: Path):
    texts = ["plain", "", "nul \0 inside", "x" * 150_000, " ", "\u2028", "plain too"]
    job = chaos_job(
        tmp_path, source={"rows": [{"instruction": text} for text in texts]}, steps=[{"task": "text_generation"}]
    )
    manifests, plan, _ = drive(job)
    rows = [row for i, m in manifests.items() for row in read_shard(LocalStore(job.output), plan, m).to_pylist()]
    outcomes = {row["row_index"]: row["reason"] or row["outcome"] for row in rows}
    assert outcomes == {
        0: "ok",
        1: "empty_input",
        2: "ok",
        3: "prompt_too_long",
        4: "empty_input",
        5: "empty_input",
        6: "ok",
    }


def test_a_watch_that_raises_ends_the_run_and_the_engines(tmp_path: Path):
    job = chaos_job(tmp_path, source={"count": 20}, model={"path": "chaos", "engine": {"latency": 30}})

    def watch(status: Status) -> None:
        raise ZeroDivisionError("the caller's own")

    with pytest.raises(ZeroDivisionError, match="the caller's own"):
        run(job, watch=watch, in_process=True)


def in_a_loop(function: Callable[[], Any]) -> Any:
    """Calls a function where an event loop runs already, as the cells of a notebook do."""

    async def cell() -> Any:
        # asyncio.run has a handler of its own for SIGINT; a notebook's loop has not.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return function()
        finally:
            signal.signal(signal.SIGINT, before)

    return asyncio.run(cell())


def test_a_run_in_a_notebook(tmp_path: Path):
    job = chaos_job(tmp_path, source={"count": 20})
    assert in_a_loop(lambda: run(job, in_process=True)).progress.ok == 20


def test_a_notebook_s_interrupt_commits_what_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = {"latency": 0.05, "slots": 8}
    job = chaos_job(tmp_path, source={"count": 2000}, shard_rows=8, model={"path": "chaos", "engine": script})
    monkeypatch.setattr("batchgen.host.LocalFleet", RecordingFleet)
    interrupted = threading.Event()

    def watch(status: Status) -> None:
        if status.shards_done and not interrupted.is_set():
            interrupted.set()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match="interrupted"):
        in_a_loop(lambda: run(job, watch=watch, in_process=True))
    plan, _, store = planned(job)
    answers = Counter(kind for _, kind in RecordingFleet.last.answers)
    assert 0 < len(committed(store, plan)) == answers["done"] < len(plan.shards)
    assert answers["returned"], "48 rows are held, 16 are in flight"


def test_shards_that_other_machines_committed_may_come_in_sight_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """NFS keeps what a folder held for up to a minute: a run that has just ended is not to take that for a loss."""
    looked, hidden = [], 2
    see = LocalStore.list

    def late(store: LocalStore, prefix: str) -> Iterator[str]:
        found = list(see(store, prefix))
        if prefix == "commits" and found:
            looked.append(len(found))
            found = found[:-1] if len(looked) <= hidden else found
        return iter(found)

    monkeypatch.setattr(LocalStore, "list", late)
    monkeypatch.setattr("batchgen.outage._PAUSES", (0.05,))
    notes: list[str] = []
    job = chaos_job(tmp_path / "run", outage_seconds=20)
    assert run(job, in_process=True, watch=lambda status: notes.extend(status.notes)).version.read == 40
    unseen = f"1 shard was committed to {tmp_path / 'run'}, where this machine does not see them"
    assert [untimed(note) for note in notes] == [f"the merge waits: {unseen}"]
    looked.clear()
    hidden = 10**9
    with pytest.raises(StoreError, match=re.escape(unseen)):
        run(chaos_job(tmp_path / "run", outage_seconds=0), in_process=True)
