"""Sends a job to a running Ray cluster through Ray's Job Submission API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import yaml

import batchgen
from batchgen.benchmarks import read_benchmark
from batchgen.errors import BatchgenError, Stopped, UserError
from batchgen.job import Benchmark, Job, Source
from batchgen.seedfiles import find_files
from batchgen.seeds import load_seeds
from batchgen.store import is_remote

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

_PAUSES = (1, 2, 4, 8, 15, 30)
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def submit(
    job: Job,
    address: str,
    trust_remote_code: bool,
    out: Callable[[str], Any],
    until: datetime | None = None,
    extend: bool = False,
) -> int:
    """Submits a job, follows its log to the end and returns its exit code.

    Args:
        address: of the cluster's dashboard, `http://host:8265`.
        until: when nothing more is begun, see `api.run`.
        extend: whether a run may be given more rows, see `api.run`.

    Raises:
        UserError: the job cannot run there, or nothing answers at the address.
        Stopped: it was stopped there.
        BatchgenError: the cluster ended the job without an exit code, or does not answer any more.
    """
    if not is_remote(job.output) and not Path(job.output).is_absolute():
        raise UserError(
            f"output: {job.output!r} is relative; a submitted job needs an absolute folder that every machine of the "
            "cluster shares (give --output)"
        )
    # A dataset or bucket has to be in reach there, not here.
    if _is_here(job.source):
        load_seeds(job.source)
    for index, benchmark in enumerate(job.merge.decontaminate):
        if _is_here(benchmark):
            read_benchmark(benchmark, index)
    _offer_token()
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"--address {address}: no Ray dashboard accepts jobs there: {reason}") from error
    logging.disable(logging.INFO)  # modules of Ray set levels of their own, and tell of every package and socket
    with tempfile.TemporaryDirectory(prefix="batchgen-submit-") as folder:
        _pack(job, Path(folder))
        submission = _submit_patiently(client, _entrypoint(trust_remote_code, until, extend), folder, job.name)
    out(f"submitted {submission} to {address}")
    try:
        info = asyncio.run(follow(client, submission, sys.stdout))
    except KeyboardInterrupt:
        out(f"no longer following; the job continues. To stop it: ray job stop --address {address} {submission}")
        return 0
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        raise Stopped(f"{submission} was stopped; submit it again with the same output to resume")
    if info.driver_exit_code is None or info.driver_exit_code < 0:
        raise BatchgenError(
            f"{submission} ended as {info.status}: {info.message}; submit it again with the same output to resume"
        )
    return int(info.driver_exit_code)


def _entrypoint(trust_remote_code: bool, until: datetime | None, extend: bool) -> str:
    """The command there, whose clock may be that of another time zone."""
    command = "python -m batchgen.cli run job.yaml" + " --trust-remote-code" * trust_remote_code + " --extend" * extend
    return command + (f" --until {until.astimezone().isoformat()}" if until is not None else "")


def _offer_token() -> None:
    """Has the client send Ray's token where there is one, as `ray start` does; read when ray is imported.

    A dashboard that asks for none ignores it.
    """
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if "RAY_AUTH_MODE" not in os.environ and (os.environ.get("RAY_AUTH_TOKEN") or path.is_file()):
        os.environ["RAY_AUTH_MODE"] = "token"


def _submit_patiently(client: JobSubmissionClient, entrypoint: str, folder: str, name: str) -> str:
    """Submits under one id, again and again for a while: a head that has just come up has no agent to take a job.

    Where the cluster's answer was lost the job may be there, and is not taken a second time.
    """
    submission = f"batchgen-{name}-{uuid.uuid4().hex[:8]}"
    for pause in (*_PAUSES, None):
        try:
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=submission,
                runtime_env={"working_dir": folder},
                metadata={"batchgen_job": name},
            )
            break
        except (RuntimeError, OSError) as error:  # of the latter kind are those of a connection
            if _is_there(client, submission):
                break
            if pause is None:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise BatchgenError(f"the cluster did not take the job: {reason}") from error
            time.sleep(pause)
    return submission


def _is_there(client: JobSubmissionClient, submission: str) -> bool:
    try:
        client.get_job_info(submission)
    except (RuntimeError, OSError):
        return False
    return True


def _pack(job: Job, folder: Path) -> None:
    """Lays out what the job needs there: the job, its seed files and this package."""
    tree = job.tree()
    if job.source.rows is not None:
        tree["source"]["rows"] = job.source.rows  # dates and bytes as YAML has them: as text they would be other rows
    if job.source.path is not None:
        tree["source"]["path"] = _copy_files(job.source, folder / "seeds")
    for index, benchmark in enumerate(job.merge.decontaminate):
        if benchmark.path is not None:
            copied = _copy_files(benchmark, folder / f"benchmark-{index}")
            tree["merge"]["decontaminate"][index]["path"] = copied
    (folder / "job.yaml").write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    shutil.copytree(Path(batchgen.__file__).parent, folder / "batchgen", ignore=_IGNORED)


def _is_here(source: Source | Benchmark) -> bool:
    return source.dataset is None and not any(map(is_remote, _patterns(source)))


def _patterns(source: Source | Benchmark) -> list[str]:
    return [source.path] if isinstance(source.path, str) else source.path or []


def _copy_files(source: Source | Benchmark, folder: Path) -> list[str]:
    """Copies a source's files into a folder; where they are from that folder's."""
    names: list[str] = []
    folder.mkdir()
    for pattern in _patterns(source):
        if is_remote(pattern):
            names.append(pattern)
            continue
        for path in find_files(pattern):
            # The order of the files is the order of the rows.
            name = f"{len(names):05d}-{Path(path).name}"
            shutil.copyfile(path, folder / name)
            names.append(f"{folder.name}/{name}")
    return names


class _Log:
    """A job's log, shown once however often its stream is opened: each stream begins at the log's beginning."""

    def __init__(self, client: JobSubmissionClient, submission: str, out: TextIO) -> None:
        self._client = client
        self._submission = submission
        self._out = out
        self._shown = 0
        self._moved = time.monotonic()

    @property
    def silent_for(self) -> float:
        """Seconds since the log had something new, or its stream was opened."""
        return time.monotonic() - self._moved

    async def stream(self) -> None:
        """Shows the log until its stream ends, or breaks."""
        import aiohttp

        self._moved = time.monotonic()
        read = 0
        with contextlib.suppress(RuntimeError, OSError, aiohttp.ClientError):
            async for text in self._client.tail_job_logs(self._submission):
                self._show(text[max(0, self._shown - read) :])
                read += len(text)

    async def show_rest(self) -> None:
        """Shows what no stream brought, of a job that has ended."""
        with contextlib.suppress(RuntimeError, OSError):
            self._show((await asyncio.to_thread(self._client.get_job_logs, self._submission))[self._shown :])

    def _show(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._out.flush()
            self._shown += len(text)
            self._moved = time.monotonic()


async def follow(
    client: JobSubmissionClient,
    submission: str,
    out: TextIO,
    status_every: float = 5.0,
    silence: float = 60.0,
    patience: float = 600.0,
) -> JobDetails:
    """Shows a job's log until the job has ended, and returns how it did.

    Ray streams the log over a web socket, which ends or falls silent for good where an agent, a proxy or the network
    does. So the job's status says when it is over, and a stream that ended or is silent is opened again.

    Args:
        status_every: seconds between two looks at the job's status, and for the log's end to arrive.
        silence: seconds without a word after which the stream is opened again.
        patience: seconds for which the cluster may leave the question for the status unanswered.

    Raises:
        BatchgenError: the cluster does not answer any more; the job may go on.
    """
    log = _Log(client, submission, out)
    status = _Status(client, submission, patience)
    stream = asyncio.create_task(log.stream())
    try:
        while (ended := await status.final()) is None:
            if stream.done() or log.silent_for > silence:
                stream.cancel()
                await asyncio.sleep(min(1.0, status_every))  # one that ends at once is not opened without a pause
                stream = asyncio.create_task(log.stream())
            await asyncio.wait([stream], timeout=status_every)
        await asyncio.wait([stream], timeout=status_every)
    finally:
        stream.cancel()
    await log.show_rest()
    return ended


class _Status:
    """A job's status, from a cluster that may be out of reach for a while."""

    def __init__(self, client: JobSubmissionClient, submission: str, patience: float) -> None:
        self._client = client
        self._submission = submission
        self._patience = patience
        self._answered = time.monotonic()

    async def final(self) -> JobDetails | None:
        """How the job ended; None where it has not, as far as is known.

        Raises:
            BatchgenError: there was no answer for too long.
        """
        try:
            info = await asyncio.to_thread(self._client.get_job_info, self._submission)
        except (RuntimeError, OSError) as error:
            if time.monotonic() - self._answered > self._patience:
                raise BatchgenError(
                    f"the cluster has not answered for {self._patience:.0f} s ({type(error).__name__}); the job may "
                    f"still run, see: ray job status --address {self._client.get_address()} {self._submission}"
                ) from error
            return None
        self._answered = time.monotonic()
        return info if info.status.is_terminal() else None
