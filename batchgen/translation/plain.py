"""distilabel's own steps that call no model and see one row at a time: they run as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from batchgen.errors import JobError
from batchgen.tasks.spec import OPTIONAL

# What a step writes, with kinds, for the kinds of what it reads; both by the step's own names.
Outputs = Callable[[Any, Mapping[str, str]], Mapping[str, str]]

_PROMPT = {"prompt": "text", "prompt_id": "text"}
_MODELS = {"chosen_model": "text", "rejected_model": "text"}
_PREFERENCE = {
    **_PROMPT,
    "chosen": "conversation",
    "chosen_rating": "number",
    "rejected": "conversation",
    "rejected_rating": "number",
}
EXPAND = "ExpandColumns"
MERGE = "MergeColumns"


def _sft(step: Any, inputs: Mapping[str, str]) -> Mapping[str, str]:
    return {**_PROMPT, "messages": "conversation"}


def _dpo(step: Any, inputs: Mapping[str, str]) -> Mapping[str, str]:
    return {**_PREFERENCE, **(_MODELS if "generation_models" in inputs else {})}


def _merged(step: Any, inputs: Mapping[str, str]) -> Mapping[str, str]:
    """One list of what several columns have, themselves lists or not."""
    items = {kind.removeprefix("list[").removesuffix("]") for kind in inputs.values()}
    if len(items) > 1:
        found = ", ".join(f"{name}: {kind}" for name, kind in inputs.items())
        raise JobError(f"step {step.name!r} ({MERGE}): the columns do not go into one list: {found}")
    (item,) = items
    return {step.outputs[0]: f"list[{item}]"}


def _items(step: Any, inputs: Mapping[str, str]) -> Mapping[str, str]:
    """What lists hold that are spread over rows; an item may be null.

    Where two lists differ in length, distilabel puts the whole row in the place of an item, and the row is rejected.
    """
    for name, kind in inputs.items():
        if not kind.startswith("list["):
            raise JobError(f"step {step.name!r} ({EXPAND}): column {name!r} is not a list (it is {kind})")
    return {new or name: inputs[name][5:-1] + OPTIONAL for name, new in step.columns.items()}


def _process_reward(step: Any, inputs: Mapping[str, str]) -> Mapping[str, str]:
    if step.format == "trl":
        return {"prompt": "text", "completions": "list[text]", "labels": "list[boolean]"}
    return {"input": "text", "label": "text"}


PLAIN: Mapping[str, Outputs] = {
    "ConversationTemplate": lambda step, inputs: {"conversation": "conversation"},
    EXPAND: _items,
    "FormatChatGenerationDPO": _dpo,
    "FormatChatGenerationSFT": _sft,
    "FormatPRM": _process_reward,
    "FormatTextGenerationDPO": _dpo,
    "FormatTextGenerationSFT": _sft,
    MERGE: _merged,
    "TruncateTextColumn": lambda step, inputs: {step.column: "text"},
}
