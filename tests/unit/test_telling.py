"""How far a merge is, is told while it takes its time, and nothing is where it does not."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from batchgen import run, telling
from batchgen.cli import main
from batchgen.display import Display, show_progress
from batchgen.drive import Status
from batchgen.progress import Progress
from tests.helpers import chaos_job

ENDED = Status(rows=64, done=Progress(ok=64), shards=2, shards_done=2, engines=1, engines_ready=1)
MERGING = replace(ENDED, engines=0, engines_ready=0, merge="32 of 64 rows compared")


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute goes by between any two looks at the clock."""
    minutes = iter(range(0, 10**6, 60))
    monkeypatch.setattr(telling, "time", SimpleNamespace(monotonic=lambda: next(minutes)))


def test_texts_are_passed_on_now_and_then(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(telling, "time", SimpleNamespace(monotonic=lambda: now))
    told: list[str] = []
    tell = telling.paced(told.append, 10)
    for now in (101.0, 109.9, 110.0, 111.0, 119.0, 120.5, 125.0):
        tell(str(now))
    assert told == ["110.0", "120.5"]


def test_who_watches_a_run_is_told_how_far_its_merge_is(tmp_path: Path, slow_clock: None):
    seen: list[Status] = []
    run(chaos_job(tmp_path / "run", source={"count": 1100}), watch=seen.append, in_process=True)
    told = [status for status in seen if status.merge]
    shards = told[0].shards
    assert shards > 1
    done = ["compared"] * shards + ["written"] * (shards - 1)  # with the last one it is at its end
    assert [status.merge.rpartition(" ")[2] for status in told] == done
    assert told[shards - 1].merge == "1,100 of 1,100 rows compared"
    assert all(status.done.ok == 1100 and not status.engines and not status.notes for status in told)
    assert not seen[-len(told) - 1].merge


def test_of_a_merge_that_takes_no_time_nothing_is_told(tmp_path: Path):
    seen: list[Status] = []
    run(chaos_job(tmp_path / "run"), watch=seen.append, in_process=True)
    assert not any(status.merge for status in seen)


def test_commands_that_read_all_shards_tell_how_far_they_are(
    tmp_path: Path, slow_clock: None, capsys: pytest.CaptureFixture[str]
):
    folder = str(tmp_path / "run")
    run(chaos_job(folder, source={"count": 1100}), in_process=True)
    told = {}
    for command in ("merge", "dropped", "verify"):
        assert main([command, folder]) == 0
        out, told[command] = capsys.readouterr()
        assert out and "compared" not in out
    assert "\n  1,100 of 1,100 rows compared\n" in told["merge"]
    assert told["merge"].endswith("of 1,100 rows written\n")
    assert told["dropped"].endswith("\n  1,100 of 1,100 rows read again\n")
    assert told["verify"].startswith("  0 of ")
    assert told["verify"].endswith(" shards verified\n")


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_shown_of_a_merge_comes_after_the_rows(monkeypatch: pytest.MonkeyPatch, terminal: bool):
    monkeypatch.setattr("batchgen.display._PLAIN_EVERY", 0.0)
    out = io.StringIO()
    with Display(Console(file=out, width=120, force_terminal=terminal)) as display:
        for status in (replace(ENDED, shards_done=1), ENDED, MERGING, replace(MERGING, merge="64 of 64 rows written")):
            display.show(status)
    lines = [line for line in out.getvalue().splitlines() if "[0:0" in line]
    last_of_rows = max(at for at, line in enumerate(lines) if "shards 2/2" in line)
    if terminal:  # which goes over what it has written
        assert "64 of 64 rows written" in out.getvalue()
    else:
        assert [line.partition("] ")[2] for line in lines[last_of_rows + 1 :]] == [
            "merge: 32 of 64 rows compared",
            "merge: 64 of 64 rows written",
        ]


def test_of_a_run_that_was_done_already_the_merge_is_shown_with_its_rows():
    out = io.StringIO()
    with Display(Console(file=out, width=120, force_terminal=True)) as display:
        display.show(MERGING)
    assert "64/64" in out.getvalue()
    assert "merge: 32 of 64 rows compared" in out.getvalue()


def test_a_script_is_told_of_a_merge_now_and_then(capsys: pytest.CaptureFixture[str]):
    for every in (0.0, 60.0):
        watch = show_progress(every)
        for status in (ENDED, MERGING):
            watch(status)
        lines = [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()]
        assert lines[1:] == ["merge: 32 of 64 rows compared"] * (every == 0)
        assert lines[0].startswith("64/64 rows")
