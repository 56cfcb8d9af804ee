"""Drives a scheduler over a fleet: carries out its actions and reports what came of them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from batchgen.actions import Action, Dispatch, Finish, KillEngine, Recall, StartEngine
from batchgen.errors import BatchgenError, EngineDead, EngineError
from batchgen.fleet import Fleet, Work
from batchgen.known import KnownTexts, Texts
from batchgen.meter import Meter
from batchgen.outage import TELL_SECONDS
from batchgen.progress import Progress
from batchgen.pulse import Pulse
from batchgen.schedule import Scheduler
from batchgen.seeds import Seeds

POLL_SECONDS = 1.0
_PLACE_SECONDS = 60.0
# Of the time for which an engine could not go on.
_MOST = 0.75
# So many rows are named that had not ended where an engine hangs.
_NAMED_ROWS = 8


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Args:
        rows: seed rows of the whole run.
        done: what is committed, or generated and about to be.
        engines: as many as there is room for; 0 before and after there are any.
        rows_in_flight: that engines work on.
        tokens_per_second: output tokens, of completions that ended lately.
        eta: seconds until all rows are done, where that can be told.
        merge: how far the merge is, in words; "" before and after it.
    """

    rows: int
    done: Progress
    shards: int
    shards_done: int
    engines: int = 0
    engines_ready: int = 0
    rows_in_flight: int = 0
    tokens_per_second: float = 0.0
    eta: float | None = None
    notes: tuple[str, ...] = ()
    merge: str = ""


