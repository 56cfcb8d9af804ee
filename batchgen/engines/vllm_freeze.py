"""What the installed vLLM takes, as `arguments.py` has it frozen; run as a program it writes that file."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from batchgen.engines.arguments import LIMITS, Kind


def frozen_arguments() -> dict[str, dict[str, Any]]:
    """What the installed vLLM takes: names and kinds of engine and sampling arguments, and the engine's ranges."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RepetitionDetectionParams, StructuredOutputsParams

    engine = {
        field.name: _kind(field.type) for field in dataclasses.fields(AsyncEngineArgs) if not field.name.startswith("_")
    }
    sampling = {name: _kind(hint) for name, hint in SamplingParams.__annotations__.items() if not name.startswith("_")}
    parts = {"structured_outputs": StructuredOutputsParams, "repetition_detection": RepetitionDetectionParams}
    nested = {
        name: {field.name: _kind(field.type) for field in dataclasses.fields(part) if not field.name.startswith("_")}
        for name, part in parts.items()
    }
    tables: dict[str, dict[str, Any]] = {"engine": engine, "ranges": _ranges(engine), "sampling": sampling, **nested}
    return {kind: dict(sorted(table.items())) for kind, table in tables.items()}


def _ranges(engine: Collection[str]) -> dict[str, dict[str, float]]:
    """The limits of engine arguments, by pydantic's words for them: vLLM keeps them with the fields of its configs."""
    from vllm import config

    # A draft model has arguments of its own, some of the engine's names.
    parts = {part for part in vars(config).values() if isinstance(part, type) and dataclasses.is_dataclass(part)}
    found: dict[str, dict[str, float]] = {}
    for part in sorted(parts - {config.SpeculativeConfig}, key=lambda part: part.__name__):
        fields: dict[str, Any] = getattr(part, "__pydantic_fields__", {})
        for name, field in fields.items():
            kinds = {type(item).__name__.lower(): item for item in field.metadata}
            limits = {kind: getattr(item, kind) for kind, item in sorted(kinds.items()) if kind in LIMITS}
            if limits and name in engine:
                found[name] = limits
    return found


def _kind(hint: Any) -> Kind:
    """The legal values, a union of plain type names, or "any" where only vLLM can judge a value."""
    if values := _values(hint):
        return values
    text = (
        hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
    )
    members = re.sub(r"\[[^\[\]]*\]", "", re.sub(r"\[[^\[\]]*\]", "", text)).replace("NoneType", "None")
    names = {member.strip() for member in members.split("|")}
    return " | ".join(sorted(names)) if names <= {"int", "float", "bool", "str", "None", "list", "dict"} else "any"


def _values(hint: Any) -> list[Any]:
    """The legal values of a hint that has nothing but literals, and perhaps None; else none."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    parts = [[None] if member is type(None) else _values(member) for member in members]
    return [value for part in parts for value in part] if all(parts) else []


if __name__ == "__main__":
    target = Path(__file__).with_name("vllm_arguments.json")
    target.write_text(json.dumps(frozen_arguments(), indent=1) + "\n")
