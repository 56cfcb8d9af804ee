"""Seed rows out of JSON, csv and parquet files, here or in a bucket, each known by its file and line."""

from __future__ import annotations

import glob
import io
import itertools
import json
import os
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow as pa

from batchgen.errors import SeedError, StoreError, UserError, is_passing
from batchgen.parquet import read_parquet
from batchgen.paths import expanded, scratch_folder
from batchgen.plaintext import HALF
from batchgen.store import is_remote
from batchgen.store.matching import find_objects

_LINES = (".jsonl", ".ndjson")
_SUFFIXES = (*_LINES, ".json", ".csv", ".parquet")
# By suffixes behind those; Parquet compresses by itself.
_CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_BOM, _NEWLINE = b"\xef\xbb\xbf", b"\n"
# Of a file's beginning, for the first sign in it.
_LOOK = 4096
# Rows that are Python objects at a time: they take several times what they take in Arrow.
_BATCH_ROWS = 10_000


@dataclass(frozen=True)
class Part:
    """Some of the seed rows.

    Args:
        place: names row `i` of the table for messages ("seeds/a.jsonl:7").
    """

    table: pa.Table
    place: Callable[[int], str]


def read_files(patterns: Sequence[str], base: Path, wanted: Sequence[str] | None = None) -> list[Part]:
    """The rows of all files that match.

    Args:
        base: the folder that relative patterns start from.
        wanted: the columns to read; all by default.

    Raises:
        SeedError: names file, line and what is wrong.
        StoreError: a file cannot be read just now.
    """
    parts: list[Part] = []
    names: list[str] = []
    if not patterns:
        raise SeedError("source.path: names no file")
    for pattern in patterns:
        for name, path in _in_bucket(pattern) if is_remote(pattern) else _in_folder(pattern, base):
            of_file, columns = _read_file(path, name, wanted)
            if not any(part.table.num_rows for part in of_file):
                raise SeedError(f"source.path: {name}: the file has no rows")
            check_wanted(wanted, columns, name)
            names = names or columns
            if wanted is None and set(columns) != set(names):
                raise SeedError(f"source.path: {name}: columns {columns} differ from the first file's {names}")
            parts += of_file
    return parts


def find_files(pattern: str, base: Path = Path()) -> list[str]:
    """Names of the files that match, in order: the one of just this name, if there is one, as `a[1].jsonl` may be."""
    name = str(expanded(pattern))
    if os.path.isfile(base / name):  # noqa: PTH113  # pathlib's raises where a folder may not be looked into
        return [name]
    return sorted(glob.glob(name, root_dir=base, recursive=True))


