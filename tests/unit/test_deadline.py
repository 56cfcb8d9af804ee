"""The time by which a run is to be over, and what is there then."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path

import pytest
from distilabel.models import vLLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

from batchgen import Stopped, from_pipeline, run
from batchgen import deadline as deadlines
from batchgen.deadline import Deadline, parse_until, without_past
from batchgen.drive import Status
from batchgen.errors import UserError
from batchgen.job import Job
from batchgen.upkeep import verify
from tests.helpers import chaos_job, planned

NOW = datetime(2026, 12, 1, 22, 30, 15, 500)


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ("07:00", datetime(2026, 12, 2, 7)),
        ("7:05", datetime(2026, 12, 2, 7, 5)),
        ("22:30", datetime(2026, 12, 2, 22, 30)),
        ("22:31", datetime(2026, 12, 1, 22, 31)),
        ("0:00", datetime(2026, 12, 2)),
        ("8h", NOW + timedelta(hours=8)),
        ("90m", NOW + timedelta(minutes=90)),
        ("1h30m", NOW + timedelta(minutes=90)),
        ("0h1m", NOW + timedelta(minutes=1)),
        ("2026-12-02T07:00", datetime(2026, 12, 2, 7)),
        ("2026-12-02 07:00:30", datetime(2026, 12, 2, 7, 0, 30)),
        ("2026-12-03", datetime(2026, 12, 3)),
    ],
)
def test_times_as_people_write_them(text: str, until: datetime):
    found = parse_until(text, NOW)
    assert found == until.astimezone()
    assert found.tzinfo is not None


def test_a_time_with_its_zone_is_that_moment():
    assert parse_until("2099-01-31T07:00-05:00") == datetime(2099, 1, 31, 7, tzinfo=timezone(timedelta(hours=-5)))
    assert parse_until("2099-01-31T07:00Z") == datetime(2099, 1, 31, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "25:00",
        "07:60",
        "07:00:00",
        "h",
        "8",
        "8x",
        "8h 30m",
        "30m8h",
        "99999h",
        "tomorrow",
        "2026-13-01",
        "8.5h",
    ],
)
def test_what_is_no_time_is_refused(text: str):
    with pytest.raises(UserError, match=r"^--until '.*': expected a time of day \(07:00\), a date and a time \("):
        parse_until(text, NOW)


@pytest.mark.parametrize("text", ["2026-12-01T22:30", "2020-01-01", "0m", "0h"])
def test_a_time_that_is_over_is_refused(text: str):
    with pytest.raises(UserError, match=r"that is over; it is 2026-12-01 22:30 here$"):
        parse_until(text, NOW)


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("run job.yaml", "run job.yaml"),
        ("run --until 07:00 job.yaml", "run --until 07:00 job.yaml"),
        ("run job.yaml --until 8h", "run job.yaml --until 8h"),
        ("run job.yaml --until 2026-12-02T07:00", "run job.yaml --until 2026-12-02T07:00"),
        ("run --until 2026-12-01T22:00 job.yaml", "run job.yaml"),
        ("run --until=2026-12-01T22:00 job.yaml --output a", "run job.yaml --output a"),
        ("run job.yaml --until=07:00", "run job.yaml --until=07:00"),
    ],
)
def test_the_command_that_goes_on_has_no_time_that_is_over(words: str, left: str):
    assert without_past(words.split(), NOW) == left.split()


def test_a_run_takes_no_other_thing_for_a_time(tmp_path: Path):
    with pytest.raises(UserError, match="until: expected a datetime, got str"):
        run(chaos_job(tmp_path), in_process=True, until="07:00")  # type: ignore[arg-type]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Sets the clock that deadlines look at by so much."""
    monkeypatch.setattr(deadlines, "_LOOK_SECONDS", 0.01)

    def set_by(shift: timedelta) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return datetime.now(tz) + shift

        monkeypatch.setattr(deadlines, "datetime", Clock)

    return set_by


NIGHT = timedelta(hours=8)


def test_a_clock_that_is_set_meanwhile_is_followed(set_clock):
    """As by a machine that slept, or found out what time it is."""
    said: list[str] = []

    async def go() -> None:
        task = asyncio.create_task(Deadline(datetime.now() + NIGHT).watch(said.append))
        await asyncio.sleep(0.1)
        assert not said
        set_clock(NIGHT)
        await asyncio.wait_for(task, 5)

    asyncio.run(go())
    (reason,) = said
    assert reason.startswith("its time is up (")


def slow_job(output: Path) -> Job:
    script = {"slots": 8, "latency": 0.05}
    return chaos_job(output, source={"count": 200}, shard_rows=8, model={"path": "chaos", "engine": script})


def from_now(span: timedelta) -> datetime:
    return datetime.now() + span


def files_of(dataset: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(dataset).rglob("*.parquet")}


