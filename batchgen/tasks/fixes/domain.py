"""Data for embeddings, function calls and process rewards: JSON is never evaluated, and every step has its label."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from batchgen import bridge
from batchgen.errors import RowRejected
from batchgen.tasks import completions
from batchgen.tasks.completions import parse_data
from batchgen.tasks.distilabel_api import STRUCTURED_COMPLETIONS, STRUCTURED_SOLUTIONS, tasks
from batchgen.tasks.generation import render_template


class GenerateSentencePair(tasks.GenerateSentencePair):  # type: ignore[misc]
    """Reads headings however they are written."""

    def format_output(self, output: str | None, input: dict[str, Any] | None = None) -> dict[str, Any]:
        """The sentences under their headings."""
        if self.use_default_structured_output:
            return dict(super().format_output(output, input))
        positive, negative = completions.sentence_pair(output or "")
        return {"positive": positive} | ({"negative": negative} if self.triplet else {})


def _sized(schema: dict[str, Any], name: str, number: int) -> dict[str, Any]:
    """A schema of a list with just so many items."""
    listed = {**schema["properties"][name], "minItems": number, "maxItems": number}
    return {**schema, "properties": {name: listed}}


def _are_calls(answers: Any) -> bool:
    """Whether they are a list of calls, of which there may be none."""
    return isinstance(answers, list) and all(
        isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict)
        for call in answers
    )


class APIGenGenerator(tasks.APIGenGenerator):  # type: ignore[misc]
    """Reads JSON with words or a fence around it; distilabel writes what it cannot read into its log.

    A default structured output has as many pairs as the prompt asks for; distilabel leaves that open, and none will do.
    """

    def format_input(self, input: dict[str, Any]) -> Any:
        """Messages, and the schema of the row where one is wanted."""
        messages = super().format_input(input)
        if not self.use_default_structured_output:
            return messages
        return messages, {"json": _sized(self.get_structured_output(), "pairs", self._number)}

    def format_output(self, output: str | None, input: dict[str, Any]) -> dict[str, Any]:
        """The first query, and the calls that answer it as JSON."""
        data = parse_data(output or "")
        pairs = data.get("pairs", [data]) if isinstance(data, dict) else data
        pair = pairs[0] if isinstance(pairs, list) and pairs else None
        if not isinstance(pair, dict) or not _are_calls(pair.get("answers")):
            return {"query": None, "answers": None}
        return {"query": pair.get("query"), "answers": json.dumps(pair["answers"])}


class APIGenSemanticChecker(tasks.APIGenSemanticChecker):  # type: ignore[misc]
    """Takes `Yes.` for yes and nothing but a no for no; distilabel takes all that is not just "yes" for no."""

    def format_output(self, output: str | None, input: dict[str, Any]) -> dict[str, Any]:
        """Whether the calls fit the query, and why."""
        data = parse_data(output or "")
        said = str(data.get("passes")).strip(" .!").lower() if isinstance(data, dict) else ""
        passes = {"yes": True, "true": True, "no": False, "false": False}.get(said)
        thought = data.get("thought") if passes is not None else None
        return {"keep_row_after_semantic_check": passes, "thought": thought}


class _Data:
    """Reads the JSON object of a completion without evaluating it."""

    def format_output(self: Any, output: str | None, input: dict[str, Any] | None = None) -> dict[str, Any]:
        """The task's keys; None each where the completion holds no such object."""
        data = parse_data(output or "")
        return {key: data.get(key) if isinstance(data, dict) else None for key in self.keys}


class GenerateTextRetrievalData(_Data, tasks.GenerateTextRetrievalData):  # type: ignore[misc]
    """See `_Data`."""


class GenerateShortTextMatchingData(_Data, tasks.GenerateShortTextMatchingData):  # type: ignore[misc]
    """See `_Data`."""


class GenerateLongTextMatchingData(_Data, tasks.GenerateLongTextMatchingData):  # type: ignore[misc]
    """See `_Data`."""


class GenerateTextClassificationData(_Data, tasks.GenerateTextClassificationData):  # type: ignore[misc]
    """See `_Data`."""


class MonolingualTripletGenerator(_Data, tasks.MonolingualTripletGenerator):  # type: ignore[misc]
    """See `_Data`."""


class BitextRetrievalGenerator(_Data, tasks.BitextRetrievalGenerator):  # type: ignore[misc]
    """See `_Data`."""