def _in_folder(pattern: str, base: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths of the files that match."""
    names = find_files(pattern, base)
    if not names and "://" in pattern:
        scheme = pattern.partition("://")[0]
        legal = "legal: files here and s3://bucket/key; a dataset of the Hub is source.dataset"
        raise SeedError(f"source.path: {pattern!r}: nothing is read from {scheme!r}; {legal}")
    if not names:
        raise SeedError(f"source.path: no file matches {pattern!r} (looked in {base.resolve()})")
    for name in names:
        if (base / name).is_dir():
            raise SeedError(f"source.path: {name} is a folder; name its files, as in {name.rstrip('/')}/*.jsonl")
        _form(name)
        yield name, base / name


def _in_bucket(pattern: str) -> Iterator[tuple[str, Path]]:
    """Names of the objects that match, and files with what is in them, each of which is there until the next one."""
    with _readable(pattern):
        store, keys = find_objects(pattern)
    found = False
    for key in keys:
        _form(key)
        with _readable(pattern), scratch_folder() as scratch:
            path = scratch / "seeds"
            if (data := store.read(key)) is None:
                continue
            path.write_bytes(data)
            found = True
            yield f"{store.location}/{key}", path
    if not found:
        raise SeedError(f"source.path: no object matches {pattern!r}")


@contextmanager
def _readable(pattern: str) -> Iterator[None]:
    try:
        yield
    except (StoreError, UserError, OSError, ValueError) as error:
        if isinstance(error, StoreError) and error.busy:
            raise
        raise SeedError(f"source.path: {pattern!r}: {error}") from error


def _form(name: str) -> tuple[str, str | None]:
    """The suffix by which a file is read, and the codec of what it is compressed with.

    Raises:
        SeedError: there is none such.
    """
    last = PurePosixPath(name).suffix
    suffix = PurePosixPath(name.removesuffix(last)).suffix if last in _CODECS else last
    if suffix not in _SUFFIXES or (suffix == ".parquet" and suffix != last):
        legal = f"{', '.join(_SUFFIXES)} ({', '.join(_CODECS)} may follow any but .parquet)"
        raise SeedError(f"source.path: {name}: not one of {legal}")
    return suffix, _CODECS.get(last)


def _opened(path: Path, codec: str | None) -> BinaryIO:
    """What is in a file once it is unpacked."""
    file = path.open("rb")
    return file if codec is None else cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(file, codec)))


def check_wanted(wanted: Sequence[str] | None, columns: Sequence[str], where: str) -> None:
    """Refuses a column of `source.columns` that is not there.

    Raises:
        SeedError: names it, and those that are.
    """
    for name in wanted or ():
        if name not in columns:
            raise SeedError(f"source.columns: {where} has no column {name!r}; available: {', '.join(columns)}")


def join(parts: Sequence[Part]) -> Part:
    """All parts as one; a column that some lack is null there.

    Raises:
        SeedError: the parts' types do not go together; names the row.
    """
    schema = pa.schema([])
    for part in parts:
        try:
            schema = pa.unify_schemas([schema, part.table.schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise SeedError(_odd_column(schema, part)) from error
    try:
        table = pa.concat_tables([part.table for part in parts], promote_options="permissive")
        # A column of nulls only would have Arrow's null type, which Parquet readers disagree about.
        for index, field in enumerate(table.schema):
            if pa.types.is_null(field.type):
                table = table.set_column(index, field.name, table.column(index).cast(pa.string()))
    except pa.ArrowException as error:
        raise SeedError(f"source: the rows do not go together: {error}") from error
    starts = [0, *itertools.accumulate(part.table.num_rows for part in parts)]

    def place(row: int) -> str:
        index = bisect_right(starts, row) - 1
        return parts[index].place(row - starts[index])

    return Part(table, place)


def _odd_column(schema: pa.Schema, part: Part) -> str:
    """Says which column of a part has another type than in the parts before it, and in which row first."""
    for field in part.table.schema:
        known = [schema.field(field.name)] if field.name in schema.names else []
        try:
            pa.unify_schemas([pa.schema(known), pa.schema([field])], promote_options="permissive")
        except pa.ArrowException:
            row = part.table[field.name].is_valid().index(True).as_py()
            return f"{part.place(row)}: column {field.name!r} is {field.type} here and {known[0].type} before"
    raise AssertionError("some column does not go together with those before it")


def _read_file(path: Path, name: str, wanted: Sequence[str] | None) -> tuple[list[Part], list[str]]:
    """The rows of a file, and the names of all its columns."""
    suffix, codec = _form(name)
    try:
        if suffix in (*_LINES, ".json"):
            columns: dict[str, None] = {}
            with _opened(path, codec) as file:
                is_list = suffix == ".json" and file.read(_LOOK).removeprefix(_BOM).lstrip().startswith(b"[")
            with _opened(path, codec) as file:
                return list(_read_json(file, name, is_list, wanted, columns)), list(columns)
        if suffix == ".csv":
            with _opened(path, codec) as file:
                table = _read_csv(file.read())
        else:
            table = read_parquet(path)
        names = [field.name for field in table.schema]
    except UnicodeDecodeError as error:
        raise SeedError(f"source.path: {name}: the name of a column is not UTF-8") from error
    except OSError as error:
        problem = f"source.path: {name}: cannot be read: {error}"
        raise (StoreError(problem, busy=True) if is_passing(error) else SeedError(problem)) from error
    except pa.ArrowException as error:
        raise SeedError(f"source.path: {name}: {error}") from error
    if twice := [column for column, count in Counter(names).items() if count > 1]:
        raise SeedError(f"source.path: {name}: it has two columns {twice[0]!r}")
    if wanted is not None:
        table = table.select([column for column in wanted if column in names])
    if suffix == ".csv":
        _check_utf8(table, name)
    return [Part(table, lambda row: f"{name}: row {row + 1}")], names


def _read_csv(data: bytes) -> pa.Table:
    from pyarrow import csv

    # One block: a row has to end in the block after the one in which it begins, and texts may be long.
    block = min(max(len(data), 1), 2**31 - 1)
    return csv.read_csv(
        pa.BufferReader(data),
        csv.ReadOptions(use_threads=False, block_size=block),
        csv.ParseOptions(newlines_in_values=True),
        # Arrow would take "NA", "null" and others like them for no text.
        csv.ConvertOptions(strings_can_be_null=True, null_values=[""]),
    )


def _check_utf8(table: pa.Table, name: str) -> None:
    """Arrow takes a CSV column that is no UTF-8 for bytes, and says nothing."""
    for column in table.column_names:
        if pa.types.is_binary(table[column].type):
            for row, value in enumerate(table[column].to_pylist(), 1):
                try:
                    (value or b"").decode("utf-8")
                except UnicodeDecodeError:
                    raise SeedError(f"{name}: row {row}: column {column!r} is not UTF-8") from None


def _read_json(
    file: BinaryIO, name: str, is_list: bool, wanted: Sequence[str] | None, columns: dict[str, None]
) -> Iterator[Part]:
    rows = _listed_rows(file.read(), name) if is_list else _json_rows(file, name)
    while batch := list(itertools.islice(rows, _BATCH_ROWS)):
        numbers = array("Q", (number for number, _ in batch))
        yield from_records([row for _, row in batch], _place_of(name, numbers, is_list), wanted, columns)


def _place_of(name: str, numbers: Sequence[int], is_list: bool) -> Callable[[int], str]:
    return lambda row: f"{name}[{numbers[row]}]" if is_list else f"{name}:{numbers[row]}"


def _listed_rows(data: bytes, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Positions in a list from 0, and what is there."""
    try:
        records = json.loads(data.removeprefix(_BOM).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SeedError(f"{name}:{data.count(_NEWLINE, 0, error.start) + 1}: not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise SeedError(f"{name}: not JSON: {error}") from error
    for position, record in enumerate(records):
        if not isinstance(record, dict):
            raise SeedError(f"{name}[{position}]: a seed row is a JSON object, not a {type(record).__name__}")
        yield position, record


def _json_rows(file: Iterable[bytes], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1, and what the lines say."""
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(_BOM)
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise SeedError(f"{name}:{number}: not UTF-8 (byte {error.start + 1} of the line)") from error
        except (ValueError, RecursionError) as error:
            hint = " (a .json file is a list of objects, or has one a line)" * (_form(name)[0] == ".json")
            raise SeedError(f"{name}:{number}: not JSON: {error}{hint}") from error
        if not isinstance(record, dict):
            raise SeedError(f"{name}:{number}: a seed row is a JSON object, not a {type(record).__name__}")
        yield number, record


def from_records(
    records: Sequence[dict[str, Any]],
    place: Callable[[int], str],
    wanted: Sequence[str] | None = None,
    columns: dict[str, None] | None = None,
) -> Part:
    """Records as a table; a column that some lack is null there.

    Args:
        wanted: the columns to take; all by default.
        columns: names that earlier records had, in order; those of these records are added.

    Raises:
        SeedError: names the row and what is wrong.
    """
    columns = {} if columns is None else columns
    columns.update(dict.fromkeys(name for record in records for name in record))
    if not columns:
        raise SeedError(f"{place(0)}: a seed row without columns; for empty rows use source.count")
    arrays = {}
    for name in columns if wanted is None else wanted:
        if HALF.search(name):
            row = next((row for row, record in enumerate(records) if name in record), 0)
            raise SeedError(f"{place(row)}: the name of a column holds half of a surrogate pair, which is not text")
        values = [record.get(name) for record in records]
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise SeedError(_odd_value(name, values, place)) from error
    return Part(pa.table(arrays), place)


def _odd_value(name: str, values: Sequence[Any], place: Callable[[int], str]) -> str:
    """Says which row's value has another type than the ones before it, or one of which there are no columns."""
    first: type | None = None
    for row, value in enumerate(values):
        if value is None:
            continue
        if isinstance(value, str) and HALF.search(value):
            return f"{place(row)}: column {name!r} holds half of a surrogate pair, which is not text"
        if first is None:
            first = type(value)
        elif type(value) is not first:
            return f"{place(row)}: column {name!r} is {type(value).__name__} here and {first.__name__} before"
        try:
            pa.array([value])
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):  # its text may quote the value
            nested = isinstance(value, dict | list | tuple)
            what = "whose parts have different types" if nested else "of which no column can be made"
            return f"{place(row)}: column {name!r} holds a value of type {type(value).__name__}, {what}"
    return f"{place(0)}: column {name!r} has values of different types"
