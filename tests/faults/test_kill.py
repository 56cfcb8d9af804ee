"""Real processes, killed: no row is lost and none is there twice."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from batchgen import run as run_job
from batchgen.commit import committed
from batchgen.faultpoints import WAIT_AT
from batchgen.settle import read_plan
from batchgen.store import LocalStore
from tests.faults import ledger
from tests.helpers import as_from_a_terminal

pytestmark = pytest.mark.cluster
ROWS = 240


@pytest.fixture
def job(tmp_path: Path) -> Path:
    tree = {
        "name": "killed",
        "source": {"count": ROWS},
        "model": {"path": "chaos", "engine": {"latency": 0.1, "slots": 8}},
        "steps": [{"task": "magpie", "n_turns": 2}],
        "output": str(tmp_path / "run"),
        "shard_rows": 4,
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start(job: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "batchgen.cli", "run", str(job), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=as_from_a_terminal,
        env={**os.environ, **(environment or {})},
    )


def finish(process: subprocess.Popen[str], code: int) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == code, out
    return out


def shards_committed(run: Path) -> int:
    return len(list(run.glob("commits/*/0000.json")))


def wait_for(condition, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


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
    _, alive = psutil.wait_procs(family, timeout=180)
    assert alive == []
    before = {path: path.read_bytes() for path in run.glob("commits/*/0000.json")}
    out = finish(start(job), 0)
    assert f"load_dataset('{run}/dataset')" in out
    ledger.record("driver killed", 1, run, ROWS)
    assert all(path.read_bytes() == data for path, data in before.items()), "what was committed is not written again"
    # Chaos text depends on the row alone: the run that was killed ends in the bytes of one that was not.
    run_job({**yaml.safe_load(job.read_text()), "output": str(tmp_path / "calm")}, in_process=True)
    assert dataset_bytes(run) == dataset_bytes(tmp_path / "calm")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_commits_what_is_in_flight_and_says_how_to_go_on(job: Path, tmp_path: Path, number: signal.Signals):
    run = tmp_path / "run"
    process = start(job)
    wait_for(lambda: shards_committed(run) >= 5)
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        # A terminal sends Ctrl-C, and its own end, to every process of the group, Ray and the engines included.
        os.killpg(process.pid, number)
    if number == signal.SIGHUP:
        process.send_signal(number)  # the shell sends one more
    out = finish(process, 75)
    assert "To go on, run the same command again:" in out
    assert "Traceback" not in out
    assert "died" not in out, "the engine goes on until it has committed what it holds"
    store = LocalStore(run)
    done = committed(store, read_plan(store))
    assert 5 <= len(done) < 60
    assert {path.parent.name for path in run.glob("attempts/*/*.parquet")} == {f"{index:06d}" for index in done}
    run_job(str(job), in_process=True)
    ledger.record(f"{number.name} once", 1, run, ROWS)


def test_a_second_sigterm_ends_it_at_once(job: Path, tmp_path: Path):
    run = tmp_path / "run"
    held = {"latency": 0.05, "hang_on": "user", "once_file": str(tmp_path / "hung")}
    process = start(job, "--set", f"model.engine={json.dumps(held)}")
    wait_for(lambda: shards_committed(run) >= 5)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None, "one row hangs, so that its shard is waited for"
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    out = finish(process, 75)
    assert time.monotonic() - began < 30
    assert shlex.quote(f"model.engine={json.dumps(held)}") in out, "the command can be pasted into a shell"
    assert "To go on, run the same command again:" in out
    run_job(str(job), in_process=True)
    ledger.record("SIGTERM twice", 1, run, ROWS)


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_local_ray_that_dies_stops_the_run_which_goes_on_later(job: Path, tmp_path: Path, name: str):
    run = tmp_path / "run"
    slow = json.dumps({"latency": 0.5, "slots": 8})
    process = start(job, "--set", f"model.engine={slow}")
    wait_for(lambda: shards_committed(run) >= 2)
    (victim,) = [child for child in psutil.Process(process.pid).children() if child.name() == name]
    victim.kill()
    out = finish(process, 75)
    assert {"raylet": "Ray has no machine left", "gcs_server": "Ray's head no longer answers"}[name] in out
    assert "To go on, run the same command again:" in out
    assert 2 <= shards_committed(run) < 60
    run_job(str(job), in_process=True)
    ledger.record(f"Ray's {name} killed", 1, run, ROWS)


def test_an_attempt_that_ends_after_its_shard_was_committed_by_another_loses(job: Path, tmp_path: Path):
    run, go = tmp_path / "run", tmp_path / "go"
    zombie = start(job, environment={WAIT_AT: f"attempt read back={go}"})
    wait_for(lambda: len(list(run.glob("attempts/*/*.parquet"))) >= 4)
    late = set(run.glob("attempts/*/*.parquet"))
    assert shards_committed(run) == 0
    run_job(str(job), in_process=True)
    before = {path: path.read_bytes() for path in run.glob("commits/*/*")}
    assert len(before) == 60
    assert all(path.exists() for path in late), "the late ones are still about to commit"
    go.touch()
    finish(zombie, 0)
    assert {path: path.read_bytes() for path in run.glob("commits/*/*")} == before
    assert not any(path.exists() for path in late), "who loses removes its own file"
    ledger.record("attempt ends after another committed", len(late), run, ROWS)


@pytest.mark.parametrize("mode", ["exit", "memory"])
def test_an_engine_that_dies_is_replaced_and_its_rows_are_generated_again(job: Path, tmp_path: Path, mode: str):
    engine = {"latency": 0.01, "crash_after": 300, "crash_mode": mode, "once_file": str(tmp_path / "crashed")}
    out = finish(start(job, "--set", f"model.engine={json.dumps(engine)}"), 0)
    assert (tmp_path / "crashed").exists()
    assert ("out of memory" if mode == "memory" else "the engine's process died") in out
    ledger.record({"exit": "engine process ends", "memory": "engine out of memory"}[mode], 1, tmp_path / "run", ROWS)


def test_engines_that_never_start_end_the_run_with_the_cause(job: Path, tmp_path: Path):
    out = finish(start(job, "--set", "model.engine={start_failures: true}"), 1)
    assert "engines failed to start 3 times in a row; the last time: chaos: this engine never starts" in out
    assert "Traceback" not in out
    assert shards_committed(tmp_path / "run") == 0
    ledger.note(ledger.Line("engine never starts (the run fails, exit 1)", 3, 0, 0, 0))


def test_two_drivers_on_one_run(job: Path, tmp_path: Path):
    outs = [finish(process, 0) for process in [start(job), start(job)]]
    assert all("dataset:" in out for out in outs)
    ledger.record("second driver on the run", 1, tmp_path / "run", ROWS)
