"""Runs a step of which a reward model scores conversations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from batchgen.engines.base import Engine, Request
from batchgen.errors import RowRejected
from batchgen.rows import random_seed
from batchgen.tasks.llm import CallLog, all_of
from batchgen.tasks.spec import Conversation, Row


class Scorer:
    """A step's requests to its reward model.

    Args:
        conversations: those that are scored, of what the step reads of a row.
        engine: of the reward model.
    """

    def __init__(self, conversations: Callable[[Row], Sequence[Conversation]], engine: Engine) -> None:
        self._conversations = conversations
        self._engine = engine

    async def run(self, inputs: Row, log: CallLog) -> list[Row]:
        """The scores of a row's conversations, in their order, as `scores` of one row.

        Raises:
            RowRejected: one of them has none.
            EngineError: the engine is gone.
        """
        scores: list[Any] = await all_of([self._score(each, log) for each in self._conversations(inputs)])
        return [{"scores": scores}]

    async def _score(self, conversation: Conversation, log: CallLog) -> float:
        chat = self._engine.chat
        assert chat is not None, "a job has no reward model on a server"
        number, log.calls = log.calls, log.calls + 1
        request = Request(
            token_ids=chat.conversation(conversation).token_ids,
            sampling={},
            seed=random_seed(log.seed, number),
            key=f"{log.key}-{number}",
            messages=conversation,
            priority=log.priority(),
        )
        completion = await self._engine.generate(request)
        log.count(completion)
        if completion.score is None or not math.isfinite(completion.score):
            raise RowRejected("no_score")
        return completion.score
