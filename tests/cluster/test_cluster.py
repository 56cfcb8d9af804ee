"""A Ray head on loopback: submitted jobs, attached runs, several engines."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from ray._private.services import get_node_ip_address

from batchgen.commit import committed
from batchgen.embedded import MODEL_PATH
from batchgen.settle import read_plan
from batchgen.store import LocalStore
from tests.cluster.heads import ON_LOOPBACK, free_port, ray_head
from tests.helpers import as_from_a_terminal

pytestmark = pytest.mark.cluster
# Heads that ask for a token and heads that ask for none; a job is submitted to both.
with_token = pytest.mark.parametrize("head", ["token"], indirect=True)
without_token = pytest.mark.parametrize("head", ["disabled"], indirect=True)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray's token, in a file of the tests: other Ray tests run beside these, and the user's own is left alone."""
    path = tmp_path_factory.mktemp("ray") / "auth_token"
    path.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
        yield


@pytest.fixture(scope="module")
def head(request: pytest.FixtureRequest, token: None) -> Iterator[tuple[str, str, str]]:
    """(address of the cluster, address of its dashboard, its RAY_AUTH_MODE)."""
    with ray_head("--num-cpus=4", RAY_AUTH_MODE=request.param) as (address, url):
        yield address, url, request.param


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seeds").mkdir()
    for name in ("a", "b"):
        lines = [json.dumps({"instruction": f"{name} {i}"}) for i in range(30)]
        (tmp_path / "seeds" / f"{name}.jsonl").write_text("\n".join(lines))
    tree = {
        "name": "submitted",
        "source": {"path": "seeds/*.jsonl"},
        "model": {"path": "chaos", "engine": {"latency": 0.01}},
        "steps": [{"task": "text_generation"}],
        "merge": {"near": False},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def batchgen(*arguments: str, auth: str | None = None, **changes: str | None) -> tuple[int, str]:
    environment = {**os.environ, **ON_LOOPBACK, **({"RAY_AUTH_MODE": auth} if auth else {}), **changes}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "batchgen.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            env={name: value for name, value in environment.items() if value is not None},
        )
    except subprocess.TimeoutExpired:
        show_where_they_wait()
        raise
    return done.returncode, done.stdout + done.stderr


def show_where_they_wait() -> None:
    """The stacks of all drivers and engines, for whoever reads why a test ran out of time."""
    for process in psutil.process_iter(["pid", "cmdline"]):
        if any(word in " ".join(process.info["cmdline"] or ()) for word in ("batchgen.cli", "_Actor", "JobSupervisor")):
            spy = Path(sys.executable).with_name("py-spy")
            subprocess.run([str(spy), "dump", "--pid", str(process.info["pid"])], check=False, timeout=60)


def check_complete(run: Path, rows: int) -> None:
    store = LocalStore(run)
    plan = read_plan(store)
    manifests = committed(store, plan)
    assert len(manifests) == len(plan.shards)
    assert sum(manifest.ok for manifest in manifests.values()) == rows


@with_token
def test_a_job_is_submitted_with_its_seeds_and_followed_to_its_dataset(head, folder: Path):
    from datasets import load_dataset

    code, out = batchgen("submit", "job.yaml", "--address", head[1])
    assert code == 0, out
    assert "60/60 rows" in out, "its log is followed"
    check_complete(folder / "run", 60)
    dataset = load_dataset(str(folder / "run" / "dataset"), split="train", cache_dir=str(folder / "cache"))
    assert dataset["instruction"][0] == "a 0"
    assert len(dataset) == 60


@without_token
def test_a_submitted_job_that_fails_gives_its_exit_code(head, folder: Path):
    code, out = batchgen("submit", "job.yaml", "--address", head[1], "--set", "model.engine={start_failures: true}")
    assert code == 1, out
    assert f"on {platform.node()}: chaos: this engine never starts" in out, "of many machines it says which"


@with_token
def test_a_run_attached_to_a_cluster_with_three_engines(head, folder: Path):
    options = ("--set", "engines=3", "--set", "shard_rows=2")
    code, out = batchgen("run", "job.yaml", "--address", head[0], *options, auth=head[2])
    assert code == 0, out
    check_complete(folder / "run", 60)
    assert len(list((folder / "run" / "logs").glob("engine-*.log"))) == 3


