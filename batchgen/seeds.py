"""Seed rows: inline, numbered, from jsonl, csv or parquet files, or from a dataset."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchgen.errors import SeedError
from batchgen.job import Source
from batchgen.parquet import read_parquet
from batchgen.rows import META_NAMES, SeedRow, is_publishable, row_id

SUFFIXES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Seeds:
    """All seed rows of a job.

    Args:
        table: one row a seed; no columns for a `count` source.
        where: names row `i` for messages ("seeds/a.jsonl:7").
        fingerprint: of every id in order; equal seeds, equal fingerprint.
    """

    table: pa.Table
    count: int
    fingerprint: str
    where: Mapping[int, str]

    @property
    def fields(self) -> list[pa.Field]:
        """Columns of the seed rows."""
        return list(self.table.schema) if self.table.num_columns else []

    def slice(self, start: int, stop: int) -> list[SeedRow]:
        """The seed rows of a shard."""
        return list(_rows(self.table, start, min(stop, self.count)))


def _rows(table: pa.Table, start: int, stop: int) -> Iterator[SeedRow]:
    records = table.slice(start, stop - start).to_pylist() if table.num_columns else [{}] * (stop - start)
    for index, data in zip(range(start, stop), records, strict=True):
        yield SeedRow(row_id(data, index), index, data)


def _ids(table: pa.Table, start: int, stop: int) -> Iterator[str]:
    """The ids of `_rows`, without making the rows where there is nothing in them."""
    if table.num_columns:
        return (row.id for row in _rows(table, start, stop))
    return (hashlib.blake2b(b"[%d,{}]" % index, digest_size=16).hexdigest() for index in range(start, stop))


def load_seeds(source: Source, base: Path | None = None) -> Seeds:
    """Reads and checks every seed row.

    Args:
        base: the folder that relative paths start from; the current one by default.

    Raises:
        SeedError: names file, line and what is wrong.
    """
    base = base or Path()
    where: list[str] = []
    if source.count is not None:
        table, count = pa.table({}), source.count
    else:
        if source.rows is not None:
            table, where = _from_records(source.rows, [f"source.rows[{i}]" for i in range(len(source.rows))])
        elif source.path is not None:
            table, where = _from_files([source.path] if isinstance(source.path, str) else source.path, base)
        else:
            table = _from_dataset(str(source.dataset), source.split, base)
        count = table.num_rows
        if count == 0:
            raise SeedError("source: there are no seed rows")
        _check_columns(table)
    if source.limit is not None and source.limit < count:
        count = source.limit
        table = table.slice(0, count) if table.num_columns else table
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, count, 10_000):
        for name in _ids(table, start, min(start + 10_000, count)):
            digest.update(bytes.fromhex(name))
    return Seeds(table, count, digest.hexdigest(), dict(enumerate(where)))


def _check_columns(table: pa.Table) -> None:
    taken = sorted(META_NAMES & set(table.column_names))
    if taken:
        raise SeedError(f"source: column {taken[0]!r} is one that batchgen writes itself; rename it in the seeds")
    for field in table.schema:
        if not is_publishable(field.type):
            raise SeedError(
                f"source: column {field.name!r} is {field.type}, which the datasets library cannot read; leave it "
                "out of the seeds or give it another type"
            )


def _from_files(patterns: Sequence[str], base: Path) -> tuple[pa.Table, list[str]]:
    tables: list[pa.Table] = []
    where: list[str] = []
    for pattern in patterns:
        paths = sorted(glob.glob(str(Path(pattern).expanduser()), root_dir=base, recursive=True))
        if not paths:
            raise SeedError(f"source.path: no file matches {pattern!r} (looked in {base.resolve()})")
        for path in paths:
            if Path(path).suffix not in SUFFIXES:
                raise SeedError(f"source.path: {path}: not one of {', '.join(SUFFIXES)}")
            table, lines = _read_file(base / path, path)
            if table.num_rows == 0:
                raise SeedError(f"source.path: {path}: the file has no rows")
            if tables and table.column_names != tables[0].column_names:
                raise SeedError(
                    f"source.path: {path}: columns {table.column_names} differ from the first file's "
                    f"{tables[0].column_names}"
                )
            tables.append(table)
            where += lines
    try:
        return pa.concat_tables(tables, promote_options="permissive"), where
    except pa.ArrowInvalid as error:
        raise SeedError(f"source.path: the files' column types differ: {error}") from error


def _read_file(path: Path, name: str) -> tuple[pa.Table, list[str]]:
    try:
        if path.suffix == ".jsonl":
            return _read_jsonl(path, name)
        if path.suffix == ".csv":
            from pyarrow import csv

            options = csv.ConvertOptions(strings_can_be_null=True)
            table = csv.read_csv(path, csv.ReadOptions(use_threads=False), convert_options=options)
            _check_utf8(table, name)
        else:
            table = read_parquet(path)
    except OSError as error:
        raise SeedError(f"source.path: {name}: cannot be read: {error}") from error
    except pa.ArrowException as error:
        raise SeedError(f"source.path: {name}: {error}") from error
    return table, [f"{name}: row {i + 1}" for i in range(table.num_rows)]


def _check_utf8(table: pa.Table, name: str) -> None:
    """Arrow takes a CSV column that is no UTF-8 for bytes, and says nothing."""
    for column in table.column_names:
        if pa.types.is_binary(table[column].type):
            for row, value in enumerate(table[column].to_pylist(), 1):
                try:
                    (value or b"").decode("utf-8")
                except UnicodeDecodeError:
                    raise SeedError(f"{name}: row {row}: column {column!r} is not UTF-8") from None


def _read_jsonl(path: Path, name: str) -> tuple[pa.Table, list[str]]:
    records: list[Any] = []
    where: list[str] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise SeedError(f"{name}:{number}: not UTF-8 (byte {error.start + 1} of the line)") from error
            except (ValueError, RecursionError) as error:
                raise SeedError(f"{name}:{number}: not JSON: {error}") from error
            if not isinstance(record, dict):
                raise SeedError(f"{name}:{number}: a seed row is a JSON object, not a {type(record).__name__}")
            records.append(record)
            where.append(f"{name}:{number}")
    return _from_records(records, where)


def _from_records(records: Sequence[Any], where: list[str]) -> tuple[pa.Table, list[str]]:
    """A table of records; a column that some lack is null there."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    if records and not columns:
        raise SeedError(f"{where[0]}: a seed row without columns; for empty rows use source.count")
    arrays = {}
    for name in columns:
        values = [record.get(name) for record in records]
        try:
            array = pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise SeedError(_odd_one(name, values, where)) from error
        # A column of nulls only would have Arrow's null type, which Parquet readers disagree about.
        arrays[name] = array.cast(pa.string()) if pa.types.is_null(array.type) else array
    return pa.table(arrays), where


