"""Shard files, manifests, and what counts as committed.

An attempt writes a file of its own; creating the shard's manifest is the commit, and only the first attempt can do it.
Rows are read only through manifests, which carry the file's row count and SHA-256: a Parquet file that was left half
written has a valid footer, and a flipped bit in a page reads back silently.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchgen.errors import BatchgenError, CorruptShard, PlanMismatch, StoreError
from batchgen.faultpoints import reach
from batchgen.parquet import read_parquet
from batchgen.paths import scratch_folder
from batchgen.plan import Plan, Shard
from batchgen.progress import Progress
from batchgen.records import RecordError, read_record, seal
from batchgen.rows import OK, ResultRow, SeedRow
from batchgen.store.base import ObjectStore

FORMAT = 2
_COMMIT_KEY = re.compile(r"commits/(\d{6,})/(\d{4,})\.(json|revoked)")


@dataclass(frozen=True)
class Manifest:
    """A committed shard.

    Args:
        key: of the attempt's file.
        rows: rows of the file.
        ok: seed rows with at least one ok row.
        rejected: seed rows with none.
        reasons: rejected rows of the file by reason.
        notes: of the file's rows, by code.
        size: of the file, in bytes.
        software: versions by package of what generated the rows; none where the manifest is older than this field.
    """

    shard: int
    start: int
    stop: int
    attempt: str
    key: str
    fingerprint: str
    rows: int
    ok: int
    rejected: int
    reasons: Mapping[str, int]
    input_tokens: int
    output_tokens: int
    size: int
    sha256: str
    notes: Mapping[str, int] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)

    def dump(self) -> bytes:
        """The bytes of a manifest file."""
        return seal(asdict(self), FORMAT)

    @property
    def progress(self) -> Progress:
        """What the shard holds."""
        tokens = self.output_tokens
        return Progress(self.ok, self.rejected, self.reasons, self.input_tokens, tokens, self.notes, tokens)

    @classmethod
    def parse(cls, data: bytes, shard: Shard) -> Manifest:
        """The manifest of a shard.

        Raises:
            CorruptShard: it is torn, changed, of another format, or names a file that is not the shard's.
        """
        try:
            manifest = read_record(cls, data, FORMAT)
        except RecordError as error:
            raise CorruptShard(f"shard {shard.name}: its manifest {error}") from error
        if manifest.key != attempt_key(shard, manifest.attempt) or "/" in manifest.attempt:
            raise CorruptShard(f"shard {shard.name}: manifest names a file that is not this shard's")
        if (manifest.shard, manifest.start, manifest.stop) != (shard.index, shard.start, shard.stop):
            raise CorruptShard(f"shard {shard.name}: manifest of another slice of the seed rows")
        return manifest


def new_attempt() -> str:
    """A name for an attempt, never used before."""
    return uuid.uuid4().hex


def attempt_key(shard: Shard, attempt: str) -> str:
    """Where an attempt's rows are."""
    return f"attempts/{shard.name}/{attempt}.parquet"


def manifest_key(shard: Shard, generation: int = 0) -> str:
    """Where a shard's manifest is; a shard has a generation more for every time that it was revoked."""
    return f"commits/{shard.name}/{generation:04d}.json"


def revocation_key(shard: Shard, generation: int) -> str:
    """What says that a manifest counts no more; the manifest itself is never touched."""
    return f"commits/{shard.name}/{generation:04d}.revoked"


def generation_of(store: ObjectStore, shard: Shard) -> int:
    """How often a shard was revoked: the generation that its next commit belongs to.

    An attempt asks before it writes anything, so that one that began before a revocation cannot commit after it.
    """
    return sum(key.endswith(".revoked") for key in store.list(f"commits/{shard.name}"))