@with_token
def test_engines_of_a_cluster_know_the_duplicates_of_what_others_committed(head, folder: Path):
    lines = [json.dumps({"instruction": f"What is {i % 40}?"}) for i in range(400)]
    (folder / "seeds" / "a.jsonl").write_text("\n".join(lines))
    steps = "steps=[{task: drop_duplicates, threshold: 0.9}, {task: text_generation}]"
    options = ("source.path=seeds/a.jsonl", "engines=2", "shard_rows=8", "model.engine={slots: 1, latency: 0.3}", steps)
    code, out = batchgen(
        "run", "job.yaml", "--address", head[0], *(part for each in options for part in ("--set", each)), auth=head[2]
    )
    assert code == 0, out
    store = LocalStore(folder / "run")
    manifests = committed(store, read_plan(store))
    answered = sum(manifest.ok for manifest in manifests.values())
    assert sum(manifest.reasons.get("duplicate", 0) for manifest in manifests.values()) == 400 - answered
    assert answered <= 64, "two engines that knew of their own rows alone would answer 80"
    assert "40 kept" in out


@with_token
def test_a_model_s_relative_path_starts_where_the_driver_runs(head, folder: Path):
    shutil.copytree(MODEL_PATH, folder / "models" / "mine")
    changes = (
        *("model={path: models/mine, backend: transformers}", "engines=1", "source.limit=2"),
        *("sampling.max_tokens=8", "merge.drop_truncated=false"),
    )
    options = [part for change in changes for part in ("--set", change)]
    code, out = batchgen("run", "job.yaml", "--address", head[0], *options, auth=head[2])
    assert code == 0, out
    check_complete(folder / "run", 2)


@with_token
def test_a_model_is_not_put_on_the_cpus_of_a_cluster_unasked(head, folder: Path):
    code, out = batchgen("run", "job.yaml", "--address", head[0], "--set", "model={path: embedded}", auth=head[2])
    assert code == 2, out
    assert "the cluster has no GPU, at least not yet" in out


@with_token
def test_a_cluster_that_asks_for_a_token_says_so(head, folder: Path):
    code, out = batchgen("run", "job.yaml", "--address", head[0], auth="disabled")
    assert code == 2, out
    assert "RAY_AUTH_MODE=token" in out


def test_a_local_ray_listens_on_loopback_only_does_not_end_with_the_terminal_and_gives_way_to_nobody():
    code = """
import json, os, psutil, ray, re, signal
from ray._private import ray_constants
from batchgen.distributed.cluster import connected
from batchgen.errors import UserError
before = {**os.environ, "cluster": ray_constants.ENABLE_RAY_CLUSTER}
with connected(None, 1):
    me = psutil.Process()
    processes = [me, *me.children(recursive=True)]
    sockets = [s for p in processes for s in p.net_connections("inet") if s.status == "LISTEN"]
    reached = [p.pid for p in processes[1:] if os.getpgid(p.pid) == os.getpgid(0)]
    try:
        with connected(None, 1):
            twice = "connected"
    except UserError as error:
        twice = str(error)
    @ray.remote(num_cpus=0)
    def niceness():
        return os.nice(0)
    blocked = [int(re.search(r"SigBlk:\\s*(\\w+)", open(f"/proc/{pid}/status").read())[1], 16) for pid in reached]
    found = {
        "addresses": [s.laddr.ip for s in sockets],
        "spared": [bool(signals & 1 << signal.SIGHUP - 1) for signals in blocked],
        "twice": twice,
        "here": signal.getsignal(signal.SIGHUP) == signal.SIG_DFL,
        "niceness": ray.get(niceness.remote()) - os.nice(0),
    }
after = {**os.environ, "cluster": ray_constants.ENABLE_RAY_CLUSTER}
left = [name for name in {*before, *after} if before.get(name) != after.get(name)]
print(json.dumps({**found, "left": left}))
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_worker_niceness"}
    options = {"capture_output": True, "text": True, "timeout": 300, "check": True, "env": environment}
    done = subprocess.run([sys.executable, "-c", code], preexec_fn=as_from_a_terminal, **options)
    found = json.loads(done.stdout)
    assert len(found["addresses"]) > 3
    assert set(found["addresses"]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert len(found["spared"]) > 2
    assert all(found["spared"])
    assert found["here"], "the driver itself is told"
    assert found["niceness"] == 0
    assert "already connected to Ray" in found["twice"]
    assert set(found["left"]) <= {"RAY_AUTH_MODE", "RAY_CLIENT_MODE", "PYTHONBREAKPOINT"}, "which are Ray's own doing"


def test_a_ray_that_is_told_to_stop_while_it_starts_is_started_and_ended():
    code = """
