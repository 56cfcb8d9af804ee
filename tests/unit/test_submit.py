"""A submitted job is the same job, and its log is shown once and to its end, whatever becomes of the connection."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from batchgen.benchmarks import read_benchmark
from batchgen.cli import build_parser
from batchgen.deadline import parse_until
from batchgen.distributed import submit as submission
from batchgen.distributed.submit import _pack, follow, submit
from batchgen.errors import BatchgenError, UserError
from batchgen.job import Job
from batchgen.plan import make_plan
from batchgen.seeds import load_seeds

LOG = "".join(f"[0:{i:02d}] {i}/10 rows\n" for i in range(10))


class Cluster:
    """A dashboard whose log streams break, fall silent or end as told.

    Args:
        streams: of each stream that is opened, how many characters it gives and what it does then: `breaks`, `hangs`,
            `ends`. The last one is used again and again.
        running: for how many questions the job runs; an error among them stands for an answer that never came.
    """

    def __init__(self, streams: Sequence[tuple[int, str]], running: Sequence[Exception | None]) -> None:
        self.opened = 0
        self._streams = streams
        self._answers: Iterator[Exception | None] = iter(running)

    def get_address(self) -> str:
        return "http://head:8265"

    async def tail_job_logs(self, submission: str) -> AsyncIterator[str]:
        characters, then = self._streams[min(self.opened, len(self._streams) - 1)]
        self.opened += 1
        for start in range(0, characters, 7):
            yield LOG[start : min(start + 7, characters)]
        if then == "breaks":
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        if then == "hangs":
            await asyncio.Event().wait()

    def get_job_info(self, submission: str) -> SimpleNamespace:
        answer = next(self._answers, JobStatus.SUCCEEDED)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(status=answer or JobStatus.RUNNING)

    def get_job_logs(self, submission: str) -> str:
        return LOG


def followed(cluster: Cluster, patience: float = 60.0) -> str:
    out = io.StringIO()
    ended = asyncio.run(follow(cluster, "batchgen-x", out, status_every=0.01, silence=0.02, patience=patience))
    assert ended.status == JobStatus.SUCCEEDED
    return out.getvalue()


@pytest.mark.parametrize(
    "streams",
    [
        [(len(LOG), "ends")],
        [(31, "breaks"), (3, "breaks"), (len(LOG), "ends")],
        [(0, "hangs"), (60, "hangs"), (len(LOG), "hangs")],
        [(31, "hangs")],
        [(0, "breaks")],
        [(40, "ends")],
    ],
)
def test_a_log_is_shown_once_to_its_end(streams: list[tuple[int, str]]):
    cluster = Cluster(streams, running=[None] * 30)
    assert followed(cluster) == LOG
    assert cluster.opened >= len(streams)


def test_a_status_that_cannot_be_asked_for_a_while_is_asked_again():
    lost = [ConnectionError("refused"), RuntimeError("Request failed with status code 502")]
    assert followed(Cluster([(len(LOG), "hangs")], running=[None, *lost, None, *lost])) == LOG


def test_a_cluster_that_never_answers_again_is_told():
    cluster = Cluster([(20, "hangs")], running=[None, *[ConnectionError("refused")] * 10_000])
    with pytest.raises(
        BatchgenError, match=r"not answered for 0 s .*ray job status --address http://head:8265 batchgen-x"
    ):
        followed(cluster, patience=0.1)


@pytest.mark.parametrize(
    "source",
    [
        "{rows: [{instruction: a, day: 2024-01-02, at: 2024-01-02T03:04:05, raw: !!binary /w==, text: '2024-01-02'}]}",
        "{path: [b/*.jsonl, a.csv, 'c[1].csv']}",
        "{count: 9}",
    ],
)
def test_a_submitted_job_is_the_same_job(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.jsonl").write_text('{"instruction": "two"}\n')
    (tmp_path / "b" / "1.jsonl").write_text('{"instruction": "one"}\n')
    (tmp_path / "a.csv").write_text("instruction\nthree\n")
    (tmp_path / "c[1].csv").write_text("instruction\nfour\n")
    task = "magpie" if "count" in source else "text_generation"
    (tmp_path / "mine.yaml").write_text(
        f"name: n\nsource: {source}\nmodel: {{path: chaos}}\nsteps: [{{task: {task}}}]\noutput: /shared/run\n"
    )
    job = Job.load("mine.yaml")
    here = make_plan(job, load_seeds(job.source))
    (tmp_path / "sent").mkdir()
    _pack(job, tmp_path / "sent")
    monkeypatch.chdir(tmp_path / "sent")
    sent = Job.load("job.yaml")
    assert make_plan(sent, load_seeds(sent.source)).fingerprint == here.fingerprint
    assert (tmp_path / "sent" / "batchgen" / "cli.py").is_file()


def test_what_is_in_a_bucket_is_read_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("1.jsonl", "2.jsonl"):
        (tmp_path / name).write_text('{"instruction": "x"}\n')
    job = Job.of(
        {
            "name": "n",
            "source": {"path": ["1.jsonl", "s3://bucket/*.jsonl", "2.jsonl"]},
            "model": {"path": "chaos"},
            "steps": [{"task": "text_generation"}],
            "output": "s3://bucket/run",
        }
    )
    # And not: the bucket cannot be read here.
    with pytest.raises(UserError, match="no Ray dashboard accepts jobs there"):
        submit(job, "http://127.0.0.1:1", False, print)
    (tmp_path / "sent").mkdir()
    _pack(job, tmp_path / "sent")
    sent = Job.load(tmp_path / "sent" / "job.yaml").source.path
    assert sent == ["seeds/00000-1.jsonl", "s3://bucket/*.jsonl", "seeds/00002-2.jsonl"]


def test_benchmarks_go_along_with_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("held").mkdir()
    for name in ("held/a.jsonl", "held/b.jsonl", "c.jsonl"):
        Path(name).write_text(f'{{"q": "What is in {name}?"}}\n')
    benchmarks = [
        {"path": "held/*.jsonl", "columns": ["q"]},
        {"dataset": "ORG/NAME", "columns": ["q"]},
        {"path": ["c.jsonl", "s3://bucket/d.jsonl"], "columns": ["q"]},
    ]
    job = Job.of(
        {
            "name": "n",
            "source": {"count": 3},
            "model": {"path": "chaos"},
            "steps": [{"task": "magpie"}],
            "merge": {"decontaminate": benchmarks},
            "output": "/shared/run",
        }
    )
    with pytest.raises(UserError, match="no Ray dashboard accepts jobs there"):
        submit(job, "http://127.0.0.1:1", False, print)
    (tmp_path / "sent").mkdir()
    _pack(job, tmp_path / "sent")
    monkeypatch.chdir(tmp_path / "sent")
    first, hub, last = Job.load("job.yaml").merge.decontaminate
    assert first.path == ["benchmark-0/00000-a.jsonl", "benchmark-0/00001-b.jsonl"]
    assert read_benchmark(first, 0).to_pylist() == ["What is in held/a.jsonl?", "What is in held/b.jsonl?"]
    assert (hub.dataset, hub.path) == ("ORG/NAME", None)
    assert last.path == ["benchmark-2/00000-c.jsonl", "s3://bucket/d.jsonl"]

    monkeypatch.chdir(tmp_path)
    Path("held/b.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"held/b\.jsonl:1: not JSON"):
        submit(job, "http://127.0.0.1:1", False, print)


def test_the_end_of_a_night_is_the_same_moment_on_machines_of_another_time_zone(monkeypatch: pytest.MonkeyPatch):
    assert submission._entrypoint(False, None, False) == "python -m batchgen.cli run job.yaml"
    until = datetime(2099, 1, 31, 7, tzinfo=timezone(timedelta(hours=-5)))
    command = submission._entrypoint(True, until, True)
    options = build_parser().parse_args(command.split()[3:])
    assert options.trust_remote_code
    assert options.extend
    assert parse_until(options.until) == until


class Taker:
    """A dashboard to which jobs are sent: what comes of each time that one is, in order, and nothing at all then.

    Args:
        answers: an error, and whether the job is there all the same.
    """

    def __init__(self, *answers: tuple[Exception, bool]) -> None:
        self._answers = iter(answers)
        self.sent: list[str] = []
        self._there = False

    def submit_job(self, submission_id: str, **_: object) -> None:
        self.sent.append(submission_id)
        answer = next(self._answers, None)
        self._there |= answer is None or answer[1]
        if answer is not None:
            raise answer[0]

    def get_job_info(self, submission_id: str) -> None:
        if not self._there:
            raise RuntimeError("Request failed with status code 404: Job does not exist")


def test_a_job_is_sent_until_the_cluster_has_it_and_never_twice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(submission, "_PAUSES", (0.0, 0.0, 0.0))
    early, lost = RuntimeError("No available agent to submit job"), ConnectionError("Connection aborted.")
    for taker, times in (
        (Taker(), 1),
        (Taker((early, False), (lost, False)), 3),
        (Taker((early, False), (lost, True)), 2),
        (Taker((RuntimeError("status code 500"), True)), 1),
    ):
        name = submission._submit_patiently(taker, "python -m x", "folder", "job")
        assert taker.sent == [name] * times
    never = Taker(*[(lost, False)] * 9)
    with pytest.raises(BatchgenError, match=r"^the cluster did not take the job: Connection aborted\.$"):
        submission._submit_patiently(never, "python -m x", "folder", "job")
    assert len(never.sent) == 4
