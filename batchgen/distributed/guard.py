"""Ends the processes of an engine whose own process is gone.

vLLM on GPUs runs its engine and workers in processes of their own. They do not notice that the one which started them
was killed, and would keep its GPUs' memory, so that no other engine could start there. Ray ends them as long as its
raylet lives; where that is killed too, as by `ray stop --force`, nobody does.

Run as a program it is the guard of one process. It waits for that to end, however it does, and ends what it left
behind: processes that were started with the same mark in their environment, and its temporary files, among them three
sockets of each vLLM. It imports nothing of batchgen, so that it is small and there at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

_MARK = "BATCHGEN_ENGINE_PROCESSES"
_TRIES, _PAUSE_SECONDS = 100, 0.2


def guard_this_process() -> None:
    """Has every process that this one starts from now on, and theirs, killed as soon as this one has ended.

    Not those that are forked from this very process without a program of their own. Linux only; elsewhere, and where
    the guard cannot be started, nothing happens. The temporary files of this process itself have a folder of their own
    from now on, which is removed then.
    """
    mark = uuid.uuid4().hex
    os.environ[_MARK] = mark
    with contextlib.suppress(OSError):
        subprocess.run(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), mark, *_own_folder()],
            # Its own mark is another, or it would find itself.
            env={**os.environ, _MARK: "guard"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=False,
        )


def _own_folder() -> list[str]:
    """Gives this process's temporary files a folder of their own; none where it cannot be made."""
    try:
        tempfile.tempdir = tempfile.mkdtemp(prefix="batchgen-")
    except OSError:
        return []
    return [tempfile.tempdir]


def _marked(mark: str) -> list[int]:
    """Processes with a mark in their environment."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if process.name.isdigit() and wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def _began(process: int) -> bytes | None:
    """When a process began, which tells it from a later one of the same number; None where it has ended."""
    try:
        state, *fields = (Path("/proc") / str(process) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if state in (b"Z", b"X") else fields[18]


def _guard(process: int, mark: str, *folders: str) -> None:
    began = _began(process)
    # Not as its child: Ray kills those of a process that it ends.
    if began is None or os.fork():
        return
    while _began(process) == began:
        time.sleep(_PAUSE_SECONDS)
    # Again and again, as one that is killed may just have started another; but one may also be stuck in a driver.
    for _ in range(_TRIES):
        left = _marked(mark)
        if not left:
            break
        for each in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        time.sleep(_PAUSE_SECONDS)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _guard(int(sys.argv[1]), *sys.argv[2:])
