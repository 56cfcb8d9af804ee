"""An engine on a server that may be out of reach for a while, and that fails at a request now and then."""

from __future__ import annotations

from batchgen.engines.base import ChatFormat, Completion, Engine, Request
from batchgen.errors import EngineStartError, EngineUnavailable, RowRejected
from batchgen.outage import Outage

# Failures at a request, each with answers to others since the one before, after which its row is to blame. What the
# client library tries again itself, or what takes ten minutes, need not be seen as often: a gateway that has no
# completion for one in ten requests is to cost no row. What a gateway says of its server (502, 503, 504) does, as a
# rule, not come of a row: only one for which it is all that came in the whole time of an outage, while others are
# answered.
_TIMES_ALONE = {"500": 2, "timeout": 2}
_TIMES_OTHERWISE = 4


def _times_alone(how: str) -> float:
    return _TIMES_ALONE.get(how, float("inf") if how.isdigit() else _TIMES_OTHERWISE)


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

    @property
    def tokens_in_flight(self) -> int:
        """Output tokens so far of the requests that it works on."""
        return self._engine.tokens_in_flight

    async def start(self) -> None:
        """Starts the engine, once its server answers."""
        try:
            await self._outage.outlast(self._engine.start)
        except EngineUnavailable as error:
            raise EngineStartError(str(error), outage=True) from None

    async def generate(self, request: Request) -> Completion:
        """Completes one prompt; rejects its row where the server fails at it, and meanwhile answers others."""
        seen: int | None = None
        alone, how = 0, None

        async def ask() -> Completion:
            nonlocal seen, alone, how
            try:
                return await self._engine.generate(request)
            except EngineUnavailable as error:
                if error.limited:
                    how = None
                    raise
                # What began while the server was away may fail after it has come back: once is no proof.
                alone += seen is not None and self._outage.successes > seen
                seen, how = self._outage.successes, error.perhaps_row
                if how and alone >= _times_alone(how):
                    raise RowRejected(f"refused_by_server:{how}") from None
                raise

        try:
            return await self._outage.outlast(ask)
        except EngineUnavailable as error:
            if how and error.alone and self._outage.patient:
                raise RowRejected(f"refused_by_server:{how}") from None
            raise

    async def stop(self) -> None:
        """Stops the engine."""
        await self._engine.stop()