def check_conservation(seeds: Sequence[SeedRow], results: Iterable[ResultRow]) -> None:
    """Every seed row has an outcome, no branch stands twice, and no other row is there.

    Raises:
        BatchgenError: a defect of batchgen; nothing is committed.
    """
    expected = {seed.id for seed in seeds}
    branches = Counter((result.seed.id, result.branch) for result in results)
    found = {row for row, _ in branches}
    if found != expected or max(branches.values(), default=1) > 1:
        raise BatchgenError(
            f"rows are not conserved: {len(expected - found)} missing, {len(found - expected)} foreign, "
            f"{sum(count - 1 for count in branches.values())} twice"
        )


def commit_shard(
    store: ObjectStore,
    plan: Plan,
    shard: Shard,
    attempt: str,
    seeds: Sequence[SeedRow],
    results: Sequence[ResultRow],
    software: Mapping[str, str] | None = None,
) -> tuple[Manifest, bool]:
    """Writes an attempt's rows and commits them, unless another attempt was first.

    Args:
        software: versions by package, for the manifest.

    Returns:
        The shard's manifest, and whether it is this attempt's.

    Raises:
        PlanMismatch: the shard is committed by a run of another plan.
        StoreError: the store failed; nothing of this attempt is deleted.
    """
    check_conservation(seeds, results)
    generation = generation_of(store, shard)
    key = attempt_key(shard, attempt)
    _upload(store, key, plan.schema, results)
    reach("attempt uploaded")
    try:
        size, sha256, table = _read_back(store, key)
    except FileNotFoundError:
        # Garbage collection takes the file of an attempt that has lost already.
        winner = read_manifest(store, plan, shard, generation)
        if winner is None:
            raise StoreError(f"{key} was written and is gone") from None
        return winner, False
    if table.num_rows != len(results):
        raise StoreError(f"{key}: {len(results)} rows were written and {table.num_rows} read back")
    if not table.schema.equals(plan.schema):
        raise BatchgenError(f"{key}: the columns that were read back are not the plan's")
    manifest = replace(_manifest(plan, shard, attempt, seeds, results, size, sha256), software=software or {})
    reach("attempt read back")
    if store.put_if_absent(manifest_key(shard, generation), manifest.dump()):
        reach("shard committed")
        return manifest, True
    winner = read_manifest(store, plan, shard, generation)
    if winner is None:
        raise StoreError(f"{manifest_key(shard, generation)} exists and cannot be read")
    if winner.attempt == attempt:
        return winner, True
    store.delete(key)
    return winner, False


def _upload(store: ObjectStore, key: str, schema: pa.Schema, results: Sequence[ResultRow]) -> None:
    """Writes an attempt's rows, in the order of their seed rows and branches."""
    ordered = sorted(results, key=lambda result: (result.seed.index, _branch_order(result.branch)))
    with scratch_folder() as scratch:
        path = scratch / "rows.parquet"
        try:
            table = pa.Table.from_pylist([result.record() for result in ordered], schema=schema)
            # Nobody goes by a shard's statistics, of which some would be wrong: see `parquet.with_statistics`.
            pq.write_table(table, path, compression="zstd", write_page_checksum=True, write_statistics=False)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error} (TMPDIR names another folder)") from error
        reach("attempt written")
        store.upload(key, path)


def _manifest(
    plan: Plan,
    shard: Shard,
    attempt: str,
    seeds: Sequence[SeedRow],
    results: Sequence[ResultRow],
    size: int,
    sha256: str,
) -> Manifest:
    ok = {result.seed.id for result in results if result.outcome == OK}
    return Manifest(
        shard=shard.index,
        start=shard.start,
        stop=shard.stop,
        attempt=attempt,
        key=attempt_key(shard, attempt),
        fingerprint=plan.fingerprint_of(shard),
        rows=len(results),
        ok=len(ok),
        rejected=len(seeds) - len(ok),
        reasons=dict(sorted(Counter(r.reason for r in results if r.reason is not None).items())),
        input_tokens=sum(result.input_tokens for result in results),
        output_tokens=sum(result.output_tokens for result in results),
        size=size,
        sha256=sha256,
        notes=dict(sorted(Counter(note for result in results for note in result.notes).items())),
    )


