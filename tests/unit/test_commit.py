"""Shards: written, committed once, and never read when their bytes are not those that were committed."""

from __future__ import annotations

import hashlib
import io
import threading
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pq
import pytest

from batchgen.commit import (
    Manifest,
    check_conservation,
    commit_shard,
    committed,
    manifest_key,
    new_attempt,
    read_manifest,
    read_shard,
)
from batchgen.errors import BatchgenError, CorruptShard, PlanMismatch, StoreError
from batchgen.rows import OK, REJECTED, ResultRow, SeedRow
from batchgen.store import LocalStore
from tests.helpers import chaos_job, planned, resealed


def results(seeds: list[SeedRow], text: str = "q") -> list[ResultRow]:
    """One ok row a seed, the first rejected."""
    return [
        ResultRow(
            seed,
            "",
            REJECTED if i == 0 else OK,
            "empty_completion" if i == 0 else None,
            {} if i == 0 else {"instruction": text, "response": "a"},
            "chaos",
            "stop",
            3,
            2,
        )
        for i, seed in enumerate(seeds)
    ]


@pytest.fixture
def run(tmp_path: Path):
    plan, seeds, store = planned(chaos_job(tmp_path))
    shard = plan.shards[0]
    return plan, shard, seeds.slice(shard.start, shard.stop), store


def test_the_first_attempt_wins_and_the_loser_deletes_only_its_own_file(run):
    plan, shard, rows, store = run
    first, won = commit_shard(store, plan, shard, new_attempt(), rows, results(rows, "first"))
    assert won
    second, won = commit_shard(store, plan, shard, new_attempt(), rows, results(rows, "second"))
    assert not won
    assert second == first
    assert list(store.list("attempts")) == [first.key]
    table = read_shard(store, plan, committed(store, plan)[0])
    assert table["instruction"].to_pylist()[1:] == ["first"] * (len(rows) - 1)


def test_a_retried_commit_of_the_same_attempt_is_a_success(run):
    plan, shard, rows, store = run
    attempt = new_attempt()
    manifest, _ = commit_shard(store, plan, shard, attempt, rows, results(rows))
    again, won = commit_shard(store, plan, shard, attempt, rows, results(rows))
    assert won
    assert again == manifest
    assert read_shard(store, plan, manifest).num_rows == len(rows)


def test_of_many_attempts_at_once_exactly_one_wins(run):
    plan, shard, rows, store = run
    wins = []

    def attempt(number: int) -> None:
        wins.append(commit_shard(store, plan, shard, new_attempt(), rows, results(rows, str(number)))[1])

    threads = [threading.Thread(target=attempt, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == [False] * 7 + [True]


def test_a_manifest_counts_seed_rows_and_reasons(run):
    plan, shard, rows, store = run
    manifest, _ = commit_shard(store, plan, shard, new_attempt(), rows, results(rows))
    assert (manifest.ok, manifest.rejected, manifest.rows) == (len(rows) - 1, 1, len(rows))
    assert manifest.reasons == {"empty_completion": 1}
    assert (manifest.input_tokens, manifest.output_tokens) == (3 * len(rows), 2 * len(rows))


def test_rejected_rows_are_kept_with_their_reason(run):
    plan, shard, rows, store = run
    manifest, _ = commit_shard(store, plan, shard, new_attempt(), rows, results(rows))
    first = read_shard(store, plan, manifest).to_pylist()[0]
    assert (first["outcome"], first["reason"], first["instruction"]) == ("rejected", "empty_completion", None)


@pytest.mark.parametrize(
    ("break_", "told"),
    [
        ("missing", "1 missing, 0 foreign, 0 twice"),
        ("twice", "0 missing, 0 foreign, 1 twice"),
        ("foreign", "0 missing, 1 foreign, 0 twice"),
    ],
)
def test_rows_that_are_not_conserved_are_never_written(run, break_: str, told: str):
    plan, shard, rows, store = run
    made = results(rows)
    made = {
        "missing": made[1:],
        "twice": [*made, made[-1]],
        "foreign": [*made, replace(made[0], seed=SeedRow("f" * 32, 9, {}))],
    }[break_]
    with pytest.raises(BatchgenError, match=f"not conserved: {told}"):
        commit_shard(store, plan, shard, new_attempt(), rows, made)
    assert list(store.list("attempts")) == []
    check_conservation(rows, results(rows))


def test_rows_are_written_in_the_order_of_seed_rows_and_branches(run):
    plan, shard, rows, store = run
    made = results(rows)
    branches = ["10", "2.1", "2.0.3", "2.0.11", "0"]
    made = [*(replace(made[1], branch=branch) for branch in branches), *reversed(made[2:]), made[0]]
    manifest, _ = commit_shard(store, plan, shard, new_attempt(), rows, made)
    table = read_shard(store, plan, manifest)
    order = list(zip(table["row_index"].to_pylist(), table["branch"].to_pylist(), strict=True))
    assert order == [(0, ""), *[(1, branch) for branch in ["0", "2.0.3", "2.0.11", "2.1", "10"]]] + [
        (index, "") for index in range(2, len(rows))
    ]


class CollectingStore(LocalStore):
    """In which garbage collection comes by right after an upload."""

    def upload(self, key: str, path: Path) -> None:
        super().upload(key, path)
        self.delete(key)


def test_an_attempt_that_lost_and_was_collected_has_lost(run):
    plan, shard, rows, store = run
    first, _ = commit_shard(store, plan, shard, new_attempt(), rows, results(rows))
    assert commit_shard(CollectingStore(store.root), plan, shard, new_attempt(), rows, results(rows)) == (first, False)


def test_a_file_that_is_gone_before_its_shard_is_committed_is_the_store_s_failure(run):
    plan, shard, rows, store = run
    with pytest.raises(StoreError, match="was written and is gone"):
        commit_shard(CollectingStore(store.root), plan, shard, new_attempt(), rows, results(rows))
    assert committed(store, plan) == {}


class ForgetfulStore(LocalStore):
    """Which does not give back what was written."""

    def __init__(self, folder: Path, change) -> None:
        super().__init__(folder)
        self._change = change

    def open(self, key: str) -> BinaryIO:
        return self._change(self.path(key))


class FailingFile(io.BytesIO):
    def read(self, *_: object) -> bytes:
        raise OSError(5, "Input/output error")


def shortened(path: Path) -> BinaryIO:
    pq.write_table(pq.read_table(path).slice(1), path)
    return path.open("rb")


def renamed(path: Path) -> BinaryIO:
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([name.upper() for name in table.column_names]), path)
    return path.open("rb")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda path: FailingFile(), StoreError, "cannot be read back: Input/output error"),
        (shortened, StoreError, "rows were written and .* read back"),
        (renamed, BatchgenError, "columns that were read back are not the plan's"),
    ],
)
def test_what_is_read_back_otherwise_is_not_committed(run, change, error: type[Exception], message: str):
    plan, shard, rows, store = run
    with pytest.raises(error, match=message):
        commit_shard(ForgetfulStore(store.root, change), plan, shard, new_attempt(), rows, results(rows))
    assert committed(store, plan) == {}


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(data[:-7])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "bit":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    else:  # a shorter, valid file
        pq.write_table(pq.read_table(path).slice(0, 2), path)


