"""The first prompt of a row, as its model will read it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from batchgen.engines.base import ChatFormat, Completion, Message, Prompt, Request
from batchgen.engines.chat import TemplateChat
from batchgen.engines.idle import IdleEngine
from batchgen.errors import EngineDead
from batchgen.generate import Worker
from batchgen.job import Job
from batchgen.model import Model
from batchgen.models import chat_of
from batchgen.plan import Plan
from batchgen.rows import SeedRow
from batchgen.store import ObjectStore


@dataclass(frozen=True)
class Preview:
    """What a row asks first.

    Args:
        model: that it asks, by its path; None where it asks none.
        text: the prompt, special tokens written out; of a server's, which has the template, the conversation.
        tokens: of it; None where only the server can tell.
        reason: why the row would be rejected before it asks anything.
    """

    model: str | None
    text: str
    tokens: int | None = None
    reason: str | None = None


def first_prompt(job: Job, plan: Plan, store: ObjectStore, seed: SeedRow, trust_remote_code: bool = False) -> Preview:
    """Takes a row through the job's steps, up to the first request."""
    asked: list[Preview] = []
    engines = {name: _Listener(model, trust_remote_code, asked) for name, model in job.used_models.items()}
    others = {name: engine for name, engine in engines.items() if name is not None}
    worker = Worker(job, plan, store, engines.get(None) or IdleEngine(job.model.path), others)
    try:
        ((result, *_),) = asyncio.run(worker.probe([seed]))
    except EngineDead:
        return asked[0]
    return Preview(None, "", reason=result.reason)


class _Listener:
    """An engine that is gone as soon as it has been asked something.

    Args:
        asked: takes what it was asked.
    """

    slots = 1
    tokens_in_flight = 0

    def __init__(self, model: Model, trust_remote_code: bool, asked: list[Preview]) -> None:
        self.model_name = model.path
        self._model = model
        self._trust_remote_code = trust_remote_code
        self._asked = asked

    @cached_property
    def _noted(self) -> _Noted | None:
        chat = chat_of(self._model, self._trust_remote_code)
        return _Noted(chat) if chat is not None else None

    @property
    def chat(self) -> ChatFormat | None:
        return cast("ChatFormat | None", self._noted)

    async def start(self) -> None:
        pass

    async def generate(self, request: Request) -> Completion:
        if self._noted is not None:
            preview = Preview(self.model_name, self._noted.last.text, len(request.token_ids))
        else:
            said = "\n".join(f"{message['role']}: {message['content']}" for message in request.messages)
            preview = Preview(self.model_name, said)
        self._asked.append(preview)
        raise EngineDead("only asked for its prompt")

    async def stop(self) -> None:
        pass


class _Noted:
    """A chat format that keeps the last prompt that it wrote, of which a request has the tokens alone."""

    def __init__(self, chat: TemplateChat) -> None:
        self._chat = chat
        self.last = Prompt("", ())

    def prompt(self, messages: Sequence[Message], known: Prompt | None = None) -> Prompt:
        self.last = self._chat.prompt(messages, known)
        return self.last

    def conversation(self, messages: Sequence[Message]) -> Prompt:
        self.last = self._chat.conversation(messages)
        return self.last

    def user_prompt(self, messages: Sequence[Message], known: Prompt | None = None) -> Prompt:
        self.last = self._chat.user_prompt(messages, known)
        return self.last

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chat, name)
