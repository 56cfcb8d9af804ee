"""Sends a job to a running Ray cluster through Ray's Job Submission API."""

from __future__ import annotations

import asyncio
import glob
import logging
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import batchgen
from batchgen.errors import BatchgenError, UserError
from batchgen.job import Job, Source
from batchgen.seeds import load_seeds
from batchgen.store import is_remote

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_PAUSES = (1, 2, 4, 8, 15, 30)
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def submit(job: Job, address: str, trust_remote_code: bool, out: Callable[[str], Any]) -> int:
    """Submits a job, follows its log to the end and returns its exit code.

    Args:
        address: of the cluster's dashboard, `http://host:8265`.

    Raises:
        UserError: the job cannot run there, or nothing answers at the address.
        BatchgenError: the cluster ended the job without an exit code.
    """
    if not is_remote(job.output) and not Path(job.output).is_absolute():
        raise UserError(
            f"output: {job.output!r} is relative; a submitted job needs an absolute folder that every machine of the "
            "cluster shares (give --output)"
        )
    load_seeds(job.source)
    _offer_token()
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobStatus, JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"--address {address}: no Ray dashboard takes jobs there: {reason}") from error
    entrypoint = "python -m batchgen.cli run job.yaml" + (" --trust-remote-code" if trust_remote_code else "")
    with tempfile.TemporaryDirectory(prefix="batchgen-submit-") as folder:
        _pack(job, Path(folder))
        submission = _submit_patiently(client, entrypoint, folder, job.name)
    out(f"submitted {submission} to {address}")
    try:
        asyncio.run(_follow(client, submission))
    except KeyboardInterrupt:
        out(f"not following any more; the job goes on. To stop it: ray job stop --address {address} {submission}")
        return 0
    info = client.get_job_info(submission)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.driver_exit_code is None:
        raise BatchgenError(f"{submission} ended as {info.status}: {info.message}")
    return int(info.driver_exit_code)


def _offer_token() -> None:
    """Has the client send Ray's token where there is one, as `ray start` does; read when ray is imported.

    A dashboard that asks for none ignores it.
    """
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if "RAY_AUTH_MODE" not in os.environ and (os.environ.get("RAY_AUTH_TOKEN") or path.is_file()):
        os.environ["RAY_AUTH_MODE"] = "token"


def _submit_patiently(client: JobSubmissionClient, entrypoint: str, folder: str, name: str) -> str:
    """Submits under one id, again and again for a while: a head that has just come up has no agent to take a job."""
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
        except RuntimeError as error:
            if pause is None:
                raise BatchgenError(f"the cluster did not take the job: {str(error).splitlines()[0]}") from error
            time.sleep(pause)
    return submission


def _pack(job: Job, folder: Path) -> None:
    """Lays out what the job needs there: the job, its seed files and this package."""
    tree = job.tree()
    if job.source.path is not None:
        tree["source"]["path"] = _copy_seeds(job.source, folder / "seeds")
    (folder / "job.yaml").write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    shutil.copytree(Path(batchgen.__file__).parent, folder / "batchgen", ignore=_IGNORED)


def _copy_seeds(source: Source, folder: Path) -> list[str]:
    patterns = [source.path] if isinstance(source.path, str) else source.path or []
    names: list[str] = []
    folder.mkdir()
    for pattern in patterns:
        for path in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True)):
            # The order of the files is the order of the rows.
            name = f"{len(names):05d}-{Path(path).name}"
            shutil.copyfile(path, folder / name)
            names.append(f"seeds/{name}")
    return names


async def _follow(client: JobSubmissionClient, submission: str) -> None:
    async for text in client.tail_job_logs(submission):
        sys.stdout.write(text)
        sys.stdout.flush()
