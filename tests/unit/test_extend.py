"""A run that is given more seed rows than it began with."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchgen import run
from batchgen.cli import main
from batchgen.commit import committed
from batchgen.drive import Status
from batchgen.errors import PlanMismatch, Stopped
from batchgen.job import Job
from batchgen.merge.version import merge_run
from batchgen.plan import Earlier, make_plan
from batchgen.seeds import load_seeds
from batchgen.settle import continued_plan, read_plan, settle_plan
from batchgen.store import LocalStore
from batchgen.upkeep import collect, revoke, verify
from tests.faults import ledger
from tests.helpers import chaos_job, planned


def numbered(output: Path, count: int, **changes: Any) -> Job:
    return chaos_job(output, source={"count": count}, shard_rows=8, **changes)


def listed(output: Path, texts: list[str], **changes: Any) -> Job:
    rows = [{"instruction": text} for text in texts]
    return chaos_job(output, source={"rows": rows}, steps=[{"task": "text_generation"}], shard_rows=2, **changes)


def files(folder: Path, part: str) -> dict[str, bytes]:
    found = (path for path in (folder / part).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("counts", [[20, 50], [1, 2, 33, 50], [49, 50], [8, 50]])
def test_it_ends_in_the_dataset_of_a_run_that_had_all_rows_at_once(tmp_path: Path, counts: list[int]):
    run(numbered(tmp_path / "whole", 50), in_process=True)
    kept: dict[str, bytes] = {}
    folder = tmp_path / "run"
    for count in counts:
        result = run(numbered(folder, count), in_process=True, extend=True)
        assert result.complete
        assert result.progress.ok == count
        there = {**files(folder, "commits"), **files(folder, "attempts")}
        assert kept.items() <= there.items(), "what was committed has changed"
        kept = there
    assert files(folder, "dataset") == files(tmp_path / "whole", "dataset")
    store = LocalStore(folder)
    assert [earlier.rows for earlier in read_plan(store).earlier] == counts[:-1]
    found = verify(store, read_plan(store))
    assert (found.good, found.ok, found.missing) == (True, 50, 0)
    assert collect(store, read_plan(store))[0] == 0
    ledger.record("rows added", len(counts) - 1, folder, 50)


def test_a_run_that_was_interrupted_is_given_rows_and_goes_on_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.drive.POLL_SECONDS", 0.02)
    folder = tmp_path / "run"

    def stop(status: Status) -> None:
        if status.shards_done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        run(numbered(folder, 60, model=slow(slots=2)), in_process=True, watch=stop)
    before = committed(LocalStore(folder), read_plan(LocalStore(folder)))
    assert 0 < len(before) < 8
    notes: list[str] = []
    run(numbered(folder, 90), in_process=True, extend=True, watch=lambda status: notes.extend(status.notes))
    assert notes[0] == "the run began with 60 seed rows and has 90 now"
    after = committed(LocalStore(folder), read_plan(LocalStore(folder)))
    assert {index: after[index] for index in before} == before
    assert verify(LocalStore(folder), read_plan(LocalStore(folder))).ok == 90


def test_the_same_call_goes_on_with_or_without_saying_so(tmp_path: Path):
    run(numbered(tmp_path, 10), in_process=True, extend=True)
    run(numbered(tmp_path, 20), in_process=True, extend=True)
    plans = files(tmp_path, "plans")
    assert [*plans] == ["plans/0001.json"]
    for extend in (False, True):
        assert run(numbered(tmp_path, 20), in_process=True, extend=extend).progress.ok == 20
    assert files(tmp_path, "plans") == plans


@pytest.mark.parametrize("extend", [False, True])
def test_rows_are_added_behind_and_nothing_else_changes(tmp_path: Path, extend: bool):
    planned(listed(tmp_path, ["a", "b", "c"]))
    before = files(tmp_path, "")
    cases: list[tuple[Job, str]] = [
        (listed(tmp_path, ["a", "b"]), "seeds: 3 rows then, 2 now"),
        (listed(tmp_path, ["a", "b", "x"]), r"seeds: 3 rows then, 3 now \(other content\)"),
        (listed(tmp_path, ["a", "b", "c", "d"], seed=5), "seed: 0 then, 5 now"),
        (listed(tmp_path, ["a", "b", "c", "d"], sampling={"top_p": 0.5}), "sampling.top_p: absent then, 0.5 now"),
    ]
    for job, message in cases:
        with pytest.raises(PlanMismatch, match=message) as caught:
            run(job, in_process=True, extend=extend)
        assert str(caught.value).endswith("Resume with the job as it was, or give another --output.")
    assert files(tmp_path, "") == before


def test_whoever_adds_rows_without_saying_so_is_told_how(tmp_path: Path):
    planned(listed(tmp_path, ["a", "b", "c"]))
    with pytest.raises(PlanMismatch, match=r"seeds: 3 rows then, 4 now\n.* --extend adds them to the run\.$"):
        run(listed(tmp_path, ["a", "b", "c", "d"]), in_process=True)


@pytest.mark.parametrize("texts", [["d", "a", "b", "c"], ["a", "x", "c", "d"], ["b", "c", "d", "e"]])
def test_rows_that_are_not_those_of_the_run_are_refused(tmp_path: Path, texts: list[str]):
    planned(listed(tmp_path, ["a", "b", "c"]))
    with pytest.raises(PlanMismatch, match=r"cannot be extended: the first 3 seed rows are not those that it has\."):
        run(listed(tmp_path, texts), in_process=True, extend=True)
    assert files(tmp_path, "plans") == {}


def test_rows_with_another_column_are_refused(tmp_path: Path):
    steps = [{"task": "text_generation"}]
    rows = [{"instruction": "a"}]
    planned(chaos_job(tmp_path, source={"rows": rows}, steps=steps))
    more = [*rows, {"instruction": "b", "page": 3}]
    with pytest.raises(PlanMismatch, match="the first 1 seed rows are not those that it has"):
        run(chaos_job(tmp_path, source={"rows": more}, steps=steps), in_process=True, extend=True)


def test_files_may_be_added_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    tree = {"source": {"path": "*.jsonl"}, "steps": [{"task": "text_generation"}]}
    (tmp_path / "2.jsonl").write_text('{"instruction": "two"}\n{"instruction": "three"}\n')
    run(chaos_job("run", **tree), in_process=True)
    (tmp_path / "3.jsonl").write_text('{"instruction": "four"}\n')
    assert run(chaos_job("run", **tree), in_process=True, extend=True).progress.ok == 3
    (tmp_path / "1.jsonl").write_text('{"instruction": "one"}\n')
    with pytest.raises(PlanMismatch, match="Rows can only be added behind them"):
        run(chaos_job("run", **tree), in_process=True, extend=True)


def test_a_step_that_drops_duplicates_knows_the_rows_from_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.drive.POLL_SECONDS", 0.02)
    steps = [{"task": "drop_duplicates"}, {"task": "text_generation"}]
    for count in (10, 30):
        rows = [{"instruction": f"What is {number % 10}?"} for number in range(count)]
        job = chaos_job(tmp_path, source={"rows": rows}, steps=steps, shard_rows=10, model=slow(slots=1))
        result = run(job, in_process=True, extend=True)
    assert result.version.kept == 10
    assert result.progress.ok + result.progress.reasons["duplicate"] == 30
    assert result.progress.ok < 20, "without the rows from before, ten more are answered"


def slow(**more: Any) -> dict[str, Any]:
    return {"path": "chaos", "engine": {"latency": 0.05, **more}}


def meanwhile(do: Callable[[], object]) -> Callable[[Status], None]:
    """Does something once, while a run generates."""
    left = [do]

    def watch(status: Status) -> None:
        if status.engines_ready and left:
            thread = threading.Thread(target=left.pop())
            thread.start()
            thread.join()

    return watch


def test_a_driver_that_does_not_know_of_the_rows_leaves_the_dataset_to_the_one_that_does(tmp_path: Path):
    few, all_rows = numbered(tmp_path, 40, model=slow()), numbered(tmp_path, 60, model=slow())

    def extend() -> None:
        run(all_rows, in_process=True, extend=True)

    with pytest.raises(Stopped, match=r"^the run was extended to 60 seed rows while this command ran"):
        run(few, in_process=True, watch=meanwhile(extend))
    store = LocalStore(tmp_path)
    assert verify(store, read_plan(store)).good
    assert merge_run(store, read_plan(store), all_rows).read == 60
    assert not (tmp_path / "versions" / "0002.json").exists()
    ledger.record("rows added beside a driver that does not know", 1, tmp_path, 60)


def test_what_either_driver_commits_counts_for_both(tmp_path: Path):
    """A shard's manifest is the same, whichever plan its driver knew."""
    few, _, store = planned(numbered(tmp_path, 20))
    all_rows = numbered(tmp_path, 30)
    seeds = load_seeds(all_rows.source)
    more = settle_plan(store, make_plan(all_rows, seeds), seeds)
    assert [more.fingerprint_of(shard) for shard in few.shards] == [few.fingerprint] * len(few.shards)
    assert more.shards[: len(few.shards)] == few.shards
    assert {more.fingerprint_of(shard) for shard in more.shards[len(few.shards) :]} == {more.fingerprint}
    run(all_rows, in_process=True)
    assert committed(store, few).keys() == set(range(len(few.shards)))


