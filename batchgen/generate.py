"""The whole worker, without Ray: shards of seed rows in, committed files out."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from batchgen.commit import commit_shard, new_attempt
from batchgen.engines.base import Completion, Engine
from batchgen.errors import RowRejected
from batchgen.job import Job
from batchgen.known import Texts, describe, gate_columns
from batchgen.outage import Outage
from batchgen.plan import Plan, Shard
from batchgen.progress import Progress
from batchgen.rows import OK, REJECTED, ResultRow, SeedRow, random_seed
from batchgen.store.base import ObjectStore
from batchgen.tasks.llm import CallLog
from batchgen.tasks.runner import TaskRunner

# Rows in flight per engine slot. A row between two of its calls holds no slot; at 1.1 the engine ran at 0.77 of its
# speed for that reason, from 1.5 on at 0.98.
ROWS_PER_SLOT = 2.0


@dataclass(frozen=True)
class _Branch:
    """A row on its way through the steps.

    Token counts are those of this branch alone: what was spent before an explode goes with the first branch, so that
    the branches' sums are what the engine really did.
    """

    path: str
    data: Mapping[str, Any]
    input_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    notes: tuple[str, ...] = ()
    reason: str | None = None
    last: str | None = None

    def after(self, generation: _Generation) -> _Branch:
        """The branch with what a step made of it."""
        log = generation.log
        return replace(
            self,
            data={**self.data, **generation.added},
            input_tokens=self.input_tokens + log.input_tokens,
            output_tokens=self.output_tokens + log.output_tokens,
            # A step that calls no engine changes nothing about that.
            finish_reason="length"
            if "length" in (self.finish_reason, log.finish_reason)
            else log.finish_reason or self.finish_reason,
            notes=(*self.notes, *log.notes),
            reason=generation.reason,
            last=self.last if log.last is None else log.last,
        )

    def split(self, number: int) -> list[_Branch]:
        """Branches of this one; what was spent so far, and its notes, go with the first."""
        rest = replace(self, input_tokens=0, output_tokens=0, notes=())
        return [replace(rest if i else self, path=f"{self.path}.{i}".lstrip(".")) for i in range(number)]


@dataclass(frozen=True)
class _Generation:
    """One run of a step over a branch: the columns that it adds, or why there are none."""

    log: CallLog
    added: Mapping[str, Any]
    reason: str | None


@dataclass(frozen=True)
class _Begun:
    """A seed row that runs.

    Args:
        number: of rows that this engine began before it. What began earlier goes first: the next turn of a
            conversation then comes while the engine still has the turns before it, and shards end one by one, where
            all rows in flight would otherwise take turns.
    """

    seed: SeedRow
    attempt: str
    number: int


@dataclass(frozen=True)
class Done:
    """A shard that is committed.

    Args:
        progress: of its rows, whoever's they are.
        texts: that its rows brought to the job's gates, where they are this worker's.
    """

    progress: Progress
    texts: Texts = ()


class Worker:
    """Runs shards of one job on one engine. Not thread-safe: all of it lives on one event loop.

    Args:
        engine: of the job's model, started.
        others: of the job's further models, by name, started.
    """

    def __init__(
        self, job: Job, plan: Plan, store: ObjectStore, engine: Engine, others: Mapping[str, Engine] | None = None
    ) -> None:
        self._job = job
        self._plan = plan
        self._store = store
        self._engine = engine
        engines = [(others or {})[step.model] if step.model is not None else engine for step in job.steps]
        self._runners = [
            TaskRunner(
                step.task,
                step.spec,
                step.parameters,
                step.input_mappings,
                step.output_mappings,
                of_step,
                job.step_sampling(step),
                step.logprobs,
                step.reasoning,
            )
            for step, of_step in zip(job.steps, engines, strict=True)
        ]
        called = {id(each): each for step, each in zip(job.steps, engines, strict=True) if step.spec.distilabel}
        # How many requests the engines of all steps work on at once: a row keeps one of them busy at a time.
        self.slots = sum(each.slots for each in called.values()) or engine.slots
        self._gates = [
            (column, gate)
            for index, column in gate_columns(job).items()
            if (gate := self._runners[index].gate) is not None
        ]
        # First come, first served: a shard begins when all that came before it have.
        self._rows = asyncio.Semaphore(max(2, int(self.slots * ROWS_PER_SLOT)))
        self._numbers = itertools.count()
        # Rows of shards of which none has begun; shards that were given back and have not ended yet.
        self._unbegun: dict[int, list[asyncio.Task[list[ResultRow]]]] = {}
        self._returned: set[int] = set()
        self._outage = Outage(job.outage_seconds)
        self.progress = Progress()
        self.in_flight = 0

    @property
    def waiting(self) -> str:
        """Why finished shards wait to be committed; "" where none does."""
        return self._outage.reason

    def stop_waiting(self) -> None:
        """Has shards that wait to be committed fail where the store is still out of reach."""
        self._outage.give_up()

    def give_back(self, shard: int) -> bool:
        """Drops a shard where none of its rows has begun; says whether it does."""
        rows = self._unbegun.pop(shard, None)
        if rows is None:
            return False
        self._returned.add(shard)
        for row in rows:
            row.cancel()
        return True

    def learn(self, texts: Texts) -> None:
        """Tells the gates what rows that ran elsewhere have brought."""
        for (_, gate), records in zip(self._gates, texts, strict=False):
            gate.learn(records)

    async def probe(self, seeds: Sequence[SeedRow]) -> None:
        """Runs rows to see whether the engine survives them; what they give is thrown away."""
        await self._all([asyncio.create_task(self._through(seed, new_attempt())) for seed in seeds])

    async def shard(
        self, shard: Shard, attempt: str, seeds: Sequence[SeedRow], quarantined: Collection[int] = ()
    ) -> Done | None:
        """Generates and commits a shard; None where it was given back.

        Args:
            quarantined: positions of rows that are rejected without being run: each killed an engine.

        Raises:
            EngineDead: the engine is gone; nothing was committed.
            StoreError: the store failed; the shard may or may not be committed.
        """
        run = [seed for seed in seeds if seed.index not in quarantined]
        self._unbegun[shard.index] = [asyncio.create_task(self._row(seed, attempt, shard.index)) for seed in run]
        try:
            groups = await self._all(self._unbegun[shard.index])
        except asyncio.CancelledError:
            if shard.index not in self._returned:
                raise
            return None
        finally:
            self._unbegun.pop(shard.index, None)
            self._returned.discard(shard.index)
        results = [result for group in groups for result in group]
        crashed = _Branch("", {}, reason="engine_crash")
        results += [
            self._result(seed, replace(crashed, data=dict(seed.data))) for seed in seeds if seed.index in quarantined
        ]
        # Every further try is an attempt of its own: whether an earlier one got through may be unknown.
        attempts = itertools.chain([attempt], (new_attempt() for _ in itertools.count()))
        manifest, ours = await self._outage.outlast(
            lambda: asyncio.to_thread(commit_shard, self._store, self._plan, shard, next(attempts), seeds, results)
        )
        if not (ours and self._gates):
            return Done(manifest.progress)
        good = [result.data for result in results if result.outcome == OK]
        return Done(manifest.progress, await asyncio.to_thread(describe, self._gates, good))

    @staticmethod
    async def _all(tasks: Sequence[asyncio.Task[list[ResultRow]]]) -> list[list[ResultRow]]:
        """The rows of all tasks; where one raises, the others end."""
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _through(self, seed: SeedRow, attempt: str, shard: int | None = None) -> list[ResultRow]:
        """One seed row through all steps: at least one result, whatever happens to it."""
        async with self._rows:
            if shard is not None:
                self._unbegun.pop(shard, None)
            self.in_flight += 1
            try:
                row = _Begun(seed, attempt, next(self._numbers))
                return await self._advance(row, 0, _Branch("", dict(seed.data)))
            finally:
                self.in_flight -= 1

    def _count(self, completion: Completion) -> None:
        """Tokens are progress as they come: a row of many calls may take minutes."""
        self.progress += Progress(input_tokens=completion.input_tokens, output_tokens=completion.output_tokens)

    async def _row(self, seed: SeedRow, attempt: str, shard: int) -> list[ResultRow]:
        """A row of a shard, with its outcome added to the progress."""
        results = await self._through(seed, attempt, shard)
        ok = any(result.outcome == OK for result in results)
        self.progress += Progress(
            ok=int(ok),
            rejected=int(not ok),
            reasons=Counter(result.reason for result in results if result.reason is not None),
            notes=Counter(note for result in results for note in result.notes),
        )
        return results

    async def _advance(self, row: _Begun, index: int, branch: _Branch) -> list[ResultRow]:
        if index == len(self._job.steps):
            return [self._result(row.seed, branch)]
        step = self._job.steps[index]
        many = self._job.generations(step)
        generations = await asyncio.gather(
            *(self._generation(row, index, branch, number if many > 1 else None) for number in range(many))
        )
        if step.group_generations:
            branches = [branch.after(_grouped(generations))]
        elif many == 1:
            branches = [branch.after(generations[0])]
        else:
            parts = branch.split(many)
            branches = [part.after(generation) for part, generation in zip(parts, generations, strict=True)]
        if step.exploded is not None:
            branches = [part for each in branches for part in _explode(each, *step.exploded)]
        groups = await asyncio.gather(
            *(self._advance(row, index + 1 if each.reason is None else len(self._job.steps), each) for each in branches)
        )
        return [result for group in groups for result in group]

    async def _generation(self, row: _Begun, index: int, branch: _Branch, number: int | None) -> _Generation:
        seed = row.seed
        parts = (seed.id, branch.path, index) if number is None else (seed.id, branch.path, index, number)
        key = f"{seed.id}-{branch.path}-{index}-{row.attempt[:8]}" + (f"-g{number}" if number is not None else "")
        log = CallLog(key, random_seed(self._job.seed, *parts), row.number, watch=self._count)
        try:
            added = await self._runners[index].run(dict(branch.data), log)
            _check_text(added)
        except RowRejected as rejection:
            return _Generation(log, {}, rejection.reason)
        return _Generation(log, added, None)

    def _result(self, seed: SeedRow, branch: _Branch) -> ResultRow:
        return ResultRow(
            seed=seed,
            branch=branch.path,
            outcome=OK if branch.reason is None else REJECTED,
            reason=branch.reason,
            data=branch.data,
            model=self._engine.model_name,
            finish_reason=branch.finish_reason,
            input_tokens=branch.input_tokens,
            output_tokens=branch.output_tokens,
            notes=branch.notes,
            failed_completion=None if branch.reason is None else _storable(branch.last),
        )


def _grouped(generations: Sequence[_Generation]) -> _Generation:
    """Several generations as one with lists; one that failed is noted and left out, and all of them fail together."""
    good = [generation for generation in generations if generation.reason is None]
    log = CallLog("", 0)
    for generation in generations:
        log.input_tokens += generation.log.input_tokens
        log.output_tokens += generation.log.output_tokens
        log.notes += generation.log.notes
        if log.finish_reason != "length":
            log.finish_reason = generation.log.finish_reason
    if not good:
        log.last = generations[0].log.last
        return _Generation(log, {}, generations[0].reason)
    log.notes += [f"generation_failed:{each.reason}" for each in generations if each.reason is not None]
    return _Generation(log, {name: [each.added[name] for each in good] for name in good[0].added}, None)


def _check_text(added: Mapping[str, Any]) -> None:
    """Rejects text that no file can hold: half a surrogate pair."""
    try:
        json.dumps(added, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise RowRejected("invalid_text") from None


def _storable(text: str | None) -> str | None:
    """A text as a file can hold it."""
    return text and text.encode("utf-8", "replace").decode("utf-8")


def _explode(branch: _Branch, column: str, new: str) -> list[_Branch]:
    """A branch for every item of a list; the branch itself, rejected, where the list has none."""
    if branch.reason is not None:
        return [branch]
    items = [item for item in branch.data.get(column) or () if item is not None and item != ""]
    if not items:
        return [replace(branch, reason="nothing_to_explode")]
    rest = {name: value for name, value in branch.data.items() if name != column}
    parts = branch.split(len(items))
    return [replace(part, data={**rest, new: item}) for part, item in zip(parts, items, strict=True)]
