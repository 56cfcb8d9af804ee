"""The worker: rows through steps, fan-out, rejections, and counts that add up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from batchgen.commit import committed, new_attempt, read_shard
from batchgen.engines.base import EngineSpec
from batchgen.engines.chaos import ChaosEngine
from batchgen.errors import EngineDead
from batchgen.generate import Worker
from batchgen.job import Job
from tests.helpers import ScriptedEngine, chaos_job, worker_on

CHAIN = [
    {"task": "self_instruct", "input_mappings": {"input": "context"}, "explode": "instructions -> instruction"},
    {"task": "text_generation"},
]


def run_all(job: Job, engine: object = None) -> tuple[list[dict], Worker]:
    """All rows of a job's shards, in order, and the worker that made them."""
    engine = engine or ChaosEngine(EngineSpec("chaos", arguments=job.model.engine))

    async def go() -> tuple[list[dict], Worker]:
        worker, plan, seeds, store = worker_on(engine, job)
        await asyncio.gather(
            *(worker.shard(shard, new_attempt(), seeds.slice(shard.start, shard.stop)) for shard in plan.shards)
        )
        manifests = committed(store, plan)
        return [row for i in sorted(manifests) for row in read_shard(store, plan, manifests[i]).to_pylist()], worker

    return asyncio.run(go())


def test_every_seed_row_comes_out_once(tmp_path: Path):
    rows, worker = run_all(chaos_job(tmp_path, source={"count": 100}))
    assert [row["row_index"] for row in rows] == list(range(100))
    assert worker.progress.ok == 100


def test_the_same_job_gives_the_same_rows_in_any_order(tmp_path: Path):
    engine = {"path": "chaos", "engine": {"latency": 0.002}}
    first, _ = run_all(chaos_job(tmp_path / "a", model=engine))
    second, _ = run_all(chaos_job(tmp_path / "b", model={"path": "chaos", "engine": {"slots": 3}}))
    assert first == second
    other, _ = run_all(chaos_job(tmp_path / "c", model=engine, seed=1))
    assert [row["instruction"] for row in other] != [row["instruction"] for row in first]
    assert len({row["instruction"] for row in first}) > 30, "rows with the same prompt still differ"


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
    rows, _ = run_all(job)
    assert [row["outcome"] for row in rows] == ["ok"] * 9 + ["rejected"]
    assert rows[9]["reason"] == reason


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


def test_a_dead_engine_rejects_no_row_and_commits_nothing(tmp_path: Path):
    job = chaos_job(tmp_path, model={"path": "chaos", "engine": {"crash_after": 5}})

    async def go() -> None:
        worker, plan, seeds, store = worker_on(ChaosEngine(EngineSpec("chaos", arguments=job.model.engine)), job)
        shard = plan.shards[0]
        with pytest.raises(EngineDead):
            await worker.shard(shard, new_attempt(), seeds.slice(shard.start, shard.stop))
        assert committed(store, plan) == {}

    asyncio.run(go())


def test_as_many_rows_are_in_flight_as_keep_the_engine_full(tmp_path: Path):
    class Counting(ScriptedEngine):
        most = now = 0

        async def generate(self, request):
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.001)
            completion = await super().generate(request)
            self.now -= 1
            return completion

    engine = Counting(lambda prompt, number: "text")
    run_all(chaos_job(tmp_path, source={"count": 100}), engine)
    assert engine.most == 2 * engine.slots
