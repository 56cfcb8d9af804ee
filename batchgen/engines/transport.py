"""The connections to a server: how often it is asked over them, and why it is not reached."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from batchgen.engines.pace import Pace
from batchgen.engines.streamed import in_one_piece

# The status of a request that is one too many.
LIMITED = 429
# Whether this task's request waits because the server is asked too often.
kept_out: ContextVar[bool] = ContextVar("kept_out")
# Of this task's request.
priority: ContextVar[int] = ContextVar("priority", default=0)


def client_of(pace: Pace, streamed: bool = False) -> Any:
    """A client that asks no more often than its server lets it, which the pace keeps in mind.

    The client library's own has 1,000 connections at most, and looks at all of them for each request: with 500 that
    took 5 ms of this process's time. aiohttp takes 1 ms however many there are.

    Args:
        streamed: answers may come in pieces; they are told as if they had not.
    """
    import openai

    class Client(openai.DefaultAioHttpClient):
        async def send(self, request: Any, **options: Any) -> Any:
            kept_out.set(pace.slowed)
            async with pace.turn(priority.get()) as began:
                kept_out.set(False)
                if streamed:
                    response = await in_one_piece(await super().send(request, **options | {"stream": True}))
                else:
                    response = await super().send(request, **options)
                if response.status_code == LIMITED:
                    kept_out.set(True)
                    pace.refused(began, _told_seconds(response.headers))
                else:
                    pace.answered()
            return response

    return Client(limits=type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=pace.most))


def _told_seconds(headers: Mapping[str, str]) -> float | None:
    """For how long a server wants no requests; None where it does not say so in a number."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with contextlib.suppress(ValueError):
            if 0 <= (seconds := float(headers.get(name, "")) * unit) < float("inf"):
                return seconds
    return None


def cause_of(error: BaseException) -> str:
    """Why a server was not reached, in words that hold nothing of a request."""
    from aiohttp.http_exceptions import HttpProcessingError

    causes: list[BaseException] = []
    following: BaseException | None = error
    while following is not None:
        causes.append(following)
        following = following.__cause__ or following.__context__
    for cause in reversed(causes):  # what came of it has its number, and may be of another kind
        if isinstance(cause, socket.gaierror):
            return "there is no such host"
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {(cause.reason or type(cause).__name__).replace('_', ' ').lower()}"
        if isinstance(cause, OSError) and (number := cause.errno or 0) in errno.errorcode:
            return os.strerror(number).lower()
        if isinstance(cause, TimeoutError):
            return "no answer in time"
        if isinstance(cause, HttpProcessingError):
            return "it does not speak HTTP"
    return type(error).__name__
