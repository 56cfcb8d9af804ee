"""What a job does that is no mistake, and that its writer may not have meant all the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from batchgen.checks import field_name, texts
from batchgen.job import Job
from batchgen.plan import Plan
from batchgen.rows import MESSAGES
from batchgen.step import Step

# One brace too few for a placeholder, and a whole one.
_BRACES = re.compile(r"(?<!\{)\{\s*(\w+)\s*\}(?!\})|\{\{\s*(\w+)\s*\}\}")
_ELSEWHERE = (
    "only a `template` is filled; a fill_template step writes system prompts that differ from row to row "
    "(output_mappings: {text: system_prompt})"
)
# Not the beginning of a command of LaTeX, such as \nabla.
_NO_NEWLINE = re.compile(r"\\n(?![a-z])")
_SPELLED = r"holds a backslash and an n, where YAML reads a line break in double quotes alone"


def remarks(job: Job, plan: Plan) -> list[str]:
    """Lines for whoever runs the job; none where there is nothing to say."""
    columns = set(plan.schema.names)
    lines = [f"sampling.{line}" for line in _spelled_newlines(job.sampling)]
    for part, model in (("model", job.model), *((f"models.{name}", model) for name, model in job.models.items())):
        opening = {"pre_query_template": model.pre_query_template}
        lines += [f"{part}.{line}" for line in _spelled_newlines(opening)]
    for index, step in enumerate(job.steps):
        told = [f"sampling.{line}" for line in _spelled_newlines(step.sampling)]
        if not isinstance(step.spec.distilabel, type):  # which may do what it likes with its parameters
            told += _without_messages(job, step)
            told += [*_unfilled(step, columns), *_spelled_newlines(step.parameters.model_dump())]
            told += _alike(job, step, columns)
        if step.sampling and not step.spec.calls_model:
            told.append(f"sampling: means nothing, as {step.task} calls no model")
        elif step.sampling and not step.spec.generates:
            told.append(f"sampling: means nothing, as {step.task} generates nothing")
        lines += [f"steps[{index}].{line}" for line in told]
    return list(dict.fromkeys(lines))


def _without_messages(job: Job, step: Step) -> Iterator[str]:
    """A prompt that is in no column, where no other step makes conversations either."""
    chats = [each.spec.chat(each.parameters) for each in job.steps]
    unwanted = job.merge.columns is not None and MESSAGES not in job.merge.columns
    if (
        step.spec.calls_model
        and getattr(step.parameters, "template", None)
        and not (any(chats) or job.merge.prompt or unwanted)
    ):
        kept = "keep_prompt: true adds it as `full_prompt`"
        yield f"template: what it comes to is in no column, so that the rows have no messages; {kept}"


def _unfilled(step: Step, columns: set[str]) -> Iterator[str]:
    """Placeholders that nothing fills, of columns that there are."""
    for path, text in texts(step.parameters.model_dump()):
        for match in _BRACES.finditer(text):
            single, column = match[1], match[1] or match[2]
            is_template = path == ("template",)
            if column not in columns or (is_template and not single):
                continue
            hint = f"a placeholder has two braces, {{{{ {column} }}}}" if is_template else _ELSEWHERE
            yield f"{field_name(path)}: {match[0]} goes to the model as it stands: {hint}"


def _alike(job: Job, step: Step, columns: set[str]) -> Iterator[str]:
    """Rows that are all the same, as a model without chance writes them to one prompt."""
    sampling = job.step_sampling(step)
    greedy = "temperature: 0" if sampling.get("temperature") == 0 else "top_k: 1" if sampling.get("top_k") == 1 else ""
    if greedy and step.spec.generates and not (columns & {*step.reads.values()} or step.spec.chooses(step.parameters)):
        yield f"sampling: {greedy} has every row say the same, as {step.task} reads nothing of a row here"


def _spelled_newlines(parameters: Mapping[str, Any]) -> Iterator[str]:
    """Texts in which a line break was meant."""
    for path, text in texts(parameters):
        if path[0] != "structured_outputs" and _NO_NEWLINE.search(text):
            yield f"{field_name(path)}: {_SPELLED}"
