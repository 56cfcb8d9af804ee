"""Where the keys of a job belong, for messages about one that stands elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pydantic import BaseModel

from batchgen.checks import Path
from batchgen.engines import arguments
from batchgen.engines.options import OPTIONS
from batchgen.tasks.table import TASKS

# What the parts of a job may look like, by the names of their classes.
EXAMPLES: Mapping[str, str] = {
    "Source": "{count: 100}, {path: seeds.jsonl} or {dataset: ORG/NAME}",
    "Model": "{path: ORG/NAME}",
    "Step": "{task: magpie}",
    "Merge": "{near: {threshold: 0.8}}",
    "Benchmark": "{path: benchmark.jsonl, columns: [question]}",
    "Near": "{threshold: 0.8}; or false",
}
# What is told of names that distilabel's steps and generation arguments have, and a job has not.
_OF_STEPS: Mapping[str, str] = {
    "add_raw_input": "no prompts are kept; batchgen plan JOB --prompt ROW shows them",
    "add_raw_output": "batchgen rejected shows the last completion of a row that was rejected",
    "batch_size": "rows do not wait for each other",
    "columns": "a text_generation reads those that its template's {{ placeholders }} name",
    "flatten_tasks": "explode: tasks -> task spreads them over rows",
    "generation_kwargs": "its name here is sampling",
    "input_batch_size": "rows do not wait for each other",
    "llm": "the job's model answers, or the one of the job's models that the step's model names",
    "name": "a step has none",
    "resources": "engines, engines_per_gpu and model.engine: {tensor_parallel_size: N} say how many GPUs are used",
    "seed": "it is for all steps",
    "use_cache": "the same command goes on with a run",
    "use_system_prompt": "a row's system_prompt is used where it has one",
}
_OF_SAMPLING: Mapping[str, str] = {
    "do_sample": "temperature: 0 is what do_sample: false was",
    "max_new_tokens": "its name here is max_tokens",
    "num_return_sequences": "a step has num_generations",
}
# Tasks that are worth naming.
_FEW = 3


class Keys:
    """The keys of a job and its parts.

    Args:
        job: the class of a job.
        parts: the classes of its parts, by the keys that they are under.
        step: the names that every step knows.
    """

    def __init__(self, job: type[BaseModel], parts: Mapping[str, type[BaseModel]], step: Collection[str]) -> None:
        self._job = job
        self._parts = parts
        self._step = step

    def legal(self, path: Sequence[str | int]) -> list[str]:
        """The keys at a path of a job."""
        at = self._job
        for index, part in enumerate(path):
            at = self._parts["model"] if index and path[index - 1] == "models" else self._parts.get(str(part), at)
        return list(at.model_fields)

    def familiar(self, path: Path) -> str | None:
        """What does here what a key of that name does in distilabel; None where it has none there."""
        names = _OF_SAMPLING if "sampling" in path[:-1] else _OF_STEPS if path[0] == "steps" and len(path) == 3 else {}
        return names.get(str(path[-1]))

    def elsewhere(self, path: Path) -> list[str]:
        """The parts of a job, other than the one that it is in, which have a key of that name."""
        name, in_step = path[-1], path[0] == "steps"
        step = f"steps[{path[1]}]" if in_step else "a step"
        model = f"models.{path[1]}" if path[0] == "models" else "model"
        places: dict[str, Collection[str]] = {
            "the job itself": self._job.model_fields,
            **{part: self._parts[part].model_fields for part in ("source", "merge")},
            "merge.near": self._parts["near"].model_fields,
            # What it has in common with a source is more likely meant for that.
            "merge.decontaminate": self._parts["decontaminate"].model_fields.keys()
            - self._parts["source"].model_fields.keys(),
            model: self._parts["model"].model_fields,
            f"{model}.engine": arguments.engine_arguments(),
            f"{step}.sampling" if in_step else "sampling": arguments.sampling_arguments(),
            step: self._step,
        }
        places |= {
            f"{model}.engine, with backend: {backend}": options.model_fields.keys()
            - arguments.engine_arguments().keys()
            for backend, options in OPTIONS.items()
        }
        # Its own place has it where that is another backend's.
        here = ".".join(map(str, path[:-1]))
        tasks = [task for task, spec in TASKS.items() if name in spec.parameters.model_fields]
        found = [place for place, names in places.items() if place != here and name in names]
        if tasks:
            found.append(f"a step with task: {', '.join(tasks)}" if len(tasks) <= _FEW else "a step of some tasks")
        return found
