"""Seed rows: inline, numbered, from JSON, csv or parquet files, or from a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchgen.errors import SeedError
from batchgen.job import Source
from batchgen.parquet import stored_type
from batchgen.paths import expanded
from batchgen.rows import CLUSTER_SIZE, META_NAMES, SHARD_ONLY, SeedRow, is_publishable, row_id
from batchgen.seedfiles import Part, check_wanted, from_records, join, read_files


@dataclass(frozen=True)
class Seeds:
    """All seed rows of a job.

    Args:
        table: one row a seed; no columns for a `count` source.
        fingerprint: of every id in order; equal seeds, equal fingerprint.
        place: names row `i` for messages ("seeds/a.jsonl:7").
    """

    table: pa.Table
    count: int
    fingerprint: str
    place: Callable[[int], str]

    @property
    def fields(self) -> list[pa.Field]:
        """Columns of the seed rows."""
        return list(self.table.schema) if self.table.num_columns else []

    def slice(self, start: int, stop: int) -> list[SeedRow]:
        """The seed rows of a shard."""
        return list(_rows(self.table, start, min(stop, self.count)))

    def fingerprint_of(self, rows: int) -> str:
        """The fingerprint that the first `rows` rows would have by themselves."""
        return _fingerprint(self.table, rows, self.place)


def _rows(table: pa.Table, start: int, stop: int) -> Iterator[SeedRow]:
    records = table.slice(start, stop - start).to_pylist() if table.num_columns else [{}] * (stop - start)
    for index, data in zip(range(start, stop), records, strict=True):
        yield SeedRow(row_id(data, index), index, data)


def _ids(table: pa.Table, start: int, stop: int) -> Iterator[str]:
    """The ids of `_rows`, without making the rows where there is nothing in them."""
    if table.num_columns:
        return (row.id for row in _rows(table, start, stop))
    return (hashlib.blake2b(b"[%d,{}]" % index, digest_size=16).hexdigest() for index in range(start, stop))


def load_seeds(source: Source, base: Path | None = None, own: bool = True) -> Seeds:
    """Reads and checks every seed row.

    Args:
        base: the folder that relative paths start from; the current one by default.
        own: whether columns of batchgen's own, in a dataset of an earlier run, are refused; else they are left out.

    Raises:
        SeedError: names file, line and what is wrong.
    """
    part = Part(pa.table({}), _seed_row) if source.count is not None else read_source(source, base, own)
    table, count = part.table, source.count or part.table.num_rows
    if source.limit is not None and source.limit < count:
        count = source.limit
        table = table.slice(0, count) if table.num_columns else table
    return Seeds(table, count, _fingerprint(table, count, part.place), part.place)


def _fingerprint(table: pa.Table, count: int, place: Callable[[int], str]) -> str:
    """128 bits over the ids of the first rows, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, count, 10_000):
        try:
            for name in _ids(table, start, min(start + 10_000, count)):
                digest.update(bytes.fromhex(name))
        except (OverflowError, ValueError) as error:  # a time that Python's own types do not reach to
            raise SeedError(f"source: a value after {place(start)} cannot be read: {error}") from error
    return digest.hexdigest()


def read_source(source: Source, base: Path | None = None, own: bool = True) -> Part:
    """The rows of a source that has columns; arguments and errors are those of `load_seeds`."""
    base = base or Path()
    wanted = list(source.names) or None
    if source.rows is not None:
        check_wanted(wanted, list(dict.fromkeys(name for row in source.rows for name in row)), "source.rows")
        part = join([from_records(source.rows, lambda row: f"source.rows[{row}]", wanted)])
    elif source.path is not None:
        part = join(read_files([source.path] if isinstance(source.path, str) else source.path, base, wanted))
    else:
        table = _from_dataset(source, base)
        check_wanted(wanted, table.column_names, str(source.dataset))
        part = Part(table.select(wanted) if wanted else table, _seed_row)
    if not part.table.num_rows:
        raise SeedError("source: there are no seed rows")
    table = part.table if own else without_own_columns(part.table)
    return Part(
        _as_stored(table.rename_columns([source.names.get(name, name) for name in table.column_names])), part.place
    )


