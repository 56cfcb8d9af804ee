"""What a dataset version is like: lengths, numbers, how questions begin and which of them came often, some rows."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchgen.errors import CorruptShard
from batchgen.merge.version import Version
from batchgen.report.texts import Texts, figures_of
from batchgen.rows import CLUSTER_SIZE, MESSAGES, META_NAMES, as_message, kind_of
from batchgen.store.base import ObjectStore

Row = Mapping[str, Any]
_Talk = list[dict[str, str]]
_BATCH_ROWS = 4096
# Of a larger dataset some parts from all over it are looked at: a run's end is not to take long, nor a bucket to be
# read once more.
_MOST_ROWS = 1_000_000
_MOST_FILES = 8
_BINS = 30
# Columns of one kind that are shown.
_MOST_COLUMNS = 8
_SAMPLES = 12
# Rows whose texts are looked at together; always as many, as texts repeat each other the more the more there are.
_TEXTS = 1000
_OPENINGS = 15
_WORDS = 3
_REPEATED = 10
# Distinct beginnings that are counted; of a dataset with more, a new one is no longer noticed.
_MOST_OPENINGS = 100_000
# No width of a bin is beyond a float's range. Larger numbers, infinite ones and NaN are left out.
_LARGEST = 1e100
OUTPUT_TOKENS = "output_tokens"


@dataclass(frozen=True)
class Histogram:
    """How some numbers are spread.

    Args:
        name: what they are of.
        unit: what they count; "" for plain numbers.
        counts: of each of the bins, which are of one width; the last one has all that are larger, too.
        edges: where the bins begin, and where the last one ends.
        median, high, most: of all numbers; `high` is the 95th percentile.
        more: whether the last bin has numbers that are larger than its end.
        whole: whether there are whole numbers alone, so that a bin's end is in the next one.
    """

    name: str
    unit: str
    counts: Sequence[int]
    edges: Sequence[float]
    median: float
    high: float
    most: float
    more: bool
    whole: bool

    def last(self, index: int) -> float:
        """The largest number of a bin, or what all of them are less than."""
        return self.edges[index + 1] - self.whole


@dataclass
class Figures:
    """What `look` finds in a dataset version.

    Args:
        rows: that were looked at: all of a dataset, or, where it is large, parts from all over it.
        histograms: of lengths and of numbers.
        openings: how questions begin, with how many do, the most frequent first.
        repeated: questions that stand for several rows, with how many, the most first.
        texts: what the questions of some rows are like, and their answers.
        samples: rows from all over the dataset, each as (name, text): the messages, or else the columns.
    """

    rows: int = 0
    histograms: list[Histogram] = field(default_factory=list)
    openings: list[tuple[str, int]] = field(default_factory=list)
    repeated: list[tuple[str, int]] = field(default_factory=list)
    texts: list[Texts] = field(default_factory=list)
    samples: list[list[tuple[str, Any]]] = field(default_factory=list)


def look(store: ObjectStore, version: Version) -> Figures:
    """Reads a version, at most some million rows of it; it holds some numbers of each, and no texts.

    Raises:
        CorruptShard: a file of the version cannot be read.
    """
    names = sorted(name for name in version.files if name.startswith("data/"))
    chosen = [names[index] for index in _spread(len(names), _MOST_FILES)]
    rows = version.kept * len(chosen) // len(names)
    stride = -(-rows // _MOST_ROWS)
    shown, read = (np.array(_spread(rows // stride, most), np.int64) for most in (_SAMPLES, _TEXTS))
    found, values, openings = Figures(), _Values(), Counter[str]()
    asked: list[str | None] = []
    answered: list[str | None] = []
    for batch in _batches(store, version, chosen, stride):
        talks = {name: _talks(batch[name]) for name in _conversations(batch)}
        values.add(batch, talks)
        sizes = batch[CLUSTER_SIZE].to_pylist() if CLUSTER_SIZE in batch.column_names else []
        questions = _questions(batch, talks)
        for text in questions:
            opening = " ".join((text or "").split(None, _WORDS)[:_WORDS])
            if opening and (opening in openings or len(openings) < _MOST_OPENINGS):
                openings[opening] += 1
        # Of equal numbers those that came first count.
        more = ((text, size) for text, size in zip(questions, sizes, strict=False) if text and size > 1)
        found.repeated = heapq.nlargest(_REPEATED, [*found.repeated, *more], key=lambda each: each[1])
        found.samples += [_shown(row) for row in batch.take(_within(shown, found.rows, batch)).to_pylist()]
        here = _within(read, found.rows, batch)
        asked += [questions[row] for row in here]
        answered += _answers(batch.take(here))
        found.rows += batch.num_rows
    found.histograms = values.histograms()
    of_texts = (figures_of("questions", asked), figures_of("answers", answered))
    found.texts = [each for each in of_texts if each is not None]
    often = sorted(openings.items(), key=lambda item: (-item[1], item[0]))[:_OPENINGS]
    found.openings = [(opening, count) for opening, count in often if count > 1]
    return found


def _spread(of: int, most: int) -> list[int]:
    """Some of the numbers below one, the first and the last among them."""
    return np.linspace(0, of - 1, min(of, most)).astype(int).tolist()  # type: ignore[no-any-return]


def _within(rows: npt.NDArray[np.int64], start: int, batch: pa.Table) -> npt.NDArray[np.int64]:
    """Those of some rows that are in a batch, by their places in it."""
    first, end = np.searchsorted(rows, (start, start + batch.num_rows))
    return rows[first:end] - start


def _batches(store: ObjectStore, version: Version, names: Sequence[str], stride: int) -> Iterator[pa.Table]:
    """Every so manieth row group of files, some rows at a time; without threads of Arrow's own, see `read_parquet`."""
    for name in names:
        try:
            with store.open(version.files[name].key) as file:
                parquet = pq.ParquetFile(file, pre_buffer=False)
                groups = list(range(0, parquet.num_row_groups, stride))
                for batch in parquet.iter_batches(_BATCH_ROWS, groups, use_threads=False):
                    yield pa.table(batch)
        except (pa.ArrowException, FileNotFoundError, EOFError) as error:
            place = f"{store.location}: dataset version {version.number}"
            raise CorruptShard(f"{place}: {name} cannot be read; `batchgen verify` says more") from error


