"""Tasks that rewrite instructions and answers step by step, and the rules by which a bad rewrite is dropped."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import Field, PositiveInt, field_validator
from pydantic_core import PydanticCustomError

from batchgen.errors import RowRejected
from batchgen.tasks.spec import Chat, Row, TaskParameters, TaskSpec, always, columns


def _check_templates(templates: dict[str, str] | None, placeholder: str) -> dict[str, str] | None:
    if templates is None:
        return None
    if not templates:
        raise PydanticCustomError("templates", "there must be at least one template")
    for name, template in templates.items():
        if placeholder not in template:
            message = "the template {name} must hold {placeholder}, or it would say nothing of the row"
            raise PydanticCustomError("templates", message, {"name": repr(name), "placeholder": placeholder})
    return templates


_EVOLUTIONS = "rewritings, one of the other"
_MUTATIONS = "prompts by name, of which each rewriting draws one, in place of the paper's, with "
_ELIMINATE = "drops a rewriting that is no better by WizardLM's rules, or was cut, and goes on from the one before it"


class EvolInstruct(TaskParameters):
    """Makes an instruction harder, step by step."""

    num_evolutions: PositiveInt = Field(1, description=_EVOLUTIONS)
    store_evolutions: bool = Field(
        False, description="writes the list `evolved_instructions`, in place of the last one"
    )
    generate_answers: bool = Field(False, description="answers what it writes, in `answer` or the list `answers`")
    include_original_instruction: bool = Field(False, description="has the list begin with the instruction itself")
    mutation_templates: dict[str, str] | None = Field(None, description=_MUTATIONS + "`<PROMPT>` for the instruction")
    eliminate: bool = Field(True, description=_ELIMINATE)

    @field_validator("mutation_templates")
    @classmethod
    def _with_prompt(cls, templates: dict[str, str] | None) -> dict[str, str] | None:
        return _check_templates(templates, "<PROMPT>")


class EvolQuality(TaskParameters):
    """Makes an answer better, step by step."""

    num_evolutions: PositiveInt = Field(1, description=_EVOLUTIONS)
    store_evolutions: bool = Field(False, description="writes the list `evolved_responses`, in place of the last one")
    include_original_response: bool = Field(False, description="has the list begin with the response itself")
    mutation_templates: dict[str, str] | None = Field(
        None, description=_MUTATIONS + "`<PROMPT>` for the instruction and `<RESPONSE>` for the response"
    )
    eliminate: bool = Field(True, description=_ELIMINATE)

    @field_validator("mutation_templates")
    @classmethod
    def _with_response(cls, templates: dict[str, str] | None) -> dict[str, str] | None:
        return _check_templates(templates, "<RESPONSE>")


_WORD = re.compile(r"\w+")
# WizardLM counts an answer as a refusal where it says sorry in fewer words than this.
_SHORT_ANSWER = 80
_SORRY = re.compile(r"\bsorry\b", re.IGNORECASE)
_DECLINES = re.compile(r"\W*(?:i'?m |i am )?(?:sorry\b|unable to\b)|\W*as an ai\b|\W*i can(?:no|')t\b", re.IGNORECASE)
_COPIED = re.compile(r"#?\b(?:given|rewritten|created|new|original) prompt\b#?|#(?:the )?\w+ prompt#", re.IGNORECASE)
_COPIED_RESPONSE = re.compile(
    r"#?\b(?:given|rewritten) (?:prompt|response)\b#?|#(?:the )?\w+ (?:prompt|response)#", re.IGNORECASE
)
_PROMPT = re.compile(r"\bprompts?\b", re.IGNORECASE)
_REWRITING = re.compile(r"\brewrit\w+\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.?!\n]")
_STOP_WORDS = frozenset(
    "a an and are as at be but by for from has have he her his i if in is it its me my no not of on or our she so that "
    "the their them then there they this to us was we were what when where which who will with you your".split()
)


def says_nothing(text: str) -> bool:
    """Whether a text is punctuation and stop words only."""
    return all(word in _STOP_WORDS for word in _WORD.findall(text.lower()))


def declines(text: str) -> bool:
    """Whether a short text begins by declining."""
    return len(text.split()) < _SHORT_ANSWER and _DECLINES.match(text) is not None


def _speaks_of_rewriting(text: str) -> bool:
    """Whether a sentence is about the task, like "What prompt would you like me to rewrite?"."""
    return any(_PROMPT.search(sentence) and _REWRITING.search(sentence) for sentence in _SENTENCE_END.split(text))


def elimination(evolved: str, previous: str) -> str | None:
    """Why an evolution is no good, by WizardLM's rules (arXiv 2304.12244, section 3.3), or None.

    The paper asks a model whether an evolution gains anything; here it gains nothing where it has no word that the
    previous one lacks, which costs no call and never drops a new thought.
    """
    if says_nothing(evolved):
        return "says_nothing"
    if _COPIED.search(evolved) and not _COPIED.search(previous):
        return "copied_prompt"
    if not _PROMPT.search(previous) and _speaks_of_rewriting(evolved):
        return "copied_prompt"
    if declines(evolved) and not declines(previous):
        return "refusal"
    if set(_WORD.findall(evolved.lower())) <= set(_WORD.findall(previous.lower())):
        return "no_gain"
    return None


def response_elimination(evolved: str, previous: str) -> str | None:
    """Why an evolution of a response is no good, or None: the rules that hold for any text, and the prompt's own.

    It forbids words of its own ("'given response' and 'rewritten response' are not allowed to appear"). A response
    without a new word may be a better one.
    """
    if says_nothing(evolved) and not says_nothing(previous):
        return "says_nothing"
    if _COPIED_RESPONSE.search(evolved) and not _COPIED_RESPONSE.search(previous):
        return "copied_prompt"
    return "refusal" if declines(evolved) and not declines(previous) else None


def answer_elimination(answer: str) -> str | None:
    """Why the answer to an evolution shows that the evolution is no good, or None."""
    if says_nothing(answer):
        return "says_nothing"
    sorry = len(answer.split()) < _SHORT_ANSWER and _SORRY.search(answer) is not None
    return "refusal" if sorry or declines(answer) else None


def _evol_outputs(parameters: EvolInstruct) -> Mapping[str, str]:
    many = parameters.store_evolutions
    outputs = {"evolved_instructions": "list[text]"} if many else {"evolved_instruction": "text"}
    if parameters.generate_answers:
        outputs |= {"answers": "list[text]"} if many else {"answer": "text"}
    return outputs


def _finish_evol(row: Row, parameters: EvolInstruct, notes: list[str]) -> Row:
    if parameters.store_evolutions and parameters.generate_answers:
        number = parameters.num_evolutions + parameters.include_original_instruction
        if not len(row["evolved_instructions"]) == len(row["answers"]) == number:
            raise RowRejected("invalid_output")
    # Only the last evolution of several is a text of its own; an empty one has nothing left after "Prompt#:".
    evolved = row.get("evolved_instructions") or [row.get("evolved_instruction")]
    if not all(text and text.strip() for text in evolved):
        raise RowRejected("empty_completion")
    return row


def _evol_chat(parameters: EvolInstruct) -> Chat:
    if parameters.store_evolutions:
        return Chat("evolved_instructions")
    return Chat("evolved_instruction", "answer" if parameters.generate_answers else None)


def _quality_outputs(parameters: EvolQuality) -> Mapping[str, str]:
    return {"evolved_responses": "list[text]"} if parameters.store_evolutions else {"evolved_response": "text"}


def _evol(summary: str, distilabel: str, paper: str) -> TaskSpec:
    return TaskSpec(
        summary=summary,
        distilabel=distilabel,
        parameters=EvolInstruct,
        inputs=columns(instruction="text"),
        outputs=_evol_outputs,
        calls="num_evolutions (+ answers)",
        chat=_evol_chat,
        finish=_finish_evol,
        paper=paper,
        single_call=False,
        chooses=always,
    )


EVOLUTION: Mapping[str, TaskSpec] = {
    "evol_instruct": _evol("makes an instruction harder or broader", "EvolInstruct", "2304.12244"),
    "evol_complexity": _evol("makes an instruction more complex (Deita)", "EvolComplexity", "2312.15685"),
    "evol_quality": TaskSpec(
        summary="makes an answer better (Deita)",
        distilabel="EvolQuality",
        parameters=EvolQuality,
        inputs=columns(instruction="text", response="text"),
        outputs=_quality_outputs,
        calls="num_evolutions",
        chat=lambda p: None if p.store_evolutions else Chat("instruction", "evolved_response", revised="response"),
        paper="2312.15685",
        single_call=False,
        chooses=always,
    ),
}
