"""A Ray cluster of several nodes on this machine, which go and come while a run is under way."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray.cluster_utils import Cluster

from tests.faults import ledger
from tests.faults import test_kill as kill

pytestmark = pytest.mark.cluster
_FILES = 4096


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without room for engines, and two nodes with room for one each, started by a shell that limits files."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES, before), most))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1, num_gpus=1)
    yield cluster
    cluster.shutdown()
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


def job(folder: Path, rows: int) -> Path:
    tree = {
        "name": "nodes",
        "source": {"count": rows},
        "model": {"path": "chaos", "engine": {"latency": 0.25, "slots": 8}},
        "steps": [{"task": "magpie"}],
        "output": str(folder / "run"),
        "shard_rows": 4,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def actors(node: Any) -> list[psutil.Process]:
    """Processes on a node that host an engine."""
    (raylet,) = node.all_processes["raylet"]
    children = psutil.Process(raylet.process.pid).children(recursive=True)
    return [child for child in children if "_Actor" in child.name()]


def wait_for_commits(run: Path, number: int) -> None:
    before = kill.shards_committed(run)
    kill.wait_for(lambda: kill.shards_committed(run) >= before + number)


def test_nodes_are_removed_three_times_and_others_are_added(cluster: Cluster, tmp_path: Path):
    rows, run = 1200, tmp_path / "run"
    process = kill.start(job(tmp_path, rows), "--address", cluster.address)
    wait_for_commits(run, 10)
    for graceful in (False, True, False):
        victim = sorted(cluster.worker_nodes, key=lambda node: len(actors(node)))[-1]
        assert actors(victim), "the node that is removed has an engine"
        cluster.remove_node(victim, allow_graceful=graceful)
        added = cluster.add_node(num_cpus=1, num_gpus=1)
        started = time.monotonic()
        kill.wait_for(lambda added=added: bool(actors(added)), 60)
        assert time.monotonic() - started < 30
        wait_for_commits(run, 5)
    # The engine of the last node works: commits go on while all others stand still.
    others = [actor for node in cluster.worker_nodes if node is not added for actor in actors(node)]
    assert others
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    allowed = 65_536 if most == resource.RLIM_INFINITY else min(65_536, most)
    assert all(actor.rlimit(psutil.RLIMIT_NOFILE)[0] == allowed for actor in others)
    for actor in others:
        actor.suspend()
    wait_for_commits(run, 10)
    for actor in others:
        actor.resume()
    assert process.poll() is None, "the run ended before the faults did"
    out = kill.finish(process, 0)
    assert "the engine's machine left the cluster" in out
    assert "process died" not in out, "no engine is blamed for the loss of its machine"
    assert "raylet" not in out, "Ray's own words are in the log"
    ledger.record("Ray node killed, another added", 3, run, rows)


def test_an_actor_is_killed_every_few_seconds_for_a_minute(cluster: Cluster, tmp_path: Path):
    rows, run = 900, tmp_path / "run"
    process = kill.start(job(tmp_path, rows), "--address", cluster.address)
    killed, end = 0, None
    while end is None or time.monotonic() < end:
        # Whoever has just committed is at work, and so is the oldest: where engines die three times in a row as they
        # start, the run rightly fails.
        wait_for_commits(run, 3)
        end = end or time.monotonic() + 60
        min((actor for node in cluster.worker_nodes for actor in actors(node)), key=lambda a: a.create_time()).kill()
        killed += 1
        time.sleep(3)
    assert process.poll() is None, process.communicate()[0]
    assert killed >= 5
    kill.finish(process, 0)
    ledger.record("Ray actor killed every few seconds for a minute", killed, run, rows)
