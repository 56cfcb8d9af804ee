"""A caller's own objects as the plain values that a YAML file would give."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from typing import Any

from batchgen.errors import JobError

_PLAIN = (str, int, float, bytes, date, time, Decimal, type(None))
_TABLES = "save it with `datasets` (save_to_disk) or as Parquet, and name it in source.dataset or source.path"


def plain_tree(tree: Mapping[str, Any], what: str = "job") -> dict[str, Any]:
    """A copy of a job's tree: mappings as dicts, sequences as lists, paths as text, numpy's numbers as Python's.

    Args:
        what: the tree is of, for its errors.

    Raises:
        JobError: names the field that holds anything else, and its type.
    """
    return {str(key): _plain(value, str(key), what) for key, value in tree.items()}


def _plain(value: Any, field: str, what: str) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{field}.{key}", what) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{field}[{index}]", what) for index, item in enumerate(value)]
    if hasattr(value, "tolist"):  # arrays and scalars of numpy
        return _plain(value.tolist(), field, what)
    hint = ""
    if hasattr(value, "columns") or hasattr(value, "column_names"):
        hint = f"; {_TABLES}"
    elif hasattr(value, "get_secret_value"):
        hint = ": it would be kept in the run's files; have the class read it from the environment by a default_factory"
    elif hasattr(value, "generate_outputs"):
        hint = ": a step's LLM is its field `llm`, of which it can have one"
    raise JobError(f"{what}: {field}: {type(value).__name__} cannot be part of a job{hint}")
