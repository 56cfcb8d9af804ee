"""Rows that the merger left out, as `batchgen dropped` shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchgen import run
from batchgen.cli import main
from batchgen.commit import committed
from batchgen.job import Job
from batchgen.merge.dropped import Dropped
from batchgen.reasons import DROPPED
from batchgen.settle import read_plan
from batchgen.store import LocalStore

LONG = "Please write a long and careful story about a river that runs through the old town"
ROWS = [
    {"q": LONG, "a": "One.", "score": 5},
    {"q": f"{LONG}!", "a": "Two.", "score": 4},  # nearly the first
    {"q": "What is it?", "a": "Three.", "score": 1},
    {"q": LONG.upper(), "a": "One.", "score": 3},  # the first again
    {"q": "Who wrote Hamlet?", "a": "\x1b[31mFour.", "score": 4},
    {"q": " ", "a": "Five.", "score": 4},
    {"q": f"{LONG} today", "a": "Six.", "score": 4},
    {"q": "What is that?", "a": "Seven.", "score": None},
    {"q": "Why is it so?", "a": "Eight.", "score": 4},
]
REASONS = {
    1: "near duplicate",
    2: "filtered: score",
    3: "exact duplicate",
    4: "contaminated: held.jsonl",
    5: "empty",
    6: "near duplicate",
    7: "filtered: score",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("held.jsonl").write_text('{"q": "Who wrote Hamlet?"}\n')
    job = {
        "name": "dropped",
        "source": {"rows": ROWS},
        "steps": [],
        "shard_rows": 2,
        "merge": {
            "prompt": "q",
            "answer": "a",
            "keep": {"score": {"min": 2}},
            "decontaminate": {"path": "held.jsonl", "columns": ["q"]},
        },
        "output": "run",
    }
    run(job, in_process=True)
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["dropped", "run", *arguments]) == 0
    return capsys.readouterr().out


def test_every_row_that_is_not_kept_is_shown_with_its_reason(folder: Path, capsys: pytest.CaptureFixture[str]):
    rows = [json.loads(line) for line in shown(capsys, "--json").splitlines()]
    assert {row["row_index"]: row["reason"] for row in rows} == REASONS
    assert [row["row_index"] for row in rows] == sorted(REASONS), "in the order of the seeds"
    for row in rows:
        given = {name: value for name, value in ROWS[row["row_index"]].items() if value is not None}
        assert {name: row[name] for name in given} == given
        assert "score" in row or row["row_index"] == 7
        if "duplicate" in row["reason"]:
            original = row["duplicate_of"]
            assert (original["row_index"], original["q"], original["score"]) == (0, LONG, 5)
        else:
            assert "duplicate_of" not in row
        contaminated = {"in_common": {"column": "q", "words": "who wrote hamlet"}}
        assert row.items() >= contaminated.items() if row["row_index"] == 4 else "in_common" not in row


def test_a_few_of_each_reason_are_shown_to_be_read(folder: Path, capsys: pytest.CaptureFixture[str]):
    head, *rows = shown(capsys, "--limit", "1").rstrip("\n").split("\n\n")
    assert head.splitlines() == [
        "dropped:",
        f"  filtered: score 2: {DROPPED['filtered']}",
        f"  near duplicate 2: {DROPPED['near duplicate']}",
        f"  contaminated: held.jsonl 1: {DROPPED['contaminated']}",
        f"  empty 1: {DROPPED['empty']}",
        f"  exact duplicate 1: {DROPPED['exact duplicate']}",
    ]
    firsts = [f"row {row}: {REASONS[row]}" + " of row 0" * ("duplicate" in REASONS[row]) for row in (1, 2, 3, 4, 5)]
    assert [row.partition("\n")[0] for row in rows] == firsts
    assert rows[0].splitlines()[1:] == [
        f"  q: {LONG}!",
        f"  (row 0): {LONG}",
        "  a: Two.",
        "  (row 0): One.",
        "  score: 4",
        "  (row 0): 5",
    ]
    assert "  a: One.\n  score" in rows[2], "what is the same there is not said twice"
    assert rows[3].splitlines()[1] == "  in common, of q: who wrote hamlet"
    assert "\x1b" not in rows[3]
    assert shown(capsys).count("\nrow ") == 7
    assert shown(capsys, "--reason", "near duplicate").count("\nrow ") == 2
    assert shown(capsys, "--reason", "near duplicate", "--limit", "1").count("\nrow ") == 1


def test_a_reason_that_there_is_not_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["dropped", "run", "--reason", "near"]) == 2
    message = "--reason near: no row was left out for that; left out: filtered: score 2, near duplicate 2, "
    assert message in capsys.readouterr().err
    assert main(["dropped", "nowhere"]) == 2
    assert "nowhere is not a batchgen run" in capsys.readouterr().err


def test_the_settings_are_those_of_the_newest_version(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["merge", "run", "--set", "merge.near=false", "--set", "merge.keep={}"]) == 0
    capsys.readouterr()
    rows = [json.loads(line) for line in shown(capsys, "--json").splitlines()]
    assert {row["row_index"]: row["reason"] for row in rows} == {
        3: "exact duplicate",
        4: "contaminated: held.jsonl",
        5: "empty",
    }


def test_a_run_that_is_not_merged_has_those_of_its_job(folder: Path, capsys: pytest.CaptureFixture[str]):
    for version in Path("run/versions").glob("*.json"):
        version.unlink()
    rows = [json.loads(line) for line in shown(capsys, "--json").splitlines()]
    assert {row["row_index"]: row["reason"] for row in rows} == REASONS


def test_nothing_left_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    job: dict[str, Any] = {"name": "t", "source": {"rows": ROWS[:1]}, "steps": [], "output": "run"}
    run(job, in_process=True)
    assert shown(capsys) == "dropped: none\n"
    assert shown(capsys, "--json") == ""


def test_rejected_rows_are_not_among_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tree = {
        "name": "t",
        "source": {"rows": [{"instruction": "cut"}, {"instruction": "silent"}, {"instruction": "good"}]},
        "model": {"path": "chaos", "engine": {"empty_on": "silent", "truncate_on": "cut"}},
        "steps": [{"task": "text_generation"}],
        "output": str(tmp_path / "run"),
    }
    run(tree, in_process=True)
    store = LocalStore(tree["output"])
    plan = read_plan(store)
    found = Dropped(store, plan, Job.of(tree), committed(store, plan))
    assert found.counts == {"truncated": 1}
    assert [(each.reason, each.row["instruction"]) for each in found.rows()] == [("truncated", "cut")]


def test_words_in_common_are_those_of_the_row_itself(folder: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"q": "Say.", "a": "Who wrote Hamlet?"}, {"q": "Who wrote Hamlet?", "a": "Four."}, {"q": "A.", "a": "B."}]
    contaminated = {"merge": {"decontaminate": {"path": "held.jsonl", "columns": ["q"]}, "prompt": "q", "answer": "a"}}
    job = {"name": "dropped", "source": {"rows": rows}, "steps": [], **contaminated, "output": "other"}
    run(job, in_process=True)
    capsys.readouterr()
    assert main(["dropped", "other", "--json"]) == 0
    told = [json.loads(line)["in_common"]["column"] for line in capsys.readouterr().out.splitlines()]
    assert told == ["a", "q"]