@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "bit", "shorter"])
def test_damaged_bytes_are_named_and_never_read(run, kind: str):
    plan, shard, rows, store = run
    manifest, _ = commit_shard(store, plan, shard, new_attempt(), rows, results(rows))
    damage(store.path(manifest.key), kind)
    with pytest.raises(CorruptShard, match="shard 000000"):
        read_shard(store, plan, manifest)


def test_rows_that_are_not_those_of_their_manifest_are_never_read(run):
    plan, shard, rows, store = run
    manifest, _ = commit_shard(store, plan, shard, new_attempt(), rows, results(rows))
    with pytest.raises(CorruptShard, match=r"shard 000000: .* has other rows or columns"):
        read_shard(store, plan, replace(manifest, rows=manifest.rows + 1))
    with pytest.raises(CorruptShard, match="shard 000000: its rows are not those that its manifest counts"):
        read_shard(store, plan, replace(manifest, ok=manifest.ok - 1, rejected=manifest.rejected + 1))
    renamed(store.path(manifest.key)).close()
    data = store.read(manifest.key)
    sealed = replace(manifest, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(CorruptShard, match=r"shard 000000: .* has other rows or columns"):
        read_shard(store, plan, sealed)


class OccupiedStore(LocalStore):
    """In which a manifest is there to a write and gone to a read, as that of a shard revoked in between."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return False


def test_a_manifest_that_is_gone_when_its_winner_is_asked_for_loses_nothing(run):
    plan, shard, rows, store = run
    with pytest.raises(StoreError, match="exists and cannot be read"):
        commit_shard(OccupiedStore(store.root), plan, shard, new_attempt(), rows, results(rows))
    assert len(list(store.list("attempts"))) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"key": "../../etc/passwd"},
        {"attempt": "../x"},
        {"format": 1},
        {"start": 5},
        {"shard": 3},
        {"ok": "4"},
        {"notes": 1},
    ],
)
def test_a_manifest_that_is_not_the_shard_s_is_refused(run, change: dict):
    plan, shard, rows, store = run
    commit_shard(store, plan, shard, new_attempt(), rows, results(rows))
    data = store.path(manifest_key(shard)).read_bytes()
    with pytest.raises(CorruptShard, match="shard 000000"):
        Manifest.parse(resealed(data, **change), shard)
    with pytest.raises(CorruptShard, match="shard 000000: its manifest cannot be read"):
        Manifest.parse(data[:-5], shard)


def test_a_shard_of_another_plan_stops_the_run(run):
    plan, shard, rows, store = run
    commit_shard(store, plan, shard, new_attempt(), rows, results(rows))
    other = replace(plan, inputs={**plan.inputs, "seed": 9})
    with pytest.raises(PlanMismatch, match="another plan"):
        read_manifest(store, other, shard)


def test_a_store_that_cannot_be_written_is_a_store_error(run, tmp_path: Path):
    plan, shard, rows, _ = run
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(StoreError):
        commit_shard(LocalStore(blocked), plan, shard, new_attempt(), rows, results(rows))
