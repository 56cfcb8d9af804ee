"""Translates a distilabel `Pipeline` that was written in Python into jobs: a chain of tasks is a job.

Where a pipeline branches, the tasks before the branch are a job of their own, and each branch starts from that job's
rows; so every task runs once a row, as in distilabel.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from batchgen.errors import JobError
from batchgen.job import Job
from batchgen.segments import BY_CLASS, EXPAND, GENERATORS, Segment, class_name
from batchgen.tasks.spec import TaskSpec
from batchgen.tasks.table import TASKS
from batchgen.trees import plain_tree

# distilabel's generation arguments by vLLM's names; None: nothing to carry over.
_GENERATION: Mapping[str, str | None] = {"max_new_tokens": "max_tokens", "do_sample": None, "echo": None}
# What these write is the model's text as it comes, its thoughts included.
_ANSWERS = ("chat_generation", "magpie", "text_generation")
# Of OpenAI's clients: what asks at other paths, with a version of the API.
_OTHER_PATHS = ("AzureOpenAILLM",)
# distilabel's names for texts that are derived from the model's chat template here.
_DERIVED = ("llama3", "qwen2")
# Of distilabel's vLLM and TransformersLLM: what is an engine argument here as well.
_ENGINE_FIELDS: Mapping[str, str] = {
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "quantization": "quantization",
    "tokenizer": "tokenizer",
    "tokenizer_mode": "tokenizer_mode",
    "tokenizer_revision": "tokenizer_revision",
}


@dataclass(frozen=True)
class Translated:
    """A segment as a job.

    Args:
        renamed: seed columns that a task writes again, with the names that their first versions have here.
        earlier: names of versions that a later one replaced.
        adds_messages: whether the dataset's `messages` are batchgen's, and no column of the pipeline's.
    """

    job: Job
    renamed: Mapping[str, str]
    earlier: set[str]
    adds_messages: bool


class _Columns:
    """The columns of a segment, whose names change as one task after the other writes them.

    distilabel lets a task overwrite a column. Here every version of a column has a name of its own, and the last one
    keeps the column's.

    Args:
        written: (step, column that it writes), in order.

    Attributes:
        now: column -> the name that its version of now has; a seed's version where nobody has written it yet.
        earlier: names of versions that a later one replaces.
    """

    def __init__(self, written: Sequence[tuple[str, str]]) -> None:
        self._written = written
        self.now = {column: f"{column}_before_{step}" for step, column in reversed(written)}
        self.earlier = set(self.now.values())

    def write(self, step: str, columns: Iterable[str]) -> None:
        """Gives columns the names that a step writes them under."""
        end = max((index for index, (other, _) in enumerate(self._written) if other == step), default=0)
        for column in columns:
            after = next((other for other, again in self._written[end + 1 :] if again == column), None)
            self.now[column] = column if after is None else f"{column}_before_{after}"
            if after is not None:
                self.earlier.add(self.now[column])


def translate(segment: Segment, steps: Mapping[str, Any], folder: Path, settings: Mapping[str, Any]) -> Translated:
    """A segment's job, and the new names of seed columns that one of its tasks writes again."""
    models: list[dict[str, Any]] = []
    columns = _Columns([(name, column) for name in segment.tasks for column in _written(steps[name])])
    renamed = dict(columns.now)
    tree_steps: list[dict[str, Any]] = []
    for name in segment.tasks:
        step = steps[name]
        if type(step).__name__ == EXPAND:
            (listed,) = (columns.now.get(column, column) for column in _expanded(step))
            columns.write(name, _written(step))
            tree_steps[-1]["explode"] = f"{listed} -> {columns.now[_written(step)[0]]}"
            continue
        index = _place(models, _model(name, step.llm))
        task = _task(step)
        tree = {"task": task, "sampling": _sampling(name, step.llm), **_parameters(name, step, TASKS[task])}
        if task in _ANSWERS:
            tree["reasoning"] = "keep"
        reads = {task_input: step.input_mappings.get(task_input, task_input) for task_input in _inputs(step)}
        tree["input_mappings"] = {key: columns.now.get(column, column) for key, column in reads.items()}
        writes = {output: step.output_mappings.get(output, output) for output in _outputs(step)}
        columns.write(name, writes.values())
        tree["output_mappings"] = {output: columns.now[column] for output, column in writes.items()}
        if index:
            tree["model"] = f"llm_{index}"
        tree_steps.append(tree)
    _share_memory(models)
    first = steps[segment.tasks[0]]
    seeds = {"path": str(folder / "seeds" / f"{segment.name}.parquet")}
    job = {
        **settings,
        "name": segment.name,
        "source": {"count": first.num_rows} if type(first).__name__ in GENERATORS else seeds,
        "model": models[0],
        "models": {f"llm_{index}": model for index, model in enumerate(models) if index},
        "steps": tree_steps,
        "merge": {"exact": False, "near": False, "drop_truncated": False},
        "output": str(folder / "runs" / segment.name),
    }
    adds_messages = "messages" not in (*reads.values(), *columns.now)
    return Translated(Job.of(job), renamed, columns.earlier, adds_messages)


