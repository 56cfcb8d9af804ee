"""The page itself: one HTML file, which asks nobody for anything and runs no code."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2

from batchgen.merge.version import Version
from batchgen.plaintext import harmless, one_line
from batchgen.plan import Plan
from batchgen.progress import Progress
from batchgen.reasons import DROPPED, NOTES, REASONS, meaning, most_first
from batchgen.rejected import Example
from batchgen.report.figures import Figures, Histogram
from batchgen.report.texts import Texts
from batchgen.rows import REJECTED

# By which a file is known as a report.
MARK = b'<meta name="generator" content="batchgen">'
# Of a dataset card; see `card.render_card`.
_RECIPE = re.compile(r"^(`{3,})yaml\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
_MOST_CHARACTERS = 4000
_SHORT = 200
_ROLES = {"system", "user", "assistant"}
# That are named, of those that some texts are in.
_LANGUAGES = 15
# Of the drawing of a histogram, in CSS pixels.
_WIDTH, _HEIGHT = 420, 96


class Counted(NamedTuple):
    """A line of a table: a code or a text, how often it came, the share of all in percent, and what it means."""

    name: str
    rows: int
    share: float
    meaning: str


class Bar(NamedTuple):
    """A bar of a histogram, in CSS pixels from the top left corner."""

    x: float
    y: float
    width: float
    height: float
    title: str


class Compared(NamedTuple):
    """A line of a table with a column for each kind of texts."""

    name: str
    values: Sequence[str]


def render_report(
    job: Mapping[str, Any],
    plan: Plan,
    shards: int,
    progress: Progress,
    version: Version | None,
    figures: Figures | None,
    card: str,
    examples: Sequence[Example],
) -> str:
    """The page about a run.

    It says the same of the same committed shards and the same version, whenever it is made.

    Args:
        job: as a tree.
        shards: committed ones.
        progress: of those.
        version: the newest one; None where there is none, and then there are no figures.
        card: of that version, which says how its rows were made.
        examples: of rejected rows.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": _number, "line": one_line, "text": _text, "role": _role}
    environment.globals |= {"bars": _bars, "width": _WIDTH, "height": _HEIGHT}
    seeds = progress.ok + progress.rejected
    dropped = version.dropped if version else {}
    # A seed row may have become several, of which some are rejected.
    rejected_ones = [why for why in dropped if why.startswith(f"{REJECTED}: ")]
    template = environment.from_string(files(__package__).joinpath("page.html").read_text("utf-8"))
    return template.render(
        job=job,
        plan=plan,
        shards=shards,
        progress=progress,
        version=version,
        figures=figures,
        rejected=[] if version else _counted(progress.reasons, seeds, REASONS),
        notes=_counted(progress.notes, seeds, NOTES),
        dropped=_counted(dropped, version.read, DROPPED) if version else [],
        shows_rejected=progress.rejected or rejected_ones,
        shows_dropped=len(dropped) > len(rejected_ones),
        openings=[Counted(name, count, 100 * count / figures.rows, "") for name, count in figures.openings]
        if figures
        else [],
        languages=_languages(figures.texts) if figures else [],
        variety=_variety(figures.texts) if figures else [],
        examples=examples,
        recipe=harmless(recipe[2]) if (recipe := _RECIPE.search(card)) else "",
    )


def _counted(counts: Mapping[str, int], of: int, meanings: Mapping[str, str]) -> list[Counted]:
    return [
        Counted(one_line(name), count, min(100.0, 100 * count / of) if of else 0.0, _meaning(name, meanings))
        for name, count in most_first(counts)
    ]


def _meaning(name: str, meanings: Mapping[str, str]) -> str:
    """What a name means; the merger counts rejected rows under theirs."""
    rejected = name.removeprefix("rejected: ")
    return meaning(name, meanings) if rejected == name else meaning(rejected, REASONS)


def _languages(texts: Sequence[Texts]) -> list[Compared]:
    """How much of each kind of texts is in which language, the most frequent first, and how much in none."""
    counts = [dict(each.languages) for each in texts]
    total = sum((Counter(each) for each in counts), Counter[str]())
    codes = [code for code, _ in most_first(total) if code][:_LANGUAGES] + [""] * ("" in total)
    return [
        Compared(
            code or "none clearly",
            [_percent(count.get(code, 0) / each.number) for count, each in zip(counts, texts, strict=True)],
        )
        for code in codes
    ]


def _variety(texts: Sequence[Texts]) -> list[Compared]:
    names = ("distinct words and signs", "distinct pairs of these", "distinct triples")
    lines = [Compared(name, [_percent(each.distinct[size]) for each in texts]) for size, name in enumerate(names)]
    return [*lines, Compared("length before and after compression", [f"{each.compression:.1f} : 1" for each in texts])]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _bars(histogram: Histogram) -> list[Bar]:
    most, wide = max(histogram.counts), _WIDTH / len(histogram.counts)
    bars = []
    for index, count in enumerate(histogram.counts):
        if not count:
            continue
        low, high = histogram.edges[index], histogram.last(index)
        until = f" to {_number(high)}" if high > low else ""
        if index == len(histogram.counts) - 1 and histogram.more:
            until = " or more"
        height = max(1.0, count / most * _HEIGHT)
        bars.append(
            Bar(
                round(index * wide, 2),
                round(_HEIGHT - height, 2),
                round(max(1.0, wide - 1), 2),
                round(height, 2),
                f"{_number(low)}{until}: {_number(count)}",
            )
        )
    return bars


def _number(value: float) -> str:
    """With thousands set apart, and of fractions three digits."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _text(value: Any, short: bool = False) -> str:
    """A value of a row, as far as anybody reads on."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = one_line(text) if short else harmless(text.strip())
    most = _SHORT if short else _MOST_CHARACTERS
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} characters more)"


def _role(name: str) -> str:
    return name if name in _ROLES else "other"
