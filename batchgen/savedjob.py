"""The job of a run as it is kept with it, for the commands that look at the run or merge it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batchgen.errors import UserError
from batchgen.job import Job
from batchgen.plan import PLAN_KEY
from batchgen.records import RecordError, seal, unseal
from batchgen.store import ObjectStore
from batchgen.tasks.spec import as_declared, declared

JOB_KEY = "job.json"
JOB_FORMAT = 1
# Its key, beside those of a job, for what is kept of the user's own tasks.
_OWN_TASKS = "own_tasks"


def check_vacant(store: ObjectStore) -> None:
    """Refuses a place without a run in which a file of the user's has the name that the job is kept under.

    Raises:
        UserError: says so.
    """
    if (data := store.read(JOB_KEY)) is None:
        return
    try:
        unseal(data, JOB_FORMAT)
    except RecordError:
        if store.read(PLAN_KEY) is None:
            message = f"output: {store.location} is no run and has a {JOB_KEY}, which a run would write over"
            raise UserError(f"{message}; choose another folder") from None


def save_job(store: ObjectStore, job: Job) -> None:
    """Keeps the job as it was last run with the run, for those that look at it or merge it again."""
    own = {step.task: declared(step.spec, step.parameters) for step in job.steps if step.is_own}
    store.put(JOB_KEY, seal(job.tree() | ({_OWN_TASKS: own} if own else {}), JOB_FORMAT))


def saved_job(store: ObjectStore, overrides: Sequence[str] = ()) -> Job:
    """The job of a run; tasks of the user's own are there with their columns, and cannot run.

    Args:
        overrides: `key=value` each.

    Raises:
        UserError: the folder is no run.
        JobError: an override does not fit.
    """
    tree = _saved(store)
    own = {name: as_declared(kept) for name, kept in tree.pop(_OWN_TASKS, {}).items()}
    return Job.of(tree, overrides, own)


def saved_tree(store: ObjectStore) -> dict[str, Any]:
    """The job of a run as a tree.

    Raises:
        UserError: the folder is no run.
    """
    tree = _saved(store)
    tree.pop(_OWN_TASKS, None)
    return tree


def _saved(store: ObjectStore) -> dict[str, Any]:
    data = store.read(JOB_KEY)
    if data is None:
        raise UserError(f"{store.location} is not a batchgen run: it has no {JOB_KEY}")
    try:
        return unseal(data, JOB_FORMAT)
    except RecordError as error:
        raise UserError(f"{store.location}: {JOB_KEY} {error}; the job's own command writes it again") from error
