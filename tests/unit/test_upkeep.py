"""verify, revoke and gc: what is found, what is repaired, and what is left alone."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from batchgen import run
from batchgen.cli import main
from batchgen.commit import Manifest, committed, current_generations
from batchgen.drive import Status
from batchgen.errors import CorruptShard, PlanMismatch, Stopped
from batchgen.merge import latest_version, merge_run, version
from batchgen.merge.version import Version
from batchgen.plan import Plan, Shard
from batchgen.records import RecordError, read_record
from batchgen.settle import read_plan
from batchgen.store import LocalStore, open_store
from batchgen.upkeep import collect, verify
from tests.faults import ledger
from tests.helpers import chaos_job, resealed
from tests.s3server import environment, s3_server


@pytest.fixture
def job(tmp_path: Path):
    job = chaos_job(tmp_path / "run", shard_rows=10)
    run(job, in_process=True)
    return job


def store_and_plan(job):
    store = LocalStore(job.output)
    return store, read_plan(store)


def data_file(job, shard: int = 1) -> Path:
    store, plan = store_and_plan(job)
    return store.path(committed(store, plan)[shard].key)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def hole(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:200] = bytes(100)
    path.write_bytes(data)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def shorten(path: Path) -> None:
    """A shorter file that is valid Parquet."""
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 4), path)


DATA_FAULTS = {
    "truncated": truncate,
    "emptied": lambda path: path.write_bytes(b""),
    "holed": hole,
    "one bit flipped": flip,
    "replaced by a shorter valid one": shorten,
    "gone": Path.unlink,
}


def edit(**changes):
    def change(path: Path) -> None:
        path.write_bytes(resealed(path.read_bytes(), **changes))

    return change


MANIFEST_FAULTS = {
    "torn": lambda path: path.write_text(path.read_text()[:50]),
    "of another version": edit(format=99),
    "with a path that escapes": edit(key="../../etc/passwd"),
    "with an attempt that escapes": edit(attempt="../000000/x", key="attempts/000001/../000000/x.parquet"),
    "with another attempt's path": edit(key="attempts/000000/x.parquet"),
    "of another plan": edit(fingerprint="0" * 32),
    "that counts other rows": edit(ok=9, rejected=1),
    "of another slice": edit(start=0),
    "one bit flipped": flip,
    "changed by hand": lambda path: path.write_text(path.read_text().replace('"rejected":0', '"rejected":1')),
}


def test_a_sound_run_is_verified(job, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", job.output]) == 0
    out = capsys.readouterr().out
    assert "seed rows expected                       40" in out
    assert main(["verify", job.output, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["good"], found["sound"], found["ok"], found["lost"], found["twice"]) == (
        True,
        found["shards"],
        40,
        0,
        0,
    )


def test_rows_that_are_not_committed_yet_are_missing_and_nothing_is_wrong(job, capsys: pytest.CaptureFixture[str]):
    assert main(["revoke", job.output, "1"]) == 0
    assert main(["verify", job.output, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert {name: found[name] for name in ("good", "rows", "ok", "missing", "lost", "ids_differ")} == {
        "good": True,
        "rows": 40,
        "ok": 30,
        "missing": 10,
        "lost": 0,
        "ids_differ": False,
    }


def rewritten(job, change) -> None:
    """Shard 1 with other rows, and a manifest that counts them: what no digest would give away."""
    store, plan = store_and_plan(job)
    manifest = committed(store, plan)[1]
    path = store.path(manifest.key)
    table = change(pq.read_table(path).cast(plan.schema))
    pq.write_table(table, path)
    ok = {row["row_index"] for row in table.to_pylist() if row["outcome"] == "ok"}
    data = path.read_bytes()
    counted = {
        "rows": table.num_rows,
        "ok": len(ok),
        "rejected": len(set(table["row_index"].to_pylist()) - ok),
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    edit(**counted)(store.path("commits/000001/0000.json"))


def foreign(table: pa.Table, index: int = 35) -> pa.Table:
    at = table.schema.get_field_index("row_index")
    return table.set_column(at, table.schema.field(at), pa.array([index, *range(11, 20)], table.schema.field(at).type))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda table: table.slice(3), {"lost": 3, "twice": 0, "foreign": 0, "ok": 37, "rejected": 0}),
        (
            lambda table: pa.concat_tables([table, table.slice(0, 2)]),
            {"lost": 0, "twice": 2, "foreign": 0, "ok": 40, "rejected": 0},
        ),
        *(
            (partial(foreign, index=index), {"lost": 1, "twice": 0, "foreign": 1, "ok": 39, "rejected": 0})
            for index in (9, 20, 35)
        ),
    ],
)
def test_rows_that_are_not_conserved_are_counted(tmp_path: Path, change, found: dict[str, int]):
    job = chaos_job(tmp_path / "run", shard_rows=10)
    run(job, in_process=True)
    store, plan = store_and_plan(job)
    assert (len(plan.shards), verify(store, plan).good) == (len(committed(store, plan)), True)
    rewritten(job, change)
    result = verify(store, plan)
    assert not result.good
    assert {name: getattr(result, name) for name in found} == found
    assert result.sound == len(plan.shards) - 1
    assert main(["verify", job.output]) == 1


def test_a_row_with_one_good_branch_is_ok_and_one_with_none_is_rejected(tmp_path: Path):
    job = chaos_job(
        tmp_path / "run",
        source={"rows": [{"instruction": text, "l": ["bad", text, "bad"]} for text in ("good", "bad")]},
        model={"path": "chaos", "engine": {"empty_on": "bad"}},
        steps=[
            {"task": "text_generation", "explode": "l -> x"},
            {"task": "text_generation", "input_mappings": {"instruction": "x"}, "output_mappings": {"generation": "y"}},
        ],
    )
    run(job, in_process=True)
    found = verify(*store_and_plan(job))
    assert (found.good, found.ok, found.rejected, found.versions) == (True, 1, 1, 1)


@pytest.mark.parametrize("fault", DATA_FAULTS)
def test_corrupt_data_is_named_published_by_nobody_and_repaired(job, fault: str, capsys, tmp_path: Path):
    before = (tmp_path / "run" / "dataset" / "data").glob("*.parquet")
    published = {path.name: path.read_bytes() for path in before}
    DATA_FAULTS[fault](data_file(job))
    store, plan = store_and_plan(job)
    with pytest.raises(CorruptShard, match="shard 000001"):
        merge_run(store, plan, job)
    assert main(["merge", job.output]) == 1
    assert "shard 000001" in capsys.readouterr().err
    assert main(["verify", job.output]) == 1
    assert "shard 000001" in capsys.readouterr().err
    after = (tmp_path / "run" / "dataset" / "data").glob("*.parquet")
    assert {path.name: path.read_bytes() for path in after} == published
    assert main(["revoke", job.output, "1"]) == 0
    assert verify(store, plan).missing == 10
    run(job, in_process=True)
    assert verify(store, plan).good
    ledger.record(f"committed file {fault}; revoked", 1, tmp_path / "run", 40)
    # Chaos text depends on the row alone, so the repaired run is the one that was.
    after = (tmp_path / "run" / "dataset" / "data").glob("*.parquet")
    assert {path.name: path.read_bytes() for path in after} == published


@pytest.mark.parametrize("fault", MANIFEST_FAULTS)
def test_a_bad_manifest_is_named_and_repaired(job, fault: str, capsys, tmp_path: Path):
    MANIFEST_FAULTS[fault](tmp_path / "run" / "commits" / "000001" / "0000.json")
    versions = sorted((tmp_path / "run" / "versions").glob("*"))
    # A merge takes a manifest of another plan for a run that is not the job's, which is the user's to mend.
    codes = {"merge": 2 if fault == "of another plan" else 1, "verify": 1}
    for command, code in codes.items():
        assert main([command, job.output]) == code
        assert "shard 000001" in capsys.readouterr().err
    assert sorted((tmp_path / "run" / "versions").glob("*")) == versions
    assert main(["revoke", job.output, "000001"]) == 0
    run(job, in_process=True)
    assert main(["verify", job.output]) == 0
    ledger.record(f"manifest {fault}; revoked", 1, tmp_path / "run", 40)


RECORDS = {
    "plan.json": Plan.parse,
    "commits/000001/0000.json": lambda data: Manifest.parse(data, Shard(1, 10, 20)),
    "versions/0001.json": lambda data: read_record(Version, data, version.FORMAT),
}


@pytest.mark.parametrize("name", RECORDS)
def test_no_bit_of_a_record_changes_unseen(job, name: str):
    record, read = LocalStore(job.output).read(name), RECORDS[name]
    read(record)
    for at in range(len(record)):
        for bit in range(8):
            changed = record[:at] + bytes([record[at] ^ 1 << bit]) + record[at + 1 :]
            with pytest.raises((PlanMismatch, CorruptShard, RecordError)):
                read(changed)


@pytest.mark.parametrize("fault", ["truncated", "emptied", "holed", "one bit flipped", "gone"])
def test_a_damaged_version_is_named_and_merged_anew(job, fault: str, capsys, tmp_path: Path):
    store, plan = store_and_plan(job)
    first = latest_version(store)
    (name,) = (name for name in first.files if name.endswith(".parquet"))
    sound = store.read(first.files[name].key)
    DATA_FAULTS[fault](store.path(first.files[name].key))
    for command in (["verify", job.output], ["publish", job.output, "--to", str(tmp_path / "out")]):
        assert main(command) == 1
        assert f"version 1: {name} is" in (said := capsys.readouterr().err)
        assert "remove versions/0001.json and merge again" in said
    assert not (tmp_path / "out").exists()
    result = run(job, in_process=True)
    assert (result.version.number, store.read(result.version.files[name].key)) == (2, sound)
    assert verify(store, plan).corrupt_versions, "what is named stays until somebody removes it"
    store.delete("versions/0001.json")
    assert main(["verify", job.output]) == 0
    assert main(["gc", job.output]) == 0
    ledger.record(f"version's file {fault}; merged again", 1, tmp_path / "run", 40)


def test_a_damaged_version_whose_record_is_removed_is_merged_into_its_place(job, capsys):
    store, plan = store_and_plan(job)
    first = latest_version(store)
    (name,) = (name for name in first.files if name.endswith(".parquet"))
    flip(store.path(first.files[name].key))
    store.delete("versions/0001.json")
    assert main(["merge", job.output]) == 0
    assert latest_version(store) == first
    assert verify(store, plan).good


def test_a_plan_that_is_changed_can_be_written_again(job, capsys, tmp_path: Path):
    store, plan = store_and_plan(job)
    flip(tmp_path / "run" / "plan.json")
    with pytest.raises(PlanMismatch, match="remove it, and the job's own command writes it again"):
        run(job, in_process=True)
    store.delete("plan.json")
    assert run(job, in_process=True).version.number == 1
    assert store_and_plan(job)[1] == plan
    assert main(["verify", job.output]) == 0


def test_a_revoked_manifest_stays_and_a_second_revocation_needs_a_second_commit(job, capsys):
    store, plan = store_and_plan(job)
    before = store.read("commits/000001/0000.json")
    assert main(["revoke", job.output, "1"]) == 0
    assert main(["revoke", job.output, "1"]) == 2
    assert "is not committed" in capsys.readouterr().err
    assert main(["revoke", job.output, "77"]) == 2
    assert "'77' is not a shard of this run" in capsys.readouterr().err
    run(job, in_process=True)
    assert store.read("commits/000001/0000.json") == before
    assert current_generations(store)["000001"] == 1
    assert len(committed(store, plan)) == len(plan.shards)


def test_gc_removes_only_what_no_manifest_names(job, tmp_path: Path, capsys):
    store, plan = store_and_plan(job)
    lost = tmp_path / "run" / "attempts" / "000001" / ("f" * 32 + ".parquet")
    lost.write_bytes(b"lost")
    staged = tmp_path / "run" / "versions" / "0001" / "dead" / "data" / "x.parquet"
    staged.parent.mkdir(parents=True)
    staged.write_bytes(b"unfinished")
    next_merge = tmp_path / "run" / "versions" / "0002" / "live" / "x.parquet"
    next_merge.parent.mkdir(parents=True)
    next_merge.write_bytes(b"a merge that may be under way")
    half = tmp_path / "run" / "attempts" / "000003" / f".x.{'a' * 32}"
    half.write_bytes(b"half")
    # A shard that is revoked is not committed: an attempt at it may be about to be.
    main(["revoke", job.output, "2"])
    coming = tmp_path / "run" / "attempts" / "000002" / ("e" * 32 + ".parquet")
    coming.write_bytes(b"about to be committed")
    files = {path for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert main(["gc", job.output, "--dry-run"]) == 0
    assert "would remove 3 files, 18 bytes" in capsys.readouterr().out
    assert {path for path in (tmp_path / "run").rglob("*") if path.is_file()} == files
    assert main(["gc", job.output]) == 0
    assert {path for path in (tmp_path / "run").rglob("*") if path.is_file()} == files - {lost, staged, half}
    assert collect(store, plan) == (0, 0)


def test_gc_removes_what_killed_publishers_left_once_it_is_old(job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, plan = store_and_plan(job)
    names = [f".dataset.{'a' * 32}", f".dataset.{'b' * 32}.old", ".dataset.mine", f".other.{'c' * 32}"]
    folders = [tmp_path / "run" / name for name in names]
    for folder in folders:
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "x").write_bytes(b"rows")
    assert collect(store, plan) == (0, 0), "they may be at work"
    monkeypatch.setattr("batchgen.publish._DAY", -10.0)
    assert collect(store, plan, dry_run=True) == collect(store, plan) == (2, 8)
    assert [folder.exists() for folder in folders] == [False, False, True, True]
    assert load_dataset(str(tmp_path / "run" / "dataset"), split="train").num_rows > 0


def test_gc_takes_nothing_from_a_merge_that_lost_its_number_to_another(job, monkeypatch: pytest.MonkeyPatch):
    store, plan = store_and_plan(job)
    merge = job.merge.model_copy(update={"near": None})
    first, second = (job.model_copy(update={"merge": merge, "name": name}) for name in ("first", "second"))

    def between(point: str) -> None:
        if point == "version uploaded":
            monkeypatch.undo()
            assert merge_run(store, plan, first).number == 2, "another merge comes first"
            assert collect(store, plan)[0] > 0, "what was uploaded under its number"

    monkeypatch.setattr("batchgen.merge.version.reach", between)
    version = merge_run(store, plan, second)
    assert version.number == 3
    assert all(store.size(file.key) == file.size for file in version.files.values())


def test_a_shard_that_is_revoked_under_a_run_is_generated_by_the_same_command(tmp_path: Path):
    job = chaos_job(tmp_path / "run", shard_rows=10)
    revoked = []

    def watch(status: Status) -> None:
        if status.shards_done == status.shards and not revoked:
            revoked.append(main(["revoke", job.output, "1"]))

    with pytest.raises(Stopped, match="1 shard was revoked while the run went on"):
        run(job, in_process=True, watch=watch)
    assert revoked == [0]
    assert run(job, in_process=True).version.kept > 0
    assert verify(*store_and_plan(job)).good


@pytest.mark.parametrize(
    "command",
    [
        lambda store, plan, job: committed(store, plan),
        lambda store, plan, job: verify(store, plan),
        lambda store, plan, job: merge_run(store, plan, job),
        lambda store, plan, job: collect(store, plan),
    ],
    ids=["status", "verify", "merge", "gc"],
)
def test_no_command_reads_a_bucket_s_manifests_one_by_one(command, monkeypatch: pytest.MonkeyPatch):
    """A read is a journey of some 50 ms: a quarter of an hour for 20,000 shards."""
    with s3_server() as server:
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)
        job = chaos_job("s3://bucket/run", shard_rows=8)
        run(job, in_process=True)
        store = open_store(job.output)
        plan = read_plan(store)
        under_way: list[int] = [0]
        lock = threading.Lock()

        def count(method: str, key: str) -> None:
            if method == "GET" and "/commits/" in key:
                with lock:
                    under_way.append(under_way[-1] + 1)
                time.sleep(0.05)
                with lock:
                    under_way.append(under_way[-1] - 1)

        server.fault = count
        command(store, plan, job)
        assert max(under_way) > 1


OUT_OF_SIGHT = "commits/000001/0000.json"


class Blind(LocalStore):
    """NFS may list a file that it does not find just then."""

    def read(self, key: str) -> bytes | None:
        return None if key == OUT_OF_SIGHT else super().read(key)


def test_gc_keeps_all_that_a_manifest_out_of_sight_may_name(job):
    _, plan = store_and_plan(job)
    assert collect(Blind(job.output), plan) == (0, 0)
    assert data_file(job).exists()


def test_a_manifest_that_is_listed_and_not_there_is_named(job):
    _, plan = store_and_plan(job)
    found = verify(Blind(job.output), plan)
    assert found.corrupt == ["shard 000001: its manifest is gone"]


def test_gc_keeps_what_a_first_merge_has_uploaded(job, tmp_path: Path):
    """It may be about to name it."""
    store, plan = store_and_plan(job)
    uploaded = [file.key for file in latest_version(store).files.values()]
    (tmp_path / "run" / "versions" / "0001.json").unlink()
    assert collect(store, plan) == (0, 0)
    assert all(map(store.size, uploaded))


def test_gc_keeps_all_that_a_torn_revoked_manifest_may_have_named(job, tmp_path: Path):
    (tmp_path / "run" / "commits" / "000001" / "0000.json").write_text("{")
    main(["revoke", job.output, "1"])
    run(job, in_process=True)
    store, plan = store_and_plan(job)
    kept = list((tmp_path / "run" / "attempts" / "000001").glob("*"))
    assert len(kept) == 2
    collect(store, plan)
    assert list((tmp_path / "run" / "attempts" / "000001").glob("*")) == kept


def test_short_commands_end_as_they_should(job):
    """Arrow's reading threads aborted the process at its end, now and then."""
    command = [sys.executable, "-m", "batchgen.cli", "verify", job.output]
    assert [subprocess.run(command, capture_output=True).returncode for _ in range(8)] == [0] * 8
