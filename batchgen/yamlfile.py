"""Loads YAML safely, remembering on which line every value stands, and refuses duplicate keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from batchgen.errors import JobError

Path = tuple[str | int, ...]
# Values that stand in a document once and in what it says again; a few lines of aliases of aliases make billions.
_MAX_REPEATED = 100_000
# What YAML's reader says where `{tags: list[text]}` or `{when: now?}` goes on.
_SIGN = re.compile(r"^expected ',' or '[]}]', but got '[][?{]'$")


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
        problem = error.problem or error.context or ""
        hint = " (within braces or brackets, a text with such a sign in it needs quotes)" * bool(_SIGN.search(problem))
        raise JobError(f"{where}: not valid YAML: {problem}{hint}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise JobError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from error
    places = _Places(name)
    if node is not None:
        places.add(node, ())
    return YamlDocument(data, places.lines)


class _Places:
    """The lines of a document's values.

    Raises:
        JobError: a key is given twice, or aliases make the document endless or as good as that.
    """

    def __init__(self, name: str) -> None:
        self.lines: dict[Path, int] = {}
        self._name = name
        self._known: set[int] = set()
        self._around: set[int] = set()
        self._repeated = 0

    def add(self, node: yaml.Node, path: Path) -> None:
        """Takes a value and all that is in it."""
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        # An alias is the very node that it stands for.
        if id(node) in self._around:
            raise JobError(f"{self._name}:{line}: an alias to a value that contains it")
        self._repeated += id(node) in self._known
        if self._repeated > _MAX_REPEATED:
            raise JobError(f"{self._name}: its aliases repeat more than {_MAX_REPEATED:,} values; write fewer of them")
        self._known.add(id(node))
        self._around.add(id(node))
        if isinstance(node, yaml.MappingNode):
            self._add_entries(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self.add(value, (*path, index))
        self._around.remove(id(node))

    def _add_entries(self, node: yaml.MappingNode, path: Path) -> None:
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise JobError(f"{self._name}:{line}: {key.value}: key given twice")
            seen.add(key.value)
            self.lines[*path, key.value] = line
            self.add(value, (*path, key.value))
