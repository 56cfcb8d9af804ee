"""How long a run with many committed shards takes until it hands out the next one, in a folder and in a bucket."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from batchgen.commit import commit_shard, new_attempt
from batchgen.plan import Plan, make_plan
from batchgen.rows import OK, ResultRow
from batchgen.seeds import Seeds, load_seeds
from batchgen.settle import settle_plan
from batchgen.store import LocalStore
from tests.helpers import chaos_job
from tests.s3server import environment, s3_server

COMMITTED, OPEN = 20_000, 50
# A process of its own, as a user's command is one; it ends when the first shard is handed out.
PROBE = """
import json, os, sys, time
started = time.perf_counter()
from batchgen import run
from batchgen.host import LocalFleet
async def first(self, engine, work):
    print(time.perf_counter() - started, flush=True)
    os._exit(0)
LocalFleet.run = first
run(json.loads(sys.argv[1]), in_process=True)
"""


def _commit(store: LocalStore, plan: Plan, seeds: Seeds) -> None:
    for shard in plan.shards[:COMMITTED]:
        rows = seeds.slice(shard.start, shard.stop)
        data = {"instruction": "a", "response": "b"}
        results = [ResultRow(row, "", OK, None, data, "chaos", "stop", 1, 1, ()) for row in rows]
        commit_shard(store, plan, shard, new_attempt(), rows, results)


def _seconds(tree: dict[str, Any], extra: dict[str, str]) -> float:
    command = [sys.executable, "-c", PROBE, json.dumps(tree)]
    done = subprocess.run(command, env={**os.environ, **extra}, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measure(repeats: int) -> dict[str, Any]:
    """Seconds from the start of Python's imports to the first dispatch; an engine's own start is not in it."""
    with tempfile.TemporaryDirectory() as temporary, s3_server() as server:
        root = Path(temporary) / "run"
        job = chaos_job(root, source={"count": COMMITTED + OPEN}, shard_rows=1)
        seeds = load_seeds(job.source)
        store = LocalStore(root)
        plan = settle_plan(store, make_plan(job, seeds))
        assert len(plan.shards) == COMMITTED + OPEN
        _commit(store, plan, seeds)
        for path in root.rglob("*"):
            if path.is_file():
                server.objects[f"bucket/run/{path.relative_to(root).as_posix()}"] = path.read_bytes()
        bucket = {**job.tree(), "output": "s3://bucket/run"}
        folder = [_seconds(job.tree(), {}) for _ in range(repeats)]
        in_bucket = [_seconds(bucket, environment(server)) for _ in range(repeats)]
    return {
        "workload": f"{COMMITTED} committed shards, {OPEN} open, chaos engine; the bucket is the tests' own server",
        "seconds_to_first_dispatch": {
            "folder": [round(value, 1) for value in folder],
            "bucket": [round(value, 1) for value in in_bucket],
        },
        "median": {"folder": round(statistics.median(folder), 1), "bucket": round(statistics.median(in_bucket), 1)},
    }
