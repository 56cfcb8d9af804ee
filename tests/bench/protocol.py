"""What exactly-once costs: a fault-free run with the full protocol against one that writes nothing, same work.

One vLLM engine in this process, batchgen's own driver and worker, a folder on the local disk. The sides take turns. A
killed engine loses what it has generated of shards that are not committed; that is sampled once a second.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from batchgen import generate
from batchgen.commit import Manifest, attempt_key, commit_shard
from batchgen.drive import Driver, Status
from batchgen.fleet import HostConfig
from batchgen.host import LocalFleet
from batchgen.plan import make_plan
from batchgen.progress import Progress
from batchgen.rows import OK
from batchgen.schedule import Scheduler
from batchgen.seeds import Seeds, load_seeds
from batchgen.settle import settle_plan
from batchgen.store import LocalStore
from tests.bench.fill import BenchHost, _job
from tests.bench.workload import CPU, ROWS, SLOTS

MEAN_LENGTH = statistics.mean(map(CPU.lengths.of, range(10_000)))


def no_commit(
    store: Any, plan: Any, shard: Any, attempt: str, seeds: Any, results: Any, software: Any
) -> tuple[Manifest, bool]:
    """Counts the rows and writes nothing."""
    ok = len({result.seed.id for result in results if result.outcome == OK})
    tokens = (sum(result.input_tokens for result in results), sum(result.output_tokens for result in results))
    place = (shard.index, shard.start, shard.stop, attempt, attempt_key(shard, attempt), plan.fingerprint)
    return Manifest(*place, len(results), ok, len(seeds) - ok, {}, *tokens, 0, ""), True


class _Fleet(LocalFleet):
    """A fleet whose only engine runs already, and goes on from run to run."""

    def __init__(self, host: BenchHost) -> None:
        super().__init__(host._config)
        self._hosts[0], self._running[0] = host, set()

    async def start(self, engine: int) -> int:
        return SLOTS

    async def kill(self, engine: int) -> None: ...


async def _one_run(host: BenchHost, config: HostConfig, seeds: Seeds) -> tuple[float, list[float]]:
    """(seconds of the run, tokens that a kill would have lost at each second of it)."""
    await host.reopen(config)
    at_stake: list[float] = []

    def watch(status: Status) -> None:
        # Completions of rows whose shards are open, and a whole one of mean length for every slot that works.
        finished = status.done.output_tokens - driver._committed.output_tokens
        left = status.rows - status.done.ok - status.done.rejected
        at_stake.append(finished + min(SLOTS, left) * MEAN_LENGTH)

    plan = config.plan
    driver = Driver(Scheduler(plan.shards, 1), _Fleet(host), seeds, len(plan.shards), 0, Progress(), 1, watch)
    started = time.perf_counter()
    await driver.run()
    return time.perf_counter() - started, at_stake


def measure(repeats: int) -> dict[str, Any]:
    """Ratio of wall times, and seconds of work that a killed engine loses."""
    seconds: dict[str, list[float]] = {"full protocol": [], "without commits": []}
    lost: list[float] = []

    async def go(folder: Path) -> None:
        worlds = []
        for number in range(2 * repeats + 1):
            job = _job(folder, number, ROWS)
            seeds = load_seeds(job.source)
            store = LocalStore(job.output)
            worlds.append((HostConfig(job, settle_plan(store, make_plan(job, seeds)), store.location, number), seeds))
        host = BenchHost(worlds[0][0])
        await host.start()
        await _one_run(host, *worlds[0])
        for number, world in enumerate(worlds[1:]):
            # Both sides of a pair, in turns: AB BA AB ...
            side = "full protocol" if number % 4 in (0, 3) else "without commits"
            with mock.patch.object(generate, "commit_shard", commit_shard if side == "full protocol" else no_commit):
                wall, at_stake = await _one_run(host, *world)
            seconds[side].append(wall)
            if side == "full protocol":
                rate = host.progress.output_tokens / wall
                lost.append(max(at_stake) / rate)
            print(f"{side:16s} {wall:7.1f} s", flush=True)
        await host.stop()

    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(go(Path(temporary)))
    pairs = [a / b for a, b in zip(seconds["full protocol"], seconds["without commits"], strict=True)]
    return {
        "workload": f"{ROWS} rows, {SLOTS} slots, embedded model, no Ray, local disk",
        "seconds": {name: [round(value, 1) for value in values] for name, values in seconds.items()},
        "ratio_of_each_pair": [round(ratio, 3) for ratio in pairs],
        "ratio": round(statistics.median(pairs), 3),
        "seconds_of_work_a_killed_engine_loses_at_most": [round(value, 1) for value in lost],
    }
