"""Writes conversations as tokens, and finds out how a model opens and closes a user turn.

Magpie needs the text that precedes a user's words (the pre-query template) and the one that follows them (the stop
condition). Both are read off the model's own chat template: a conversation that ends in a user message with a sentinel
as its content is rendered without a generation prompt and cut at the sentinel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import Any

from batchgen.engines.base import Completion, Message, Prompt
from batchgen.engines.reasoning import marks_of
from batchgen.engines.repository import Repository, find_folder
from batchgen.errors import ModelError, RowRejected

_SENTINEL = "batchgen0sentinel0batchgen"
_ANSWER_SENTINEL = "batchgen1sentinel1batchgen"
_SYSTEM_SENTINEL = "batchgen2sentinel2batchgen"
_LONGEST_BETWEEN = 200

Render = Callable[[Sequence[Message], bool], str]
Encode = Callable[[str], list[int]]


class TemplateChat:
    """A `ChatFormat` over a chat template.

    Args:
        render: a conversation, and whether to open the assistant's turn, to text.
        encode: text to token ids, adding no special tokens of its own.
        special: single special tokens, text to id.
        pre_query_template: overrides the derived opening of a user turn.
        hidden: the special tokens that are left out of a decoded text.
    """

    def __init__(
        self,
        render: Render,
        encode: Encode,
        special: Mapping[str, int],
        pre_query_template: str | None = None,
        hidden: Collection[str] = (),
    ) -> None:
        self._template = render
        # Several generations of a row begin one after the other, with the same prompt: a millisecond for 2,500 tokens.
        self._encode = lru_cache(maxsize=16)(lambda text: tuple(encode(text)))
        self._special = special
        self._special_ids = frozenset(special.values())
        self._special_texts = tuple(text for text in special if text)
        self._override = pre_query_template
        self._hidden = re.compile("|".join(re.escape(text) for text in sorted(hidden, key=len, reverse=True) if text))
        self.reasoning = marks_of(hidden)
        # Most rows begin with the same system prompt, or one of a few.
        self._opening = lru_cache(maxsize=1024)(self._opened)
        # Between two turns stands the same text in every row.
        self._between = lru_cache(maxsize=1024)(self._encode)

    def _render(self, messages: Sequence[Message], open_answer: bool) -> str:
        begins = [message["role"] for message in messages[:2]] == ["system", "user"]
        if begins and _is_system_prompt(messages[0]) and not self._has_system_role:
            system, user, *rest = messages
            messages = [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        return self._template(messages, open_answer)

    @cached_property
    def _has_system_role(self) -> bool:
        """Whether the template writes system prompts: some refuse them, others leave them out without a word.

        Where it does not they stand before the user's first words, which is what newer templates of such models do.
        """
        system = {"role": "system", "content": _SYSTEM_SENTINEL}
        try:
            return _SYSTEM_SENTINEL in self._template([system, {"role": "user", "content": _SENTINEL}], False)
        except Exception:  # a template's own complaint, of any type
            return False

    def prompt(self, messages: Sequence[Message], known: Prompt | None = None) -> Prompt:
        """Everything up to where the assistant's answer starts."""
        return self._tokenized(self._render(messages, True), known)

    def user_prompt(self, messages: Sequence[Message], known: Prompt | None = None) -> Prompt:
        """Everything up to where the next user turn starts, with no empty assistant header before it."""
        if not messages or (len(messages) == 1 and _is_system_prompt(messages[0])):
            return self._opening(*(message["content"] for message in messages))
        return self._tokenized(self._up_to_user_turn(messages), known)

    def _opened(self, *system_prompt: str) -> Prompt:
        messages = [{"role": "system", "content": text} for text in system_prompt]
        return self._tokenized(self._up_to_user_turn(messages), None)

    def _up_to_user_turn(self, messages: Sequence[Message]) -> str:
        if self._override is None:
            return self._before_sentinel(messages)
        # One BOS, before everything, whether or not the given text has it.
        opening = self._override.removeprefix(self._bos)
        if len(messages) == 1 and _is_system_prompt(messages[0]) and not self._has_system_role:
            return f"{self._bos}{opening}{messages[0]['content']}\n\n"
        return (self._render(messages, False) if messages else self._bos) + opening

    @cached_property
    def _bos(self) -> str:
        """The special token before a first user turn that no later one has: a BOS. "" where there is none."""
        user, answer = {"role": "user", "content": _SENTINEL}, {"role": "assistant", "content": _ANSWER_SENTINEL}
        try:
            rendered = self._render([user, answer, user], False)
        except Exception:  # a template's own complaint, of any type
            return ""
        first = rendered.partition(_SENTINEL)[0]
        later = rendered.partition(_ANSWER_SENTINEL)[2].partition(_SENTINEL)[0]
        # Some models have one token for a BOS and for the end of an answer; what opens a user's turn both texts end in.
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(first), reversed(later), strict=False))
        header = first[len(first) - sum(1 for _ in alike) :]
        found = [text for text in self._special_texts if first.startswith(text) and text not in header]
        return max(found, key=len, default="")

    def continued(self, prompt: Prompt, completion: Completion) -> Prompt | None:
        """A prompt with its completion; None where the completion's text and tokens differ."""
        ids = completion.token_ids
        # A special token is left out of the text, half a character is replaced in it.
        if not ids or "\ufffd" in completion.text or not self._special_ids.isdisjoint(ids):
            return None
        return Prompt(prompt.text + completion.text, [*prompt.token_ids, *ids])

    def without_special(self, text: str) -> str:
        """A text without the special tokens in it."""
        return self._hidden.sub("", text).strip() if self._hidden.pattern else text

    def _tokenized(self, text: str, known: Prompt | None) -> Prompt:
        """Encodes a text; what follows `known` alone, where a special token divides the two."""
        if known is not None and text.startswith(known.text):
            rest = text[len(known.text) :]
            if rest.startswith(self._special_texts):
                encode = self._between if len(rest) <= _LONGEST_BETWEEN else self._encode
                return Prompt(text, [*known.token_ids, *encode(rest)])
        return Prompt(text, list(self._encode(text)))

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
        token = self._special.get(end)
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