def _odd_one(name: str, values: Iterable[Any], where: Sequence[str]) -> str:
    """Says which row's value has another type than the ones before it."""
    first: type | None = None
    for value, place in zip(values, where, strict=True):
        if value is None:
            continue
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            return f"{place}: column {name!r} holds half of a surrogate pair, which is no text"
        if first is None:
            first = type(value)
        elif type(value) is not first:
            return f"{place}: column {name!r} is {type(value).__name__} here and {first.__name__} before"
    return f"{where[0] if where else 'source'}: column {name!r} has values of different types"


def _from_dataset(name: str, split: str, base: Path) -> pa.Table:
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    folder = base / Path(name).expanduser()
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            dataset = load_from_disk(str(folder))
            if isinstance(dataset, DatasetDict):
                if split not in dataset:
                    raise SeedError(f"source.split: {split!r} is not in {name}; legal: {', '.join(dataset)}")
                dataset = dataset[split]
        else:
            dataset = load_dataset(str(folder) if folder.is_dir() else name, split=split)
    except SeedError:
        raise
    except Exception as error:  # the datasets library and its many back ends raise anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SeedError(f"source.dataset: {name!r} (split {split!r}) cannot be loaded: {reason}") from error
    assert isinstance(dataset, Dataset)
    return dataset.with_format("arrow")[:].combine_chunks() if len(dataset) else pa.table({})
