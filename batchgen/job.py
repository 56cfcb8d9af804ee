"""The typed job: what a user wants generated, loaded from YAML and checked before anything heavy is imported."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from batchgen.engines import arguments
from batchgen.engines.chaos import ChaosScript
from batchgen.engines.options import OPTIONS
from batchgen.engines.transformers import SAMPLING as TRANSFORMERS_SAMPLING
from batchgen.errors import JobError
from batchgen.tasks.spec import TaskParameters, TaskSpec, bare
from batchgen.tasks.table import TASKS
from batchgen.yamlfile import YamlDocument, load_yaml

# vLLM's own default of 16 would cut nearly every completion.
DEFAULT_MAX_TOKENS = 1024
OwnTasks = Mapping[str, TaskSpec]


class _Part(BaseModel):
    """Base of a job's parts: immutable, unknown keys refused, no conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(_Part):
    """Where seed rows come from: exactly one of `count`, `rows`, `path`, `dataset`."""

    count: PositiveInt | None = Field(None, description="this many numbered, empty rows, for tasks that need no input")
    rows: list[dict[str, Any]] | None = Field(None, min_length=1, description="rows written in the job")
    path: str | list[str] | None = Field(None, description="jsonl, csv or parquet files; * and ** match")
    dataset: str | None = Field(None, description="a dataset saved with save_to_disk, or a Hub dataset")
    split: str = Field("train", description="of the dataset")
    limit: PositiveInt | None = Field(None, description="use only the first rows")

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        given = [name for name in ("count", "rows", "path", "dataset") if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "one_of",
                "give exactly one of count, rows, path, dataset; there {verb}",
                {"verb": f"are {' and '.join(given)}" if given else "is none"},
            )
        return self


