"""Paths as users write them, and folders for a while."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchgen.errors import StoreError, UserError


def expanded(path: str | Path) -> Path:
    """A path with its `~` or `~user` replaced.

    Raises:
        UserError: there is no such user, or none whose home is known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{str(path)!r}: {str(path).partition('/')[0]} has no home directory here") from error


def resolved(path: str | Path) -> Path:
    """The absolute path that a path comes to, links followed.

    Raises:
        UserError: it comes to none.
    """
    loop = UserError(f"{path}: a symbolic link that leads to itself")
    try:
        found = expanded(path).resolve()
        found.stat()
    except RuntimeError as error:  # Python's name for it, until 3.13
        raise loop from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise loop from error
    return found


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder of this machine, for as long as the context lasts, for files on their way to a store.

    Raises:
        StoreError: there is no place for it.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="batchgen-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StoreError(f"cannot make a scratch folder: {error} (TMPDIR names another place)") from error
    with folder as name:
        yield Path(name)
