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


def plain_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a job's tree: mappings as dicts, sequences as lists, paths as text, numpy's numbers as Python's.

    Raises:
        JobError: names the field that holds anything else, and its type.
    """
    # Parameters of a step may be mappings of numbers, as in YAML; every other key is a name.
    return {str(key): _plain(value, str(key), "job", names=key != "steps") for key, value in tree.items()}


def plain_fields(fields: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The fields of an object that is made anew where a step runs, as a job's step has them; see `plain_tree`.

    Args:
        what: they are of, for errors.

    Raises:
        JobError: as `plain_tree` does. So it is for an array, which would come back as a list.
    """
    return {name: _plain(value, name, what, names=False, arrays=False) for name, value in fields.items()}


def _plain(value: Any, field: str, what: str, names: bool, arrays: bool = True) -> Any:
    """See `plain_tree`.

    Args:
        names: whether the keys of a mapping become text.
        arrays: whether arrays become lists.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        keys = {key: str(key) if names else _key(key, field, what) for key in value}
        return {keys[key]: _plain(item, f"{field}.{key}", what, names, arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{field}[{index}]", what, names, arrays) for index, item in enumerate(value)]
    # Arrays and scalars of numpy.
    if hasattr(value, "tolist") and (arrays or not getattr(value, "shape", ())):
        return _plain(value.tolist(), field, what, names, arrays)
    hint = ""
    if arrays and (hasattr(value, "columns") or hasattr(value, "column_names")):
        hint = f"; {_TABLES}"
    elif hasattr(value, "get_secret_value"):
        hint = ": it would be kept in the run's files; have the class read it from the environment by a default_factory"
    elif hasattr(value, "generate_outputs"):
        hint = ": a step's LLM is its field `llm`, of which it can have one"
    elif hasattr(value, "shape"):
        hint = ": have the class make it in `load`"
    raise JobError(f"{what}: {field}: {type(value).__name__} cannot be part of a job{hint}")


def _key(key: Any, field: str, what: str) -> Any:
    """A key of a mapping, as YAML can have it too."""
    if isinstance(key, str):
        return str.__str__(key)
    plain = key.item() if hasattr(key, "item") else key  # scalars of numpy
    if not isinstance(plain, _PLAIN):
        raise JobError(f"{what}: {field}: a key of type {type(key).__name__} cannot be part of a job")
    return plain
