"""Every exception that batchgen raises on purpose, by whose fault it is.

    BatchgenError                    exit 1
    ├── UserError                    exit 2   the job, its seeds or a path: nothing was started, nothing is lost
    │   ├── JobError
    │   ├── SeedError
    │   ├── ModelError
    │   └── PlanMismatch             the run belongs to another job or to other seeds
    ├── Stopped                      exit 75  ended early and resumable: the same command goes on
    │   ├── StoreError               the store is full or unreachable
    │   └── ClusterLost              Ray's head, or its last machine, is gone
    ├── EngineError                  exit 1
    │   ├── EngineStartError         an engine never came up
    │   ├── EngineDead               an engine died or hangs; whatever was in flight on it goes back
    │   └── EngineUnavailable        a model server elsewhere does not answer; the run stops, resumable
    ├── ShardFailed                  exit 1   a shard failed at every attempt
    ├── CorruptShard                 exit 1   committed bytes are not what the manifest says
    └── RowRejected                           one row's failure; never leaves the worker

Exit codes follow sysexits.h where it has one (75 is EX_TEMPFAIL).
"""

from __future__ import annotations

import errno
import os
import sysconfig
import traceback
from pathlib import Path

# Where code lies that is not the user's own.
_NOT_OWN = tuple(
    f"{folder}{os.sep}"
    for folder in (Path(__file__).parent, *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
)
# What a full disk, a file server or a machine says that may say otherwise in a while, with the same job.
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "EBUSY", "EAGAIN", "EINTR", "ENOLCK", "EREMOTEIO"),
        *("ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"),
        *("ETIMEDOUT", "ENOTCONN", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EPIPE", "ESHUTDOWN"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET"),
    )
)


class BatchgenError(Exception):
    """Base of all errors that batchgen raises on purpose."""

    exit_code = 1


class UserError(BatchgenError):
    """Bad input, found before any engine starts."""

    exit_code = 2


class JobError(UserError):
    """The job file or an override is not a legal job."""


class SeedError(UserError):
    """The seed rows cannot be read as the job says."""


class ModelError(UserError):
    """The model is missing or cannot do what the job asks of it."""


class PlanMismatch(UserError):
    """The output folder holds a run of another job or of other seeds."""


class Stopped(BatchgenError):
    """The run ended early and can be resumed with the same command."""

    exit_code = 75


class ClusterLost(Stopped):
    """There is no Ray any more; whoever runs in this process has to end soon, as Ray ends it after a minute."""


class StoreError(Stopped):
    """The store refused a write or a read; rows are not to blame.

    Args:
        denied: it answers, and does not let us in.
        busy: it cannot do it now, and may in a while.
    """

    # Seconds for which it was so and was waited for.
    waited = 0.0

    def __init__(self, message: str, denied: bool = False, busy: bool = False) -> None:
        super().__init__(message)
        self.denied = denied
        self.busy = busy


class EngineError(BatchgenError):
    """An engine failed as a whole."""


class EngineStartError(EngineError):
    """An engine could not be started.

    Args:
        final: whether what it was told is wrong, so that another start would fail as well.
        outage: whether something elsewhere that it needs was waited for in vain.
    """

    def __init__(self, message: str, final: bool = False, outage: bool = False) -> None:
        super().__init__(message)
        self.final = final
        self.outage = outage


class EngineDead(EngineError):
    """An engine died or hangs while it was in use."""


class EngineStopped(EngineDead):
    """Somebody told an engine's process to end, as happens to all of a machine's that is taken away."""


class EngineUnavailable(EngineError):
    """A model server elsewhere does not answer, or no longer lets us in; no engine here is to blame.

    Args:
        final: whether it is no use to ask again.
        perhaps_row: how the server failed while it worked on the request, a short code, where that may be the request's
            own doing.
        limited: whether it only says that it is asked too often: which requests have to wait is a matter of chance.
    """

    # Seconds for which it was so and was waited for; whether other requests were answered at the end of that time.
    waited = 0.0
    alone = False

    def __init__(
        self, message: str, final: bool = False, perhaps_row: str | None = None, limited: bool = False
    ) -> None:
        super().__init__(message)
        self.final = final
        self.perhaps_row = perhaps_row
        self.limited = limited


class ShardFailed(BatchgenError):
    """A shard failed at every attempt it was given."""


class CorruptShard(BatchgenError):
    """A committed shard's bytes are not those that were committed."""


class RowRejected(BatchgenError):
    """One row cannot be completed.

    Args:
        reason: a short, stable code (`empty_completion`); it is stored with the row and counted.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def is_passing(error: OSError) -> bool:
    """Whether what the operating system refuses it may do in a while: no path, and nobody's input, is to blame."""
    return error.errno in _PASSING


def place_of(error: BaseException) -> str:
    """Module and line that raised; an exception's own text may quote a row."""
    frames = [*traceback.walk_tb(error.__traceback__)]
    if not frames:
        return "unknown place"
    frame, line = frames[-1]
    return f"{frame.f_globals.get('__name__', '?')}:{line}"


def own_place_of(error: BaseException) -> str:
    """File and line at which code of the user's own raised, or called what did; "" where there is none of it."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [(file, line) for file, line in frames if not file.startswith(("<frozen", *_NOT_OWN))]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""
