"""An engine with its worker, and a fleet of them in this process."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from batchgen.commit import new_attempt
from batchgen.engines import build_engine
from batchgen.engines.base import Engine, EngineSpec
from batchgen.engines.idle import IdleEngine
from batchgen.engines.openai import OpenAIEngine
from batchgen.engines.patient import PatientEngine
from batchgen.engines.weights import Weights
from batchgen.errors import (
    EngineDead,
    EngineStartError,
    EngineStopped,
    EngineUnavailable,
    PlanMismatch,
    StoreError,
    place_of,
)
from batchgen.fleet import Answer, HostConfig, Work
from batchgen.generate import Worker
from batchgen.known import Texts
from batchgen.models import named
from batchgen.outage import Outage
from batchgen.plan import Plan
from batchgen.progress import Progress
from batchgen.store import ObjectStore, open_store

_VISIBLE_SECONDS = 90.0


class EngineHost:
    """One engine, those of further models that the job's steps name, and the worker on them."""

    def __init__(self, config: HostConfig) -> None:
        self._config = config
        self._store_outage = Outage(config.job.outage_seconds)
        self._outages = [self._store_outage]
        self._servers: list[OpenAIEngine] = []
        specs = {name: config.engine_spec(name) for name in config.job.used_models}
        # Servers first, as they are asked in no time: where one does not answer, no model has been loaded for nothing.
        order = sorted(specs, key=lambda name: specs[name].backend != "openai")
        self._engines = {name: self._build(specs[name]) for name in order}
        self._weights = {name: Weights(specs[name]) for name in order}
        self._worker: Worker | None = None

    def _build(self, spec: EngineSpec) -> Engine:
        if spec.backend != "openai":
            return build_engine(spec)
        self._outages.append(Outage(self._config.job.outage_seconds))
        server = build_engine(spec)
        if isinstance(server, OpenAIEngine):
            self._servers.append(server)
        return PatientEngine(server, self._outages[-1])

    async def start(self) -> int:
        """Loads the models; returns how many requests the engines of the job's steps work on at once."""
        config = self._config
        store = open_store(config.store)
        await _check_shared(store, config.plan, self._store_outage)
        for name, engine in self._engines.items():
            try:
                await self._weights[name].fetch()
                await engine.start()
            except EngineStartError as error:
                raise EngineStartError(named(name, str(error)), error.final, error.outage) from error
        others = {name: engine for name, engine in self._engines.items() if name is not None}
        own = self._engines.get(None) or IdleEngine(config.job.model.path)
        self._worker = Worker(config.job, config.plan, store, own, others)
        return self._worker.slots

    async def run(self, work: Work) -> Answer:
        """Generates and commits a shard, or tries some of its rows; an answer, whatever happens."""
        assert self._worker is not None, "start() first"
        try:
            if work.probe:
                await self._worker.probe([seed for seed in work.seeds if seed.index not in work.quarantined])
                return Answer("done")
            done = await self._worker.shard(work.shard, new_attempt(), work.seeds, work.quarantined)
            return Answer("done", done.progress, texts=done.texts) if done is not None else Answer("returned")
        except EngineDead as error:
            return Answer("engine_stopped" if isinstance(error, EngineStopped) else "engine_dead", error=str(error))
        except (StoreError, EngineUnavailable) as error:
            return Answer("unavailable", error=str(error), waited=error.waited)
        except PlanMismatch as error:
            return Answer("unavailable", error=str(error))
        except Exception as error:
            return Answer("failed", error=f"{type(error).__name__} in {place_of(error)}")

    def recall(self, shard: int) -> bool:
        """Gives a shard back that the engine has not begun to work on; says whether it does."""
        return self._worker is not None and self._worker.give_back(shard)

    def learn(self, texts: Texts) -> None:
        """Tells the gates what rows that ran elsewhere have brought."""
        if self._worker is not None:
            self._worker.learn(texts)

    def stop_waiting(self) -> None:
        """Gives up what waits for a store or a server that is out of reach: the run is about to stop."""
        if self._worker is not None:
            self._worker.stop_waiting()
        for outage in self._outages:
            outage.give_up()

    def drain(self, draining: bool) -> None:
        """Tells whether, as things are, no shard is to come and none to be given back."""
        if self._worker is not None:
            self._worker.in_flight.draining = draining

    @property
    def progress(self) -> Progress:
        """What the worker has done since it started, with the tokens of completions that have not ended."""
        reasons = [outage.reason for outage in self._outages] + [each.reason for each in self._weights.values()]
        if self._worker is None:
            return Progress(waiting=next(filter(None, reasons), ""))
        waiting = next(filter(None, [self._worker.waiting, *reasons]), "")
        done = self._worker.progress
        tokens = done.output_tokens + sum(engine.tokens_in_flight for engine in self._engines.values())
        rows = self._worker.in_flight
        slowed = next(filter(None, (server.slowed for server in self._servers)), "")
        return replace(
            done, output_tokens=tokens, waiting=waiting, in_flight=len(rows), slowed=slowed, open_rows=rows.told
        )

    async def stop(self) -> None:
        """Ends the engines."""
        for engine in self._engines.values():
            await engine.stop()