def _expanded(step: Any) -> dict[str, str]:
    """List column -> column of its items, of a step that has been checked."""
    return {
        step.input_mappings.get(column, column): step.output_mappings.get(new or column, new or column)
        for column, new in step.columns.items()
    }


def _task(step: Any) -> str:
    """The entry of the table for a step that has been checked."""
    kind = type(step).__name__
    return GENERATORS.get(kind) or BY_CLASS[kind]


def _inputs(step: Any) -> list[str]:
    """The task's inputs that are there for sure, or that a mapping names."""
    inputs = step.inputs if isinstance(step.inputs, dict) else dict.fromkeys(step.inputs, True)
    return [name for name, required in inputs.items() if required or name in step.input_mappings]


def _outputs(step: Any) -> list[str]:
    spec = TASKS[_task(step)]
    try:
        parameters = spec.parameters.model_validate(_own_parameters(step, spec))
    except ValidationError as error:
        first = error.errors()[0]
        raise JobError(f"step {step.name!r}: {first['loc'][0]}: {first['msg']}") from None
    return list(spec.outputs(parameters))


def _written(step: Any) -> list[str]:
    if type(step).__name__ == EXPAND:
        return list(_expanded(step).values())
    return [step.output_mappings.get(output, output) for output in _outputs(step)]


def _own_parameters(step: Any, spec: TaskSpec) -> dict[str, Any]:
    """The task's parameters that differ from distilabel's defaults, as a job has them."""
    given: dict[str, Any] = {}
    for field in spec.parameters.model_fields:
        info = type(step).model_fields.get(field)
        value = getattr(step, field, None)
        if info is not None and value is not None and (info.is_required() or value != info.default):
            given[field] = value
    return plain_tree(given)


def _parameters(name: str, step: Any, spec: TaskSpec) -> dict[str, Any]:
    given = _own_parameters(step, spec)
    columns = [step.columns] if isinstance(getattr(step, "columns", None), str) else getattr(step, "columns", None)
    if columns not in (None, ["instruction"]) and "template" not in given:
        raise JobError(f"step {name!r}: `columns` without a template that uses them")
    for field in ("num_generations", "group_generations"):
        if value := getattr(step, field, None):
            given[field] = value
    return given


