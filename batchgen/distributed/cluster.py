"""Connects to a Ray cluster, or starts one on this machine alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray._private import ray_constants, utils, worker
from ray._private.services import canonicalize_bootstrap_address, find_gcs_addresses
from ray._private.state import actors as actor_table

from batchgen.distributed.settings import settings, temp_dir
from batchgen.errors import ClusterLost, Stopped, UserError
from batchgen.stopsignals import signals_put_off

# In what Ray says of a node whose processes did not come up in time.
_TOO_SLOW = "timed out during startup"


@dataclass(frozen=True)
class Cluster:
    """The connected cluster.

    Args:
        machines: GPUs of each.
        local: whether it is this process's own.
    """

    machines: tuple[int, ...]
    local: bool


@contextlib.contextmanager
def connected(address: str | None, engines: int | None) -> Iterator[Cluster]:
    """A connection to Ray for as long as the context lasts.

    What a local Ray has written, 200 KB and more, is removed where it ends without an exception.

    Args:
        address: of a running cluster; None starts a local Ray on loopback, without a dashboard. Within a submitted
            Ray job, `RAY_ADDRESS` is the cluster's and is used.
        engines: how many the job asks for; a local Ray starts as many processes at once.

    Raises:
        UserError: nothing answers at the address, this machine is no node of the cluster there, or this process is
            connected already.
        Stopped: a Ray of this machine was too slow to start.
    """
    if ray.is_initialized():
        raise UserError("this process is already connected to Ray: call ray.shutdown() first")
    given = f"--address {address}" if address else f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}"
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is not None:
        _check_answers(address, given)
    leave = ray.shutdown
    session: str | None = None
    with settings(local=address is None):
        try:
            _connect(address, given, engines)
            if address is None:
                session = worker._global_node.get_session_dir_path()
            yield Cluster(gpus_of_machines(), local=address is None)
        except ClusterLost:
            leave = _kill_processes
            raise
        finally:
            # Ray's C++ takes away the handler of SIGTERM as it ends: for the second until it is set again, it kills.
            with signals_put_off():
                leave()
    if session is not None:
        _remove_session(Path(session))


def _remove_session(folder: Path) -> None:
    """Removes what a Ray that has ended wrote, and the link to it: Ray replaces none that leads nowhere."""
    latest = folder.with_name(ray_constants.SESSION_LATEST)
    with contextlib.suppress(OSError):
        if latest.resolve() == folder.resolve():
            latest.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _connect(address: str | None, given: str, engines: int | None) -> None:
    """Connects to a cluster, or starts one; see `connected`."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        with _signals_kept():
            if address is None:
                # No engine asks for CPUs here, and for each Ray would start a process that idles.
                _start(include_dashboard=False, num_cpus=engines or 1, _temp_dir=temp_dir(), **quiet)
            else:
                ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises any type here, and bare ones
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if address is None:
            if _TOO_SLOW in str(error):
                raise Stopped(f"Ray did not start on this machine, which may be too busy for now: {reason}") from error
            raise UserError(
                f"Ray did not start on this machine: {reason} (RAY_TMPDIR names a folder for its files)"
            ) from error
        raise UserError(
            f"{given}: cannot connect to Ray: {reason} (this machine has to be a node of that cluster; one that asks "
            "for a token needs RAY_AUTH_MODE=token here, and the token)"
        ) from error


def _start(**options: Any) -> None:
    """Starts a Ray of this process's own; once more where its processes were too slow for each other.

    On a busy machine they are: Ray's node gives up on an agent that is not up after 15 seconds, and whoever starts the
    node after 30.
    """
    try:
        ray.init(address="local", **options)
    except Exception as error:
        if _TOO_SLOW not in str(error):
            raise
        ray.init(address="local", **options)


def _kill_processes() -> None:
    """Ends what this process started of Ray: `ray.shutdown` would wait for a head that is gone."""
    if (node := worker._global_node) is not None:
        node.kill_all_processes(check_alive=False, allow_graceful=False)


async def ask(function: Callable[..., Any], *arguments: Any, seconds: float = 15.0) -> Any:
    """What a function of Ray gives, called in a thread that nobody waits for: with Ray's head gone it never returns.

    Raises:
        TimeoutError: it did not return in time.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if not answer.done():
            answer.set_exception(error) if error else answer.set_result(result)

    def call() -> None:
        result, error = None, None
        try:
            result = function(*arguments)
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=call, daemon=True).start()
    return await asyncio.wait_for(answer, seconds)


def usable_cores() -> int:
    """Cores of this machine that this process may use, by its affinity and by its container's quota."""
    return max(1, min(len(os.sched_getaffinity(0)), int(utils.get_num_cpus(override_docker_cpu_warning=True))))


def gpus_of_machines() -> tuple[int, ...]:
    """GPUs of each machine that is in the cluster now."""
    return tuple(int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"])


def fate_of(actor: Any) -> Literal["alive", "died", "lost"]:
    """What became of an actor, by Ray's own tables; `lost`: its machine left the cluster."""
    entry = actor_table(actor._actor_id.hex())
    if not entry:
        return "died"  # so long ago that Ray has forgotten it
    if any(node["NodeID"] == entry["Address"]["NodeID"] and not node["Alive"] for node in ray.nodes()):
        return "lost"
    return "died" if entry["State"] == "DEAD" else "alive"


def _check_answers(address: str, given: str) -> None:
    """Refuses in seconds an address that cannot be connected to; Ray itself tries for minutes.

    Args:
        given: how the user gave it, for messages.

    Raises:
        UserError: with the reason.
    """
    if address in ("auto", "local"):
        return
    if "://" in address:
        raise UserError(f"{given}: give HOST:PORT of the cluster's head; to send a job, use batchgen submit")
    # Ray takes 127.0.0.1 for an address of the machine that others can reach, at which nothing may listen.
    used = address
    try:
        used = canonicalize_bootstrap_address(address)
        host, _, port = used.rpartition(":")
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        where = f" at {used}, which Ray takes it for" if used != address else ""
        raise UserError(f"{given}: cannot connect to Ray{where}: {error}") from error
    if not find_gcs_addresses():
        raise UserError(
            f"{given}: this machine is not a node of that cluster: no Ray runs on it, and without one Ray's own "
            "processes cannot be reached; run the job on a node of the cluster, or send it there with batchgen submit"
        )


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keeps signals from Ray as it starts, which would set its own handler of SIGTERM, and from what it starts.

    A Ray that is interrupted as it connects aborts the process as that ends. A terminal that is closed sends SIGHUP to
    all of its processes: Ray's and the engines' have it blocked, as has what starts them; they end with the driver,
    which first commits what they hold.
    """
    set_handler, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda handler: None
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        with signals_put_off():
            yield
    finally:
        utils.set_sigterm_handler = set_handler
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
