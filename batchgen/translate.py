"""Translates a distilabel `Pipeline` that was written in Python into jobs: a chain of tasks is a job.

Where a pipeline branches, the tasks before the branch are a job of their own, and each branch starts from that job's
rows; so every task runs once a row, as in distilabel. Nothing here imports distilabel: the objects come from the
caller, and are told apart by the names of their classes.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from batchgen.errors import JobError
from batchgen.job import Job
from batchgen.tasks.spec import TaskSpec
from batchgen.tasks.table import LEFT_OUT, TASKS
from batchgen.trees import plain_tree

_BY_CLASS: Mapping[str, str] = {str(spec.distilabel): name for name, spec in TASKS.items() if spec.distilabel}
# A task that makes its rows out of nothing, as many as its `num_rows` says: the same task over numbered rows.
GENERATORS: Mapping[str, str] = {"MagpieGenerator": "magpie"}
_LOADERS = ("LoadDataFromDicts", "LoadDataFromDisk", "LoadDataFromFileSystem", "LoadDataFromHub")
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
class Segment:
    """A chain of tasks without a branch.

    Args:
        tasks: names of distilabel's steps, in order.
        parent: the segment that it branches from; None where it starts from the loaded rows.
        leaf: whether nothing comes after it.
    """

    tasks: tuple[str, ...]
    parent: Segment | None
    leaf: bool

    @property
    def name(self) -> str:
        """That of its last task, safe as a folder's name."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", self.tasks[-1])


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


def set_parameters(steps: Mapping[str, Any], parameters: Mapping[str, Mapping[str, Any]]) -> None:
    """Sets runtime parameters as `pipeline.run` does, and refuses those of which distilabel only warns.

    Raises:
        JobError: names the step or parameter that there is not.
    """
    for name, given in parameters.items():
        if name not in steps:
            raise JobError(f"parameters: no step {name!r}; legal: {', '.join(sorted(steps))}")
        _check_parameters(f"parameters[{name!r}]", steps[name], given)
        steps[name].set_runtime_parameters(dict(given))


def _check_parameters(where: str, part: Any, given: Mapping[str, Any]) -> None:
    legal = part.runtime_parameters_names
    for name, value in given.items():
        if name not in legal:
            raise JobError(f"{where}: no runtime parameter {name!r}; legal: {', '.join(sorted(legal))}")
        if hasattr(inner := getattr(part, name), "set_runtime_parameters"):
            _check_parameters(f"{where}[{name!r}]", inner, value)


def segments_of(dag: Any, steps: Mapping[str, Any], loaded: bool = False) -> list[Segment]:
    """The pipeline's chains, parents first.

    Args:
        loaded: whether the rows come from elsewhere, so that no step loads any.

    Raises:
        JobError: the graph is none that can be carried over.
    """
    roots = sorted(dag.root_steps)
    makers = [name for name in roots if type(steps[name]).__name__ in (*_LOADERS, *GENERATORS)]
    if loaded and makers:
        raise JobError(f"step {makers[0]!r}: it has rows of its own, and dataset is given too; use one of them")
    if not loaded and len(roots) != 1:
        raise JobError(
            f"the pipeline has {len(roots)} first steps; batchgen carries over one that has rows, or give dataset"
        )
    for name in dag:
        _check_step(name, steps[name], dag, is_root=not loaded and name == roots[0])
    starts = loaded or type(steps[roots[0]]).__name__ in GENERATORS
    segments: list[Segment] = []

    def grow(parent: Segment | None, first: str) -> None:
        names = [first]
        while len(following := sorted(dag.get_step_successors(names[-1]))) == 1:
            names.append(following[0])
        segment = Segment(tuple(names), parent, leaf=not following)
        segments.append(segment)
        for name in following:
            grow(segment, name)

    for name in roots if starts else sorted(dag.get_step_successors(roots[0])):
        grow(None, name)
    if not segments:
        raise JobError(f"step {roots[0]!r}: nothing comes after it; connect it with >>")
    return segments


def _name(kind: type) -> str:
    """What a class of distilabel's is called; another of the same name may do anything."""
    return kind.__name__ if kind.__module__.partition(".")[0] == "distilabel" else f"{kind.__name__} of your own"


def _check_step(name: str, step: Any, dag: Any, is_root: bool) -> None:
    kind, known = type(step).__name__, _name(type(step))
    if dag.get_step(name).get("routing_batch_function") is not None:
        raise JobError(f"step {name!r}: a routing function follows it; batchgen cannot carry that over")
    if is_root:
        if known in GENERATORS:
            if not step.num_rows:
                raise JobError(f"step {name!r}: num_rows is not set; give it to the step or in parameters")
        elif known not in _LOADERS:
            legal = f"a pipeline starts with one of {', '.join((*_LOADERS, *GENERATORS))}, or dataset is given"
            reason: str | None = LEFT_OUT.get(known, legal)
            raise JobError(f"step {name!r} ({kind}) cannot be carried over: {reason}")
        return
    if len(list(dag.get_step_predecessors(name))) > 1:
        raise JobError(f"step {name!r} ({kind}): several steps lead to it; batchgen cannot carry that over")
    if known not in _BY_CLASS:
        reason = LEFT_OUT.get(known)
        if reason is None:
            reason = "a global step needs all rows at once" if getattr(step, "is_global", False) else "it is not a task"
            if hasattr(step, "llm"):
                reason = "it is a task of your own; run it with batchgen.run(job, tasks={...})"
        raise JobError(f"step {name!r} ({kind}) cannot be carried over: {reason}")


def translate(segment: Segment, steps: Mapping[str, Any], folder: Path, settings: Mapping[str, Any]) -> Translated:
    """A segment's job, and the new names of seed columns that one of its tasks writes again.

    distilabel lets a task overwrite a column. Here every version of a column has a name of its own, and the last one
    keeps the column's.
    """
    models: list[dict[str, Any]] = []
    written = [(name, column) for name in segment.tasks for column in _written(steps[name])]
    last = {column: name for name, column in written}
    # Column -> the name that its version of now has; a seed's version where nobody has written it yet.
    now = {column: f"{column}_before_{name}" for name, column in reversed(written)}
    renamed = dict(now)
    earlier = set(now.values())
    tree_steps = []
    for position, name in enumerate(segment.tasks):
        step = steps[name]
        index = _place(models, _model(name, step.llm))
        task = _task(step)
        tree = {"task": task, "sampling": _sampling(name, step.llm), **_parameters(name, step, TASKS[task])}
        if task in _ANSWERS:
            tree["reasoning"] = "keep"
        reads = {task_input: step.input_mappings.get(task_input, task_input) for task_input in _inputs(step)}
        tree["input_mappings"] = {key: now.get(column, column) for key, column in reads.items()}
        writes = {output: step.output_mappings.get(output, output) for output in _outputs(step)}
        later = [(other, column) for other, column in written if other in segment.tasks[position + 1 :]]
        for column in writes.values():
            after = next((other for other, again in later if again == column), None)
            now[column] = column if last[column] == name else f"{column}_before_{after}"
        earlier |= {now[column] for column in writes.values() if last[column] != name}
        tree["output_mappings"] = {output: now[column] for output, column in writes.items()}
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
    return Translated(Job.of(job), renamed, earlier, adds_messages="messages" not in (*reads.values(), *now))


def _task(step: Any) -> str:
    """The entry of the table for a step that has been checked."""
    kind = type(step).__name__
    return GENERATORS.get(kind) or _BY_CLASS[kind]


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
    kinds = [_name(kind) for kind in type(llm).__mro__]
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
