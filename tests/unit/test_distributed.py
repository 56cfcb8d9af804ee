"""Ray that does not answer, without Ray."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.exceptions import RaySystemError

from batchgen.distributed import fleet as fleets
from batchgen.distributed.cluster import ask, connected, usable_cores
from batchgen.errors import ClusterLost, UserError
from batchgen.fleet import HostConfig, Placement
from tests.helpers import chaos_job, planned


def test_what_ray_gives_or_raises_comes_back_and_silence_ends_in_time():
    assert asyncio.run(ask(max, 1, 3)) == 3
    with pytest.raises(ZeroDivisionError):
        asyncio.run(ask(lambda: 1 / 0))
    never = threading.Event()
    with pytest.raises(TimeoutError):
        asyncio.run(ask(never.wait, seconds=0.1))
    never.set()


def test_cores_that_this_process_may_not_use_do_not_count():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    plan, _, store = planned(chaos_job(tmp_path))
    config = HostConfig(chaos_job(tmp_path), plan, store.location, 0)

    def room_of(placement: Placement, machines: Callable[[], tuple[int, ...]]) -> int:
        monkeypatch.setattr(fleets, "gpus_of_machines", machines)
        monkeypatch.setattr(fleets, "ask", lambda function: ask(function, seconds=0.1))
        return asyncio.run(fleets.RayFleet(config, None, placement, local=False).room())

    return room_of


def test_there_is_room_for_as_many_engines_as_fit_or_as_were_asked_for(room):
    assert room(Placement(1, gpus=2, elastic=True), lambda: (0, 3, 4)) == 3
    assert room(Placement(5), lambda: (0,)) == 5

    def cannot_say() -> tuple[int, ...]:
        raise RaySystemError("for now")

    assert room(Placement(1, gpus=1, elastic=True), cannot_say) == 1


def test_a_cluster_that_is_gone_is_told(room):
    with pytest.raises(ClusterLost, match="Ray has no machine left"):
        room(Placement(1), lambda: ())
    never = threading.Event()
    with pytest.raises(ClusterLost, match="Ray's head does not answer any more"):
        room(Placement(1), never.wait)
    never.set()


def test_what_is_loaded_once_an_engine_is_up_stays_out_of_garbage_collections():
    class Host:
        async def start(self) -> int:
            return 7

    actor = object.__new__(fleets._Actor)
    actor._host = Host()  # type: ignore[assignment]
    gc.unfreeze()
    try:
        assert asyncio.run(actor.start()) == 7
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("address", [None, "auto"])
def test_whatever_ray_raises_as_it_starts_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, address: str | None):
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nMore of that.")  # Ray's own, and as bare

    monkeypatch.setattr("ray.init", init)
    said = r"Ray.*: The current node timed out during startup\. \("
    with pytest.raises(UserError, match=said), connected(address, None):
        pass


def test_a_machine_that_is_no_node_of_the_cluster_is_told_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.distributed.cluster.find_gcs_addresses", set)  # other tests' Ray may run here
    monkeypatch.setattr("batchgen.distributed.cluster.canonicalize_bootstrap_address", lambda address: address)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        said = rf"--address {address}: this machine is no node of that cluster: no Ray runs on it.*batchgen submit"
        with pytest.raises(UserError, match=said), connected(address, None):
            pass
