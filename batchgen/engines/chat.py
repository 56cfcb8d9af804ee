"""Writes conversations as tokens, and finds out what a model writes around the turns of one.

Magpie needs the text that precedes a user's words (the pre-query template) and the one that follows them (the stop
condition). Both are read off the model's own chat template: a conversation with a sentinel for the user's words is
rendered and cut at the sentinel. So is what a template has around an answer, which some models write themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import takewhile

from batchgen.engines.base import Completion, Message, Prompt
from batchgen.engines.reasoning import marks_of
from batchgen.errors import ModelError

_SENTINEL = "batchgen0sentinel0batchgen"
_ANSWER_SENTINEL = "batchgen1sentinel1batchgen"
_SYSTEM_SENTINEL = "batchgen2sentinel2batchgen"
_LONGEST_BETWEEN = 200
_USER: Message = {"role": "user", "content": _SENTINEL}
_ANSWER: Message = {"role": "assistant", "content": _ANSWER_SENTINEL}

Render = Callable[[Sequence[Message], bool], str]
Encode = Callable[[str], list[int]]


class TemplateChat:
    """A `ChatFormat` over a chat template.

    Args:
        render: a conversation, and whether to open the assistant's turn, to text.
        encode: text to token ids, adding no special tokens of its own.
        special: tokens that a tokenizer finds before it splits a text, text to id.
        pre_query_template: overrides the derived opening of a user turn.
        hidden: those of them that are left out of a decoded text.
        bos: the one that begins a conversation, where the tokenizer names it; the template need not write it.
    """

    def __init__(
        self,
        render: Render,
        encode: Encode,
        special: Mapping[str, int],
        pre_query_template: str | None = None,
        hidden: Collection[str] = (),
        bos: str | None = None,
    ) -> None:
        self._template = render
        # Several generations of a row begin one after the other, with the same prompt: a millisecond for 2,500 tokens.
        self._encode = lru_cache(maxsize=16)(lambda text: tuple(encode(text)))
        self._special = special
        self._hidden_ids = frozenset(special[text] for text in hidden if text in special)
        self._special_texts = tuple(text for text in special if text)
        self._mark = _any_of(text for text in special if text.strip())
        self._override = pre_query_template
        self._hidden = _any_of(hidden)
        self._named_bos = bos
        self.reasoning = marks_of(special, hidden)
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

    def conversation(self, messages: Sequence[Message]) -> Prompt:
        """A whole conversation, as a reward model reads it."""
        return self._tokenized(self._render(messages, False), None)

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
        """What stands before a first user turn and before no later one: a BOS. "" where there is none.

        A tokenizer may name it; else it is the special tokens that a conversation begins with.
        """
        try:
            rendered = self._render([_USER, _ANSWER, _USER], False)
        except Exception:  # a template's own complaint, of any type
            return ""
        first = rendered.partition(_SENTINEL)[0]
        later = rendered.partition(_ANSWER_SENTINEL)[2].partition(_SENTINEL)[0]
        # Some models have one token for a BOS and for the end of an answer; what opens a user's turn both texts end in.
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(first), reversed(later), strict=False))
        header = first[len(first) - sum(1 for _ in alike) :]
        if self._named_bos is not None:
            return self._named_bos if first.startswith(self._named_bos) and self._named_bos not in header else ""
        end = 0
        while (mark := self._mark.match(first, end)) and mark[0] not in header:
            end = mark.end()
        return first[:end]

    def continued(self, prompt: Prompt, completion: Completion) -> Prompt | None:
        """A prompt with its completion; None where the completion's text and tokens differ."""
        ids = completion.token_ids
        # A hidden token is left out of the text, half a character is replaced in it.
        if not ids or "\ufffd" in completion.text or not self._hidden_ids.isdisjoint(ids):
            return None
        return Prompt(prompt.text + completion.text, [*prompt.token_ids, *ids])

    def without_special(self, text: str) -> str:
        """A text without the special tokens in it."""
        return self._hidden.sub("", text).strip()

    def unwrapped(self, text: str) -> str:
        """An answer without what the template has around one, where the model wrote that as well."""
        opening, closing = self._around_answer
        if opening and text.lstrip().startswith(opening):
            text = text.lstrip().removeprefix(opening).lstrip()
        if closing and closing in text:
            text = text.partition(closing)[0].rstrip()
        return self.without_special(text) if self.reasoning.special else text

    @cached_property
    def _around_answer(self) -> tuple[str, str]:
        """What comes between an assistant's header and its answer, and the special token after that; "" for none.

        Command R and A write `<|START_RESPONSE|>` and `<|END_RESPONSE|>`, which are in the texts of completions.
        """
        try:
            rendered = self._render([_USER, _ANSWER, _USER], False)
            asked = self._render([_USER], True)
        except Exception:  # a template's own complaint, of any type
            return "", ""
        before, found, after = rendered.partition(_ANSWER_SENTINEL)
        if not found:
            return "", ""
        # As tokens: thoughts that the prompt opens, or a generation prompt of another length, part the two.
        pieces, prompt = ([piece for piece in self._mark.split(text) if piece] for text in (before, asked))
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(pieces, prompt, strict=False)))
        opening, opened = "".join(pieces[shared:]), "".join(prompt[shared:])
        mark = self._mark.match(after.lstrip())
        # A hidden token that stands in a text all the same is spelled: an answer may be about chat templates.
        shown = mark is not None and (self.reasoning.special or not self._hidden.fullmatch(mark[0]))
        return opening.removeprefix(opened).lstrip(), mark[0] if mark and shown else ""

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
        answered = self._render([_USER, _ANSWER], False)
        end = answered.partition(_SENTINEL)[2].partition(_ANSWER_SENTINEL)[0].strip()
        alone = self._render([_USER], False).partition(_SENTINEL)[2].strip()
        if alone and end.startswith(alone):
            end = alone  # without the header of an answer; some templates close a conversation with more than a turn
        if not end:
            raise ModelError("the model's chat template does not mark where a user turn ends, so Magpie cannot use it")
        # The first token says it: what follows, an answer's header or empty thoughts, is not the user's to write. A
        # text with a hidden token in it would end nothing, as texts of completions are without them.
        mark = self._mark.search(end)
        if mark is not None and mark.start() == 0:
            return (), (self._special[mark[0]],)
        return ((end[: mark.start()].strip() if mark else end),), ()

    @property
    def user_end(self) -> str:
        """What ends a user turn, as text."""
        texts, ids = self.user_stop
        return "".join((*texts, *(text for text, number in self._special.items() if number in ids)))

    def check_prompt(self) -> None:
        """Refuses a template that cannot write a conversation.

        Raises:
            ModelError: with the reason.
        """
        try:
            written = self._render([_USER], True)
        except Exception as error:  # a template's own complaint, of any type
            raise ModelError(f"the model's chat template cannot write a user message: {error}") from error
        if _SENTINEL not in written:
            raise ModelError("the model's chat template drops or changes user messages")

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
        before, found, _ = self._render([*messages, _USER], False).partition(_SENTINEL)
        if not found:
            raise ModelError("the model's chat template drops or changes user messages, so Magpie cannot use it")
        return before.rstrip(" ") if self._joins_spaces else before

    @cached_property
    def _joins_spaces(self) -> bool:
        """Whether a space before a user's first word is part of that word's token, as it is in most tokenizers.

        A prompt that ends in a token for the space alone is none that the model has seen; it writes the space itself.
        """
        opening = self._render([_USER], False).partition(_SENTINEL)[0]
        ids = self._encode(opening)
        return opening.endswith(" ") and self._encode(f"{opening}{_SENTINEL}")[: len(ids)] != ids


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern of one group that finds the longest of some texts; nothing where there are none."""
    alternatives = "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True) if text)
    return re.compile(f"({alternatives})" if alternatives else r"(?!)")


def _is_system_prompt(message: Message) -> bool:
    return message.keys() == {"role", "content"} and message["role"] == "system" and isinstance(message["content"], str)


def byte_chat() -> TemplateChat:
    """ChatML over UTF-8 bytes as token ids: the chaos engine's, which has no model."""

    def render(messages: Sequence[Message], open_answer: bool) -> str:
        turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        return turns + ("<|im_start|>assistant\n" if open_answer else "")

    return TemplateChat(render, lambda text: list(text.encode("utf-8", "surrogatepass")), {})
