"""Tasks that score, compare, check and correct what is there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator
from pydantic_core import PydanticCustomError

from batchgen.errors import RowRejected
from batchgen.tasks.generation import NoParameters
from batchgen.tasks.spec import OWN_SYSTEM_PROMPT, Row, TaskParameters, TaskSpec, columns, structured_output


class UltraFeedback(TaskParameters):
    """Rates answers to an instruction."""

    aspect: Literal["helpfulness", "honesty", "instruction-following", "truthfulness", "overall-rating"] = Field(
        "overall-rating",
        description="what they are rated by; two of them, helpfulness and truthfulness, give `types` too",
    )
    use_default_structured_output: bool = structured_output()

    @property
    def gives_types(self) -> bool:
        """Whether the aspect classifies answers as well."""
        return self.aspect in ("helpfulness", "truthfulness")


class Scorer(TaskParameters):
    """Scores texts."""

    use_default_structured_output: bool = structured_output()


# distilabel's own.
RUBRICS = ("helpfulness", "harmlessness", "honesty", "factual-validity", "reasoning")
_RUBRIC = re.compile(r"\[.*?\]\n(?:Score [1-4]: .*?\n){4}Score 5: ")


class PrometheusEval(TaskParameters):
    """Judges one answer, or which of two is better, by a rubric."""

    mode: Literal["absolute", "relative"] = Field(
        description="absolute: the score (1 to 5) of `generation`; relative: the better of two `generations` (A or B)"
    )
    rubric: str = Field(min_length=1, description="the name of the rubric to judge by: " + ", ".join(RUBRICS))
    rubrics: dict[str, str] | None = Field(
        default=None, min_length=1, description="rubrics of your own by name, in place of these"
    )
    reference: bool = Field(False, description="reads a right answer from the column `reference`")

    @field_validator("rubrics")
    @classmethod
    def _with_scores(cls, rubrics: dict[str, str] | None) -> dict[str, str] | None:
        if odd := [name for name, text in (rubrics or {}).items() if not _RUBRIC.match(text)]:
            message = "{name} must read [CRITERIA], and on a line each `Score 1: ...` to `Score 5: ...`"
            raise PydanticCustomError("rubrics", message, {"name": repr(odd[0])})
        return rubrics

    @model_validator(mode="after")
    def _one_of_them(self) -> PrometheusEval:
        legal = RUBRICS if self.rubrics is None else tuple(self.rubrics)
        if self.rubric not in legal:
            near = difflib.get_close_matches(self.rubric, legal, n=1)
            hint = f"did you mean {near[0]!r}? Legal" if near else "legal"
            details = {"name": repr(self.rubric), "legal": ", ".join(legal), "hint": hint, "path": ("rubric",)}
            raise PydanticCustomError("rubric", "no rubric {name}; {hint}: {legal}", details)
        return self


class Clair(TaskParameters):
    """Corrects a solution with as few changes as possible."""

    system_prompt: str | None = Field(None, description=OWN_SYSTEM_PROMPT)


class TextClassification(TaskParameters):
    """Labels a text."""

    system_prompt: str | None = Field(None, description=OWN_SYSTEM_PROMPT)
    n: PositiveInt = Field(1, description="labels of a text; with more than one, `labels` is a list")
    context: str | None = Field(None, description="what the labels should be like, in place of the task's own")
    examples: list[str] | None = Field(None, description="texts with their labels, in the prompt")
    available_labels: (
        Annotated[list[str], Field(min_length=1)] | Annotated[dict[str, str], Field(min_length=1)] | None
    ) = Field(None, description="a list, or a mapping of labels to what they mean; without it the model makes them up")
    default_label: str | list[str] | None = Field(
        None, description="for texts that none of them fits, in place of `Unclassified`"
    )
    query_title: str | None = Field(None, description="the heading above the text, in place of `User Query`")
    use_default_structured_output: bool = structured_output(by_default=True)


class Checker(TaskParameters):
    """Checks a function call."""

    system_prompt: str | None = Field(None, description=OWN_SYSTEM_PROMPT)
    use_default_structured_output: bool = structured_output()


def _same_length(judged: str, *results: str) -> Callable[[Row, Any, list[str]], Row]:
    """Rejects a row whose results do not answer every judged text, one each."""

    def finish(row: Row, parameters: Any, notes: list[str]) -> Row:
        number = len(row[judged])
        for name in results:
            values = row.get(name)
            if not isinstance(values, list) or len(values) != number:
                raise RowRejected("invalid_output")
            if any(value is None for value in values):
                raise RowRejected("invalid_output")
        return row

    return finish


def _finish_ultrafeedback(row: Row, parameters: UltraFeedback, notes: list[str]) -> Row:
    if "rationales_for_rating" in row:  # the name in distilabel's own JSON schema
        row = {**row, "rationales-for-ratings": row["rationales_for_rating"]}
    names = ["ratings", "rationales"]
    if parameters.gives_types:
        names.append("rationales-for-ratings")
    row = _same_length("generations", *names)(row, parameters, notes)
    if parameters.gives_types and len(row.get("types") or ()) != len(row["generations"]):
        raise RowRejected("invalid_output")
    return row


def _ultrafeedback_outputs(parameters: UltraFeedback) -> Mapping[str, str]:
    outputs = {"ratings": "list[number]", "rationales": "list[text]"}
    if parameters.gives_types:
        # A type may be missing ("None" in the prompt's own words): it is null in the list.
        outputs |= {"types": "list[number]", "rationales-for-ratings": "list[text]"}
    return outputs


def _prometheus_inputs(parameters: PrometheusEval) -> Mapping[str, str]:
    judged = {"generation": "text"} if parameters.mode == "absolute" else {"generations": "list[text]"}
    return {"instruction": "text", **judged, **({"reference": "text"} if parameters.reference else {})}


def _finish_backtranslation(row: Row, parameters: Any, notes: list[str]) -> Row:
    # `reason` is the column in which batchgen says why a row was rejected.
    return {"score": row["score"], "score_reason": row["reason"]}


def _finish_labels(row: Row, parameters: TextClassification, notes: list[str]) -> Row:
    found = row.get("labels")  # whatever JSON the model wrote
    labels = found if parameters.n > 1 else [found]
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) and label for label in labels):
        raise RowRejected("invalid_output")
    if parameters.available_labels is not None:
        fallback = parameters.default_label or "Unclassified"
        legal = {*parameters.available_labels, *([fallback] if isinstance(fallback, str) else fallback)}
        known = {label.strip().casefold(): label for label in legal}
        labels = [known.get(label.strip().casefold(), "") for label in labels]
        if not all(labels):
            raise RowRejected("unknown_label")
    return {"labels": labels if parameters.n > 1 else labels[0]}


JUDGING: Mapping[str, TaskSpec] = {
    "ultrafeedback": TaskSpec(
        summary="rates answers to an instruction, with a rationale each",
        distilabel="UltraFeedback",
        parameters=UltraFeedback,
        inputs=columns(instruction="text", generations="list[text]"),
        outputs=_ultrafeedback_outputs,
        finish=_finish_ultrafeedback,
        paper="2310.01377",
    ),
    "complexity_scorer": TaskSpec(
        summary="scores how complex instructions are (Deita)",
        distilabel="ComplexityScorer",
        parameters=Scorer,
        inputs=columns(instructions="list[text]"),
        outputs=columns(scores="list[number]"),
        finish=_same_length("instructions", "scores"),
        paper="2312.15685",
    ),
    "quality_scorer": TaskSpec(
        summary="scores how good answers are (Deita)",
        distilabel="QualityScorer",
        parameters=Scorer,
        inputs=columns(instruction="text", responses="list[text]"),
        outputs=columns(scores="list[number]"),
        finish=_same_length("responses", "scores"),
        paper="2312.15685",
    ),
    "prometheus_eval": TaskSpec(
        summary="judges one answer, or which of two is better, by a rubric",
        distilabel="PrometheusEval",
        parameters=PrometheusEval,
        inputs=_prometheus_inputs,
        outputs=lambda p: {"feedback": "text", "result": "number" if p.mode == "absolute" else "text"},
        paper="2405.01535",
        example={"mode": "absolute", "rubric": "helpfulness"},
    ),
    "instruction_backtranslation": TaskSpec(
        summary="scores how well an answer fits its instruction",
        distilabel="InstructionBacktranslation",
        parameters=NoParameters,
        inputs=columns(instruction="text", generation="text"),
        outputs=columns(score="number", score_reason="text"),
        finish=_finish_backtranslation,
        paper="2308.06259",
    ),
    "clair": TaskSpec(
        summary="corrects a solution with as few changes as possible",
        distilabel="CLAIR",
        parameters=Clair,
        inputs=columns(task="text", student_solution="text"),
        outputs=columns(revision="text", rational="text"),
        paper="2408.06266",
    ),
    "text_classification": TaskSpec(
        summary="labels a text",
        distilabel="TextClassification",
        parameters=TextClassification,
        inputs=columns(text="text"),
        outputs=lambda p: {"labels": "list[text]" if p.n > 1 else "text"},
        finish=_finish_labels,
        paper="2310.01045",
    ),
    "apigen_semantic_checker": TaskSpec(
        summary="checks that a function call and its result fit the query",
        distilabel="APIGenSemanticChecker",
        parameters=Checker,
        inputs=columns(
            func_desc="text",
            query="text",
            answers="text",
            execution_result="text",
            keep_row_after_execution_check="boolean",
        ),
        outputs=columns(keep_row_after_semantic_check="boolean", thought="text"),
        paper="2406.18518",
    ),
}
