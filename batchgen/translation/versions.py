"""The columns of a segment, of which one step after the other may write the same.

distilabel lets a step write over a column, and branches that meet bring columns of the same name. A job keeps them all:
every version has a name of its own, and the one that is there at the end keeps the column's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchgen.errors import JobError
from batchgen.step import MODEL_NAME
from batchgen.translation.plain import MERGE
from batchgen.translation.segments import Segment
from batchgen.translation.steps import (
    COMBINE,
    GROUP,
    KEEP,
    class_name,
    columns_of,
    names_model,
    reads_of,
    writes_of,
)


@dataclass(frozen=True)
class Version:
    """A column as a step wrote it.

    Args:
        step: None for what the rows had from the beginning.
    """

    column: str
    step: str | None


# The columns that a row has at some place, each with the version that is there.
View = Mapping[str, Version]


def joined(views: Sequence[View]) -> View:
    """What branches have that meet: of equal columns the last branch's, as in distilabel."""
    return {column: version for view in views for column, version in view.items()}


def names_of(written: Sequence[tuple[Version, Version | None]], last: View) -> dict[Version, str]:
    """A name for every version of the columns that some step writes.

    Args:
        written: what steps wrote, in order, each with what it took the place of.
        last: what there is at the end.
    """
    replaced: dict[Version, Version] = {}
    for version, before in written:
        # What the rows had from the beginning is there before the first that writes it, wherever that stands.
        replaced.setdefault(Version(version.column, None), version)
        if before is not None:
            replaced.setdefault(before, version)
    ends = Counter(version.column for version, _ in written if version not in replaced)
    names = {}
    for version in dict.fromkeys([*replaced, *(version for version, _ in written)]):
        column = version.column
        if last.get(column) == version:
            names[version] = column
        elif version in replaced:
            names[version] = f"{column}_before_{replaced[version].step}"
        elif column in last or ends[column] > 1:
            names[version] = f"{column}_of_{version.step}"
        else:
            names[version] = column
    return names


class Columns:
    """The columns of a segment's rows, step by step.

    Args:
        steps: distilabel's, by name.
        first: columns of the rows that the segment starts from, with their kinds.
        kinds: of columns that steps of the user's own write, where they are no texts.

    Raises:
        JobError: a step reads a column that is not there.
    """

    def __init__(
        self, segment: Segment, steps: Mapping[str, Any], first: Mapping[str, str], kinds: Mapping[str, str]
    ) -> None:
        self._segment = segment
        self._own_kinds = kinds
        self._first: View = {column: Version(column, None) for column in first}
        self._after: dict[str, View] = {}
        self._kinds = {Version(column, None): kind for column, kind in first.items()}
        self._written: list[tuple[Version, Version | None]] = []
        self._read: set[Version] = set()
        # What tasks write of their models' names, where nobody calls it otherwise.
        self._model_names: set[Version] = set()
        for name in segment.steps:
            self._after[name] = self._passed(name, steps[name])
        self._last = self._after[segment.steps[-1]]
        self._names = names_of(self._written, self._last)

    @property
    def last(self) -> dict[str, str]:
        """The columns at the segment's end, with their kinds."""
        return {column: self._kinds[version] for column, version in self._last.items() if not self._is_unasked(version)}

    @property
    def seeds(self) -> dict[str, str]:
        """The columns of the first rows, with the names that they have in the job.

        The name of the model that an earlier segment's last task ran on is left out, where nobody here asks for it.
        """
        asked = {*self._read, *self._last.values()}
        return {
            column: self._name(version)
            for column, version in self._first.items()
            if column != MODEL_NAME or self._segment.parent is None or version in asked
        }

    def before(self, name: str) -> dict[str, str]:
        """The columns that a row has for a step, with their kinds."""
        return {column: self._kinds[version] for column, version in joined(self._views(name)).items()}

    def read(self, name: str, column: str) -> str:
        """The name of the column that a step reads."""
        return self._name(self._found(name, joined(self._views(name)), column))

    def written(self, name: str, column: str) -> str:
        """The name of the column that a step writes."""
        return self._name(Version(column, name))

    def grouped(self, name: str, column: str) -> list[str]:
        """The names of the columns that branches bring to a `GroupColumns`, in their order."""
        return [self._name(version) for version in self._brought(name, column)]

    def kind(self, name: str, column: str) -> str:
        """The kind of a column that a step writes."""
        return self._kinds[Version(column, name)]

    def kind_of(self, name: str) -> str | None:
        """The kind of the job's column of that name, which in the pipeline may not be there any more, or not yet."""
        versions = [*self._first.values(), *(version for version, _ in self._written)]
        return next((self._kinds[version] for version in versions if self._name(version) == name), None)

    def wants_model_name(self, name: str, column: str) -> bool:
        """Whether a task has to name its model in a column."""
        return not self._is_unasked(Version(column, name))

    def _is_unasked(self, version: Version) -> bool:
        """Of the name of a model that every task writes: nobody renames or reads it, and it is not there at the end."""
        return version in self._model_names and version not in self._read and self._last.get(MODEL_NAME) != version

    def _passed(self, name: str, step: Any) -> View:
        """The columns after a step."""
        view, kind, kinds = joined(self._views(name)), class_name(type(step)), {}
        gone: Iterable[str] = ()
        if kind == KEEP:
            view = {column: self._found(name, view, column) for column in step.columns}
            self._read |= {*view.values()}
        elif kind == GROUP:
            for column, output in zip(step.columns, step.outputs, strict=True):
                versions = self._brought(name, column)
                self._read |= {*versions}
                kinds[output] = f"list[{self._kinds[versions[0]]}]"
            gone = step.columns
        elif kind != COMBINE:
            there = self.before(name)
            reads = reads_of(step, there).values()
            self._read |= {self._found(name, view, column) for column in reads}
            kinds = columns_of(step, there, self._own_kinds)
            gone = reads if kind == MERGE else ()
            if names_model(step) and writes_of(step, there)[MODEL_NAME] == MODEL_NAME:
                self._model_names.add(Version(MODEL_NAME, name))
        for column, of_column in kinds.items():
            self._written.append((Version(column, name), view.get(column)))
            self._kinds[Version(column, name)] = of_column
        view = {column: version for column, version in view.items() if column not in gone}
        return {**view, **{column: Version(column, name) for column in kinds}}

    def _views(self, name: str) -> list[View]:
        """The columns that every step before this one leaves; those of the first rows, where none is in the segment."""
        return [self._after.get(before, self._first) for before in self._segment.before[name]] or [self._first]

    def _found(self, name: str, view: View, column: str) -> Version:
        if column not in view:
            raise JobError(f"step {name!r}: reads column {column!r}, which is not there; there are: {', '.join(view)}")
        return view[column]

    def _brought(self, name: str, column: str) -> list[Version]:
        versions = [view[column] for view in self._views(name) if column in view]
        if not versions:
            raise JobError(f"step {name!r}: groups column {column!r}, which no step before it has")
        if len(set(versions)) < len(versions):
            raise JobError(f"step {name!r}: groups column {column!r}, which branches have from the same step")
        return versions

    def _name(self, version: Version) -> str:
        return self._names.get(version, version.column)
