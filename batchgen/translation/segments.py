"""The chains of steps in a distilabel `Pipeline`, and what of it cannot be carried over."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchgen.errors import JobError
from batchgen.tasks.table import LEFT_OUT
from batchgen.translation.plain import EXPAND
from batchgen.translation.steps import (
    BY_CLASS,
    COMBINE,
    GENERATORS,
    GROUP,
    JOINS,
    KEEP,
    LOADERS,
    class_name,
    generates,
    has_rows,
    is_task,
    loads,
    parameters_of,
    runs_as_it_is,
)

# What does the same here, of steps that need all rows.
_INSTEAD: Mapping[str, str] = {
    "MinHashDedup": "it compares all rows, as the merge of a job does (`merge.near`)",
    "PushToHub": "take it out, and call push_to_hub of what from_pipeline gives",
}


@dataclass(frozen=True, eq=False)
class Segment:
    """Steps through which every row goes: a chain, in which branches that meet again stand one after the other.

    Args:
        steps: names of distilabel's steps, in order.
        before: the steps that lead to each of them, in distilabel's order.
        parent: the segment that it branches from; None where it starts from the loaded rows.
        leaf: whether nothing comes after it.
    """

    steps: tuple[str, ...]
    before: Mapping[str, tuple[str, ...]]
    parent: Segment | None
    leaf: bool

    @property
    def name(self) -> str:
        """That of its last step, safe as a folder's name."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", self.steps[-1])


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
    if not isinstance(given, Mapping):
        raise JobError(f"{where}: expected a mapping, got {type(given).__name__}")
    legal = part.runtime_parameters_names
    for name, value in given.items():
        if name not in legal:
            raise JobError(f"{where}: no runtime parameter {name!r}; legal: {', '.join(sorted(legal))}")
        if hasattr(inner := getattr(part, name), "set_runtime_parameters"):
            _check_parameters(f"{where}[{name!r}]", inner, value)


def loaders_of(dag: Any, steps: Mapping[str, Any]) -> tuple[tuple[str, ...], str | None]:
    """The steps that a pipeline begins with, and the one in which they meet at once, where there are several.

    Raises:
        JobError: there are none, or several that do not.
    """
    roots = tuple(dag.root_steps)
    if len(roots) == 1:
        return roots, None
    after = {name for root in roots for name in dag.get_step_successors(root)}
    join = min(after, default="")
    together = len(after) == 1 and class_name(type(steps[join])) == COMBINE and all(map(loads, map(steps.get, roots)))
    if not together or {*dag.get_step_predecessors(join)} != {*roots}:
        raise JobError(
            f"the pipeline has {len(roots)} first steps; batchgen carries over one that has rows, or several that load "
            f"rows and all meet in a {COMBINE}, or give dataset"
        )
    return tuple(dag.get_step_predecessors(join)), join


def segments_of(dag: Any, steps: Mapping[str, Any], loaded: bool = False) -> list[Segment]:
    """The pipeline's chains, parents first.

    Args:
        loaded: whether the rows come from elsewhere, so that no step loads any.

    Raises:
        JobError: the graph is none that can be carried over.
    """
    roots = sorted(dag.root_steps)
    makers = [name for name in roots if has_rows(steps[name])]
    if loaded and makers:
        raise JobError(f"step {makers[0]!r}: it has rows of its own, and dataset is given too; use one of them")
    loaders, join = ((), None) if loaded else loaders_of(dag, steps)
    for name in dag:
        _check_step(name, steps[name], dag, is_root=name in loaders)
    starts = loaded or generates(steps[roots[0]])
    segments: list[Segment] = []

    def grow(parent: Segment | None, firsts: Sequence[str]) -> None:
        for names in _chains(dag, steps, firsts):
            while following := sorted(dag.get_step_successors(names[-1])):
                chains = _chains(dag, steps, following)
                if len(chains) > 1:
                    break
                names += chains[0]
            before = {name: tuple(dag.get_step_predecessors(name)) for name in names}
            segment = Segment(tuple(names), before, parent, leaf=not following)
            segments.append(segment)
            grow(segment, following)

    grow(None, roots if starts else sorted(dag.get_step_successors(join or roots[0])))
    if not segments:
        raise JobError(f"step {roots[0]!r}: nothing comes after it; connect it with >>")
    if not any(is_task(step) for step in steps.values()):
        raise JobError("no step of the pipeline is a task, which calls a model")
    return segments


