"""Where the sockets of Ray and vLLM lie: the path of a Unix socket has 107 bytes at most."""

from __future__ import annotations

import os
import tempfile

_LONGEST_PATH = 107
_SHORT = "/tmp"


def short_tempdir(room: int) -> str | None:
    """A folder for sockets where the temporary folder's own name leaves too little room, as those of batch systems do.

    Args:
        room: bytes that a socket's path needs after the folder's.

    Returns:
        None where the temporary folder will do.
    """
    return _SHORT if len(os.fsencode(tempfile.gettempdir())) + room > _LONGEST_PATH else None