def test_of_two_that_extend_at_once_both_have_one_plan(tmp_path: Path):
    planned(numbered(tmp_path, 20))
    job = numbered(tmp_path, 30)
    seeds = load_seeds(job.source)
    store = Raced(tmp_path, lambda: settle_plan(LocalStore(tmp_path), make_plan(job, seeds), seeds))
    plan = settle_plan(store, make_plan(job, seeds), seeds)
    assert [plan] == store.faster == [read_plan(store)]
    assert [*files(tmp_path, "plans")] == ["plans/0001.json"]


@pytest.mark.parametrize(("mine", "theirs"), [(40, 30), (30, 40)])
def test_of_two_that_extend_by_other_rows_the_second_extends_the_first_or_is_refused(
    tmp_path: Path, mine: int, theirs: int
):
    planned(numbered(tmp_path, 20))
    jobs = [numbered(tmp_path, count) for count in (mine, theirs)]
    (my_seeds, their_seeds) = [load_seeds(job.source) for job in jobs]
    store = Raced(tmp_path, lambda: settle_plan(LocalStore(tmp_path), make_plan(jobs[1], their_seeds), their_seeds))
    if mine > theirs:
        plan = settle_plan(store, make_plan(jobs[0], my_seeds), my_seeds)
        assert [earlier.rows for earlier in plan.earlier] == [20, 30]
        assert read_plan(store) == plan
    else:
        with pytest.raises(PlanMismatch, match="seeds: 40 rows then, 30 now"):
            settle_plan(store, make_plan(jobs[0], my_seeds), my_seeds)
        assert [read_plan(store)] == store.faster


