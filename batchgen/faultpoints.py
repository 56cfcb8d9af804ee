"""Named places at which a test can have the process die, as it would if somebody killed it just there."""

from __future__ import annotations

import os
import signal

ENVIRONMENT = "BATCHGEN_KILL_AT"
# In order of time.
POINTS = (
    "before the plan",
    "after the plan",
    "attempt written",
    "attempt uploaded",
    "attempt read back",
    "shard committed",
    "version uploaded",
    "version named",
    "dataset copied",
    "earlier dataset aside",
    "dataset published",
)


def reach(point: str) -> None:
    """Ends the process with SIGKILL where the environment names this point; else nothing."""
    assert point in POINTS, point
    if os.environ.get(ENVIRONMENT) == point:
        os.kill(os.getpid(), signal.SIGKILL)
