"""Sends a job to a running Ray cluster through Ray's Job Submission API."""

from __future__ import annotations

import asyncio
import glob
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

import batchgen
from batchgen.errors import BatchgenError, UserError
from batchgen.job import Job, Source
from batchgen.seeds import load_seeds

_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def submit(job: Job, address: str, trust_remote_code: bool, out: Callable[[str], Any]) -> int:
    """Submits a job, follows its log to the end and returns its exit code.

    Args:
        address: of the cluster's dashboard, `http://host:8265`.

    Raises:
        UserError: the job cannot run there, or nothing answers at the address.
        BatchgenError: the cluster ended the job without an exit code.
    """
    if not Path(job.output).is_absolute():
        raise UserError(
            f"output: {job.output!r} is relative; a submitted job needs an absolute folder that every machine of the "
            "cluster shares (give --output)"
        )
    load_seeds(job.source)
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"--address {address}: no Ray dashboard answers: {reason}") from error
    entrypoint = "python -m batchgen.cli run job.yaml" + (" --trust-remote-code" if trust_remote_code else "")
    with tempfile.TemporaryDirectory(prefix="batchgen-submit-") as folder:
        _pack(job, Path(folder))
        submission = client.submit_job(
            entrypoint=entrypoint,
            runtime_env={"working_dir": folder},
            metadata={"batchgen_job": job.name},
        )
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
