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
from batchgen.faultpoints import ENVIRONMENT, POINTS
from batchgen.plan import read_plan
from batchgen.store import LocalStore
from batchgen.upkeep import collect, verify

RUN = """
import sys
from batchgen import run
run({"name": "points", "source": {"count": 40}, "model": {"path": "chaos"}, "steps": [{"task": "magpie"}],
     "output": sys.argv[1], "shard_rows": 10, "merge": {"near": {} if sys.argv[2] == "near" else False}},
    in_process=True)
"""


def start(folder: Path, at: str | None = None, near: str = "far") -> int:
    environment = {**os.environ, **({ENVIRONMENT: at} if at else {})}
    return subprocess.run([sys.executable, "-c", RUN, str(folder), near], env=environment, timeout=120).returncode


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
    collect(store, plan)
    assert verify(store, plan).good
    leftovers = list((folder / "attempts").rglob("*.parquet"))
    assert len(leftovers) == len(plan.shards), "gc leaves one file a shard"
