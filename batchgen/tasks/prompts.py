"""The prompts of distilabel's tasks as text, for those who need the words without running a task."""

from __future__ import annotations

from collections.abc import Mapping


def self_instruct_prompt(context: str, num_instructions: int) -> str:
    """What `SelfInstruct`, with its default criteria, says to a model about a context."""
    from importlib.resources import files

    from jinja2 import Template

    from batchgen.tasks.distilabel_api import tasks

    template = files("distilabel") / "steps" / "tasks" / "templates" / "self-instruct.jinja2"
    fields = tasks.SelfInstruct.model_fields
    text: str = Template(template.read_text()).render(
        input=context,
        num_instructions=num_instructions,
        criteria_for_query_generation=fields["criteria_for_query_generation"].default,
        application_description=fields["application_description"].default,
    )
    return text


def evol_instruct_prompts() -> Mapping[str, str]:
    """The mutation prompts of `EvolInstruct` by name; `<PROMPT>` stands for the instruction."""
    from batchgen.tasks.distilabel_api import MUTATION_TEMPLATES

    return dict(MUTATION_TEMPLATES)
