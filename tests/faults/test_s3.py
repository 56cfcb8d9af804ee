"""A whole run in a bucket, through every command, with the store failing and the driver killed on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from datasets import load_dataset

from batchgen import Stopped, run
from batchgen.cli import main
from batchgen.drive import Status
from batchgen.errors import EngineStartError, PlanMismatch, StoreError, UserError
from batchgen.fleet import HostConfig
from batchgen.host import EngineHost
from batchgen.job import Job
from batchgen.plan import make_plan
from batchgen.seeds import load_seeds
from batchgen.settle import read_plan, settle_plan
from batchgen.store import open_store
from batchgen.upkeep import verify
from tests.faults import ledger
from tests.s3server import LOSE_ANSWER, SLOW, TEAR_ANSWER, Fault, S3Server, environment, s3_server

pytestmark = pytest.mark.cluster
RUN = "s3://bucket/night/run"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    tree = {
        "name": "bucket",
        "source": {"count": 120},
        "model": {"path": "chaos", "engine": {"latency": 0.1, "slots": 8}},
        "steps": [{"task": "magpie"}],
        "output": RUN,
        "shard_rows": 4,
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def command(server: S3Server, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "batchgen.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, **environment(server)},
        start_new_session=True,
    )


def done(process: subprocess.Popen[str], code: int = 0) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == code, out
    return out


def objects(server: S3Server) -> dict[str, bytes]:
    prefix = "bucket/night/run/"
    return {key.removeprefix(prefix): data for key, data in dict(server.objects).items() if key.startswith(prefix)}


def committed(server: S3Server) -> int:
    return sum(key.startswith("bucket/night/run/commits/") for key in dict(server.objects))


def test_every_command_works_on_a_bucket_and_a_killed_run_goes_on(
    server: S3Server, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    process = command(server, tmp_path, "run", str(job))
    deadline = time.monotonic() + 120
    while committed(server) < 10:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert committed(server) < 30
    out = done(command(server, tmp_path, "run", str(job)))
    # What it says how to open the dataset is done below.
    assert f"batchgen publish {RUN} --to DIR, and then load_dataset('DIR')" in out
    ledger.record("driver killed, run in a bucket", 1, objects(server), 120)

    def batchgen(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    assert json.loads(batchgen("status", RUN, "--json"))["complete"]
    found = json.loads(batchgen("verify", RUN, "--json"))
    assert (found["good"], found["ok"] + found["rejected"], found["twice"]) == (True, 120, 0)
    batchgen("merge", RUN, "--set", "merge.exact=false", "--set", "merge.near=false")
    batchgen("publish", RUN, "--to", str(tmp_path / "published"))
    assert load_dataset(str(tmp_path / "published"), split="train").num_rows == 120
    assert "bucket/night/run/dataset/README.md" in server.objects
    del server.objects["bucket/night/run/report.html"]
    assert batchgen("report", RUN) == f"{RUN}/report.html\n"
    batchgen("report", RUN, "--to", str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_bytes() == server.objects["bucket/night/run/report.html"]
    batchgen("revoke", RUN, "3")
    assert not json.loads(batchgen("status", RUN, "--json"))["complete"]
    run(str(job), in_process=True)
    assert "removed" in batchgen("gc", RUN)
    batchgen("verify", RUN)


def test_a_bucket_that_is_away_as_a_run_starts_is_waited_for(
    server: S3Server, job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("batchgen.store.s3._RETRY_SECONDS", 0)
    monkeypatch.setattr("batchgen.outage._PAUSES", (0.05,))
    server.fault = lambda method, key: 503
    notes: list[str] = []

    def watch(status: Status) -> None:
        notes.extend(status.notes)
        server.fault = lambda method, key: None

    assert run(str(job), in_process=True, watch=watch).progress.ok == 120
    assert notes[0].startswith(f"the run waits: cannot write {RUN}/probe-")
    ledger.record("bucket away as a run starts", 1, objects(server), 120)
    server.fault = lambda method, key: 503
    with pytest.raises(StoreError, match="503") as caught:
        run(Job.load(job, ["outage_seconds=0"]), in_process=True)
    assert caught.value.exit_code == 75
    for command in ("status", "verify", "merge", "rejected", "gc"):
        assert main([command, RUN]) == 75
        assert capsys.readouterr().err.startswith(f"batchgen: error: cannot list {RUN}/plans: GenericError: 503")
    # Keys that are refused are not waited for.
    server.fault = lambda method, key: 403
    with pytest.raises(UserError, match="403"):
        run(str(job), in_process=True)


def test_a_bucket_that_fails_now_and_then_and_is_slow(server: S3Server, job: Path):
    rng = random.Random(0)
    injected: Counter[Fault] = Counter()
    names: dict[Fault, str] = {
        503: "answers 503",
        500: "answers 500",
        400: "says RequestTimeout",
        LOSE_ANSWER: "loses an answer",
        TEAR_ANSWER: "tears an answer",
        SLOW: "is slow",
    }

    def fault(method: str, key: str) -> Fault:
        kind = rng.choices((None, *names), (80, 5, 5, 4, 3, 3, 3))[0]
        injected[kind] += 1
        return kind

    server.fault = fault
    # Where one operation fails more often than the client tries, the run stops, and the same command goes on.
    for _ in range(20):
        with contextlib.suppress(Stopped):
            run(str(job), in_process=True)
            break
    server.fault = lambda method, key: None
    assert all(injected[kind] > 0 for kind in names)
    store = open_store(RUN)
    found = verify(store, read_plan(store))
    assert (found.good, found.ok + found.rejected, found.missing, found.twice) == (True, 120, 0, 0)
    for kind, name in names.items():
        ledger.record(f"store {name}", injected[kind], objects(server), 120)


def test_a_bucket_that_is_away_for_a_while_is_waited_for(server: S3Server, job: Path):
    refused = Counter[str]()

    def fault(method: str, key: str) -> Fault:
        if method != "PUT" or committed(server) < 5 or sum(refused.values()) >= 12:
            return None
        refused[key.split("/")[3]] += 1
        return 403

    server.fault = fault
    notes: list[str] = []
    run(str(job), in_process=True, watch=lambda status: notes.extend(status.notes))
    assert refused["attempts"]
    assert any("waits: cannot write s3://bucket/night/run/" in note for note in notes)
    ledger.record("store away for a while", 1, objects(server), 120)
    store = open_store(RUN)
    assert verify(store, read_plan(store)).good


def test_a_bucket_that_stays_away_stops_the_run_which_goes_on_later(server: S3Server, job: Path):
    server.fault = lambda method, key: 403 if "/attempts/" in key and committed(server) > 5 else None
    with pytest.raises(Stopped, match="cannot write s3://bucket/night/run/attempts") as caught:
        run(Job.load(job, ["outage_seconds=1"]), in_process=True)
    assert caught.value.exit_code == 75
    assert "canary" not in str(caught.value)
    server.fault = lambda method, key: None
    run(str(job), in_process=True)
    ledger.record("store stays away", 1, objects(server), 120)
    store = open_store(RUN)
    assert verify(store, read_plan(store)).good


@pytest.mark.parametrize("status", [403, 503])
def test_an_engine_without_the_bucket_s_keys_is_told_at_once_and_one_that_does_not_reach_it_waits(
    server: S3Server, job: Path, monkeypatch: pytest.MonkeyPatch, status: int
):
    monkeypatch.setattr("batchgen.store.s3._RETRY_SECONDS", 0)
    loaded = Job.load(job, ["outage_seconds=0.5"])
    plan = settle_plan(open_store(RUN), make_plan(loaded, load_seeds(loaded.source)))
    server.fault = lambda method, key: status
    with pytest.raises(EngineStartError, match=f"^cannot read {RUN}/plan.json: .*{status}") as caught:
        asyncio.run(EngineHost(HostConfig(loaded, plan, RUN, 0)).start())
    assert caught.value.outage == (status == 503) == ("outage_seconds" in str(caught.value))


def test_a_bucket_without_conditional_writes_is_refused_before_anything_starts(job: Path, tmp_path: Path):
    with s3_server(exclusive=False) as server:
        started = time.monotonic()
        out = done(command(server, tmp_path, "run", str(job)), 2)
        assert "lets two writers create one object" in out
        assert time.monotonic() - started < 30
        assert not any("/plan.json" in key for key in server.objects)


def test_a_run_in_a_bucket_is_given_more_rows(server: S3Server, job: Path):
    few = Job.load(job, ["source.limit=50"])
    run(few, in_process=True)
    before = {key: data for key, data in objects(server).items() if key.startswith(("commits/", "attempts/"))}
    with pytest.raises(PlanMismatch, match=r"seeds: 50 rows then, 120 now\n.*--extend"):
        run(str(job), in_process=True)
    result = run(str(job), in_process=True, extend=True)
    assert result.complete
    assert before.items() <= objects(server).items()
    assert "plans/0001.json" in objects(server)
    ledger.record("rows added, run in a bucket", 1, objects(server), 120)
    store = open_store(RUN)
    found = verify(store, read_plan(store))
    assert (found.good, found.missing, found.rows) == (True, 0, 120)