class Raced(LocalStore):
    """A store in which another command settles its plan just before this one does."""

    def __init__(self, folder: Path, other: Callable[[], Any]) -> None:
        super().__init__(folder)
        self._other = [other]
        self.faster: list[Any] = []

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if self._other:
            self.faster.append(self._other.pop()())
        return super().put_if_absent(key, data)


def test_looking_at_what_would_be_added_writes_nothing(tmp_path: Path):
    _, _, store = planned(numbered(tmp_path, 20))
    job = numbered(tmp_path, 30)
    seeds = load_seeds(job.source)
    before = files(tmp_path, "")
    plan = continued_plan(store, make_plan(job, seeds), read_plan(store), seeds)
    assert (plan.rows, plan.key) == (30, "plans/0001.json")
    assert files(tmp_path, "") == before


def test_a_shard_of_either_plan_is_revoked_and_generated_again(tmp_path: Path):
    run(numbered(tmp_path, 20), in_process=True)
    run(numbered(tmp_path, 40), in_process=True, extend=True)
    store = LocalStore(tmp_path)
    plan = read_plan(store)
    for name in ("0", str(len(plan.shards) - 1)):
        revoke(store, plan, name)
    assert verify(store, plan).missing > 0
    run(numbered(tmp_path, 40), in_process=True)
    found = verify(store, plan)
    assert (found.good, found.ok, found.missing) == (True, 40, 0)


