"""Dataset versions of a run: `versions/NNNN.json` names a version's files, and is written once.

Data files of a version have names that are its own, so that a merge which dies leaves nothing that anybody reads. The
same run, merged again with the same settings, gives the version that exists already.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from batchgen.card import render_card
from batchgen.commit import committed
from batchgen.errors import BatchgenError, CorruptShard, StoreError, UserError
from batchgen.faultpoints import reach
from batchgen.job import Job, Merge
from batchgen.merge.rows import Merged, Reader, merge_rows
from batchgen.parquet import with_statistics
from batchgen.paths import scratch_folder
from batchgen.plan import Plan
from batchgen.records import RecordError, read_record, seal
from batchgen.rows import canonical_json
from batchgen.software import described
from batchgen.store.base import ObjectStore
from batchgen.telling import Tell, untold

FORMAT = 1
ROWS_PER_FILE = 250_000
ROWS_PER_GROUP = 20_000
CARD = "README.md"
_PIECE = 8 << 20
_VERSION_KEY = re.compile(r"versions/(\d{4,})\.json")
_DATA_FILE = re.compile(r"data/train-\d{5,}-of-\d{5,}\.parquet")


@dataclass(frozen=True)
class DataFile:
    """Where a file of a version is, and what is in it."""

    key: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Version:
    """A dataset version.

    Args:
        number: from 1.
        files: by their paths within the dataset.
        read: rows in the committed shards.
        kept: rows of the dataset.
        dropped: rows left out, by reason.
        shards: committed shards that went in, of `of_shards`.
    """

    number: int
    fingerprint: str
    files: Mapping[str, DataFile]
    merge: Mapping[str, Any]
    read: int
    kept: int
    dropped: Mapping[str, int]
    shards: int
    of_shards: int

    @property
    def content(self) -> dict[str, Any]:
        """What makes two versions the same: everything but their numbers and their files' places."""
        files = {path: file.sha256 for path, file in self.files.items()}
        return {**{k: v for k, v in asdict(self).items() if k not in ("number", "files")}, "files": files}


def _version_key(number: int) -> str:
    return f"versions/{number:04d}.json"


def merge_run(store: ObjectStore, plan: Plan, job: Job, partial: bool = False, tell: Tell = untold) -> Version:
    """Merges what is committed into a new version, or finds the version that it would be.

    Args:
        partial: merge even where shards are missing.
        tell: told about once a second how far it is.

    Raises:
        UserError: shards are missing.
        CorruptShard: committed bytes are not what was committed.
        BatchgenError: no row is left, of which no version is made: it would be the newest one.
    """
    manifests = committed(store, plan)
    if not manifests:
        raise UserError(f"{store.location}: no shard is committed yet; there is nothing to merge")
    if len(manifests) < len(plan.shards) and not partial:
        raise UserError(
            f"{store.location}: {len(manifests)} of {len(plan.shards)} shards are committed; resume the run, "
            "or merge what is there with --partial"
        )
    merged = merge_rows(store, plan, job, manifests, tell)
    if not merged.rows:
        # `dropped` shows what the newest version leaves out, which has other settings where there is one.
        look = "" if version_numbers(store) else f". To look at them: batchgen dropped {shlex.quote(job.output)}"
        raise _nothing_left(merged, look)
    details: dict[str, Any] = {
        "fingerprint": plan.fingerprint,
        "merge": _settings(merged.merge),
        "read": merged.shards.rows,
        "kept": merged.rows,
        "dropped": merged.selection.dropped,
        "shards": len(manifests),
        "of_shards": len(plan.shards),
    }
    before = latest_version(store)
    while True:
        number = before.number + 1 if before else 1
        with scratch_folder() as scratch:
            try:
                paths = _write_files(job, plan, merged, details, scratch)
            except OSError as error:
                place = f"cannot write the dataset in {scratch}, from where it goes to the run"
                raise StoreError(f"{place}: {error} (TMPDIR names another folder)") from error
            # A version's files lie under its own number, so where another merge took it they are uploaded anew: what
            # lies under a taken number and is not named never will be, and a garbage collection may remove it.
            files = {name: _described(path, f"versions/{number:04d}", name) for name, path in paths.items()}
            version = Version(number=number, files=files, **details)
            if before is not None and before.content == version.content and _is_sound(store, before):
                return before
            for name, path in paths.items():
                store.upload(files[name].key, path)
        reach("version uploaded")
        if store.put_if_absent(_version_key(number), seal(asdict(version), FORMAT)):
            reach("version named")
            return version
        before = read_version(store, number)


def _settings(merge: Merge) -> dict[str, Any]:
    """Settings as a version keeps them. A key that came after the first runs is left out where it says nothing."""
    later = ("keep", "decontaminate", "prefer", "limit")
    return {name: value for name, value in merge.model_dump(mode="json").items() if value or name not in later}


