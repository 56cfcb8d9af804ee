"""Whether a run is worth going on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distilabel.steps import Step

from batchgen import Job, own_task
from batchgen.drive import Status
from batchgen.progress import TRUNCATED, Progress
from batchgen.prospects import hopeless
from batchgen.tasks.table import TASKS
from tests.helpers import chaos_job


def lost(rejected: int = 0, cut: int = 0, ok: int = 0) -> Progress:
    """Rows that were rejected, those cut at max_tokens, and whole ones."""
    return Progress(ok + cut, rejected, {"invalid_output": rejected}, notes={TRUNCATED: cut} if cut else {})


def verdict(folder: Path, done: Progress, before: Progress | None = None, **changes: Any) -> str:
    """Why a run of 1,000 rows that gives up after 100 is to end; "" where it goes on."""
    job = chaos_job(folder, **{"source": {"count": 1000}, "fail_after_rejected": 100, **changes})
    error = hopeless(job, Status(1000, done, 10, 1), before or Progress())
    return str(error or "")


@pytest.mark.parametrize(
    ("done", "ends"),
    [
        (lost(rejected=99), False),
        (lost(rejected=100), True),
        (lost(rejected=100, ok=1), False),
        (lost(cut=100), True),
        (lost(rejected=50, cut=50), True),
        (lost(rejected=50, cut=49), False),
        (lost(cut=100, ok=1), False),
        # There is nothing left to try.
        (lost(rejected=999), True),
        (lost(rejected=1000), False),
    ],
)
def test_a_run_ends_at_the_limit_where_every_row_is_lost(tmp_path: Path, done: Progress, ends: bool):
    assert bool(verdict(tmp_path, done)) == ends


@pytest.mark.parametrize(
    ("before", "done", "ends"),
    [
        (lost(rejected=150), lost(rejected=150), False),
        (lost(rejected=150), lost(rejected=249), False),
        (lost(rejected=150), lost(rejected=250), True),
        (lost(cut=150), lost(cut=249), False),
        (lost(cut=150), lost(cut=250), True),
        (lost(rejected=70, cut=80), lost(rejected=120, cut=129), False),
        (lost(rejected=70, cut=80), lost(rejected=120, cut=130), True),
    ],
)
def test_resumed_it_tries_as_many_again(tmp_path: Path, before: Progress, done: Progress, ends: bool):
    assert bool(verdict(tmp_path, done, before)) == ends


def test_what_was_lost_is_told(tmp_path: Path):
    rejected = verdict(tmp_path, lost(rejected=100))
    assert rejected.startswith("all of the first 100 rows were rejected (invalid_output 100); more are not tried")
    ended = verdict(tmp_path, Progress(0, 100, {"truncated": 100}))
    assert "rejected (truncated 100); more are not tried (fail_after_rejected: 100): raise sampling.max_tokens" in ended
    thought = verdict(tmp_path, Progress(0, 100, {"truncated_reasoning": 90, "truncated_output": 10}))
    assert thought.partition("(fail_after_rejected: 100): ")[2].startswith(
        "raise sampling.max_tokens (within max_model_len); many templates leave thoughts out with "
        "model.chat_template_kwargs: {enable_thinking: false}. To look at them: batchgen rejected "
    )
    cut = verdict(tmp_path, lost(rejected=30, cut=70))
    assert cut.startswith(
        "all of the first 100 rows were cut at max_tokens or rejected (30), and the merger drops such"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"fail_after_rejected": None},
        {"merge": {"drop_truncated": False}},
        # Another row of the same seed may be whole.
        {"steps": [{"task": "magpie", "num_generations": 2}]},
    ],
)
def test_cut_rows_end_no_run_where_they_are_kept_or_no_limit_is_set(tmp_path: Path, changes: dict[str, Any]):
    assert verdict(tmp_path, lost(cut=200), **changes) == ""


def test_cut_rows_end_no_run_in_which_a_step_may_make_several_of_one(tmp_path: Path):
    job = {"name": "t", "source": {"count": 1000}, "model": {"path": "chaos"}, "output": str(tmp_path)}
    for own, ends in ((own_task(Step, {}, {}), False), (TASKS["magpie"], True)):
        made = Job.of({**job, "steps": [{"task": "own"}], "fail_after_rejected": 100}, tasks={"own": own})
        assert bool(hopeless(made, Status(1000, lost(cut=200), 10, 1), Progress())) == ends


FILTER = {"task": "filter", "keep": {"score": {"min": 4}}}
LATER = {"task": "filter", "keep": {"generation": {"min_words": 3}}}
ANSWER = {"task": "text_generation"}


@pytest.mark.parametrize(
    ("steps", "reason", "ends"),
    [
        ([FILTER, ANSWER], "filtered:score", False),
        ([FILTER, {"task": "drop_duplicates"}, ANSWER], "filtered:score", False),
        ([FILTER], "filtered:score", False),
        ([ANSWER, LATER], "filtered:generation", True),
        ([ANSWER, FILTER], "filtered:score", True),
        # At which of the two it was is not known.
        ([FILTER, ANSWER, FILTER], "filtered:score", True),
        ([FILTER, ANSWER], "empty_input", True),
    ],
)
def test_rows_that_a_filter_ends_before_a_model_is_asked_end_no_run(
    tmp_path: Path, steps: list[dict[str, Any]], reason: str, ends: bool
):
    source = {"rows": [{"instruction": "x", "score": 1}]}

    def told(done: Progress, before: Progress | None = None) -> str:
        return verdict(tmp_path, done, before, source=source, steps=steps)

    assert bool(told(Progress(0, 500, {reason: 500}))) == ends
    assert bool(told(Progress(0, 599, {reason: 500, "invalid_output": 99}))) == ends
    assert told(Progress(0, 600, {reason: 500, "invalid_output": 100}))
    # Resumed: with as many again of those that count.
    before = Progress(0, 450, {reason: 400, "invalid_output": 50})
    assert bool(told(Progress(0, 649, {reason: 500, "invalid_output": 149}), before)) == ends
    assert told(Progress(0, 650, {reason: 500, "invalid_output": 150}), before)


def test_so_do_rows_of_which_a_step_of_the_user_s_own_makes_none(tmp_path: Path):
    job = {"name": "t", "source": {"count": 1000}, "model": {"path": "chaos"}, "output": str(tmp_path)}
    done = Progress(0, 200, {"filtered": 200})
    for steps, ends in ((["own", "magpie"], False), (["magpie", "own"], True)):
        tree = {**job, "steps": [{"task": task} for task in steps], "fail_after_rejected": 100}
        made = Job.of(tree, tasks={"own": own_task(Step, {}, {})})
        assert bool(hopeless(made, Status(1000, done, 10, 1), Progress())) == ends
