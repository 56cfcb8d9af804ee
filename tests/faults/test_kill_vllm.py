"""Real vLLM under real Ray, whose engine process is killed in the middle of a run."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import psutil
import pytest
import yaml

from tests.faults import ledger
from tests.faults import test_kill as kill

pytestmark = [pytest.mark.engine, pytest.mark.cluster]
ROWS = 360


def engine_core(log: Path) -> int | None:
    """Process of the EngineCore that wrote a log, as its lines say; its name is cut off on some systems."""
    found = re.search(r"\(EngineCore pid=(\d+)\)", log.read_text(errors="replace")) if log.exists() else None
    return int(found[1]) if found else None


def test_a_run_whose_engine_process_is_killed_ends_with_every_row_once(tmp_path: Path):
    run = tmp_path / "run"
    job = tmp_path / "job.yaml"
    tree = {
        "name": "killed",
        "source": {"count": ROWS},
        "model": {"path": "embedded", "engine": {"max_model_len": 1024, "max_num_seqs": 16}},
        "sampling": {"max_tokens": 48},
        "steps": [{"task": "magpie"}],
        "output": str(run),
        "shard_rows": 12,
    }
    job.write_text(yaml.safe_dump(tree))

    process = kill.start(job)
    kill.wait_for(lambda: kill.shards_committed(run) >= 5, 240)
    victim = engine_core(run / "logs" / "engine-0.log")
    before = {path: path.read_bytes() for path in run.glob("commits/*/0000.json")}
    assert victim is not None
    assert psutil.Process(victim) in psutil.Process(process.pid).children(recursive=True)
    os.kill(victim, signal.SIGKILL)
    kill.wait_for(lambda: engine_core(run / "logs" / "engine-1.log") is not None, 240)
    kill.finish(process, 0)
    ledger.record("vLLM's EngineCore killed", 1, run, ROWS)
    assert all(path.read_bytes() == data for path, data in before.items()), "what was committed stays as it is"
