"""The contract for placement; `host.py` has what runs at the other end, and its in-process form.

A fleet starts engines somewhere and runs shards on them; a shard runs the same whether its engine is in this process,
in a test or on a cluster.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from batchgen.engines.base import EngineSpec
from batchgen.errors import UserError
from batchgen.job import Job
from batchgen.known import Texts
from batchgen.model import memory_shares
from batchgen.plan import Plan, Shard
from batchgen.progress import Progress
from batchgen.rows import SeedRow


@dataclass(frozen=True)
class Answer:
    """What became of a shard, in a form that survives any pickling.

    Args:
        kind: `done`; `returned` (recalled before the engine worked on it); `engine_dead` (the engine's fault);
            `engine_stopped` (somebody told it to end); `machine_dead` (it went with its machine); `unavailable` (the
            store's fault, or a server's elsewhere);
            `failed` (anything else).
        progress: of a shard's committed rows; None of a probe.
        error: what went wrong, without any text of a row.
        waited: seconds for which what is `unavailable` was waited for.
        texts: that the shard's rows brought to the job's gates.
    """

    kind: Literal["done", "returned", "engine_dead", "engine_stopped", "machine_dead", "unavailable", "failed"]
    progress: Progress | None = None
    error: str = ""
    waited: float = 0.0
    texts: Texts = ()


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


@dataclass(frozen=True)
class Placement:
    """How many engines run, and on what.

    Args:
        engines: at the start.
        gpus: an engine's, all on one machine; 0 where engines run on CPUs.
        share: engines that are on a GPU at once.
        elastic: whether engines are added as machines join the cluster.
    """

    engines: int
    gpus: int = 0
    elastic: bool = False
    share: int = 1

    def room(self, machines: Sequence[int]) -> int:
        """How many engines machines with so many GPUs each have room for."""
        return sum(count // self.gpus * self.share for count in machines)


def place_engines(job: Job, machines: Sequence[int], local: bool) -> Placement:
    """How many engines a job gets.

    Args:
        machines: GPUs of each machine of the cluster.
        local: whether the cluster is this machine alone.

    Raises:
        UserError: there is no room for them.
    """
    # A chaos engine takes a GPU too, so that placement on a cluster can be rehearsed with it.
    here = [model for model in job.used_models.values() if model.backend != "openai"]
    if here and job.wait_for_gpus:
        return _waiting_placement(job, max(model.gpus for model in here), machines, local)
    if not here or not any(machines):
        if not (local or job.engines) and any(model.is_local for model in here):
            # A night on the CPUs of a cluster whose GPU machines are about to join is not what anybody wants.
            raise UserError(
                "engines: the cluster has no GPU, at least not yet; have engines wait for its machines "
                "(wait_for_gpus: true), or say how many are to run on its CPUs (engines: 1)"
            )
        return Placement(job.engines or 1)
    gpus, elastic = max(model.gpus for model in here), not (local or job.engines)
    placement = Placement(job.engines or 1, gpus, elastic, job.engines_per_gpu)
    room = placement.room(machines)
    if not room:
        raise UserError(
            f"model.engine: an engine takes {placement.gpus} GPUs of one machine; none has more than {max(machines)}"
        )
    if placement.engines > room:
        wait = "" if local else " (wait_for_gpus: true has them wait for more machines)"
        takes = f"take {'1 GPU' if gpus == 1 else f'{gpus} GPUs'} each"
        if placement.share > 1:
            takes = f"need a GPU for every {placement.share}"
        raise UserError(f"engines: {job.engines} engines {takes}; the cluster has room for {room}{wait}")
    return placement if job.engines else replace(placement, engines=room)


def _waiting_placement(job: Job, gpus: int, machines: Sequence[int], local: bool) -> Placement:
    """The placement of a job whose engines wait for room: an autoscaler adds the machines that they wait for."""
    if local:
        raise UserError("wait_for_gpus: no machine joins a run on this machine alone; it is for clusters")
    placement = Placement(job.engines or 1, gpus, not job.engines, job.engines_per_gpu)
    return placement if job.engines else replace(placement, engines=max(1, placement.room(machines)))


class Fleet(Protocol):
    """Where engines live. Engine numbers are the scheduler's and are never used twice."""

    async def room(self) -> int:
        """How many engines there is room for now, those that run included.

        Raises:
            ClusterLost: there is no place for engines any more.
        """

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

    async def recall(self, engine: int, shard: int) -> bool:
        """Whether an engine gives a shard back, not having begun to work on it; `run` says so then. Never raises."""

    async def tell(self, engine: int, texts: Texts) -> None:
        """Tells an engine's gates of texts that rows elsewhere have brought. Never raises."""

    async def stop_waiting(self, engine: int) -> None:
        """Has an engine give up what waits for a store or a server that is out of reach. Never raises."""

    async def progress(self, engine: int, draining: bool = False) -> Progress | None:
        """What an engine has done since its start; None where it does not say.

        Args:
            draining: whether it is to finish what it holds, with nothing to come and nothing to go to others, which
                the engine is told by the way.
        """

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
        folder: from which relative paths of models and adapters start: where the driver runs.
    """

    job: Job
    plan: Plan
    store: str
    seed: int
    trust_remote_code: bool = False
    folder: str = field(default_factory=os.getcwd)

    def engine_spec(self, name: str | None = None) -> EngineSpec:
        """What an engine is built from: that of the job's model, or of one of its further models."""
        model = self.job.model if name is None else self.job.models[name]
        asking = [(index, step) for index, step in enumerate(self.job.steps) if step.model == name]
        return EngineSpec(
            path=model.path,
            backend=model.backend,
            revision=self.plan.commit_of(name) or model.revision,
            lora=model.lora,
            arguments=model.engine,
            gpu_memory=memory_shares(self.job.used_models, self.job.engines_per_gpu).get(name),
            pre_query_template=model.pre_query_template,
            chat_template_kwargs=model.chat_template_kwargs,
            trust_remote_code=self.trust_remote_code,
            seed=self.seed,
            samplings={
                f"steps[{index}]": self.job.step_sampling(step) for index, step in asking if step.spec.generates
            },
            scores=any(step.spec.scored is not None for _, step in asking),
        )
