"""The command line: parse, call, show. Heavy modules are imported by the commands that need them."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from batchgen.errors import BatchgenError, ClusterLost, EngineError, ShardFailed, Stopped, UserError

if TYPE_CHECKING:
    from batchgen.job import Job

RUN_HELP = "output of a run: a folder, or s3://bucket/prefix"
EPILOG = "exit codes: 0 done, 1 failed, 2 bad input, 75 stopped and resumable with the same command"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="batchgen",
        description="Generates instruction datasets with distilabel tasks on vLLM, distributed by Ray.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, epilog=EPILOG)
        sub.set_defaults(function=function)
        return sub

    run = command("run", _run, "plan, generate, merge and publish a job; the same command resumes")
    _job_arguments(run)
    run.add_argument("--address", metavar="RAY", help="of a running Ray cluster; else a local Ray is started")
    _trust_argument(run)
    plan = command("plan", _plan, "check a job, its seeds and its model, and show the plan; starts nothing")
    _job_arguments(plan)
    _trust_argument(plan)
    status = command("status", _status, "show how a run stands")
    status.add_argument("run", metavar="RUN", help=RUN_HELP)
    status.add_argument("--json", action="store_true", help="as JSON")
    merge = command("merge", _merge, "merge a run's committed shards into a dataset version")
    merge.add_argument("run", metavar="RUN", help=RUN_HELP)
    merge.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a merge.* field")
    merge.add_argument("--partial", action="store_true", help="merge although shards are missing")
    verify = command("verify", _verify, "check every committed byte of a run, and that it has every row once")
    verify.add_argument("run", metavar="RUN", help=RUN_HELP)
    verify.add_argument("--json", action="store_true", help="as JSON")
    revoke = command("revoke", _revoke, "have committed shards generated again by the next run; deletes nothing")
    revoke.add_argument("run", metavar="RUN", help=RUN_HELP)
    revoke.add_argument("shards", metavar="SHARD", nargs="+", help="numbers, as `verify` names them")
    gc = command("gc", _gc, "remove attempts that lost and what killed processes left; nothing that anybody reads")
    gc.add_argument("run", metavar="RUN", help=RUN_HELP)
    gc.add_argument("--dry-run", action="store_true", help="only count it")
    publish = command("publish", _publish, "put the newest dataset version into a folder")
    publish.add_argument("run", metavar="RUN", help=RUN_HELP)
    publish.add_argument("--to", required=True, metavar="DIR", help="folder; an earlier version in it is replaced")
    draw = command("draw", _draw, "print a job as a Mermaid flow chart")
    _job_arguments(draw)
    tasks = command("tasks", _tasks, "list the tasks that a step may name")
    form = tasks.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument("--markdown", action="store_true", help="as the table of the README")
    submit = command("submit", _submit, "send a job to a running Ray cluster, with its seed files and this package")
    _job_arguments(submit)
    submit.add_argument("--address", required=True, metavar="URL", help="of the cluster's dashboard, http://host:8265")
    _trust_argument(submit)
    return parser


def _job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="job file (YAML)")
    parser.add_argument("--output", metavar="DIR", help="output folder, instead of the job's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a field of the job: --set source.count=100",
    )


def _trust_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let the model's repository run its code; pin model.revision",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character is no failure
    try:
        return _main(build_parser().parse_args(arguments))
    finally:
        _flush()


def _main(options: argparse.Namespace) -> int:
    if options.version:
        from batchgen import __version__

        print(f"batchgen {__version__}")
        return 0
    if options.command is None:
        build_parser().print_help()
        return 2
    try:
        function: Callable[[argparse.Namespace], int] = options.function
        return function(options)
    except BatchgenError as error:
        kind = "stopped" if isinstance(error, Stopped) else "error"
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"batchgen: {kind}: {error}", file=sys.stderr)
        if isinstance(error, ClusterLost):
            # Ray's threads wait for its head, and end the process after a minute with a code of their own.
            _flush()
            os._exit(error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        print("batchgen: interrupted", file=sys.stderr)
        return Stopped.exit_code
    except BrokenPipeError:
        return 1


def _flush() -> None:
    """Writes what is buffered; where nobody reads it, Python is not to say so as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _load(options: argparse.Namespace) -> Job:
    from batchgen.job import Job

    overrides = list(options.set)
    if options.output is not None:
        overrides.append(f"output={json.dumps(options.output)}")
    return Job.load(options.job, overrides)


def _run(options: argparse.Namespace) -> int:
    from batchgen import api
    from batchgen.display import Display, describe_version, log_tail, noise_to, sample_rows, stdout_console
    from batchgen.drive import Status
    from batchgen.store import log_folder, open_store

    job = _load(options)
    console = stdout_console()
    console.print(
        f"job {job.name}: {' -> '.join(step.task for step in job.steps)} on {job.model.path}", highlight=False
    )
    try:
        with noise_to(log_folder(job.output) / "driver.log") as keep, Display(console) as display:

            def watch(status: Status) -> None:
                keep()
                display.show(status)

            result = api.run(job, options.address, watch, options.trust_remote_code)
    except (Stopped, KeyboardInterrupt) as error:
        kind = type(error) if isinstance(error, Stopped) else Stopped
        again = shlex.join(["batchgen", *sys.argv[1:]])
        reason = str(error) or "interrupted"
        raise kind(f"{reason}\nEvery committed row is safe. To go on, run the same command again:\n  {again}") from None
    except (EngineError, ShardFailed):
        if tail := log_tail(log_folder(job.output)):
            with contextlib.suppress(OSError):  # the terminal may be gone
                print(tail, file=sys.stderr)
        raise
    sample = sample_rows(open_store(job.output), result.version)
    notes = ", ".join(f"{note} {count:,}" for note, count in result.progress.notes.items())
    lines = [
        describe_version(result.version),
        *([f"notes: {notes}"] if notes else []),
        *(["sample rows:", *sample] if sample else []),
        f"\ndataset: {result.dataset}",
        f"  load_dataset({str(result.dataset)!r})",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)
    return 0


