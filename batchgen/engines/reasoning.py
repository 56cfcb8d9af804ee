"""Tells the thoughts of a reasoning model from its answer, by the marks that the model writes around them."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

_CLOSING = re.compile(r"([<\[])/([^<>\[\]]*think[^<>\[\]]*)([>\]])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """What a model writes around its thoughts.

    Args:
        start: opens them; a completion that does not begin with it, and whose prompt does not end in it, has none.
        end: closes them; the answer follows.
        close: ends the thoughts themselves, where more than `end` comes between them and the answer.
        special: whether there are special tokens in them, which an engine leaves out of a text unless told not to.
    """

    start: str = "<think>"
    end: str = "</think>"
    close: str | None = None
    special: bool = False

    def split(self, prompt: str | None, text: str, structured: bool = False) -> tuple[str | None, str | None]:
        """(thoughts, answer) of a completion; no thoughts where it has none, no answer where it ends before one.

        Args:
            prompt: what the model went on from: a template may have opened the thoughts. None where a server wrote it.
            structured: whether it is a whole structured output, which has no room for thoughts that a template opened.
        """
        body = text.lstrip()
        if body.startswith(self.start):
            body = body[len(self.start) :]
        elif body.startswith(self.end):
            return None, body[len(self.end) :]
        elif not self._opened(prompt, body) or (structured and self.end not in body):
            return None, text
        thoughts, found, answer = body.partition(self.end)
        if self.close is not None:
            thoughts = thoughts.partition(self.close)[0]
        return thoughts.strip(), answer.strip() if found else None

    def _opened(self, prompt: str | None, body: str) -> bool:
        """Whether thoughts were opened before a completion that does not begin with them."""
        if prompt is not None:
            return prompt.rstrip().endswith(self.start.rstrip())
        before, found, _ = body.partition(self.end)
        return bool(found) and self.start not in before


# Qwen 3, DeepSeek R1, QwQ, SmolLM 3, GLM and most others.
THINK = ReasoningMarks()
# Of models whose marks have more in them than tokens that are named for thoughts, by tokens that only they have.
_FAMILIES = (
    # gpt-oss.
    (
        ("<|channel|>", "<|message|>"),
        ReasoningMarks("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|end|>"),
    ),
    # Gemma 4.
    (("<|channel>", "<channel|>"), ReasoningMarks("<|channel>thought\n", "<channel|>")),
    # Command A and its successors.
    (("<|START_THINKING|>", "<|END_THINKING|>"), ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>")),
    # Muse Glimmer.
    (("<|message|>", "<|eom|>"), ReasoningMarks("to=self<|message|>", "to=user<|message|>", "<|eom|>")),
    # Solar Open.
    (("<|think|>", "<|content|>"), ReasoningMarks("<|think|>", "<|begin|>assistant<|content|>", "<|end|>")),
    # Kimi K3.
    (
        ("<|open|>", "<|close|>", "<|sep|>"),
        ReasoningMarks("<|open|>think<|sep|>", "<|open|>response<|sep|>", "<|close|>think<|sep|>"),
    ),
)


def marks_of(added: Collection[str], hidden: Collection[str]) -> ReasoningMarks:
    """The marks of a model: its family's, or a pair of tokens such as `<seed:think>`, else `<think>` as a text.

    Args:
        added: the tokens that its tokenizer finds before it splits a text.
        hidden: those of them that it leaves out of texts.
    """
    marks = next((marks for tokens, marks in _FAMILIES if set(tokens) <= set(added)), None) or _named(added)
    return replace(marks, special=any(token in f"{marks.start}{marks.close}{marks.end}" for token in hidden if token))


def _named(added: Collection[str]) -> ReasoningMarks:
    # Where a model has several, as for efforts, the plain one has the shortest name.
    for match in sorted(filter(None, map(_CLOSING.fullmatch, added)), key=lambda match: len(match[0])):
        start = f"{match[1]}{match[2]}{match[3]}"
        if start in added:
            return ReasoningMarks(start, match[0])
    return THINK
