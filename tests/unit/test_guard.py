"""What an engine's processes leave behind when the first of them is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

# As vLLM on GPUs: a process starts one, which starts another; both have sessions of their own.
ENGINE = """
import pathlib, subprocess, sys, tempfile, time
from batchgen.distributed.guard import guard_this_process
if sys.argv[1] == "guarded":
    guard_this_process()
    pathlib.Path(tempfile.mkdtemp(), "file").touch()
again = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
subprocess.Popen([sys.executable, "-c", again + "time.sleep(600)"], start_new_session=True)
print("started", flush=True)
time.sleep(600)
"""


@pytest.fixture
def started() -> Iterator[list[psutil.Process]]:
    processes: list[psutil.Process] = []
    yield processes
    for process in processes:
        if process.is_running():
            process.kill()


def start(
    kind: str, started: list[psutil.Process], temporary: Path
) -> tuple[psutil.Process, list[psutil.Process], list[psutil.Process]]:
    """An engine's first process, those that it has started, and its guard."""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    engine = subprocess.Popen([sys.executable, "-c", ENGINE, kind], stdout=subprocess.PIPE, env=environment)
    first = psutil.Process(engine.pid)
    started.append(first)
    assert engine.stdout is not None
    assert engine.stdout.readline() == b"started\n"
    deadline = time.monotonic() + 30
    while len(first.children(recursive=True)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = first.children(recursive=True)
    guards = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(word.endswith("guard.py") for word in process.info["cmdline"] or ())
        and str(engine.pid) in process.info["cmdline"]
    ]
    started += [*children, *guards]
    return first, children, guards


def test_what_a_killed_process_leaves_behind_ends_with_it(started: list[psutil.Process], tmp_path: Path):
    first, children, (guard,) = start("guarded", started, tmp_path)
    assert guard not in children, "Ray kills the children of an actor that it kills"
    (files,) = tmp_path.iterdir()
    bystander, others, guards = start("guarded", started, tmp_path)
    first.kill()
    _, alive = psutil.wait_procs([*children, guard], timeout=20)
    assert alive == []
    assert all(other.is_running() for other in [bystander, *others, *guards])
    (other,) = tmp_path.iterdir()
    assert other != files
    assert list(other.glob("*/file"))


def test_without_a_guard_it_would_live_on(started: list[psutil.Process], tmp_path: Path):
    first, children, guards = start("alone", started, tmp_path)
    assert not guards
    first.kill()
    first.wait(20)
    time.sleep(1)
    assert all(child.is_running() for child in children)