def test_a_manifest_of_the_wrong_plan_is_refused(tmp_path: Path):
    run(numbered(tmp_path, 20), in_process=True)
    run(numbered(tmp_path, 40), in_process=True, extend=True)
    store = LocalStore(tmp_path)
    plan = read_plan(store)
    wrong = plan.behind((Earlier(20, "0" * 32),))
    with pytest.raises(PlanMismatch, match="shard 000000 was committed by a run of another plan"):
        committed(store, wrong)


def test_of_many_plans_the_newest_counts_and_what_is_no_plan_does_not(tmp_path: Path):
    for count in range(1, 13):
        job = numbered(tmp_path, count)
        seeds = load_seeds(job.source)
        settle_plan(LocalStore(tmp_path), make_plan(job, seeds), seeds)
    (tmp_path / "plans" / "notes.json").write_text("mine")
    (tmp_path / "plans" / "0099.json.orig").write_text("mine")
    plan = read_plan(LocalStore(tmp_path))
    assert (plan.rows, plan.key) == (12, "plans/0011.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"plans/0001\.json cannot be read \(JSONDecodeError\); remove it, and .* with --extend writes it again"),
        (None, r"plans/0001\.json was changed after it was written; remove it, and the job's own command with --ext"),
    ],
)
def test_a_damaged_plan_is_named_and_comes_back(tmp_path: Path, text: str | None, message: str):
    run(numbered(tmp_path, 20), in_process=True)
    run(numbered(tmp_path, 40), in_process=True, extend=True)
    path = tmp_path / "plans" / "0001.json"
    sound = path.read_bytes()
    path.write_text(text if text is not None else json.dumps({**json.loads(sound), "rows": 30}))
    with pytest.raises(PlanMismatch, match=message):
        read_plan(LocalStore(tmp_path))
    path.unlink()
    assert run(numbered(tmp_path, 40), in_process=True, extend=True).progress.ok == 40
    assert path.read_bytes() == sound


@pytest.fixture
def job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: more\nsource: {count: 20}\nmodel: {path: chaos}\nsteps: [{task: magpie}]\noutput: run\nshard_rows: 8\n"
    )
    yield path


def test_plan_tells_what_a_run_would_be_given(job_file: Path, capsys: pytest.CaptureFixture[str]):
    run(job_file, in_process=True)
    more = ["plan", "job.yaml", "--set", "source.count=30"]
    assert main([*more, "--extend"]) == 0
    told = capsys.readouterr().out
    assert "job more: 30 seed rows in 5 shards" in told
    assert "output: run (holds a run of its first 20 rows, which would continue with the others)" in told
    assert main(more) == 2
    assert capsys.readouterr().err.endswith("--extend adds them to the run.\n")
    assert main(["plan", "job.yaml", "--extend"]) == 0
    assert "output: run (holds a run of this job, which would continue)" in capsys.readouterr().out


def test_the_command_gives_a_run_more_rows(
    job_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from batchgen import api

    real = api.run
    monkeypatch.setattr(api, "run", lambda *arguments, **named: real(*arguments, **named, in_process=True))
    assert main(["run", "job.yaml"]) == 0
    assert "merged 20 rows: 20 kept" in capsys.readouterr().out
    assert main(["run", "job.yaml", "--set", "source.count=30", "--extend"]) == 0
    told = capsys.readouterr().out
    assert "the run began with 20 seed rows and has 30 now" in told
    assert "merged 30 rows: 30 kept" in told
    assert main(["status", "run"]) == 0
    assert "30 ok, 0 rejected, of 30" in capsys.readouterr().out