def without_own_columns(table: pa.Table) -> pa.Table:
    """Rows without the columns that batchgen gave them, where they have all that a dataset of its own has."""
    names = set(table.column_names)
    if not names >= META_NAMES - SHARD_ONLY:
        return table
    return table.drop_columns(sorted(names & {*META_NAMES, CLUSTER_SIZE}))


def _seed_row(row: int) -> str:
    return f"seed row {row}"


def _as_stored(table: pa.Table) -> pa.Table:
    """The rows with the types that they have once they are in a shard: Parquet turns seconds into milliseconds.

    Raises:
        SeedError: a column cannot be stored, or not be read from the dataset.
    """
    taken = sorted(META_NAMES & set(table.column_names))
    if taken:
        raise SeedError(
            f"source: column {taken[0]!r} is one that batchgen writes itself; name those to use in source.columns, or "
            f"give them other names there: {{{taken[0]}: NEW, ...}}"
        )
    fields = []
    for field in table.schema:
        stored = stored_type(_plain(field.type))
        if stored is None or not is_publishable(stored):
            raise SeedError(
                f"source: column {field.name!r} is {field.type}, which Parquet or the datasets library cannot hold; "
                "give it another type, or name the columns to use in source.columns"
            )
        fields.append(field.with_type(stored))
    schema = pa.schema(fields)
    return table if schema.equals(table.schema) else table.cast(schema)


def _plain(type: pa.DataType) -> pa.DataType:
    """The type of the same values that tasks can read: of categories what they stand for, and texts of views."""
    if pa.types.is_dictionary(type):
        return _plain(type.value_type)
    if pa.types.is_string_view(type):
        return pa.large_string()
    if pa.types.is_binary_view(type):
        return pa.large_binary()
    return pa.list_(type.value_field.with_type(_plain(type.value_type))) if pa.types.is_list(type) else type


def _from_dataset(source: Source, base: Path) -> pa.Table:
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    name, config, split = str(source.dataset), source.config, source.split
    folder = base / expanded(name)
    if folder.is_dir() and source.revision is not None:
        raise SeedError(f"source.revision: {name!r} is a folder here, and has none")
    if (folder / "plan.json").is_file() and (folder / "attempts").is_dir():
        # Of whatever Parquet is in there the library would make one dataset, with rows that were rejected or dropped.
        made = name.rstrip("/") + "/dataset"
        raise SeedError(f"source.dataset: {name!r} is a run's folder; the dataset that came of it is {made!r}")
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            if config is not None:
                raise SeedError(f"source.config: {name} was saved with save_to_disk, and has none")
            try:
                dataset = load_from_disk(str(folder))
            except IndexError as error:  # what the datasets library makes of one that was saved without rows
                raise SeedError(f"source.dataset: {name} has no rows") from error
            if isinstance(dataset, DatasetDict):
                if split not in dataset:
                    raise SeedError(f"source.split: {split!r} is not in {name}; legal: {', '.join(dataset)}")
                dataset = dataset[split]
        else:
            where = str(folder) if folder.is_dir() else name
            dataset = load_dataset(where, config, split=split, revision=source.revision, streaming=source.streaming)
            if source.streaming:
                return _streamed(dataset, source.limit)
    except SeedError:
        raise
    except Exception as error:  # the datasets library and its many back ends raise anything
        # The second line has the legal names, where a config is missing.
        reason = " ".join(str(error).splitlines()[:2]) or type(error).__name__
        what = f"{name!r} ({f'config {config!r}, ' if config else ''}split {split!r})"
        raise SeedError(f"source.dataset: {what} cannot be loaded: {reason}") from error
    assert isinstance(dataset, Dataset)
    return dataset.with_format("arrow")[:] if len(dataset) else pa.table({})


def _streamed(dataset: Any, limit: int | None) -> pa.Table:
    """The first rows of an `IterableDataset`; of its files only what they are in is read."""
    rows = dataset.with_format("arrow")
    batches = list((rows.take(limit) if limit is not None else rows).iter(batch_size=1000))
    return pa.concat_tables(batches, promote_options="permissive") if batches else pa.table({})