def _conversations(table: pa.Table) -> list[str]:
    return [field.name for field in table.schema if kind_of(field.type) == "conversation"]


def _texts(table: pa.Table) -> list[str]:
    own = {*META_NAMES, CLUSTER_SIZE}
    return [field.name for field in table.schema if kind_of(field.type) == "text" and field.name not in own]


def _questions(table: pa.Table, talks: Mapping[str, Sequence[_Talk]]) -> list[str | None]:
    """What a row asks: the first message of a user, or else the first column of texts."""
    if talks:
        column = MESSAGES if MESSAGES in talks else "prompt" if "prompt" in talks else next(iter(talks))
        return [_first_of(talk, "user") for talk in talks[column]]
    texts = _texts(table)
    if not texts:
        return [None] * table.num_rows
    return list(table["instruction" if "instruction" in texts else texts[0]].to_pylist())


def _answers(table: pa.Table) -> list[str | None]:
    """What a row answers: the last message of an assistant, or the answer that is preferred."""
    talks = _conversations(table)
    if MESSAGES in talks:
        return [_first_of(talk[::-1], "assistant") for talk in _talks(table[MESSAGES])]
    if "chosen" in talks:
        return [talk[-1]["content"] if talk else None for talk in _talks(table["chosen"])]
    return list(table["chosen"].to_pylist()) if "chosen" in _texts(table) else [None] * table.num_rows


def _first_of(messages: Sequence[Row], role: str) -> str | None:
    for message in messages:
        if message["role"] == role:
            return str(message["content"])
    return None


def _talks(column: pa.ChunkedArray) -> list[_Talk]:
    """The messages of every row that have a role and a content."""
    return [[read for each in row or () if (read := as_message(each))] for row in column.to_pylist()]


