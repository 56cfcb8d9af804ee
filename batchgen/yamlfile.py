"""Loads YAML safely, remembering on which line every value stands, and refuses duplicate keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from batchgen.errors import JobError

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlDocument:
    """A document and where its parts stand.

    Args:
        data: what it says.
        lines: line (from 1) of every value by its path; of a mapping's entry, the line of its key.
    """

    data: Any
    lines: Mapping[Path, int]

    def line_of(self, path: Sequence[str | int]) -> int | None:
        """The line of a value, or of the nearest one around it that exists."""
        for length in range(len(path), -1, -1):
            if (line := self.lines.get(tuple(path[:length]))) is not None:
                return line
        return None


def load_yaml(text: str, name: str) -> YamlDocument:
    """Parses a document.

    Args:
        name: of the file, for messages.

    Raises:
        JobError: with file and line.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise JobError(f"{where}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise JobError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from error
    lines: dict[Path, int] = {}
    if node is not None:
        _walk(node, (), lines, name)
    return YamlDocument(data, lines)


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int], name: str) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise JobError(f"{name}:{line}: {key.value}: key given twice")
            seen.add(key.value)
            lines[*path, key.value] = line
            _walk(value, (*path, key.value), lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), lines, name)
