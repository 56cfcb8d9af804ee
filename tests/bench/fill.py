"""How full a whole run through Ray keeps the engine: against the raw engine in the same kind of actor.

Both sides run in Ray actors on this machine, one after the other, interleaved; the run's rate counts from the first
dispatch to the last commit and includes seeds, Parquet files, fsync and manifests.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from batchgen.distributed import fleet as ray_fleet
from batchgen.distributed.cluster import connected
from batchgen.fleet import HostConfig, Placement
from batchgen.host import EngineHost
from batchgen.job import Job
from batchgen.plan import make_plan, settle_plan
from batchgen.rows import random_seed
from batchgen.seeds import load_seeds
from batchgen.store import LocalStore
from tests.bench.workload import ROWS, SLOTS, SPEC, SYSTEM_PROMPT, TURNS, FixedLengths, raw

# A run drains once, at its end; a real one lasts hours, so this one is not to be all end.
REPEAT_ROWS = 4 * ROWS


class BenchHost(EngineHost):
    """An engine host with fixed lengths that can also be driven raw."""

    def __init__(self, config: HostConfig) -> None:
        super().__init__(config)
        self._engine = FixedLengths(self._engine)

    async def raw(self) -> tuple[int, float]:
        """(output tokens, seconds) of the raw engine on the same workload."""
        config = self._config
        rows = load_seeds(config.job.source).slice(0, REPEAT_ROWS)
        seeds = [random_seed(config.job.seed, row.id, "", 0) for row in rows]
        started = time.perf_counter()
        tokens = await raw(self._engine, 2 * SLOTS, seeds)
        return tokens, time.perf_counter() - started

    async def reopen(self, config: HostConfig) -> None:
        """A worker for another run, on the same engine."""
        from batchgen.generate import Worker
        from batchgen.store import open_store

        self._config = config
        self._worker = Worker(config.job, config.plan, open_store(config.store), self._engine)


class BenchActor(ray_fleet._Actor):
    """batchgen's actor with the bench's host."""

    def __init__(self, config: HostConfig, log: str | None, threads: int | None) -> None:
        super().__init__(config, log, threads)
        self._host = BenchHost(config)

    async def raw(self) -> tuple[int, float]:
        """See `BenchHost.raw`."""
        return await self._host.raw()

    async def reopen(self, config: HostConfig) -> None:
        """See `BenchHost.reopen`."""
        await self._host.reopen(config)


def _job(folder: Path, number: int, rows: int = REPEAT_ROWS) -> Job:
    return Job.of(
        {
            "name": "bench",
            "seed": number,
            "source": {"count": rows},
            "model": {"path": "embedded", "engine": dict(SPEC.arguments)},
            "sampling": {"temperature": 1.0},
            "steps": [{"task": "magpie", "n_turns": TURNS, "system_prompt": SYSTEM_PROMPT}],
            "output": str(folder / f"run-{number}"),
        }
    )


class Started(ray_fleet.RayFleet):
    """A fleet whose only engine runs already, and goes on from run to run."""

    def __init__(self, actor: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._actors[0] = actor

    async def place(self, engine: int) -> None:
        """It has its place."""

    async def start(self, engine: int) -> int:
        """Its slots."""
        return SLOTS

    async def kill(self, engine: int) -> None:
        """Not between two runs."""

    async def close(self) -> None:
        """Not between two runs."""


async def _one_run(actor: Any, config: HostConfig, seeds: Any) -> tuple[int, float]:
    """(output tokens, seconds) of a whole run driven by batchgen's own driver on a started actor."""
    from batchgen.drive import Driver
    from batchgen.progress import Progress
    from batchgen.schedule import Scheduler

    await actor.reopen.remote(config)
    last: list[Any] = []
    plan, fleet = config.plan, Started(actor, config, None, Placement(1), local=True)
    driver = Driver(Scheduler(plan.shards, 1), fleet, seeds, len(plan.shards), 0, Progress(), 1, watch=last.append)
    started = time.perf_counter()
    await driver.run()
    seconds = time.perf_counter() - started
    assert last[-1].done.ok == REPEAT_ROWS, last[-1]
    return last[-1].done.output_tokens, seconds


def measure(repeats: int) -> dict[str, Any]:
    """Medians and the ratio."""
    rates: dict[str, list[float]] = {"raw engine": [], "batchgen through Ray": []}
    with tempfile.TemporaryDirectory() as temporary, connected(None, 1):
        folder = Path(temporary)

        async def go() -> None:
            configs = []
            for number in range(repeats + 1):
                job = _job(folder, number)
                seeds = load_seeds(job.source)
                store = LocalStore(job.output)
                plan = settle_plan(store, make_plan(job, seeds))
                configs.append((HostConfig(job, plan, store.location, number), seeds))
            actor = (
                ray.remote(BenchActor)
                .options(num_cpus=0, max_concurrency=1000)
                .remote(replace(configs[0][0], seed=5), str(folder / "engine.log"), 2)
            )
            slots = await actor.start.remote()
            assert slots == SLOTS, slots
            await _one_run(actor, *configs[0])
            for config, seeds in configs[1:]:
                await actor.reopen.remote(config)
                sides = [("raw engine", actor.raw.remote), ("batchgen through Ray", None)]
                for name, work in sides if config.seed % 2 else reversed(sides):
                    tokens, seconds = await (work() if work else _one_run(actor, config, seeds))
                    rates[name].append(tokens / seconds)
                    print(f"{name:22s} {rates[name][-1]:8,.0f} tok/s", flush=True)
            await actor.stop.remote()

        asyncio.run(go())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    pairs = [ours / base for base, ours in zip(rates["raw engine"], rates["batchgen through Ray"], strict=True)]
    return {
        "workload": f"{REPEAT_ROWS} rows, {TURNS} turns, {SLOTS} slots, {2 * SLOTS} rows in flight, embedded model",
        "tokens_per_second": {name: [round(value) for value in values] for name, values in rates.items()},
        "median": {name: round(value) for name, value in medians.items()},
        "ratio_of_each_pair": [round(ratio, 3) for ratio in pairs],
        "ratio": round(statistics.median(pairs), 3),
    }
