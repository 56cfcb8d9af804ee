"""A step of a job: one task applied to every row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from batchgen.checks import check_columns, check_mapping, check_sampling, unknown, unknown_key
from batchgen.complaint import complaint
from batchgen.tasks.spec import Reasoning, TaskParameters, TaskSpec, bare, is_required
from batchgen.tasks.table import TASKS

OwnTasks = Mapping[str, TaskSpec]
# The column that `model_name: true` adds.
MODEL_NAME = "model_name"


class Part(BaseModel):
    """Base of a job's parts: immutable, unknown keys refused, no conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, ser_json_bytes="base64")


class Step(Part):
    """One task applied to every row; keys that are not listed here are the task's parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    task: str
    model: str | None = Field(None, description="one of `models`, where the step does not use `model`")
    sampling: dict[str, Any] = Field(default_factory=dict)
    input_mappings: dict[str, str | None] = Field(default_factory=dict)
    output_mappings: dict[str, str] = Field(default_factory=dict)
    num_generations: PositiveInt = Field(1, description="times that every row goes through the step")
    group_generations: bool = Field(False, description="one row with lists, instead of a row a generation")
    logprobs: bool = Field(False, description="adds the log-probabilities of the completion's tokens")
    reasoning: Reasoning = Field("drop", description="what becomes of a reasoning model's thoughts")
    model_name: bool = Field(False, description="adds the name of the model that the step runs on")
    explode: str | list[str] | None = Field(
        None, description="spreads a list over rows, or several of one length: [texts -> text, scores -> score]"
    )
    _spec: TaskSpec | None = PrivateAttr(None)

    @field_validator("task")
    @classmethod
    def _known_task(cls, name: str, info: ValidationInfo) -> str:
        known = _tasks_of(info)
        if name not in known:
            raise unknown("task", name, known, remark="one of your own runs from Python, by own_task")
        return name

    @field_validator("sampling")
    @classmethod
    def _known_sampling(cls, sampling: dict[str, Any]) -> dict[str, Any]:
        check_sampling(sampling)
        return sampling

    @field_validator("explode")
    @classmethod
    def _explode_form(cls, given: str | list[str] | None) -> str | list[str] | None:
        texts = [given] if isinstance(given, str) else given
        if texts is None:
            return None
        if not texts or not all(re.fullmatch(r"\s*\S+\s*->\s*\S+\s*", text) for text in texts):
            raise complaint(
                "must read `list column -> new column`, like instructions -> instruction, or be a list of such"
            )
        if len(_spread(texts)) < len(texts):
            raise complaint("spreads one list twice")
        return given

    @model_validator(mode="after")
    def _known_parameters(self, info: ValidationInfo) -> Step:
        self._spec = _own_tasks(info).get(self.task)
        given = self.__pydantic_extra__ or {}
        known = self.spec.parameters.model_fields
        open_ended = self.spec.parameters.model_config.get("extra") == "allow"
        for name in given:
            if name not in known and not open_ended:
                raise unknown_key("key", name, [*_STEP_FIELDS, *known], (name,))
        self.spec.parameters.model_validate(given)
        check_mapping(self.input_mappings, self.inputs, "input_mappings", f"an input of {self.task}")
        for name, column in self.input_mappings.items():
            if column is None and (is_required(self.inputs[name]) or name in self.spec.keep(self.parameters)):
                raise complaint(
                    f"{self.task} needs {name!r}; null leaves an input out that may be absent", ("input_mappings", name)
                )
        check_mapping(self.output_mappings, self._task_outputs, "output_mappings", f"an output of {self.task}")
        check_columns([self.output_mappings.get(name, name) for name in self._task_outputs], "output_mappings")
        if not self.spec.calls_model and (self.model or self.model_name or self._asks_of_text):
            raise complaint(f"{self.task} calls no model and generates nothing")
        if not self.spec.generates and self._asks_of_text:
            raise complaint(f"{self.task} scores what others wrote and generates nothing")
        if self.num_generations > 1 and self.sampling.get("n", 1) not in (1, self.num_generations):
            raise complaint("num_generations and sampling.n are the same thing, and differ")
        for name, asked in (("logprobs: true", self.logprobs), ("reasoning: column", self.reasoning == "column")):
            if asked and not self.spec.single_call:
                raise complaint(f"{self.task} makes several calls a row; {name} needs a task that makes one")
        return self

    @property
    def _asks_of_text(self) -> bool:
        """Whether it says something of what a model is to write."""
        return self.num_generations > 1 or self.group_generations or self.logprobs or self.reasoning != "drop"

    @property
    def spec(self) -> TaskSpec:
        """The task's entry in the table."""
        return self._spec or TASKS[self.task]

    @property
    def is_own(self) -> bool:
        """Whether the task is one of the user's own."""
        return self._spec is not None

    @cached_property
    def parameters(self) -> TaskParameters:
        """The task's parameters."""
        return self.spec.parameters.model_validate(self.__pydantic_extra__ or {})

    @property
    def inputs(self) -> Mapping[str, str]:
        """The task's inputs, with their kinds."""
        return self.spec.inputs(self.parameters)

    @property
    def reads(self) -> Mapping[str, str]:
        """The columns that the step reads where they are there, by the task's inputs."""
        mapped = {name: self.input_mappings.get(name, name) for name in self.inputs}
        return {name: column for name, column in mapped.items() if column is not None}

    @property
    def _task_outputs(self) -> Mapping[str, str]:
        outputs = dict(self.spec.outputs(self.parameters))
        outputs |= {"logprobs": "list[number]"} if self.logprobs else {}
        outputs |= {"reasoning": "text"} if self.reasoning == "column" else {}
        return outputs | ({MODEL_NAME: "text"} if self.model_name else {})

    @property
    def outputs(self) -> Mapping[str, str]:
        """Columns that the step adds, with their kinds."""
        kinds = {name: bare(kind) for name, kind in self._task_outputs.items()}
        if self.group_generations:
            # All of them are one model's.
            common = (MODEL_NAME, *self.spec.common)
            kinds = {name: kind if name in common else f"list[{kind}]" for name, kind in kinds.items()}
        return {self.output_mappings.get(name, name): kind for name, kind in kinds.items()}

    @property
    def common_columns(self) -> frozenset[str]:
        """Columns of the step's own that all generations of a row have in common."""
        return frozenset(
            self.output_mappings.get(name, name) for name in self.spec.common if name in self._task_outputs
        )

    @property
    def model_column(self) -> str | None:
        """The column of the model's name; None where it is not asked for."""
        return self.output_mappings.get(MODEL_NAME, MODEL_NAME) if self.model_name else None

    @property
    def wants_structure(self) -> bool:
        """Whether the task asks for structured outputs by itself."""
        given = bool(getattr(self.parameters, "use_default_structured_output", False))
        return given or self.spec.distilabel == "StructuredGeneration"

    @property
    def exploded(self) -> Mapping[str, str]:
        """The new columns of `explode`, by the lists whose items are in them."""
        return _spread([self.explode] if isinstance(self.explode, str) else self.explode or [])


def _spread(texts: Sequence[str]) -> dict[str, str]:
    pairs = (text.partition("->") for text in texts)
    return {column.strip(): new.strip() for column, _, new in pairs}


def differing_columns(steps: Sequence[Step]) -> Mapping[int, Sequence[str]]:
    """Lists in which a later step needs two texts that differ, by the step that writes them.

    Only those that are worth a look: between the two a model is asked.
    """
    found: dict[int, list[str]] = {}
    for last, step in enumerate(steps):
        column = step.reads.get(step.spec.differing or "")
        writers = [index for index in range(last) if column in steps[index].outputs]
        if writers and any(between.spec.calls_model for between in steps[writers[-1] + 1 : last]):
            found.setdefault(writers[-1], []).append(str(column))
    return found


_STEP_FIELDS = tuple(Step.model_fields)


def _tasks_of(info: ValidationInfo) -> Mapping[str, TaskSpec]:
    """The table, with the user's own tasks of a call from Python."""
    return {**TASKS, **_own_tasks(info)}


def _own_tasks(info: ValidationInfo) -> OwnTasks:
    return (info.context or {}).get("tasks") or {}
