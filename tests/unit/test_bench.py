"""The benchmarks' own drivers, on the chaos engine: they are to run when somebody wants a figure."""

from __future__ import annotations

import asyncio
from pathlib import Path

from batchgen.commit import committed
from batchgen.fleet import HostConfig
from tests.bench.fill import BenchHost
from tests.bench.protocol import _one_run
from tests.helpers import chaos_job, planned


def test_a_run_on_an_engine_that_is_up_already_commits_every_shard(tmp_path: Path):
    job = chaos_job(tmp_path)
    plan, seeds, store = planned(job)
    config = HostConfig(job, plan, store.location, 0)

    async def go() -> None:
        host = BenchHost(config)
        await host.start()
        await _one_run(host, config, seeds)

    asyncio.run(go())
    assert len(committed(store, plan)) == len(plan.shards)
