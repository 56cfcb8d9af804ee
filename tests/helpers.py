"""What many tests need: small jobs on the chaos engine, a scripted engine, and a way to run a row."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from batchgen.engines.base import Completion, Request
from batchgen.engines.chat import byte_chat
from batchgen.generate import Worker
from batchgen.job import Job
from batchgen.plan import Plan, make_plan
from batchgen.records import seal
from batchgen.rows import SeedRow
from batchgen.seeds import Seeds, load_seeds
from batchgen.settle import settle_plan
from batchgen.store import LocalStore
from batchgen.tasks.llm import CallLog
from batchgen.tasks.runner import TaskRunner
from batchgen.tasks.spec import Reasoning
from batchgen.tasks.table import TASKS


def chaos_job(output: str | Path, **changes: Any) -> Job:
    """A one-turn Magpie job on the chaos engine."""
    tree: dict[str, Any] = {
        "name": "test",
        "source": {"count": 40},
        "model": {"path": "chaos"},
        "steps": [{"task": "magpie"}],
        "output": str(output),
    }
    return Job.of({**tree, **changes})


def planned(job: Job) -> tuple[Plan, Seeds, LocalStore]:
    """The plan of a job, its seeds and its store, settled."""
    seeds = load_seeds(job.source)
    store = LocalStore(job.output)
    return settle_plan(store, make_plan(job, seeds)), seeds, store


def untimed(note: str) -> str:
    """A note without how long something is waited for yet, which it has to say."""
    text, number = re.subn(r" \(for \d+ s more at most: outage_seconds\)$", "", note)
    assert number == 1, note
    return text


class ScriptedEngine:
    """An engine that answers from a list, or from a function of (prompt, number of the call).

    Args:
        scores: whether the answers are numbers, and it is a reward model's.
    """

    model_name = "scripted"
    slots = 8

    def __init__(
        self, answers: Sequence[str] | Callable[[str, int], str], finish_reason: str = "stop", scores: bool = False
    ) -> None:
        self._scores = scores
        self.chat = byte_chat()
        self.decode: Callable[[Sequence[int]], str] = lambda ids: bytes(ids).decode()
        self.prompts: list[str] = []
        self.requests: list[Request] = []
        self._answers = answers
        self._finish_reason = finish_reason

    async def start(self) -> None:
        """Nothing to load."""

    async def generate(self, request: Request) -> Completion:
        """The next answer."""
        prompt = self.decode(request.token_ids)
        number = len(self.prompts)
        self.prompts.append(prompt)
        self.requests.append(request)
        await asyncio.sleep(0)
        text = self._answers(prompt, number) if callable(self._answers) else self._answers[number]
        if self._scores:
            return Completion("", "stop", len(request.token_ids), 0, score=float(text))
        return Completion(text, self._finish_reason, len(request.token_ids), len(text.split()))

    async def stop(self) -> None:
        """Nothing to release."""


def run_task(
    name: str,
    row: Mapping[str, Any],
    engine: ScriptedEngine,
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
    reasoning: Reasoning = "drop",
    **parameters: Any,
) -> dict[str, Any]:
    """One row through one task, on an engine."""
    spec = TASKS[name]
    given = spec.parameters.model_validate(parameters)
    runner = TaskRunner(name, spec, given, {}, {}, engine, sampling or {}, reasoning=reasoning)
    (added,) = asyncio.run(runner.run(dict(row), CallLog("row", seed)))
    return added


def run_with_log(
    name: str, row: dict[str, Any], engine: ScriptedEngine, seed: int = 0, **parameters: Any
) -> tuple[dict[str, Any], list[str]]:
    """(added columns, notes) of a row."""
    spec, log = TASKS[name], CallLog("row", seed)
    runner = TaskRunner(name, spec, spec.parameters.model_validate(parameters), {}, {}, engine, {})
    (added,) = asyncio.run(runner.run(row, log))
    return added, log.notes


def worker_on(engine: Any, job: Job, others: Mapping[str, Any] | None = None) -> tuple[Worker, Plan, Seeds, LocalStore]:
    """A worker for a job on an engine."""
    plan, seeds, store = planned(job)
    return Worker(job, plan, store, engine, others), plan, seeds, store


def as_from_a_terminal() -> None:
    """What a child process does first where it is to be hung up: under `nohup`, tests have that ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def resealed(record: bytes, **changes: Any) -> bytes:
    """A record of a run with other fields, as a program that means to write it would."""
    tree = {**json.loads(record), **changes}
    return seal({name: value for name, value in tree.items() if name not in ("format", "digest")}, tree["format"])


def seed_rows(*data: Mapping[str, Any]) -> list[SeedRow]:
    """Seed rows with ids of their own."""
    return [SeedRow(f"{index:032x}", index, row) for index, row in enumerate(data)]
