"""Checks structured outputs with xgrammar itself, which is what vLLM compiles them with here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from batchgen.errors import JobError


def check_structure(structure: Mapping[str, Any], where: str) -> None:
    """Refuses a regular expression or JSON schema that could not be compiled: every row would be rejected for it.

    Grammars are left to vLLM, which tells their dialects apart. Nothing is refused where xgrammar is not installed, as
    on a machine that only submits jobs.

    Args:
        structure: vLLM's StructuredOutputsParams by name.
        where: the field of the job, for messages.

    Raises:
        JobError: with xgrammar's reason.
    """
    if not structure.keys() & {"regex", "json"}:
        return
    try:
        from xgrammar import Grammar
    except ImportError:
        return
    regex, schema = structure.get("regex"), structure.get("json")
    try:
        field = "regex"
        if regex is not None:
            Grammar.from_regex(regex)
        field = "json"
        if schema is not None:
            Grammar.from_json_schema(schema if isinstance(schema, str) else json.dumps(schema))
    except Exception as error:  # of xgrammar's own: RuntimeError today
        raise JobError(f"{where}.{field}: vLLM cannot compile it: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line of xgrammar's message, without the time and the place in its source."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line.rpartition(".cc:")[2].partition(": ")[2].strip() if ".cc:" in line else line
