"""Two real engines at once on one machine: both work, and they do not generate the same dataset twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from batchgen.commit import committed, read_shard
from batchgen.distributed.cluster import connected
from batchgen.distributed.fleet import RayFleet
from batchgen.fleet import HostConfig, Placement, Work
from batchgen.job import Job
from tests.helpers import planned

pytestmark = [pytest.mark.engine, pytest.mark.cluster]
ROWS = 40


def test_two_engines_give_different_text_for_the_same_prompts(tmp_path: Path):
    job = Job.of(
        {
            "name": "two",
            "source": {"count": 2 * ROWS},
            "model": {"path": "embedded", "engine": {"max_model_len": 512, "max_num_seqs": 16}},
            "sampling": {"temperature": 1.0, "max_tokens": 48},
            "steps": [{"task": "magpie"}],
            "output": str(tmp_path / "run"),
            "shard_rows": ROWS,
        }
    )
    plan, seeds, store = planned(job)
    halves = [shard for shard in plan.shards if shard.stop - shard.start >= 10][:2]

    async def go() -> None:
        fleet = RayFleet(HostConfig(job, plan, store.location, job.seed), tmp_path / "logs", Placement(2), local=True)
        try:
            await asyncio.gather(fleet.place(0), fleet.place(1))
            slots = await asyncio.gather(fleet.start(0), fleet.start(1))
            assert slots == [16, 16]
            answers = await asyncio.gather(
                *(
                    fleet.run(engine, Work(shard, seeds.slice(shard.start, shard.stop)))
                    for engine, shard in enumerate(halves)
                )
            )
            assert [answer.kind for answer in answers] == ["done", "done"]
        finally:
            await fleet.close()

    with connected(None, 2):
        asyncio.run(go())
    manifests = committed(store, plan)
    first, second = (read_shard(store, plan, manifests[shard.index])["instruction"].to_pylist() for shard in halves)
    number = min(len(first), len(second))
    same = sum(a == b for a, b in zip(first[:number], second[:number], strict=True) if a)
    assert same <= 0.1 * number, "equal seeds would give equal texts at equal places"
    assert len({text for text in first if text} & {text for text in second if text}) <= 0.3 * number
