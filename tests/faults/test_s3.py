"""A whole run in a bucket, through every command, with the store failing and the driver killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from batchgen import Stopped, run
from batchgen.plan import read_plan
from batchgen.store import open_store
from batchgen.upkeep import verify
from tests.s3server import S3Server, environment, s3_server

pytestmark = pytest.mark.cluster
RUN = "s3://bucket/night/run"


@pytest.fixture
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


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
    out, _ = process.communicate(timeout=180)
    assert process.returncode == code, out
    return out


def committed(server: S3Server) -> int:
    return sum(key.startswith("bucket/night/run/commits/") for key in server.objects)


def test_every_command_works_on_a_bucket_and_a_killed_run_goes_on(server: S3Server, job: Path, tmp_path: Path):
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
    assert f"load_dataset('{RUN}/dataset')" in out
    assert json.loads(done(command(server, tmp_path, "status", RUN, "--json")))["complete"]
    found = json.loads(done(command(server, tmp_path, "verify", RUN, "--json")))
    assert (found["good"], found["ok"] + found["rejected"], found["twice"]) == (True, 120, 0)
    done(command(server, tmp_path, "merge", RUN, "--set", "merge.exact=false", "--set", "merge.near=false"))
    done(command(server, tmp_path, "publish", RUN, "--to", str(tmp_path / "published")))
    (file,) = (tmp_path / "published" / "data").glob("*.parquet")
    assert pq.read_metadata(file).num_rows == 120
    assert "bucket/night/run/dataset/README.md" in server.objects
    done(command(server, tmp_path, "revoke", RUN, "3"))
    assert not json.loads(done(command(server, tmp_path, "status", RUN, "--json")))["complete"]
    done(command(server, tmp_path, "run", str(job)))
    assert "removed" in done(command(server, tmp_path, "gc", RUN))
    done(command(server, tmp_path, "verify", RUN))


def test_a_bucket_that_stays_away_stops_the_run_which_goes_on_later(server: S3Server, job: Path, monkeypatch):
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    server.fault = lambda method, key: 403 if "/attempts/" in key and committed(server) > 5 else None
    with pytest.raises(Stopped, match="cannot write s3://bucket/night/run/attempts") as caught:
        run(str(job), in_process=True)
    assert caught.value.exit_code == 75
    assert "canary" not in str(caught.value)
    server.fault = lambda method, key: None
    run(str(job), in_process=True)
    store = open_store(RUN)
    assert verify(store, read_plan(store)).good


def test_a_bucket_without_conditional_writes_is_refused_before_anything_starts(job: Path, tmp_path: Path):
    with s3_server(exclusive=False) as server:
        started = time.monotonic()
        out = done(command(server, tmp_path, "run", str(job)), 2)
        assert "lets two writers create one object" in out
        assert time.monotonic() - started < 30
        assert not any("/plan.json" in key for key in server.objects)
