"""The engine of a model that no step calls."""

from __future__ import annotations

from batchgen.engines.base import ChatFormat, Completion, Request

_SLOTS = 64


class IdleEngine:
    """Stands in the place of a model that nothing asks, and costs nothing.

    Args:
        model: what the rows' column `model` says.
    """

    def __init__(self, model: str) -> None:
        self.model_name = model
        self.chat: ChatFormat | None = None
        self.slots = _SLOTS
        self.tokens_in_flight = 0

    async def start(self) -> None:
        """Nothing to load."""

    async def generate(self, request: Request) -> Completion:
        """Nobody asks."""
        raise AssertionError(f"a step calls {self.model_name!r}, for which no engine was started")

    async def stop(self) -> None:
        """Nothing to release."""
