"""Ray that does not answer, without Ray."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RaySystemError

from batchgen.commit import committed
from batchgen.distributed import fleet as fleets
from batchgen.distributed import process
from batchgen.distributed.cluster import _start, ask, connected, usable_cores
from batchgen.errors import BatchgenError, ClusterLost, EngineDead, EngineStartError, Stopped, UserError
from batchgen.fleet import Answer, HostConfig, Placement, Work
from batchgen.host import EngineHost
from batchgen.progress import Progress
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
    assert room(Placement(1, gpus=1, elastic=True, share=3), lambda: (0, 1, 2)) == 9
    assert room(Placement(5), lambda: (0,)) == 5

    def cannot_say() -> tuple[int, ...]:
        raise RaySystemError("for now")

    assert room(Placement(1, gpus=1, elastic=True), cannot_say) == 1


def test_a_cluster_that_is_gone_is_told(room):
    with pytest.raises(ClusterLost, match="Ray has no machine left"):
        room(Placement(1), lambda: ())
    never = threading.Event()
    with pytest.raises(ClusterLost, match="Ray's head no longer answers"):
        room(Placement(1), never.wait)
    never.set()


@pytest.mark.parametrize(
    ("there", "threads", "then"),
    [("1", 3, "3"), (None, 3, "3"), ("1", None, None), (None, None, None), ("4", None, "4")],
    ids=["shared cores", "shared cores, nothing set", "what Ray set is taken back", "nothing set", "the user's own"],
)
def test_an_engine_has_its_share_of_the_cores_or_chooses_itself(
    monkeypatch: pytest.MonkeyPatch, there: str | None, threads: int | None, then: str | None
):
    monkeypatch.setenv("OMP_NUM_THREADS", there or "")
    if there is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    process.set_threads(threads)
    assert os.environ.get("OMP_NUM_THREADS") == then


@pytest.mark.parametrize(
    ("now", "most", "then"),
    [
        (1024, 4096, 4096),
        (1024, 524_288, 65_536),
        (1024, resource.RLIM_INFINITY, 65_536),
        (100_000, 524_288, 100_000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY),
        (4096, 4096, 4096),
    ],
)
def test_an_engine_may_have_as_many_files_open_as_it_may_allow_itself(
    monkeypatch: pytest.MonkeyPatch, now: int, most: int, then: int
):
    limits = {resource.RLIMIT_NOFILE: (now, most)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    process.allow_open_files()
    assert limits == {resource.RLIMIT_NOFILE: (then, most)}


def test_what_is_loaded_once_an_engine_is_up_stays_out_of_garbage_collections_which_are_rare():
    class Host:
        async def start(self) -> int:
            return 7

    actor = object.__new__(fleets._Actor)
    actor._host, actor._calls = Host(), {}  # type: ignore[assignment]
    gc.unfreeze()
    before = gc.get_threshold()
    try:
        assert asyncio.run(actor.start()) == 7
        assert gc.get_freeze_count() > 1000
        assert gc.get_threshold() == (20_000, *before[1:])
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("address", "reason", "kind"),
    [
        (None, "no space left on device", UserError),
        (None, "The current node timed out during startup", Stopped),
        ("auto", "The current node timed out during startup", UserError),
    ],
)
def test_whatever_ray_raises_as_it_starts_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, address: str | None, reason: str, kind: type[BatchgenError]
):
    """A machine that is too busy is no bad input: the same command may get further."""

    def init(**_: object) -> None:
        raise Exception(f"{reason}.\nMore of that.")  # Ray's own, and as bare

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(kind, match=rf"Ray.*: {reason}\.( \(|$)") as caught, connected(address, None):
        pass
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("reasons", "tries"),
    [
        (["The current node timed out during startup. This"], 2),
        (["The current node timed out during startup. This"] * 2, 2),
        (["no space left"], 1),
        ([], 1),
    ],
)
def test_a_ray_that_is_too_slow_to_start_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, reasons: list[str], tries: int
):
    left, asked = list(reasons), []

    def init(**options: object) -> None:
        asked.append(options)
        if left:
            raise Exception(left.pop(0))

    monkeypatch.setattr("ray.init", init)
    if len(reasons) == tries:
        with pytest.raises(Exception, match=reasons[-1]):
            _start(num_cpus=1)
    else:
        _start(num_cpus=1)
    assert asked == [{"address": "local", "num_cpus": 1}] * tries


def test_a_machine_that_is_no_node_of_the_cluster_is_told_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.distributed.cluster.find_gcs_addresses", set)  # other tests' Ray may run here
    monkeypatch.setattr("batchgen.distributed.cluster.canonicalize_bootstrap_address", lambda address: address)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        said = rf"--address {address}: this machine is not a node of that cluster: no Ray runs on it.*batchgen submit"
        with pytest.raises(UserError, match=said), connected(address, None):
            pass


class Method:
    """A method of an actor out of a script: what it gives or raises, one after the other, and the last for ever."""

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = list(outcomes)
        self.asked: list[tuple[object, ...]] = []

    async def remote(self, *arguments: object) -> object:
        self.asked.append(arguments)
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


UNAVAILABLE = ActorUnavailableError("RpcError: Connection reset by peer", None)
DONE = Answer("done", Progress(ok=3))


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., fleets.RayFleet]:
    """A fleet of one engine, whose actor has these methods and this fate."""
    plan, seeds, store = planned(chaos_job(tmp_path))
    config = HostConfig(chaos_job(tmp_path), plan, store.location, 0)
    monkeypatch.setattr(fleets, "_FATE_SECONDS", 1.0)
    monkeypatch.setattr(fleets, "_GRACE_SECONDS", 1)

    def fleet_of(fate: str, **methods: Method) -> fleets.RayFleet:
        monkeypatch.setattr(fleets, "fate_of", lambda actor: fate)
        fleet = fleets.RayFleet(config, None, Placement(1), local=False)
        fleet._actors[0] = SimpleNamespace(**methods)
        return fleet

    fleet_of.work = Work(plan.shards[0], seeds.slice(0, 1))  # type: ignore[attr-defined]
    return fleet_of


def test_a_call_whose_answer_the_network_lost_is_made_again_and_is_the_same_call(fleet):
    run, placed = Method(UNAVAILABLE, UNAVAILABLE, DONE), Method(UNAVAILABLE, None)
    assert asyncio.run(fleet("alive", run=run, placed=placed).run(0, fleet.work)) == DONE
    assert run.asked == [run.asked[0]] * 3
    other = Method(DONE)
    asyncio.run(fleet("alive", run=other).run(0, fleet.work))
    assert other.asked[0][0] != run.asked[0][0], "another call has another key"
    start = Method(UNAVAILABLE, 7)
    assert asyncio.run(fleet("alive", start=start, placed=Method(None)).start(0)) == 7


@pytest.mark.parametrize(
    ("fate", "error", "kind"),
    [
        ("alive", UNAVAILABLE, "engine_dead"),
        ("died", UNAVAILABLE, "engine_dead"),
        ("lost", UNAVAILABLE, "machine_dead"),
        ("lost", ActorDiedError(), "machine_dead"),
        ("died", ActorDiedError(), "engine_dead"),
    ],
)
def test_an_actor_that_answers_no_more_is_given_up(fleet, fate: str, error: Exception, kind: str):
    run, placed = Method(error), Method(UNAVAILABLE)
    assert asyncio.run(fleet(fate, run=run, placed=placed).run(0, fleet.work)).kind == kind
    assert len(run.asked) == 1
    start = fleet(fate, start=Method(error), placed=placed).start(0)
    with pytest.raises(
        EngineDead if kind == "machine_dead" else EngineStartError, match=r"the engine's (machine|process)"
    ):
        asyncio.run(start)


def test_an_actor_that_says_it_is_dead_is_asked_no_more(fleet):
    """A call to an actor whose process is gone for good is never made again, whatever it seems to answer."""
    run = Method(ActorDiedError())
    assert asyncio.run(fleet("alive", run=run, placed=Method(None)).run(0, fleet.work)).kind == "engine_dead"
    assert len(run.asked) == 1


def test_an_engine_has_the_turn_that_it_took_until_it_is_up_or_says_why_it_got_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr("batchgen.distributed.turn._FOLDER", str(tmp_path))
    there: list[str] = []

    class Host:
        async def start(self) -> int:
            there.extend(path.name for path in tmp_path.iterdir())
            return 7

    async def started() -> int | EngineStartError:
        actor = object.__new__(fleets._Actor)
        actor._host, actor._calls, actor._where = Host(), {}, "on n1: "  # type: ignore[assignment]
        await asyncio.gather(actor.take_turn(), actor.take_turn())
        return await actor.start()

    lock = tmp_path / f"batchgen-{os.getuid()}-gpu-3.lock"
    assert asyncio.run(started()) == 7
    assert there == [lock.name]
    assert not lock.exists()
    lock.symlink_to("/")
    refused = asyncio.run(started())
    assert isinstance(refused, EngineStartError)
    assert str(refused).startswith(f"on n1: cannot make {lock}: ")


def test_an_actor_makes_a_call_once_however_often_it_is_asked_for(fleet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fleets, "_KEPT", 2)

    class Host:
        runs = 0

        async def run(self, work: Work) -> Answer:
            Host.runs += 1
            await asyncio.sleep(0.01)
            return Answer("done", Progress(ok=Host.runs))

    async def go() -> None:
        actor = object.__new__(fleets._Actor)
        actor._host, actor._calls = Host(), {}  # type: ignore[assignment]
        lost = asyncio.create_task(actor.run("a", fleet.work))
        await asyncio.sleep(0)
        again = asyncio.create_task(actor.run("a", fleet.work))
        lost.cancel()
        assert await again == await actor.run("a", fleet.work) == Answer("done", Progress(ok=1))
        for number, key in enumerate("bcdef", 2):
            assert await actor.run(key, fleet.work) == Answer("done", Progress(ok=number))
        assert await actor.run("f", fleet.work) == Answer("done", Progress(ok=6))
        assert Host.runs == 6
        assert list(actor._calls) == ["d", "e", "f"], "old answers are dropped"

    asyncio.run(go())


@pytest.mark.parametrize("draining", [False, True])
def test_an_actor_is_told_whether_more_is_to_come_as_it_is_asked_how_far_it_is(fleet, draining: bool):
    class Host:
        progress = Progress(ok=3)

        def drain(self, draining: bool) -> None:
            self.draining = draining

    actor = object.__new__(fleets._Actor)
    actor._host = Host()  # type: ignore[assignment]
    asked = fleet("alive", progress=SimpleNamespace(remote=actor.progress))
    assert asyncio.run(asked.progress(0, draining)) == Progress(ok=3)
    assert actor._host.draining is draining


def test_the_death_of_an_actor_is_told_in_a_line():
    died = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: _Actor\n"
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
        "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the "
        "process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) ..."
    )
    assert fleets._cause(RuntimeError(died)) == (
        "the engine's process died: Worker unexpectedly exits with a connection error code 2. End of file. "
        "(dmesg there tells whether memory ran out)"
    )
    low = "Task was killed due to the node running low on memory.\nMemory on the node was 11GB / 12GB"
    assert fleets._cause(RuntimeError(low)) == f"the engine's process died: {low.splitlines()[0]}"
    assert fleets._cause(RuntimeError()) == "the engine's process died: RuntimeError"


def test_an_engine_that_is_ended_commits_nothing_of_what_it_was_at(tmp_path: Path):
    """Rows that go on would be rejected for want of an engine, and their shards be committed."""
    job = chaos_job(tmp_path, source={"count": 4}, model={"path": "chaos", "engine": {"latency": 0.05}})
    plan, seeds, store = planned(job)

    class Ended(EngineHost):
        async def stop(self) -> None:
            await super().stop()
            await asyncio.sleep(1)

    async def go() -> tuple[int, bool]:
        actor = object.__new__(fleets._Actor)
        actor._host, actor._calls = Ended(HostConfig(job, plan, store.location, 0)), {}
        await actor._host.start()
        work = Work(plan.shards[0], seeds.slice(0, 4))
        running = asyncio.create_task(actor.run("key", work))
        await asyncio.sleep(0.01)
        await actor.stop()
        return len(committed(store, plan)), running.cancelled()

    assert asyncio.run(go()) == (0, True)
