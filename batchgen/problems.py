"""A job's mistakes as lines for its user, and `--set`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any

from batchgen.checks import Path, number_hint
from batchgen.errors import JobError
from batchgen.keys import EXAMPLES, Keys
from batchgen.yamlfile import YamlDocument, load_yaml


def problem(
    item: Any,
    document: YamlDocument | None,
    name: str,
    overridden: Sequence[Path],
    keys: Keys,
) -> str:
    """One line for one of pydantic's errors: file:line: field: what is wrong.

    Args:
        document: where the job was read from, for its line numbers.
        name: of the file.
        overridden: paths that `--set` gave.
        keys: of a job.
    """
    context = item.get("ctx") or {}
    # pydantic puts tags of unions into a location; the document knows only keys and indices.
    path = (*(part for part in item["loc"] if not _is_tag(part)), *context.get("path", ()))
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if any(path[: len(o)] == o or o[: len(path)] == path for o in overridden if path):
        where = "--set"
    else:
        line = document.line_of(path) if document else None
        where = f"{name}:{line}" if line else name
    return f"{where}: {field + ': ' if field else ''}{_message(item, path, keys)}"


def _is_tag(part: str | int) -> bool:
    return isinstance(part, str) and (part in ("str", "Near", "literal[False]") or part.startswith(("list[", "dict[")))


def _message(item: Any, path: Path, keys: Keys) -> str:
    if item["type"] in ("extra_forbidden", "unknown_key") and (places := keys.elsewhere(path)):
        return f"unknown key; {str(path[-1])!r} belongs to {' or '.join(places)}"
    if item["type"] == "extra_forbidden":
        legal = keys.legal(path[:-1])
        near = difflib.get_close_matches(str(path[-1]), legal, n=1)
        return f"unknown key{f'; did you mean {near[0]!r}? Legal' if near else '; legal'} keys: {', '.join(legal)}"
    if item["type"] == "missing":
        return "missing"
    message = str(item["msg"])
    value = item["input"]
    if "url" not in item:
        return message  # our own, which says everything; pydantic's get the value appended
    if item["type"] in ("model_type", "dict_type"):
        example = EXAMPLES.get((item.get("ctx") or {}).get("class_name", ""))
        message = "Expected a mapping" + (f", like {example}" if example else " of keys to values")
    return f"{message[0].lower()}{message[1:]}, got {json.dumps(value, default=str)[:80]}{number_hint(value)}"


def apply_override(tree: dict[str, Any], text: str) -> Path:
    """Sets `key.path=value` in a job's tree and returns the path."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise JobError(f"--set {text}: must read key=value, like --set source.count=100")
    path: list[str | int] = []
    at: Any = tree
    parts = key.strip().split(".")
    parsed = load_yaml(value, f"--set {text}").data
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if isinstance(at, list):
            if not part.isdigit() or int(part) >= len(at):
                raise JobError(f"--set {text}: {part!r} is not an index of a list of {len(at)}")
            path.append(int(part))
            if last:
                at[int(part)] = parsed
            else:
                at = at[int(part)]
        elif isinstance(at, dict):
            path.append(part)
            if last:
                _replace_kind(tree, path, part)
                at[part] = parsed
            else:
                at = at.setdefault(part, {})
                if at is None:
                    raise JobError(f"--set {text}: {part!r} is empty in the job")
        else:
            raise JobError(f"--set {text}: {'.'.join(map(str, path))} is not a mapping")
    return tuple(path)


def _replace_kind(tree: dict[str, Any], path: list[str | int], part: str) -> None:
    """A source of another kind replaces the one in the file, of which there can be only one, and what belongs to it."""
    kinds = ("count", "rows", "path", "dataset")
    if len(path) == 2 and path[0] == "source" and part in kinds:
        gone = {
            *kinds,
            *(("config", "revision", "split", "streaming") if part != "dataset" else ()),
            *(("columns",) if part == "count" else ()),
        }
        for name in gone:
            tree["source"].pop(name, None)
