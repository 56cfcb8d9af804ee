"""Real vLLM under real Ray, whose engine processes are killed in the middle of a run."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import psutil
import pytest
import yaml

from batchgen.commit import committed, read_shard
from batchgen.settle import read_plan
from batchgen.store import LocalStore
from tests.faults import ledger
from tests.faults import test_kill as kill

pytestmark = [pytest.mark.engine, pytest.mark.cluster]
ROWS = 360


def engine_core(log: Path) -> int | None:
    """Process of the EngineCore that wrote a log, as its lines say; its name is cut off on some systems."""
    found = re.search(r"\(EngineCore pid=(\d+)\)", log.read_text(errors="replace")) if log.exists() else None
    return int(found[1]) if found else None


def test_a_run_whose_engine_processes_are_killed_ends_with_every_row_once(tmp_path: Path):
    run = tmp_path / "run"
    job = tmp_path / "job.yaml"
    tree = {
        "name": "killed",
        "source": {"rows": [{"instruction": f"What is {row} plus {row}?"} for row in range(ROWS)]},
        "model": {"path": "embedded", "engine": {"max_model_len": 1024, "max_num_seqs": 16}},
        "sampling": {"max_tokens": 96, "ignore_eos": True},
        "steps": [{"task": "text_generation"}],
        "merge": {"drop_truncated": False, "near": None},
        "output": str(run),
        "shard_rows": 12,
    }
    job.write_text(yaml.safe_dump(tree))

    process = kill.start(job)
    before = {}
    # At SIGTERM vLLM hands back what there is of every text, as if it were whole: a shard of single calls would end.
    for engine, number in enumerate([signal.SIGKILL, signal.SIGTERM]):
        least, log = len(before) + 5, run / "logs" / f"engine-{engine}.log"
        kill.wait_for(lambda least=least: kill.shards_committed(run) >= least, 240)
        victim = engine_core(log)
        before = {path: path.read_bytes() for path in run.glob("commits/*/0000.json")}
        assert victim is not None
        assert psutil.Process(victim) in psutil.Process(process.pid).children(recursive=True)
        os.kill(victim, number)
        log = log.with_name(f"engine-{engine + 1}.log")
        kill.wait_for(lambda log=log: engine_core(log) is not None, 240)
    out = kill.finish(process, 0)
    assert "process died" in out
    assert "was told to end" in out
    for number in (signal.SIGKILL, signal.SIGTERM):
        ledger.record(f"vLLM's EngineCore ended with {number.name}", 1, run, ROWS)
    store = LocalStore(run)
    plan = read_plan(store)
    tables = [read_shard(store, plan, manifest) for manifest in committed(store, plan).values()]
    outcomes = [row for table in tables for row in table.select(["outcome", "finish_reason"]).to_pylist()]
    assert outcomes == [{"outcome": "ok", "finish_reason": "length"}] * ROWS, "none is a part of a text"
    assert all(path.read_bytes() == data for path, data in before.items()), "what was committed stays as it is"
