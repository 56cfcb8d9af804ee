"""The worker: rows through steps, fan-out, rejections, and counts that add up."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from batchgen import Result, run
from batchgen.commit import committed, new_attempt, read_shard
from batchgen.engines.base import Completion, EngineSpec, Request
from batchgen.engines.chaos import ChaosEngine
from batchgen.errors import EngineDead
from batchgen.generate import Done, Worker
from batchgen.job import Job
from batchgen.plan import Plan
from batchgen.seeds import Seeds
from batchgen.step import differing_columns
from tests.helpers import ScriptedEngine, chaos_job, planned, worker_on

CHAIN = [
    {"task": "self_instruct", "input_mappings": {"input": "context"}, "explode": "instructions -> instruction"},
    {"task": "text_generation"},
]


def run_all(job: Job, engine: object = None, others: Mapping[str, Any] | None = None) -> tuple[list[dict], Worker]:
    """All rows of a job's shards, in order, and the worker that made them."""
    engine = engine or ChaosEngine(EngineSpec("chaos", arguments=job.model.engine))

    async def go() -> tuple[list[dict], Worker]:
        worker, plan, seeds, store = worker_on(engine, job, others)
        await asyncio.gather(
            *(worker.shard(shard, new_attempt(), seeds.slice(shard.start, shard.stop)) for shard in plan.shards)
        )
        manifests = committed(store, plan)
        return [row for i in sorted(manifests) for row in read_shard(store, plan, manifests[i]).to_pylist()], worker

    return asyncio.run(go())


def test_an_input_that_may_be_absent_is_left_out_where_the_job_says_so(tmp_path: Path):
    steps = [
        {"task": "text_generation", "output_mappings": {"generation": "draft"}},
        {"task": "text_generation", "input_mappings": {"instruction": "draft", "system_prompt": None}},
    ]
    rows = [{"instruction": "Ask.", "system_prompt": "Be brief."}]
    engine = ScriptedEngine(lambda prompt, number: f"Answer {number}.")
    run_all(chaos_job(tmp_path, source={"rows": rows}, steps=steps), engine)
    assert ["Be brief." in prompt for prompt in engine.prompts] == [True, False]


def test_every_seed_row_comes_out_once(tmp_path: Path):
    rows, worker = run_all(chaos_job(tmp_path, source={"count": 100}))
    assert [row["row_index"] for row in rows] == list(range(100))
    assert worker.progress.ok == 100


def test_tokens_are_progress_before_their_row_has_ended(tmp_path: Path):
    steps = [{"task": "evol_instruct", "num_evolutions": 3, "eliminate": False}]
    job = chaos_job(tmp_path, source={"rows": [{"instruction": "x"}]}, steps=steps)

    class Watching(ChaosEngine):
        seen: list[tuple[int, int]] = []  # noqa: RUF012

        async def generate(self, request):
            self.seen.append((worker.progress.output_tokens, worker.progress.ok))
            return await super().generate(request)

    engine = Watching(EngineSpec("chaos"))
    worker, plan, seeds, _ = worker_on(engine, job)
    asyncio.run(worker.shard(plan.shards[0], new_attempt(), seeds.slice(0, 1)))
    tokens, rows_ok = zip(*engine.seen, strict=True)
    assert rows_ok == (0, 0, 0)
    assert tokens[0] == 0 < tokens[1] < tokens[2] < worker.progress.output_tokens


def test_the_same_job_gives_the_same_rows_in_any_order(tmp_path: Path):
    engine = {"path": "chaos", "engine": {"latency": 0.002}}
    first, _ = run_all(chaos_job(tmp_path / "a", model=engine))
    second, _ = run_all(chaos_job(tmp_path / "b", model={"path": "chaos", "engine": {"slots": 3}}))
    assert first == second
    other, _ = run_all(chaos_job(tmp_path / "c", model=engine, seed=1))
    assert [row["instruction"] for row in other] != [row["instruction"] for row in first]
    assert len({row["instruction"] for row in first}) > 30, "rows with the same prompt still differ"


def test_a_shard_is_given_back_as_long_as_none_of_its_rows_has_begun(tmp_path: Path):
    script = {"slots": 2, "latency": 0.01}
    job = chaos_job(tmp_path, source={"count": 12}, shard_rows=4, model={"path": "chaos", "engine": script})

    class Counting(ChaosEngine):
        calls = 0

        async def generate(self, request):
            self.calls += 1
            return await super().generate(request)

    engine = Counting(EngineSpec("chaos", arguments=job.model.engine))
    worker, plan, seeds, store = worker_on(engine, job)
    first, second, third = plan.shards[:3]

    async def go() -> list[Done | None]:
        run = [
            asyncio.create_task(worker.shard(shard, new_attempt(), seeds.slice(shard.start, shard.stop)))
            for shard in (first, second, third)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0.005)
        assert not worker.give_back(first.index), "its four rows fill what is in flight"
        assert worker.give_back(third.index)
        assert not worker.give_back(third.index), "it is given back already"
        answers = await asyncio.gather(*run)
        assert not worker.give_back(second.index), "it is done"
        # It may come again.
        return [*answers, await worker.shard(third, new_attempt(), seeds.slice(third.start, third.stop))]

    answers = asyncio.run(go())
    assert [answer and answer.progress.ok for answer in answers] == [4, 4, None, 4]
    assert sorted(committed(store, plan)) == [first.index, second.index, third.index]
    assert (engine.calls, worker.progress.ok) == (3 * 4 * 2, 12), "two calls a row, and none of them twice"


