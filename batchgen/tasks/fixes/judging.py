"""Judges: a result for each text that was judged, and of that text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchgen.errors import RowRejected
from batchgen.tasks import completions
from batchgen.tasks.distilabel_api import tasks

_RATIONALE_LENGTH = 1000
_LABEL_LENGTH = 100


class _OneForEach:
    """A default structured output with as many items as there are texts to judge; distilabel leaves that open."""

    def format_input(self: Any, input: dict[str, Any]) -> Any:
        """Messages, and the schema of the row where one is wanted."""
        messages = super().format_input(input)  # type: ignore[misc]
        if not self.use_default_structured_output:
            return messages
        judged = next(input[name] for name in ("generations", "responses", "instructions") if name in input)
        return messages, {"json": sized(self.get_structured_output(), len(judged))}


def sized(schema: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A schema of lists with just so many items, with texts that end and with the ratings that the prompt asks for."""
    properties = {}
    for name, listed in schema["properties"].items():
        item = dict(listed["items"])
        if item.get("type") == "string":
            item["maxLength"] = _RATIONALE_LENGTH
        if name == "ratings":
            item |= {"minimum": 1, "maximum": 5}
        if name == "scores":
            item |= {"minimum": 1, "maximum": number + 1}
        properties[name] = {**listed, "items": item, "minItems": number, "maxItems": number}
    return {**schema, "properties": properties}


class _Scored(_OneForEach):
    """Scores go by their numbers: distilabel takes line by line, whatever comes before, between or in another order."""

    def format_output(self: Any, output: str | None, input: dict[str, Any]) -> dict[str, Any]:
        """One score a text."""
        if self.use_default_structured_output:
            return dict(super().format_output(output, input))  # type: ignore[misc]
        judged = input["responses" if "responses" in input else "instructions"]
        return {"scores": completions.numbered_scores(output or "", len(judged))}


class ComplexityScorer(_Scored, tasks.ComplexityScorer):  # type: ignore[misc]
    """See `_Scored`."""


class QualityScorer(_Scored, tasks.QualityScorer):  # type: ignore[misc]
    """See `_Scored`."""


class UltraFeedback(_OneForEach, tasks.UltraFeedback):  # type: ignore[misc]
    """Reads Markdown around its labels and remarks around its ratings; ratings are 1 to 5."""

    def format_output(self, output: str | None, input: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ratings and rationales, and types where the aspect has them, one a text."""
        if self.use_default_structured_output:
            return dict(super().format_output(output, input))
        typed = self.aspect in ("helpfulness", "truthfulness")
        fields = ["type", "rationale"] * typed + ["rating", "rationale"]
        found = completions.judgements(output or "", fields, len((input or {})["generations"]))
        if found is None:
            return {}
        named = {"ratings": [completions.number_in(values[-2], 1, 5) for values in found]}
        if not typed:
            return {**named, "rationales": [values[1] for values in found]}
        # One text can be of several types ("1, 3"); the column holds the first, as distilabel's does.
        types = [completions.number_in(values[0], 1, 5) for values in found]
        of_types, of_ratings = [values[1] for values in found], [values[3] for values in found]
        return {**named, "types": types, "rationales": of_types, "rationales-for-ratings": of_ratings}


class PrometheusEval(tasks.PrometheusEval):  # type: ignore[misc]
    """Reads `**[RESULT]** (4)`, and the last result where the feedback speaks of results."""

    def format_input(self, input: dict[str, Any]) -> Any:
        """Messages about an answer, or about two of which one may be better."""
        if self.mode == "relative" and len(input["generations"]) != 2:
            raise RowRejected("invalid_input")  # of a group one may have failed
        return super().format_input(input)

    def format_output(self, output: str | None, input: dict[str, Any]) -> dict[str, Any]:
        """Feedback, and a score or which of the two."""
        feedback, result = completions.feedback_and_result(output or "") or (None, None)
        if result is None or result.isdecimal() != (self.mode == "absolute"):
            return {"feedback": None, "result": None}
        return {"feedback": feedback, "result": int(result) if result.isdecimal() else result}


class InstructionBacktranslation(tasks.InstructionBacktranslation):  # type: ignore[misc]
    """Takes the last score, which the prompt asks for; distilabel the first digit of the first one."""

    def format_output(self, output: str | None, input: dict[str, Any]) -> dict[str, Any]:
        """Score and reason."""
        reason, score = completions.reason_and_score(output or "") or (None, None)
        return {"score": score, "reason": reason}


class TextClassification(tasks.TextClassification):  # type: ignore[misc]
    """A default structured output of the labels that there are; distilabel takes any text, of any length."""

    def get_structured_output(self) -> dict[str, Any]:
        """The schema of a label, or of as many as `n`."""
        label: dict[str, Any] = {"type": "string", "maxLength": _LABEL_LENGTH}
        if self.available_labels:
            fallback = [self.default_label] if isinstance(self.default_label, str) else self.default_label
            label = {"type": "string", "enum": list(dict.fromkeys(filter(None, [*self.available_labels, *fallback])))}
        labels = {"type": "array", "items": label, "minItems": 1, "maxItems": self.n} if self.n > 1 else label
        return {"type": "object", "properties": {"labels": labels}, "required": ["labels"]}


class CLAIR(tasks.CLAIR):  # type: ignore[misc]
    """Splits at the solution's heading, however it is written, and not where the reasoning speaks of the solution."""

    def format_output(self, output: str | None, input: dict[str, Any]) -> dict[str, Any]:
        """Reasoning and corrected solution."""
        rational, revision = completions.reasoning_and_solution(output or "") or (None, None)
        return {"revision": revision, "rational": rational}
