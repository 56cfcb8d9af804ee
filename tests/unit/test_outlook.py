"""What a run tells of its dataset while it is generated."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchgen import run
from batchgen.commit import committed
from batchgen.errors import StoreError
from batchgen.job import Job
from batchgen.merge import merge_run, outlook
from batchgen.merge.outlook import Outlook
from batchgen.merge.selection import Shards
from batchgen.store import LocalStore
from tests.helpers import chaos_job, planned

ROWS = [{"instruction": f"What is {i % 700} plus {i % 700}, in words?"} for i in range(1200)]


def done(folder: Path, **changes: Any) -> Job:
    """A job of 1,200 rows with 700 questions, run to its end."""
    job = chaos_job(
        folder,
        **{
            "source": {"rows": ROWS},
            "steps": [{"task": "text_generation"}],
            "merge": {"near": False},
            "shard_rows": 100,
            "model": {"path": "chaos", "engine": {"slots": 512}},
            **changes,
        },
    )
    run(job, in_process=True)
    return job


def told(looker: Outlook, rows: int) -> list[str]:
    """What it says of so many rows, once it has looked."""
    lines = looker.news(rows)
    if looker._reader is not None:
        looker._reader.join(30)
    return [*lines, *looker.news(0)]


def test_a_model_that_repeats_itself_is_told_after_the_first_thousand_rows(tmp_path: Path):
    notes: list[str] = []
    job = chaos_job(
        tmp_path,
        source={"rows": ROWS * 2},
        steps=[{"task": "text_generation"}],
        merge={"near": False},
        shard_rows=100,
        model={"path": "chaos", "engine": {"slots": 32, "latency": 0.05}},
    )
    run(job, in_process=True, watch=lambda status: notes.extend(status.notes))
    (line,) = [note for note in notes if "merge would keep" in note]
    assert line.endswith("(a drop_duplicates step ends duplicates before their answers are generated)")
    assert "of the first 1," in line, "it looked at what was committed then"
    assert " ok rows a merge would keep 700; dropped: exact duplicate " in line


def test_benchmarks_are_read_once_for_all_of_its_looks(tmp_path: Path):
    held_out = tmp_path / "held.jsonl"
    rows = {row["instruction"] for row in ROWS}
    held_out.write_text("".join(json.dumps({"q": text}) + "\n" for text in sorted(rows)[:5]))
    job = done(tmp_path / "run", merge={"decontaminate": {"path": str(held_out), "columns": ["q"]}, "near": False})
    plan, _, store = planned(job)
    looker = Outlook(store, plan, job, 0)
    (first,) = told(looker, 1000)
    held_out.unlink()
    (second,) = told(looker, 10_000)
    assert first == second
    assert "contaminated: held.jsonl " in first


@pytest.mark.parametrize("merge", [{"near": False}, {"near": {"threshold": 0.5}}, {"exact": False, "near": False}])
def test_it_says_what_the_merger_does(tmp_path: Path, merge: dict[str, Any]):
    job = done(tmp_path, merge=merge)
    plan, _, store = planned(job)
    version = merge_run(store, plan, job)
    (line,) = told(Outlook(store, plan, job, 0), 1200)
    listed = ", ".join(f"{why} {count:,}" for why, count in version.dropped.items())
    assert line.startswith(
        f"of the first 1,200 ok rows a merge would keep {version.kept:,}" + (f"; dropped: {listed}" if listed else "")
    )


def test_rejected_rows_are_none_that_a_merge_could_keep(tmp_path: Path):
    job = done(tmp_path, source={"rows": [*ROWS, {"instruction": ""}, {"instruction": " "}]})
    plan, _, store = planned(job)
    (line,) = told(Outlook(store, plan, job, 0), 1202)
    assert line.startswith("of the first 1,200 ok rows a merge would keep 700; dropped: exact duplicate 500 (")


def test_it_looks_once_at_each_tenfold(tmp_path: Path):
    job = done(tmp_path)
    plan, _, store = planned(job)
    looker = Outlook(store, plan, job, 0)
    counts = [len(told(looker, rows)) for rows in (0, 999, 1000, 1100, 9_999, 10_000, 99_999, 100_000, 1_000_000)]
    assert counts == [0, 0, 1, 0, 0, 1, 0, 1, 0]
    assert len(told(Outlook(store, plan, job, 1000), 10_000)) == 1, "a resumed run looks again when it has come far"
    assert told(Outlook(store, plan, job, 1000), 9_999) == []
    assert told(Outlook(store, plan, job, 100_000), 1_000_000) == []
    assert len(told(Outlook(store, plan, job, 10_000), 100_000)) == 1
    slow = job.model_copy(update={"merge": job.merge.model_copy(update={"keep": {"instruction": {"language": "en"}}})})
    assert told(Outlook(store, plan, slow, 10_000), 100_000) == [], "it would take a minute"
    (line,) = told(Outlook(store, plan, slow, 1_000), 10_000)
    assert "a merge would keep" in line
    closed = Outlook(store, plan, job, 0)
    closed.close()
    assert told(closed, 1000) == [], "nothing is read once the run has ended"


def test_a_job_with_a_gate_is_not_told_to_have_one(tmp_path: Path):
    job = done(
        tmp_path,
        steps=[{"task": "drop_duplicates"}, {"task": "text_generation"}],
        source={"rows": [{"instruction": f"{i} words, {i % 2}"} for i in range(1200)]},
    )
    plan, _, store = planned(job)
    (line,) = told(Outlook(store, plan, job, 0), 1200)
    assert "drop_duplicates" not in line


def test_few_duplicates_or_none_are_worth_no_advice(tmp_path: Path):
    rows = [{"instruction": f"{i} words, {i % 1100}"} for i in range(1200)]
    job = done(tmp_path / "none", source={"rows": rows})
    plan, _, store = planned(job)
    assert told(Outlook(store, plan, job, 0), 1200) == ["of the first 1,200 ok rows a merge would keep 1,200"]
    job = done(tmp_path / "few", source={"rows": [*rows[:1100], *rows[:100]]})
    plan, _, store = planned(job)
    line = "of the first 1,200 ok rows a merge would keep 1,100; dropped: exact duplicate 100"
    assert told(Outlook(store, plan, job, 0), 1200) == [line]


@pytest.mark.parametrize(("cut", "told_of"), [(119, False), (120, True)])
def test_many_cut_rows_are_worth_advice(tmp_path: Path, cut: int, told_of: bool):
    rows = [{"instruction": f"{i} words" + " on and on" * (i < cut)} for i in range(1200)]
    model = {"path": "chaos", "engine": {"slots": 512, "truncate_on": "on and on"}}
    job = done(tmp_path, source={"rows": rows}, model=model, steps=[{"task": "text_generation"}])
    plan, _, store = planned(job)
    (line,) = told(Outlook(store, plan, job, 0), 1200)
    advice = "a larger sampling.max_tokens (within max_model_len) cuts fewer; merge.drop_truncated: false keeps them"
    hint = f" ({advice})" * told_of
    assert line == f"of the first 1,200 ok rows a merge would keep {1200 - cut:,}; dropped: truncated {cut}{hint}"


def test_so_are_conversations_that_are_lost_with_a_turn_that_was_cut(tmp_path: Path):
    model = {"path": "chaos", "engine": {"slots": 512, "truncate_on": "on and on"}}
    source = {"rows": [{"system_prompt": f"{i} words" + " on and on" * (i < 300)} for i in range(1200)]}
    for keeps in (False, True):
        steps = [{"task": "magpie", "n_turns": 2, "keep_shorter": keeps}]
        job = done(
            tmp_path / str(keeps), source=source, model=model, steps=steps, merge={"exact": False, "near": False}
        )
        plan, _, store = planned(job)
        (line,) = told(Outlook(store, plan, job, 0), 1200)
        begins = "of the first 900 ok rows a merge would keep 900; 300 more are rejected as truncated ("
        assert line.startswith(begins)
        assert ("keep_shorter" in line) != keeps
        assert "a larger sampling.max_tokens" in line


def test_a_run_that_ends_waits_for_the_shard_that_is_being_read(tmp_path: Path):
    job = done(tmp_path)
    plan, _, store = planned(job)
    looker = Outlook(store, plan, job, 0)
    assert looker.news(1200) == ()
    looker.close()
    assert looker._reader is not None
    assert not looker._reader.is_alive()


def test_a_damaged_shard_is_named_while_the_run_goes_on(tmp_path: Path):
    job = done(tmp_path)
    plan, _, store = planned(job)
    damaged = committed(store, plan)[3]
    (tmp_path / damaged.key).write_bytes(b"nothing")
    (line,) = told(Outlook(store, plan, job, 0), 1200)
    assert "00003" in line


def test_a_store_that_fails_or_a_defect_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = done(tmp_path)
    plan, _, store = planned(job)

    def raising(error: Exception) -> Any:
        def read(self: Shards, done: str) -> Iterator[Any]:
            raise error

        return read

    monkeypatch.setattr(Shards, "tables", raising(StoreError("away")))
    assert told(Outlook(store, plan, job, 0), 1200) == []
    monkeypatch.setattr(Shards, "tables", raising(ValueError("a secret text")))
    assert told(Outlook(store, plan, job, 0), 1200) == ["what a merge would keep cannot be told: ValueError"]


def test_a_run_that_ends_waits_for_no_store_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = done(tmp_path)
    plan, _, store = planned(job)
    hanging, ended = threading.Event(), threading.Event()

    def hang(self: LocalStore, *args: Any) -> Any:
        hanging.set()
        ended.wait(30)
        raise StoreError("away")

    monkeypatch.setattr(LocalStore, "list", hang)
    monkeypatch.setattr(outlook, "_READ_SECONDS", 0.1)
    looker = Outlook(store, plan, job, 0)
    assert looker.news(1200) == ()
    assert hanging.wait(10)
    started = time.monotonic()
    looker.close()
    assert time.monotonic() - started < 5
    assert looker.news(10_000) == (), "one look at a time"
    ended.set()