def test_a_shard_whose_rows_all_wait_for_slots_is_given_back(tmp_path: Path):
    script = {"slots": 2, "latency": 0.001}
    job = chaos_job(tmp_path, source={"count": 4}, shard_rows=2, model={"path": "chaos", "engine": script})

    class Held(ChaosEngine):
        asked = 0
        opened = asyncio.Event()

        async def generate(self, request):
            self.asked += 1
            await self.opened.wait()
            return await super().generate(request)

    engine = Held(EngineSpec("chaos", arguments=script))
    worker, plan, seeds, store = worker_on(engine, job)

    async def go() -> list[Done | None]:
        run = [
            asyncio.create_task(worker.shard(shard, new_attempt(), seeds.slice(shard.start, shard.stop)))
            for shard in plan.shards
        ]
        while engine.asked < 4:
            await asyncio.sleep(0)
        assert not worker.give_back(0), "its two rows have the two slots"
        assert worker.give_back(1), "the two slots are the other rows'"
        engine.opened.set()
        answers = await asyncio.gather(*run)
        before = worker.progress.output_tokens
        again = asyncio.create_task(worker.shard(plan.shards[1], new_attempt(), seeds.slice(2, 4)))
        while worker.progress.output_tokens == before:
            await asyncio.sleep(0)
        assert not worker.give_back(1), "it has a completion"
        return [*answers, await again]

    answers = asyncio.run(go())
    assert [answer and answer.progress.ok for answer in answers] == [2, None, 2]
    assert sorted(committed(store, plan)) == [0, 1]
    assert worker.progress.ok == 4


async def given_back(worker: Worker, plan: Plan, seeds: Seeds, until: Callable[[], bool]) -> bool:
    """Whether shard 1 is given back once something has happened; all of them are dropped then."""
    running = [
        asyncio.create_task(worker.shard(shard, new_attempt(), seeds.slice(shard.start, shard.stop)))
        for shard in plan.shards
    ]
    while not until():
        await asyncio.sleep(0)
    given = worker.give_back(1)
    for each in running:
        each.cancel()
    return given


@pytest.mark.parametrize(("slots", "judge_slots", "drafted", "waits"), [(2, 40, 0, True), (40, 2, 45, False)])
def test_a_shard_waits_for_the_engine_of_its_first_requests_whatever_others_do(
    tmp_path: Path, slots: int, judge_slots: int, drafted: int, waits: bool
):
    class Held(ScriptedEngine):
        answered = 0

        async def generate(self, request):
            number = len(self.prompts)
            completion = await super().generate(request)
            if number >= self.answered:
                await asyncio.Event().wait()
            return completion

    generator, judge = Held(lambda prompt, number: "text"), Held(lambda prompt, number: "text")
    generator.slots, generator.answered, judge.slots = slots, drafted, judge_slots
    steps = [
        {"task": "text_generation", "output_mappings": {"generation": "draft"}},
        {"task": "text_generation", "model": "judge", "input_mappings": {"instruction": "draft"}},
    ]
    rows = [{"instruction": f"row {i}"} for i in range(60)]
    models = {"judge": {"path": "chaos"}}
    job = chaos_job(tmp_path, source={"rows": rows}, shard_rows=drafted or 30, models=models, steps=steps)
    plan, seeds, store = planned(job)
    worker = Worker(job, plan, store, generator, {"judge": judge})

    asked = 60 + drafted
    given = given_back(worker, plan, seeds, until=lambda: len(generator.prompts) + len(judge.prompts) == asked)
    assert asyncio.run(given) is waits


@pytest.mark.parametrize("quick", ["answer me", ""])
def test_a_shard_of_which_something_has_come_is_kept_though_the_rest_waits(tmp_path: Path, quick: str):
    class Held(ScriptedEngine):
        slots = 2

        async def generate(self, request):
            answered = "answer me" in self.decode(request.token_ids) and not any("answer me" in p for p in self.prompts)
            completion = await super().generate(request)
            if not answered:
                await asyncio.Event().wait()
            return completion

    engine = Held(lambda prompt, number: "text")
    rows = [{"instruction": text} for text in ("wait", "wait", quick, "wait")]
    # A completion, of a row that goes on, or a row's end without one.
    steps = [{"task": "text_generation", "output_mappings": {"generation": "draft"}}, {"task": "text_generation"}]
    job = chaos_job(tmp_path, source={"rows": rows}, shard_rows=2, steps=steps)
    worker, plan, seeds, _ = worker_on(engine, job)

    steps_of_the_loop = itertools.count()
    assert asyncio.run(given_back(worker, plan, seeds, lambda: next(steps_of_the_loop) == 100)) is False
    assert sum("wait" in prompt for prompt in engine.prompts) == 3


