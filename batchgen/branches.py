"""A row on its way through the steps: what it has so far, how it splits, and what its steps made of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from batchgen.errors import RowRejected
from batchgen.progress import TRUNCATED
from batchgen.tasks.llm import CallLog
from batchgen.tasks.spec import are_alike


@dataclass(frozen=True)
class Branch:
    """A row on its way through the steps.

    Token counts are those of this branch alone: what was spent before an explode goes with the first branch, so that
    the branches' sums are what the engine really did.
    """

    path: str
    data: Mapping[str, Any]
    input_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    notes: tuple[str, ...] = ()
    reason: str | None = None
    last: str | None = None

    def after(self, generation: Generation) -> Branch:
        """The branch with what a step made of it."""
        log = generation.log
        return replace(
            self,
            data={**self.data, **generation.added},
            input_tokens=self.input_tokens + log.input_tokens,
            output_tokens=self.output_tokens + log.output_tokens,
            # A step that calls no engine changes nothing about that.
            finish_reason="length"
            if "length" in (self.finish_reason, log.finish_reason)
            else log.finish_reason or self.finish_reason,
            notes=(*self.notes, *log.notes),
            reason=generation.reason,
            last=self.last if log.last is None else log.last,
        )

    def ended_if_cut(self) -> Branch:
        """The branch; rejected where it has a text that was cut, so that nothing more is paid for it."""
        return replace(self, reason=TRUNCATED) if self.reason is None and self.finish_reason == "length" else self

    def ended_if_alike(self, column: str) -> Branch:
        """The branch; rejected where no two texts of a list differ that a later step needs, as it would be there."""
        alike = self.reason is None and are_alike(self.data.get(column) or ())
        return replace(self, reason="no_preference") if alike else self

    def without(self, columns: Collection[str]) -> Branch:
        """The branch without some of its columns."""
        return replace(self, data={name: value for name, value in self.data.items() if name not in columns})

    def spread(self, generation: Generation) -> list[Branch]:
        """Branches for all rows that a step made of this one."""
        if not generation.further:
            return [self.after(generation)]
        rows = (generation.added, *generation.further)
        parts = self.after(generation).split(len(rows))
        return [replace(part, data={**self.data, **added}) for part, added in zip(parts, rows, strict=True)]

    def split(self, number: int) -> list[Branch]:
        """Branches of this one; what was spent so far, and its notes, go with the first."""
        rest = replace(self, input_tokens=0, output_tokens=0, notes=())
        return [replace(rest if i else self, path=f"{self.path}.{i}".lstrip(".")) for i in range(number)]


@dataclass(frozen=True)
class Generation:
    """One run of a step over a branch: the columns that it adds, or why there are none.

    Args:
        further: the columns of further rows, of a step that makes several of one.
    """

    log: CallLog
    added: Mapping[str, Any]
    reason: str | None
    further: Sequence[Mapping[str, Any]] = ()


def grouped(generations: Sequence[Generation], whole_only: bool = False, common: Collection[str] = ()) -> Generation:
    """Several generations as one with lists; one that failed is noted and left out, and all of them fail together.

    Args:
        whole_only: leave out those that were cut at `max_tokens` too, unless all were.
        common: columns that are the same in all of them, and make no list.
    """
    ended = [generation for generation in generations if generation.reason is None]
    good = [generation for generation in ended if not (whole_only and generation.log.cuts)] or ended
    log = CallLog("", 0)
    for generation in generations:
        log.input_tokens += generation.log.input_tokens
        log.output_tokens += generation.log.output_tokens
        log.notes += generation.log.notes
    for generation in good or generations:
        log.cuts += generation.log.cuts
        log.ended = generation.log.ended
    if not good:
        log.last = generations[0].log.last
        return Generation(log, {}, generations[0].reason)
    kept = {id(each) for each in good}
    left_out = [each for each in generations if id(each) not in kept]
    log.notes += [f"generation_failed:{each.reason or 'truncated'}" for each in left_out]
    rows = [row for each in good for row in (each.added, *each.further)]
    lists = {name: [row[name] for row in rows] for name in rows[0]}
    return Generation(log, {name: each[0] if name in common else each for name, each in lists.items()}, None)


def check_text(added: Mapping[str, Any]) -> None:
    """Rejects text that no file can hold: half a surrogate pair."""
    try:
        json.dumps(added, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise RowRejected("invalid_text") from None


def storable(text: str | None) -> str | None:
    """A text as a file can hold it."""
    return text and text.encode("utf-8", "replace").decode("utf-8")


def explode(branch: Branch, columns: Mapping[str, str]) -> list[Branch]:
    """A branch for every item of some lists, side by side; the branch itself, rejected, where that cannot be.

    Args:
        columns: those of the items, by those of the lists. Where the first list has no item, there is no branch.
    """
    if branch.reason is not None:
        return [branch]
    lists = [branch.data.get(column) or () for column in columns]
    if len({len(each) for each in lists}) > 1:
        return [replace(branch, reason="unequal_lists")]
    rows = [row for row in zip(*lists, strict=True) if row[0] is not None and row[0] != ""]
    if not rows:
        return [replace(branch, reason="nothing_to_explode")]
    rest = {name: value for name, value in branch.data.items() if name not in columns}
    new, parts = columns.values(), branch.split(len(rows))
    return [
        replace(part, data={**rest, **dict(zip(new, row, strict=True))}) for part, row in zip(parts, rows, strict=True)
    ]