async def _check_shared(store: ObjectStore, plan: Plan, outage: Outage) -> None:
    """Refuses to work where the run's folder is another than the driver's: what is committed there nobody would find.

    Raises:
        EngineStartError: says so, or that the store was out of reach for as long as that is waited for.
    """

    async def read() -> bytes | None:
        try:
            return await asyncio.to_thread(store.read, plan.key)
        except StoreError as error:
            if error.denied:  # this machine's keys, likely: the driver has been let in
                raise EngineStartError(str(error)) from None
            raise

    until = time.monotonic() + _VISIBLE_SECONDS
    try:
        # NFS shows a new file to other machines up to a minute late.
        while (data := await outage.outlast(read)) is None and time.monotonic() < until:
            await asyncio.sleep(1)
    except StoreError as error:
        raise EngineStartError(str(error), outage=True) from None
    if data is None or Plan.parse(data, plan.key).fingerprint != plan.fingerprint:
        found = "holds another run" if data is not None else "is not there"
        raise EngineStartError(
            f"output: {store.location} {found} on the machine of this engine; it has to be a folder that all machines "
            "share, or s3://bucket/prefix"
        )


class LocalFleet:
    """Engines in this process and on its event loop: for tests, and for looking at one row after another."""

    def __init__(self, config: HostConfig, engines: int = 1) -> None:
        self._config = config
        self._engines = engines
        self._hosts: dict[int, EngineHost] = {}
        self._running: dict[int, set[asyncio.Task[Answer]]] = {}

    async def room(self) -> int:
        """As many engines as were asked for."""
        return self._engines

    async def place(self, engine: int) -> None:
        """There is room for as many engines as were asked for."""

    async def start(self, engine: int) -> int:
        """Starts an engine and returns its slots."""
        self._hosts[engine] = host = EngineHost(self._config)
        self._running[engine] = set()
        return await host.start()

    async def run(self, engine: int, work: Work) -> Answer:
        """Runs a shard, or a probe of it, on an engine."""
        host = self._hosts.get(engine)
        if host is None:
            return Answer("engine_dead", error="engine was killed")
        task = asyncio.create_task(host.run(work))
        self._running[engine].add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if task.cancelled():
                return Answer("engine_dead", error="engine was killed")
            raise

    async def recall(self, engine: int, shard: int) -> bool:
        """Whether an engine gives a shard back."""
        host = self._hosts.get(engine)
        return host is not None and host.recall(shard)

    async def tell(self, engine: int, texts: Texts) -> None:
        """Tells an engine's gates of texts."""
        if (host := self._hosts.get(engine)) is not None:
            host.learn(texts)

    async def stop_waiting(self, engine: int) -> None:
        """Has an engine give up what waits for something out of reach."""
        if (host := self._hosts.get(engine)) is not None:
            host.stop_waiting()

    async def progress(self, engine: int, draining: bool = False) -> Progress | None:
        """What an engine has done since its start."""
        if (host := self._hosts.get(engine)) is None:
            return None
        host.drain(draining)
        return host.progress

    async def kill(self, engine: int) -> None:
        """Ends an engine at once."""
        for task in self._running.pop(engine, ()):
            task.cancel()
        if host := self._hosts.pop(engine, None):
            await host.stop()

    async def close(self) -> None:
        """Ends all engines."""
        for engine in list(self._hosts):
            await self.kill(engine)