def test_a_shard_that_is_asked_back_before_it_has_come_is_given_back_as_it_comes(tmp_path: Path):
    job = chaos_job(tmp_path, source={"count": 4}, shard_rows=4)
    worker, plan, seeds, _ = worker_on(ChaosEngine(EngineSpec("chaos")), job)

    async def go() -> list[Done | None]:
        assert worker.give_back(0)
        assert not worker.give_back(0), "it is given back already"
        return [await worker.shard(plan.shards[0], new_attempt(), seeds.slice(0, 4)) for _ in range(2)]

    first, second = asyncio.run(go())
    assert first is None
    assert second is not None
    assert second.progress.ok == worker.progress.ok == 4


def test_a_shard_whose_texts_a_gate_knows_is_not_given_back(tmp_path: Path):
    script = {"slots": 1, "latency": 10}
    steps = [{"task": "drop_duplicates"}, {"task": "text_generation"}]
    rows = [{"instruction": text} for text in "abcd"]
    model = {"path": "chaos", "engine": script}
    job = chaos_job(tmp_path, source={"rows": rows}, shard_rows=1, model=model, steps=steps)
    worker, plan, seeds, _ = worker_on(ChaosEngine(EngineSpec("chaos", arguments=script)), job)

    async def go() -> list[bool]:
        run = [
            asyncio.create_task(worker.shard(shard, new_attempt(), seeds.slice(shard.start, shard.stop)))
            for shard in plan.shards
        ]
        await asyncio.sleep(0.01)
        given = [worker.give_back(shard.index) for shard in plan.shards]
        for each in run:
            each.cancel()
        return given

    assert asyncio.run(go()) == [False, False, True, True], "two are in flight"


def test_a_shard_whose_rows_are_all_quarantined_cannot_be_given_back_any_more(tmp_path: Path):
    job = chaos_job(tmp_path, source={"count": 4}, shard_rows=4)
    worker, plan, seeds, store = worker_on(ChaosEngine(EngineSpec("chaos")), job)
    asyncio.run(worker.shard(plan.shards[0], new_attempt(), seeds.slice(0, 4), range(4)))
    assert [row["reason"] for row in read_shard(store, plan, committed(store, plan)[0]).to_pylist()] == [
        "engine_crash"
    ] * 4
    assert not worker.give_back(0)


@pytest.mark.parametrize("slots", [4, 40])
def test_rows_in_flight_are_told_one_by_one_where_they_are_few(tmp_path: Path, slots: int):
    script = {"slots": slots, "latency": 10}
    job = chaos_job(tmp_path, source={"count": 100}, shard_rows=50, model={"path": "chaos", "engine": script})
    worker, plan, seeds, _ = worker_on(ChaosEngine(EngineSpec("chaos", arguments=script)), job)

    async def go() -> tuple[int, list[int]]:
        second = plan.shards[1]
        running = asyncio.create_task(
            worker.shard(second, new_attempt(), seeds.slice(second.start, second.stop), quarantined=(51,))
        )
        await asyncio.sleep(0.01)
        told = len(worker.in_flight), list(worker.in_flight.told)
        running.cancel()
        await asyncio.wait([running])
        await asyncio.sleep(0)
        assert (len(worker.in_flight), list(worker.in_flight.told)) == (0, [])
        return told

    many = [50, *range(52, 100)][: 2 * slots]
    assert asyncio.run(go()) == (len(many), many)


def test_so_many_rows_in_flight_are_not_told(tmp_path: Path):
    script = {"slots": 50, "latency": 10}
    job = chaos_job(tmp_path, source={"count": 100}, shard_rows=100, model={"path": "chaos", "engine": script})
    worker, plan, seeds, _ = worker_on(ChaosEngine(EngineSpec("chaos", arguments=script)), job)

    async def go() -> None:
        running = asyncio.create_task(worker.shard(plan.shards[0], new_attempt(), seeds.slice(0, 100)))
        await asyncio.sleep(0.01)
        assert (len(worker.in_flight), list(worker.in_flight.told)) == (100, [])
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(go())


def test_a_shard_that_is_cancelled_and_was_not_given_back_does_not_say_so(tmp_path: Path):
    job = chaos_job(tmp_path, source={"count": 4}, model={"path": "chaos", "engine": {"latency": 10}})
    worker, plan, seeds, _ = worker_on(ChaosEngine(EngineSpec("chaos", arguments=job.model.engine)), job)

    async def go() -> None:
        running = asyncio.create_task(worker.shard(plan.shards[0], new_attempt(), seeds.slice(0, 4)))
        await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(go())


def test_a_list_is_spread_over_rows_and_each_goes_on_alone(tmp_path: Path):
    job = chaos_job(
        tmp_path,
        source={"rows": [{"context": f"text {i}"} for i in range(4)]},
        model={"path": "chaos", "engine": {"lines": 3}},
        steps=CHAIN,
    )
    rows, worker = run_all(job)
    assert [(row["row_index"], row["branch"]) for row in rows] == [(i, str(j)) for i in range(4) for j in range(3)]
    assert "instructions" not in rows[0]
    assert all(row["generation"] and row["context"] for row in rows)
    # What was spent before the fan-out is counted once, so the rows' sums are what the engine did.
    assert sum(row["output_tokens"] for row in rows) == worker.progress.output_tokens


