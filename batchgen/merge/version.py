"""Dataset versions of a run: `versions/NNNN.json` names a version's files, and is written once.

Data files of a version have names that are its own, so that a merge which dies leaves nothing that anybody reads. The
same run, merged again with the same settings, gives the version that exists already.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.card import render_card
from batchgen.commit import committed
from batchgen.errors import CorruptShard, UserError
from batchgen.faultpoints import reach
from batchgen.job import Job
from batchgen.merge.rows import merge_rows
from batchgen.plan import Plan
from batchgen.rows import canonical_json
from batchgen.store.base import ObjectStore

ROWS_PER_FILE = 250_000
CARD = "README.md"


@dataclass(frozen=True)
class Version:
    """A dataset version.

    Args:
        number: from 1.
        files: path within the dataset -> {key in the store, size in bytes, sha256}.
        read: rows in the committed shards.
        kept: rows of the dataset.
        dropped: rows left out, by reason.
        shards: committed shards that went in, of `of_shards`.
    """

    number: int
    fingerprint: str
    files: Mapping[str, Mapping[str, Any]]
    merge: Mapping[str, Any]
    read: int
    kept: int
    dropped: Mapping[str, int]
    shards: int
    of_shards: int

    @property
    def content(self) -> dict[str, Any]:
        """What makes two versions the same: everything but their numbers and their files' places."""
        files = {path: file["sha256"] for path, file in self.files.items()}
        return {**{k: v for k, v in asdict(self).items() if k not in ("number", "files")}, "files": files}


def _version_key(number: int) -> str:
    return f"versions/{number:04d}.json"


def merge_run(store: ObjectStore, plan: Plan, job: Job, partial: bool = False) -> Version:
    """Merges what is committed into a new version, or finds the version that it would be.

    Args:
        partial: merge even where shards are missing.

    Raises:
        UserError: shards are missing.
        CorruptShard: committed bytes are not what was committed.
    """
    manifests = committed(store, plan)
    if len(manifests) < len(plan.shards) and not partial:
        raise UserError(
            f"{store.location}: {len(manifests)} of {len(plan.shards)} shards are committed; resume the run, "
            "or merge what is there with --partial"
        )
    merged = merge_rows(store, plan, job, manifests)
    before = latest_version(store)
    number = before.number + 1 if before else 1
    with tempfile.TemporaryDirectory(prefix="batchgen-") as scratch:
        paths = _write_files(merged.table, Path(scratch))
        details = {
            "fingerprint": plan.fingerprint,
            "merge": job.merge.model_dump(mode="json"),
            "read": merged.read,
            "kept": merged.table.num_rows,
            "dropped": merged.dropped,
            "shards": len(manifests),
            "of_shards": len(plan.shards),
        }
        files = {name: _described(path) for name, path in paths.items()}
        digest = hashlib.sha256(canonical_json([file["sha256"] for file in files.values()])).hexdigest()[:32]
        card = Path(scratch) / CARD
        card.write_text(render_card(job, plan, merged.table, details, digest), encoding="utf-8")
        files = {CARD: _described(card), **files}
        version = Version(number=number, files=files, **details)
        if before is not None and before.content == version.content:
            return before
        for name, path in {CARD: card, **paths}.items():
            store.upload(f"versions/{number:04d}/{files[name]['sha256'][:16]}/{name}", path)
    placed = {name: {**f, "key": f"versions/{number:04d}/{f['sha256'][:16]}/{name}"} for name, f in files.items()}
    version = Version(number=number, files=placed, **details)
    reach("version uploaded")
    return _named(store, version)


def _named(store: ObjectStore, version: Version) -> Version:
    """Writes the version's file: under the next number where another merge came first, if it is not the same one."""
    while not store.put_if_absent(_version_key(version.number), canonical_json(asdict(version))):
        other = read_version(store, version.number)
        if other.content == version.content:
            return other
        version = replace(version, number=version.number + 1)
    reach("version named")
    return version


def _write_files(table: pa.Table, folder: Path) -> dict[str, Path]:
    """Data files of a dataset by their path in it."""
    number = max(1, -(-table.num_rows // ROWS_PER_FILE))
    paths = {}
    for index in range(number):
        name = f"data/train-{index:05d}-of-{number:05d}.parquet"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            table.slice(index * ROWS_PER_FILE, ROWS_PER_FILE),
            path,
            compression="zstd",
            use_content_defined_chunking=True,
            write_page_index=True,
        )
        paths[name] = path
    return paths


def _described(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def latest_version(store: ObjectStore) -> Version | None:
    """The newest version of a run, or None where there is none."""
    numbers = [int(Path(key).stem) for key in store.list("versions") if key.count("/") == 1 and key.endswith(".json")]
    return read_version(store, max(numbers)) if numbers else None


def read_version(store: ObjectStore, number: int) -> Version:
    """A version of a run.

    Raises:
        CorruptShard: its file cannot be read.
    """
    data = store.read(_version_key(number))
    try:
        return Version(**json.loads(data or b""))
    except (ValueError, TypeError) as error:
        raise CorruptShard(f"{_version_key(number)} cannot be read: {type(error).__name__}") from error