class Driver:
    """One run's event loop.

    Args:
        rows: seed rows of the whole run.
        shards: of the whole run.
        before: what was committed before this start.
        watch: called with the status about once a second and at the end.
        stall_seconds: an engine of which no token and no row comes for so long is taken for hung, killed and replaced.
        start_seconds: so is one that has its place and is not up after so long.
        texts_before: at the job's gates, of what was committed before this start.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        fleet: Fleet,
        seeds: Seeds,
        shards: int,
        shards_before: int,
        before: Progress,
        engines: int,
        watch: Callable[[Status], None],
        stall_seconds: float = 900.0,
        start_seconds: float = 1800.0,
        texts_before: Iterable[Texts] = (),
    ) -> None:
        self._scheduler = scheduler
        self._fleet = fleet
        self._seeds = seeds
        self._shards = shards
        self._shards_before = shards_before
        self._shards_done = shards_before
        self._committed = before
        self._wanted = self._room = engines
        self._watch = watch
        self._stall_seconds = stall_seconds
        self._start_seconds = start_seconds
        self._texts_before = texts_before
        self._known = KnownTexts()
        self._events: asyncio.Queue[Callable[[], list[Action]]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        # Engines that are up.
        self._up: dict[int, Pulse] = {}
        # By engine, gone ones too: when it was last told what it waits for, and when it last committed a shard.
        self._told: dict[int, float] = {}
        self._committed_at: dict[int, float] = {}
        self._handed_on: float | None = None
        self._meter = Meter()
        self._notes: deque[str] = deque(maxlen=3)
        self._hurried = False
        self._result: BatchgenError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def request_stop(self, reason: str, insist: bool = True) -> None:
        """Stops handing out shards and takes back what has not begun; call again to end at once.

        Safe from signal handlers and other threads.

        Args:
            insist: end at once what is stopping already.
        """
        stop = partial(self._events.put_nowait, partial(self._stop, reason, insist))
        self._loop.call_soon_threadsafe(stop) if self._loop else stop()

    def _stop(self, reason: str, insist: bool) -> list[Action]:
        if not self._scheduler.stopping:
            actions = self._scheduler.stop(reason)
            if not self._scheduler.finished:
                self._note(
                    f"{reason}: what has begun is finished and committed; told to stop once more, the run ends at once"
                )
            return actions
        return self._scheduler.stop(reason) if insist else []

    def fail(self, error: BaseException) -> None:
        """Ends the run at once with an error, which `run` raises; to be called on its event loop."""

        def raised() -> list[Action]:
            raise error

        self._events.put_nowait(raised)

    async def run(self) -> None:
        """Runs to the end.

        Raises:
            Stopped: ended early, resumable.
            BatchgenError: failed.
        """
        self._loop = asyncio.get_running_loop()
        self._spawn(self._poll())
        self._known.read(self._texts_before, self._note)
        try:
            await self._perform(self._scheduler.start())
            while not self._scheduler.finished:
                event = await self._events.get()
                await self._perform(event())
                self._hurry()
        finally:
            for task in self._tasks:
                task.cancel()
            try:
                self._show()
            finally:
                await self._fleet.close()
                self._known.close()
        if self._result is not None:
            raise self._result

    async def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case StartEngine(engine):
                    self._spawn(self._start(engine))
                case Dispatch():
                    self._spawn(self._dispatch(action))
                case Recall(engine, shard):
                    self._spawn(self._recall(engine, shard))
                case KillEngine(engine):
                    self._up.pop(engine, None)
                    await self._fleet.kill(engine)
                case Finish(error):
                    self._result = error

    def _hurry(self) -> None:
        """Has engines wait no longer for what is out of reach, once the run is to stop."""
        if self._scheduler.stopping and not self._hurried:
            self._hurried = True
            for engine in self._up:
                self._spawn(self._fleet.stop_waiting(engine))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A defect must end the run: an event that never comes would let it wait for ever."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    async def _start(self, engine: int) -> None:
        try:
            await self._place(engine)
            self._events.put_nowait(lambda: self._scheduler.engine_placed(engine))
            slots = await self._bring_up(engine)
        except TimeoutError:
            message = f"it was not up after {self._start_seconds:.0f} s: taken for hung (start_seconds)"
            self._note(f"engine {engine} did not start: {message}")
            self._events.put_nowait(lambda: self._scheduler.engine_start_failed(engine, message))
            return
        except EngineDead as error:
            message = str(error)
            self._note(f"engine {engine} did not start: {message}")
            self._events.put_nowait(lambda: self._scheduler.engine_lost(engine, message, machine=True))
            return
        except EngineError as error:
            message, final, outage = str(error), getattr(error, "final", False), getattr(error, "outage", False)
            self._note(f"engine {engine} did not start: {message.partition(chr(10))[0]}")
            self._events.put_nowait(lambda: self._scheduler.engine_start_failed(engine, message, final, outage))
            return
        self._up[engine] = Pulse(moved=time.monotonic())
        self._events.put_nowait(lambda: self._scheduler.engine_ready(engine, slots))

    async def _place(self, engine: int) -> None:
        """Waits for an engine's place: on a cluster that is full that may take hours, and is no failure."""
        note = f"engine {engine} waits for room in the cluster: its GPUs or CPUs are taken, or it has none yet"
        told = asyncio.get_running_loop().call_later(_PLACE_SECONDS, self._note, note)
        try:
            await self._fleet.place(engine)
        finally:
            told.cancel()

    async def _bring_up(self, engine: int) -> int:
        """Starts an engine that has its place; raises as the fleet's `start`, or `TimeoutError`."""
        async with asyncio.timeout(self._start_seconds) as limit:
            listening = asyncio.create_task(self._listen(engine, limit))
            try:
                return await self._fleet.start(engine)
            finally:
                listening.cancel()

    async def _listen(self, engine: int, limit: asyncio.Timeout) -> None:
        """Tells what an engine waits for as it starts; one that waits does not hang."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            progress = await self._fleet.progress(engine)
            if progress is not None and progress.waiting:
                self._tell(engine, f" waits: {progress.waiting}")
                if not limit.expired():
                    limit.reschedule(asyncio.get_running_loop().time() + self._start_seconds)

    async def _dispatch(self, action: Dispatch) -> None:
        engine, shard = action.engine, action.shard
        if (pulse := self._up.get(engine)) is None:
            return  # killed by an event that came right behind: the scheduler has taken back what it held
        pulse.held += 1
        pulse.moved = time.monotonic()
        rows = action.rows or (shard.start, shard.stop)
        work = Work(shard, self._seeds.slice(*rows), action.quarantined, probe=action.rows is not None)
        if not work.probe:
            # Not before: it may have been tried out with rows that are committed, which are no duplicates there.
            pulse.informed = True
        answer = await self._fleet.run(engine, work)
        if engine not in self._up:
            # It was killed meanwhile: what it held is somebody else's, and what its other shards say hides the cause.
            return
        pulse.held -= 1
        pulse.moved = time.monotonic()
        if answer.kind == "done" and answer.progress is not None:
            self._committed += answer.progress
            self._shards_done += 1
            if answer.texts:
                self._known.add(answer.texts, engine)
            self._committed_at[engine] = pulse.moved
            self._handed_on = None
            pulse.receipted += answer.progress
            self._events.put_nowait(lambda: self._scheduler.shard_done(engine, shard.index))
            return
        if answer.kind in ("done", "returned"):
            tell = self._scheduler.probe_done if answer.kind == "done" else self._scheduler.shard_returned
            self._events.put_nowait(lambda: tell(engine, shard.index))
            return
        self._note(f"shard {shard.name} on engine {engine}: {answer.error}")
        only_here = answer.kind == "unavailable" and self._only_here(engine, answer.waited)
        react = {
            "engine_dead": lambda: self._scheduler.engine_lost(engine, answer.error),
            "engine_stopped": lambda: self._scheduler.engine_lost(engine, answer.error, stopped=True),
            "machine_dead": lambda: self._scheduler.engine_lost(engine, answer.error, machine=True),
            "unavailable": lambda: self._scheduler.service_failed(engine, shard.index, answer.error, only_here),
        }.get(answer.kind, lambda: self._scheduler.shard_failed(engine, shard.index, answer.error))
        self._events.put_nowait(react)

    def _only_here(self, engine: int, waited: float) -> bool:
        """Whether what this engine waited for in vain may be out of reach for it alone, so that others take over.

        It is, where others committed shards for most of that time: not at its beginning, as they may have been a moment
        ahead where it went away for all. Where they had none to commit, being idle or in the midst of long ones, and
        wait for nothing, it is found out, but only once until something is committed: then the run is to end.
        """
        now = time.monotonic()
        if any(at > now - _MOST * waited for other, at in self._committed_at.items() if other != engine):
            return True
        if all(pulse.waiting for other, pulse in self._up.items() if other != engine):
            return False
        self._handed_on = self._handed_on or now
        # Engines that began to wait before, likely beside the first one, tell nothing new.
        return now - waited < self._handed_on

    async def _recall(self, engine: int, shard: int) -> None:
        if not await self._fleet.recall(engine, shard):
            self._events.put_nowait(lambda: self._scheduler.recall_refused(engine, shard))

    async def _poll(self) -> None:
        while True:
            # All at once: an engine that does not answer takes seconds to say so.
            up = list(self._up.items())
            looks = [self._look_at(engine, pulse) for engine, pulse in up]
            await asyncio.gather(*looks, *[self._inform(engine) for engine, pulse in up if pulse.informed])
            await self._grow()
            self._show()
            await asyncio.sleep(POLL_SECONDS)

    async def _look_at(self, engine: int, pulse: Pulse) -> None:
        progress = await self._fleet.progress(engine, self._scheduler.drains(engine))
        if engine not in self._up:
            return
        pulse.felt(progress, time.monotonic())
        if pulse.waiting:
            self._tell(engine, f" waits: {pulse.waiting}")
        elif progress is not None and progress.slowed:
            self._tell(engine, f": {progress.slowed}")
        if pulse.hangs(time.monotonic(), self._stall_seconds):
            self._lose_hung(engine, pulse)

    async def _inform(self, engine: int) -> None:
        """Tells an engine's gates what has been committed since it was told the last time."""
        if texts := self._known.untold(engine):
            await self._fleet.tell(engine, texts)

    def _tell(self, engine: int, what: str) -> None:
        """Notes what an engine waits for, again and again but not all the time: a server may answer now and then."""
        now = time.monotonic()
        if now - self._told.get(engine, float("-inf")) > TELL_SECONDS:
            self._told[engine] = now
            self._note(f"engine {engine}{what}")

    async def _grow(self) -> None:
        """Has engines started where machines have joined the cluster."""
        self._room = room = await self._fleet.room()
        if room > self._wanted:
            self._note(f"the cluster has room for {room} engines now")
            self._wanted = room
            self._events.put_nowait(lambda: self._scheduler.grow(room))

    def _lose_hung(self, engine: int, pulse: Pulse) -> None:
        open_rows = pulse.open_rows
        left = f" (seed rows that have not ended: {', '.join(map(str, open_rows))})"
        reason = f"nothing came of it for {self._stall_seconds:.0f} s: taken for hung"
        reason += left * (0 < len(open_rows) <= _NAMED_ROWS)
        self._note(f"engine {engine}: {reason}")
        pulse.moved = time.monotonic()
        self._events.put_nowait(lambda: self._scheduler.engine_lost(engine, reason, open_rows=open_rows))

    def _note(self, text: str) -> None:
        self._notes.append(text)

    def _show(self) -> None:
        done = self._committed
        for pulse in self._up.values():
            done += pulse.beyond()
        rows = min(done.ok + done.rejected, self._seeds.count)
        ready = self._scheduler.engines_ready
        if not ready:
            self._meter.clear()
        self._meter.add(time.monotonic(), rows, done.output_tokens)
        _, token_rate = self._meter.rates()
        self._watch(
            Status(
                rows=self._seeds.count,
                done=done,
                shards=self._shards,
                shards_done=self._shards_done,
                engines=min(max(self._room, ready), self._shards - self._shards_before),
                engines_ready=ready,
                rows_in_flight=sum(pulse.in_flight for pulse in self._up.values()),
                tokens_per_second=token_rate,
                eta=self._meter.seconds_left(self._seeds.count, done) if ready else None,
                notes=tuple(self._notes),
            )
        )
        self._notes.clear()