class EmbeddingTaskGenerator(tasks.EmbeddingTaskGenerator):  # type: ignore[misc]
    """Reads the list of a completion without evaluating it."""

    def format_output(self, output: str | None, input: dict[str, Any] | None = None) -> dict[str, Any]:
        """The tasks of the completion's list."""
        data = parse_data(output or "")
        return {"tasks": data if isinstance(data, list) else None}


class _MathShepherd:
    """Fills the placeholders of a system prompt; distilabel would run a job's text as unsandboxed Jinja.

    Attributes:
        structured_prompt: what is added where an answer is to be JSON.
    """

    structured_prompt: ClassVar[str]

    def load(self: Any) -> None:
        """Makes the task ready for its rows."""
        prompt, self.system_prompt = self.system_prompt, None
        super().load()  # type: ignore[misc]
        if prompt is not None:
            parts = {
                "extra_rules": self.extra_rules or "",
                "few_shots": self.few_shots or "",
                "structured_prompt": self.structured_prompt if self.use_default_structured_output else "",
            }
            # Jinja leaves out a template's last line break.
            self.system_prompt = render_template(prompt.removesuffix("\n"), parts)


class MathShepherdGenerator(_MathShepherd, tasks.MathShepherdGenerator):  # type: ignore[misc]
    """Solutions that end in an answer; distilabel takes no single structured one, and none beside an empty one."""

    structured_prompt: ClassVar[str] = STRUCTURED_SOLUTIONS

    def get_structured_output(self) -> dict[str, Any]:
        """The schema of as many solutions as are asked for."""
        return _sized(super().get_structured_output(), "solutions", self.M or 1)

    def format_output(self, output: str | None, input: dict[str, Any] | None = None) -> dict[str, Any]:
        """The steps of the golden solution, or of M solutions."""
        number = self.M or 1
        found = completions.solutions_in(output or "", number, self.use_default_structured_output)
        found = [steps for steps in found if steps[-1].startswith(completions.ANSWER)]
        bridge.current_context().notes += ["solution_missing"] * (number - len(found))
        if self.M:
            return {"solutions": found}
        return {"golden_solution": found[0] if found else None}


class MathShepherdCompleter(_MathShepherd, tasks.MathShepherdCompleter):  # type: ignore[misc]
    """A step is right where any completion from it ends right (the paper's hard estimation).

    distilabel forgets a right one that an empty one follows, and cannot read structured ones: no step has a label then.
    """

    structured_prompt: ClassVar[str] = STRUCTURED_COMPLETIONS

    def get_structured_output(self) -> dict[str, Any]:
        """The schema of as many completions as are asked for."""
        return _sized(super().get_structured_output(), "solutions", self.N)

    def process(self, inputs: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """Every row with its solutions labelled."""
        yield [{**row, "solutions": self._labelled(row)} for row in inputs]

    def _labelled(self, row: Mapping[str, Any]) -> list[list[str]]:
        log = bridge.current_context()
        golden = row["golden_solution"][-1]
        prompts = [self._prepare_completions(row["instruction"], steps) for steps in row["solutions"]]
        flat = [prompt for of_solution in prompts for prompt in of_solution]
        outputs = iter(zip(self.llm.generate(flat), log.last_cut, strict=True) if flat else [])
        labelled = []
        for steps, of_solution in zip(row["solutions"], prompts, strict=True):
            if len(steps) < 2:
                labelled.append(steps)  # there is no step besides its answer
                continue
            right = [self._ends_right(*next(outputs), golden) for _ in of_solution]
            right.append(completions.same_answer(steps[-1], golden))
            texts = [*steps[:-2], f"{steps[-2]} {steps[-1]}"]
            labelled.append([f"{text} {self.tags[0 if good else 1]}" for text, good in zip(texts, right, strict=True)])
        return labelled

    def _ends_right(self, output: Mapping[str, Any], cut: bool, golden: str) -> bool:
        (text,) = output["generations"]
        found = self._solutions(text)
        if not found:
            raise RowRejected("invalid_output")  # a step without a label is worth nothing
        if cut and _any_right(completions.common(found, self._solutions(completions.continued(text))), golden):
            bridge.current_context().set_aside()  # whatever else would have come
        return _any_right(found, golden)

    def _solutions(self, text: str) -> list[list[str]]:
        return completions.solutions_in(text, self.N, self.use_default_structured_output)


def _any_right(solutions: Sequence[Sequence[str]], golden: str) -> bool:
    return any(completions.same_answer(steps[-1], golden) for steps in solutions)
