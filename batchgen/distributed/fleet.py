"""Engines in Ray actors, one actor an engine.

Ray restarts and retries nothing here: with its own retries on, a method that kills its process was measured to run four
times while the driver saw one error. Retries are the scheduler's. A call whose answer the network lost is made again to
an actor that still answers, which has done it once and gives the answer again. Rows never travel through the object
store; seeds go in as arguments, counts come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from batchgen.distributed.cluster import ask, fate_of, gpus_of_machines, usable_cores
from batchgen.distributed.guard import guard_this_process
from batchgen.distributed.parcel import Parcel
from batchgen.distributed.process import allow_open_files, collect_less, redirect_output, set_threads
from batchgen.distributed.turn import Turn
from batchgen.errors import ClusterLost, EngineDead, EngineStartError
from batchgen.fleet import Answer, HostConfig, Placement, Work
from batchgen.known import Texts
from batchgen.progress import Progress
from batchgen.rows import random_seed

_ANSWER_SECONDS = 5.0
# Ray takes up to 65 seconds to find that a machine is gone.
_FATE_SECONDS = 90.0
# Answers that an actor keeps at least, to give them again: more than an engine is asked for at a time.
_KEPT = 1000
_GRACE_SECONDS = 3
_MACHINE_GONE = "the engine's machine left the cluster"


class _Actor:
    """An engine host in a process of its own.

    Args:
        log: where its output goes; None: wherever Ray sends it.
        threads: of OpenMP; None: as many as the engine takes.
        local: whether the cluster is one machine, which messages need not name.
    """

    _refused: EngineStartError | None = None
    _turn: Turn | None = None

    def __init__(self, parcel: Parcel, log: str | None, threads: int | None, local: bool) -> None:
        if log is not None:
            redirect_output(log)
        set_threads(threads)
        allow_open_files()
        guard_this_process()
        self._calls: dict[str, asyncio.Task[Any]] = {}
        self._where = "" if local else f"on {platform.node()}: "
        # Imported here: the driver needs neither distilabel nor an engine.
        from batchgen.host import EngineHost

        try:
            config = parcel.opened()
        except EngineStartError as error:
            self._refused = error  # what an actor raises as it is made does not come through
            return
        with contextlib.suppress(OSError):  # another machine may not have it: its paths are absolute, then
            os.chdir(config.folder)
        self._host = EngineHost(config)

    async def placed(self) -> None:
        """Answers as soon as the actor runs somewhere."""

    async def take_turn(self) -> None:
        """Answers as soon as no other engine is starting on the GPU: vLLM measures there what it may take."""
        await self._once("turn", self._take_turn)

    async def _take_turn(self) -> None:
        try:
            self._turn = await Turn.taken(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
        except EngineStartError as error:
            self._refused = error  # `start` says so: what an actor raises comes without its words

    async def _once(self, key: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """What a call gives, which is made once, however often it is asked for: an answer may have been lost."""
        if key not in self._calls:
            for old in [old for old, task in self._calls.items() if task.done()][:-_KEPT]:
                del self._calls[old]
            self._calls[key] = asyncio.create_task(call())
        return await asyncio.shield(self._calls[key])

    async def start(self) -> int | EngineStartError:
        """The engine's slots, or why it did not start, without what it came from: that may not unpickle elsewhere."""
        answer: int | EngineStartError = await self._once("start", self._start)
        return answer

    async def _start(self) -> int | EngineStartError:
        try:
            if self._refused is not None:
                raise self._refused
            slots = await self._host.start()
            collect_less()
            return slots
        except Exception as error:
            message = f"{self._where}{str(error) or type(error).__name__}"
            return EngineStartError(message, getattr(error, "final", False), getattr(error, "outage", False))
        finally:
            if self._turn is not None:
                self._turn.end()

    async def run(self, key: str, work: Work) -> Answer:
        answer: Answer = await self._once(key, lambda: self._host.run(work))
        return answer

    async def recall(self, shard: int) -> bool:
        return self._host.recall(shard)

    async def learn(self, texts: Texts) -> None:
        self._host.learn(texts)

    async def stop_waiting(self) -> None:
        self._host.stop_waiting()

    async def progress(self, draining: bool) -> Progress:
        self._host.drain(draining)
        return self._host.progress

    async def stop(self) -> None:
        # Rows that go on would find no engine any more, and their shards be committed with what came of that.
        for call in self._calls.values():
            call.cancel()
        await self._host.stop()


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
        # Engines of this machine alone share its cores, where it has no GPUs.
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
            raise ClusterLost("Ray has no machine left" if machines == () else "Ray's head no longer answers")
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
            # A cluster may be used by others, too; here nothing but the number of GPUs limits that of engines.
            "num_cpus": 0 if self._local else 1,
            "num_gpus": self._placement.gpus / self._placement.share,
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
            parcel = await asyncio.to_thread(Parcel.of, replace(self._config, seed=seed))
            actor = await ask(create, parcel, str(log) if log else None, self._threads, self._local)
        except TimeoutError:
            raise EngineStartError("Ray does not answer") from None
        self._actors[engine] = actor
        await self._answer(actor, actor.placed)
        self._placed.add(engine)
        if self._placement.share > 1:
            await self._answer(actor, actor.take_turn)

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
            return await _asked(actor, method)
        except RayTaskError as error:
            raise EngineStartError(_first_line(error)) from error
        except _Gone as gone:
            if gone.machine:
                # The machine's fault, not the engine's: it does not count as a failed start.
                raise EngineDead(_MACHINE_GONE) from gone
            raise EngineStartError(str(gone)) from gone

    async def run(self, engine: int, work: Work) -> Answer:
        """Runs a shard, or a probe of it, on an engine."""
        actor = self._actors.get(engine)
        if actor is None:
            return Answer("engine_dead", error="engine was killed")
        try:
            answer: Answer = await _asked(actor, actor.run, uuid.uuid4().hex, work)
        except RayTaskError as error:
            return Answer("failed", error=_first_line(error))
        except _Gone as gone:
            # Killed, out of memory, its machine gone or out of reach: whatever it was, this actor is given up.
            return (
                Answer("machine_dead", error=_MACHINE_GONE) if gone.machine else Answer("engine_dead", error=str(gone))
            )
        return answer

    async def recall(self, engine: int, shard: int) -> bool:
        """Whether an engine gives a shard back, as it has not begun to work on it."""
        actor = self._actors.get(engine)
        if actor is None:
            return False
        try:
            return bool(await actor.recall.remote(shard))
        except RayError:
            return False

    async def tell(self, engine: int, texts: Texts) -> None:
        """Tells an engine's gates of texts; one that cannot be told now is told no more of these."""
        actor = self._actors.get(engine)
        if actor is not None:
            with contextlib.suppress(RayError, TimeoutError):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await actor.learn.remote(texts)

    async def stop_waiting(self, engine: int) -> None:
        """Has an engine give up what waits for something out of reach."""
        actor = self._actors.get(engine)
        if actor is not None:
            with contextlib.suppress(RayError):
                await actor.stop_waiting.remote()

    async def progress(self, engine: int, draining: bool = False) -> Progress | None:
        """What an engine has done since its start; None where it does not say in time."""
        actor = self._actors.get(engine)
        if actor is None:
            return None
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                progress: Progress = await actor.progress.remote(draining)
        except (TimeoutError, RayError):
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