def _is_system_prompt(message: Message) -> bool:
    return message.keys() == {"role", "content"} and message["role"] == "system" and isinstance(message["content"], str)


def load_tokenizer(
    model: Repository, trust_remote_code: bool = False, arguments: Mapping[str, Any] | None = None
) -> Any:
    """The tokenizer of a model: its own, or the one that vLLM's engine arguments name.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    named, other = (arguments or {}).get("tokenizer"), (arguments or {}).get("tokenizer_revision")
    try:
        return AutoTokenizer.from_pretrained(
            find_folder(named) if named else model.target,
            revision=other or (None if named else model.revision),
            trust_remote_code=trust_remote_code,
            # Where a model of Mistral's has both: mistral-common, which vLLM brings along, knows no chat templates.
            mistral_format=False,
        )
    except Exception as error:  # transformers and the Hub client raise a dozen types here
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        field = "model.engine.tokenizer" if named else "model.path"
        hint = " (--trust-remote-code lets it run)" if "custom code" in reason and not trust_remote_code else ""
        message = f"{field}: the tokenizer of {named or model.path!r} cannot be loaded: {reason}{hint}"
        raise ModelError(message) from error


def has_chat_template(tokenizer: Any) -> bool:
    """Whether a model is a chat model; a base model can only go on from a text."""
    return bool(getattr(tokenizer, "chat_template", None))


def longest_context(model: Repository, trust_remote_code: bool = False) -> int | None:
    """The most tokens that vLLM lets a model take, where its config says so plainly; None where only vLLM can tell."""
    from transformers import AutoConfig

    if os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") not in ("0", ""):
        return None
    try:
        config = AutoConfig.from_pretrained(
            model.target, revision=model.revision, trust_remote_code=trust_remote_code
        ).get_text_config()
    except Exception:  # an architecture that only vLLM knows, files that are not there yet: vLLM will tell
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "default":
        return None  # stretched positions: by how much is vLLM's to work out
    longest = getattr(config, "max_position_embeddings", None)
    return longest if isinstance(longest, int) else None


def chat_from_tokenizer(
    tokenizer: Any, pre_query_template: str | None = None, arguments: Mapping[str, Any] | None = None
) -> TemplateChat:
    """The chat format of a transformers tokenizer; of a base model's, one in which a message is its text.

    Args:
        arguments: what the template is given besides the messages.
    """
    is_chat = has_chat_template(tokenizer)
    vocabulary = tokenizer.get_vocab()
    special = {
        text: vocabulary[text]
        for text in {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        if text in vocabulary
    }

    def render(messages: Sequence[Message], open_answer: bool) -> str:
        if not is_chat:
            return _only_text(messages)
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=open_answer,
            **(arguments or {}),
        )
        return text

    def encode(text: str) -> list[int]:
        # A chat template writes the special tokens itself.
        ids: list[int] = tokenizer(text, add_special_tokens=not is_chat, verbose=False)["input_ids"]
        return ids

    hidden = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return TemplateChat(render, encode, special, pre_query_template, hidden)


def _only_text(messages: Sequence[Message]) -> str:
    if [message["role"] for message in messages] != ["user"]:
        raise RowRejected("needs_chat_template")
    return messages[0]["content"]


def byte_chat() -> TemplateChat:
    """ChatML over UTF-8 bytes as token ids: the chaos engine's, which has no model."""

    def render(messages: Sequence[Message], open_answer: bool) -> str:
        turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        return turns + ("<|im_start|>assistant\n" if open_answer else "")

    return TemplateChat(render, lambda text: list(text.encode("utf-8", "surrogatepass")), {})
