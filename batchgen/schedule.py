"""Which shard goes where, and what happens on a failure: a pure state machine, events in, actions out.

It knows no clock, no process and no Ray. Whoever drives it carries out the actions in order and reports what came of
them as events; an event about an engine that it has given up is ignored, so late answers do no harm.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence

from batchgen.actions import Action, Dispatch, Finish, KillEngine, Recall, StartEngine
from batchgen.enginestate import BUSY_ROWS_PER_SLOT, EngineState
from batchgen.errors import BatchgenError, EngineDead, ShardFailed, Stopped
from batchgen.plan import Shard
from batchgen.starts import Starts
from batchgen.suspects import Isolated, Suspects

# An engine on which so many shards fail in a row, where there are others, is set aside.
FAILURES_IN_A_ROW = 2


class Scheduler:
    """Hands out the shards of one run.

    Args:
        shards: those that are not committed yet.
        engines: how many to keep.
        max_attempts: failures of one shard, on engines that are well, until the run fails.
        max_start_failures: failed engine starts in a row, over all engines, until the run fails or, where others are
            up, a place is left empty for a while.
        max_engine_deaths: engines that die or hang until the run fails.
        resumed: whether shards of the run were done before.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        engines: int,
        max_attempts: int = 4,
        max_start_failures: int = 3,
        max_engine_deaths: int = 100,
        resumed: bool = False,
    ) -> None:
        self._pending = deque(shards)
        self._wanted = engines
        self._max_attempts = max_attempts
        self._starts = Starts(max_start_failures, resumed)
        self._max_engine_deaths = max_engine_deaths
        self._engines: dict[int, EngineState] = {}
        self._failures = Counter[int]()
        self._failed_on: dict[int, int] = {}
        self._suspects = Suspects()
        self._deaths: list[str] = []
        self._sound: Shard | None = None
        self._next_engine = 0
        self._stopping: str | None = None
        self.finished = False

    @property
    def in_flight(self) -> Collection[int]:
        """Shards that an engine holds."""
        return {index for engine in self._engines.values() for index in engine.shards}

    @property
    def stopping(self) -> bool:
        """Whether nothing more is handed out."""
        return self._stopping is not None

    def drains(self, number: int) -> bool:
        """Whether an engine, as things are, is to finish what it holds and no other engine to take any of it."""
        if self.stopping or number not in self._engines:
            return True
        if self._open:
            return False
        engine = self._engines[number]
        others = [e for other, e in self._engines.items() if other != number and e.placed]
        next_taken = engine.recallable()[:1]
        return not any(not e.ready or e.is_better_for(shard, engine) for shard in next_taken for e in others)

    @property
    def engines_ready(self) -> int:
        """Engines that take shards."""
        return sum(engine.ready for engine in self._engines.values())

    def start(self) -> list[Action]:
        """The first actions of a run."""
        return self._top_up() if self._pending else self._finish(None)

    def engine_placed(self, engine: int) -> list[Action]:
        """An engine has found a place to run on, for which it may have waited for long."""
        if engine in self._engines:
            self._engines[engine].placed = True
        return []

    def engine_ready(self, engine: int, slots: int) -> list[Action]:
        """An engine came up; `slots` is how many requests it works on at once."""
        if self.finished or engine not in self._engines:
            return []
        self._starts.succeeded()
        self._engines[engine] = EngineState(slots=slots, placed=True, ready=True)
        return self._fill()

    def engine_start_failed(self, engine: int, error: str, final: bool = False, outage: bool = False) -> list[Action]:
        """An engine did not come up.

        Args:
            final: another start would fail as well.
            outage: what it needs elsewhere was waited for in vain.
        """
        if self.finished or engine not in self._engines:
            return []
        del self._engines[engine]
        kill: list[Action] = [KillEngine(engine)]
        if (end := self._starts.failed(error, self._coming, final, outage)) is not None:
            return kill + self._finish(end)
        return kill + self._top_up()

    def engine_lost(
        self, engine: int, error: str, machine: bool = False, stopped: bool = False, open_rows: Collection[int] = ()
    ) -> list[Action]:
        """An engine died or hangs: it is never used again, and what it held goes back or under suspicion.

        Args:
            machine: it went with the machine that it was on. No row is to blame, and preemption is no crash: it does
                not count towards `max_engine_deaths`.
            stopped: somebody ended it. So it is then, if it has done anything; else it may be like that for ever.
            open_rows: of one that hangs, had begun and not ended; none where it is not known.
        """
        if self.finished or engine not in self._engines:
            return []
        lost = self._engines.pop(engine)
        held = list(lost.shards.values())
        actions: list[Action] = [KillEngine(engine)]
        if machine or (stopped and lost.worked):
            self._put_back(lost)
            return actions + self._top_up() + self._fill()
        if lost.alone is not None and lost.alone.trial:
            if (end := self._starts.trial_failed(error, others=self._coming)) is not None:
                return actions + self._finish(end)
            return actions + self._top_up() + self._fill()
        names = ", ".join(f"shard {shard.name} (seed rows {shard.start} to {shard.stop - 1})" for shard in held[:3])
        names += f" and {len(held) - 3} more shards" * (len(held) > 3)
        self._deaths.append(f"engine {engine}, with {names or 'no shard'}: {error}")
        if lost.alone is not None:
            self._suspects.died_alone(lost.alone, open_rows)
        else:
            self._pending.extendleft(reversed(self._suspects.died_among(held, open_rows)))
        if len(self._deaths) >= self._max_engine_deaths:
            return actions + self._finish(EngineDead(_listed(self._deaths)))
        return actions + self._top_up() + self._fill()

    def _put_back(self, engine: EngineState) -> None:
        """Hands out again what an engine held that is given up through no fault of a row."""
        if engine.alone is not None:
            self._suspects.put_back(engine.alone)
        else:
            self._pending.extendleft(reversed(engine.shards.values()))

    def _set_aside(self, engine: int) -> list[Action]:
        """Gives up an engine on which work fails and elsewhere does not; its place, likely the cause, stays empty."""
        aside = self._engines.pop(engine)
        self._put_back(aside)
        self._failures.subtract(aside.failed)
        self._starts.leave_empty(others=self._coming)
        return [KillEngine(engine), *self._top_up(), *self._fill()]

    def grow(self, engines: int) -> list[Action]:
        """There is room for so many engines now; fewer than before changes nothing, as what is lost is replaced."""
        if self.finished or engines <= self._wanted:
            return []
        self._wanted = engines
        self._starts.try_again()
        return self._top_up()

    def shard_done(self, engine: int, shard: int) -> list[Action]:
        """A shard is committed, by this attempt or by another."""
        done = self._take(engine, shard)
        if done is None:
            return []
        if not self._suspects.quarantined(done):
            self._sound = done
        return self._outlived(engine)

    def probe_done(self, engine: int, shard: int) -> list[Action]:
        """An engine outlived some rows of a shard, which are not committed."""
        return self._outlived(engine) if self._take(engine, shard) is not None else []

    def shard_failed(self, engine: int, shard: int, error: str) -> list[Action]:
        """A shard failed on an engine that is well."""
        if (failed := self._take(engine, shard)) is None:
            return []
        alone = self._engines[engine].alone
        if alone is not None and alone.trial:
            return self.engine_lost(engine, error)
        self._failures[failed.index] += 1
        self._failed_on[failed.index] = engine
        self._engines[engine].failed.append(failed.index)
        self._engines[engine].alone = None
        if alone is not None:
            self._suspects.put_back(alone)
        else:
            self._pending.append(failed)
        if len(self._engines[engine].failed) >= FAILURES_IN_A_ROW and self._coming > 1:
            return self._set_aside(engine)
        if self._failures[failed.index] >= self._max_attempts:
            return self._give_up(failed, error)
        return self._fill()

    def shard_returned(self, engine: int, shard: int) -> list[Action]:
        """An engine gave a shard back that it had not begun to work on."""
        returned = self._take(engine, shard)
        if returned is None:
            return []
        self._pending.appendleft(returned)
        return self._fill()

    def recall_refused(self, engine: int, shard: int) -> list[Action]:
        """An engine works on a shard that it was asked back, and on all that it was given before."""
        if self.finished or engine not in self._engines or shard not in self._engines[engine].asked:
            return []
        self._engines[engine].asked.discard(shard)
        self._engines[engine].begun.add(shard)
        return self._fill()

    def service_failed(self, engine: int, shard: int, error: str, only_here: bool = False) -> list[Action]:
        """The store, or a model server, failed: no row is to blame and no other shard would fare better.

        What has begun is finished where it can be; then the run ends, resumable.

        Args:
            only_here: other engines got on meanwhile. What this one held goes to them, and the run goes on.
        """
        if (failed := self._take(engine, shard)) is None:
            return []
        alone, self._engines[engine].alone = self._engines[engine].alone, None
        if alone is not None:
            self._suspects.put_back(alone)
        else:
            self._pending.appendleft(failed)
        if only_here and not self._stopping and self._coming > 1:
            return self._set_aside(engine)
        self._stopping = self._stopping or error
        return self._fill()

    def _take(self, engine: int, shard: int) -> Shard | None:
        """What an engine held, if it is one that counts still."""
        if self.finished or engine not in self._engines:
            return None
        self._engines[engine].asked.discard(shard)
        self._engines[engine].begun.discard(shard)
        return self._engines[engine].shards.pop(shard, None)

    def _outlived(self, engine: int) -> list[Action]:
        """An engine is well after what it ran."""
        if not self._engines[engine].worked:
            self._starts.trial_passed()
        self._engines[engine].worked = True
        self._engines[engine].failed.clear()
        alone, self._engines[engine].alone = self._engines[engine].alone, None
        if alone is not None:
            self._suspects.survived(alone)
        again = self._top_up() if self._starts.shard_done() else []
        return again + self._fill()

    def stop(self, reason: str) -> list[Action]:
        """Hand out nothing more, take back what has not begun, finish what has; a second call ends it at once."""
        if self.finished:
            return []
        if self._stopping is not None:
            return self._finish(Stopped(self._stopping))
        self._stopping = reason
        return self._fill()

    @property
    def _coming(self) -> int:
        """Engines that are up, or coming up: one that waits for a place may do so for ever."""
        return sum(engine.placed for engine in self._engines.values())

    def _start_engine(self) -> StartEngine:
        number, self._next_engine = self._next_engine, self._next_engine + 1
        self._engines[number] = EngineState()
        return StartEngine(number)

    def _top_up(self) -> list[Action]:
        """Engines as long as one is missing that would have work."""
        if not self._engines:
            self._starts.try_again()
        room = self._wanted - self._starts.left_empty - len(self._engines)
        # One more for each that was no good: the next may come up in the same place again.
        wanted = self._open and self._open + self._starts.no_good - sum(not e.ready for e in self._engines.values())
        missing = 0 if self._stopping else min(room, wanted)
        return [self._start_engine() for _ in range(missing)] or self._check_end()

    def _give_up(self, shard: Shard, error: str) -> list[Action]:
        rows = f"seed rows {shard.start} to {shard.stop - 1}"
        message = f"shard {shard.name} ({rows}) failed {self._max_attempts} times; the last time: {error}"
        return self._finish(ShardFailed(message))

    @property
    def _open(self) -> int:
        """Pieces of work that no engine holds."""
        return len(self._pending) + len(self._suspects)

    def _fill(self) -> list[Action]:
        actions: list[Action] = [*self._try_out(), *self._isolate()]
        while not self._stopping and (found := self._next_to_hand_out()) is not None:
            number, shard = found
            self._engines[number].shards[shard.index] = shard
            actions.append(Dispatch(number, shard, quarantined=self._suspects.quarantined(shard)))
        return actions + self._take_back() + self._check_end()

    def _next_to_hand_out(self) -> tuple[int, Shard] | None:
        """The first shard that an engine with room may have, and the one of these with the least to do."""
        hungry = [number for _, number in sorted((e.load, n) for n, e in self._engines.items() if e.wants_more)]
        others = self.engines_ready > 1
        for position, shard in enumerate(self._pending if hungry else ()):
            # What failed goes to another engine, where one is up: it may have been the first one's fault.
            failed_on = self._failed_on.get(shard.index) if others else None
            number = next((number for number in hungry if number != failed_on), None)
            if number is not None:
                del self._pending[position]
                return number, shard
        return None

    def _take_back(self) -> list[Action]:
        """Asks back what has not begun: all of it as a run stops, at its end what an idle engine could do sooner."""
        actions: list[Action] = []
        if self._stopping:
            for number, engine in self._engines.items():
                actions += [self._recall(number, shard) for shard in engine.recallable()]
            return actions
        short = [e for e in self._engines.values() if e.free and e.load < BUSY_ROWS_PER_SLOT]
        # One shard at a time for an engine that runs short.
        coming = len(self._pending) + sum(len(e.asked) for e in self._engines.values())
        for taker in sorted(short, key=lambda engine: engine.load)[coming:]:
            givers = [(e.load, number) for number, e in self._engines.items() if e is not taker and e.recallable()]
            if not givers:
                break
            _, number = max(givers)
            shard = self._engines[number].recallable()[0]
            if taker.is_better_for(shard, self._engines[number]):
                actions.append(self._recall(number, shard))
        return actions

    def _recall(self, number: int, shard: Shard) -> Recall:
        self._engines[number].asked.add(shard.index)
        return Recall(number, shard.index)

    def _try_out(self) -> list[Action]:
        """Has new engines run sound rows before anything else, once one has died: a machine may be what kills."""
        if self._stopping or not self._deaths or self._sound is None or not self._open:
            return []
        new = [number for number, e in self._engines.items() if e.ready and not (e.worked or e.shards)]
        return [self._run_alone(number, self._suspects.trial(self._sound)) for number in new]

    def _isolate(self) -> list[Action]:
        """Suspects go to engines that hold nothing; where there is none, one takes nothing more until it is empty."""
        actions: list[Action] = []
        while self._suspects and not self._stopping:
            ready = {number: e for number, e in self._engines.items() if e.ready and e.alone is None}
            empty = [number for number, e in ready.items() if not e.shards]
            if not empty:
                if ready and not any(e.reserved for e in ready.values()):
                    ready[min(ready, key=lambda number: len(ready[number].shards))].reserved = True
                break
            number = max(empty, key=lambda number: ready[number].worked)
            if not ready[number].worked and any(e.shards for e in ready.values()):
                # No rows are known to be sound yet with which it could be tried; those that are at work may tell some.
                ready[number].reserved = True
                break
            actions.append(self._run_alone(number, self._suspects.next()))
        if not self._suspects:
            for engine in self._engines.values():
                engine.reserved = False
        return actions

    def _run_alone(self, number: int, work: Isolated) -> Dispatch:
        engine = self._engines[number]
        engine.alone, engine.reserved = work, False
        engine.shards[work.shard.index] = work.shard
        return Dispatch(number, work.shard, work.rows, self._suspects.quarantined(work.shard))

    def _check_end(self) -> list[Action]:
        if self.finished or self.in_flight:
            return []
        if not self._open:
            return self._finish(None)
        return self._finish(Stopped(self._stopping)) if self._stopping else []

    def _finish(self, error: BatchgenError | None) -> list[Action]:
        self.finished = True
        return [Finish(error)]


def _listed(deaths: Sequence[str], last: int = 10) -> str:
    shown = "\n".join(f"  {death}" for death in deaths[-last:])
    died = "1 engine" if len(deaths) == 1 else f"{len(deaths)} engines"
    return f"{died} died, which is as many as a run may lose (max_engine_deaths); the last:\n{shown}"
