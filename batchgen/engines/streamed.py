"""Answers that a server sends in pieces, as they would have come in one.

A gateway that gives up on a connection over which nothing comes for a minute sees something come all the time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_KIND = "text/event-stream"
# Of a message; servers have all of these names for what a model thinks.
_TEXTS = ("content", "reasoning", "reasoning_content")
# What a stream that ends in its midst says; see `openai._BROKEN_OFF`.
_TORN = "error"
_FAILED = 500


async def in_one_piece(response: Any) -> Any:
    """A response that has been read: one that comes in pieces as the JSON that they come to, any other as it is.

    Raises:
        httpx.HTTPError: the connection is lost.
    """
    pieces = Pieces()
    try:
        if response.status_code != 200 or not response.headers.get("content-type", "").startswith(_KIND):
            await response.aread()
            return response
        async for data in response.aiter_bytes():
            pieces.add(data)
    finally:
        await response.aclose()
    status, answer = pieces.answer()
    return type(response)(status, json=answer, request=response.request)


class Pieces:
    """Server-sent events of one chat completion.

    What is kept is the answer so far, as an event a token takes hundreds of times what the token does.
    """

    def __init__(self) -> None:
        self._line = b""
        self._answer: dict[str, Any] = {}
        self._message: dict[str, list[Any]] = {}
        self._logprobs: list[Any] = []
        self._reason: Any = None
        self._error: dict[str, Any] | None = None
        self._ended = False
        self._torn = False

    def add(self, data: bytes) -> None:
        """Some more of the stream, wherever it was cut."""
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            name, _, value = line.rstrip(b"\r").partition(b":")
            if name != b"data":
                continue
            if value.strip() == b"[DONE]":
                self._ended = True
                continue
            try:
                self._take(json.loads(value))
            except (ValueError, RecursionError):
                self._torn = True

    def answer(self) -> tuple[int, dict[str, Any]]:
        """(HTTP status, body) of the answer in one piece, or of the error that was sent in its midst."""
        self.add(b"\n")
        if self._error is not None:
            code = self._error.get("code")
            status = code if isinstance(code, int) and 400 <= code < 600 else _FAILED
            return status, {"error": self._error}
        if self._torn or not (self._ended or self._reason):
            self._reason = _TORN
        message: dict[str, Any] = {name: _joined(parts) for name, parts in self._message.items()}
        choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}}
        choice |= {"finish_reason": self._reason, "logprobs": {"content": self._logprobs} if self._logprobs else None}
        return 200, {**self._answer, "object": "chat.completion", "choices": [choice]}

    def _take(self, event: Any) -> None:
        if not isinstance(event, dict):
            return
        if self._error is None and (error := event.get("error")):
            self._error = error if isinstance(error, dict) else {"message": str(error)}
        # The tokens come at the end, some servers tell them in between as well.
        self._answer |= {name: event[name] for name in ("id", "created", "model", "usage") if event.get(name)}
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and not choice.get("index"):
                self._take_choice(choice)

    def _take_choice(self, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        for name in _TEXTS:
            if delta.get(name):
                self._message.setdefault(name, []).append(delta[name])
        logprobs = choice.get("logprobs")
        tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
        self._logprobs += tokens if isinstance(tokens, list) else ()
        self._reason = choice.get("finish_reason") or self._reason


def _joined(parts: list[Any]) -> Any:
    """The text of all parts; a list of them where some are lists of typed ones, as Mistral's models give."""
    if all(isinstance(part, str) for part in parts):
        return "".join(parts)
    typed: list[Any] = []
    for part in parts:
        typed += part if isinstance(part, list) else [{"type": "text", "text": part}]
    return typed
