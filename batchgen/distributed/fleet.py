"""Engines in Ray actors, one actor an engine.

Ray restarts and retries nothing here: with its own retries on, a method that kills its process was measured to run four
times while the driver saw one error. Retries are the scheduler's. Rows never travel through the object store; seeds go
in as arguments, counts come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from batchgen.distributed.cluster import ask, fate_of, gpus_of_machines, usable_cores
from batchgen.distributed.guard import guard_this_process
from batchgen.errors import ClusterLost, EngineDead, EngineStartError
from batchgen.fleet import Answer, HostConfig, Placement, Work
from batchgen.progress import Progress
from batchgen.rows import random_seed

_PROGRESS_TIMEOUT = 5.0
_FATE_SECONDS = 60.0
_GRACE_SECONDS = 3
_MACHINE_GONE = "the engine's machine left the cluster"


class _Actor:
    """An engine host in a process of its own.

    Args:
        log: where its output goes; None: wherever Ray sends it.
        threads: of OpenMP; None: as many as it takes.
        local: whether the cluster is one machine, which messages need not name.
    """

    def __init__(self, config: HostConfig, log: str | None, threads: int | None, local: bool) -> None:
        if log is not None:
            _redirect_output(log)
        if threads is not None:
            # Read by OpenMP when torch is imported; Ray sets it to 1 for an actor without CPUs of its own.
            os.environ["OMP_NUM_THREADS"] = str(threads)
        with contextlib.suppress(OSError):  # another machine may not have it: its paths are absolute, then
            os.chdir(config.folder)
        guard_this_process()
        # Imported here: the driver needs neither distilabel nor an engine.
        from batchgen.host import EngineHost

        self._host = EngineHost(config)
        self._where = "" if local else f"on {platform.node()}: "

    async def placed(self) -> None:
        """Answers as soon as the actor runs somewhere."""

    async def start(self) -> int | EngineStartError:
        """The engine's slots, or why it did not start, without what it came from: that may not unpickle elsewhere."""
        try:
            slots = await self._host.start()
            _leave_out_of_collections()
            return slots
        except Exception as error:
            message = f"{self._where}{str(error) or type(error).__name__}"
            return EngineStartError(message, getattr(error, "final", False))

    async def run(self, work: Work) -> Answer:
        return await self._host.run(work)

    async def recall(self, shard: int) -> bool:
        return self._host.recall(shard)

    async def stop_waiting(self) -> None:
        self._host.stop_waiting()

    async def progress(self) -> Progress:
        return self._host.progress

    async def stop(self) -> None:
        await self._host.stop()


def _leave_out_of_collections() -> None:
    """Keeps what is loaded by now out of every later garbage collection.

    vLLM, distilabel and transformers come to 750,000 objects: a full collection went through them in 0.45 seconds, in
    which neither rows nor the engine's outputs went on, three times in 16,000 calls.
    """
    gc.collect()
    gc.freeze()


def _redirect_output(log: str) -> None:
    """Sends everything that this process and its children print to a log file."""
    try:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    except OSError:
        return  # the run's folder is not on this machine: Ray's own worker logs have it
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


