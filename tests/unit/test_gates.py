"""Gates: duplicates end before their answers are paid for, and no row is taken for its own duplicate."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from batchgen import run
from batchgen.commit import committed, read_shard
from batchgen.engines.base import EngineSpec
from batchgen.engines.chaos import ChaosEngine
from batchgen.job import Job
from batchgen.tasks.seen import Seen
from tests.helpers import chaos_job, planned, worker_on

STEPS: list[dict[str, Any]] = [{"task": "drop_duplicates"}, {"task": "text_generation"}]


def rows_of(job: Job) -> list[dict[str, Any]]:
    """All rows of a run that is complete, in order."""
    plan, _, store = planned(job)
    manifests = committed(store, plan)
    assert len(manifests) == len(plan.shards)
    return [row for index in sorted(manifests) for row in read_shard(store, plan, manifests[index]).to_pylist()]


def test_a_text_that_another_row_had_is_a_duplicate_however_it_is_written():
    seen = Seen(None)
    assert seen.reason("What is 2 + 2?", 1) is None
    assert seen.reason("what  is\n2 + 2?", 2) == "duplicate"
    assert seen.reason("What is 2 - 2?", 3) is None
    assert seen.reason("What is 2 + 2?", 1) is None, "the row itself, again"
    assert seen.reason("What is 2 + 2?", 4) == "duplicate"


def test_near_duplicates_are_those_of_the_merger():
    words = [f"word{i}" for i in range(60)]
    near, far = " ".join([*words[:-1], "other"]), " ".join([*words[:30], *(f"else{i}" for i in range(30))])
    seen = Seen(0.8)
    assert seen.reason(" ".join(words), 1) is None
    assert seen.reason(near, 2) == "near_duplicate"
    assert seen.reason(far, 3) is None
    assert seen.reason(near, 1) is None, "the row itself, which says something else this time"
    assert Seen(None).reason(near, 1) is None
    strict = Seen(1.0)
    assert strict.reason(" ".join(words), 1) is None
    assert strict.reason(near, 2) is None


def test_a_duplicate_ends_before_its_answer_is_asked_for(tmp_path: Path):
    texts = ["One?", "Two?", "one?", "Three?", "One?"]
    job = chaos_job(
        tmp_path, source={"rows": [{"instruction": text, "n": n} for n, text in enumerate(texts)]}, steps=STEPS
    )

    class Counting(ChaosEngine):
        calls = 0

        async def generate(self, request):
            self.calls += 1
            return await super().generate(request)

    engine = Counting(EngineSpec("chaos"))
    worker, plan, seeds, _ = worker_on(engine, job)
    asyncio.run(worker.shard(plan.shards[0], "a", seeds.slice(0, 5)))
    rows = rows_of(job)
    assert [row["reason"] for row in rows] == [None, None, "duplicate", None, "duplicate"]
    assert [row["n"] for row in rows] == list(range(5)), "rejected rows keep their columns"
    assert [row["output_tokens"] > 0 for row in rows] == [True, True, False, True, False]
    assert engine.calls == 3


def test_items_of_one_row_s_list_are_told_apart(tmp_path: Path):
    steps = [
        {"task": "self_instruct", "input_mappings": {"input": "context"}, "explode": "instructions -> instruction"},
        *STEPS,
    ]
    script = {"reply": "Sum 1 and 2.\nSum 3 and 4.\nsum 1 and 2."}
    job = chaos_job(
        tmp_path,
        source={"rows": [{"context": "x"}, {"context": "y"}]},
        model={"path": "chaos", "engine": script},
        steps=steps,
        merge={"exact": False, "near": False},
    )
    result = run(job, in_process=True)
    assert [(row["branch"], row["reason"]) for row in rows_of(job)] == [
        ("0", None),
        ("1", None),
        ("2", "duplicate"),
        ("0", "duplicate"),
        ("1", "duplicate"),
        ("2", "duplicate"),
    ]
    assert (result.progress.ok, result.progress.rejected) == (1, 1)


def test_rows_that_run_again_on_their_engine_are_no_duplicates_of_themselves(tmp_path: Path):
    """A row that hangs is searched for by running parts of its shard alone, on engines that live on."""
    rows = [{"instruction": "deadly" if i == 5 else f"row {i}"} for i in range(16)]
    job = chaos_job(
        tmp_path,
        source={"rows": rows},
        model={"path": "chaos", "engine": {"crash_on": "deadly"}},
        steps=STEPS,
        merge={"exact": False, "near": False},
    )
    result = run(job, in_process=True)
    assert (result.progress.ok, dict(result.progress.reasons)) == (15, {"engine_crash": 1})


def test_the_same_rows_end_at_every_threshold_of_the_merger(tmp_path: Path):
    """What the gate lets through, the merger of a run with one engine keeps."""
    rows = [{"instruction": f"What is {i % 7} + {i % 5}?"} for i in range(100)]
    job = chaos_job(tmp_path, source={"rows": rows}, steps=STEPS)
    result = run(job, in_process=True)
    assert result.progress.ok == 35
    assert (result.version.kept, dict(result.version.dropped)) == (35, {"rejected: duplicate": 65})


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"threshold": 0.2}, "threshold"),
        ({"threshold": "near"}, "threshold"),
        ({"sampling": {}, "num_generations": 2}, "drop_duplicates calls no model and generates nothing"),
        ({"input_mappings": {"instruction": "nothing"}}, "reads column 'nothing', which no step writes"),
    ],
)
def test_a_gate_that_is_told_something_wrong_is_refused(tmp_path: Path, step: dict[str, Any], message: str):
    from batchgen import UserError

    with pytest.raises(UserError, match=message):
        job = chaos_job(
            tmp_path,
            source={"rows": [{"instruction": "x"}]},
            steps=[{"task": "drop_duplicates", **step}, {"task": "text_generation"}],
        )
        planned(job)
