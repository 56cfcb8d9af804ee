"""The whole worker, without Ray: shards of seed rows in, committed files out."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from batchgen.branches import Branch, Generation, check_text, explode, grouped, storable
from batchgen.commit import commit_shard, new_attempt
from batchgen.engines.base import Completion, Engine
from batchgen.errors import RowRejected
from batchgen.inflight import ROWS_PER_SLOT, Begun, Held, InFlight
from batchgen.job import Job
from batchgen.known import Texts, describe, gate_columns
from batchgen.outage import Outage
from batchgen.plan import Plan, Shard
from batchgen.progress import TRUNCATED, Progress, Tally
from batchgen.rows import OK, REJECTED, ResultRow, SeedRow, random_seed
from batchgen.software import installed_for
from batchgen.step import differing_columns
from batchgen.store.base import ObjectStore
from batchgen.tasks.llm import CallLog
from batchgen.tasks.runner import TaskRunner

Result = TypeVar("Result")


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

    Attributes:
        in_flight: its rows; `draining` is for whoever hands out shards to set.
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
                job.merge.drop_truncated,
            )
            for step, of_step in zip(job.steps, engines, strict=True)
        ]
        self._names = [
            {} if step.model_column is None else {step.model_column: of_step.model_name}
            for step, of_step in zip(job.steps, engines, strict=True)
        ]
        called = [each for step, each in zip(job.steps, engines, strict=True) if step.spec.calls_model]
        # How many requests the engines of all steps work on at once: a row keeps one of them busy at a time.
        self.slots = sum(each.slots for each in {id(each): each for each in called}.values()) or engine.slots
        # The engine to which a row's first request goes, and the steps that call it.
        self._first = called[0] if called else engine
        self._steps_of_first = {
            index
            for index, (step, each) in enumerate(zip(job.steps, engines, strict=True))
            if step.spec.calls_model and each is self._first
        }
        self._differing = differing_columns(job.steps)
        # By step: lists that it or a later one spreads over rows. A row that is rejected before has them still.
        self._lists = [
            {column for step in job.steps[index:] for column in step.exploded} for index in range(len(job.steps))
        ]
        self._gates = [
            (column, gate)
            for index, column in gate_columns(job).items()
            if (gate := self._runners[index].gate) is not None
        ]
        most = max(2, int(self.slots * ROWS_PER_SLOT)) + sum(step.spec.threads for step in job.steps)
        self.in_flight = InFlight(most, self._first.slots)
        self._held: dict[int, Held] = {}
        self._done: set[int] = set()
        # Shards that were given back: they have not ended yet, or not come.
        self._returned: set[int] = set()
        self._software = installed_for(job)
        self._outage = Outage(job.outage_seconds)
        self._tally = Tally()

    @property
    def progress(self) -> Progress:
        """What came of the shards that it was given."""
        return self._tally.progress

    @property
    def waiting(self) -> str:
        """Why finished shards wait to be committed; "" where none does."""
        return self._outage.reason

    def stop_waiting(self) -> None:
        """Has shards that wait to be committed fail where the store is still out of reach."""
        self._outage.give_up()

    def give_back(self, shard: int) -> bool:
        """Drops a shard that the engine has not begun to work on; says whether it does.

        One that has not come yet, as its way may be longer than that of the question, ends as it comes.
        """
        held = self._held.get(shard)
        if shard in self._done or shard in self._returned or (held is not None and self.in_flight.works_on(held)):
            return False
        self._returned.add(shard)
        for row in held.rows if held is not None else ():
            row.cancel()
        return True

    def learn(self, texts: Texts) -> None:
        """Tells the gates what rows that ran elsewhere have brought."""
        for (_, gate), records in zip(self._gates, texts, strict=False):
            gate.learn(records)

    async def probe(self, seeds: Sequence[SeedRow]) -> list[list[ResultRow]]:
        """Runs rows to see whether the engine survives them; what they give counts as nothing."""
        return await self._all([asyncio.create_task(self._through(seed, Held(new_attempt()))) for seed in seeds])

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
        if shard.index in self._returned:
            self._returned.discard(shard.index)
            return None
        self._held[shard.index] = held = Held(attempt)
        try:
            done = await self._shard(shard, held, seeds, quarantined)
        except asyncio.CancelledError:
            if shard.index not in self._returned:
                raise
            return None
        finally:
            del self._held[shard.index]
            self._returned.discard(shard.index)
        self._done.add(shard.index)
        return done

    async def _shard(self, shard: Shard, held: Held, seeds: Sequence[SeedRow], quarantined: Collection[int]) -> Done:
        held.rows = [asyncio.create_task(self._row(seed, held)) for seed in seeds if seed.index not in quarantined]
        groups = await self._all(held.rows)
        held.worked = True
        results = [result for group in groups for result in group]
        crashed = Branch("", {}, reason="engine_crash")
        results += [
            self._result(seed, replace(crashed, data=dict(seed.data))) for seed in seeds if seed.index in quarantined
        ]
        # Every further try is an attempt of its own: whether an earlier one got through may be unknown.
        attempts = itertools.chain([held.attempt], (new_attempt() for _ in itertools.count()))
        manifest, ours = await self._outage.outlast(
            lambda: asyncio.to_thread(
                commit_shard, self._store, self._plan, shard, next(attempts), seeds, results, self._software
            )
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

    async def _through(self, seed: SeedRow, held: Held) -> list[ResultRow]:
        """One seed row through all steps: at least one result, whatever happens to it."""
        row = await self.in_flight.begin(seed, held)
        try:
            return await self._advance(row, 0, Branch("", dict(seed.data)))
        finally:
            self.in_flight.end(row)

    def _count(self, row: Begun, completion: Completion) -> None:
        """Tokens are progress as they come: a row of many calls may take minutes."""
        row.held.worked = True
        row.calls += 1
        self._tally.input_tokens += completion.input_tokens
        self._tally.output_tokens += completion.output_tokens

    async def _row(self, seed: SeedRow, held: Held) -> list[ResultRow]:
        """A row of a shard, with its outcome added to the progress."""
        results = await self._through(seed, held)
        held.worked = True
        self._tally.row(
            any(result.outcome == OK for result in results),
            [result.reason for result in results if result.reason is not None],
            [note for result in results for note in result.notes],
            sum(result.output_tokens for result in results),
        )
        return results

    async def _advance(self, row: Begun, index: int, branch: Branch) -> list[ResultRow]:
        if index == len(self._job.steps):
            return [self._result(row.seed, branch)]
        step = self._job.steps[index]
        branch = replace(branch, data={**branch.data, **self._names[index]}) if self._names[index] else branch
        many = self._job.generations(step)
        generations = await _together(
            [self._generation(row, index, branch, number if many > 1 else None) for number in range(many)]
        )
        if step.group_generations:
            branches = [branch.after(grouped(generations, self._job.merge.drop_truncated, step.common_columns))]
        else:
            parts = branch.split(many) if many > 1 else [branch]
            branches = [
                each for part, generation in zip(parts, generations, strict=True) for each in part.spread(generation)
            ]
        if self._job.merge.drop_truncated and any(later.spec.calls_model for later in self._job.steps[index + 1 :]):
            branches = [each.ended_if_cut() for each in branches]
        for column in self._differing.get(index, ()):
            branches = [each.ended_if_alike(column) for each in branches]
        if step.exploded:
            branches = [part for each in branches for part in explode(each, step.exploded)]
        # The column of such a list may be one of texts by the end.
        lists = self._lists[index] - row.seed.data.keys()
        branches = [each if each.reason is None else each.without(lists) for each in branches]
        groups = await _together(
            [self._advance(row, index + 1 if each.reason is None else len(self._job.steps), each) for each in branches]
        )
        return [result for group in groups for result in group]

    async def _generation(self, row: Begun, index: int, branch: Branch, number: int | None) -> Generation:
        seed = row.seed
        parts = (seed.id, branch.path, index) if number is None else (seed.id, branch.path, index, number)
        key = f"{seed.id}-{branch.path}-{index}-{row.held.attempt[:8]}" + (f"-g{number}" if number is not None else "")
        seeded = random_seed(self._job.seed, *parts)
        log = CallLog(key, seeded, partial(self.in_flight.priority, row), watch=partial(self._count, row))
        if self._runners[index].gate is not None:
            row.held.worked = True
        try:
            with self.in_flight.waiting(row) if index in self._steps_of_first else nullcontext():
                added = await self._runners[index].run(dict(branch.data), log)
            for each in added:
                check_text(each)
        except RowRejected as rejection:
            reason = rejection.reason
            if reason == "invalid_output" and branch.finish_reason == "length" and not log.calls:
                reason = "truncated_output"  # of the step before, whose completion this one reads
            return Generation(log, {}, reason)
        return Generation(log, added[0], None, added[1:])

    def _result(self, seed: SeedRow, branch: Branch) -> ResultRow:
        # Said as rows come: the merger drops these, unless it is told not to.
        cut = (TRUNCATED,) if branch.reason is None and branch.finish_reason == "length" else ()
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
            notes=(*branch.notes, *cut),
            failed_completion=None if branch.reason is None else storable(branch.last),
        )


async def _together(parts: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """What all of them give. One alone, which nearly every row is at nearly every step, needs no task of its own."""
    return [await parts[0]] if len(parts) == 1 else await asyncio.gather(*parts)
