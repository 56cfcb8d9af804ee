"""A dataset of so many rows at most: the best of them, or the first."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from batchgen import JobError, run
from batchgen.cli import main
from batchgen.merge import merge_run
from batchgen.merge.outlook import Outlook
from batchgen.merge.version import latest_version
from batchgen.savedjob import saved_job
from batchgen.settle import read_plan
from batchgen.store import LocalStore

Rows = list[dict[str, Any]]


def tree(output: Path, rows: Rows, **merge: Any) -> dict[str, Any]:
    """A job that merges rows of a question, an answer and a score."""
    return {
        "name": "limit",
        "source": {"rows": rows},
        "steps": [],
        "shard_rows": 3,
        "merge": {"prompt": "q", "answer": "a", "near": False, **merge},
        "output": str(output),
    }


def some_rows(number: int, seed: int) -> Rows:
    chance = random.Random(seed)
    scores = [None, float("nan"), float("-inf"), float("inf"), 0, 1, 2, 2.5]
    return [
        {"q": f"What is {chance.randrange(number)}?", "a": str(row), "score": chance.choice(scores)}
        for row in range(number)
    ]


def kept(output: str) -> Rows:
    return load_dataset(f"{output}/dataset", split="train").to_list()


@pytest.mark.parametrize("prefer", [None, "score"])
@pytest.mark.parametrize("limit", [1, 7, 19])
def test_the_best_rows_stay_in_their_order_or_the_first(tmp_path: Path, prefer: str | None, limit: int):
    """Against the whole dataset, which `sorted` knows how to order."""
    rows = some_rows(40, seed=limit)
    whole = run(tree(tmp_path / "whole", rows, prefer=prefer), in_process=True)
    limited = run(tree(tmp_path / "limited", rows, prefer=prefer, limit=limit), in_process=True)

    def rank(row: dict[str, Any]) -> float:
        score = row["score"] if row["score"] is not None and row["score"] == row["score"] else float("-inf")
        return -score if prefer else 0.0

    everything = kept(whole.run)
    assert len(everything) > limit
    best = sorted(sorted(everything, key=rank)[:limit], key=lambda row: int(row["a"]))
    found = kept(limited.run)
    assert [(row["q"], row["a"], row["cluster_size"]) for row in found] == [
        (row["q"], row["a"], row["cluster_size"]) for row in best
    ]
    dropped = {**whole.version.dropped, "over the limit": len(everything) - limit}
    assert limited.version.dropped == dict(sorted(dropped.items()))
    assert limited.version.kept == limit


def test_a_limit_that_is_not_reached_changes_nothing(tmp_path: Path):
    rows = some_rows(20, seed=1)
    whole = run(tree(tmp_path / "whole", rows), in_process=True)
    limited = run(tree(tmp_path / "limited", rows, limit=whole.version.kept), in_process=True)
    assert [file.sha256 for name, file in limited.version.files.items() if name.startswith("data/")] == [
        file.sha256 for name, file in whole.version.files.items() if name.startswith("data/")
    ]
    assert "over the limit" not in limited.version.dropped


def test_rows_that_no_conversation_can_be_made_of_are_limited_as_well(tmp_path: Path):
    job = {**tree(tmp_path / "run", some_rows(9, seed=2)), "merge": {"limit": 4, "prefer": "score"}}
    job["source"]["rows"] = [{"text": row["q"], "score": number} for number, row in enumerate(job["source"]["rows"])]
    run(job, in_process=True)
    assert [row["score"] for row in kept(job["output"])] == [5, 6, 7, 8]


def test_rows_over_the_limit_are_shown_and_no_duplicate_of_one_that_is_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    questions = ["Who?", "What?", "Who?", "What?", "Where?"]
    rows = [{"q": text, "a": "So.", "score": score} for text, score in zip(questions, (3, 9, 4, 1, 2), strict=True)]
    job = tree(tmp_path / "run", rows, prefer="score", limit=1)
    run(job, in_process=True)
    capsys.readouterr()
    assert main(["dropped", job["output"], "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["row_index"], row["reason"], row.get("duplicate_of", {}).get("row_index")) for row in told] == [
        (0, "exact duplicate", None),
        (2, "over the limit", None),
        (3, "exact duplicate", 1),
        (4, "over the limit", None),
    ]


def test_it_is_changed_by_merging_again_and_told_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{**row, "score": number % 7} for number, row in enumerate(some_rows(30, seed=3))]
    job = tree(tmp_path / "run", rows, prefer="score")
    (tmp_path / "job.json").write_text(json.dumps(job))
    for changes, said in (
        ((), "merge: duplicates are told by q; of such rows the one with the highest score stays\n"),
        (("--set", "merge.limit=1200"), "stays; at most 1,200 rows stay, those with the highest score\n"),
        (
            ("--set", "merge={limit: 2, exact: false, near: false}"),
            "duplicates stay; at most 2 rows stay, the first ones",
        ),
    ):
        assert main(["plan", str(tmp_path / "job.json"), *changes]) == 0
        assert said in capsys.readouterr().out
    first = run(job, in_process=True)
    for limit in (5, 6):
        assert main(["merge", job["output"], "--set", f"merge.limit={limit}"]) == 0
        version = latest_version(LocalStore(job["output"]))
        assert version is not None
        assert (version.kept, version.number) == (limit, limit - 3)
    assert "| over the limit | " in (tmp_path / "run" / version.files["README.md"].key).read_text()
    assert main(["merge", job["output"]]) == 0
    again = latest_version(LocalStore(job["output"]))
    assert again is not None
    assert again.kept == first.version.kept


def test_what_a_run_tells_of_its_dataset_on_the_way_knows_no_limit(tmp_path: Path):
    job = tree(tmp_path / "run", [{"q": f"What is {number}?", "a": "So."} for number in range(1200)], limit=10)
    run({**job, "shard_rows": 100}, in_process=True)
    store = LocalStore(job["output"])
    looker = Outlook(store, read_plan(store), saved_job(store, []), 0)
    lines = looker.news(1200)
    assert looker._reader is not None
    looker._reader.join(30)
    (line,) = [*lines, *looker.news(0)]
    assert line == "of the first 1,200 ok rows a merge would keep 1,200"
    assert merge_run(store, read_plan(store), saved_job(store, [])).kept == 10


@pytest.mark.parametrize("limit", [0, -1, 1.5, "10", True])
def test_no_other_number_is_taken(tmp_path: Path, limit: Any):
    with pytest.raises(JobError, match=r"merge\.limit: "):
        run(tree(tmp_path / "run", some_rows(3, seed=4), limit=limit), in_process=True)
