"""The commands that look at a run and change nothing. Heavy modules are imported by those that need them."""

from __future__ import annotations

import argparse
import json
import shlex
import sys

from batchgen.errors import UserError
from batchgen.plaintext import one_line


def status(options: argparse.Namespace) -> int:
    """Shows how a run stands."""
    from batchgen import api
    from batchgen.commit import committed
    from batchgen.merge import latest_version
    from batchgen.reasons import NOTES, explained
    from batchgen.settle import read_plan
    from batchgen.store import open_store

    store = open_store(options.run)
    plan = read_plan(store)
    manifests = committed(store, plan)
    progress = api.progress_of(manifests)
    version = latest_version(store)
    state = {
        "run": store.location,
        "rows": plan.rows,
        "shards": len(plan.shards),
        "shards_committed": len(manifests),
        "ok": progress.ok,
        "rejected": progress.rejected,
        "reasons": dict(progress.reasons),
        "notes": dict(progress.notes),
        "input_tokens": progress.input_tokens,
        "output_tokens": progress.output_tokens,
        "complete": len(manifests) == len(plan.shards),
        "version": version.number if version else None,
        "rows_kept": version.kept if version else None,
    }
    if options.json:
        print(json.dumps(state, indent=2))
        return 0
    reasons = ", ".join(f"{one_line(reason)} {count:,}" for reason, count in progress.reasons.items())
    print(f"{state['run']}: {len(manifests):,} of {len(plan.shards):,} shards committed")
    print(
        f"  rows: {progress.ok:,} ok, {progress.rejected:,} rejected, of {plan.rows:,}"
        + (f" ({reasons})" * bool(reasons))
    )
    if progress.notes:
        print("\n    ".join(["  notes:", *map(one_line, explained(progress.notes, NOTES))]))
    print(f"  tokens: {progress.input_tokens:,} in, {progress.output_tokens:,} out")
    print(f"  dataset: version {version.number}, {version.kept:,} rows" if version else "  dataset: not merged yet")
    return 0


def verify(options: argparse.Namespace) -> int:
    """Checks a run, byte by byte and row by row."""
    from dataclasses import asdict

    from batchgen.display import show_steps
    from batchgen.settle import read_plan
    from batchgen.store import open_store
    from batchgen.upkeep import verify

    store = open_store(options.run)
    found = verify(store, read_plan(store), show_steps())
    if options.json:
        print(json.dumps({"run": store.location, "good": found.good, **asdict(found)}, indent=2))
        return 0 if found.good else 1
    lines = [
        ("shards", found.shards),
        ("shards committed and sound", found.sound),
        ("bytes read", found.bytes),
        ("seed rows expected", found.rows),
        ("seed rows found", found.ok + found.rejected),
        ("  ok", found.ok),
        ("  rejected", found.rejected),
        ("seed rows not committed yet", found.missing),
        ("seed rows lost", found.lost),
        ("rows twice", found.twice),
        ("rows of another shard", found.foreign),
        ("corrupt shards", len(found.corrupt)),
        ("dataset versions, sound", found.versions),
        ("dataset versions, corrupt", len(found.corrupt_versions)),
    ]
    for name, number in lines:
        print(f"{name:<28} {number:>14,}")
    for problem in (*found.corrupt, *found.corrupt_versions):
        print(f"batchgen: error: {problem}", file=sys.stderr)
    if found.ids_differ:
        print("batchgen: error: the rows are not those of the seeds that the run was planned with", file=sys.stderr)
    if found.corrupt:
        again = f"batchgen revoke {shlex.quote(options.run)} SHARD, then the run's own command"
        print(f"to have a shard generated again: {again}", file=sys.stderr)
    return 0 if found.good else 1


def rejected(options: argparse.Namespace) -> int:
    """Shows rejected rows."""
    from batchgen.api import progress_of
    from batchgen.commit import committed
    from batchgen.display import describe_rejected
    from batchgen.reasons import REASONS, explained, most_first
    from batchgen.rejected import rejected_rows
    from batchgen.settle import read_plan
    from batchgen.store import open_store

    store = open_store(options.run)
    plan = read_plan(store)
    manifests = committed(store, plan)
    reasons = progress_of(manifests).reasons
    counts = ", ".join(f"{one_line(reason)} {count:,}" for reason, count in most_first(reasons)) or "none"
    if options.reason not in (None, *reasons):
        raise UserError(f"--reason {options.reason}: no row was rejected for that; rejected: {counts}")
    only = None if options.reason is None else [options.reason]
    rows = rejected_rows(store, plan, manifests, only, 0 if options.json else options.limit)
    if options.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False, default=str))
        return 0
    print("\n  ".join(["rejected:" if reasons else "rejected: none", *map(one_line, explained(reasons, REASONS))]))
    for row in rows:
        print("\n".join(["", *describe_rejected(row)]))
    return 0


def dropped(options: argparse.Namespace) -> int:
    """Shows ok rows that the merger left out."""
    from batchgen.commit import committed
    from batchgen.display import describe_dropped, show_steps
    from batchgen.job import Merge
    from batchgen.merge import latest_version
    from batchgen.merge.dropped import Dropped
    from batchgen.reasons import DROPPED, explained, most_first
    from batchgen.savedjob import saved_job
    from batchgen.settle import read_plan
    from batchgen.store import open_store

    store = open_store(options.run)
    plan = read_plan(store)
    version = latest_version(store)
    merge = Merge.model_validate(version.merge) if version is not None else None
    found = Dropped(store, plan, saved_job(store), committed(store, plan), merge, show_steps())
    counts = ", ".join(f"{one_line(reason)} {count:,}" for reason, count in most_first(found.counts)) or "none"
    if options.reason not in (None, *found.counts):
        raise UserError(f"--reason {options.reason}: no row was left out for that; left out: {counts}")
    rows = found.rows(options.reason, 0 if options.json else options.limit)
    if options.json:
        for each in rows:
            told = each.row | {"reason": each.reason}
            if each.original is not None:
                told["duplicate_of"] = each.original
            if each.in_common is not None:
                told["in_common"] = each.in_common._asdict()
            print(json.dumps(told, ensure_ascii=False, default=str))
        return 0
    shown = map(one_line, explained(found.counts, DROPPED))
    print("\n  ".join(["dropped:" if found.counts else "dropped: none", *shown]))
    for each in rows:
        print("\n".join(["", *describe_dropped(each)]))
    return 0
