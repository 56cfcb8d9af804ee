"""Real processes, killed: no row is lost and none is there twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from batchgen.commit import committed, read_shard
from batchgen.plan import read_plan
from batchgen.store import LocalStore

pytestmark = pytest.mark.cluster
ROWS = 240


@pytest.fixture
def job(tmp_path: Path) -> Path:
    tree = {
        "name": "killed",
        "source": {"count": ROWS},
        "model": {"path": "chaos", "engine": {"latency": 0.15, "slots": 8}},
        "steps": [{"task": "magpie", "n_turns": 2}],
        "output": str(tmp_path / "run"),
        "shard_rows": 4,
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start(job: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "batchgen.cli", "run", str(job), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], code: int) -> str:
    out, _ = process.communicate(timeout=180)
    assert process.returncode == code, out
    return out


def shards_committed(run: Path) -> int:
    return len(list(run.glob("commits/*/0000.json")))


def wait_for(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def check_every_row_once(run: Path) -> None:
    store = LocalStore(run)
    plan = read_plan(store)
    manifests = committed(store, plan)
    assert len(manifests) == len(plan.shards)
    rows = [i for m in manifests.values() for i in read_shard(store, plan, m)["row_index"].to_pylist()]
    assert sorted(rows) == list(range(ROWS))


def dataset_bytes(run: Path) -> bytes:
    (file,) = (run / "dataset" / "data").glob("*.parquet")
    assert pq.read_metadata(file).num_rows > 0
    return file.read_bytes()


def test_sigkill_of_the_driver_then_the_same_command(job: Path, tmp_path: Path):
    run = tmp_path / "run"
    half = len(range(0, ROWS, 4)) // 2
    process = start(job)
    wait_for(lambda: shards_committed(run) >= half)
    # Ray's two agents look after their raylet only now and then and take a minute or two.
    family = [child for child in psutil.Process(process.pid).children(recursive=True) if "Agent" not in child.name()]
    assert any("_Actor" in child.name() for child in family)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert half <= shards_committed(run) < 60
    # Ray and the engines of a killed driver end by themselves.
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    before = {path: path.read_bytes() for path in run.glob("commits/*/0000.json")}
    out = finish(start(job), 0)
    assert f"load_dataset('{run}/dataset')" in out
    check_every_row_once(run)
    assert all(path.read_bytes() == data for path, data in before.items()), "what was committed is not written again"
    # Chaos text depends on the row alone: the run that was killed ends in the bytes of one that was not.
    finish(start(job, "--output", str(tmp_path / "calm")), 0)
    assert dataset_bytes(run) == dataset_bytes(tmp_path / "calm")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_commits_what_is_in_flight_and_says_how_to_go_on(job: Path, tmp_path: Path, number: signal.Signals):
    run = tmp_path / "run"
    process = start(job)
    wait_for(lambda: shards_committed(run) >= 5)
    # A terminal sends Ctrl-C to every process of the group, Ray and the engines included.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    out = finish(process, 75)
    assert "To go on, run the same command again:" in out
    assert "Traceback" not in out
    store = LocalStore(run)
    done = committed(store, read_plan(store))
    assert 5 <= len(done) < 60
    assert {path.parent.name for path in run.glob("attempts/*/*.parquet")} == {f"{index:06d}" for index in done}
    finish(start(job), 0)
    check_every_row_once(run)


@pytest.mark.parametrize("mode", ["exit", "raise"])
def test_an_engine_that_dies_is_replaced_and_its_rows_are_generated_again(job: Path, tmp_path: Path, mode: str):
    engine = {"latency": 0.01, "crash_after": 300, "crash_mode": mode, "once_file": str(tmp_path / "crashed")}
    out = finish(start(job, "--set", f"model.engine={json.dumps(engine)}"), 0)
    assert (tmp_path / "crashed").exists()
    assert "on engine 0:" in out
    check_every_row_once(tmp_path / "run")


def test_engines_that_never_start_end_the_run_with_the_cause(job: Path, tmp_path: Path):
    out = finish(start(job, "--set", "model.engine={start_failures: true}"), 1)
    assert "engines failed to start 3 times in a row; the last time: chaos: this engine never starts" in out
    assert "Traceback" not in out


def test_two_drivers_on_one_run(job: Path, tmp_path: Path):
    outs = [finish(process, 0) for process in [start(job), start(job)]]
    assert all("dataset:" in out for out in outs)
    check_every_row_once(tmp_path / "run")
