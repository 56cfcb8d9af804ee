"""What Ray reads of this process's environment: as batchgen needs it, and afterwards as it was."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray._private import ray_constants

from batchgen.sockets import socket_folder

_SOCKET_BYTES = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without it Ray hides the GPUs of an actor that asks for none from libraries that look for them on import.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's workers give way to every other process: beside two busy ones an engine did not come up in minutes.
    "RAY_worker_niceness": "0",
}


@contextmanager
def settings(local: bool) -> Iterator[None]:
    """Sets what a connection to Ray needs for as long as the context lasts; a user's own choices stay.

    Args:
        local: whether this process starts a Ray of its own. Ray 2.60 turns `_node_ip_address="127.0.0.1"` into the
            machine's address and binds to all interfaces; its switch against that, made for macOS and Windows, works on
            Linux too. It is read when ray is imported, and again by every process that Ray starts.
    """
    wanted = {name: value for name, value in _DEFAULTS.items() if name not in os.environ}
    if local:
        wanted[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        _ensure_token()
    before = {name: os.environ.get(name) for name in wanted}
    many_machines = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(wanted)
    ray_constants.ENABLE_RAY_CLUSTER = many_machines and not local
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = many_machines
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def temp_dir() -> str | None:
    """Where a local Ray keeps its sessions; None where the user has chosen.

    Ray itself would take a `TMPDIR` that cannot be written, or whose name is too long.
    """
    if os.environ.get("RAY_TMPDIR"):
        return None
    return f"{socket_folder(room=_SOCKET_BYTES)}/ray"


def _ensure_token() -> None:
    """Gives a local Ray a token of its own where there is no home to keep one in, as in many containers.

    Ray asks for a token by default and writes one to the home. This one stays: a process keeps the first that it reads.
    """
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    try:
        token = Path("~/.ray/auth_token").expanduser()
        token.parent.mkdir(parents=True, exist_ok=True)
        kept = token.exists() or os.access(token.parent, os.W_OK)
    except (OSError, RuntimeError):  # RuntimeError: nobody knows where the home is
        kept = False
    if not kept:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
