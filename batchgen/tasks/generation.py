"""Tasks that write instructions, answers and conversations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PositiveInt, field_validator, model_validator
from pydantic_core import PydanticCustomError

from batchgen.errors import RowRejected
from batchgen.tasks.spec import PRINTABLE, Chat, Row, TaskParameters, TaskSpec, columns

# The column of a template with a row's values in it; TRL would take one called `prompt` for more than a column.
FULL_PROMPT = "full_prompt"
_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")


def render_template(template: str, values: Mapping[str, Any]) -> str:
    """Fills `{{ column }}` placeholders in one pass; nothing else in a template means anything."""
    return _PLACEHOLDER.sub(lambda match: str(values[match[1]]), template)


def placeholders(template: str) -> list[str]:
    """The names of a template's placeholders, once each."""
    return list(dict.fromkeys(_PLACEHOLDER.findall(template)))


def is_code(template: str) -> bool:
    """Whether a template has more in it than placeholders: loops, filters, expressions."""
    rest = _PLACEHOLDER.sub("", template)
    return any(mark in rest for mark in ("{{", "{%", "{#"))


def checked_template(template: str) -> str:
    """A template that is one, for pydantic's validators.

    Raises:
        PydanticCustomError: it has other code than placeholders in it, or none of those.
    """
    if is_code(template):
        raise PydanticCustomError("template", "may hold {{ column }} placeholders and no other template code")
    if not placeholders(template):
        raise PydanticCustomError("template", "must hold at least one {{ column }} placeholder")
    return template


class TextGeneration(TaskParameters):
    """Answers an instruction."""

    system_prompt: str | None = Field(None, description="of rows that bring none of their own")
    template: str | None = Field(
        None, description="the prompt, with `{{ column }}` where a column's text goes; without it, `instruction` is it"
    )
    keep_prompt: bool = Field(
        False, description="writes what the template came to into `full_prompt`, of which `messages` are made then"
    )

    @field_validator("template")
    @classmethod
    def _plain(cls, template: str | None) -> str | None:
        return template if template is None else checked_template(template)

    @model_validator(mode="after")
    def _has_template(self) -> TextGeneration:
        if self.keep_prompt and self.template is None:
            raise PydanticCustomError("template", "keep_prompt is for a template; without one the prompt is a column")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the prompt is made of."""
        return ("instruction",) if self.template is None else tuple(placeholders(self.template))

    def for_distilabel(self) -> dict[str, Any]:
        """The template under another name: distilabel would run it as unsandboxed Jinja."""
        given = self.model_dump(exclude_none=True, exclude={"keep_prompt"})
        return {("prompt_template" if name == "template" else name): value for name, value in given.items()}


class ChatGeneration(TaskParameters):
    """Answers a conversation."""

    regenerate: bool = Field(
        False, description="answers the user's last message anew, where the conversation has an answer already"
    )


class NoParameters(TaskParameters):
    """A task that has none."""


class SelfInstruct(TaskParameters):
    """Writes instructions about a text."""

    num_instructions: PositiveInt = Field(5, description="how many are asked for")
    criteria_for_query_generation: str | None = Field(
        None, description="what they should be like, in place of the paper's criteria"
    )
    application_description: str | None = Field(
        None, description="of the assistant that they are for, in place of `AI assistant`"
    )


class Exchange(TaskParameters):
    """A question and its answer."""

    user: str = Field(min_length=1)
    assistant: str = Field(min_length=1)


class Urial(TaskParameters):
    """Has a base model answer."""

    examples: list[Exchange] | None = Field(
        default=None, min_length=1, description="exchanges in the prompt: `[{user: ..., assistant: ...}]`"
    )


WeightedPrompt = str | list[Any]


class Magpie(TaskParameters):
    """Has the model write the user's turns too."""

    n_turns: PositiveInt = Field(1, description="user turns; with more than one, the row is a `conversation`")
    end_with_user: bool = Field(False, description="leaves out the last answer; the row is a `conversation`")
    include_system_prompt: bool = Field(
        False, description="the row is a `conversation` that begins with the system prompt"
    )
    only_instruction: bool = Field(False, description="ends with the first user turn")
    keep_shorter: bool = Field(
        False,
        description="keeps the whole exchanges before a turn that failed or was cut, in place of rejecting the row",
    )
    system_prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[dict[str, WeightedPrompt], Field(min_length=1)]
        | None
    ) = Field(
        None,
        description="of rows that bring none of their own: a text; a list, of which each row draws one; or a mapping "
        "of names to texts, or to `[text, weight]`, of which each row draws one (its name: `system_prompt_key`)",
    )

    @field_validator("system_prompt")
    @classmethod
    def _weights(cls, prompts: Any) -> Any:
        if not isinstance(prompts, dict):
            return prompts
        weighted = [value for value in prompts.values() if isinstance(value, list)]
        for value in weighted:
            types = [type(part) for part in value]
            if types not in ([str, int], [str, float]):
                raise PydanticCustomError("weights", "a weighted system prompt reads [text, weight]")
            if not 0 <= value[1] < float("inf"):
                raise PydanticCustomError("weights", "weights must be numbers of 0 or more")
        if weighted and len(weighted) != len(prompts):
            raise PydanticCustomError("weights", "give every system prompt a weight, or none of them")
        if weighted and not sum(value[1] for value in weighted) > 0:
            raise PydanticCustomError("weights", "at least one weight must be above zero")
        return prompts

    @model_validator(mode="after")
    def _has_turns(self) -> Magpie:
        if self.keep_shorter and (self.n_turns == 1 or self.only_instruction):
            raise PydanticCustomError("turns", "keep_shorter is for conversations of several turns (n_turns)")
        return self

    @property
    def gives_pair(self) -> bool:
        """Whether a row ends in `instruction` and `response` rather than in a conversation."""
        return self.n_turns == 1 and not self.end_with_user and not self.include_system_prompt

    def for_distilabel(self) -> dict[str, Any]:
        """A list or table of system prompts under a name of ours: `fixes.writing.Magpie` chooses from it row by row."""
        given = self.model_dump(exclude_none=True)
        if not self.keep_shorter:
            del given["keep_shorter"]
        if not isinstance(self.system_prompt, str | None):
            given["system_prompts"] = given.pop("system_prompt")
        return given


