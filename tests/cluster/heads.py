"""Ray heads on loopback, for tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from ray._private.ray_constants import ENABLE_RAY_CLUSTERS_ENV_VAR

# `--node-ip-address` alone does not keep a head there, and a driver would look for it at another address.
ON_LOOPBACK = {ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ray_head(*arguments: str, port: int | None = None, **environment: str) -> Iterator[tuple[str, str]]:
    """(address of the cluster, address of its dashboard) of a head with a folder of its own."""
    port, dashboard = port or free_port(), free_port()
    # A submitted job finds its cluster as Ray's latest one of this folder: with two heads in one, it found the other's.
    temp = Path(tempfile.mkdtemp(prefix="ray-"))
    ray = Path(sys.executable).with_name("ray")
    process = subprocess.Popen(
        [
            *(str(ray), "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"),
            *(f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={temp}", *arguments),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # The entrypoint's `python` is the cluster's.
        env={**os.environ, **ON_LOOPBACK, "PATH": f"{ray.parent}:{os.environ['PATH']}", **environment},
    )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 120
        while not (_answers(url) and (temp / "ray_current_cluster").exists()):
            assert time.monotonic() < deadline, "the Ray head did not come up"
            time.sleep(0.5)
        yield f"127.0.0.1:{port}", url
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            member.terminate()
        _, alive = psutil.wait_procs(family, timeout=5)
        for member in alive:
            member.kill()
        process.wait()
        shutil.rmtree(temp, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=2)
    except urllib.error.HTTPError:
        return True  # it asks for Ray's own token
    except OSError:
        return False
    return True
