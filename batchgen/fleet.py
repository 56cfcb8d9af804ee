"""The contract for placement; `host.py` has what runs at the other end, and its in-process form.

A fleet starts engines somewhere and runs shards on them; a shard runs the same whether its engine is in this process,
in a test or on a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from batchgen.engines.base import EngineSpec
from batchgen.job import Job
from batchgen.plan import Plan, Shard
from batchgen.progress import Progress, Receipt
from batchgen.rows import SeedRow


@dataclass(frozen=True)
class Answer:
    """What became of a shard, in a form that survives any pickling.

    Args:
        kind: `done`; `engine_dead` (the engine's fault); `machine_dead` (it went with its machine); `unavailable` (the
            store's fault, or a server's elsewhere); `failed` (anything else).
        error: what went wrong, without any text of a row.
    """

    kind: Literal["done", "engine_dead", "machine_dead", "unavailable", "failed"]
    receipt: Receipt | None = None
    error: str = ""


@dataclass(frozen=True)
class Work:
    """What an engine is given at a time.

    Args:
        seeds: rows of the shard; of a probe, the rows to try.
        quarantined: positions of rows that are rejected without being run.
        probe: only to see whether the engine survives these rows; nothing is committed.
    """

    shard: Shard
    seeds: Sequence[SeedRow]
    quarantined: frozenset[int] = frozenset()
    probe: bool = False


class Fleet(Protocol):
    """Where engines live. Engine numbers are the scheduler's and are never used twice."""

    async def room(self) -> int:
        """How many engines there is room for now, those that run included."""

    async def place(self, engine: int) -> None:
        """Waits until there is room for an engine, for however long, and takes it; raises as `start` does."""

    async def start(self, engine: int) -> int:
        """Starts an engine that has its place and returns its slots.

        Raises:
            EngineStartError: it does not start, with the root cause.
            EngineDead: where it was to run is gone, which says nothing about the engine.
        """

    async def run(self, engine: int, work: Work) -> Answer:
        """Runs a shard, or a probe of it, on an engine."""

    async def progress(self, engine: int) -> Progress | None:
        """What an engine has done since its start; None where it does not say."""

    async def kill(self, engine: int) -> None:
        """Ends an engine at once; never raises."""

    async def close(self) -> None:
        """Ends all engines; never raises."""


@dataclass(frozen=True)
class HostConfig:
    """What an engine's host is made from; sent to wherever it runs.

    Args:
        store: location of the run.
        seed: differs at every engine start.
    """

    job: Job
    plan: Plan
    store: str
    seed: int
    trust_remote_code: bool = False

    def engine_spec(self, name: str | None = None) -> EngineSpec:
        """What an engine is built from: that of the job's model, or of one of its further models."""
        model = self.job.model if name is None else self.job.models[name]
        return EngineSpec(
            path=model.path,
            backend=model.backend,
            revision=model.revision,
            lora=model.lora,
            arguments=model.engine,
            pre_query_template=model.pre_query_template,
            trust_remote_code=self.trust_remote_code,
            seed=self.seed,
        )