def _text_outputs(parameters: TextGeneration) -> Mapping[str, str]:
    return {"generation": "text", **({FULL_PROMPT: "text"} if parameters.keep_prompt else {})}


def _finish_text(row: Row, parameters: TextGeneration, notes: list[str]) -> Row:
    if parameters.template is None or not parameters.keep_prompt:
        return row
    return {**row, FULL_PROMPT: render_template(parameters.template, row)}


def _text_chat(parameters: TextGeneration) -> Chat | None:
    prompt = FULL_PROMPT if parameters.keep_prompt else "instruction" if parameters.template is None else None
    return Chat(prompt, "generation", "system_prompt") if prompt is not None else None


def _finish_self_instruct(row: Row, parameters: SelfInstruct, notes: list[str]) -> Row:
    instructions = row["instructions"]
    if not instructions:
        raise RowRejected("truncated_output" if "truncated_instruction" in notes else "no_instructions")
    notes += ["instruction_missing"] * (parameters.num_instructions - len(instructions))
    return {"instructions": instructions}


def _magpie_outputs(parameters: Magpie) -> Mapping[str, str]:
    if parameters.only_instruction:
        outputs = {"instruction": "text"}
    elif parameters.gives_pair:
        outputs = {"instruction": "text", "response": "text"}
    else:
        outputs = {"conversation": "conversation"}
    if isinstance(parameters.system_prompt, dict):
        # None where the row brought a system prompt of its own.
        outputs["system_prompt_key"] = "text?"
    return outputs


def _finish_magpie(row: Row, parameters: Magpie, notes: list[str]) -> Row:
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
    turns = sum(message["role"] != "system" for message in conversation)
    whole = 2 * parameters.n_turns - parameters.end_with_user
    if turns != whole and not (parameters.keep_shorter and 1 < turns < whole):
        raise RowRejected("invalid_output")
    return {**row, "conversation": conversation}


def _magpie_chat(parameters: Magpie) -> Chat | None:
    if parameters.only_instruction:
        return Chat("instruction")
    return Chat("instruction", "response") if parameters.gives_pair else None


def _finish_genstruct(row: Row, parameters: Any, notes: list[str]) -> Row:
    if not (row["user"] and row["assistant"]):
        raise RowRejected("invalid_output")
    return row


GENERATION: Mapping[str, TaskSpec] = {
    "text_generation": TaskSpec(
        summary="answers an instruction, or a prompt made of several columns",
        distilabel="TextGeneration",
        parameters=TextGeneration,
        inputs=lambda p: {**dict.fromkeys(p.columns, PRINTABLE if p.template else "text"), "system_prompt": "text?"},
        outputs=_text_outputs,
        chat=_text_chat,
        finish=_finish_text,
        common=(FULL_PROMPT,),
    ),
    "chat_generation": TaskSpec(
        summary="answers the last message of a conversation",
        distilabel="ChatGeneration",
        parameters=ChatGeneration,
        inputs=columns(messages="conversation"),
        outputs=columns(generation="text"),
        chat=lambda p: Chat("messages", "generation", regenerated=p.regenerate),
    ),
    "magpie": TaskSpec(
        summary="has the model write the user's turns too",
        distilabel="Magpie",
        parameters=Magpie,
        inputs=columns(system_prompt="text?"),
        outputs=_magpie_outputs,
        calls="2 × n_turns",
        chat=_magpie_chat,
        finish=_finish_magpie,
        paper="2406.08464",
        user_turns=True,
        single_call=False,
        chooses=lambda p: not isinstance(p.system_prompt, str | None),
    ),
    "self_instruct": TaskSpec(
        summary="writes instructions about a text",
        distilabel="SelfInstruct",
        parameters=SelfInstruct,
        inputs=columns(input="text"),
        outputs=columns(instructions="list[text]"),
        chat=lambda p: Chat("instructions"),
        finish=_finish_self_instruct,
        paper="2212.10560",
    ),
    "structured_generation": TaskSpec(
        summary="answers in a JSON schema, a regular expression or a choice that the row gives",
        distilabel="StructuredGeneration",
        parameters=NoParameters,
        inputs=columns(instruction="text", structured_output="text", system_prompt="text?"),
        outputs=columns(generation="text"),
        chat=lambda p: Chat("instruction", "generation", "system_prompt"),
    ),
    "genstruct": TaskSpec(
        summary="writes a question and its answer about a document",
        distilabel="Genstruct",
        parameters=NoParameters,
        inputs=columns(title="text", content="text"),
        outputs=columns(user="text", assistant="text"),
        chat=lambda p: Chat("user", "assistant"),
        finish=_finish_genstruct,
    ),
    "urial": TaskSpec(
        summary="answers with a base model, by instructions and `examples` in the prompt",
        distilabel="URIAL",
        parameters=Urial,
        inputs=columns(instruction="text"),
        outputs=columns(generation="text"),
        chat=lambda p: Chat("instruction", "generation"),
        paper="2312.01552",
        plain=True,
        # Where a base model goes on with the next question of the examples' form.
        stop=("\n\n# User",),
    ),
}
