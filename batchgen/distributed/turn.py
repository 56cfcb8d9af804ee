"""Turns of engines that share a GPU, to start one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
from pathlib import Path

from batchgen.errors import EngineStartError

# Every process of this machine has to find the same one, whatever its own temporary folder is.
_FOLDER = "/tmp"
_LOOK_SECONDS = 0.5


class Turn:
    """The right to start on a GPU, which ends with the process at the latest.

    Of vLLM's engines that start at once on a GPU, each takes what the others load for memory of its own, and leaves so
    much less for its KV cache; where one gives memory back meanwhile, another refuses to start.

    Args:
        path: a file that is there while somebody has the turn, or had it and was killed.
        file: a descriptor of it, locked for this process.
    """

    def __init__(self, path: Path, file: int) -> None:
        self._path = path
        self._file = file

    @classmethod
    async def taken(cls, gpu: str) -> Turn:
        """Waits until it is this process's turn.

        Args:
            gpu: as `CUDA_VISIBLE_DEVICES` names it.

        Raises:
            EngineStartError: the file cannot be made.
        """
        path = Path(_FOLDER, f"batchgen-{os.getuid()}-gpu-{re.sub('[^A-Za-z0-9,-]', '-', gpu)}.lock")
        while True:
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise EngineStartError(f"cannot make {path}: {error}") from error
            if _locked(file, path):
                return cls(path, file)
            os.close(file)
            await asyncio.sleep(_LOOK_SECONDS)

    def end(self) -> None:
        """Lets the next one start."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._file)
            self._file = -1


def _locked(file: int, path: Path) -> bool:
    """Whether a file could be locked, and still is the one at its path: whoever had it may just have removed it."""
    try:
        # Of a process, not of an open file, which processes that this one forks would have as well.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False
