"""A few of the jobs that `python -m tests.faults.kills` kills, as many as anybody waits for."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("place", [[], ["--bucket"]])
def test_jobs_at_random_that_are_killed_at_random_end_in_the_same_dataset(place: list[str]):
    command = [sys.executable, "-m", "tests.faults.kills", "--jobs", "8", "--seed", "10", *place]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    became = dict(part.rsplit(" ", 1) for part in ended.stdout.strip().split(", "))
    assert int(became["ended"]) >= 2, became
    assert int(became["kills"]) >= 2, became
    assert int(became["extended"]) >= 1, became
