"""Any OpenAI-compatible server as an engine: vLLM's own server, a gateway, a hosted model."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from batchgen.engines.base import Completion, EngineSpec, Request
from batchgen.engines.options import OpenAIOptions
from batchgen.engines.pace import Pace
from batchgen.engines.repository import public_name
from batchgen.engines.slots import Slots
from batchgen.engines.transport import LIMITED, cause_of, client_of, kept_out, priority
from batchgen.errors import EngineDead, EngineStartError, EngineUnavailable, RowRejected
from batchgen.patience import request_seconds

# Parameters of OpenAI's own API; vLLM's others travel in the request's body, which vLLM's server reads.
_STANDARD = ("frequency_penalty", "max_tokens", "presence_penalty", "stop", "temperature", "top_p")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,39}")
# Statuses that one request, and not the server or the key, is to blame for; those that stay until somebody acts; and
# those below 500 that pass.
_ROW_STATUSES = (400, 413, 422)
# What they call every one of these.
_ANY_REFUSAL = ("BadRequestError", "invalid_request_error")
_LASTING_STATUSES = (401, 403, 404)
# By which some say that what is in a request is not allowed, and others that nothing is.
_FORBIDDEN = 403
_PASSING_STATUSES = (408, 409, 429)
# By which gateways say that the server behind them took too long; the second one is Cloudflare's.
_GATEWAY_LATE = (504, 524)
# How servers say that they did not finish a completion, for no fault of its own: vLLM's that is being stopped says
# "abort", DeepSeek's the last. What there is of the text is no answer.
_BROKEN_OFF = ("abort", "error", "insufficient_system_resource")
# How some say "length".
_CUT = ("max_tokens", "model_length")
# A list of models takes no thinking: a server that does not give it is not there yet, which is to be told.
_LIST_SECONDS = 30.0
_MOST_TOKENS = 2**31
_COUNTS = "stream_options"
_GREETING = {"role": "user", "content": "Hi"}
Value = TypeVar("Value")


@dataclass(frozen=True)
class _Dialect:
    """What servers differ in; an engine learns its server's from what that refuses.

    Args:
        limit: the name for the length of a completion; most know `max_tokens`, OpenAI's newer models only the other.
        strict: whether a JSON schema is to be followed to the letter. OpenAI takes only some schemas for that, and
            others without it; vLLM follows all of them in any case.
        counts: whether a stream is asked for its number of tokens, which some tell without being asked.
    """

    limit: str = "max_tokens"
    strict: bool = True
    counts: bool = True

    def without(self, refused: str | None) -> _Dialect | None:
        """The dialect of a server that refuses a parameter; None where there is no other way to say it."""
        if refused == self.limit == "max_tokens":
            return replace(self, limit="max_completion_tokens")
        if refused == "response_format" and self.strict:
            return replace(self, strict=False)
        if refused == _COUNTS and self.counts:
            return replace(self, counts=False)
        return None


class OpenAIEngine:
    """An `Engine` over the chat completions of a server, which applies the model's chat template itself.

    Retries, with back-off, on 408, 409, 429, 5xx and lost connections are the client library's.
    """

    chat = None
    tokens_in_flight = 0

    def __init__(self, spec: EngineSpec) -> None:
        self.options = OpenAIOptions.model_validate(dict(spec.arguments))
        self.model_name = public_name(spec.path)
        self._model = spec.path
        self.slots = self.options.max_concurrency
        self._free = Slots(self.slots)
        self._pace = Pace(self.slots + 1)  # the list of models comes beside
        self._dialect = _Dialect()
        self._template = dict(spec.chat_template_kwargs)
        self._client: Any = None

    @property
    def slowed(self) -> str:
        """Why fewer requests are made at once than could be; "" where as many are."""
        if self._pace.allowed >= self.slots:
            return ""
        return f"{self.options.base_url} answers {LIMITED}: it is asked {self._pace.allowed} of {self.slots} at once"

    async def start(self) -> None:
        """Asks the server, once, for its models.

        Raises:
            EngineStartError: it has none of that name, or does not let us in.
            EngineUnavailable: it does not answer, at least not now.
        """
        import openai

        options = self.options
        # Without a key none is sent that any server would take: the client library insists on one.
        key = os.environ.get(options.api_key_env) or "none"
        self._client = openai.AsyncOpenAI(
            base_url=options.base_url,
            api_key=key,
            max_retries=options.max_retries,
            http_client=client_of(self._pace, options.stream),
        )
        try:
            await self._look()
        except BaseException:
            await self.stop()  # its next start has a client of its own
            raise

    async def _look(self) -> None:
        """Whether the server is there and has the model."""
        import aiohttp
        import openai

        options = self.options
        try:
            once = self._client.with_options(
                max_retries=0, timeout=min(options.timeout or _LIST_SECONDS, _LIST_SECONDS)
            )
            models = [model.id async for model in await once.models.list()]
        except openai.NotFoundError:
            return  # a gateway without a list of models; the first request will tell
        except (openai.OpenAIError, aiohttp.ClientError) as error:
            status = getattr(error, "status_code", None)
            if status is None or status in _PASSING_STATUSES or status >= 500:
                raise EngineUnavailable(self._told(error)) from None
            raise EngineStartError(self._told(error), final=True) from None
        except (AttributeError, TypeError, ValueError):  # the client library's, at a page for people
            message = f"{options.base_url} answers, but not as an API does; is its path right?"
            raise EngineStartError(message, final=True) from None
        if self._model not in models and not await self._takes(once):
            served = ", ".join(models[:10]) or "none that it lists"
            message = f"{options.base_url} serves no model {self._model!r}; it serves: {served}"
            raise EngineStartError(message, final=True)

    async def _takes(self, client: Any) -> bool:
        """Whether a server takes requests for a model that it does not list: gateways have patterns and other names."""
        import aiohttp
        import openai

        try:
            await client.chat.completions.create(model=self._model, messages=[_GREETING], max_tokens=1)
        except openai.APIStatusError as error:
            # Of other statuses, and of other parameters, the first row's request will tell more.
            return error.status_code not in (400, 404, 422) or error.param == "max_tokens"
        except (openai.OpenAIError, aiohttp.ClientError, ValueError):
            return True
        return True

    async def generate(self, request: Request) -> Completion:
        """Completes one conversation."""
        seconds = self.options.timeout or request_seconds(request.sampling.get("max_tokens"))
        kept_out.set(False)
        priority.set(request.priority)
        async with self._free.held(request.priority):
            try:
                # Around all retries: a server that takes requests and never answers is to be known before the engine
                # is taken for hung, for which its rows would be blamed.
                async with asyncio.timeout(seconds):
                    answer = await self._answer(request, self._dialect, seconds)
            except TimeoutError:
                if kept_out.get():
                    raise EngineUnavailable(f"{self.options.base_url} answers {LIMITED}", limited=True) from None
                late = f"has not answered within {seconds:g} s"
                raise EngineUnavailable(f"{self.options.base_url} {late}", perhaps_row="timeout") from None
        return self._completion(answer)

    def _completion(self, answer: Any) -> Completion:
        """What a server's answer says, which may be anything at all: the client library checks nothing of it."""
        choice = next(iter(_field(answer, "choices", list) or ()), None)
        message = getattr(choice, "message", None)
        if not isinstance(getattr(message, "content", 0), str | list | None):
            # A gateway may say so that it failed, and a proxy has a page for it.
            raise self._failed("answers without a completion", "no_completion")
        reason = _field(choice, "finish_reason", str)
        if reason == "content_filter":
            raise RowRejected("content_filter")  # what is there was broken off
        if reason in _BROKEN_OFF:
            raise self._failed(f"broke a completion off: {reason}", reason)
        thoughts, text = _parts(getattr(message, "content", None))
        usage = getattr(answer, "usage", None)
        # Two names for what is no part of OpenAI's API; vLLM's server has used both.
        reasoning = _field(message, "reasoning", str) or _field(message, "reasoning_content", str)
        return Completion(
            text=text,
            finish_reason="length" if reason in _CUT else reason or "stop",
            input_tokens=_count(usage, "prompt_tokens"),
            output_tokens=_count(usage, "completion_tokens"),
            logprobs=_logprobs(getattr(choice, "logprobs", None)),
            reasoning=reasoning or thoughts,
        )

    def _failed(self, how: str, code: str) -> EngineUnavailable:
        return EngineUnavailable(f"{self.options.base_url} {how}", perhaps_row=code)

    async def _answer(self, request: Request, dialect: _Dialect, seconds: float) -> Any:
        import aiohttp
        import openai

        if self._client is None:
            raise EngineDead("the engine is stopped")
        body = _body(request.sampling, dialect, self._template)
        if self.options.stream:
            counts = {_COUNTS: {"include_usage": True}} if dialect.counts else {}
            body["extra_body"] = {**body.get("extra_body", {}), "stream": True, **counts}
        try:
            return await self._client.chat.completions.create(
                model=self._model,
                messages=[dict(message) for message in request.messages],
                timeout=seconds,
                **body,
            )
        except openai.APIStatusError as error:
            # Some servers name what they do not know in their text alone.
            refused = error.param or (
                _COUNTS if error.status_code in _ROW_STATUSES and _COUNTS in str(error.body) else None
            )
            if other := dialect.without(refused):
                # Requests that were under way in the old one may have learnt something else in the meantime.
                self._dialect = self._dialect.without(refused) or self._dialect
                return await self._answer(request, other, seconds)
            if error.status_code in _ROW_STATUSES:
                raise RowRejected(_refusal(error, body.get("extra_body", ()))) from None
            if error.status_code == _FORBIDDEN and await self._takes_others(request, dialect):
                raise RowRejected(f"refused_by_server:{_FORBIDDEN}") from None
            raise EngineUnavailable(
                self._told(error),
                final=error.status_code in _LASTING_STATUSES,
                perhaps_row=str(error.status_code) if error.status_code >= 500 else None,
                limited=error.status_code == LIMITED,
            ) from None
        except (openai.OpenAIError, aiohttp.ClientError) as error:
            raise EngineUnavailable(self._told(error)) from None
        except ValueError:
            raise self._failed("answers with what is no JSON", "no_completion") from None

    async def _takes_others(self, request: Request, dialect: _Dialect) -> bool:
        """Whether the server answers a request that differs from one only in that nobody could mind what is said."""
        import aiohttp
        import openai

        shortest = {name: value for name, value in request.sampling.items() if name != "min_tokens"} | {"max_tokens": 1}
        once = self._client.with_options(max_retries=0, timeout=_LIST_SECONDS)
        try:
            await once.chat.completions.create(
                model=self._model, messages=[_GREETING], **_body(shortest, dialect, self._template)
            )
        except (openai.OpenAIError, aiohttp.ClientError, ValueError):
            return False
        return True

    async def stop(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    def _told(self, error: Exception) -> str:
        """What went wrong, without the server's text, which may quote a prompt or the key."""
        status = getattr(error, "status_code", None)
        # Some gateways say 400 to a wrong key; a row's own 400 is told as its rejection.
        hint = f"; is {self.options.api_key_env} set and right?" if status in (400, 401, 403) else ""
        if status in _GATEWAY_LATE and not self.options.stream:
            hint = "; if its gateway waits no longer, engine: {stream: true} may help"
        what = f"answers {status}" if status else f"cannot be reached ({cause_of(error)})"
        return f"{self.options.base_url} {what}{hint}"


def _refusal(error: Any, extra: Iterable[str]) -> str:
    """Why a row is rejected: the server's names for what is wrong, where it gives any, and never its text.

    Args:
        extra: parameters that are not OpenAI's. A server that knows one of them not may say so in its text alone.
    """
    names = [name for name in (error.code, error.param) if isinstance(name, str) and _NAME.fullmatch(name)]
    names = names or [name for name in extra if re.search(rf"\b{name}\b", str(error.body))]
    kind = error.type  # llama.cpp's server has its names there
    if not names and isinstance(kind, str) and _NAME.fullmatch(kind) and kind not in _ANY_REFUSAL:
        names = [kind]
    return ":".join(["refused_by_server", *names])


def _parts(content: Any) -> tuple[str | None, str]:
    """(thoughts, text) of a message, which Mistral's models give in parts."""
    if not isinstance(content, list):
        return None, content or ""
    thinking = [part.get("thinking") for part in content if isinstance(part, dict)]
    return "".join(map(_joined, thinking)) or None, _joined(content)


def _joined(parts: Any) -> str:
    """The text of parts; those of thoughts have none of their own."""
    if isinstance(parts, str):
        return parts
    given = parts if isinstance(parts, list) else ()
    return "".join(str(part.get("text") or "") for part in given if isinstance(part, dict))


def _field(of: Any, name: str, kind: type[Value]) -> Value | None:
    """What an answer has under a name; None where it has none of that kind."""
    value = getattr(of, name, None)
    return value if isinstance(value, kind) else None


def _count(usage: Any, name: str) -> int:
    """A number of tokens; 0 where a server does not tell it."""
    count = _field(usage, name, int) or 0
    return count if 0 <= count <= _MOST_TOKENS else 0


def _logprobs(given: Any) -> Sequence[float]:
    """The log-probability of every token; none where one is missing."""
    tokens = _field(given, "content", list) or ()
    values = [value for token in tokens if isinstance(value := getattr(token, "logprob", None), int | float)]
    return values if len(values) == len(tokens) else []


def _body(sampling: Mapping[str, Any], dialect: _Dialect, template: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's SamplingParams, and arguments of the chat template, as arguments of the client's `create`."""
    body: dict[str, Any] = {name: value for name, value in sampling.items() if name in _STANDARD}
    if "max_tokens" in body:
        body[dialect.limit] = body.pop("max_tokens")
    extra = {name: value for name, value in sampling.items() if name not in _STANDARD}
    if "logprobs" in extra:
        body["logprobs"] = True
        del extra["logprobs"]
    if structure := extra.pop("structured_outputs", None):
        if "json" in structure:
            schema = structure["json"]  # a mapping, or its text, which vLLM takes as well
            schema = json.loads(schema) if isinstance(schema, str) else schema
            answer = {"name": "answer", "schema": schema, "strict": dialect.strict}
            body["response_format"] = {"type": "json_schema", "json_schema": answer}
        elif structure.get("json_object"):
            body["response_format"] = {"type": "json_object"}
        else:
            extra["structured_outputs"] = dict(structure)
    if template:
        extra["chat_template_kwargs"] = template
    if extra:
        body["extra_body"] = extra
    return body
