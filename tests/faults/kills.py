"""Jobs at random, killed at random moments: each has to end in the dataset of a run that was left alone.

`python -m tests.faults.kills [--seed N] [--jobs M] [--bucket]` takes the jobs of `tests/contract/random_jobs.py` and
runs each in processes of its own, without Ray. It kills them with SIGKILL up to five times, starts a second driver
beside some, collects garbage and revokes shards in between, and then lets the job end. Some begin with their first
rows, and are given the others between two kills, or beside a driver that does not know of these. `verify` has to be
content, and
the dataset has to be that of a run to which nothing was done, byte for byte; but where a gate drops duplicates: which
of two is the first is a matter of timing. A job takes two or three seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from batchgen.api import plan_run, run
from batchgen.engines.base import Completion, EngineSpec, Request
from batchgen.errors import BatchgenError, UserError
from batchgen.job import Job
from batchgen.settle import newest_plan, read_plan
from batchgen.store import open_store
from batchgen.upkeep import collect, revoke, verify
from tests.contract.random_jobs import Answering, Maker
from tests.s3server import environment, s3_server

ENDED, NO_GOOD_ROW, FAILED, EXTENDED = 0, 3, 4, 5
# Long enough that a run can be killed in the midst of its rows.
SECONDS_A_CALL = 0.01
PATIENCE = 90


# Forked from a process that has imported what takes long, and that has no threads: the store's library does not survive
# a fork of one that it has been used in.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["batchgen.api", "batchgen.host", "datasets", "distilabel", "numba", "obstore"])


class Slow(Answering):
    """Takes its time, a different one for every call."""

    async def generate(self, request: Request) -> Completion:
        await asyncio.sleep(random.uniform(0, SECONDS_A_CALL))
        return await super().generate(request)


def work(tree: dict[str, Any], log: Path) -> None:
    """A run, in a process of its own; its exit code says how it ended."""
    random.seed()
    job = Job.of(tree)
    tasks = [step.task for step in job.steps if step.spec.calls_model]

    def build(spec: EngineSpec) -> Slow:
        return Slow(spec, tasks)

    with log.open("a") as sys.stdout, mock.patch("batchgen.host.build_engine", build):
        sys.stderr = sys.stdout
        try:
            run(job, in_process=True, extend=True)
        except BatchgenError as error:
            print(f"{type(error).__name__}: {error}")
            none = "were rejected" in str(error) or "left out all" in str(error)
            # As it ends, or as it starts.
            extended = "was extended" in str(error) or re.search(r"seeds: \d+ rows then, \d+ now", str(error))
            sys.exit(NO_GOOD_ROW if none else EXTENDED if extended else FAILED)


class Ordeal:
    """One job, run twice: once left alone, once not."""

    def __init__(self, seed: int, folder: Path, place: str) -> None:
        self._random = random.Random(seed)
        self._log = folder / "log"
        tree = {**Maker(seed).tree(folder), "output": f"{place}/alone"}
        source = tree["source"]
        if "rows" in source:
            source["rows"] *= self._random.choice([1, 1, 1, 2, 4, 6])
        else:
            source["count"] *= self._random.randint(1, 8)
        self._alone, self._killed = tree, {**tree, "output": f"{place}/killed"}
        self.kills = 0
        # Raises where the job is one that is refused.
        self._plan, _ = plan_run(Job.of(self._killed))
        self._gated = any(step.spec.gate is not None for step in Job.of(tree).steps)
        self._whole, self._rows = self._killed, self._plan.rows
        if self._plan.rows > 1 and self._random.random() < 0.4:
            few = {**source, "limit": self._random.randrange(1, self._plan.rows)}
            self._killed = {**self._killed, "source": few}
            self._plan, _ = plan_run(Job.of(self._killed))

    def suffer(self) -> int:
        """How the job ends after everything that is done to it.

        Raises:
            AssertionError: not as a run that was left alone.
        """
        began = time.monotonic()
        expected = self._outcome(self._start(self._alone))
        seconds = time.monotonic() - began
        for _ in range(self._random.randint(1, 5)):
            self._kill(seconds)
            self._meddle()
            if self._random.random() < 0.3:
                self._killed = self._whole
        self._killed = self._whole
        ended = self._outcome(self._start(self._killed))
        assert ended == expected or self._gated, f"it ended with {ended}, and left alone with {expected}"
        self._plan = read_plan(self._store)
        assert self._plan.rows == self._rows, f"the run has {self._plan.rows} of {self._rows} rows"
        self._check_rows()
        collect(self._store, self._plan)
        self._check_rows()
        if ended == ENDED and not self._gated:
            assert _files(self._killed) == _files(self._alone), "the datasets differ"
        return ended

    @property
    def extended(self) -> bool:
        """Whether the run was given more rows than it had at first, by its plan at the end."""
        return bool(self._plan.earlier)

    @property
    def _store(self) -> Any:
        return open_store(self._killed["output"])

    def _start(self, tree: dict[str, Any]) -> Any:
        process = _PROCESSES.Process(target=work, args=(tree, self._log))
        process.start()
        return process

    def _outcome(self, process: Any) -> int:
        process.join(PATIENCE)
        assert process.exitcode is not None, f"it does not end within {PATIENCE} s"
        assert process.exitcode in (ENDED, NO_GOOD_ROW), f"it ended with {process.exitcode}: {self._log.read_text()}"
        return int(process.exitcode)

    def _kill(self, seconds: float) -> None:
        """Kills a run, or two drivers of it, at a moment at which it may have ended."""
        drivers = [self._start(self._killed)]
        if self._random.random() < 0.25:
            time.sleep(self._random.uniform(0, seconds / 2))
            if self._random.random() < 0.5:
                self._killed = self._whole
            drivers.append(self._start(self._killed))
        time.sleep(self._random.uniform(0, 1.1 * seconds))
        for driver in drivers:
            driver.kill()
            driver.join()
            if driver.exitcode == -signal.SIGKILL:
                self.kills += 1
            elif driver.exitcode != EXTENDED or len(drivers) == 1:
                self._outcome(driver)

    def _meddle(self) -> None:
        """Now and then collects garbage, or has a shard generated again."""
        # By the plan that the run has: the driver of all rows may have been the first to write one.
        if (plan := newest_plan(self._store)) is None:
            return
        if (drawn := self._random.random()) < 0.15:
            collect(self._store, plan)
        # A gate that sees a row again takes it for a duplicate of one that is committed.
        elif drawn < 0.3 and not self._gated:
            shard = self._random.choice(plan.shards)
            try:
                revoke(self._store, plan, shard.name)
            except UserError as error:
                assert "not committed" in str(error), error

    def _check_rows(self) -> None:
        found = verify(self._store, self._plan)
        assert found.good and found.ok + found.rejected == self._plan.rows, found


def _files(tree: dict[str, Any]) -> dict[str, bytes | None]:
    store = open_store(tree["output"])
    return {key: store.read(key) for key in store.list("dataset")}


def main() -> int:
    """1 if a job did not end as it should have."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first job")
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--bucket", action="store_true", help="has the runs in a bucket, of the tests' own server")
    options = parser.parse_args()
    with ExitStack() as closing:
        if options.bucket:
            os.environ.update(environment(closing.enter_context(s3_server())))
        became = ordeals(range(options.seed, options.seed + options.jobs), "s3://bucket" if options.bucket else None)
    print(", ".join(f"{what} {number}" for what, number in sorted(became.items())))
    return 1 if became["wrong"] else 0


def ordeals(seeds: Sequence[int], bucket: str | None) -> Counter[str]:
    """What became of the jobs, how many kills there were, and how many jobs were given more rows in between."""
    became = Counter[str]()
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            try:
                ordeal = Ordeal(seed, Path(folder), folder if bucket is None else f"{bucket}/{seed}")
            except UserError:
                became["refused"] += 1
                continue
            try:
                became["ended" if ordeal.suffer() == ENDED else "without a good row"] += 1
            except AssertionError as error:
                became["wrong"] += 1
                print(f"WRONG: job {seed}: {error}", flush=True)
            became["kills"] += ordeal.kills
            became["extended"] += ordeal.extended
    return became


if __name__ == "__main__":
    raise SystemExit(main())
