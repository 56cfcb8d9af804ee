"""What Parquet makes of types, and reading it without threads of Arrow's own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(source: bytes | Path) -> pa.Table:
    """All rows of a file.

    Arrow 26 aborts the process ("terminate called without an active exception", in 1 to 4 of 10 runs of a short
    command) where the interpreter ends while a thread of its pools still lets go of what it read, so that nothing here
    uses them: neither the pool that decodes (`use_threads`) nor the one that reads ahead (`pre_buffer`).
    """
    given: Any = pa.BufferReader(source) if isinstance(source, bytes) else source
    return pq.ParquetFile(given, pre_buffer=False).read(use_threads=False)


def first_rows(file: BinaryIO, rows: int) -> pa.RecordBatch | None:
    """The first rows of a file; None where it has none. Without those pools, too."""
    return next(pq.ParquetFile(file, pre_buffer=False).iter_batches(rows, use_threads=False), None)


def with_statistics(schema: pa.Schema) -> list[str]:
    """The columns of which a file may have statistics: those of numbers, booleans and times.

    Arrow 26 has wrong ones of texts at times, by which a reader that goes by them misses rows: where a batch ends in an
    empty text, what follows its buffer may be the one in which the writer keeps the least text so far, which it then
    takes for the same text. (Of 1,000 files of seven rows three had another least text than "".)
    """
    return [field.name for field in schema if pa.types.is_primitive(field.type)]


def stored_type(type: pa.DataType) -> pa.DataType | None:
    """The type that a column has once it was written and read; None where Parquet cannot hold it."""
    file = io.BytesIO()
    try:
        pq.write_table(pa.table({"column": pa.array([], type)}), file)
    except pa.ArrowException:
        return None
    return pq.read_schema(pa.BufferReader(file.getvalue())).field(0).type