def _branch_order(branch: str) -> tuple[int, ...]:
    return tuple(int(part) for part in branch.split(".")) if branch else ()


def _read_back(store: ObjectStore, key: str) -> tuple[int, str, pa.Table]:
    """(bytes, SHA-256, rows) of a file as the store gives it back."""
    with store.open(key) as file:
        try:
            data = file.read()
        except OSError as error:
            raise StoreError(f"{key} cannot be read back: {error.strerror or error}") from error
    return len(data), hashlib.sha256(data).hexdigest(), read_parquet(data)


def read_manifest(store: ObjectStore, plan: Plan, shard: Shard, generation: int = 0) -> Manifest | None:
    """A shard's manifest of a generation, or None where there is none.

    Raises:
        CorruptShard: it cannot be read.
        PlanMismatch: it belongs to another plan.
    """
    data = store.read(manifest_key(shard, generation))
    return parse_manifest(data, plan, shard) if data is not None else None


def parse_manifest(data: bytes, plan: Plan, shard: Shard) -> Manifest:
    """A shard's manifest from its bytes; raises as `read_manifest` does."""
    manifest = Manifest.parse(data, shard)
    if manifest.fingerprint != plan.fingerprint_of(shard):
        raise PlanMismatch(f"shard {shard.name} was committed by a run of another plan")
    return manifest


def committed(store: ObjectStore, plan: Plan) -> dict[int, Manifest]:
    """Manifests of all committed shards, by shard index."""
    current = current_generations(store)
    shards = [shard for shard in plan.shards if shard.name in current]
    manifests = store.read_many([manifest_key(shard, current[shard.name]) for shard in shards])
    return {
        shard.index: parse_manifest(data, plan, shard)
        for shard, data in zip(shards, manifests, strict=True)
        if data is not None
    }


def current_generations(store: ObjectStore) -> dict[str, int]:
    """The generation whose manifest counts, by the name of every shard that has one."""
    manifests: set[tuple[str, int]] = set()
    revoked: Counter[str] = Counter()
    for key in store.list("commits"):
        if (found := _COMMIT_KEY.fullmatch(key)) is None:
            continue  # not ours: an editor's backup, somebody's notes
        name, number, kind = found.groups()
        if kind == "revoked":
            revoked[name] += 1
        else:
            manifests.add((name, int(number)))
    return {name: number for name, number in manifests if number == revoked[name]}


def read_shard(store: ObjectStore, plan: Plan, manifest: Manifest) -> pa.Table:
    """The rows of a committed shard, as `check_shard` gives them."""
    return check_shard(plan, manifest, store.read(manifest.key))


def check_shard(plan: Plan, manifest: Manifest, data: bytes | None) -> pa.Table:
    """The rows of a committed shard, once every byte has been checked.

    Args:
        data: what is at the manifest's key.

    Raises:
        CorruptShard: names the shard and what is wrong.
    """
    name = plan.shards[manifest.shard].name
    if data is None:
        raise CorruptShard(f"shard {name}: {manifest.key} is missing")
    if len(data) != manifest.size or hashlib.sha256(data).hexdigest() != manifest.sha256:
        raise CorruptShard(f"shard {name}: {manifest.key} is not what was committed (size or SHA-256 differs)")
    table = read_parquet(data)
    if table.num_rows != manifest.rows or not table.schema.equals(plan.schema):
        raise CorruptShard(f"shard {name}: {manifest.key} has other rows or columns than the plan says")
    seeds = table["row_index"]
    ok = pc.count_distinct(seeds.filter(pc.equal(table["outcome"], OK))).as_py()
    if (ok, pc.count_distinct(seeds).as_py() - ok) != (manifest.ok, manifest.rejected):
        raise CorruptShard(f"shard {name}: its rows are not those that its manifest counts")
    return table