def _model(name: str, llm: Any) -> dict[str, Any]:
    """A job's model for a distilabel LLM."""
    kinds = [class_name(kind) for kind in type(llm).__mro__]
    if "OpenAILLM" in kinds and kinds[0] == type(llm).__name__ and kinds[0] not in _OTHER_PATHS:
        if getattr(llm, "api_key", None) is not None and not _from_environment(llm):
            raise JobError(f"step {name!r}: its LLM has an API key in the code; put it into {llm._api_key_env_var}")
        for field in ("default_headers", "use_offline_batch_generation"):
            if getattr(llm, field, None):
                raise JobError(f"step {name!r}: {field} of its LLM is not carried over")
        if not llm.model:
            raise JobError(f"step {name!r}: its {kinds[0]} needs `model`, as the server calls it")
        engine = {"base_url": str(llm.base_url or "https://api.openai.com/v1"), "api_key_env": llm._api_key_env_var}
        return {"path": llm.model, "backend": "openai", "engine": engine | _own_patience(llm)}
    if kinds[0] not in ("vLLM", "TransformersLLM"):
        raise JobError(
            f"step {name!r}: its LLM is a {kinds[0]}, which cannot be carried over; legal: vLLM, TransformersLLM, "
            "OpenAILLM and its like"
        )
    if llm.trust_remote_code:
        raise JobError(f"step {name!r}: trust_remote_code is not carried over; a job is data")
    if llm.chat_template is not None:
        raise JobError(f"step {name!r}: a chat template of its own is not carried over; put it into the tokenizer")
    engine = {
        ours: getattr(llm, theirs)
        for theirs, ours in _ENGINE_FIELDS.items()
        if getattr(llm, theirs, None) not in (None, "auto")
    }
    engine |= getattr(llm, "extra_kwargs", None) or {}
    model = {"path": llm.model, "engine": engine}
    if llm.revision not in (None, "main"):
        model["revision"] = llm.revision
    if llm.magpie_pre_query_template not in (None, *_DERIVED):
        model["pre_query_template"] = llm.magpie_pre_query_template
    return model


def _place(models: list[dict[str, Any]], model: dict[str, Any]) -> int:
    """Where a model stands among those of a job; a text that opens user turns, which only Magpie needs, is no other."""
    for index, other in enumerate(models):
        agree = other | model == model | other
        if agree and other.keys() ^ model.keys() <= {"pre_query_template"}:
            models[index] = other | model
            return index
    models.append(model)
    return len(models) - 1


def _own_patience(llm: Any) -> dict[str, Any]:
    """Time-out and number of retries of a server's client, where they are not distilabel's."""
    fields = type(llm).model_fields
    given = {name: getattr(llm, name) for name in ("timeout", "max_retries") if name in fields}
    return {name: value for name, value in given.items() if value is not None and value != fields[name].default}


def _from_environment(llm: Any) -> bool:
    key = llm.api_key.get_secret_value() if hasattr(llm.api_key, "get_secret_value") else llm.api_key
    return bool(key == os.environ.get(llm._api_key_env_var))


def _sampling(name: str, llm: Any) -> dict[str, Any]:
    """A job's sampling for a distilabel LLM: what was given, and distilabel's defaults for the rest."""
    signature = inspect.signature(type(llm).generate if type(llm).__name__ != "OpenAILLM" else type(llm).agenerate)
    legal = {key: p.default for key, p in signature.parameters.items() if p.default is not inspect.Parameter.empty}
    given = {key: legal[key] for key in ("max_new_tokens", "temperature", "top_p") if legal.get(key) is not None}
    given |= llm.generation_kwargs or {}
    given |= given.pop("extra_sampling_params", None) or {}
    if given.get("do_sample") is False:
        given["temperature"] = 0.0
    if given.get("top_k") == 0:
        given["top_k"] = -1  # distilabel's word for "all" with transformers
    for field in ("logits_processors", "stop_sequences", "logprobs", "top_logprobs", "response_format"):
        if given.pop(field, None) is not None:
            raise JobError(f"step {name!r}: generation argument {field!r} cannot be carried over")
    sampling = {_GENERATION.get(key, key): value for key, value in given.items() if value is not None}
    if structured := getattr(llm, "structured_output", None):
        sampling["structured_outputs"] = _structure(structured)
    return {key: value for key, value in sampling.items() if key is not None}


def _structure(structured: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's structured outputs for distilabel's, whose schema may be a class, and whose format may be left open."""
    schema = structured["schema"]
    schema = schema.model_json_schema() if hasattr(schema, "model_json_schema") else schema
    return {structured.get("format") or ("regex" if isinstance(schema, str) else "json"): schema}


def _share_memory(models: Sequence[dict[str, Any]]) -> None:
    """Several vLLM engines of one process share its GPU."""
    local = [model for model in models if model.get("backend") != "openai"]
    if len(local) > 1:
        for model in local:
            model["engine"] = {"gpu_memory_utilization": round(0.9 / len(local), 2), **model["engine"]}
