"""A model's own tokenizer: how it is loaded, and the chat format that its template makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from batchgen.engines.base import Message
from batchgen.engines.chat import Render, TemplateChat
from batchgen.engines.repository import Repository, find_folder
from batchgen.errors import ModelError, RowRejected

_PROBE: Message = {"role": "user", "content": "batchgen0probe0batchgen"}


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

    def template(messages: Sequence[Message], open_answer: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=open_answer,
            **(arguments or {}),
        )
        return text

    def render(messages: Sequence[Message], open_answer: bool) -> str:
        if not is_chat:
            return _only_text(messages)
        return template(_in_parts(messages) if wants_parts() else messages, open_answer)

    @cache
    def wants_parts() -> bool:
        return not _keeps_text(template, [_PROBE]) and _keeps_text(template, _in_parts([_PROBE]))

    def encode(text: str) -> list[int]:
        # A chat template writes the special tokens itself.
        ids: list[int] = tokenizer(text, add_special_tokens=not is_chat, verbose=False)["input_ids"]
        return ids

    hidden = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return TemplateChat(render, encode, special, pre_query_template, hidden, tokenizer.bos_token)


def _keeps_text(template: Render, messages: Sequence[Message]) -> bool:
    try:
        return _PROBE["content"] in template(messages, False)
    except Exception:  # a template's own complaint, of any type
        return False


def _in_parts(messages: Sequence[Message]) -> list[Any]:
    """Messages as templates of some models that also take images read them; they drop a text that stands alone."""
    return [
        {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message
        for message in messages
        for content in [message["content"]]
    ]


def _only_text(messages: Sequence[Message]) -> str:
    if [message["role"] for message in messages] != ["user"]:
        raise RowRejected("needs_chat_template")
    return messages[0]["content"]
