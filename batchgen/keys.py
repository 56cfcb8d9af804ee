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
    "Near": "{threshold: 0.8}; or false",
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

    def elsewhere(self, path: Path) -> list[str]:
        """The parts of a job, other than the one that it is in, which have a key of that name."""
        name, in_step = path[-1], path[0] == "steps"
        step = f"steps[{path[1]}]" if in_step else "a step"
        model = f"models.{path[1]}" if path[0] == "models" else "model"
        places: dict[str, Collection[str]] = {
            "the job itself": self._job.model_fields,
            **{part: self._parts[part].model_fields for part in ("source", "merge")},
            "merge.near": self._parts["near"].model_fields,
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
