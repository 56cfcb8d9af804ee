"""What holds for every job, whatever its steps: rows are conserved, and what they become is theirs alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchgen.api import plan_run, run
from batchgen.errors import BatchgenError, UserError
from batchgen.job import Job
from batchgen.parquet import read_parquet
from batchgen.preview import first_prompt
from batchgen.result import Result
from batchgen.store import open_store
from batchgen.upkeep import revoke, verify
from tests.contract.random_jobs import Maker, answering

PARTS, JOBS = 6, 20


def rows_of(result: Result) -> pa.Table:
    """The rows of a published dataset."""
    files = sorted(Path(result.dataset, "data").iterdir())
    return pa.concat_tables([read_parquet(file.read_bytes()) for file in files])


def check_messages(rows: list[dict[str, Any]]) -> None:
    """One system prompt at most, at the beginning; none of the others is empty."""
    for row in rows:
        messages = row.get("messages") or []
        assert all(message["content"].strip() for message in messages if message["role"] != "system"), row
        assert "system" not in [message["role"] for message in messages[1:]], row


def ran(job: Job, monkeypatch: pytest.MonkeyPatch) -> Result | None:
    """A job, run whole; None where it ends without a dataset, for want of a good row."""
    monkeypatch.setattr("batchgen.host.build_engine", answering(job))
    try:
        return run(job, in_process=True)
    except BatchgenError as error:
        assert "were rejected" in str(error) or "left out all" in str(error), error
        return None


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_a_job_is_made_of_its_rows_are_conserved(tmp_path: Path, part: int, monkeypatch: pytest.MonkeyPatch):
    became = Counter[str]()
    for seed in range(part * JOBS, (part + 1) * JOBS):
        tree = Maker(seed).tree(tmp_path / str(seed))
        try:
            job = Job.of(tree)
            plan, seeds = plan_run(job)
        except UserError:
            became["refused"] += 1
            continue
        result = ran(job, monkeypatch)
        store = open_store(job.output)
        found = verify(store, plan)
        assert found.good and found.ok + found.rejected == plan.rows, (seed, found)
        became["ran" if result is not None else "rejected"] += 1
        if result is None:
            continue
        assert result.version.read == result.version.kept + sum(result.version.dropped.values()), seed
        dataset = rows_of(result)
        assert dataset.num_rows == result.version.kept, seed
        check_messages(dataset.to_pylist())
        first_prompt(job, plan, store, *seeds.slice(0, 1))
        if any(step.spec.gate is not None for step in job.steps):
            continue  # which of two duplicates is first depends on what ran beside it
        revoke(store, plan, plan.shards[-1].name)
        again = ran(job, monkeypatch)
        assert again is not None and rows_of(again).equals(dataset), (seed, "generated again")
        other = ran(Job.of({**tree, "output": f"{job.output}-other", "shard_rows": 5, "engines": 2}), monkeypatch)
        assert other is not None and rows_of(other).equals(dataset), (seed, "sliced otherwise")
    assert became["ran"] >= JOBS / 4, became