class RayFleet:
    """A `Fleet` over the Ray cluster that this process is connected to.

    Args:
        local: whether the cluster is this machine alone.
    """

    def __init__(self, config: HostConfig, logs: Path | None, placement: Placement, local: bool) -> None:
        self._config = config
        self._logs = logs
        self._placement = placement
        self._local = local
        # Engines of one machine share its cores; on a cluster Ray's scheduler and the machine decide.
        shared = local and not placement.gpus
        self._threads = max(1, usable_cores() // placement.engines) if shared else None
        self._actors: dict[int, Any] = {}
        self._placed: set[int] = set()
        self._lost = False

    def log_of(self, engine: int) -> Path | None:
        """Where an engine's output goes."""
        return self._logs / f"engine-{engine}.log" if self._logs else None

    async def room(self) -> int:
        """How many engines the cluster's GPUs are enough for now, or as many as the job asks for.

        Raises:
            ClusterLost: there is no cluster any more.
        """
        try:
            machines = await self._machines()
        except RayError:
            return self._placement.engines
        if not machines:
            self._lost = True
            raise ClusterLost("Ray has no machine left" if machines == () else "Ray's head does not answer any more")
        return self._placement.room(machines) if self._placement.elastic else self._placement.engines

    @staticmethod
    async def _machines() -> tuple[int, ...] | None:
        """GPUs of each machine of the cluster; None where its head does not answer."""
        for _ in range(2):  # a process that was paused for long finds that its time is up as it goes on
            with contextlib.suppress(TimeoutError):
                machines: tuple[int, ...] = await ask(gpus_of_machines)
                return machines
        return None

    async def place(self, engine: int) -> None:
        """Waits until Ray has found a place for an engine's actor: where there is no room, until there is."""
        options = {
            "num_cpus": 0 if self._threads is not None else 1,
            "num_gpus": self._placement.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            # Rows are tasks of the actor's loop; a call is a shard, and an engine holds few of them.
            "max_concurrency": 1000,
        }
        # Two starts never share a seed, not even those of two drivers: Magpie's prompts are all the same.
        seed = random_seed(self._config.seed, engine, os.urandom(8).hex())
        log = self.log_of(engine)
        create = ray.remote(_Actor).options(**options).remote
        try:
            config = replace(self._config, seed=seed)
            actor = await ask(create, config, str(log) if log else None, self._threads, self._local)
        except TimeoutError:
            raise EngineStartError("Ray does not answer") from None
        self._actors[engine] = actor
        await self._answer(actor, actor.placed)
        self._placed.add(engine)

    async def start(self, engine: int) -> int:
        """Starts an engine that has its place and returns its slots."""
        actor = self._actors[engine]
        answer = await self._answer(actor, actor.start)
        if isinstance(answer, EngineStartError):
            raise answer
        return int(answer)

    @staticmethod
    async def _answer(actor: Any, method: Any) -> Any:
        """What a method of an actor that comes up answers."""
        try:
            return await method.remote()
        except RayError as error:
            if await _went_with_its_machine(actor):
                # The machine's fault, not the engine's: it does not count as a failed start.
                raise EngineDead(_MACHINE_GONE) from error
            raise EngineStartError(_cause(error)) from error

    async def run(self, engine: int, work: Work) -> Answer:
        """Runs a shard, or a probe of it, on an engine."""
        actor = self._actors.get(engine)
        if actor is None:
            return Answer("engine_dead", error="engine was killed")
        try:
            answer: Answer = await actor.run.remote(work)
        except RayTaskError as error:
            return Answer("failed", error=_first_line(error))
        except RayError as error:
            # Killed, out of memory, its machine gone or out of reach: whatever it was, this actor is given up.
            if await _went_with_its_machine(actor):
                return Answer("machine_dead", error=_MACHINE_GONE)
            return Answer("engine_dead", error=_cause(error))
        return answer

    async def recall(self, engine: int, shard: int) -> bool:
        """Whether an engine gives a shard back, as none of its rows has begun."""
        actor = self._actors.get(engine)
        if actor is None:
            return False
        try:
            return bool(await actor.recall.remote(shard))
        except RayError:
            return False

    async def stop_waiting(self, engine: int) -> None:
        """Has an engine give up what waits for something out of reach."""
        actor = self._actors.get(engine)
        if actor is not None:
            with contextlib.suppress(RayError):
                await actor.stop_waiting.remote()

    async def progress(self, engine: int) -> Progress | None:
        """What an engine has done since its start; None where it does not say in time."""
        actor = self._actors.get(engine)
        if actor is None:
            return None
        try:
            async with asyncio.timeout(_PROGRESS_TIMEOUT):
                progress: Progress = await actor.progress.remote()
        except (TimeoutError, GetTimeoutError, RayError):
            return None
        return progress

    async def kill(self, engine: int) -> None:
        """Ends an engine at once: `ray.cancel` would not stop a method that runs."""
        actor = self._actors.pop(engine, None)
        if actor is not None and not self._lost:
            with contextlib.suppress(RayError, TimeoutError):
                await ask(ray.kill, actor)

    async def close(self) -> None:
        """Ends all engines, giving each a moment to end its own processes."""
        told = [] if self._lost else [actor for engine, actor in self._actors.items() if engine in self._placed]
        stops = [actor.stop.remote() for actor in told]
        with contextlib.suppress(Exception):
            async with asyncio.timeout(10):
                await asyncio.gather(*stops, return_exceptions=True)
        for engine in list(self._actors):
            await self.kill(engine)


async def _went_with_its_machine(actor: Any) -> bool:
    """Whether an actor that does not answer any more is gone because its machine is.

    A connection breaks at once, and Ray notices up to 20 seconds later that there is no machine behind it. A machine
    that is told to go ends its actors first.
    """
    with contextlib.suppress(RayError, TimeoutError):
        async with asyncio.timeout(_FATE_SECONDS):
            while await ask(fate_of, actor) == "alive":
                await asyncio.sleep(0.5)
        for _ in range(_GRACE_SECONDS):
            if await ask(fate_of, actor) == "lost":
                return True
            await asyncio.sleep(1)
    return False


def _cause(error: BaseException) -> str:
    """What Ray says about the death of an actor, without ids and colours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("The actor is dead because", "The actor died because"))]
    told += [line for line in lines if "memory" in line.lower()]
    said, *_ = (told or lines or [type(error).__name__])[0].split(", \x1b[")
    return f"the engine's process died: {said}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
