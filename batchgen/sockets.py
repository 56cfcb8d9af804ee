"""Where the sockets of Ray and vLLM lie: the path of a Unix socket has 107 bytes at most."""

from __future__ import annotations

import os
import tempfile

_LONGEST_PATH = 107
_SHORT = "/tmp"


def socket_folder(room: int) -> str:
    """The temporary folder, or `/tmp` where its name leaves too little room, as those of batch systems do.

    Args:
        room: bytes that a socket's path needs after the folder's.
    """
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) + room <= _LONGEST_PATH else _SHORT