def _chains(dag: Any, steps: Mapping[str, Any], firsts: Sequence[str]) -> list[list[str]]:
    """The beginnings of the chains of steps that stand side by side; one chain, where all of them meet again.

    Raises:
        JobError: some of them meet.
    """
    found = [_branch(dag, name) for name in firsts]
    joins = {join for _, join in found if join is not None}
    if not joins:
        return [[name] for name in firsts]
    join = min(joins)
    before = list(dag.get_step_predecessors(join))
    if len(found) != len(before) or any(other != join for _, other in found):
        raise JobError(
            f"step {join!r} ({type(steps[join]).__name__}): several steps lead to it; batchgen carries that over where "
            "the branches of one step, each of them a chain, all meet there"
        )
    for name in (name for names, _ in found for name in names):
        kind, several = class_name(type(steps[name])), (getattr(steps[name], "num_generations", None) or 1) > 1
        if kind == EXPAND or (several and not steps[name].group_generations):
            raise JobError(
                f"step {name!r} ({kind}): it makes several rows of one, and its branch meets others in {join!r}"
            )
    # A branch may be no more than a line from where the others begin.
    ordered = sorted((names for names, _ in found if names), key=lambda names: before.index(names[-1]))
    return [[*(name for names in ordered for name in names), join]]


def _branch(dag: Any, first: str) -> tuple[list[str], str | None]:
    """The steps of a branch, and the one in which it meets others; None where it does not, or branches itself."""
    names: list[str] = []
    following = [first]
    while len(following) == 1:
        (name,) = following
        if len(list(dag.get_step_predecessors(name))) > 1:
            return names, name
        names.append(name)
        following = list(dag.get_step_successors(name))
    return names, None


def _check_step(name: str, step: Any, dag: Any, is_root: bool) -> None:
    kind, known = type(step).__name__, class_name(type(step))
    if dag.get_step(name).get("routing_batch_function") is not None:
        raise JobError(f"step {name!r}: a routing function follows it; batchgen cannot carry that over")
    if is_root:
        if generates(step):
            if not getattr(step, "num_rows", 1):
                raise JobError(f"step {name!r}: num_rows is not set; give it to the step or in parameters")
        elif not has_rows(step):
            loaders = f"{', '.join((*LOADERS, *GENERATORS))}, DataSampler or a GeneratorStep of your own"
            legal = f"a pipeline starts with one of {loaders}, or dataset is given"
            reason: str | None = LEFT_OUT.get(known, legal)
            raise JobError(f"step {name!r} ({kind}) cannot be carried over: {reason}")
        return
    if len(list(dag.get_step_predecessors(name))) > 1 and known not in JOINS:
        raise JobError(f"step {name!r} ({kind}): several steps lead to it; branches meet in {' or '.join(JOINS)}")
    if known in (*JOINS, KEEP):
        _check_column_step(name, step)
    elif known not in BY_CLASS and not runs_as_it_is(step):
        reason = LEFT_OUT.get(known) or _INSTEAD.get(known)
        if reason is None:
            reason = "a global step needs all rows at once" if step.is_global else "it is not a task"
        raise JobError(f"step {name!r} ({kind}) cannot be carried over: {reason}")
    else:
        parameters_of(name, step)
        if known == EXPAND and step.encoded:
            raise JobError(f"step {name!r} ({EXPAND}): lists that are encoded as texts are not carried over")


def _check_column_step(name: str, step: Any) -> None:
    kind = type(step).__name__
    if step.input_mappings or step.output_mappings:
        raise JobError(f"step {name!r} ({kind}): its mappings are not carried over; use the tasks' before it")
    outputs = getattr(step, "output_columns", None)
    if kind == GROUP and outputs is not None and len(outputs) != len(step.columns):
        raise JobError(f"step {name!r} ({kind}): {len(step.columns)} columns, and {len(outputs)} output_columns")
