"""The chains of tasks in a distilabel `Pipeline`, and what of it cannot be carried over.

Nothing here imports distilabel: the objects come from the caller, and are told apart by the names of their classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchgen.errors import JobError
from batchgen.tasks.table import LEFT_OUT, TASKS

BY_CLASS: Mapping[str, str] = {str(spec.distilabel): name for name, spec in TASKS.items() if spec.distilabel}
# A task that makes its rows out of nothing, as many as its `num_rows` says: the same task over numbered rows.
GENERATORS: Mapping[str, str] = {"MagpieGenerator": "magpie"}
EXPAND = "ExpandColumns"
LOADERS = ("LoadDataFromDicts", "LoadDataFromDisk", "LoadDataFromFileSystem", "LoadDataFromHub")


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
    makers = [name for name in roots if type(steps[name]).__name__ in (*LOADERS, *GENERATORS)]
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


def class_name(kind: type) -> str:
    """What a class of distilabel's is called; another of the same name may do anything."""
    return kind.__name__ if kind.__module__.partition(".")[0] == "distilabel" else f"{kind.__name__} of your own"


def _check_step(name: str, step: Any, dag: Any, is_root: bool) -> None:
    kind, known = type(step).__name__, class_name(type(step))
    if dag.get_step(name).get("routing_batch_function") is not None:
        raise JobError(f"step {name!r}: a routing function follows it; batchgen cannot carry that over")
    if is_root:
        if known in GENERATORS:
            if not step.num_rows:
                raise JobError(f"step {name!r}: num_rows is not set; give it to the step or in parameters")
        elif known not in LOADERS:
            legal = f"a pipeline starts with one of {', '.join((*LOADERS, *GENERATORS))}, or dataset is given"
            reason: str | None = LEFT_OUT.get(known, legal)
            raise JobError(f"step {name!r} ({kind}) cannot be carried over: {reason}")
        return
    if len(list(dag.get_step_predecessors(name))) > 1:
        raise JobError(f"step {name!r} ({kind}): several steps lead to it; batchgen cannot carry that over")
    if known == EXPAND:
        _check_expand(name, step, dag)
    elif known not in BY_CLASS:
        reason = LEFT_OUT.get(known)
        if reason is None:
            reason = "a global step needs all rows at once" if getattr(step, "is_global", False) else "it is not a task"
            if hasattr(step, "llm"):
                reason = "it is a task of your own; run it with batchgen.run(job, tasks={...})"
        raise JobError(f"step {name!r} ({kind}) cannot be carried over: {reason}")


def _check_expand(name: str, step: Any, dag: Any) -> None:
    """A list is spread over rows as a task's `explode`."""
    before = list(dag.get_step_predecessors(name))
    follows_task = bool(before) and class_name(type(dag.get_step(before[0])["step"])) in (*BY_CLASS, *GENERATORS)
    if not follows_task or len(list(dag.get_step_successors(before[0]))) > 1:
        raise JobError(f"step {name!r} ({EXPAND}): it is carried over where it alone follows a task")
    if len(step.columns) != 1 or step.encoded:
        raise JobError(f"step {name!r} ({EXPAND}): it is carried over for one column, which is a list")
