"""Whether a run is worth going on with: one whose every row is lost is not."""

from __future__ import annotations

import shlex

from batchgen.drive import Status
from batchgen.errors import BatchgenError
from batchgen.job import Job
from batchgen.progress import FILTERED, THOUGHTS_OFF, TRUNCATED, TRUNCATED_REASONING, Progress

_RAISE = "raise sampling.max_tokens (within max_model_len)"
_KEEP = "or keep rows that were cut with merge.drop_truncated=false"


def all_rejected(job: Job, progress: Progress, rows: str, so: str) -> BatchgenError:
    """The end of a run without a good row: which rows, for what reasons, and what follows from it."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in progress.reasons.items())
    if any(reason.startswith(TRUNCATED) for reason in progress.reasons):
        keep = f", {_KEEP}" if TRUNCATED in progress.reasons else ""
        thoughts = f"; {THOUGHTS_OFF}" if TRUNCATED_REASONING in progress.reasons else ""
        so = f"{so}: {_RAISE}{keep}{thoughts}"
    look = f"To look at them: batchgen rejected {shlex.quote(job.output)}"
    return BatchgenError(f"{rows} were rejected ({reasons}); {so}. {look}")


def hopeless(job: Job, status: Status, before: Progress) -> BatchgenError | None:
    """Why a run is to end in which no row has been good yet; None as long as it may go on.

    Resumed, it goes on with as many rows again.
    """
    limit, ended = job.fail_after_rejected, status.done.ok + status.done.rejected
    cut = _dropped_as_cut(job, status.done)
    number = status.done.rejected + cut
    if limit is None or number < ended or number >= status.rows:
        return None
    free = _filtered_for_nothing(job, status.done) - _filtered_for_nothing(job, before)
    if number - free - before.rejected - _dropped_as_cut(job, before) < limit:
        return None
    rows, so = f"all of the first {ended:,} rows", f"more are not tried (fail_after_rejected: {limit})"
    if not cut:
        return all_rejected(job, status.done, rows, so)
    also = f" or rejected ({status.done.rejected:,})" * bool(status.done.rejected)
    lost = f"{rows} were cut at max_tokens{also}, and the merger drops such rows"
    return BatchgenError(f"{lost}; {so}: {_RAISE}, {_KEEP}")


def _filtered_for_nothing(job: Job, progress: Progress) -> int:
    """Rows that ended at a filter before a model was asked anything of them, as most of a large seed file may."""
    calling = [index for index, step in enumerate(job.steps) if step.spec.calls_model]
    first = calling[0] if calling else len(job.steps)
    names = [
        {f"{FILTERED}:{column}" for column in step.spec.keep(step.parameters)}
        | ({FILTERED} if step.spec.may_spread else set())
        for step in job.steps
    ]
    free = set().union(*names[:first]) - set().union(*names[first:])
    return sum(count for reason, count in progress.reasons.items() if reason in free)


def _dropped_as_cut(job: Job, progress: Progress) -> int:
    """Rows that are good but for being cut at `max_tokens`; 0 where a seed row may have others beside one."""
    several = (job.generations(step) > 1 and not step.group_generations for step in job.steps)
    spread = any(several) or any(step.exploded or step.spec.may_spread for step in job.steps)
    return progress.notes.get(TRUNCATED, 0) if job.merge.drop_truncated and not spread else 0
