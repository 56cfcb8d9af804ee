"""Real vLLM under real Ray, killed twice: the driver, and then vLLM's engine process of the run that goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
import yaml

from tests.faults import test_kill as kill

pytestmark = [pytest.mark.engine, pytest.mark.cluster]
ROWS = 1200


def family(pid: int, name: str) -> list[psutil.Process]:
    """Descendants of a process whose name has a word in it."""
    return [child for child in psutil.Process(pid).children(recursive=True) if name in child.name()]


def test_every_row_is_there_once_after_the_driver_and_the_engine_were_killed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(kill, "ROWS", ROWS)
    run = tmp_path / "run"
    job = tmp_path / "job.yaml"
    tree = {
        "name": "killed",
        "source": {"count": ROWS},
        "model": {"path": "embedded", "engine": {"max_model_len": 1024, "max_num_seqs": 16}},
        "sampling": {"max_tokens": 48},
        "steps": [{"task": "magpie"}],
        "output": str(run),
        "shard_rows": 20,
    }
    job.write_text(yaml.safe_dump(tree))

    first = kill.start(job)
    kill.wait_for(lambda: kill.shards_committed(run) >= 5, 240)
    engines = family(first.pid, "EngineCore")
    assert engines
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    psutil.wait_procs(engines, timeout=60)
    before = {path: path.read_bytes() for path in run.glob("commits/*/0000.json")}

    second = kill.start(job)
    kill.wait_for(lambda: kill.shards_committed(run) >= len(before) + 5, 240)
    victims = family(second.pid, "EngineCore")
    assert len(victims) == 1
    victims[0].kill()
    kill.wait_for(lambda: family(second.pid, "EngineCore") not in ([], victims), 240)
    kill.finish(second, 0)
    kill.check_every_row_once(run)
    assert all(path.read_bytes() == data for path, data in before.items()), "what was committed stays as it is"
