"""What an engine's process sets for itself, as it begins and once its engine is up."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import sys
from pathlib import Path

# New ones, from one garbage collection to the next.
_OBJECTS = 20_000
_FILES = 65_536


def set_threads(threads: int | None) -> None:
    """Sets how many threads OpenMP has, which reads it when torch is imported.

    Ray says 1 for an actor of one CPU or none. vLLM loads weights with as many as it is given, by itself with all
    cores, and goes down to 1 on a GPU as it begins to work.
    """
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    elif os.environ.get("OMP_NUM_THREADS") == "1":
        del os.environ["OMP_NUM_THREADS"]


def collect_less() -> None:
    """Keeps what is loaded by now out of every later garbage collection, and has those come when there is something.

    vLLM, distilabel and transformers come to 750,000 objects: a full collection went through them in 0.45 seconds, in
    which neither rows nor the engine's outputs went on, three times in 16,000 calls. By Python's own threshold a
    collection comes with every 700 objects, and goes through those of all rows in flight: 1.25 of the 7.0 seconds that
    this process worked for 12,288 calls with 512 slots, against 0.06 of 6.0 (embedded model; by hand, of three each).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS, *gc.get_threshold()[1:])


def redirect_output(log: str) -> None:
    """Sends everything that this process and its children print to a log file."""
    try:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    except OSError:
        return  # the run's folder is not on this machine: Ray's own worker logs have it
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def allow_open_files() -> None:
    """Lets this process have many files open, as far as it may allow itself that: a request to a server takes one.

    By the default of many shells it may have 1,024. Ray raises that on the driver's machine alone.
    """
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if most == resource.RLIM_INFINITY else min(_FILES, most)
    if resource.RLIM_INFINITY != now < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
