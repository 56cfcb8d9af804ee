"""Named places at which a test can have the process die, or wait as one does that nobody hears of any more."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

KILL_AT = "BATCHGEN_KILL_AT"
WAIT_AT = "BATCHGEN_WAIT_AT"
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
    """Ends the process with SIGKILL where `BATCHGEN_KILL_AT` names this point; else nothing.

    Where `BATCHGEN_WAIT_AT` is `POINT=FILE` it waits there until the file exists.
    """
    assert point in POINTS, point
    if os.environ.get(KILL_AT) == point:
        os.kill(os.getpid(), signal.SIGKILL)
    name, _, file = os.environ.get(WAIT_AT, "").partition("=")
    while name == point and not Path(file).exists():
        time.sleep(0.05)
