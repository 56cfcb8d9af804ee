"""SIGKILL at every named fault point, then the same run again: the dataset is that of a run which nobody killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import batchgen
from batchgen.faultpoints import KILL_AT, POINTS
from batchgen.settle import read_plan
from batchgen.store import LocalStore
from batchgen.upkeep import collect, verify
from tests.faults import ledger

RUN = """
import sys
from batchgen import run
run({"name": "points", "source": {"count": int(sys.argv[3])}, "model": {"path": "chaos"}, "steps": [{"task": "magpie"}],
     "output": sys.argv[1], "shard_rows": 10, "merge": {"near": {} if sys.argv[2] == "near" else False}},
    in_process=True, extend=True)
"""


CLOCK = """
import random, time
rng, calls = random.Random(0), [0]
def jumping(real=time.time):
    calls[0] += 1
    return real() + rng.uniform(-1, 1) * 365 * 86400
time.time, time.time_ns = jumping, lambda: int(jumping() * 1e9)
"""


def start(folder: Path, at: str | None = None, near: str = "far", rows: int = 40) -> int:
    environment = {**os.environ, **({KILL_AT: at} if at else {})}
    command = [sys.executable, "-c", RUN, str(folder), near, str(rows)]
    return subprocess.run(command, env=environment, timeout=300).returncode


def dataset(folder: Path) -> dict[str, bytes]:
    root = folder / "dataset"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The dataset of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("calm") / "run"
    assert start(folder) == 0
    return dataset(folder)


def test_every_point_is_in_the_code():
    root = Path(batchgen.__file__).parent
    reached = {point for path in root.rglob("*.py") for point in re.findall(r'reach\("([^"]+)"\)', path.read_text())}
    assert reached == set(POINTS)


def test_a_clock_that_jumps_changes_nothing(calm: dict[str, bytes], tmp_path: Path):
    folder = tmp_path / "run"
    code = CLOCK + RUN + "print(calls[0])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), "far", "40"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert dataset(folder) == calm
    ledger.record("clock jumps by up to a year", int(done.stdout.split()[-1]), folder, 40)


FULL = """
import resource, sys
from batchgen import Stopped, run
if sys.argv[2] == "full":
    # No file may grow beyond this: as on a full disk, some bytes of a shard are written and the rest is refused.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    run({"name": "full", "source": {"count": 40}, "model": {"path": "chaos", "engine": {"tokens": 3000}},
         "sampling": {"max_tokens": 9000}, "steps": [{"task": "magpie"}], "output": sys.argv[1], "shard_rows": 10,
         "outage_seconds": 1}, in_process=True)
except Stopped as stopped:
    print(stopped)
    sys.exit(stopped.exit_code)
"""


def test_a_store_that_is_full_stops_the_run_which_goes_on_later(tmp_path: Path):
    folder = tmp_path / "run"

    def go(disk: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", FULL, str(folder), disk]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    stopped = go("full")
    assert stopped.returncode == 75, stopped.stderr
    assert "cannot write" in stopped.stdout
    assert list(folder.glob("commits/*/*")) == []
    assert go("free").returncode == 0
    ledger.record("store full", 1, folder, 40)


@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_is_killed_there_ends_in_the_same_bytes(point: str, calm: dict[str, bytes], tmp_path: Path):
    folder = tmp_path / "run"
    if point == "earlier dataset aside":
        # There has to be an earlier one, of other rows.
        assert start(folder, near="near") == 0
    assert start(folder, at=point) == -signal.SIGKILL
    assert start(folder) == 0
    assert dataset(folder) == calm
    store = LocalStore(folder)
    plan = read_plan(store)
    found = verify(store, plan)
    assert (found.good, found.missing, found.ok) == (True, 0, 40)
    ledger.record(f"driver killed at: {point}", 1, folder, 40)
    collect(store, plan)
    assert verify(store, plan).good
    leftovers = list((folder / "attempts").rglob("*.parquet"))
    assert len(leftovers) == len(plan.shards), "gc leaves one file a shard"


@pytest.mark.parametrize("point", ["before the plan", "after the plan", "shard committed", "earlier dataset aside"])
def test_a_run_that_is_killed_as_it_is_given_more_rows_ends_in_the_same_bytes(
    point: str, calm: dict[str, bytes], tmp_path: Path
):
    folder = tmp_path / "run"
    assert start(folder, rows=15) == 0
    assert start(folder, at=point) == -signal.SIGKILL
    assert start(folder) == 0
    assert dataset(folder) == calm
    store = LocalStore(folder)
    plan = read_plan(store)
    assert [earlier.rows for earlier in plan.earlier] == [15]
    found = verify(store, plan)
    assert (found.good, found.missing, found.ok) == (True, 0, 40)
    ledger.record(f"driver killed as rows are added, at: {point}", 1, folder, 40)
