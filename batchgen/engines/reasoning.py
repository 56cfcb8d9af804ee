"""Tells the thoughts of a reasoning model from its answer, by the marks that the model writes around them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """What a model writes around its thoughts.

    Args:
        start: opens them; a completion that does not begin with it, and whose prompt does not end in it, has none.
        end: closes them; the answer follows.
        close: ends the thoughts themselves, where more than `end` comes between them and the answer.
        special: whether they are special tokens, which an engine leaves out of a text unless it is told not to.
    """

    start: str = "<think>"
    end: str = "</think>"
    close: str | None = None
    special: bool = False

    def split(self, prompt: str, text: str, structured: bool = False) -> tuple[str | None, str | None]:
        """(thoughts, answer) of a completion; no thoughts where it has none, no answer where it ends before one.

        Args:
            prompt: what the model went on from: a template may have opened the thoughts.
            structured: whether it is a whole structured output, which has no room for thoughts that a template opened.
        """
        body = text.lstrip()
        if body.startswith(self.start):
            body = body[len(self.start) :]
        elif body.startswith(self.end):
            return None, body[len(self.end) :]
        elif not prompt.rstrip().endswith(self.start) or (structured and self.end not in body):
            return None, text
        thoughts, found, answer = body.partition(self.end)
        if self.close is not None:
            thoughts = thoughts.partition(self.close)[0]
        return thoughts.strip(), answer.strip() if found else None


# Qwen 3, DeepSeek R1, QwQ, SmolLM 3, GLM and most others, in whose tokenizers the marks are no special tokens.
THINK = ReasoningMarks()
_SPECIAL = (
    ReasoningMarks(special=True),
    ReasoningMarks("[THINK]", "[/THINK]", special=True),
    ReasoningMarks("<seed:think>", "</seed:think>", special=True),
)
# gpt-oss.
_HARMONY = ReasoningMarks("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|end|>", special=True)


def marks_of(special: Collection[str]) -> ReasoningMarks:
    """The marks of a model.

    Args:
        special: the tokens that its tokenizer leaves out of texts.
    """
    if {"<|channel|>", "<|message|>"} <= set(special):
        return _HARMONY
    return next((marks for marks in _SPECIAL if marks.end in special), THINK)