class _Gone(Exception):
    """An actor is no more, or out of reach for good.

    Args:
        machine: because its machine is.
    """

    def __init__(self, message: str, machine: bool) -> None:
        super().__init__(message)
        self.machine = machine


async def _asked(actor: Any, method: Any, *arguments: Any) -> Any:
    """What a method of an actor answers, which does its work once however often it is asked.

    Raises:
        RayTaskError: it raised.
        _Gone: the actor is.
    """
    while True:
        try:
            return await method.remote(*arguments)
        except RayTaskError:
            raise
        except RayError as error:
            fate = await _fate(actor)
            if fate == "answers" and isinstance(error, ActorUnavailableError):
                continue
            raise _Gone(_cause(error), machine=fate == "lost") from error


async def _fate(actor: Any) -> Literal["answers", "died", "lost"]:
    """What became of an actor to which a call failed; `lost`: its machine is.

    A connection breaks at once, and Ray notices later that there is no machine behind it. A machine that is told to go
    ends its actors first.
    """
    with contextlib.suppress(RayError, TimeoutError):
        async with asyncio.timeout(_FATE_SECONDS):
            while await ask(fate_of, actor) == "alive":
                if await _answers(actor):
                    return "answers"
                await asyncio.sleep(0.5)
        for _ in range(_GRACE_SECONDS):
            if await ask(fate_of, actor) == "lost":
                return "lost"
            await asyncio.sleep(1)
    return "died"


async def _answers(actor: Any) -> bool:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await actor.placed.remote()
    except (TimeoutError, RayError):
        return False
    return True


def _cause(error: BaseException) -> str:
    """What Ray says about the death of an actor, without ids and colours, and with less advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("The actor is dead because", "The actor died because"))]
    told += [line for line in lines if "memory" in line.lower()]
    said, *_ = (told or lines or [type(error).__name__])[0].split(", \x1b[")
    what, guesses, _ = (said.partition("Worker exit detail: ")[2] or said).partition(" Some common causes include")
    return f"the engine's process died: {what}" + (" (dmesg there tells whether memory ran out)" if guesses else "")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
