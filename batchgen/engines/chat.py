"""Writes conversations as tokens, and finds out how a model opens and closes a user turn.

Magpie needs the text that precedes a user's words (the pre-query template) and the one that follows them (the stop
condition). Both are read off the model's own chat template: a conversation that ends in a user message with a sentinel
as its content is rendered without a generation prompt and cut at the sentinel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from batchgen.embedded import MODEL_PATH
from batchgen.engines.base import Message
from batchgen.errors import ModelError

_SENTINEL = "batchgen0sentinel0batchgen"
_ANSWER_SENTINEL = "batchgen1sentinel1batchgen"

Render = Callable[[Sequence[Message], bool], str]
Encode = Callable[[str], list[int]]


class TemplateChat:
    """A `ChatFormat` over a chat template.

    Args:
        render: a conversation, and whether to open the assistant's turn, to text.
        encode: text to token ids, adding no special tokens of its own.
        special: token ids that are single special tokens, by their text.
        pre_query_template: overrides the derived opening of a user turn.
    """

    def __init__(
        self,
        render: Render,
        encode: Encode,
        special: Callable[[str], int | None],
        pre_query_template: str | None = None,
    ) -> None:
        self._render = render
        self._encode = encode
        self._special = special
        self._override = pre_query_template

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to where the assistant's answer starts."""
        return self._encode(self._render(messages, True))

    def user_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to where the next user turn starts, with no empty assistant header before it."""
        if self._override is not None:
            history = self._render(messages, False) if messages else ""
            return self._encode(history + self._override)
        return self._encode(self._before_sentinel(messages))

    @cached_property
    def user_stop(self) -> tuple[Sequence[str], Sequence[int]]:
        """Texts and token ids that end a user turn."""
        rendered = self._render([{"role": "user", "content": _SENTINEL}], False)
        end = rendered.partition(_SENTINEL)[2].strip()
        if not end:
            # Nothing marks the end: what the template puts before an answer does.
            answered = self._render(
                [
                    {"role": "user", "content": _SENTINEL},
                    {"role": "assistant", "content": _ANSWER_SENTINEL},
                ],
                False,
            )
            end = answered.partition(_SENTINEL)[2].partition(_ANSWER_SENTINEL)[0].strip()
        if not end:
            raise ModelError("the model's chat template does not mark where a user turn ends, so Magpie cannot use it")
        token = self._special(end)
        return ((), (token,)) if token is not None else ((end,), ())

    def check_user_turn(self) -> None:
        """Refuses a template in which no user turn can be opened.

        Raises:
            ModelError: with the reason.
        """
        try:
            opening = self._override if self._override is not None else self._before_sentinel([])
            stop = self.user_stop
        except ModelError:
            raise
        except Exception as error:  # a template's own complaint, of any type
            raise ModelError(f"the model's chat template cannot open a user turn: {error}") from error
        if not opening.strip() or not any(stop):
            raise ModelError("the model's chat template writes nothing before a user turn, so Magpie cannot use it")

    def _before_sentinel(self, messages: Sequence[Message]) -> str:
        rendered = self._render([*messages, {"role": "user", "content": _SENTINEL}], False)
        before, found, _ = rendered.partition(_SENTINEL)
        if not found:
            raise ModelError("the model's chat template drops or changes user messages, so Magpie cannot use it")
        return before


def resolve_path(path: str) -> str:
    """The folder or Hub name behind a job's `model.path`."""
    return str(MODEL_PATH) if path == "embedded" else path


def load_tokenizer(path: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The model's own tokenizer.

    Raises:
        ModelError: there is no such model, or it has no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            resolve_path(path), revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # transformers and the Hub client raise a dozen types here
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"model.path: {path!r} is neither a model folder nor a model that the Hugging Face Hub gives ({reason})"
        ) from error
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(f"model.path: {path!r} has no chat template; batchgen needs a chat model")
    return tokenizer


def chat_from_tokenizer(tokenizer: Any, pre_query_template: str | None = None) -> TemplateChat:
    """The chat format of a transformers tokenizer."""
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())

    def render(messages: Sequence[Message], open_answer: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=open_answer
        )
        return text

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    return TemplateChat(render, encode, lambda text: vocabulary[text] if text in special else None, pre_query_template)


def byte_chat() -> TemplateChat:
    """ChatML over UTF-8 bytes as token ids: the chaos engine's, which has no model."""

    def render(messages: Sequence[Message], open_answer: bool) -> str:
        turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        return turns + ("<|im_start|>assistant\n" if open_answer else "")

    return TemplateChat(render, lambda text: list(text.encode("utf-8", "surrogatepass")), lambda text: None)
