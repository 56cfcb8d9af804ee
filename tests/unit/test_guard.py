"""What an engine's processes leave behind when the first of them is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

# As vLLM on GPUs: a process starts one, which starts another; both have sessions of their own.
ENGINE = """
import subprocess, sys, time
from batchgen.distributed.guard import guard_this_process
if sys.argv[1] == "guarded":
    guard_this_process()
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


def start(kind: str, started: list[psutil.Process]) -> tuple[psutil.Process, list[psutil.Process]]:
    """An engine's first process, and those that it has started, the guard among them."""
    engine = subprocess.Popen([sys.executable, "-c", ENGINE, kind], stdout=subprocess.PIPE)
    first = psutil.Process(engine.pid)
    started.append(first)
    assert engine.stdout is not None
    assert engine.stdout.readline() == b"started\n"
    deadline = time.monotonic() + 30
    while len(first.children(recursive=True)) < (3 if kind == "guarded" else 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = first.children(recursive=True)
    started += children
    return first, children


def test_what_a_killed_process_has_started_is_killed_with_it(started: list[psutil.Process]):
    first, children = start("guarded", started)
    bystander, others = start("guarded", started)
    assert any("guard.py" in " ".join(child.cmdline()) for child in children)
    first.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert bystander.is_running()
    assert all(other.is_running() for other in others)


def test_without_a_guard_it_would_live_on(started: list[psutil.Process]):
    first, children = start("alone", started)
    first.kill()
    first.wait(20)
    time.sleep(1)
    assert all(child.is_running() for child in children)
