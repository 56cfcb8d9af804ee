"""The commands, each from its parsed arguments to its exit code. Heavy modules are imported by those that need them."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from typing import TYPE_CHECKING

from batchgen.errors import BatchgenError, EngineError, ShardFailed, Stopped, UserError
from batchgen.plaintext import harmless, one_line

if TYPE_CHECKING:
    from batchgen.job import Job
    from batchgen.plan import Plan
    from batchgen.store import ObjectStore


def _overrides(options: argparse.Namespace) -> list[str]:
    return [*options.set, *([f"output={json.dumps(options.output)}"] if options.output is not None else [])]


def _load(options: argparse.Namespace) -> Job:
    from batchgen.job import Job

    return Job.load(options.job, _overrides(options))


def told(error: BatchgenError, options: argparse.Namespace) -> str:
    """What is wrong, and where in the job's file."""
    if not isinstance(error, UserError) or "job" not in options:
        return harmless(str(error))
    from batchgen.problems import placed

    return harmless(placed(str(error), options.job, _overrides(options)))


def run(options: argparse.Namespace) -> int:
    """Plans, generates, merges and publishes a job."""
    from batchgen import api
    from batchgen.deadline import parse_until
    from batchgen.display import Display, describe_version, log_tail, noise_to, sample_rows, stdout_console
    from batchgen.drive import Status
    from batchgen.rows import REJECTED
    from batchgen.store import is_remote, log_folder, open_store

    until = parse_until(options.until) if options.until is not None else None
    job = _load(options)
    console = stdout_console()
    chain = " -> ".join(step.task for step in job.steps) or "merge"
    on = f" on {job.model.path}" if None in job.used_models else ""
    console.print(f"job {job.name}: {chain}{on}", highlight=False, markup=False)
    try:
        with noise_to(log_folder(job.output) / "driver.log") as keep, Display(console) as display:

            def watch(status: Status) -> None:
                keep()
                display.show(status)

            result = api.run(job, options.address, watch, options.trust_remote_code, until=until, extend=options.extend)
    except (Stopped, KeyboardInterrupt) as error:
        kind = type(error) if isinstance(error, Stopped) else Stopped
        raise kind(_to_go_on(str(error) or "interrupted")) from None
    except (EngineError, ShardFailed):
        if tail := log_tail(log_folder(job.output)):
            with contextlib.suppress(OSError):  # the terminal may be gone
                print(tail, file=sys.stderr)
        raise
    store = open_store(job.output)
    sample = sample_rows(store, result.version)
    notes = ", ".join(f"{note} {count:,}" for note, count in result.progress.notes.items())
    # The datasets library opens no bucket by its name.
    fetch = f"batchgen publish {shlex.quote(job.output)} --to DIR, and then " if is_remote(job.output) else ""
    any_dropped = any(not reason.startswith(f"{REJECTED}: ") for reason in result.version.dropped)
    lines = [
        describe_version(result.version, job),
        *([f"notes: {notes}"] if notes else []),
        *(["sample rows:", *sample] if sample else []),
        *([f"dropped rows: batchgen dropped {shlex.quote(job.output)}"] if any_dropped else []),
        *([f"rejected rows: batchgen rejected {shlex.quote(job.output)}"] if result.progress.reasons else []),
        f"\ndataset: {result.dataset}",
        f"  {fetch}load_dataset({'DIR' if fetch else result.dataset!r})",
        f"report: {_report(store)}",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)
    if not result.complete:
        of = f"{result.version.shards:,} of {result.version.of_shards:,} shards"
        raise Stopped(_to_go_on(f"its time was up; the dataset has the rows of {of}"))
    return 0


def _to_go_on(reason: str) -> str:
    from batchgen.deadline import without_past

    again = shlex.join(["batchgen", *without_past(sys.argv[1:])])
    return f"{reason}\nEvery committed row is safe. To go on, run the same command again:\n  {again}"


def plan(options: argparse.Namespace) -> int:
    """Checks a job and shows its plan."""
    from batchgen import api
    from batchgen.display import describe_merge
    from batchgen.merge.conversations import chat_columns, settled
    from batchgen.models import user_turns
    from batchgen.remarks import remarks
    from batchgen.savedjob import check_vacant
    from batchgen.settle import continued_plan, newest_plan
    from batchgen.store import open_store

    job = _load(options)
    plan, seeds = api.plan_run(job, options.trust_remote_code)
    if options.prompt is not None and options.prompt >= plan.rows:
        raise UserError(f"--prompt {options.prompt}: the job has rows 0 to {plan.rows - 1}")
    store = open_store(job.output)
    if (existing := newest_plan(store)) is not None:
        plan = continued_plan(store, plan, existing, seeds if options.extend else None)
    else:
        check_vacant(store)
    commit = f" at commit {plan.commit_of(None)}" if plan.commit_of(None) else ""
    shards = "1 shard" if len(plan.shards) == 1 else f"{len(plan.shards):,} shards"
    model = f", model {job.model.path}{commit}" if None in job.used_models else ""
    print(f"job {job.name}: {plan.rows:,} seed rows in {shards}{model}")
    for index, step in enumerate(job.steps):
        outputs = f" -> {', '.join(map(one_line, step.outputs))}" if step.outputs else ""
        on = f" on {step.model}" if step.model is not None else ""
        spread = ", ".join(f"{column} -> {new}" for column, new in step.exploded.items())
        print(f"  {index + 1}. {step.task}{on}{outputs}" + (f"; explode {spread}" if spread else ""))
    for path, (opening, end) in user_turns(job, options.trust_remote_code).items():
        print(f"user turns of {path}: opened by {opening!r}, ended by {end!r}")
    print(f"columns of a shard: {', '.join(map(one_line, plan.schema.names))}")
    chat = chat_columns(job, plan)
    print(f"merge: {describe_merge(settled(job, chat), chat)}")
    print(f"output: {job.output}" + _holds(existing, plan))
    for remark in remarks(job, plan):
        print(f"note: {remark}")
    if options.prompt is not None:
        from batchgen.display import describe_prompt
        from batchgen.preview import first_prompt

        (seed,) = seeds.slice(options.prompt, options.prompt + 1)
        preview = first_prompt(job, plan, store, seed, options.trust_remote_code)
        print("\n".join(describe_prompt(options.prompt, preview)))
    return 0