def _plan(options: argparse.Namespace) -> int:
    from batchgen import api
    from batchgen.plan import PLAN_KEY, check_plan
    from batchgen.store import open_store

    job = _load(options)
    plan, _ = api.plan_run(job, options.trust_remote_code)
    store = open_store(job.output)
    begun = store.read(PLAN_KEY) is not None
    if begun:
        plan = check_plan(store, plan)
    commit = f" at commit {plan.commit_of(None)}" if plan.commit_of(None) else ""
    shards = "1 shard" if len(plan.shards) == 1 else f"{len(plan.shards):,} shards"
    print(f"job {job.name}: {plan.rows:,} seed rows in {shards}, model {job.model.path}{commit}")
    for index, step in enumerate(job.steps):
        outputs = f" -> {', '.join(step.outputs)}" if step.outputs else ""
        print(f"  {index + 1}. {step.task}{outputs}" + (f"; explode {step.explode}" if step.explode else ""))
    print(f"columns of a shard: {', '.join(plan.schema.names)}")
    print(f"output: {job.output}" + (" (a run of this job, which would go on)" if begun else ""))
    return 0


def _status(options: argparse.Namespace) -> int:
    from batchgen import api
    from batchgen.commit import committed
    from batchgen.merge import latest_version
    from batchgen.plan import read_plan
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
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in progress.reasons.items())
    print(f"{state['run']}: {len(manifests):,} of {len(plan.shards):,} shards committed")
    print(
        f"  rows: {progress.ok:,} ok, {progress.rejected:,} rejected, of {plan.rows:,}"
        + (f" ({reasons})" * bool(reasons))
    )
    if progress.notes:
        print(f"  notes: {', '.join(f'{note} {count:,}' for note, count in progress.notes.items())}")
    print(f"  tokens: {progress.input_tokens:,} in, {progress.output_tokens:,} out")
    print(f"  dataset: version {version.number}, {version.kept:,} rows" if version else "  dataset: not merged yet")
    return 0


def _merge(options: argparse.Namespace) -> int:
    from batchgen import api
    from batchgen.display import describe_version
    from batchgen.errors import JobError
    from batchgen.job import Job
    from batchgen.merge import merge_run
    from batchgen.plan import read_plan
    from batchgen.store import open_store

    store = open_store(options.run)
    plan = read_plan(store)
    job: Job = api.saved_job(store)
    for override in options.set:
        if not override.startswith("merge."):
            raise JobError(f"--set {override}: only merge.* fields can change when a run is merged")
    job = Job.of(job.tree(), options.set)
    version = merge_run(store, plan, job, options.partial)
    print(describe_version(version))
    print(f"version {version.number}; publish it with: batchgen publish {options.run} --to DIR")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from batchgen.plan import read_plan
    from batchgen.store import open_store
    from batchgen.upkeep import verify

    store = open_store(options.run)
    found = verify(store, read_plan(store))
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
        print(
            f"to have a shard generated again: batchgen revoke {options.run} SHARD, then the run's own command",
            file=sys.stderr,
        )
    return 0 if found.good else 1


def _revoke(options: argparse.Namespace) -> int:
    from batchgen.plan import read_plan
    from batchgen.store import open_store
    from batchgen.upkeep import revoke

    store = open_store(options.run)
    plan = read_plan(store)
    for name in options.shards:
        shard = revoke(store, plan, name)
        print(f"shard {shard.name} (seed rows {shard.start} to {shard.stop - 1}) is generated again by the next run")
    return 0


def _gc(options: argparse.Namespace) -> int:
    from batchgen.plan import read_plan
    from batchgen.store import open_store
    from batchgen.upkeep import collect

    store = open_store(options.run)
    objects, size = collect(store, read_plan(store), options.dry_run)
    print(f"{'would remove' if options.dry_run else 'removed'} {objects:,} files, {size:,} bytes")
    return 0


def _publish(options: argparse.Namespace) -> int:
    from batchgen.merge import latest_version
    from batchgen.plan import read_plan
    from batchgen.publish import publish_folder
    from batchgen.store import open_store

    store = open_store(options.run)
    read_plan(store)
    version = latest_version(store)
    if version is None:
        raise UserError(f"{options.run}: no dataset version; merge first: batchgen merge {options.run}")
    folder = publish_folder(store, version, options.to)
    print(f"version {version.number}, {version.kept:,} rows: {folder}")
    return 0


def _draw(options: argparse.Namespace) -> int:
    from batchgen.draw import mermaid

    print(mermaid(_load(options)))
    return 0


def _tasks(options: argparse.Namespace) -> int:
    from batchgen.tasks import listing

    if options.json:
        print(json.dumps(listing.listing(), indent=2))
    else:
        print(listing.markdown() if options.markdown else listing.text())
    return 0


def _submit(options: argparse.Namespace) -> int:
    from batchgen.distributed.submit import submit

    job = _load(options)
    return submit(job, options.address, options.trust_remote_code, print)


if __name__ == "__main__":
    raise SystemExit(main())