import os, psutil, signal, threading
from batchgen.distributed.cluster import connected
from batchgen.errors import Stopped
from batchgen.stopsignals import stopped_by_signals
started = []
def tell():
    while len(psutil.Process().children()) < 2:
        pass
    started.extend(psutil.Process().children(recursive=True))
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=tell, daemon=True).start()
try:
    with stopped_by_signals(), connected(None, 1):
        print("connected")
except Stopped as error:
    left = psutil.wait_procs(started, timeout=60)[1]
    print(error, len(started) > 1, left)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "told to stop (SIGTERM) True []\n"), done.stderr


def test_what_cannot_be_submitted_is_refused(folder: Path):
    nowhere = f"http://127.0.0.1:{free_port()}"
    code, out = batchgen("submit", "job.yaml", "--address", nowhere)
    assert code == 2, out
    assert "no Ray dashboard accepts jobs there" in out
    code, out = batchgen("submit", "job.yaml", "--address", nowhere, "--output", "here")
    assert code == 2, out
    assert "needs an absolute folder that every machine" in out


def test_a_container_without_a_home_and_a_temporary_folder_of_a_long_name_are_no_hindrance(folder: Path):
    long = folder / ("a" * 100)
    long.mkdir()
    code, out = batchgen("run", "job.yaml", HOME="/proc", TMPDIR=str(long), RAY_AUTH_TOKEN_PATH=None)
    assert code == 0, out
    check_complete(folder / "run", 60)


def test_on_this_machine_alone_engines_are_as_many_as_its_gpus_whatever_its_cores(folder: Path):
    resources = json.dumps({"CPU": 1, "GPU": 2})
    slow = ("--set", "model.engine={latency: 1.0, slots: 4}", "--set", "shard_rows=2")
    code, out = batchgen("run", "job.yaml", *slow, RAY_OVERRIDE_RESOURCES=resources)
    assert code == 0, out
    assert len(list((folder / "run" / "logs").glob("engine-*.log"))) == 2, "each has found its place"
    check_complete(folder / "run", 60)


def test_engines_that_share_gpus_start_one_after_the_other_on_each(folder: Path):
    resources = json.dumps({"CPU": 1, "GPU": 2})
    slow = ("--set", "model.engine={latency: 1.0, slots: 4}", "--set", "shard_rows=2", "--set", "engines_per_gpu=2")
    code, out = batchgen("run", "job.yaml", *slow, RAY_OVERRIDE_RESOURCES=resources)
    assert code == 0, out
    assert len(list((folder / "run" / "logs").glob("engine-*.log"))) == 4
    check_complete(folder / "run", 60)
    assert not list(Path("/tmp").glob(f"batchgen-{os.getuid()}-gpu-*")), "nobody waits for a turn any more"


def test_a_run_that_ends_well_leaves_nothing_in_the_temporary_folder(folder: Path):
    with tempfile.TemporaryDirectory() as own:
        code, out = batchgen("run", "job.yaml", TMPDIR=own)
        assert code == 0, out
        assert [path.relative_to(own) for path in Path(own).rglob("*") if path.name != "ray"] == []
        fails = ("--set", "model.engine={start_failures: true}", "--output", "other")
        code, out = batchgen("run", "job.yaml", *fails, TMPDIR=own)
        assert code == 1, out
        (logs,) = Path(own).glob("ray/session_2*/logs")
        assert list(logs.glob("raylet*")), "which may tell why"
        assert not list(Path(own).glob("batchgen-*"))


def test_a_ray_that_does_not_start_is_told_in_a_line(folder: Path):
    code, out = batchgen("run", "job.yaml", RAY_TMPDIR="/proc")
    assert code == 2, out
    assert "Ray did not start on this machine" in out
    assert "RAY_TMPDIR names a folder" in out
    assert "Traceback" not in out


def test_a_cluster_that_does_not_answer_is_named(folder: Path):
    code, out = batchgen("run", "job.yaml", "--address", f"127.0.0.1:{free_port()}")
    assert code == 2, out
    assert "cannot connect to Ray" in out
    assert "--address" in out
    code, out = batchgen("run", "job.yaml", RAY_ADDRESS=f"127.0.0.1:{free_port()}")
    assert code == 2, out
    assert "error: RAY_ADDRESS=127.0.0.1" in out


@pytest.mark.skipif(get_node_ip_address() == "127.0.0.1", reason="this machine has no address but loopback's")
def test_an_address_at_which_only_this_machine_s_loopback_listens_is_told_at_once(folder: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "batchgen.cli", "run", "job.yaml", "--address", f"127.0.0.1:{port}"],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "which Ray takes it for" in done.stderr
