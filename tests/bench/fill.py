"""How full a whole run through Ray keeps the engine: against the raw engine in the same kind of actor.

Both sides run in Ray actors on this machine, one after the other, interleaved; the run's rate counts from the first
dispatch to the last commit and includes seeds, Parquet files, fsync and manifests.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from batchgen.distributed import fleet as ray_fleet
from batchgen.distributed.cluster import connected
from batchgen.distributed.parcel import Parcel
from batchgen.fleet import HostConfig, Placement
from batchgen.host import EngineHost
from batchgen.job import Job
from batchgen.plan import make_plan
from batchgen.rows import random_seed
from batchgen.seeds import load_seeds
from batchgen.settle import settle_plan
from batchgen.store import LocalStore
from tests.bench.shapes import SHAPES, make_model
from tests.bench.workload import CPU, SYSTEM_PROMPT, TURNS, FixedLengths, Lengths, Workload, raw

# vLLM's own number of slots; lengths as on the CPU, and longer ones, as of questions and answers.
GPU = {
    "qwen2-0.5b": Workload("qwen2-0.5b", rows_per_slot=4),
    "qwen2-0.5b, long": Workload("qwen2-0.5b", Lengths(100, 600), rows_per_slot=2),
    "embedded": Workload("embedded", rows_per_slot=4),
}


@dataclass(frozen=True)
class Side:
    """One side of a pair.

    Args:
        cpu: seconds of CPU of the actor's process, which has vLLM's front end and the tasks' code; vLLM's engine has a
            process of its own.
    """

    tokens: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Output tokens a second."""
        return self.tokens / self.seconds


class BenchHost(EngineHost):
    """An engine host with fixed lengths that can also be driven raw."""

    def __init__(self, config: HostConfig) -> None:
        super().__init__(config)
        self._engine = FixedLengths(self._engines[None])
        self._engines[None] = self._engine

    async def raw(self) -> Side:
        """The raw engine on the same workload."""
        config = self._config
        seeds = [
            random_seed(config.job.seed, row.id, "", 0)
            for row in load_seeds(config.job.source).slice(0, config.job.source.count or 0)
        ]
        started, cpu = time.perf_counter(), time.process_time()
        tokens = await raw(self._engine, 2 * self._engine.slots, seeds)
        return Side(tokens, time.perf_counter() - started, time.process_time() - cpu)

    async def reopen(self, config: HostConfig, lengths: Lengths = CPU.lengths) -> None:
        """A worker for another run, on the same engine."""
        from batchgen.generate import Worker
        from batchgen.store import open_store

        self._config = config
        self._engine.lengths = lengths
        self._worker = Worker(config.job, config.plan, open_store(config.store), self._engine)


class BenchActor(ray_fleet._Actor):
    """batchgen's actor with the bench's host."""

    def __init__(self, parcel: Parcel, log: str | None, threads: int | None, local: bool) -> None:
        super().__init__(parcel, log, threads, local)
        self._host: BenchHost = BenchHost(parcel.opened())

    async def raw(self) -> Side:
        """See `BenchHost.raw`."""
        return await self._host.raw()

    async def reopen(self, config: HostConfig, lengths: Lengths) -> None:
        """See `BenchHost.reopen`."""
        await self._host.reopen(config, lengths)

    async def cpu(self) -> float:
        """Seconds of CPU of this process so far."""
        return time.process_time()


def _job(
    folder: Path, number: int, rows: int, model: str = "embedded", arguments: Mapping[str, Any] = CPU.arguments
) -> Job:
    return Job.of(
        {
            "name": "bench",
            "seed": number,
            "source": {"count": rows},
            "model": {"path": model, "engine": dict(arguments)},
            "sampling": {"temperature": 1.0},
            "steps": [{"task": "magpie", "n_turns": TURNS, "system_prompt": SYSTEM_PROMPT}],
            "output": str(folder / f"run-{number}"),
        }
    )


def _config(job: Job) -> tuple[HostConfig, Any]:
    seeds = load_seeds(job.source)
    store = LocalStore(job.output)
    plan = settle_plan(store, make_plan(job, seeds))
    return HostConfig(job, plan, store.location, job.seed), seeds


