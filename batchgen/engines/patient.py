"""An engine on a server that may be out of reach for a while, and that fails at a request now and then."""

from __future__ import annotations

from batchgen.engines.base import ChatFormat, Completion, Engine, Request
from batchgen.errors import EngineUnavailable, RowRejected
from batchgen.outage import Outage

# Each of them is several of the client library's own.
_TRIES = 3


class PatientEngine:
    """An `Engine` that asks another one again as long as its server is unavailable.

    Args:
        outage: of that server; its patience is the engine's.
    """

    def __init__(self, engine: Engine, outage: Outage) -> None:
        self._engine = engine
        self._outage = outage

    @property
    def model_name(self) -> str:
        """What the `model` column says."""
        return self._engine.model_name

    @property
    def chat(self) -> ChatFormat | None:
        """How the model writes a conversation."""
        return self._engine.chat

    @property
    def slots(self) -> int:
        """How many requests the engine works on at once."""
        return self._engine.slots

    async def start(self) -> None:
        """Starts the engine; where its server does not answer yet, whoever starts it decides."""
        await self._engine.start()

    async def generate(self, request: Request) -> Completion:
        """Completes one prompt; rejects its row where the server fails at it alone."""
        failures = others = 0

        async def ask() -> Completion:
            nonlocal failures, others
            try:
                return await self._engine.generate(request)
            except EngineUnavailable as error:
                others = others if failures else self._outage.successes
                failures += 1
                if error.internal and failures >= _TRIES and self._outage.successes > others:
                    raise RowRejected("refused_by_server:500") from None
                raise

        return await self._outage.outlast(ask)

    async def stop(self) -> None:
        """Stops the engine."""
        await self._engine.stop()
