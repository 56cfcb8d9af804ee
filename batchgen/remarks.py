"""What a job does that is no mistake, and that its writer may not have meant all the same."""

from __future__ import annotations

import re
from collections.abc import Iterator

from batchgen.checks import texts
from batchgen.job import Job
from batchgen.plan import Plan
from batchgen.step import Step

# One brace too few for a placeholder, and a whole one.
_BRACES = re.compile(r"(?<!\{)\{\s*(\w+)\s*\}(?!\})|\{\{\s*(\w+)\s*\}\}")


def remarks(job: Job, plan: Plan) -> list[str]:
    """Lines for whoever runs the job; none where there is nothing to say."""
    columns = set(plan.schema.names)
    return [
        f"steps[{index}].{line}"
        for index, step in enumerate(job.steps)
        if not isinstance(step.spec.distilabel, type)  # which may fill its parameters itself
        for line in dict.fromkeys(_unfilled(step, columns))
    ]


def _unfilled(step: Step, columns: set[str]) -> Iterator[str]:
    """Placeholders that nothing fills, of columns that there are."""
    for path, text in texts(step.parameters.model_dump()):
        for match in _BRACES.finditer(text):
            single, column = match[1], match[1] or match[2]
            is_template = path == ("template",)
            if column not in columns or (is_template and not single):
                continue
            field = ".".join(map(str, path))
            hint = f"a placeholder has two braces, {{{{ {column} }}}}" if is_template else _OTHERWISE
            yield f"{field}: {match[0]} goes to the model as it stands: {hint}"


_OTHERWISE = (
    "only `template` of text_generation is filled; system prompts that differ from row to row are a column "
    "`system_prompt`"
)