class Started(ray_fleet.RayFleet):
    """A fleet whose only engine runs already, and goes on from run to run."""

    def __init__(self, actor: Any, slots: int, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._actors[0] = actor
        self._slots = slots

    async def place(self, engine: int) -> None:
        """It has its place."""

    async def start(self, engine: int) -> int:
        """Its slots."""
        return self._slots

    async def kill(self, engine: int) -> None:
        """Not between two runs."""

    async def close(self) -> None:
        """Not between two runs."""


async def _one_run(actor: Any, slots: int, config: HostConfig, seeds: Any) -> Side:
    """A whole run driven by batchgen's own driver on a started actor."""
    from batchgen.drive import Driver
    from batchgen.progress import Progress
    from batchgen.schedule import Scheduler

    last: list[Any] = []
    plan, fleet = config.plan, Started(actor, slots, config, None, Placement(1), local=True)
    driver = Driver(Scheduler(plan.shards, 1), fleet, seeds, len(plan.shards), 0, Progress(), 1, watch=last.append)
    cpu, started = await actor.cpu.remote(), time.perf_counter()
    await driver.run()
    seconds = time.perf_counter() - started
    assert last[-1].done.ok == config.job.source.count, last[-1]
    return Side(last[-1].done.output_tokens, seconds, await actor.cpu.remote() - cpu)


class Actor:
    """A started actor of one model, and the runs on it."""

    def __init__(self, folder: Path, model: str, arguments: Mapping[str, Any], gpus: int) -> None:
        self._folder, self._arguments, self._gpus = folder, arguments, gpus
        self._model = str(make_model(model, folder / model)) if model in SHAPES else model
        self._runs = 0
        self.slots = 0

    async def start(self) -> None:
        """Starts the engine."""
        config, _ = self._next(1)
        log = self._folder / "engine.log"
        self._actor = (
            ray.remote(BenchActor)
            .options(num_cpus=self._gpus, num_gpus=self._gpus, max_concurrency=1000)
            .remote(Parcel.of(replace(config, seed=5)), str(log), None if self._gpus else 2, True)
        )
        self.slots = await self._actor.start.remote()
        assert isinstance(self.slots, int), f"{self.slots}\n{log.read_text()[-8000:]}"

    async def stop(self) -> None:
        """Stops the engine, and frees its GPU."""
        await self._actor.stop.remote()
        ray.kill(self._actor)

    def _next(self, rows: int) -> tuple[HostConfig, Any]:
        self._runs += 1
        return _config(_job(self._folder / Path(self._model).name, self._runs, rows, self._model, self._arguments))

    async def pair(self, workload: Workload, ours_first: bool) -> tuple[Side, Side]:
        """(raw engine, batchgen) on the same rows."""
        config, seeds = self._next(self.slots * workload.rows_per_slot)
        await self._actor.reopen.remote(config, workload.lengths)
        if ours_first:
            ours = await _one_run(self._actor, self.slots, config, seeds)
            return await self._actor.raw.remote(), ours
        base = await self._actor.raw.remote()
        return base, await _one_run(self._actor, self.slots, config, seeds)


async def _pairs(actor: Actor, workload: Workload, repeats: int) -> dict[str, Any]:
    """Figures of a workload; the first pair, in which everything is still cold, does not count."""
    await actor.pair(replace(workload, lengths=CPU.lengths, rows_per_slot=max(1, workload.rows_per_slot // 4)), True)
    pairs = []
    for number in range(repeats):
        pairs.append(await actor.pair(workload, ours_first=number % 2 == 1))
        base, ours = pairs[-1]
        print(f"{workload.model:12s} raw {base.rate:8,.0f} tok/s, batchgen {ours.rate:8,.0f} tok/s", flush=True)
    sides = dict(zip(("raw engine", "batchgen through Ray"), zip(*pairs, strict=True), strict=True))
    ratios = [ours.rate / base.rate for base, ours in pairs]
    return {
        "workload": f"{actor.slots * workload.rows_per_slot} rows, {TURNS} turns, {actor.slots} slots, "
        f"{2 * actor.slots} rows in flight, {workload.model} model, "
        f"{pairs[0][0].tokens / actor.slots / workload.rows_per_slot / 2 / TURNS:.0f} output tokens a call",
        "tokens_per_second": {name: [round(side.rate) for side in each] for name, each in sides.items()},
        "median": {name: round(statistics.median(side.rate for side in each)) for name, each in sides.items()},
        "cpu_seconds_of_the_actor": {name: [round(side.cpu, 1) for side in each] for name, each in sides.items()},
        "ratio_of_each_pair": [round(ratio, 3) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 3),
    }


def measure(repeats: int) -> dict[str, Any]:
    """Medians and the ratio, on the CPU."""

    async def go(folder: Path) -> dict[str, Any]:
        actor = Actor(folder, CPU.model, CPU.arguments, 0)
        await actor.start()
        figures = await _pairs(actor, CPU, repeats)
        await actor.stop()
        return figures

    with tempfile.TemporaryDirectory() as temporary, connected(None, 1):
        return asyncio.run(go(Path(temporary)))


def measure_gpu(repeats: int) -> dict[str, Any]:
    """Medians and ratios on one GPU: the embedded model, and the shape of one that people use."""
    import torch
    import vllm

    async def go(folder: Path) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        for model in dict.fromkeys(workload.model for workload in GPU.values()):
            actor = Actor(folder, model, {}, 1)
            await actor.start()
            for name, workload in GPU.items():
                if workload.model == model:
                    figures[name] = await _pairs(actor, workload, repeats)
                    print(json.dumps(figures[name]), flush=True)
            await actor.stop()
        return figures

    machine = {"gpu": torch.cuda.get_device_name(), "vllm": vllm.__version__, "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as temporary, connected(None, 1):
        return {**machine, "workloads": asyncio.run(go(Path(temporary)))}
