"""The engine contract: what turns prompts into completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from batchgen.engines.reasoning import ReasoningMarks

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as a model reads it.

    Args:
        text: special tokens written out.
        token_ids: of exactly that text.
    """

    text: str
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt.

    Args:
        token_ids: the prompt as it goes to the model.
        sampling: vLLM's SamplingParams by name.
        seed: this request's own randomness, 63 bits, for engines that can use it.
        stop: texts that end the completion, besides the model's own end of turn.
        stop_token_ids: tokens that end it.
        key: names the request in logs, without any of its content.
        messages: the conversation behind `token_ids`, for engines whose server applies the chat template itself.
        priority: where more requests wait than the engine has slots, lower ones go first; equal ones as they came.
    """

    token_ids: Sequence[int]
    sampling: Mapping[str, Any]
    seed: int
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    key: str = ""
    messages: Sequence[Message] = ()
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back for a request.

    Args:
        text: without special tokens.
        finish_reason: "stop", "length" or "repetition", as vLLM says it.
        input_tokens: length of the prompt.
        output_tokens: length of the completion.
        token_ids: of exactly `text`; empty where that is not known.
        logprobs: of the generated tokens, where `sampling` asks for them.
        reasoning: thoughts that a server told from the text.
        score: that a reward model gave, which writes no text.
    """

    text: str
    finish_reason: str
    input_tokens: int
    output_tokens: int
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    reasoning: str | None = None
    score: float | None = None


class ChatFormat(Protocol):
    """How a model writes a conversation.

    `known` is the start of the conversation with the tokens that it had in the engine: they are used as they are where
    the conversation's text goes on from it.
    """

    def prompt(self, messages: Sequence[Message], known: Prompt | None = None) -> Prompt:
        """Everything up to where the assistant's answer starts."""

    def user_prompt(self, messages: Sequence[Message], known: Prompt | None = None) -> Prompt:
        """Everything up to where the next user turn starts (Magpie)."""

    def conversation(self, messages: Sequence[Message]) -> Prompt:
        """A whole conversation, as a reward model reads it."""

    def continued(self, prompt: Prompt, completion: Completion) -> Prompt | None:
        """A prompt with its completion; None where the completion's text and tokens differ."""

    @property
    def reasoning(self) -> ReasoningMarks:
        """What the model writes around its thoughts, if it has any."""

    def without_special(self, text: str) -> str:
        """A text without the special tokens in it."""

    def unwrapped(self, text: str) -> str:
        """An answer without what the template has around one, where the model wrote that as well."""

    @property
    def user_stop(self) -> tuple[Sequence[str], Sequence[int]]:
        """Texts and token ids that end a user turn."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Everything that an engine is built from; small, and safe to send to another machine.

    Args:
        path: a folder, a Hub name, or `embedded` or `chaos`; what the server calls its model for `openai`.
        backend: `vllm`, `openai` or `transformers`.
        revision: of a Hub model.
        arguments: vLLM's engine arguments, or the backend's own.
        gpu_memory: the part of a GPU's memory that it has, where others are on it (vLLM); None: vLLM's default.
        lora: folder of an adapter that every request uses.
        pre_query_template: text that opens a user turn, where it cannot be derived.
        chat_template_kwargs: what the chat template is given besides the messages.
        trust_remote_code: set by a command-line flag only.
        seed: differs at every engine start.
        samplings: what the job's steps ask of it, by where they say so.
        scores: whether its model is a reward model, of which steps ask nothing else.
    """

    path: str
    backend: str = "vllm"
    revision: str | None = None
    lora: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    gpu_memory: float | None = None
    pre_query_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    seed: int = 0
    samplings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scores: bool = False


class Engine(Protocol):
    """Turns requests into completions, many at a time; those of a reward model have a score in place of a text.

    `generate` raises `RowRejected` for a request that this engine can never serve (a prompt that is too long),
    `EngineDead` when the engine itself is gone and `EngineUnavailable` when a server elsewhere is; it is safe to call
    from many coroutines of one event loop.
    """

    @property
    def model_name(self) -> str:
        """What the `model` column says."""

    @property
    def chat(self) -> ChatFormat | None:
        """How this engine's model writes a conversation; None where its server does, from a request's messages."""

    @property
    def slots(self) -> int:
        """How many requests the engine works on at once."""

    @property
    def tokens_in_flight(self) -> int:
        """Output tokens so far of the requests that it works on; 0 where it is told of whole completions alone."""

    async def start(self) -> None:
        """Loads the model; raises `EngineStartError`, or `EngineUnavailable` where it is on a server elsewhere."""

    async def generate(self, request: Request) -> Completion:
        """Completes one prompt."""

    async def stop(self) -> None:
        """Releases everything; never raises."""
