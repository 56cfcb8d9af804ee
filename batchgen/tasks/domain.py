"""Tasks for one kind of dataset: function calls, stepwise mathematics, text embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator
from pydantic_core import PydanticCustomError

from batchgen.errors import RowRejected
from batchgen.tasks.generation import is_code, placeholders
from batchgen.tasks.spec import OWN_SYSTEM_PROMPT, Row, TaskParameters, TaskSpec, always, columns, structured_output

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_DRAWN = "drawn for each row where it is not set"


class ApigenGenerator(TaskParameters):
    """Writes queries that a function answers, and the calls."""

    system_prompt: str | None = Field(None, description=OWN_SYSTEM_PROMPT)
    number: (
        PositiveInt
        | Annotated[list[PositiveInt], Field(min_length=1)]
        | Annotated[dict[PositiveInt, Weight], Field(min_length=1)]
        | None
    ) = Field(
        None,
        description="queries with their calls that are asked for, of which the first is kept: a number; a list, of "
        "which each row draws one; or a mapping of numbers to weights",
    )
    use_tools: bool = Field(True, description="shows the model the column `tools`, where a row has it")
    use_default_structured_output: bool = structured_output()

    @field_validator("number", mode="before")
    @classmethod
    def _integer_keys(cls, value: Any) -> Any:
        """A job that went through JSON has text for keys."""
        if isinstance(value, dict):
            return {int(key) if isinstance(key, str) and key.isdecimal() else key: each for key, each in value.items()}
        return value

    @field_validator("number")
    @classmethod
    def _some_weight(cls, value: Any) -> Any:
        if isinstance(value, dict) and not sum(value.values()) > 0:
            raise PydanticCustomError("weights", "at least one weight must be above zero")
        return value


class _MathShepherd(TaskParameters):
    """A system prompt with places for rules and examples."""

    system_prompt: str | None = Field(
        None,
        description=f"{OWN_SYSTEM_PROMPT}; it has places for "
        "`{{ extra_rules }}`, `{{ few_shots }}` and `{{ structured_prompt }}`",
    )
    extra_rules: str | None = Field(None, description="in place of the task's own, which are for GSM8K")
    few_shots: str | None = Field(None, description="examples, in place of the task's own")

    @field_validator("system_prompt")
    @classmethod
    def _plain(cls, prompt: str | None) -> str | None:
        legal = ("extra_rules", "few_shots", "structured_prompt")
        if prompt is not None and (is_code(prompt) or not {*placeholders(prompt)} <= {*legal}):
            *names, last = (f"{{{{ {name} }}}}" for name in legal)
            message = "may hold the placeholders {names} and {last}, and no other template code"
            raise PydanticCustomError("template", message, {"names": ", ".join(names), "last": last})
        return prompt


class MathShepherdGenerator(_MathShepherd):
    """Solves a problem step by step."""

    M: PositiveInt | None = Field(None, description="so many `solutions`; without it one, the `golden_solution`")
    use_default_structured_output: bool = structured_output()


class MathShepherdCompleter(_MathShepherd):
    """Labels the steps of solutions by completing them."""

    N: PositiveInt = Field(1, description="completions from each step (8 in the paper)")
    tags: Annotated[list[str], Field(min_length=2, max_length=2)] | None = Field(
        None, description="what is written behind right and wrong steps, in place of `[+, -]`"
    )
    use_default_structured_output: bool = structured_output()

    @field_validator("tags")
    @classmethod
    def _differ(cls, tags: list[str] | None) -> list[str] | None:
        if tags is not None and (tags[0].strip() == tags[1].strip() or not all(tag.strip() for tag in tags)):
            raise PydanticCustomError("tags", "must be two different texts: that of a right step, and of a wrong one")
        return tags


class SentencePair(TaskParameters):
    """Writes a positive, and a negative, sentence for an anchor."""

    action: Literal["paraphrase", "semantically-similar", "query", "answer"] = Field(
        description="what the positive is to its anchor"
    )
    triplet: bool = Field(False, description="writes a `negative`, too")
    hard_negative: bool = Field(False, description="asks for a negative that is hard to tell from the positive")
    context: str | None = Field(None, description="what the sentences are for, in the prompt")
    use_default_structured_output: bool = structured_output()


class EmbeddingTasks(TaskParameters):
    """Thinks up tasks for text embeddings."""

    category: Literal["text-retrieval", "text-matching-short", "text-matching-long", "text-classification"] = Field(
        description="what the tasks are for"
    )


class Language(TaskParameters):
    """Writes texts in a language."""

    language: str | None = Field(None, description="in place of English")


class TextRetrieval(Language):
    """Writes a query with a positive and a hard negative document."""

    query_type: Literal["extremely long-tail", "long-tail", "common"] | None = Field(None, description=_DRAWN)
    query_length: Literal["less than 5 words", "5 to 15 words", "at least 10 words"] | None = Field(
        None, description=_DRAWN
    )
    difficulty: Literal["high school", "college", "PhD"] | None = Field(None, description=_DRAWN)
    clarity: Literal["clear", "understandable with some effort", "ambiguous"] | None = Field(None, description=_DRAWN)
    num_words: Literal[50, 100, 200, 300, 400, 500] | None = Field(
        None, description="that a document should have at least; " + _DRAWN
    )


class ClassificationData(Language):
    """Writes a text with a right and a misleading label."""

    difficulty: Literal["high school", "college", "PhD"] | None = Field(None, description=_DRAWN)
    clarity: Literal["clear", "understandable with some effort", "ambiguous"] | None = Field(None, description=_DRAWN)


class Triplet(Language):
    """Writes three sentences of graded similarity."""

    unit: Literal["sentence", "phrase", "passage"] | None = Field(None, description=_DRAWN)
    difficulty: Literal["elementary school", "high school", "college"] | None = Field(None, description=_DRAWN)
    high_score: Literal["4", "4.5", "5"] | None = Field(None, description="how alike S1 and S2 should be; " + _DRAWN)
    low_score: Literal["2.5", "3", "3.5"] | None = Field(None, description="how alike S1 and S3 should be; " + _DRAWN)


class Bitext(TaskParameters):
    """Writes three sentences of graded similarity in two languages."""

    target_language: str = Field(description="of the second and third sentence")
    source_language: str | None = Field(None, description="of the first, in place of English")
    unit: Literal["sentence", "phrase", "passage"] | None = Field(None, description=_DRAWN)
    difficulty: Literal["elementary school", "high school", "college"] | None = Field(None, description=_DRAWN)
    high_score: Literal["4", "4.5", "5"] | None = Field(None, description="how alike S1 and S2 should be; " + _DRAWN)
    low_score: Literal["2.5", "3", "3.5"] | None = Field(None, description="how alike S1 and S3 should be; " + _DRAWN)


def _finish_apigen(row: Row, parameters: Any, notes: list[str]) -> Row:
    if not row.get("query"):
        raise RowRejected("invalid_output")
    return row


def _finish_solution(row: Row, parameters: MathShepherdGenerator, notes: list[str]) -> Row:
    solutions = row["solutions"] if parameters.M else [row["golden_solution"]]
    if not solutions or not all(solution and all(solution) for solution in solutions):
        raise RowRejected("invalid_output")
    return row


def _finish_completer(row: Row, parameters: Any, notes: list[str]) -> Row:
    return {"labelled_solutions": row["solutions"]}


def _finish_tasks(row: Row, parameters: Any, notes: list[str]) -> Row:
    tasks = row["tasks"]
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, str) and task for task in tasks):
        raise RowRejected("invalid_output")
    return row


def _different_texts(row: Row, names: Iterable[str]) -> Row:
    """Texts of a row that are to be told apart by who learns from them.

    Raises:
        RowRejected: one of them is missing, or two are the same.
    """
    texts = {name: row.get(name) for name in names}
    if not all(isinstance(text, str) and text.strip() for text in texts.values()):
        raise RowRejected("invalid_output")
    if len({" ".join(str(text).split()).casefold() for text in texts.values()}) < len(texts):
        raise RowRejected("equal_texts")
    return texts


def _finish_pair(row: Row, parameters: SentencePair, notes: list[str]) -> Row:
    return _different_texts(row, ("anchor", *_sentence_outputs(parameters)))


def _sentence_outputs(parameters: SentencePair) -> Mapping[str, str]:
    return {"positive": "text", **({"negative": "text"} if parameters.triplet else {})}


_EMBEDDINGS = "2401.00368"


def _embedding_data(summary: str, distilabel: str, parameters: type[TaskParameters], *outputs: str) -> TaskSpec:
    def finish(row: Row, given: Any, notes: list[str]) -> Row:
        return _different_texts(row, outputs)

    return TaskSpec(
        summary=summary,
        distilabel=distilabel,
        parameters=parameters,
        inputs=columns(task="text"),
        outputs=columns(**dict.fromkeys(outputs, "text")),
        finish=finish,
        paper=_EMBEDDINGS,
        chooses=always,
    )


def _sentences(summary: str, distilabel: str, parameters: type[TaskParameters], **example: str) -> TaskSpec:
    def finish(row: Row, given: Any, notes: list[str]) -> Row:
        return _different_texts(row, ("S1", "S2", "S3"))

    return TaskSpec(
        summary=summary,
        distilabel=distilabel,
        parameters=parameters,
        inputs=columns(),
        outputs=columns(S1="text", S2="text", S3="text"),
        finish=finish,
        paper=_EMBEDDINGS,
        generator=True,
        chooses=always,
        example=example,
    )


DOMAIN: Mapping[str, TaskSpec] = {
    "apigen_generator": TaskSpec(
        summary="writes a query that functions answer, and the calls as JSON",
        distilabel="APIGenGenerator",
        parameters=ApigenGenerator,
        inputs=columns(examples="text", func_name="text", func_desc="text", tools="text?"),
        outputs=columns(query="text", answers="text"),
        finish=_finish_apigen,
        paper="2406.18518",
        chooses=always,
    ),
    "math_shepherd_generator": TaskSpec(
        summary="solves a problem step by step, once or M times",
        distilabel="MathShepherdGenerator",
        parameters=MathShepherdGenerator,
        inputs=columns(instruction="text"),
        outputs=lambda p: {"solutions": "list[list[text]]"} if p.M else {"golden_solution": "list[text]"},
        finish=_finish_solution,
        paper="2312.08935",
    ),
    "math_shepherd_completer": TaskSpec(
        summary="labels each step of solutions by whether completions from it end right",
        distilabel="MathShepherdCompleter",
        parameters=MathShepherdCompleter,
        inputs=columns(instruction="text", solutions="list[list[text]]", golden_solution="list[text]"),
        outputs=columns(labelled_solutions="list[list[text]]"),
        calls="steps of all solutions, at once",
        finish=_finish_completer,
        paper="2312.08935",
        single_call=False,
    ),
    "generate_sentence_pair": TaskSpec(
        summary="writes a positive, and with `triplet` a negative, sentence for an anchor",
        distilabel="GenerateSentencePair",
        parameters=SentencePair,
        inputs=columns(anchor="text"),
        outputs=_sentence_outputs,
        finish=_finish_pair,
        example={"action": "paraphrase"},
    ),
    "embedding_task_generator": TaskSpec(
        summary="thinks up tasks for text embeddings",
        distilabel="EmbeddingTaskGenerator",
        parameters=EmbeddingTasks,
        inputs=columns(),
        outputs=columns(tasks="list[text]"),
        finish=_finish_tasks,
        paper=_EMBEDDINGS,
        generator=True,
        example={"category": "text-retrieval"},
    ),
    "generate_text_retrieval_data": _embedding_data(
        "writes a query with a positive and a hard negative document",
        "GenerateTextRetrievalData",
        TextRetrieval,
        "user_query",
        "positive_document",
        "hard_negative_document",
    ),
    "generate_short_text_matching_data": _embedding_data(
        "writes a short text and one that matches it",
        "GenerateShortTextMatchingData",
        Language,
        "input",
        "positive_document",
    ),
    "generate_long_text_matching_data": _embedding_data(
        "writes a long text and one that matches it",
        "GenerateLongTextMatchingData",
        Language,
        "input",
        "positive_document",
    ),
    "generate_text_classification_data": _embedding_data(
        "writes a text with a right and a misleading label",
        "GenerateTextClassificationData",
        ClassificationData,
        "input_text",
        "label",
        "misleading_label",
    ),
    "monolingual_triplet_generator": _sentences(
        "writes three sentences of graded similarity", "MonolingualTripletGenerator", Triplet
    ),
    "bitext_retrieval_generator": _sentences(
        "writes three sentences of graded similarity in two languages",
        "BitextRetrievalGenerator",
        Bitext,
        target_language="German",
    ),
}