class Model(_Part):
    """The model and how its engine is set up."""

    path: str = Field(min_length=1, description="a Hub name, a folder, `embedded` or `chaos`; the name on a server")
    backend: Literal["vllm", "openai", "transformers"] = Field("vllm", description="what runs the model")
    revision: str | None = Field(None, description="of a Hub model")
    lora: str | None = Field(None, description="folder of a LoRA adapter that every request uses (vLLM)")
    pre_query_template: str | None = Field(None, description="opens a user turn, where it cannot be derived (Magpie)")
    engine: dict[str, Any] = Field(default_factory=dict, description="vLLM's engine arguments, or the backend's own")

    @model_validator(mode="after")
    def _known_arguments(self) -> Model:
        if self.path == "chaos":
            _check_options(self.engine, ChaosScript, "chaos engine")
        elif self.backend != "vllm":
            _check_options(self.engine, OPTIONS[self.backend], f"{self.backend} backend")
        else:
            _check_arguments(self.engine, arguments.engine_arguments(), arguments.OWNED_ENGINE, "engine")
        if self.backend != "vllm" and self.lora is not None:
            raise PydanticCustomError("lora", "lora needs the vllm backend")
        if self.backend == "openai" and (self.revision or self.pre_query_template):
            raise PydanticCustomError("openai", "the server decides on revision and chat template; leave them out")
        return self

    @property
    def tensor_parallel_size(self) -> int:
        """GPUs that one engine takes."""
        sizes = [self.engine.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline")]
        return int(sizes[0] * sizes[1])

    @property
    def is_local(self) -> bool:
        """Whether the model is loaded by batchgen, so that its tokenizer is at hand and a GPU is wanted."""
        return self.path != "chaos" and self.backend != "openai"


class Step(_Part):
    """One task applied to every row; keys that are not listed here are the task's parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    task: str
    model: str | None = Field(None, description="one of `models`, where the step does not use `model`")
    sampling: dict[str, Any] = Field(default_factory=dict)
    input_mappings: dict[str, str] = Field(default_factory=dict)
    output_mappings: dict[str, str] = Field(default_factory=dict)
    num_generations: PositiveInt = Field(1, description="times that every row goes through the step")
    group_generations: bool = Field(False, description="one row with lists, instead of a row a generation")
    logprobs: bool = Field(False, description="adds the log-probabilities of the completion's tokens")
    explode: str | None = None
    _spec: TaskSpec | None = PrivateAttr(None)

    @field_validator("task")
    @classmethod
    def _known_task(cls, name: str, info: ValidationInfo) -> str:
        known = _tasks_of(info)
        if name not in known:
            raise _unknown("task", name, known)
        return name

    @field_validator("sampling")
    @classmethod
    def _known_sampling(cls, sampling: dict[str, Any]) -> dict[str, Any]:
        _check_sampling(sampling)
        return sampling

    @field_validator("explode")
    @classmethod
    def _explode_form(cls, text: str | None) -> str | None:
        if text is not None and not re.fullmatch(r"\s*\S+\s*->\s*\S+\s*", text):
            raise PydanticCustomError(
                "explode", "must read `list column -> new column`, like instructions -> instruction"
            )
        return text

    @model_validator(mode="after")
    def _known_parameters(self, info: ValidationInfo) -> Step:
        self._spec = _own_tasks(info).get(self.task)
        given = self.__pydantic_extra__ or {}
        known = self.spec.parameters.model_fields
        open_ended = self.spec.parameters.model_config.get("extra") == "allow"
        for name in given:
            if name not in known and not open_ended:
                raise _unknown("key", name, [*_STEP_FIELDS, *known], (name,))
        self.spec.parameters.model_validate(given)
        _check_mapping(self.input_mappings, self.inputs, "input_mappings", f"an input of {self.task}")
        _check_mapping(self.output_mappings, self._task_outputs, "output_mappings", f"an output of {self.task}")
        if self.spec.distilabel is None and (self.model or self.num_generations > 1 or self.group_generations):
            raise PydanticCustomError("no_calls", f"{self.task} calls no model and generates nothing")
        if self.logprobs and not self.spec.single_call:
            raise PydanticCustomError("logprobs", f"{self.task} makes several calls a row; logprobs are of one call")
        return self

    @property
    def spec(self) -> TaskSpec:
        """The task's entry in the table."""
        return self._spec or TASKS[self.task]

    @cached_property
    def parameters(self) -> TaskParameters:
        """The task's parameters."""
        return self.spec.parameters.model_validate(self.__pydantic_extra__ or {})

    @property
    def inputs(self) -> Mapping[str, str]:
        """The task's inputs, with their kinds."""
        return self.spec.inputs(self.parameters)

    @property
    def _task_outputs(self) -> Mapping[str, str]:
        outputs = dict(self.spec.outputs(self.parameters))
        return {**outputs, "logprobs": "list[number]"} if self.logprobs else outputs

    @property
    def outputs(self) -> Mapping[str, str]:
        """Columns that the step adds, with their kinds."""
        form = "list[{}]" if self.group_generations else "{}"
        return {
            self.output_mappings.get(name, name): form.format(bare(kind)) for name, kind in self._task_outputs.items()
        }

    @property
    def exploded(self) -> tuple[str, str] | None:
        """(list column, new column) of `explode`."""
        if self.explode is None:
            return None
        column, _, new = self.explode.partition("->")
        return column.strip(), new.strip()


_STEP_FIELDS = tuple(Step.model_fields)


def _tasks_of(info: ValidationInfo) -> Mapping[str, TaskSpec]:
    """The table, with the user's own tasks of a call from Python."""
    return {**TASKS, **_own_tasks(info)}


def _own_tasks(info: ValidationInfo) -> OwnTasks:
    return (info.context or {}).get("tasks") or {}


class Near(_Part):
    """Near-duplicate removal."""

    threshold: float = Field(0.8, ge=0.5, le=1.0, description="Jaccard similarity of word 3-grams")


class Merge(_Part):
    """What becomes of the generated rows."""

    exact: bool = Field(True, description="drop rows whose normalised text another row has")
    near: Near | None = Field(default_factory=lambda: Near(), description="null or false keeps near-duplicates")
    # Not `on`: YAML 1.1 reads that word as true.
    compare: Literal["prompt", "conversation"] = Field("prompt", description="the text that must differ")
    drop_truncated: bool = Field(True, description="drop rows with a completion cut at max_tokens")
    prompt: str | None = Field(None, description="column of the user's message, where it is not the last step's")
    answer: str | None = Field(None, description="column of the assistant's message")

    @field_validator("near", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return None if value is False else value


class Job(_Part):
    """A whole job. `Job.load` reads one from YAML; `Job.of` takes the same tree as a mapping."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seed: int = Field(0, ge=0, lt=2**63)
    source: Source
    model: Model
    models: dict[str, Model] = Field(default_factory=dict, description="further models, for steps that name them")
    sampling: dict[str, Any] = Field(default_factory=dict, description="vLLM's SamplingParams")
    steps: list[Step] = Field(min_length=1)
    merge: Merge = Field(default_factory=lambda: Merge())
    output: str = Field(min_length=1)
    engines: PositiveInt | None = Field(None, description="number of engines; else one a GPU, or one on a CPU")
    stall_seconds: float = Field(900.0, gt=0, description="an engine that finishes no row for so long is replaced")
    max_engine_deaths: PositiveInt = Field(100, description="engines that a run may lose before it fails")
    shard_rows: PositiveInt | None = Field(None, le=100_000, description="rows a shard; else chosen from their number")

    @field_validator("sampling")
    @classmethod
    def _known_sampling(cls, sampling: dict[str, Any]) -> dict[str, Any]:
        _check_sampling(sampling)
        return sampling

    @model_validator(mode="after")
    def _known_models(self) -> Job:
        for index, step in enumerate(self.steps):
            if step.model is not None and step.model not in self.models:
                raise _unknown("model", step.model, self.models, ("steps", index, "model"))
            model = self.model_of(step)
            if step.spec.user_turns and model.backend == "openai" and model.path != "chaos":
                message = f"{step.task} writes user turns, which a server with a chat template of its own cannot open"
                path = ("steps", index, "task")
                raise PydanticCustomError("user_turns", "{message}", {"message": message, "path": path})
            if model.backend == "transformers" and model.path != "chaos":
                _check_transformers(step, self.step_sampling(step), ("steps", index))
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = (), tasks: OwnTasks | None = None) -> Job:
        """Reads a job file.

        Args:
            overrides: `key.path=value` texts; the values are YAML.
            tasks: the user's own, by name.

        Raises:
            JobError: with file, line, field, value and what is legal.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise JobError(f"{path}: no such job file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise JobError(f"{path}: cannot read the job file: {error}") from error
        document = load_yaml(text, str(path))
        if not isinstance(document.data, dict):
            raise JobError(f"{path}:1: a job is a mapping of keys to values; see the job reference in the README")
        overridden = [_override(document.data, override) for override in overrides]
        return cls._validated(document.data, document, str(path), overridden, tasks)

    @classmethod
    def of(cls, tree: Mapping[str, Any], overrides: Sequence[str] = (), tasks: OwnTasks | None = None) -> Job:
        """A job from a mapping; the arguments are those of `load`.

        Raises:
            JobError: with field, value and what is legal.
        """
        data = json.loads(json.dumps(dict(tree)))
        return cls._validated(data, None, "job", [_override(data, override) for override in overrides], tasks)

    @classmethod
    def _validated(
        cls,
        data: Any,
        document: YamlDocument | None,
        name: str,
        overridden: Iterable[tuple[str | int, ...]],
        tasks: OwnTasks | None,
    ) -> Job:
        try:
            return cls.model_validate(data, context={"tasks": tasks})
        except ValidationError as error:
            overridden = list(overridden)
            problems = [_problem(item, document, name, overridden) for item in error.errors()]
            raise JobError("\n".join(dict.fromkeys(problems))) from None

    def tree(self) -> dict[str, Any]:
        """The job as a plain tree, defaults included; `Job.of` takes it back."""
        return self.model_dump(mode="json")

    def step_sampling(self, step: Step) -> dict[str, Any]:
        """The sampling parameters of a step: the job's, with the step's own on top."""
        sampling = {"max_tokens": DEFAULT_MAX_TOKENS, **self.sampling, **step.sampling}
        # 0: of the token that was chosen, and of no other.
        return {**sampling, "logprobs": 0} if step.logprobs else sampling

    def model_of(self, step: Step) -> Model:
        """The model that a step runs on."""
        return self.models[step.model] if step.model is not None else self.model


def _unknown(kind: str, name: str, legal: Iterable[str], path: tuple[str | int, ...] = ()) -> PydanticCustomError:
    legal = sorted(legal)
    near = difflib.get_close_matches(name, legal, n=2)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
    # A long list (vLLM has 200 engine arguments) helps nobody once there is a near name.
    known = f"legal: {', '.join(legal)}" if len(legal) <= 40 or not near else ""
    message = "; ".join(part for part in (f"unknown {kind} {name!r}", hint, known) if part)
    return PydanticCustomError("unknown_name", "{message}", {"message": message.replace("?;", "?"), "path": path})


def _check_arguments(given: Mapping[str, Any], legal: Mapping[str, str], owned: Mapping[str, str], where: str) -> None:
    for name, value in given.items():
        path = (where, name) if where else (name,)
        if name in owned:
            message = f"{name!r} cannot be set here: {owned[name]}"
            raise PydanticCustomError("owned", "{message}", {"message": message, "path": path})
        if name not in legal:
            raise _unknown("vLLM argument", name, legal, path)
        if not arguments.fits(value, legal[name]):
            message = f"expected {legal[name].replace(' | ', ' or ').replace('None', 'null')}, got {value!r}"
            raise PydanticCustomError("type", "{message}", {"message": message, "path": path})


# Values that vLLM refuses at the first request; here they cost no engine start. (low, high), both included.
_SAMPLING_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (1e-9, 1.0),
    "min_p": (0.0, 1.0),
    "max_tokens": (1, float("inf")),
    "min_tokens": (0, float("inf")),
    "top_k": (-1, float("inf")),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (1e-9, float("inf")),
}


def _check_options(given: Mapping[str, Any], options: type[BaseModel], what: str) -> None:
    try:
        options.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name, legal = str(first["loc"][0]), options.model_fields
        path = ("engine", name)
        if name not in legal:
            raise _unknown(f"field of the {what}", name, legal, path) from None
        if first["type"] == "missing":
            message = f"missing; the {what} needs it"
        else:
            message = f"{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
        raise PydanticCustomError("type", "{message}", {"message": message, "path": path}) from None


def _check_transformers(step: Step, sampling: Mapping[str, Any], path: tuple[str | int, ...]) -> None:
    """Refuses what transformers' `generate` would ignore."""
    structured = step.spec.distilabel == "StructuredGeneration" or getattr(
        step.parameters, "use_default_structured_output", False
    )
    unknown = sorted(set(sampling) - TRANSFORMERS_SAMPLING)
    if not unknown and not structured:
        return
    what = f"sampling has {unknown[0]!r}" if unknown else f"{step.task} asks for structured outputs"
    message = (
        f"{what}, which the transformers backend does not have; it takes: {', '.join(sorted(TRANSFORMERS_SAMPLING))}"
    )
    raise PydanticCustomError("transformers", "{message}", {"message": message, "path": path})


def _check_sampling(sampling: Mapping[str, Any]) -> None:
    _check_arguments(sampling, arguments.sampling_arguments(), arguments.OWNED_SAMPLING, "")
    for name, (low, high) in _SAMPLING_RANGES.items():
        value = sampling.get(name)
        if value is not None and not low <= value <= high:
            legal = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
            message = f"must be {legal}, got {value!r}"
            raise PydanticCustomError("range", "{message}", {"message": message, "path": (name,)})


def _check_mapping(mapping: Mapping[str, str], legal: Iterable[str], where: str, what: str) -> None:
    for name in mapping:
        if name not in legal:
            message = f"{name!r} is not {what}; legal: {', '.join(sorted(legal))}"
            raise PydanticCustomError("mapping", "{message}", {"message": message, "path": (where, name)})


def _problem(item: Any, document: YamlDocument | None, name: str, overridden: list[tuple[str | int, ...]]) -> str:
    """One line for one of pydantic's errors: file:line: field: what is wrong."""
    context = item.get("ctx") or {}
    # pydantic puts tags of unions into a location; the document knows only keys and indices.
    path = (*(part for part in item["loc"] if not _is_tag(part)), *context.get("path", ()))
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if any(path[: len(o)] == o or o[: len(path)] == path for o in overridden if path):
        where = "--set"
    else:
        line = document.line_of(path) if document else None
        where = f"{name}:{line}" if line else name
    return f"{where}: {field + ': ' if field else ''}{_message(item, path)}"


def _is_tag(part: str | int) -> bool:
    return isinstance(part, str) and (part in ("str", "Near", "literal[False]") or part.startswith(("list[", "dict[")))


def _message(item: Any, path: tuple[str | int, ...]) -> str:
    if item["type"] == "extra_forbidden":
        legal = _legal_keys(path[:-1])
        near = difflib.get_close_matches(str(path[-1]), legal, n=1)
        return f"unknown key{f'; did you mean {near[0]!r}?' if near else ''} Legal keys: {', '.join(legal)}"
    if item["type"] == "missing":
        return "missing"
    message = str(item["msg"])
    value = item["input"]
    if (item.get("ctx") or {}).get("message") or item["type"] in _COMPLETE:
        return message
    return f"{message[0].lower()}{message[1:]}, got {json.dumps(value, default=str)[:80]}"


# Our own messages that say everything; pydantic's get the value appended.
_COMPLETE = ("one_of", "lora", "openai", "no_calls", "logprobs", "weights", "template", "explode")
_PARTS: Mapping[str, type[BaseModel]] = {"source": Source, "model": Model, "merge": Merge, "near": Near}


def _legal_keys(path: Sequence[str | int]) -> list[str]:
    """Field names at a path of the job."""
    model: type[BaseModel] = Job
    for part in path:
        model = _PARTS.get(str(part), model)
    return list(model.model_fields)


def _override(tree: dict[str, Any], text: str) -> tuple[str | int, ...]:
    """Sets `key.path=value` in a job's tree and returns the path."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise JobError(f"--set {text}: must read key=value, like --set source.count=100")
    path: list[str | int] = []
    at: Any = tree
    parts = key.strip().split(".")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise JobError(f"--set {text}: the value is not valid YAML") from error
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if isinstance(at, list):
            if not part.isdigit() or int(part) >= len(at):
                raise JobError(f"--set {text}: {part!r} is no index of a list of {len(at)}")
            path.append(int(part))
            if last:
                at[int(part)] = parsed
            else:
                at = at[int(part)]
        elif isinstance(at, dict):
            path.append(part)
            if last:
                _replace_kind(tree, path, part)
                at[part] = parsed
            else:
                at = at.setdefault(part, {})
                if at is None:
                    raise JobError(f"--set {text}: {part!r} is empty in the job")
        else:
            raise JobError(f"--set {text}: {'.'.join(map(str, path))} is no mapping")
    return tuple(path)


def _replace_kind(tree: dict[str, Any], path: list[str | int], part: str) -> None:
    """A source of another kind replaces the one in the file: there can be only one."""
    kinds = ("count", "rows", "path", "dataset")
    if len(path) == 2 and path[0] == "source" and part in kinds:
        for kind in kinds:
            tree["source"].pop(kind, None)