def test_items_of_a_list_that_hold_nothing_are_no_rows(tmp_path: Path):
    job = chaos_job(
        tmp_path,
        source={"rows": [{"instruction": "x", "words": words} for words in (["a", None, "", "b"], [], None, [""])]},
        steps=[{"task": "text_generation", "explode": "words -> word"}],
    )
    rows, _ = run_all(job)
    assert [(row["row_index"], row["branch"], row["word"], row["reason"]) for row in rows] == [
        (0, "0", "a", None),
        (0, "1", "b", None),
        *((index, "", None, "nothing_to_explode") for index in (1, 2, 3)),
    ]


def test_a_list_that_is_spread_under_its_own_name_stands_in_no_row_that_was_rejected_before(tmp_path: Path):
    """The column holds texts then: a list in it would be a shard that cannot be written."""
    job = chaos_job(
        tmp_path,
        source={"rows": [{"input": "a", "other": "x"}, {"input": "a", "other": ""}]},
        steps=[
            {"task": "self_instruct"},
            {
                "task": "text_generation",
                "input_mappings": {"instruction": "other"},
                "explode": "instructions -> instructions",
            },
        ],
    )
    plan, seeds, store = planned(job)
    worker = Worker(job, plan, store, ScriptedEngine(lambda prompt, number: "1. One?\n2. Two?"))
    for shard in plan.shards:
        asyncio.run(worker.shard(shard, new_attempt(), seeds.slice(shard.start, shard.stop)))
    rows = [row for each in committed(store, plan).values() for row in read_shard(store, plan, each).to_pylist()]
    assert [(row["row_index"], row["instructions"], row["reason"]) for row in rows] == [
        (0, "One?", None),
        (0, "Two?", None),
        (1, None, "empty_input"),
    ]