def test_what_is_there_when_the_time_is_up_is_a_dataset_and_the_same_call_goes_on(tmp_path: Path, set_clock):
    job = slow_job(tmp_path / "run")

    def watch(status: Status) -> None:
        if status.shards_done:
            set_clock(NIGHT)

    first = run(job, in_process=True, until=from_now(NIGHT), watch=watch)
    assert not first.complete
    assert 0 < first.version.shards < first.version.of_shards == 25
    assert first.progress.ok == 8 * first.version.shards
    assert files_of(first.dataset)
    plan, _, store = planned(job)
    found = verify(store, plan)
    assert found.good and found.ok == first.progress.ok
    attempts = {path.parent.name for path in (tmp_path / "run").glob("attempts/*/*")}
    assert len(attempts) == first.version.shards, "what had begun is finished, and nothing begun that is not"

    set_clock(timedelta())
    second = run(job, in_process=True, until=from_now(NIGHT))
    assert second.complete and second.progress.ok == 200
    left_alone = run(slow_job(tmp_path / "other"), in_process=True)
    assert left_alone.complete
    assert files_of(second.dataset) == files_of(left_alone.dataset)


def branching(leaves: int) -> Pipeline:
    """A pipeline with a first step, and then leaves."""
    slow = {"slots": 8, "latency": 0.3}
    with Pipeline(name="night") as pipeline:
        data = LoadDataFromDicts(data=[{"instruction": f"Name {n} things."} for n in range(120)])
        names = ["first", *(f"leaf{n}" for n in range(leaves))]
        first, *rest = (
            TextGeneration(
                name=name,
                llm=vLLM(model="chaos", extra_kwargs=slow if name == "first" else {}),
                output_mappings={"generation": "instruction" if name == "first" else "response"},
            )
            for name in names
        )
        data >> first >> rest if rest else data >> first
    return pipeline


def test_a_pipeline_whose_time_is_up_is_a_dataset_of_what_is_there(tmp_path: Path, set_clock):
    def watch(status: Status) -> None:
        if status.shards_done:
            set_clock(NIGHT)

    out = tmp_path / "out"
    made = from_pipeline(branching(0), out, in_process=True, until=from_now(NIGHT), watch=watch)
    assert not made.complete
    assert 0 < len(made["default"]["train"]) < 120
    set_clock(timedelta())
    made = from_pipeline(branching(0), out, in_process=True, until=from_now(NIGHT))
    assert made.complete
    assert len(made["default"]["train"]) == 120


def test_steps_of_a_pipeline_that_go_on_from_others_wait_for_all_of_their_rows(tmp_path: Path, set_clock):
    def watch(status: Status) -> None:
        if status.shards_done:
            set_clock(NIGHT)

    out = tmp_path / "out"
    with pytest.raises(Stopped, match=r"^its time was up before 'first' had all rows, from which other steps go on$"):
        from_pipeline(branching(2), out, in_process=True, until=from_now(NIGHT), watch=watch)
    assert not (out / "dataset").exists()
    set_clock(timedelta())
    made = from_pipeline(branching(2), out, in_process=True)
    assert made.complete
    assert [len(made[f"leaf{n}"]["train"]) for n in range(2)] == [120, 120]


def test_a_run_that_was_over_before_is_published_as_ever(tmp_path: Path):
    job = chaos_job(tmp_path)
    assert run(job, in_process=True).complete
    assert run(job, in_process=True, until=from_now(-NIGHT)).complete


def test_without_a_good_row_there_is_nothing_to_publish(tmp_path: Path):
    with pytest.raises(
        Stopped, match=r"^its time is up \(\d\d:\d\d\), before a good row was committed: there is nothing"
    ):
        run(slow_job(tmp_path / "run"), in_process=True, until=from_now(-NIGHT))
    assert not (tmp_path / "run" / "dataset").exists()
    assert not list((tmp_path / "run").glob("versions/*"))


def test_a_signal_before_it_ends_the_run_as_ever(tmp_path: Path):
    job = slow_job(tmp_path / "run")
    told = False

    def watch(status: Status) -> None:
        nonlocal told
        if status.shards_done and not told:
            told = True
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match=r"^told to stop \(SIGTERM\)$"):
        run(job, in_process=True, until=from_now(NIGHT), watch=watch)
    assert not (tmp_path / "run" / "dataset").exists()


def test_the_time_does_not_end_at_once_what_is_stopping_already(tmp_path: Path, set_clock):
    """As a second signal does, which somebody sends who will not wait."""
    script = {"slots": 8, "latency": 1.5}
    job = chaos_job(tmp_path / "run", source={"count": 32}, shard_rows=8, model={"path": "chaos", "engine": script})
    notes: list[str] = []
    told = False

    def watch(status: Status) -> None:
        nonlocal told
        notes.extend(status.notes)
        if status.rows_in_flight and not told:
            told = True
            os.kill(os.getpid(), signal.SIGTERM)
        if any("SIGTERM" in note for note in status.notes):
            set_clock(NIGHT)

    with pytest.raises(Stopped, match="SIGTERM"):
        run(job, in_process=True, until=from_now(NIGHT), watch=watch)
    plan, _, store = planned(job)
    assert verify(store, plan).ok, "the shards that had begun are there"
    assert [note for note in notes if "what has begun is finished and committed" in note] == [
        "told to stop (SIGTERM): what has begun is finished and committed; told to stop once more, the run ends at once"
    ]
