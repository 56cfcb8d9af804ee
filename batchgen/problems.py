"""A job's mistakes as lines for its user, and `--set`."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchgen.checks import Path as FieldPath
from batchgen.checks import field_name, number_hint
from batchgen.errors import JobError
from batchgen.keys import EXAMPLES, Keys
from batchgen.yamlfile import YamlDocument, load_yaml

# What a value may be where it may be one of several kinds, by pydantic's names for that it is not.
_KINDS = {
    "int_type": "a whole number",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}
# A job may have a mistake in each of thousands of rows.
_MOST_LINES = 20


def problems(
    items: Sequence[Any], document: YamlDocument | None, name: str, overridden: Sequence[FieldPath], keys: Keys
) -> list[str]:
    """Lines for pydantic's errors, which has one for every kind that a value might have been; the first of very many.

    Args:
        document: where the job was read from, for its line numbers.
        name: of the file.
        overridden: paths that `--set` gave.
        keys: of a job.
    """
    paths = [_path(item) for item in items]
    # Where the value is of one of the kinds that it may be, there is more to say of that one.
    known = {path[:length] for path in paths for length in range(len(path))}
    known |= {path for path, item in zip(paths, items, strict=True) if _in_kind(item) and not _is_kind(item)}
    kinds: dict[FieldPath, list[str]] = {}
    for path, item in zip(paths, items, strict=True):
        if _is_kind(item):
            kinds.setdefault(path, []).append(_KINDS[item["type"]])
    told: dict[str, None] = {}
    for path, item in zip(paths, items, strict=True):
        if _is_kind(item) and path in known:
            continue
        if _is_kind(item) and len(kinds[path]) > 1:
            item = {**item, "msg": f"Expected {' or '.join(kinds[path])}", "type": "kind"}
        told[_problem(item, path, document, name, overridden, keys)] = None
    more = len(told) - _MOST_LINES
    return [*list(told)[:_MOST_LINES], *([f"... and {more:,} more"] if more > 0 else [])]


def _in_kind(item: Any) -> bool:
    """Whether a mistake is about one of several kinds."""
    return any(_is_tag(part) for part in item["loc"])


def _is_kind(item: Any) -> bool:
    """Whether it is that a value is not of that kind."""
    return item["type"] in _KINDS and _in_kind(item)


def _path(item: Any) -> FieldPath:
    # pydantic puts tags of unions into a location; the document knows only keys and indices.
    return (*(part for part in item["loc"] if not _is_tag(part)), *(item.get("ctx") or {}).get("path", ()))


def _problem(
    item: Any,
    path: FieldPath,
    document: YamlDocument | None,
    name: str,
    overridden: Sequence[FieldPath],
    keys: Keys,
) -> str:
    """One line for one of pydantic's errors: file:line: field: what is wrong."""
    field = field_name(path)
    if any(path[: len(o)] == o or o[: len(path)] == path for o in overridden if path):
        where = "--set"
    else:
        line = document.line_of(path) if document else None
        where = f"{name}:{line}" if line else name
    return f"{where}: {field + ': ' if field else ''}{_message(item, path, keys)}"


def _is_tag(part: str | int) -> bool:
    tags = ("str", "Near", "literal[False]", "constrained-int", "[key]")
    return isinstance(part, str) and (part in tags or part.startswith(("list[", "dict[")))


def _message(item: Any, path: FieldPath, keys: Keys) -> str:
    if item["type"] in ("extra_forbidden", "unknown_key"):
        key, places, told = repr(str(path[-1])), keys.elsewhere(path), keys.familiar(path)
        if places:
            return f"unknown key; {key} belongs to {' or '.join(places)}{f'; {told}' if told else ''}"
        if told:
            return f"unknown key {key}: {told}"
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


# How a message begins that is about a part of a job.
_FIELD = re.compile(r"(?:model|models|source|sampling|steps|merge|output)(?:\.[\w-]+|\[\d+\])*(?=: | \()")


def placed(message: str, file: str | Path, overrides: Sequence[str] = ()) -> str:
    """A mistake that came out after its job was read, as by a look at seeds or models, with the place where it stands.

    Args:
        message: as it is where it is not about a part of the job.
        file: of the job.
        overrides: `key.path=value` texts that it was read with.
    """
    found = _FIELD.match(message)
    where = _where(Path(file), found[0], overrides) if found is not None else None
    return f"{where}: {message}" if where is not None else message


def _where(file: Path, field: str, overrides: Sequence[str]) -> str | None:
    """The place of a field; None where the file does not tell it any more, or has not got it."""
    path = [int(index) if index else name for index, name in re.findall(r"\[(\d+)\]|([\w-]+)", field)]
    for override in overrides:
        given = override.partition("=")[0].strip().split(".")
        if all(one == str(other) for one, other in zip(given, path, strict=False)):
            return "--set"
    with contextlib.suppress(OSError, UnicodeDecodeError, JobError):
        # What is read once, such as a pipe, is gone.
        if file.is_file() and (line := load_yaml(file.read_text(encoding="utf-8"), str(file)).line_of(path)):
            return f"{file}:{line}"
    return None


def apply_override(tree: dict[str, Any], text: str) -> FieldPath:
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
            if not part.isdecimal() or int(part) >= len(at):
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
