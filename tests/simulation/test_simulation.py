"""The commit protocol under everything at once; and mutants of it, each of which has to be caught."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from batchgen import commit, upkeep
from batchgen.errors import CorruptShard, PlanMismatch, StoreError
from batchgen.plan import Plan
from tests.faults import ledger
from tests.simulation import sim
from tests.simulation.sim import Violation, simulate, world
from tests.simulation.store import AFTER, BEFORE, SimStore

SEEDS = int(os.environ.get("BATCHGEN_SIMULATION_SEEDS", "5000"))
# A mutant is caught long before this.
MUTANT_SEEDS = 1500


@pytest.fixture(scope="module")
def whole_world():
    return world()


def simulate_all(seeds: range) -> Counter[str]:
    """Runs seeds; returns how often each fault was injected."""
    injected: Counter[str] = Counter()
    whole_world = world()
    for seed in seeds:
        injected.update(simulate(seed, *whole_world))
    return injected


@pytest.mark.alone
def test_no_seed_breaks_a_promise(whole_world):
    workers = os.cpu_count() or 1
    # Spawned: a fork would copy a test process with threads of its own in it.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        parts = pool.map(simulate_all, [range(start, min(start + 250, SEEDS)) for start in range(0, SEEDS, 250)])
        injected = sum(parts, Counter[str]())
    wanted = {
        "engine killed",
        "engine hangs",
        "driver killed",
        "second driver",
        "zombie",
        "process killed",
        "answer lost",
        "shard given back",
    }
    wanted |= {"garbage collection", "revocation", "merge", "rows added", f"store {BEFORE}", f"store {AFTER}"}
    assert set(injected) >= wanted
    # Counters that are added up leave out what is zero.
    found, twice = injected.pop(sim.FOUND), injected.pop(sim.TWICE, 0)
    assert (found, twice) == (whole_world[1].rows * SEEDS, 0)
    assert all(count > SEEDS / 100 for count in injected.values())
    for fault, count in sorted(injected.items()):
        # All of them happen in the same worlds.
        ledger.note(ledger.Line(f"simulation: {fault}", count, whole_world[1].rows * SEEDS, found, twice))


def test_a_seed_replays(whole_world):
    assert simulate(7, *whole_world) == simulate(7, *whole_world)


def shared_data_path(patch: pytest.MonkeyPatch) -> None:
    """All attempts at a shard write one file."""
    patch.setattr(commit, "attempt_key", lambda shard, attempt: f"attempts/{shard.name}/rows.parquet")


def overwriting_manifest(patch: pytest.MonkeyPatch) -> None:
    """The last attempt wins."""

    def put(self: SimStore, key: str, data: bytes) -> bool:
        self._at(lambda: self.objects.__setitem__(key, data))
        return True

    patch.setattr(SimStore, "put_if_absent", put)


def check_then_write(patch: pytest.MonkeyPatch) -> None:
    """Looks whether a manifest is there, and then writes it."""

    def put(self: SimStore, key: str, data: bytes) -> bool:
        if self.read(key) is not None:
            return False
        self._at(lambda: self.objects.__setitem__(key, data))
        return True

    patch.setattr(SimStore, "put_if_absent", put)


def delete_on_unknown_outcome(patch: pytest.MonkeyPatch) -> None:
    """Takes an error for a failure and cleans up."""
    real = commit.commit_shard

    def careless(store: SimStore, plan: Any, shard: Any, attempt: str, *rest: Any) -> Any:
        try:
            return real(store, plan, shard, attempt, *rest)
        except StoreError:
            store.delete(commit.attempt_key(shard, attempt))
            raise

    patch.setattr(commit, "commit_shard", careless)


def manifest_before_close(patch: pytest.MonkeyPatch) -> None:
    """The file appears only after its manifest."""
    held: dict[str, bytes] = {}

    def upload(self: SimStore, key: str, path: Any) -> None:
        held[key] = path.read_bytes()

    real_open, real_put = SimStore.open, SimStore.put_if_absent

    def opened(self: SimStore, key: str) -> Any:
        import io

        return io.BytesIO(held[key]) if key in held and key not in self.objects else real_open(self, key)

    def put(self: SimStore, key: str, data: bytes) -> bool:
        created = real_put(self, key, data)
        for name in [name for name in held if name.split("/")[1] in key]:
            self._at(lambda name=name: self.objects.setdefault(name, held[name]))
            held.pop(name, None)
        return created

    patch.setattr(SimStore, "upload", upload)
    patch.setattr(SimStore, "open", opened)
    patch.setattr(SimStore, "put_if_absent", put)


def collects_attempts_in_flight(patch: pytest.MonkeyPatch) -> None:
    """Takes every file that no manifest names for garbage."""

    def garbage(store: SimStore, plan: Any) -> Any:
        named = {manifest.key for manifest in commit.committed(store, plan).values()}
        for key in list(store.list("attempts")):
            if key not in named:
                yield key, 0

    patch.setattr(upkeep, "garbage", garbage)


def manifests_of_their_driver_s_plan(patch: pytest.MonkeyPatch) -> None:
    """A manifest is of the plan that its driver knew, and not of the one that brought its shard."""
    patch.setattr(Plan, "fingerprint_of", lambda self, shard: self.fingerprint)


def rows_sliced_anew(patch: pytest.MonkeyPatch) -> None:
    """A run that is given more rows gets the shards of a run that had them all from its beginning."""
    patch.setattr(Plan, "behind", lambda self, earlier: replace(self, earlier=earlier))


MUTANTS: list[Callable[[pytest.MonkeyPatch], None]] = [
    shared_data_path,
    overwriting_manifest,
    check_then_write,
    delete_on_unknown_outcome,
    manifest_before_close,
    collects_attempts_in_flight,
    manifests_of_their_driver_s_plan,
    rows_sliced_anew,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mutant_of_the_protocol_is_caught(mutant, whole_world, monkeypatch: pytest.MonkeyPatch):
    mutant(monkeypatch)
    with pytest.raises((Violation, KeyError, FileNotFoundError, PlanMismatch, CorruptShard)):
        for seed in range(MUTANT_SEEDS):
            simulate(seed, *whole_world)
