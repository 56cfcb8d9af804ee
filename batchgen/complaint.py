"""What validators of a job say."""

from __future__ import annotations

from pydantic_core import PydanticCustomError


def complaint(message: str, path: tuple[str | int, ...] = ()) -> PydanticCustomError:
    """An error whose message says everything.

    Args:
        path: the rest of the path to what is wrong, below the field whose validator raises it.
    """
    return PydanticCustomError("complaint", "{message}", {"message": message, "path": path})
