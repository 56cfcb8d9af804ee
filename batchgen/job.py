"""The typed job: what a user wants generated, loaded from YAML and checked before anything heavy is imported."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from batchgen.checks import (
    check_lengths,
    check_place,
    check_sampling,
    check_secrets,
    check_transformers,
    check_varied,
    unknown,
)
from batchgen.complaint import complaint
from batchgen.conditions import checked_conditions
from batchgen.errors import JobError
from batchgen.keys import Keys
from batchgen.model import Model, memory_shares
from batchgen.problems import apply_override, problems
from batchgen.step import OwnTasks, Part, Step
from batchgen.tasks.generation import Exchange, Magpie
from batchgen.tasks.spec import check_own_tasks
from batchgen.trees import plain_tree
from batchgen.yamlfile import YamlDocument, load_yaml

# vLLM's own default of 16 would cut nearly every completion.
DEFAULT_MAX_TOKENS = 1024
# Of a job none of whose steps calls one.
NO_MODEL = "none"


class Source(Part):
    """Where seed rows come from: exactly one of `count`, `rows`, `path`, `dataset`."""

    count: int | None = Field(
        None, ge=1, le=100_000_000, description="this many numbered, empty rows, for tasks that need no input"
    )
    rows: list[dict[str, Any]] | None = Field(None, min_length=1, description="rows written in the job")
    path: str | list[str] | None = Field(
        None, description="JSON, csv or parquet files or objects, also compressed; * and ** match"
    )
    dataset: str | None = Field(None, description="a dataset saved with save_to_disk, or a Hub dataset")
    config: str | None = Field(None, description="of a dataset that has several")
    revision: str | None = Field(None, min_length=1, description="of a Hub dataset")
    split: str = Field("train", description="of the dataset")
    streaming: bool = Field(False, description="read a dataset as it comes, without a copy of all of it on the disk")
    columns: list[str] | dict[str, str] | None = Field(
        None, description="use only these columns, or those of a mapping under its new names"
    )
    limit: PositiveInt | None = Field(None, description="use only the first rows")

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        given = [name for name in ("count", "rows", "path", "dataset") if getattr(self, name) is not None]
        if len(given) != 1:
            there = " and ".join(given) or "none"
            raise complaint(f"give exactly one of count, rows, path, dataset; got {there}")
        if self.dataset is None and (self.config or self.revision or self.split != "train" or self.streaming):
            raise complaint("config, revision, split and streaming belong to a dataset, and there is none")
        if self.columns is not None and self.count is not None:
            raise complaint("count makes rows without columns; leave columns out")
        if self.columns is not None and not self.columns:
            raise complaint("name at least one column, or leave columns out", ("columns",))
        if twice := [name for name, times in Counter(self.names.values()).items() if times > 1]:
            raise complaint(f"two columns would be {twice[0]!r}", ("columns",))
        if "" in self.names.values():
            raise complaint("a column has to have a name", ("columns",))
        return self

    @property
    def names(self) -> Mapping[str, str]:
        """Names of the columns that are used, by their names in the source; none: all of them as they are."""
        return self.columns if isinstance(self.columns, dict) else {name: name for name in self.columns or []}


class Near(Part):
    """Near-duplicate removal."""

    threshold: float = Field(0.8, ge=0.5, le=1.0, description="Jaccard similarity of word 3-grams")


class Benchmark(Part):
    """Texts that the rows of a dataset must not have in common with it."""

    path: str | list[str] | None = Field(None, description="files or objects, as in `source.path`")
    dataset: str | None = Field(None, description="as in `source.dataset`, with config, revision and split")
    config: str | None = None
    revision: str | None = Field(None, min_length=1)
    split: str = "test"
    columns: list[str] = Field(min_length=1, description="those with its questions, and long answers")
    ngram: int = Field(13, ge=5, le=100, description="words in a row that are too many to be there by chance")

    @model_validator(mode="after")
    def _one_kind(self) -> Benchmark:
        if (self.path is None) == (self.dataset is None):
            raise complaint(f"give exactly one of path, dataset; got {'none' if self.path is None else 'both'}")
        if self.dataset is None and (self.config or self.revision or self.split != "test"):
            raise complaint("config, revision and split belong to a dataset, and there is none")
        return self

    @property
    def source(self) -> Source:
        """Where its texts are, as seed rows would be."""
        of_dataset = {"config": self.config, "revision": self.revision, "split": self.split}
        given = {"path": self.path} if self.dataset is None else {"dataset": self.dataset, **of_dataset}
        # Under names of their own: as seeds, some could not have the ones that they have.
        names = {column: f"column {index}" for index, column in enumerate(self.columns)}
        return Source.model_validate({**given, "columns": names})


class Merge(Part):
    """What becomes of the generated rows."""

    exact: bool = Field(True, description="drop rows whose normalised text another row has")
    near: Near | None = Field(default_factory=lambda: Near(), description="null or false keeps near-duplicates")
    # Not `on`: YAML 1.1 reads that word as true.
    compare: Literal["prompt", "conversation", "answers"] | None = Field(
        None, description="what must differ; else the prompt, or the answers to one, where several are asked for"
    )
    drop_truncated: bool = Field(True, description="drop rows with a text cut at max_tokens")
    keep: dict[str, Any] = Field(
        default_factory=dict, description="conditions on columns, which rows have to meet: {score: {min: 4}}"
    )
    prefer: str | None = Field(None, description="of rows that are alike the one with the most of this number stays")
    limit: PositiveInt | None = Field(None, description="rows at most: those with the most of `prefer`, else the first")
    decontaminate: list[Benchmark] = Field(
        default_factory=list, description="drop rows that have texts in common with these benchmarks"
    )
    prompt: str | None = Field(None, description="column of the user's message, where it is not the last step's")
    answer: str | None = Field(None, description="column of the assistant's message")
    columns: list[str] | None = Field(
        None, min_length=1, description="the dataset has only these, and batchgen's own; all by default"
    )

    @field_validator("near", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return None if value is False else value

    @field_validator("decontaminate", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @field_validator("keep")
    @classmethod
    def _conditions(cls, keep: dict[str, Any]) -> dict[str, Any]:
        return checked_conditions(keep)


class Job(Part):
    """A whole job. `Job.load` reads one from YAML; `Job.of` takes the same tree as a mapping."""

    name: str = Field(max_length=100)
    seed: int = Field(0, ge=0, lt=2**63)
    source: Source
    model: Model = Field(
        default_factory=lambda: Model(path=NO_MODEL),
        description="of the steps that name no other; if none calls one, none",
    )
    models: dict[str, Model] = Field(default_factory=dict, description="further models, for steps that name them")
    sampling: dict[str, Any] = Field(default_factory=dict, description="vLLM's SamplingParams")
    steps: list[Step] = Field(description="what becomes of a row; with none, the merge of what there is")
    merge: Merge = Field(default_factory=lambda: Merge())
    output: str = Field(min_length=1)
    engines: PositiveInt | None = Field(None, description="number of engines; else as many as fit, or one on a CPU")
    engines_per_gpu: PositiveInt = Field(1, le=16, description="engines that share a GPU, for small models")
    wait_for_gpus: bool = Field(False, description="engines wait for machines with GPUs that are yet to join")
    stall_seconds: float | None = Field(
        None, gt=0, description="an engine of which nothing comes for so long is replaced"
    )
    start_seconds: float = Field(1800.0, gt=0, description="so is one that is not up after so long")
    outage_seconds: float = Field(600.0, ge=0, description="a store or server that is out of reach is waited for")
    max_engine_deaths: PositiveInt = Field(100, description="engines that a run may lose before it fails")
    fail_after_rejected: PositiveInt | None = Field(1000, description="rows, all of them rejected; then the run fails")
    shard_rows: PositiveInt | None = Field(None, le=100_000, description="rows a shard; else chosen from their number")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise complaint(f"takes letters, digits, '.', '_' and '-', first a letter or digit; got {name!r}")
        return name

    @field_validator("sampling")
    @classmethod
    def _known_sampling(cls, sampling: dict[str, Any]) -> dict[str, Any]:
        check_sampling(sampling)
        return sampling

    @field_validator("output")
    @classmethod
    def _known_place(cls, output: str) -> str:
        check_place(output)
        return output

    @model_validator(mode="after")
    def _no_secrets(self) -> Job:
        check_secrets(self.model_dump(exclude={"source": {"rows"}}))
        return self

    @model_validator(mode="after")
    def _known_models(self) -> Job:
        for index, step in enumerate(self.steps):
            where = ("steps", index)
            if step.model is not None and step.model not in self.models:
                raise unknown("model", step.model, self.models, (*where, "model"))
            model = self.model_of(step)
            if step.spec.user_turns and model.backend == "openai" and model.path != "chaos":
                message = f"{step.task} writes user turns, which a server with a chat template of its own cannot open"
                raise complaint(message, (*where, "task"))
            if model.backend == "transformers" and model.path != "chaos":
                check_transformers(step.task, step.wants_structure, self.step_sampling(step), where)
            check_lengths(self.step_sampling(step), where)
            if step.spec.scored is not None:
                self._check_reward_model(step, where)
            if step.spec.generates and not step.spec.chooses(step.parameters):
                # Numbered rows are empty: they bring the first step the same prompt.
                equal_rows = (self.source.count or 1) if index == 0 else 1
                check_varied(self.step_sampling(step), equal_rows, self.generations(step), where)
        self._check_used()
        if (many := self.sampling.get("n") or 1) > 1 and sum(step.spec.generates for step in self.steps) > 1:
            message = f"every step would run {many} times for each row; give num_generations to the one that is meant"
            raise complaint(message, ("sampling", "n"))
        return self

    @model_validator(mode="after")
    def _gpus_have_room(self) -> Job:
        memory_shares(self.used_models, self.engines_per_gpu)
        return self

    def _check_reward_model(self, step: Step, where: tuple[str | int, ...]) -> None:
        """Refuses a model that gives no scores, or would have to write as well."""
        model = self.model_of(step)
        if model.path != "chaos" and model.backend != "vllm":
            message = f"{step.task} reads the scores of a reward model on vLLM; the {model.backend} backend gives none"
            raise complaint(message, (*where, "task"))
        for index, other in enumerate(self.steps):
            if other.spec.generates and other.model == step.model:
                wanted = f"{step.task} needs a reward model of its own; name one of `models`"
                message = f"{wanted}: this one writes, for steps[{index}] ({other.task})"
                raise complaint(message, (*where, "task" if step.model is None else "model"))

    def _check_used(self) -> None:
        """Refuses a job that lacks its own model, or whose own model would be loaded for nothing."""
        called = {step.model for step in self.steps if step.spec.calls_model}
        others = ", ".join(repr(name) for name in sorted(name for name in called if name is not None))
        if "model" not in self.model_fields_set and called:
            raise complaint(
                "missing" + f"; make one of `models` ({others}) the job's own" * (None not in called), ("model",)
            )
        if called and None not in called:
            message = f"no step runs on it: all name others of `models` ({others}); make one of those the job's own"
            raise complaint(message, ("model",))

    @model_validator(mode="after")
    def _some_rows(self) -> Job:
        if not self.steps and self.source.count is not None:
            raise complaint("numbered rows are empty, and no step makes anything of them", ("steps",))
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
        if not isinstance(path, str | Path):
            raise JobError(f"Job.load: expected the path of a file, got {type(path).__name__}; a tree is for Job.of")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise JobError(f"{path}: no such job file") from None
        except IsADirectoryError:
            raise JobError(f"{path}: a folder, and no job file; a run goes on with its own command") from None
        except (OSError, UnicodeDecodeError) as error:
            raise JobError(f"{path}: cannot read the job file: {error}") from error
        document = load_yaml(text, str(path))
        if not isinstance(document.data, dict):
            raise JobError(f"{path}:1: a job is a mapping of keys to values; see the job reference in the README")
        overridden = [apply_override(document.data, override) for override in overrides]
        return cls._validated(document.data, document, str(path), overridden, tasks)

    @classmethod
    def of(cls, tree: Mapping[str, Any], overrides: Sequence[str] = (), tasks: OwnTasks | None = None) -> Job:
        """A job from a mapping; the arguments are those of `load`.

        Raises:
            JobError: with field, value and what is legal.
        """
        if not isinstance(tree, Mapping):
            raise JobError(f"Job.of: expected a job's tree, got {type(tree).__name__}; a file is for Job.load")
        data = plain_tree(tree)
        return cls._validated(data, None, "job", [apply_override(data, override) for override in overrides], tasks)

    @classmethod
    def _validated(
        cls,
        data: Any,
        document: YamlDocument | None,
        name: str,
        overridden: Iterable[tuple[str | int, ...]],
        tasks: OwnTasks | None,
    ) -> Job:
        check_own_tasks(tasks or {})
        try:
            return cls.model_validate(data, context={"tasks": tasks})
        except ValidationError as error:
            raise JobError("\n".join(problems(error.errors(), document, name, list(overridden), _KEYS))) from None

    def tree(self) -> dict[str, Any]:
        """The job as a plain tree, defaults included; `Job.of` takes it back."""
        return self.model_dump(mode="json")

    def step_sampling(self, step: Step) -> dict[str, Any]:
        """The sampling parameters of a step: the job's, with the step's own on top."""
        sampling = {"max_tokens": DEFAULT_MAX_TOKENS, **self.sampling, **step.sampling}
        sampling.pop("n", None)  # `generations`
        # 0: of the token that was chosen, and of no other.
        return {**sampling, "logprobs": 0} if step.logprobs else sampling

    def generations(self, step: Step) -> int:
        """How often every row goes through a step: its `num_generations`, or vLLM's word for that, `n`.

        Each is a request of its own, with randomness of its own; vLLM computes their common prompt once.
        """
        if not step.spec.generates:
            return 1
        number: int = step.sampling.get("n") or (self.sampling.get("n") if step.num_generations == 1 else None) or 1
        return max(number, step.num_generations)

    @property
    def used_models(self) -> dict[str | None, Model]:
        """The models that engines are started for: those that steps call, the job's own (None) before further ones."""
        called = dict.fromkeys(step.model for step in self.steps if step.spec.calls_model)
        own: dict[str | None, Model] = {None: self.model} if None in called else {}
        return own | {name: self.models[name] for name in called if name is not None}

    @property
    def loses_turns(self) -> bool:
        """Whether a turn of a conversation that is cut costs the turns before it."""
        given = [step.parameters for step in self.steps if step.spec.user_turns]
        return any(each.n_turns > 1 and not each.keep_shorter for each in given if isinstance(each, Magpie))

    def model_of(self, step: Step) -> Model:
        """The model that a step runs on."""
        return self.models[step.model] if step.model is not None else self.model


_KEYS = Keys(
    Job,
    {"source": Source, "model": Model, "merge": Merge, "near": Near, "decontaminate": Benchmark, "examples": Exchange},
    Step.model_fields,
)
