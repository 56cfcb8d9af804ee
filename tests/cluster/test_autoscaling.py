"""A cluster whose machines come when engines wait for them: Ray's own autoscaler, with nodes on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.heads import ON_LOOPBACK, free_port, ray_head

pytestmark = pytest.mark.cluster


def autoscaled(port: int) -> dict:
    """A head without room, and at most two machines with a GPU each, of which there is none at first."""
    gpu = {"CPU": 1, "GPU": 1, "object_store_memory": 100_000_000}
    lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    lists += ("head_start_ray_commands", "worker_start_ray_commands", "rsync_exclude", "rsync_filter")
    return {
        "cluster_name": "autoscaled",
        "provider": {
            "type": "fake_multinode",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": f"127.0.0.1:{port}",
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpus": {"resources": gpu, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        **{name: [] for name in lists},
    }


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    config = tmp_path / "autoscaler.json"
    config.write_text(json.dumps(autoscaled(port)))
    scaling = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_AUTH_MODE": "disabled"}
    with ray_head(f"--autoscaling-config={config}", "--num-cpus=0", port=port, **scaling) as (address, _):
        yield address


def test_engines_wait_for_the_machines_that_an_autoscaler_adds_for_them(address: str, tmp_path: Path):
    tree = {
        "name": "autoscaled",
        "source": {"count": 400},
        "shard_rows": 4,
        "model": {"path": "chaos", "engine": {"latency": 0.3, "slots": 4}},
        "steps": [{"task": "magpie"}],
        "output": str(tmp_path / "run"),
        # One more than there will ever be room for.
        "engines": 3,
        "wait_for_gpus": True,
    }
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(tree))
    done = subprocess.run(
        [sys.executable, "-m", "batchgen.cli", "run", str(job), "--address", address],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **ON_LOOPBACK, "RAY_AUTH_MODE": "disabled"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "engines 2/3" in done.stdout
    assert "merged 400 rows" in done.stdout