class _Values:
    """Numbers of all rows: four bytes each where they are lengths, eight where they are numbers."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[npt.NDArray[Any]]] = {}

    def add(self, table: pa.Table, talks: Mapping[str, Sequence[_Talk]]) -> None:
        if OUTPUT_TOKENS in table.column_names:
            self._take("output", "tokens", table[OUTPUT_TOKENS])
        for name, said in list(talks.items())[:_MOST_COLUMNS]:
            if name == MESSAGES:
                self._lengths("first questions", [_first_of(talk, "user") for talk in said])
                self._lengths("last answers", [_first_of(talk[::-1], "assistant") for talk in said])
                turns = [sum(message["role"] == "user" for message in talk) for talk in said]
                self._take("questions of a conversation", "turns", pa.chunked_array([pa.array(turns, pa.int32())]))
            else:
                self._lengths(name, [talk[-1]["content"] if talk else None for talk in said])
        # Where there is a conversation, it is made of them.
        for name in _texts(table)[: 0 if MESSAGES in talks else _MOST_COLUMNS]:
            self._take(name, "characters", pc.utf8_length(table[name]))
        numbers = [field.name for field in table.schema if kind_of(field.type) in ("number", "list[number]")]
        numbers = [name for name in numbers if name not in META_NAMES and name != CLUSTER_SIZE]
        for name in numbers[:_MOST_COLUMNS]:
            column = table[name]
            self._take(name, "", column if kind_of(column.type) == "number" else pc.list_flatten(column))

    def _lengths(self, name: str, texts: Sequence[str | None]) -> None:
        self._take(name, "characters", pa.chunked_array([pc.utf8_length(pa.array(texts, pa.string()))]))

    def _take(self, name: str, unit: str, column: pa.ChunkedArray) -> None:
        kind = pa.int32() if unit in ("characters", "turns") else pa.float64()
        numbers = column.drop_null().cast(kind, safe=False).to_numpy()
        self._values.setdefault((name, unit), []).append(numbers[np.abs(numbers) < _LARGEST])

    def histograms(self) -> list[Histogram]:
        """Of everything that has more than one value."""
        found = []
        for (name, unit), parts in self._values.items():
            numbers = np.concatenate(parts)
            if len(numbers) and numbers.min() < numbers.max():
                found.append(_histogram(name, unit, numbers))
        return found


def _histogram(name: str, unit: str, numbers: npt.NDArray[Any]) -> Histogram:
    low, high = float(numbers.min()), float(np.percentile(numbers, 99, method="higher"))
    most = float(numbers.max())
    # One long text is not to leave all others in the first bin.
    end = high if high > low and most > low + 1.5 * (high - low) else most
    whole = bool(np.all(numbers == np.floor(numbers)))
    width = (end - low) / _BINS
    if whole:
        width = max(1.0, float(np.ceil((end - low + 1) / _BINS)))
        bins = max(1, int(np.ceil((end - low + 1) / width)))
        edges = low + width * np.arange(bins + 1)
    else:
        edges = np.linspace(low, end, _BINS + 1)
    counts, _ = np.histogram(np.minimum(numbers, edges[-1]), edges)
    middle, top = np.percentile(numbers, [50, 95])
    more = most > edges[-1] - whole
    return Histogram(name, unit, counts.tolist(), edges.tolist(), float(middle), float(top), most, bool(more), whole)


def _shown(row: Row) -> list[tuple[str, Any]]:
    if MESSAGES in row:
        return [(message["role"], message["content"]) for message in row[MESSAGES] or ()]
    shown: list[tuple[str, Any]] = []
    for name, value in row.items():
        if name in META_NAMES or name == CLUSTER_SIZE or value is None:
            continue
        if talk := _talk(value):
            alone = len(talk) == 1
            shown += [(name if alone else f"{name}: {message['role']}", message["content"]) for message in talk]
        else:
            shown.append((name, value))
    return shown


def _talk(value: Any) -> _Talk:
    """The messages of a conversation; none of any other value."""
    items = value if isinstance(value, list) else []
    read = [message for item in items if isinstance(item, dict) and (message := as_message(item))]
    return read if len(read) == len(items) else []
