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
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from batchgen.engines import arguments
from batchgen.engines.chaos import ChaosScript
from batchgen.errors import JobError
from batchgen.tasks.table import TASKS, TaskParameters, TaskSpec
from batchgen.yamlfile import YamlDocument, load_yaml

# vLLM's own default of 16 would cut nearly every completion.
DEFAULT_MAX_TOKENS = 1024
_STEP_FIELDS = ("task", "sampling", "input_mappings", "output_mappings", "explode")


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

    path: str = Field(min_length=1, description="a Hub name, a folder, `embedded` or `chaos`")
    revision: str | None = Field(None, description="of a Hub model")
    pre_query_template: str | None = Field(None, description="opens a user turn, where it cannot be derived (Magpie)")
    engine: dict[str, Any] = Field(default_factory=dict, description="vLLM's engine arguments")

    @model_validator(mode="after")
    def _known_arguments(self) -> Model:
        if self.path == "chaos":
            try:
                ChaosScript.model_validate(self.engine)
            except ValidationError as error:
                first = error.errors()[0]
                name, legal = str(first["loc"][0]), ChaosScript.model_fields
                if name not in legal:
                    raise _unknown("field of the chaos engine", name, legal, ("engine", name)) from None
                message = f"{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
                raise PydanticCustomError("type", "{message}", {"message": message, "path": ("engine", name)}) from None
        else:
            _check_arguments(self.engine, arguments.engine_arguments(), arguments.OWNED_ENGINE, "engine")
        return self

    @property
    def tensor_parallel_size(self) -> int:
        """GPUs that one engine takes."""
        sizes = [self.engine.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline")]
        return int(sizes[0] * sizes[1])


class Step(_Part):
    """One task applied to every row; keys that are not listed here are the task's parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    task: str
    sampling: dict[str, Any] = Field(default_factory=dict)
    input_mappings: dict[str, str] = Field(default_factory=dict)
    output_mappings: dict[str, str] = Field(default_factory=dict)
    explode: str | None = None

    @field_validator("task")
    @classmethod
    def _known_task(cls, name: str) -> str:
        if name not in TASKS:
            raise _unknown("task", name, TASKS)
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
    def _known_parameters(self) -> Step:
        given = self.__pydantic_extra__ or {}
        known = self.spec.parameters.model_fields
        for name in given:
            if name not in known:
                raise _unknown("key", name, [*_STEP_FIELDS, *known], (name,))
        self.spec.parameters.model_validate(given)
        _check_mapping(self.input_mappings, self.spec.inputs, "input_mappings", f"an input of {self.task}")
        outputs = self.spec.outputs(self.parameters)
        _check_mapping(self.output_mappings, outputs, "output_mappings", f"an output of {self.task}")
        return self

    @property
    def spec(self) -> TaskSpec:
        """The task's entry in the table."""
        return TASKS[self.task]

    @cached_property
    def parameters(self) -> TaskParameters:
        """The task's parameters."""
        return self.spec.parameters.model_validate(self.__pydantic_extra__ or {})

    @property
    def exploded(self) -> tuple[str, str] | None:
        """(list column, new column) of `explode`."""
        if self.explode is None:
            return None
        column, _, new = self.explode.partition("->")
        return column.strip(), new.strip()


class Near(_Part):
    """Near-duplicate removal."""

    threshold: float = Field(0.8, ge=0.5, le=1.0, description="Jaccard similarity of word 3-grams")


class Merge(_Part):
    """What becomes of the generated rows."""

    exact: bool = Field(True, description="drop rows whose normalised text another row has")
    near: Near | None = Field(default_factory=lambda: Near(), description="null or false keeps near-duplicates")
    on: Literal["prompt", "conversation"] = Field("prompt", description="the text that must differ")
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
    sampling: dict[str, Any] = Field(default_factory=dict, description="vLLM's SamplingParams")
    steps: list[Step] = Field(min_length=1)
    merge: Merge = Field(default_factory=lambda: Merge())
    output: str = Field(min_length=1)
    engines: PositiveInt | None = Field(None, description="number of engines; else one a GPU, or one on a CPU")
    shard_rows: PositiveInt | None = Field(None, le=100_000, description="rows a shard; else chosen from their number")

    @field_validator("sampling")
    @classmethod
    def _known_sampling(cls, sampling: dict[str, Any]) -> dict[str, Any]:
        _check_sampling(sampling)
        return sampling

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Job:
        """Reads a job file.

        Args:
            overrides: `key.path=value` texts; the values are YAML.

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
        return cls._validated(document.data, document, str(path), overridden)

    @classmethod
    def of(cls, tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> Job:
        """A job from a mapping.

        Raises:
            JobError: with field, value and what is legal.
        """
        data = json.loads(json.dumps(dict(tree)))
        return cls._validated(data, None, "job", [_override(data, override) for override in overrides])

    @classmethod
    def _validated(
        cls, data: Any, document: YamlDocument | None, name: str, overridden: Iterable[tuple[str | int, ...]]
    ) -> Job:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            overridden = list(overridden)
            problems = [_problem(item, document, name, overridden) for item in error.errors()]
            raise JobError("\n".join(dict.fromkeys(problems))) from None

    def tree(self) -> dict[str, Any]:
        """The job as a plain tree, defaults included; `Job.of` takes it back."""
        return self.model_dump(mode="json")

    def step_sampling(self, step: Step) -> dict[str, Any]:
        """The sampling parameters of a step: the job's, with the step's own on top."""
        return {"max_tokens": DEFAULT_MAX_TOKENS, **self.sampling, **step.sampling}


def _unknown(kind: str, name: str, legal: Iterable[str], path: tuple[str, ...] = ()) -> PydanticCustomError:
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
    if item["type"] in ("unknown_name", "owned", "type", "range", "mapping", "one_of"):
        return message
    return f"{message[0].lower()}{message[1:]}, got {json.dumps(value, default=str)[:80]}"


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
