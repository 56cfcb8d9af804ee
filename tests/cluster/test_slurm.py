"""The Slurm script, with stand-ins for Slurm's commands, Ray's and batchgen's own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sh"

# Runs what it is given, here; notes which nodes it was for.
SRUN = """
nodes=all
while [ "${1#--}" != "$1" ]; do
  case "$1" in --nodelist=*) nodes=${1#*=} ;; --exclude=*) nodes="not ${1#*=}" ;; esac
  shift
done
echo "srun on $nodes: $(basename "$1") $2 $3" >> "$CALLS"
[ "$nodes" = "not node1" ] && echo $$ > "$CALLS.others"
exec "$@"
"""
SCONTROL = """
case "$1" in show) printf 'node1\\nnode2\\n' ;; *) echo "scontrol $*" >> "$CALLS" ;; esac
"""
RAY = """
echo "ray $*" >> "$CALLS"
"""
HOSTNAME = """
case "$1" in --ip-address) echo "$OWN_NAME" ;; --all-ip-addresses) echo "172.20.0.9 10.1.0.9 fd00::9 " ;; esac
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the script; its commands are noted in `calls`."""
    started: list[subprocess.Popen[str]] = []

    def start(batchgen: str, own_name: str = "10.1.0.7", nodes: int = 2) -> subprocess.Popen[str]:
        commands = {"srun": SRUN, "scontrol": SCONTROL, "hostname": HOSTNAME, "ray": RAY, "batchgen": batchgen}
        (tmp_path / "bin").mkdir()
        for name, text in commands.items():
            (tmp_path / "bin" / name).write_text("#!/bin/sh\n" + text)
            (tmp_path / "bin" / name).chmod(0o755)
        script = subprocess.Popen(
            ["bash", str(SCRIPT), "job.yaml", "/shared/run"],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "VENV": str(tmp_path),
                "CALLS": str(tmp_path / "calls"),
                "OWN_NAME": own_name,
                "SLURM_JOB_NODELIST": "node[1-2]",
                "SLURM_NNODES": str(nodes),
                "SLURM_JOB_ID": "77",
            },
        )
        started.append(script)
        return script

    yield start
    for script in started:  # Slurm ends what is left of a job
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)


NOTE = 'echo "batchgen $*, token of ${#RAY_AUTH_TOKEN}, ${RAY_AUTH_MODE}" >> "$CALLS"\n'


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("own_name", "address"),
    [("10.1.0.7", "10.1.0.7"), ("127.0.1.1", "172.20.0.9"), ("fe80::1 10.1.0.7", "10.1.0.7"), ("::1", "172.20.0.9")],
)
def test_the_head_is_at_an_address_that_other_nodes_reach(start, tmp_path: Path, own_name: str, address: str):
    script = start("sleep 0.5\n" + NOTE, own_name)  # what it starts in the background notes itself
    assert script.wait(60) == 0, script.communicate()[1]
    done = calls(tmp_path)
    assert f"ray start --head --node-ip-address={address} --port=6379 --include-dashboard=false --block" in done
    assert f"ray start --address={address}:6379 --block" in done
    assert "srun on node1: ray start --head" in done
    assert "srun on not node1: sh -c while :; do" in " ".join(done)
    assert f"batchgen run job.yaml --output /shared/run --address {address}:6379, token of 64, token" in done, (
        "with a token of its own"
    )
    assert not [call for call in done if "requeue" in call]


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_other_nodes_leave_while_their_head_is_there(start, tmp_path: Path, code: int):
    script = start(f'until [ -s "$CALLS.others" ]; do sleep 0.1; done; exit {code}')
    assert script.wait(60) == code
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "calls.others").read_text()), 0)


def test_one_node_has_no_workers(start, tmp_path: Path):
    script = start(NOTE, nodes=1)
    assert script.wait(60) == 0
    assert not [call for call in calls(tmp_path) if "srun on not" in call]


def test_a_node_without_an_address_is_told(start, tmp_path: Path):
    script = start(NOTE, "")
    (tmp_path / "bin" / "hostname").write_text("#!/bin/sh\n")
    assert script.wait(60) == 1
    assert "no IPv4 address of node1 is known there" in script.communicate()[1]


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (143, True), (1, False), (2, False)])
def test_a_run_that_can_go_on_is_queued_again_and_no_other(start, tmp_path: Path, code: int, requeued: bool):
    script = start(f"exit {code}")
    assert script.wait(60) == code
    assert ("scontrol requeue 77" in calls(tmp_path)) == requeued


def test_a_run_that_is_told_to_stop_has_the_time_to_commit(start, tmp_path: Path):
    commits = """
trap 'sleep 1; echo committed >> "$CALLS"; exit 75' TERM
touch "$CALLS.up"
while :; do sleep 0.1; done
"""
    script = start(commits)
    until = time.monotonic() + 30
    while not (tmp_path / "calls.up").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    script.send_signal(signal.SIGTERM)
    assert script.wait(60) == 75
    assert calls(tmp_path)[-2:] == ["committed", "scontrol requeue 77"]