def _holds(existing: Plan | None, plan: Plan) -> str:
    """What a run in the job's output means for it."""
    if existing is None:
        return ""
    if existing.rows == plan.rows:
        return " (holds a run of this job, which would continue)"
    return f" (holds a run of its first {existing.rows:,} rows, which would continue with the others)"


def _report(store: ObjectStore) -> str:
    """Where the page about a run is, or why there is none."""
    from batchgen.report import write_report

    try:
        return write_report(store)
    except Exception as error:  # the dataset is published, and no page about it makes that a failure
        return f"not written ({harmless(str(error)) if isinstance(error, BatchgenError) else type(error).__name__})"


def report(options: argparse.Namespace) -> int:
    """Writes the page about a run."""
    from batchgen.report import write_report
    from batchgen.store import open_store

    print(write_report(open_store(options.run), options.to))
    return 0


def merge(options: argparse.Namespace) -> int:
    """Merges a run again."""
    from batchgen.display import describe_version, show_steps
    from batchgen.errors import JobError
    from batchgen.merge import merge_run
    from batchgen.savedjob import saved_job
    from batchgen.settle import read_plan
    from batchgen.store import open_store

    store = open_store(options.run)
    plan = read_plan(store)
    for override in options.set:
        if not override.startswith("merge."):
            raise JobError(f"--set {override}: only merge.* fields can change when a run is merged")
    job = saved_job(store, options.set)
    version = merge_run(store, plan, job, options.partial, show_steps())
    print(describe_version(version, job))
    print(f"version {version.number}; publish it with: batchgen publish {shlex.quote(options.run)} --to DIR")
    return 0


def revoke(options: argparse.Namespace) -> int:
    """Has shards generated again."""
    from batchgen.settle import read_plan
    from batchgen.store import open_store
    from batchgen.upkeep import revoke

    store = open_store(options.run)
    plan = read_plan(store)
    for name in options.shards:
        shard = revoke(store, plan, name)
        print(f"shard {shard.name} (seed rows {shard.start} to {shard.stop - 1}) is generated again by the next run")
    return 0


def gc(options: argparse.Namespace) -> int:
    """Removes what nobody reads."""
    from batchgen.settle import read_plan
    from batchgen.store import open_store
    from batchgen.upkeep import collect

    store = open_store(options.run)
    objects, size = collect(store, read_plan(store), options.dry_run)
    print(f"{'would remove' if options.dry_run else 'removed'} {objects:,} file{'s' * (objects != 1)}, {size:,} bytes")
    return 0


def publish(options: argparse.Namespace) -> int:
    """Puts a run's newest version into a folder, or onto the Hub."""
    from batchgen.hub import hub_name, publish_hub
    from batchgen.merge import latest_version
    from batchgen.publish import check_target, check_writable, publish_folder, unwritable_is_told
    from batchgen.settle import read_plan
    from batchgen.store import open_store

    name = hub_name(options.to)
    if options.private and name is None:
        raise UserError("--private is for a dataset of the Hub (--to hf://ORG/NAME)")
    store = open_store(options.run)
    read_plan(store)
    version = latest_version(store)
    if version is None:
        raise UserError(f"{options.run}: no dataset version; merge first: batchgen merge {shlex.quote(options.run)}")
    if name is not None:
        place = publish_hub(store, version, name, options.private)
        print(f"version {version.number}, {version.kept:,} rows: {place}")
        return 0
    with unwritable_is_told(f"--to: {options.to!r}"):
        check_writable(check_target(options.to).parent)
    folder = publish_folder(store, version, options.to)
    print(f"version {version.number}, {version.kept:,} rows: {folder}")
    return 0


def draw(options: argparse.Namespace) -> int:
    """Prints a job as a flow chart."""
    from batchgen.draw import mermaid

    print(mermaid(_load(options)))
    return 0


def tasks(options: argparse.Namespace) -> int:
    """Lists the tasks, or explains some of them."""
    from batchgen.checks import unknown
    from batchgen.errors import JobError
    from batchgen.tasks import listing
    from batchgen.tasks.table import TASKS

    for name in options.tasks:
        if name not in TASKS:
            raise JobError(unknown("task", name, TASKS).message())
    if options.json:
        print(json.dumps([task for task in listing.listing() if task["name"] in (options.tasks or TASKS)], indent=2))
    elif options.tasks:
        print(listing.explained(options.tasks))
    else:
        print(listing.markdown() if options.markdown else listing.text())
    return 0


def submit(options: argparse.Namespace) -> int:
    """Sends a job to a running cluster."""
    from batchgen.deadline import parse_until
    from batchgen.distributed.submit import submit

    until = parse_until(options.until) if options.until is not None else None
    job = _load(options)
    return submit(job, options.address, options.trust_remote_code, print, until, options.extend)
