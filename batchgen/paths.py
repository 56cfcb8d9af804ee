"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path

from batchgen.errors import UserError


def expanded(path: str | Path) -> Path:
    """A path with its `~` or `~user` replaced.

    Raises:
        UserError: there is no such user, or none whose home is known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{str(path)!r}: {str(path).partition('/')[0]} has no home directory here") from error
