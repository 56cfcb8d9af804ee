"""Why vLLM's processes ended: its engine runs in some of its own, which say so in their log alone."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

_LOGGED = re.compile(r"\((?P<process>[^)]+)\) ERROR \S+ \S+ \[[^\]]*\] ?(?P<text>.*)")
# What comes first in the log of a process that ends; its traceback follows.
_ENDS = ("failed to start.", "encountered a fatal error.", "WorkerProc failed.", "WorkerProc hit an exception.")
_TAIL_BYTES = 1 << 20
_LONGEST = 500


class ProcessLog:
    """What this process and its children print from now on; nothing, unless that goes to a file."""

    def __init__(self) -> None:
        self._seen = {path: path.stat().st_size for path in _own_files()}

    def cause(self) -> str | None:
        """The first exception that a process of vLLM ended with, as `Type: message`, where one said so."""
        for path, seen in self._seen.items():
            try:
                with path.open("rb") as log:
                    log.seek(max(seen, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                    text = log.read().decode(errors="replace")
            except OSError:
                continue  # that process has ended all the same, and no row is to blame for it
            if (cause := root_cause(text)) is not None:
                return cause
        return None


def _own_files() -> list[Path]:
    """Stdout and stderr, where they are files."""
    paths = []
    for number in (1, 2):
        path = Path(f"/proc/self/fd/{number}")
        try:
            if stat.S_ISREG(path.stat().st_mode):
                paths.append(path)
        except OSError:
            continue
    return paths


def root_cause(log: str) -> str | None:
    """See `ProcessLog.cause`. A worker's end comes before that of the process that waits for it."""
    lines = (match for line in log.splitlines() if (match := _LOGGED.match(line)))
    for match in lines:
        if match["text"].endswith(_ENDS):
            return _exception(match["process"], lines)
    return None


def _exception(process: str, lines: Iterator[re.Match[str]]) -> str | None:
    """The exception of the traceback that comes next in a process's log: the first line that is not indented."""
    for match in lines:
        text = match["text"]
        if match["process"] == process and text.strip() and not text.startswith((" ", "Traceback (")):
            return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    return None
