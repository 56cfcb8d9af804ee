"""Where sockets lie when the temporary folder's name is long."""

from __future__ import annotations

import tempfile

import pytest

from batchgen.sockets import socket_folder


@pytest.mark.parametrize(
    ("folder", "room", "expected"), [("/x", 105, "/x"), ("/x", 106, "/tmp"), ("/" + "ü" * 30, 47, "/tmp")]
)
def test_a_name_that_leaves_too_little_room_is_not_used(
    folder: str, room: int, expected: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", folder)
    assert socket_folder(room) == expected