def test_a_failing_branch_is_rejected_alone(tmp_path: Path):
    def answer(prompt: str, number: int) -> str:
        return "first\nbad\nthird" if "Context" in prompt else "" if "\nbad<" in prompt else "fine"

    job = chaos_job(tmp_path, source={"rows": [{"context": "c"}]}, steps=CHAIN)
    rows, worker = run_all(job, ScriptedEngine(answer))
    assert [(row["branch"], row["outcome"], row["reason"]) for row in rows] == [
        ("0", "ok", None),
        ("1", "rejected", "empty_completion"),
        ("2", "ok", None),
    ]
    assert rows[1]["instruction"] == "bad"
    assert (worker.progress.ok, worker.progress.rejected) == (1, 0), "the seed row has ok rows"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({"empty_on": "poison"}, "empty_completion"),
        ({"error_on": "poison"}, "task_error:ValueError"),
        ({"max_model_len": 300}, "prompt_too_long"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason_and_its_neighbours_go_on(tmp_path: Path, script: dict, reason: str):
    texts = ["fine"] * 9 + ["poison " + "x" * 500]
    job = chaos_job(
        tmp_path,
        source={"rows": [{"instruction": text} for text in texts]},
        model={"path": "chaos", "engine": script},
        steps=[{"task": "text_generation"}],
    )
    rows, worker = run_all(job)
    assert [row["outcome"] for row in rows] == ["ok"] * 9 + ["rejected"]
    assert rows[9]["reason"] == reason
    assert (worker.progress.ok, worker.progress.rejected, worker.progress.reasons) == (9, 1, {reason: 1})


def test_a_truncated_answer_says_so(tmp_path: Path):
    job = chaos_job(
        tmp_path,
        source={"rows": [{"instruction": "cut me"}, {"instruction": "not me"}]},
        model={"path": "chaos", "engine": {"truncate_on": "cut me"}},
        steps=[{"task": "text_generation"}],
    )
    rows, _ = run_all(job)
    assert [row["finish_reason"] for row in rows] == ["length", "stop"]


def test_text_that_no_file_can_hold_rejects_its_row(tmp_path: Path):
    job = chaos_job(tmp_path, source={"rows": [{"instruction": "x"}]}, steps=[{"task": "text_generation"}])
    rows, _ = run_all(job, ScriptedEngine(["half \ud800 a pair"]))
    assert rows[0]["reason"] == "invalid_text"


def test_where_a_row_ends_its_shard_the_others_end_as_well(tmp_path: Path):
    rows = [{"instruction": "deadly" if i == 3 else f"row {i}"} for i in range(8)]
    job = chaos_job(tmp_path, source={"rows": rows}, steps=[{"task": "text_generation"}])

    class Dying(ChaosEngine):
        cancelled = 0

        async def generate(self, request):
            if b"deadly" in bytes(request.token_ids):
                raise EngineDead("gone")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

    engine = Dying(EngineSpec("chaos"))

    async def go() -> None:
        worker, plan, seeds, _ = worker_on(engine, job)
        with pytest.raises(EngineDead):
            await worker.shard(plan.shards[0], new_attempt(), seeds.slice(0, 8))
        await asyncio.sleep(0)
        assert engine.cancelled == 7

    asyncio.run(go())


def test_a_dead_engine_rejects_no_row_and_commits_nothing(tmp_path: Path):
    job = chaos_job(tmp_path, model={"path": "chaos", "engine": {"crash_after": 5}})

    async def go() -> None:
        worker, plan, seeds, store = worker_on(ChaosEngine(EngineSpec("chaos", arguments=job.model.engine)), job)
        shard = plan.shards[0]
        with pytest.raises(EngineDead):
            await worker.shard(shard, new_attempt(), seeds.slice(shard.start, shard.stop))
        assert committed(store, plan) == {}

    asyncio.run(go())


class Counting(ScriptedEngine):
    """Notes how many requests were there at once at most."""

    most = now = 0
    seconds = 0.001

    async def generate(self, request):
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(self.seconds)
        completion = await super().generate(request)
        self.now -= 1
        return completion


def test_as_many_rows_are_in_flight_as_keep_the_engine_full(tmp_path: Path):
    engine = Counting(lambda prompt, number: "text")
    run_all(chaos_job(tmp_path, source={"count": 100}), engine)
    assert engine.most == 2 * engine.slots


def test_rows_that_began_earlier_go_first(tmp_path: Path):
    script, turns, rows = {"slots": 8, "latency": 0.001}, 3, 48
    model, steps = {"path": "chaos", "engine": script}, [{"task": "magpie", "n_turns": turns}]
    job = chaos_job(tmp_path, source={"count": rows}, shard_rows=rows, model=model, steps=steps)

    class Served(ChaosEngine):
        ended: list[str] = []  # noqa: RUF012

        async def generate(self, request):
            completion = await super().generate(request)
            self.ended.append(request.key.rsplit("-", 1)[0])
            return completion

    engine = Served(EngineSpec("chaos", arguments=script))
    run_all(job, engine)
    calls: dict[str, list[int]] = {}
    for number, row in enumerate(engine.ended):
        calls.setdefault(row, []).append(number)
    # A row that holds a slot from its first call to its last sees as many calls end as there are slots, for each of
    # its own. Where all rows in flight take turns it is 1.5 times as many (measured).
    seen = sum(numbers[-1] - numbers[0] + 1 for numbers in calls.values()) / rows
    assert seen < 1.2 * 2 * turns * engine.slots


class Stepped(ScriptedEngine):
    """An engine that answers as many requests at a time as it has slots, those of the lowest priority first."""

    slots = 4

    def __init__(self) -> None:
        super().__init__(lambda prompt, number: "text")
        self.waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self.came = itertools.count()
        self.times = 0

    async def generate(self, request: Request) -> Completion:
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append((request.priority, next(self.came), turn))
        await turn
        return await super().generate(request)

    async def serve(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            self.waiting.sort()
            served, self.waiting = self.waiting[: self.slots], self.waiting[self.slots :]
            self.times += bool(served)
            for _, _, turn in served:
                turn.set_result(None)


@pytest.mark.parametrize(("rows", "draining", "times"), [(6, False, 8), (6, True, 6), (14, False, 16), (14, True, 14)])
def test_the_last_rows_take_turns_so_that_slots_are_not_left_empty(
    tmp_path: Path, rows: int, draining: bool, times: int
):
    """Four calls a row on four slots: where two rows are left at the end, they would have them alone for four calls."""
    steps = [{"task": "magpie", "n_turns": 2}]
    job, engine = chaos_job(tmp_path, source={"count": rows}, shard_rows=rows, steps=steps), Stepped()

    async def go() -> None:
        worker, plan, seeds, _ = worker_on(engine, job)
        worker.in_flight.draining = draining
        serving = asyncio.create_task(engine.serve())
        await worker.shard(plan.shards[0], new_attempt(), seeds.slice(0, rows))
        serving.cancel()

    asyncio.run(go())
    assert (len(engine.prompts), engine.times) == (4 * rows, times)


def test_a_shard_of_last_rows_goes_first_and_is_kept_therefore(tmp_path: Path):
    job = chaos_job(tmp_path, source={"count": 4}, shard_rows=2)
    engine = Stepped()
    engine.slots = 2

    async def go() -> None:
        worker, plan, seeds, _ = worker_on(engine, job)
        shards = [
            asyncio.create_task(worker.shard(shard, new_attempt(), seeds.slice(shard.start, shard.stop)))
            for shard in plan.shards
        ]
        serving = asyncio.create_task(engine.serve())
        while not engine.times:
            await asyncio.sleep(0)
        serving.cancel()
        while len(engine.waiting) < 4:
            await asyncio.sleep(0)
        worker.in_flight.draining = True
        assert not worker.give_back(1), "the two rows of the first shard have had a call each"
        worker.in_flight.draining = False
        assert worker.give_back(1)
        shards[0].cancel()
        await asyncio.gather(*shards, return_exceptions=True)

    asyncio.run(go())


def test_a_slow_engine_of_one_step_is_full_beside_a_quick_one_with_few_slots(tmp_path: Path):
    quick, slow = Counting(lambda prompt, number: "text"), Counting(lambda prompt, number: "text")
    quick.slots, slow.slots, slow.seconds = 2, 40, 0.05
    rows = [{"instruction": f"row {i}"} for i in range(200)]
    steps = [
        {"task": "text_generation", "output_mappings": {"generation": "draft"}},
        {"task": "drop_duplicates"},
        {"task": "text_generation", "model": "judge", "input_mappings": {"instruction": "draft"}},
    ]
    job = chaos_job(tmp_path, source={"rows": rows}, models={"judge": {"path": "chaos"}}, steps=steps)
    plan, seeds, store = planned(job)
    worker = Worker(job, plan, store, quick, {"judge": slow})
    in_flight = []

    async def go() -> None:
        slices = ((shard, seeds.slice(shard.start, shard.stop)) for shard in plan.shards)
        running = [asyncio.create_task(worker.shard(shard, new_attempt(), part)) for shard, part in slices]
        while not all(each.done() for each in running):
            in_flight.append(len(worker.in_flight))
            await asyncio.sleep(0.01)

    asyncio.run(go())
    assert worker.slots == 42
    assert slow.most >= 40
    assert (max(in_flight), len(worker.in_flight)) == (84, 0)
    assert not worker.in_flight._waits, "rows that have ended wait for nothing"


def test_generations_are_rows_of_their_own_and_a_bad_one_is_rejected_alone(tmp_path: Path):
    job = chaos_job(
        tmp_path,
        source={"rows": [{"instruction": "Say it."}]},
        steps=[{"task": "text_generation", "num_generations": 4}],
    )
    answers = iter(["one", "", "three", "four"])
    rows, worker = run_all(job, ScriptedEngine(lambda *_: next(answers)))
    assert [row["branch"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["generation"] for row in rows] == ["one", None, "three", "four"]
    assert [row["reason"] for row in rows] == [None, "empty_completion", None, None]
    assert (worker.progress.ok, worker.progress.rejected) == (1, 0), "seed rows are counted, not their branches"


def test_generations_differ_and_are_the_same_again(tmp_path: Path):
    steps = [{"task": "text_generation", "num_generations": 3}]
    source = {"rows": [{"instruction": "Say it."}]}
    first, _ = run_all(chaos_job(tmp_path / "a", source=source, steps=steps))
    second, _ = run_all(chaos_job(tmp_path / "b", source=source, steps=steps))
    assert len({row["generation"] for row in first}) == 3
    assert first == second


def test_grouped_generations_are_lists_without_those_that_failed(tmp_path: Path):
    job = chaos_job(
        tmp_path,
        source={"rows": [{"instruction": "Say it."}]},
        steps=[{"task": "text_generation", "num_generations": 3, "group_generations": True, "logprobs": True}],
    )
    answers = iter(["one", "", "three"])
    (row,), worker = run_all(job, ScriptedEngine(lambda *_: next(answers)))
    assert row["generation"] == ["one", "three"]
    assert row["notes"] == ["generation_failed:empty_completion"]
    assert worker.progress.notes == {"generation_failed:empty_completion": 1}
    assert row["output_tokens"] == 2


def test_a_group_in_which_all_failed_is_rejected(tmp_path: Path):
    job = chaos_job(
        tmp_path,
        source={"rows": [{"instruction": "Say it."}]},
        steps=[{"task": "text_generation", "num_generations": 2, "group_generations": True}],
    )
    answers = iter(["", "half \ud800 a pair"])
    (row,), _ = run_all(job, ScriptedEngine(lambda *_: next(answers)))
    assert (row["outcome"], row["reason"], row["generation"]) == ("rejected", "empty_completion", None)


def test_log_probabilities_are_a_column_where_they_are_asked_for(tmp_path: Path):
    job = chaos_job(
        tmp_path,
        source={"rows": [{"instruction": "Say it."}]},
        model={"path": "chaos", "engine": {"reply": "three short words"}},
        steps=[{"task": "text_generation", "logprobs": True, "output_mappings": {"logprobs": "scores"}}],
    )
    (row,), _ = run_all(job)
    assert row["scores"] == [-1.0, -1.0, -1.0]


def test_preferences_from_end_to_end(tmp_path: Path):
    """Answers, ratings and pairs, as the recipe has them; the dataset has just what TRL reads."""
    from batchgen.merge import merge_run

    def answer(prompt: str, number: int) -> str:
        if "Rating" in prompt or "rate" in prompt.lower():
            return "Rating: 2\nRationale: a\n\nRating: 4\nRationale: b"
        return f"answer {number}"

    job = chaos_job(
        tmp_path,
        source={"rows": [{"instruction": "Add 1 and 2."}, {"instruction": "add 1 and  2."}]},
        steps=[
            {
                "task": "text_generation",
                "num_generations": 2,
                "group_generations": True,
                "output_mappings": {"generation": "generations"},
            },
            {"task": "ultrafeedback"},
            {"task": "preference_pair"},
        ],
    )

    async def go():
        worker, plan, seeds, store = worker_on(ScriptedEngine(answer), job)
        await worker.shard(plan.shards[0], new_attempt(), seeds.slice(0, 2))
        return merge_run(store, plan, job), store

    version, store = asyncio.run(go())
    import pyarrow.parquet as pq

    key = next(file.key for name, file in version.files.items() if name.startswith("data/"))
    table = pq.read_table(store.path(key))
    assert "messages" not in table.column_names
    assert version.dropped == {"exact duplicate": 1}
    (row,) = table.to_pylist()
    assert row["prompt"] == [{"role": "user", "content": "Add 1 and 2."}]
    assert row["chosen"][0]["role"] == row["rejected"][0]["role"] == "assistant"
    assert (row["chosen_rating"], row["rejected_rating"]) == (4.0, 2.0)
    assert row["finish_reason"] == "stop", "of the last step that called a model"


TWICE = [{"task": "text_generation", "num_generations": 2, "group_generations": True}]
TWICE[0]["output_mappings"] = {"generation": "generations"}
SIDE_BY_SIDE = [
    {"task": "text_generation", "output_mappings": {"generation": "a"}},
    {"task": "text_generation", "output_mappings": {"generation": "b"}},
    {"task": "group_columns", "columns": ["a", "b"], "output_mappings": {"grouped": "generations"}},
]


@pytest.mark.parametrize("answers", [TWICE, SIDE_BY_SIDE])
@pytest.mark.parametrize("paired", [True, False])
def test_no_judge_is_asked_of_answers_that_make_no_pair(tmp_path: Path, answers: list[dict], paired: bool):
    judged: list[str] = []

    def answer(prompt: str, number: int) -> str:
        if "# Output" in prompt or "Rating" in prompt:
            judged.append("same" if "Be same" in prompt else "other")
            return "Rating: 2\nRationale: a\n\nRating: 4\nRationale: b"
        return "yes" + " " * number if "same" in prompt else f"answer {number}"

    rows = [{"instruction": "Be same."}, {"instruction": "Be other."}]
    steps = [*answers, {"task": "ultrafeedback"}, *([{"task": "preference_pair"}] if paired else [])]
    job = chaos_job(tmp_path, source={"rows": rows}, steps=steps)

    async def go():
        worker, plan, seeds, store = worker_on(ScriptedEngine(answer), job)
        await worker.shard(plan.shards[0], new_attempt(), seeds.slice(0, 2))
        return read_shard(store, plan, committed(store, plan)[0]).to_pylist()

    same, other = asyncio.run(go())
    assert other["outcome"] == "ok"
    assert sorted(judged) == (["other"] if paired else ["other", "same"])
    assert (same["outcome"], same["reason"]) == (("rejected", "no_preference") if paired else ("ok", None))
    assert same["output_tokens"] > 0


def test_lists_that_are_looked_at_are_those_of_the_last_step_that_writes_them(tmp_path: Path):
    def looked_at(*steps: dict, **source: object) -> dict:
        rows = {"rows": [{"instruction": "a", "c": "b", "generations": ["a"], "ratings": [1.0]}]}
        job = chaos_job(tmp_path, source=rows, steps=list(steps))
        return {index: list(columns) for index, columns in differing_columns(job.steps).items()}

    judge, pair = {"task": "ultrafeedback"}, {"task": "preference_pair"}
    again = {"task": "ultrafeedback", "output_mappings": {"ratings": "r", "rationales": "s"}}
    assert looked_at(*TWICE, judge, pair) == {0: ["generations"]}
    assert looked_at(*SIDE_BY_SIDE, judge, again, pair) == {2: ["generations"]}
    assert looked_at(*TWICE, judge) == {}
    assert looked_at(judge, pair | {"input_mappings": {"ratings": "ratings"}}) == {}, "the seeds' own"
    grouped = {"task": "group_columns", "columns": ["c", "instruction"], "output_mappings": {"grouped": "generations"}}
    assert looked_at(grouped, pair) == {}, "nothing is paid for between the two"


def test_a_conversation_and_its_answer_are_the_messages(tmp_path: Path):
    from batchgen.merge import merge_run

    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
        {"role": "user", "content": "How?"},
    ]
    job = chaos_job(tmp_path, source={"rows": [{"messages": turns}]}, steps=[{"task": "chat_generation"}])

    async def go():
        worker, plan, seeds, store = worker_on(ScriptedEngine(lambda *_: "Well."), job)
        await worker.shard(plan.shards[0], new_attempt(), seeds.slice(0, 1))
        return merge_run(store, plan, job), store

    version, store = asyncio.run(go())
    import pyarrow.parquet as pq

    key = next(file.key for name, file in version.files.items() if name.startswith("data/"))
    (row,) = pq.read_table(store.path(key)).to_pylist()
    assert row["messages"] == [*turns, {"role": "assistant", "content": "Well."}]


def test_a_step_runs_on_the_model_that_it_names(tmp_path: Path):
    job = chaos_job(
        tmp_path,
        source={"rows": [{"instruction": "Say it."}]},
        models={"judge": {"path": "chaos"}},
        steps=[
            {"task": "text_generation"},
            {"task": "quality_scorer", "model": "judge", "input_mappings": {"responses": "responses"}},
        ],
    )
    job = Job.of({**job.tree(), "source": {"rows": [{"instruction": "Say it.", "responses": ["a"]}]}})
    writer, judge = ScriptedEngine(["said"]), ScriptedEngine(["[1] score: 4"])

    async def go():
        from batchgen.generate import Worker
        from tests.helpers import planned

        plan, seeds, store = planned(job)
        worker = Worker(job, plan, store, writer, {"judge": judge})
        await worker.shard(plan.shards[0], new_attempt(), seeds.slice(0, 1))
        return read_shard(store, plan, committed(store, plan)[0]).to_pylist()

    (row,) = asyncio.run(go())
    assert (row["generation"], row["scores"]) == ("said", [4.0])
    assert (len(writer.prompts), len(judge.prompts)) == (1, 1)


def test_answers_of_several_models_are_a_list_beside_the_models_names(tmp_path: Path):
    def answer(name: str, **changes: object) -> dict:
        mappings = {"generation": f"by_{name}", "model_name": f"model_{name}"}
        return {"task": "text_generation", "model_name": True, "output_mappings": mappings, **changes}

    steps = [
        answer("own"),
        answer("other", model="other", num_generations=2, group_generations=True),
        answer("second", model="other"),
        {"task": "group_columns", "columns": ["by_second", "by_own"], "output_mappings": {"grouped": "generations"}},
        {"task": "group_columns", "columns": ["by_other"], "kind": "list[text]"},
    ]
    job = chaos_job(tmp_path, source={"rows": [{"instruction": "x"}]}, steps=steps, models={"other": {"path": "chaos"}})
    own, other = ScriptedEngine(["mine"]), ScriptedEngine(["a", "b", "c"])
    own.model_name, other.model_name = "org/own", "org/other"
    plan, seeds, store = planned(job)
    worker = Worker(job, plan, store, own, {"other": other})
    asyncio.run(worker.shard(plan.shards[0], new_attempt(), seeds.slice(0, 1)))
    (row,) = read_shard(store, plan, committed(store, plan)[0]).to_pylist()
    assert row["generations"] == ["c", "mine"]
    assert row["grouped"] == [["a", "b"]]
    assert [row[f"model_{name}"] for name in ("own", "other", "second")] == ["org/own", "org/other", "org/other"]
    assert row["failed_completion"] is None


def test_requests_of_a_run_have_names_of_their_own(tmp_path: Path):
    engine = ScriptedEngine(lambda prompt, number: f"{number}")
    steps = [
        {"task": "magpie", "only_instruction": True, "num_generations": 2},
        {"task": "text_generation", "num_generations": 3, "group_generations": True},
    ]
    run_all(chaos_job(tmp_path, source={"count": 3}, steps=steps), engine)
    names = [request.key for request in engine.requests]
    assert len(names) == 3 * (2 + 2 * 3)
    assert len(set(names)) == len(names)


def test_drivers_that_start_and_end_together_all_end_with_the_dataset(tmp_path: Path):
    for number in range(8):
        job = chaos_job(tmp_path / f"run-{number}", source={"count": 8}, shard_rows=2)
        together = threading.Barrier(4)

        def drive(job: Job = job, together: threading.Barrier = together) -> Result:
            together.wait()
            return run(job, in_process=True)

        with ThreadPoolExecutor(4) as pool:
            results = [future.result() for future in [pool.submit(drive) for _ in range(4)]]
        assert [(result.progress.ok, result.version.number) for result in results] == [(8, 1)] * 4
        assert (Path(results[0].dataset) / "README.md").is_file()


def test_a_good_row_that_was_cut_is_noted_as_it_comes(tmp_path: Path):
    job = chaos_job(
        tmp_path,
        source={"rows": [{"instruction": "Say it."}, {"instruction": ""}]},
        steps=[{"task": "text_generation"}],
    )
    worker, plan, seeds, store = worker_on(ScriptedEngine(lambda prompt, number: "text", "length"), job)
    asyncio.run(worker.shard(plan.shards[0], new_attempt(), seeds.slice(0, 2)))
    manifest = committed(store, plan)[0]
    rows = read_shard(store, plan, manifest).to_pylist()
    assert [(row["outcome"], row["notes"]) for row in rows] == [("ok", ["truncated"]), ("rejected", [])]
    assert worker.progress.notes == manifest.notes == {"truncated": 1}


def test_rows_that_fan_out_are_spread_over_all_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: dict[int, int] = {}
    generate = ChaosEngine.generate

    async def counted(self, request):
        calls[id(self)] = calls.get(id(self), 0) + 1
        return await generate(self, request)

    monkeypatch.setattr(ChaosEngine, "generate", counted)
    rows = [{"context": f"text {number}"} for number in range(120)]
    model = {"path": "chaos", "engine": {"slots": 16, "latency": 0.03, "lines": 5}}
    result = run(chaos_job(tmp_path, source={"rows": rows}, model=model, steps=CHAIN, engines=4), in_process=True)
    assert result.progress.ok == 120
    assert len(calls) == 4
    # The first engines that are up get more than they can begin with; what waits for their slots is taken back.
    assert max(calls.values()) < 1.5 * sum(calls.values()) / 4
