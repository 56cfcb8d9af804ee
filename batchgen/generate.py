"""The whole worker, without Ray: shards of seed rows in, committed files out."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from batchgen.commit import commit_shard
from batchgen.engines.base import Engine
from batchgen.errors import RowRejected
from batchgen.job import Job
from batchgen.plan import Plan, Shard
from batchgen.progress import Progress, Receipt
from batchgen.rows import OK, REJECTED, ResultRow, SeedRow, random_seed
from batchgen.store.base import ObjectStore
from batchgen.tasks.runner import CallLog, TaskRunner

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


class Worker:
    """Runs shards of one job on one engine. Not thread-safe: all of it lives on one event loop.

    Args:
        engine: started.
    """

    def __init__(self, job: Job, plan: Plan, store: ObjectStore, engine: Engine) -> None:
        self._job = job
        self._plan = plan
        self._store = store
        self._engine = engine
        self._runners = [
            TaskRunner(
                step.task,
                step.parameters,
                step.input_mappings,
                step.output_mappings,
                engine,
                job.step_sampling(step),
            )
            for step in job.steps
        ]
        self._rows = asyncio.Semaphore(max(2, int(engine.slots * ROWS_PER_SLOT)))
        self.progress = Progress()

    async def shard(self, shard: Shard, attempt: str, seeds: Sequence[SeedRow]) -> Receipt:
        """Generates and commits a shard.

        Raises:
            EngineDead: the engine is gone; nothing was committed.
            StoreError: the store failed; the shard may or may not be committed.
        """
        tasks = [asyncio.create_task(self._row(seed, attempt)) for seed in seeds]
        try:
            results = [result for group in await asyncio.gather(*tasks) for result in group]
        finally:
            for task in tasks:
                task.cancel()
        manifest, won = await asyncio.to_thread(commit_shard, self._store, self._plan, shard, attempt, seeds, results)
        progress = Progress(
            manifest.ok, manifest.rejected, manifest.reasons, manifest.input_tokens, manifest.output_tokens
        )
        return Receipt(shard.index, attempt, won, progress)

    async def _row(self, seed: SeedRow, attempt: str) -> list[ResultRow]:
        """One seed row through all steps: at least one result, whatever happens to it."""
        async with self._rows:
            results = await self._advance(seed, attempt, 0, _Branch("", dict(seed.data)))
        ok = any(result.outcome == OK for result in results)
        self.progress += Progress(
            ok=int(ok),
            rejected=int(not ok),
            reasons=Counter(result.reason for result in results if result.reason is not None),
            input_tokens=sum(result.input_tokens for result in results),
            output_tokens=sum(result.output_tokens for result in results),
        )
        return results

    async def _advance(self, seed: SeedRow, attempt: str, index: int, branch: _Branch) -> list[ResultRow]:
        if index == len(self._job.steps):
            return [self._result(seed, branch, None)]
        step = self._job.steps[index]
        log = CallLog(
            key=f"{seed.id}-{branch.path}-{index}-{attempt[:8]}",
            seed=random_seed(self._job.seed, seed.id, branch.path, index),
        )
        reason = None
        added: Mapping[str, Any] = {}
        try:
            added = await self._runners[index].run(dict(branch.data), log)
            _check_text(added)
        except RowRejected as rejection:
            reason = rejection.reason
        branch = replace(
            branch,
            data=branch.data if reason else {**branch.data, **added},
            input_tokens=branch.input_tokens + log.input_tokens,
            output_tokens=branch.output_tokens + log.output_tokens,
            finish_reason="length" if "length" in (branch.finish_reason, log.finish_reason) else log.finish_reason,
        )
        if reason:
            return [self._result(seed, branch, reason)]
        if step.exploded is None:
            return await self._advance(seed, attempt, index + 1, branch)
        branches = _explode(branch, *step.exploded)
        if not branches:
            return [self._result(seed, branch, "nothing_to_explode")]
        groups = await asyncio.gather(*(self._advance(seed, attempt, index + 1, each) for each in branches))
        return [result for group in groups for result in group]

    def _result(self, seed: SeedRow, branch: _Branch, reason: str | None) -> ResultRow:
        return ResultRow(
            seed=seed,
            branch=branch.path,
            outcome=OK if reason is None else REJECTED,
            reason=reason,
            data=branch.data,
            model=self._engine.model_name,
            finish_reason=branch.finish_reason,
            input_tokens=branch.input_tokens,
            output_tokens=branch.output_tokens,
        )


def _check_text(added: Mapping[str, Any]) -> None:
    """Rejects text that no file can hold: half a surrogate pair."""
    try:
        json.dumps(added, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise RowRejected("invalid_text") from None


def _explode(branch: _Branch, column: str, new: str) -> list[_Branch]:
    items = [item for item in branch.data.get(column) or () if item]
    rest = {name: value for name, value in branch.data.items() if name != column}
    return [
        replace(
            branch,
            path=f"{branch.path}.{index}".lstrip("."),
            data={**rest, new: item},
            input_tokens=branch.input_tokens if index == 0 else 0,
            output_tokens=branch.output_tokens if index == 0 else 0,
        )
        for index, item in enumerate(items)
    ]
