"""Looking after a run: checks every byte, has corrupt shards generated again, removes what nobody reads."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from batchgen.commit import (
    Manifest,
    check_shard,
    current_generations,
    manifest_key,
    parse_manifest,
    revocation_key,
)
from batchgen.errors import CorruptShard, PlanMismatch, StoreError, UserError
from batchgen.merge.version import check_version, latest_version, read_version, version_numbers
from batchgen.plan import Plan, Shard
from batchgen.publish import leftovers
from batchgen.rows import OK
from batchgen.store import is_remote
from batchgen.store.base import ObjectStore
from batchgen.telling import Tell, untold

_STAGED = re.compile(r"versions/(\d{4,})/")


@dataclass
class Verification:
    """What `verify` found.

    Args:
        rows: seed rows of the run.
        ok: seed rows with at least one ok row in a sound shard.
        rejected: seed rows with none.
        missing: seed rows of shards that are not committed.
        lost: seed rows of committed shards that no row is of.
        twice: rows of a committed shard that stand there more than once.
        foreign: rows of a committed shard that are of another shard.
        corrupt: what is wrong, a line for every unsound shard.
        versions: dataset versions whose files are what was merged.
        corrupt_versions: what is wrong, a line for every other.
    """

    rows: int
    shards: int
    sound: int = 0
    bytes: int = 0
    ok: int = 0
    rejected: int = 0
    missing: int = 0
    lost: int = 0
    twice: int = 0
    foreign: int = 0
    corrupt: list[str] = field(default_factory=list)
    versions: int = 0
    corrupt_versions: list[str] = field(default_factory=list)
    ids_differ: bool = False

    @property
    def good(self) -> bool:
        """Whether nothing that is committed is wrong."""
        return not (self.corrupt or self.corrupt_versions or self.lost or self.twice or self.foreign or self.ids_differ)


def verify(store: ObjectStore, plan: Plan, tell: Tell = untold) -> Verification:
    """Reads every committed byte and counts every row.

    The ids of all rows, in order, give the fingerprint of the seeds that the plan holds: where every shard is
    committed, the run has exactly the rows that it was planned with.

    Args:
        tell: told after every shard how far it is.
    """
    found = Verification(plan.rows, len(plan.shards))
    ids = hashlib.blake2b(digest_size=16)
    manifests = _sound_manifests(store, plan, found)
    objects = store.read_many([each.key for each in manifests])
    for place, (manifest, data) in enumerate(zip(manifests, objects, strict=True)):
        tell(f"{place:,} of {len(manifests):,} shards verified")
        shard = plan.shards[manifest.shard]
        try:
            table = check_shard(plan, manifest, data)
        except CorruptShard as error:
            found.corrupt.append(str(error))
            continue
        outcomes: dict[int, tuple[str, bool]] = {}
        branches = Counter[tuple[int, str]]()
        columns = (table[name].to_pylist() for name in ("row_index", "row_id", "branch", "outcome"))
        for index, row_id, branch, outcome in zip(*columns, strict=True):
            branches[(index, branch)] += 1
            outcomes[index] = (row_id, outcome == OK or outcomes.get(index, ("", False))[1])
        inside = [outcomes[index] for index in range(shard.start, shard.stop) if index in outcomes]
        good = sum(ok for _, ok in inside)
        twice = sum(count - 1 for count in branches.values())
        foreign = sum(1 for index, _ in branches if not shard.start <= index < shard.stop)
        lost = shard.stop - shard.start - len(inside)
        found.twice += twice
        found.foreign += foreign
        found.lost += lost
        found.ok += good
        found.rejected += len(inside) - good
        found.bytes += manifest.size
        for row_id, _ in inside:
            ids.update(bytes.fromhex(row_id))
        found.sound += not (twice or foreign or lost)
    whole = not (found.missing or found.corrupt)
    found.ids_differ = whole and ids.hexdigest() != plan.inputs["seeds"]
    for number in sorted(version_numbers(store)):
        try:
            check_version(store, read_version(store, number))
            found.versions += 1
        except CorruptShard as error:
            found.corrupt_versions.append(str(error))
    return found


def _sound_manifests(store: ObjectStore, plan: Plan, found: Verification) -> list[Manifest]:
    """The manifests that can be read, in the order of their shards; what is wrong or missing is added to `found`."""
    current = current_generations(store)
    shards = [shard for shard in plan.shards if shard.name in current]
    found.missing += plan.rows - sum(shard.stop - shard.start for shard in shards)
    keys = [manifest_key(shard, current[shard.name]) for shard in shards]
    manifests = []
    for shard, data in zip(shards, store.read_many(keys), strict=True):
        try:
            if data is None:
                raise CorruptShard(f"shard {shard.name}: its manifest is gone")
            manifests.append(parse_manifest(data, plan, shard))
        except (CorruptShard, PlanMismatch) as error:
            found.corrupt.append(str(error))
    return manifests


def revoke(store: ObjectStore, plan: Plan, name: str) -> Shard:
    """Makes a committed shard be generated again by the next `run`; deletes nothing.

    Raises:
        UserError: there is no such shard, or it is not committed.
    """
    shard = next((shard for shard in plan.shards if shard.name == name.zfill(6)), None)
    if shard is None:
        raise UserError(f"{name!r} is not a shard of this run; its shards are 000000 to {plan.shards[-1].name}")
    generation = current_generations(store).get(shard.name)
    if generation is None:
        raise UserError(f"shard {shard.name} is not committed; the next run generates it")
    store.put_if_absent(revocation_key(shard, generation), b"revoked\n")
    return shard


def garbage(store: ObjectStore, plan: Plan) -> Iterator[tuple[str, int]]:
    """(key, bytes) of what no manifest names and nobody can come to name.

    An attempt's file is garbage once its shard is committed by another attempt; before that it may be about to be.
    Files are listed before the manifests, so that an attempt which begins meanwhile is not among them.
    """
    attempts, versions = ([*store.list(name), *store.unfinished(name)] for name in ("attempts", "versions"))
    staged = [(key, int(found[1])) for key in versions if (found := _STAGED.match(key))]
    # Read once: a shard that is committed after this is none whose attempts could be garbage.
    current = current_generations(store)
    by_name = {shard.name: shard for shard in plan.shards}
    shards = [
        (by_name[name], number)
        for name, generation in current.items()
        if name in by_name  # else not ours
        for number in range(generation + 1)
    ]
    named: set[str] = set()
    manifests = store.read_many([manifest_key(shard, number) for shard, number in shards])
    for (shard, _), data in zip(shards, manifests, strict=True):
        try:
            manifest = parse_manifest(data, plan, shard) if data is not None else None
        except CorruptShard:
            manifest = None
        # Of one that is torn, or not in sight just now, whatever it names is kept: all of the shard's files.
        named |= {manifest.key} if manifest else {key for key in attempts if key.split("/")[1] == shard.name}
    for key in attempts:
        if key not in named and key.split("/")[1] in current.keys() & by_name:
            yield key, store.size(key)
    latest = latest_version(store)
    if latest is None:
        return
    kept = {file.key for number in version_numbers(store) for file in read_version(store, number).files.values()}
    for key, number in staged:
        if key not in kept and number <= latest.number:
            yield key, store.size(key)


def collect(store: ObjectStore, plan: Plan, dry_run: bool = False) -> tuple[int, int]:
    """Removes garbage; returns (objects, bytes).

    Args:
        dry_run: only counts it.
    """
    objects = size = 0
    for key, bytes_ in list(garbage(store, plan)):
        if not dry_run:
            store.delete(key)
        objects, size = objects + 1, size + bytes_
    if not is_remote(store.location):
        try:
            for path in leftovers(Path(store.location) / "dataset"):
                files = [file for file in path.rglob("*") if file.is_file()]
                objects, size = objects + len(files), size + sum(file.stat().st_size for file in files)
                if not dry_run:
                    shutil.rmtree(path)
        except OSError as error:
            raise StoreError(f"cannot delete {error.filename}: {error.strerror or error}") from error
    return objects, size