def _nothing_left(merged: Merged, look: str) -> BatchgenError:
    dropped = merged.selection.dropped
    reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
    hint = "; merge.drop_truncated: false keeps those that were cut at max_tokens" * ("truncated" in dropped)
    return BatchgenError(
        f"the merge left out all {merged.shards.rows} rows ({reasons}); there is nothing to publish{hint}{look}"
    )


def _write_files(job: Job, plan: Plan, merged: Merged, details: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """A dataset's card and data files by their path in it."""
    schema, rows = merged.schema, merged.rows
    reader = Reader(merged.tables(), schema)
    number = max(1, -(-rows // ROWS_PER_FILE))
    paths = {}
    for index in range(number):
        name = f"data/train-{index:05d}-of-{number:05d}.parquet"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        stop = min(rows, (index + 1) * ROWS_PER_FILE)
        with pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            use_content_defined_chunking=True,
            write_page_index=True,
            write_statistics=with_statistics(schema),
        ) as writer:
            for start in range(index * ROWS_PER_FILE, stop, ROWS_PER_GROUP):
                writer.write_table(reader.take(min(stop - start, ROWS_PER_GROUP)))
        paths[name] = path
    digest = hashlib.sha256(canonical_json([_sha256(path) for path in paths.values()])).hexdigest()[:32]
    card = folder / CARD
    card.write_text(
        render_card(job, plan, schema, details, digest, described(merged.shards.manifests)), encoding="utf-8"
    )
    return {CARD: card, **paths}


def _described(path: Path, prefix: str, name: str) -> DataFile:
    sha256 = _sha256(path)
    return DataFile(key=f"{prefix}/{sha256[:16]}/{name}", size=path.stat().st_size, sha256=sha256)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def latest_version(store: ObjectStore) -> Version | None:
    """The newest version of a run, or None where there is none."""
    numbers = version_numbers(store)
    return read_version(store, max(numbers)) if numbers else None


def version_numbers(store: ObjectStore) -> list[int]:
    """The numbers of a run's versions."""
    return [int(found[1]) for key in store.list("versions") if (found := _VERSION_KEY.fullmatch(key))]


def read_version(store: ObjectStore, number: int) -> Version:
    """A version of a run.

    Raises:
        CorruptShard: its record is torn or changed.
    """
    data = store.read(_version_key(number))
    try:
        version = read_record(Version, data or b"", FORMAT)
    except RecordError as error:
        raise CorruptShard(f"{_version_key(number)} {error}; remove it and merge again") from error
    if version.number != number:
        raise CorruptShard(
            f"{_version_key(number)} says that it is version {version.number}; remove it and merge again"
        )
    if not all(name == CARD or _DATA_FILE.fullmatch(name) for name in version.files):
        raise CorruptShard(f"{_version_key(number)} names a file that no dataset has; remove it and merge again")
    return version


def check_version(store: ObjectStore, version: Version) -> None:
    """Reads every byte of a version's files.

    Raises:
        CorruptShard: one of them is not what was merged.
    """
    for name, file in version.files.items():
        with _opened(store, version, name) as source:
            # typeshed asks for `readinto`, which BinaryIO leaves out and every store's files have.
            digest = hashlib.file_digest(source, "sha256")  # type: ignore[arg-type]
        if digest.hexdigest() != file.sha256:
            raise _damaged(version, name, "is not what was merged")


def read_file(store: ObjectStore, version: Version, name: str) -> bytes:
    """A file of a version.

    Raises:
        CorruptShard: it is not what was merged.
    """
    with _opened(store, version, name) as source:
        data = source.read()
    if hashlib.sha256(data).hexdigest() != version.files[name].sha256:
        raise _damaged(version, name, "is not what was merged")
    return data


def copy_file(store: ObjectStore, version: Version, name: str, target: Path) -> None:
    """Writes a file of a version to this machine, a piece at a time.

    Raises:
        CorruptShard: it is not what was merged; what was written is of no use.
    """
    digest = hashlib.sha256()
    with _opened(store, version, name) as source, target.open("wb") as file:
        while piece := source.read(_PIECE):
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != version.files[name].sha256:
        raise _damaged(version, name, "is not what was merged")


def _is_sound(store: ObjectStore, version: Version) -> bool:
    """Whether a version's files are what was merged; one that is damaged is replaced by the next."""
    try:
        check_version(store, version)
    except CorruptShard:
        return False
    return True


def _opened(store: ObjectStore, version: Version, name: str) -> BinaryIO:
    try:
        return store.open(version.files[name].key)
    except FileNotFoundError:
        raise _damaged(version, name, "is gone") from None
    except ValueError:  # a key that leaves the store
        raise _damaged(version, name, "is named outside of the run") from None


def _damaged(version: Version, name: str, what: str) -> CorruptShard:
    number = version.number
    return CorruptShard(f"version {number}: {name} {what}; remove {_version_key(number)} and merge again")
