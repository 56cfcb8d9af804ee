"""The store contract, on every backend."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from batchgen.errors import StoreError
from batchgen.store import LocalStore, ObjectStore, open_store

ROUNDS = 40
RACERS = 8


@pytest.fixture(params=["local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return {"local": lambda: open_store(str(tmp_path / "store"))}[request.param]()


def test_what_is_put_is_read(store: ObjectStore):
    assert store.read("a/b") is None
    assert store.put_if_absent("a/b", b"one")
    assert store.read("a/b") == b"one"
    with store.open("a/b") as file:
        assert file.read() == b"one"


def test_nothing_is_replaced(store: ObjectStore):
    assert store.put_if_absent("a", b"one")
    assert not store.put_if_absent("a", b"two")
    assert store.read("a") == b"one"


def test_uploads_appear_whole_and_their_source_is_gone(store: ObjectStore, tmp_path: Path):
    source = tmp_path / "file"
    source.write_bytes(b"x" * 1000)
    store.upload("deep/er/key", source)
    assert store.read("deep/er/key") == b"x" * 1000
    assert not source.exists()


def test_keys_are_listed_in_order_without_unfinished_ones(store: ObjectStore, tmp_path: Path):
    for key in ("c/2", "c/10", "c/1", "d/1"):
        store.put_if_absent(key, b"")
    if isinstance(store, LocalStore):
        store.path("c/.1.partial").write_bytes(b"")
    assert list(store.list("c")) == ["c/1", "c/10", "c/2"]
    assert list(store.list("nothing")) == []


def test_deleting_is_idempotent(store: ObjectStore):
    store.put_if_absent("a", b"")
    store.delete("a")
    store.delete("a")
    assert store.read("a") is None
    with pytest.raises(FileNotFoundError):
        store.open("a")


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "", "a/./b", "a\0b", ".."])
def test_no_key_leaves_the_store(store: ObjectStore, key: str):
    with pytest.raises(ValueError, match="not a key"):
        store.put_if_absent(key, b"")


def _race(location: str, barrier, wins) -> None:
    store = open_store(location)
    for round_ in range(ROUNDS):
        barrier.wait()
        if store.put_if_absent(f"race/{round_}", multiprocessing.current_process().name.encode()):
            with wins.get_lock():
                wins[round_] += 1


def test_of_many_processes_exactly_one_creates_an_object(store: ObjectStore):
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(RACERS), context.Array("i", ROUNDS)
    racers = [context.Process(target=_race, args=(store.location, barrier, wins)) for _ in range(RACERS)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert list(wins) == [1] * ROUNDS


def test_a_store_that_fails_says_so(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write"):
        LocalStore(tmp_path / "file").put_if_absent("a", b"")
