"""A seeded simulation of scheduler, commit protocol and garbage collection: no Ray, no process, no clock.

The code under test is the real one. Every operation on the store is a point at which the simulation decides who goes
on, whether the operation fails before it has happened or after, and whether its process dies there, lives on as a
zombie, or loses its answer. A seed replays exactly.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import greenlet
import pyarrow.parquet as pq

from batchgen import commit, upkeep
from batchgen.errors import CorruptShard, StoreError, UserError
from batchgen.job import Job
from batchgen.merge.version import merge_run, read_version
from batchgen.plan import Plan, Shard, make_plan
from batchgen.rows import ResultRow, SeedRow
from batchgen.schedule import Dispatch, Recall
from batchgen.seeds import Seeds, load_seeds
from batchgen.settle import settle_plan
from tests.faults.ledger import committed_rows
from tests.helpers import chaos_job
from tests.simulation.driver import Driver
from tests.simulation.store import AFTER, BEFORE, SimStore

STEPS = 100
FOUND, TWICE = "rows found", "rows twice"
# One world in so many has merges.
MERGING = 5
# One in so many begins with the first rows, which cut a shard of the plan of all rows in two.
GROWING, FIRST_ROWS = 3, 3


class Violation(AssertionError):
    """The protocol broke one of its promises."""


def world() -> tuple[Job, Plan, Seeds]:
    """A job, its plan of three shards of two rows each, and its seeds."""
    job = chaos_job("unused", source={"count": 6}, shard_rows=2, merge={"exact": False, "near": False})
    seeds = load_seeds(job.source)
    return job, make_plan(job, seeds), seeds


@dataclass
class Process:
    """Something that runs: an attempt at a shard, or a garbage collection.

    Args:
        answer: told what came of it; None for a zombie, to whom nobody listens.
    """

    run: greenlet.greenlet
    answer: Callable[[str], None] | None
    engine: tuple[int, int] | None = None
    shard: int | None = None


class Simulation:
    """One seed's world."""

    def __init__(self, seed: int, job: Job, plan: Plan, seeds: Seeds) -> None:
        self.rng = random.Random(seed)
        self.job, self.whole, self.seeds = job, plan, seeds
        self.store = SimStore()
        first = {"rows": FIRST_ROWS, "inputs": {**plan.inputs, "seeds": seeds.fingerprint_of(FIRST_ROWS)}}
        first_plan = replace(plan, **first).behind(()) if seed % GROWING == 1 else plan
        self.plan = self.outside(lambda: settle_plan(self.store, first_plan))
        self.processes: list[Process] = []
        self.drivers: list[Driver] = []
        self.seen: dict[tuple[str, int], tuple[commit.Manifest, bytes]] = {}
        self.merged: set[tuple[int, str]] = set()
        self.counts: dict[str, int] = {}
        self.serial = 0
        self.faults = True
        # Reading and writing Parquet takes most of a simulation's time: some worlds see merges, and those see several.
        self.merges = 2 if seed % MERGING == 0 else 0

    def outside(self, function: Callable[[], Any]) -> Any:
        """Runs code to its end with nobody else in between and nothing failing."""
        work = greenlet.greenlet(function)
        result = work.switch()
        while not work.dead:
            result = work.switch(None)
        return result

    def only_here(self) -> bool:
        """Whether a driver takes a failure of the store for one of the engine's machine alone."""
        alone = self.rng.random() < 0.5
        if alone:
            self.count("store out of reach of one engine")
        return alone

    def count(self, what: str) -> None:
        """Notes that something was injected."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def begin(self, driver: Driver, action: Dispatch) -> None:
        """An engine begins with a shard."""
        self.serial += 1
        attempt = f"{self.serial:032x}"

        def work() -> str:
            if action.rows is not None:
                return "done"
            try:
                self.attempt(driver.plan, action.shard, attempt, action.quarantined)
            except StoreError:
                return "unavailable"
            return "done"

        def answer(outcome: str) -> None:
            if driver.alive:
                driver.told(action, outcome)

        engine = (driver.number, action.engine)
        self.processes.append(Process(greenlet.greenlet(work), answer, engine, action.shard.index))

    def recall(self, driver: Driver, action: Recall) -> None:
        """An engine is asked a shard back, and finds sooner or later whether it has begun with it."""
        engine = (driver.number, action.engine)

        def work() -> str:
            for process in self.processes:
                if process.engine == engine and process.shard == action.shard and not process.run:
                    self.processes.remove(process)
                    self.count("shard given back")
                    return "returned"
            return "refused"

        def answer(outcome: str) -> None:
            if not driver.alive:
                return
            event = driver.scheduler.shard_returned if outcome == "returned" else driver.scheduler.recall_refused
            driver.perform(event(action.engine, action.shard))

        self.processes.append(Process(greenlet.greenlet(work), answer, engine))

    def attempt(self, plan: Plan, shard: Shard, attempt: str, quarantined: frozenset[int]) -> None:
        """What a worker does once its rows are generated; no two attempts have the same rows."""
        rows = self.seeds.slice(shard.start, shard.stop)
        results = [self.result(row, attempt, row.index in quarantined) for row in rows]
        commit.commit_shard(self.store, plan, shard, attempt, rows, results)

    @staticmethod
    def result(row: SeedRow, attempt: str, rejected: bool) -> ResultRow:
        data = {} if rejected else {"instruction": f"{row.index} by {attempt}", "response": attempt}
        reason = "engine_crash" if rejected else None
        return ResultRow(row, "", "rejected" if rejected else "ok", reason, data, "sim", "stop", 1, 1)

    def lose_engine(self, engine: tuple[int, int]) -> None:
        """What ran on an engine dies, or goes on unheard."""
        for process in [process for process in self.processes if process.engine == engine]:
            self.orphan(process)

    def orphan(self, process: Process) -> None:
        process.answer, process.engine = None, None
        if self.rng.random() < 0.5:
            self.count("process killed")
            self.processes.remove(process)
        else:
            self.count("zombie")

    def step(self) -> None:
        """One decision."""
        kind = self.rng.choices(
            ("go on", "kill engine", "kill driver", "new driver", "collect", "look", "revoke", "merge", "extend"),
            (80, 4, 2, 2, 3, 6, 1, self.merges, 2 * self.grows) if self.faults else (1, 0, 0, 0, 0, 0, 0, 0, 0),
        )[0]
        if kind == "go on" and self.processes:
            self.go_on(self.rng.choice(self.processes))
        elif kind == "kill engine":
            engines = sorted({process.engine for process in self.processes if process.engine is not None})
            if engines:
                number, engine = self.rng.choice(engines)
                # Of one that hangs some rows have not ended, be they to blame or not.
                open_rows = self.rng.sample(range(self.plan.rows), self.rng.choice((0, 0, 1, 1, 3)))
                self.count("engine hangs" if open_rows else "engine killed")
                driver = next(driver for driver in self.drivers if driver.number == number)
                driver.perform(driver.scheduler.engine_lost(engine, "sim", open_rows=open_rows))
        elif kind == "kill driver" and self.drivers:
            driver = self.drivers.pop(self.rng.randrange(len(self.drivers)))
            driver.alive = False
            self.count("driver killed")
            for process in [p for p in self.processes if p.engine is not None and p.engine[0] == driver.number]:
                self.orphan(process)
        elif kind == "new driver" and len(self.drivers) < 2:
            self.count("second driver" if self.drivers else "driver started")
            self.start_driver()
        elif kind == "collect":
            self.count("garbage collection")
            self.processes.append(Process(greenlet.greenlet(self.collect), None))
        elif kind == "look":
            self.look()
        elif kind == "revoke":
            self.revoke()
        elif kind == "merge":
            self.count("merge")
            self.processes.append(Process(greenlet.greenlet(self.merge), None))
        elif kind == "extend":
            self.count("rows added")
            self.processes.append(Process(greenlet.greenlet(self.extend), None))

    @property
    def grows(self) -> bool:
        """Whether the run is still to be given rows."""
        return self.plan.rows < self.whole.rows

    def extend(self) -> str:
        """A user gives the run the other rows, interrupted by everybody else like any process."""
        try:
            self.plan = settle_plan(self.store, self.whole, self.seeds)
        except StoreError:
            return "failed"
        return "done"

    def start_driver(self) -> None:
        """A driver with a number of its own."""
        self.serial += 1
        self.drivers.append(Driver(self, self.serial))

    def collect(self) -> str:
        """A garbage collection, interrupted by everybody else like any process."""
        try:
            upkeep.collect(self.store, self.plan)
        except StoreError:
            return "failed"
        return "done"

    def merge(self) -> str:
        """A user merges what is there, interrupted by everybody else like any process."""
        try:
            merge_run(self.store, self.plan, self.job, partial=True)
        except StoreError:
            return "failed"
        except UserError:
            return "nothing is committed yet"
        return "done"

    def revoke(self) -> None:
        """A user has a committed shard generated again."""
        shard = self.rng.choice(self.plan.shards)
        try:
            self.outside(lambda: upkeep.revoke(self.store, self.plan, shard.name))
        except UserError:
            return
        self.count("revocation")

    def go_on(self, process: Process) -> None:
        """Lets a process do its next operation on the store."""
        fault = None
        if self.faults and process.run:
            fault = self.rng.choices((None, BEFORE, AFTER), (92, 4, 4))[0]
            if fault is not None:
                self.count(f"store {fault}")
        outcome = process.run.switch(fault) if process.run else process.run.switch()
        if not process.run.dead:
            return
        if process in self.processes:
            self.processes.remove(process)
        if process.answer is None:
            return
        if self.faults and process.engine is not None and self.rng.random() < 0.05:
            self.count("answer lost")
            number, engine = process.engine
            driver = next((driver for driver in self.drivers if driver.number == number), None)
            if driver is not None:
                driver.perform(driver.scheduler.engine_lost(engine, "sim: no answer"))
            return
        process.answer(outcome)

    def look(self) -> None:
        """Reads all that is committed: it is whole, and what it was."""

        def read() -> None:
            for name, generation in commit.current_generations(self.store).items():
                shard = self.plan.shards[int(name)]
                manifest = commit.read_manifest(self.store, self.plan, shard, generation)
                assert manifest is not None
                content = self.store.objects.get(manifest.key)
                if content is not None and self.seen.get((name, generation)) == (manifest, content):
                    # Parsing takes most of a simulation's time; these very bytes were found good before.
                    continue
                try:
                    table = commit.read_shard(self.store, self.plan, manifest)
                except CorruptShard as error:
                    raise Violation(f"a committed shard cannot be read: {error}") from error
                writers = {text.split(" by ")[1] for text in table["instruction"].to_pylist() if text is not None}
                if len(writers) > 1 or (writers and writers != {manifest.attempt}):
                    raise Violation(f"shard {name} has rows of other attempts than its manifest says")
                if sorted(table["row_index"].to_pylist()) != list(range(shard.start, shard.stop)):
                    raise Violation(f"shard {name} has other rows than its slice")
                if (name, generation) in self.seen:
                    raise Violation(f"the rows of shard {name} changed after they were committed")
                self.seen[name, generation] = (manifest, self.store.objects[manifest.key])

        self.outside(read)
        self.outside(self.read_versions)

    def read_versions(self) -> None:
        """Every version that has a name is whole, and has rows of whole shards of one attempt each."""
        numbers = [int(Path(key).stem) for key in self.store.list("versions") if key.count("/") == 1]
        if numbers != list(range(1, len(numbers) + 1)):
            raise Violation(f"versions are not numbered without a gap: {numbers}")
        for number in numbers:
            version = read_version(self.store, number)
            for name, file in version.files.items():
                data = self.store.objects.get(file.key)
                if data is None or hashlib.sha256(data).hexdigest() != file.sha256:
                    raise Violation(f"version {number}: {name} is not what was merged")
                if name.endswith(".parquet") and (number, file.sha256) not in self.merged:
                    self.merged.add((number, file.sha256))
                    self.check_rows(number, pq.read_table(io.BytesIO(data), use_threads=False).to_pylist())

    def check_rows(self, number: int, rows: list[dict[str, Any]]) -> None:
        """A version has no row twice, and of a shard only rows of one attempt."""
        ids = [row["row_id"] for row in rows]
        if len(set(ids)) != len(ids):
            raise Violation(f"version {number} has rows twice")
        for shard in self.plan.shards:
            own = {row.id for row in self.seeds.slice(shard.start, shard.stop)}
            writers = {row["response"] for row in rows if row["row_id"] in own}
            if len(writers) > 1:
                raise Violation(f"version {number} mixes attempts at shard {shard.name}")

    def finish(self) -> None:
        """No more faults: whatever is left has to end well."""
        self.faults = False
        self.plan = self.outside(lambda: settle_plan(self.store, self.whole, self.seeds))
        for _ in range(20):
            if not self.drivers:
                self.start_driver()
            for _ in range(5_000):
                if not self.processes:
                    break
                self.go_on(self.rng.choice(self.processes))
            if self.processes:
                raise Violation("it does not end")
            self.drivers = [driver for driver in self.drivers if not driver.finished]
            done = self.outside(lambda: commit.committed(self.store, self.plan))
            if len(done) == len(self.plan.shards):
                break
            self.drivers = []
        else:
            raise Violation("shards stay uncommitted")
        self.look()
        if self.merges:
            last = self.outside(lambda: merge_run(self.store, self.plan, self.job))
            if last.read != self.plan.rows or last.shards != len(self.plan.shards):
                raise Violation(f"the last version read {last.read} rows of {last.shards} shards")
            self.look()
        found = self.outside(lambda: upkeep.verify(self.store, self.plan))
        if (
            not found.good
            or found.missing
            or found.rows != self.whole.rows
            or found.ok + found.rejected != self.plan.rows
        ):
            raise Violation(f"rows are not conserved: {found}")
        rows = committed_rows(self.store.objects)
        self.counts[FOUND] = len({index for index, _ in rows})
        self.counts[TWICE] = len(rows) - len(set(rows))


def simulate(seed: int, job: Job, plan: Plan, seeds: Seeds) -> dict[str, int]:
    """Runs one seed; returns how often each fault was injected, and the rows that are there at its end.

    Raises:
        Violation: with the seed, which replays it.
    """
    sim = Simulation(seed, job, plan, seeds)
    try:
        sim.start_driver()
        for _ in range(STEPS):
            sim.step()
        sim.look()
        sim.finish()
    except Violation as error:
        raise Violation(f"seed {seed}: {error}") from error
    return sim.counts
