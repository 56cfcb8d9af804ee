"""The command line: what there is to type, and what a command's end means."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence

from batchgen import commands, inspecting
from batchgen.errors import BatchgenError, ClusterLost, Stopped

RUN_HELP = "the output of a run: a folder, or s3://bucket/prefix"
EPILOG = "exit codes: 0 done, 1 failed, 2 bad input, 75 stopped and resumable with the same command"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="batchgen",
        description="Generates instruction datasets with distilabel tasks on vLLM, distributed by Ray.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(function: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = parsers.add_parser(function.__name__, help=help, description=help, epilog=EPILOG)
        sub.set_defaults(function=function)
        return sub

    run = command(commands.run, "plan, generate, merge and publish a job; the same command resumes")
    _job_arguments(run)
    run.add_argument(
        "--address", metavar="RAY", help="address of a running Ray cluster; by default a local Ray is started"
    )
    _until_argument(run)
    _extend_argument(run)
    _trust_argument(run)
    plan = command(commands.plan, "check a job, its seeds and its model, and show the plan; starts nothing")
    _job_arguments(plan)
    plan.add_argument(
        "--prompt", type=_count, metavar="ROW", help="also show the first prompt of that row (0 is the first) in full"
    )
    _extend_argument(plan)
    _trust_argument(plan)
    status = command(inspecting.status, "show how a run stands")
    status.add_argument("run", metavar="RUN", help=RUN_HELP)
    status.add_argument("--json", action="store_true", help="as JSON")
    report = command(commands.report, "write a page (HTML) about a run and its dataset, to open in a browser")
    report.add_argument("run", metavar="RUN", help=RUN_HELP)
    report.add_argument("--to", metavar="FILE", help="a file; by default report.html in the run")
    merge = command(commands.merge, "merge a run's committed shards into a dataset version")
    merge.add_argument("run", metavar="RUN", help=RUN_HELP)
    merge.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a merge.* field")
    merge.add_argument("--partial", action="store_true", help="merge although shards are missing")
    verify = command(inspecting.verify, "check every committed byte of a run, and that every row is there once")
    verify.add_argument("run", metavar="RUN", help=RUN_HELP)
    verify.add_argument("--json", action="store_true", help="as JSON")
    rejected = command(inspecting.rejected, "show rejected rows, each with its reason and what the model said")
    rejected.add_argument("run", metavar="RUN", help=RUN_HELP)
    rejected.add_argument("--reason", help="only rows that were rejected for this")
    rejected.add_argument("--limit", type=_count, default=3, metavar="N", help="rows of each reason (3); 0: all")
    rejected.add_argument("--json", action="store_true", help="all of them, in full, one line of JSON each")
    dropped = command(inspecting.dropped, "show ok rows that the merger left out, each with its reason")
    dropped.add_argument("run", metavar="RUN", help=RUN_HELP)
    dropped.add_argument("--reason", help="only rows that were left out for this")
    dropped.add_argument("--limit", type=_count, default=3, metavar="N", help="rows of each reason (3); 0: all")
    dropped.add_argument("--json", action="store_true", help="all of them, in full, one line of JSON each")
    revoke = command(commands.revoke, "have committed shards generated again by the next run; deletes nothing")
    revoke.add_argument("run", metavar="RUN", help=RUN_HELP)
    revoke.add_argument("shards", metavar="SHARD", nargs="+", help="numbers, as `verify` names them")
    gc = command(commands.gc, "remove files of attempts that lost and of killed processes; nothing that is read")
    gc.add_argument("run", metavar="RUN", help=RUN_HELP)
    gc.add_argument("--dry-run", action="store_true", help="only count them")
    publish = command(commands.publish, "put the newest dataset version into a folder, or onto the Hugging Face Hub")
    publish.add_argument("run", metavar="RUN", help=RUN_HELP)
    publish.add_argument(
        "--to", required=True, metavar="PLACE", help="a folder, or hf://ORG/NAME; an earlier version there is replaced"
    )
    publish.add_argument("--private", action="store_true", help="of a dataset that is created on the Hub")
    draw = command(commands.draw, "print a job as a Mermaid flow chart")
    _job_arguments(draw)
    tasks = command(commands.tasks, "list the tasks that a step can use, or explain some of them")
    tasks.add_argument("tasks", metavar="TASK", nargs="*", help="its columns, and what its parameters mean")
    form = tasks.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument("--markdown", action="store_true", help="as the table of the README")
    submit = command(commands.submit, "send a job to a running Ray cluster, with its seed files and this package")
    _job_arguments(submit)
    submit.add_argument(
        "--address", required=True, metavar="URL", help="address of the cluster's dashboard, http://host:8265"
    )
    _until_argument(submit)
    _extend_argument(submit)
    _trust_argument(submit)
    return parser


def _job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="job file (YAML)")
    parser.add_argument("--output", metavar="DIR", help="output, instead of the job's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a field of the job: --set source.count=100",
    )


def _until_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--until",
        metavar="TIME",
        help="begin nothing more from then on (07:00, 2027-01-31T07:00, 8h, 90m), and publish what is there",
    )


def _extend_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--extend",
        action="store_true",
        help="give a run of the first of the job's seed rows the others, which have to stand behind them",
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _trust_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let the model's repository run its own code; pin model.revision",
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
        kind = "stopped" if isinstance(error, Stopped) and options.command in ("run", "submit") else "error"
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"batchgen: {kind}: {commands.told(error, options)}", file=sys.stderr)
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


if __name__ == "__main__":
    raise SystemExit(main())
