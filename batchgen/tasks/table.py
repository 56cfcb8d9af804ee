"""The step table: every task that a job may name, with its parameters and columns. Imports nothing heavy.

A task is one `TaskSpec`; `runner.py` turns it into the distilabel task and runs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from batchgen.errors import RowRejected


class TaskParameters(BaseModel):
    """Base of a task's parameters, as a job may set them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def for_distilabel(self) -> dict[str, Any]:
        """The parameters that were set, as the distilabel task takes them."""
        return self.model_dump(exclude_none=True)


class TextGeneration(TaskParameters):
    """Answers an instruction."""

    system_prompt: str | None = None


class SelfInstruct(TaskParameters):
    """Writes instructions about a text."""

    num_instructions: PositiveInt = 5
    criteria_for_query_generation: str | None = None
    application_description: str | None = None


class EvolInstruct(TaskParameters):
    """Makes an instruction harder, step by step."""

    num_evolutions: PositiveInt = 1
    store_evolutions: bool = False
    generate_answers: bool = False
    include_original_instruction: bool = False
    mutation_templates: dict[str, str] | None = None


class Magpie(TaskParameters):
    """Has the model write the user's turns too."""

    n_turns: PositiveInt = 1
    end_with_user: bool = False
    include_system_prompt: bool = False
    only_instruction: bool = False
    system_prompt: str | Annotated[list[str], Field(min_length=1)] | None = None

    @property
    def gives_pair(self) -> bool:
        """Whether a row ends in `instruction` and `response` rather than in a conversation."""
        return self.n_turns == 1 and not self.end_with_user and not self.include_system_prompt


Row = dict[str, Any]


@dataclass(frozen=True)
class TaskSpec:
    """One entry of the table.

    Args:
        summary: what it does, in a line.
        distilabel: class name in `distilabel.steps.tasks`.
        parameters: what a job may set.
        inputs: columns that it reads, by whether they are required.
        outputs: columns that it writes, with a key of `rows.ARROW_TYPES`, for given parameters.
        chat: (prompt column, answer column or None) of what it writes, where that makes a conversation.
        user_turns: whether it has the model write user turns, so that the chat template must allow that.
        finish: guards and normalises a finished row; raises `RowRejected`.
    """

    summary: str
    distilabel: str
    parameters: type[TaskParameters]
    inputs: Mapping[str, bool]
    outputs: Callable[[Any], Mapping[str, str]]
    chat: Callable[[Any], tuple[str, str | None] | None]
    user_turns: bool = False
    finish: Callable[[Row, Any], Row] = field(default=lambda row, parameters: row)


# "1. ", "2) ", "- ", "* ", "Query 3: " in front of an instruction.
_LIST_MARK = re.compile(r"^\s*(?:(?:(?:query|instruction|task)\s+)?\d{1,3}\s*[.):]|[-*•])\s+", re.IGNORECASE)


def clean_instructions(lines: list[str]) -> list[str]:
    """Lines of a SelfInstruct completion without list marks, code fences and empty ones."""
    cleaned = []
    for line in lines:
        text = _LIST_MARK.sub("", line).strip()
        if text and not text.startswith("```"):
            cleaned.append(text)
    return cleaned


def _finish_self_instruct(row: Row, parameters: SelfInstruct) -> Row:
    instructions = clean_instructions(row["instructions"])
    if not instructions:
        raise RowRejected("no_instructions")
    return {"instructions": instructions}


def _evol_outputs(parameters: EvolInstruct) -> Mapping[str, str]:
    many = parameters.store_evolutions
    outputs = {"evolved_instructions": "texts"} if many else {"evolved_instruction": "text"}
    if parameters.generate_answers:
        outputs |= {"answers": "texts"} if many else {"answer": "text"}
    return outputs


def _finish_evol(row: Row, parameters: EvolInstruct) -> Row:
    if parameters.store_evolutions and parameters.generate_answers:
        number = parameters.num_evolutions + parameters.include_original_instruction
        if not len(row["evolved_instructions"]) == len(row["answers"]) == number:
            raise RowRejected("invalid_output")
    # Only the last evolution of several is a text of its own; an empty one has nothing left after "Prompt#:".
    evolved = row.get("evolved_instructions") or [row.get("evolved_instruction")]
    if not all(text and text.strip() for text in evolved):
        raise RowRejected("empty_completion")
    return row


def _evol_chat(parameters: EvolInstruct) -> tuple[str, str | None] | None:
    if parameters.store_evolutions:
        return None
    return ("evolved_instruction", "answer" if parameters.generate_answers else None)


def _magpie_outputs(parameters: Magpie) -> Mapping[str, str]:
    if parameters.only_instruction:
        return {"instruction": "text"}
    if parameters.gives_pair:
        return {"instruction": "text", "response": "text"}
    return {"conversation": "conversation"}


def _finish_magpie(row: Row, parameters: Magpie) -> Row:
    """The columns that were declared, whatever shape distilabel gave to a conversation of two messages."""
    if parameters.only_instruction or parameters.gives_pair:
        return row
    if "conversation" not in row:
        # distilabel takes any two messages for instruction and response, a system prompt among them.
        roles = ("system", "user") if parameters.end_with_user else ("user", "assistant")
        texts = (row["instruction"], row["response"])
        conversation = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    else:
        conversation = row["conversation"]
    turns = [message["role"] for message in conversation if message["role"] != "system"]
    if len(turns) != 2 * parameters.n_turns - parameters.end_with_user:
        raise RowRejected("invalid_output")
    return {"conversation": conversation}


def _magpie_chat(parameters: Magpie) -> tuple[str, str | None] | None:
    if parameters.only_instruction:
        return ("instruction", None)
    return ("instruction", "response") if parameters.gives_pair else None


TASKS: Mapping[str, TaskSpec] = MappingProxyType(
    {
        "evol_instruct": TaskSpec(
            summary="makes an instruction harder (WizardLM)",
            distilabel="EvolInstruct",
            parameters=EvolInstruct,
            inputs={"instruction": True},
            outputs=_evol_outputs,
            chat=_evol_chat,
            finish=_finish_evol,
        ),
        "magpie": TaskSpec(
            summary="has the model write the user's turns too (Magpie)",
            distilabel="Magpie",
            parameters=Magpie,
            inputs={"system_prompt": False},
            outputs=_magpie_outputs,
            chat=_magpie_chat,
            user_turns=True,
            finish=_finish_magpie,
        ),
        "self_instruct": TaskSpec(
            summary="writes instructions about a text (Self-Instruct)",
            distilabel="SelfInstruct",
            parameters=SelfInstruct,
            inputs={"input": True},
            outputs=lambda parameters: {"instructions": "texts"},
            chat=lambda parameters: None,
            finish=_finish_self_instruct,
        ),
        "text_generation": TaskSpec(
            summary="answers an instruction",
            distilabel="TextGeneration",
            parameters=TextGeneration,
            inputs={"instruction": True, "system_prompt": False},
            outputs=lambda parameters: {"generation": "text"},
            chat=lambda parameters: ("instruction", "generation"),
        ),
    }
)
