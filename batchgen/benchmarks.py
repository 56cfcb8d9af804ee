"""The texts of benchmarks that a dataset must have nothing in common with, and the texts in a column of any kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.engines.repository import public_name
from batchgen.errors import JobError, SeedError
from batchgen.job import Benchmark
from batchgen.rows import in_words, kind_of
from batchgen.seeds import read_source

# How messages about a source begin, and how they name its columns.
_OF_SOURCE = re.compile(r"\Asource(?=[.:])|\bsource(?=\.columns\b)")


def benchmark_name(benchmark: Benchmark) -> str:
    """What a benchmark is called: the last parts of its paths, or its dataset's name."""
    if benchmark.dataset is not None:
        return public_name(benchmark.dataset)
    paths = [benchmark.path] if isinstance(benchmark.path, str) else benchmark.path or []
    return ", ".join(PurePosixPath(path).name for path in paths)


def read_benchmarks(benchmarks: Sequence[Benchmark]) -> list[pa.Array]:
    """The texts of benchmarks, all columns of each in one array.

    Raises:
        UserError: a benchmark cannot be read, or a column has no texts.
        StoreError: it cannot be read just now.
    """
    return [read_benchmark(benchmark, index) for index, benchmark in enumerate(benchmarks)]


def read_benchmark(benchmark: Benchmark, index: int) -> pa.Array:
    """The texts of the job's benchmark of that index; errors are those of `read_benchmarks`."""
    where = f"merge.decontaminate[{index}]"
    try:
        table = read_source(benchmark.source, own=False).table
    except SeedError as error:
        message = _OF_SOURCE.sub(where, str(error))
        for column, here in benchmark.source.names.items():
            message = message.replace(f"column {here!r}", f"column {column!r}")
        raise SeedError(message) from error
    texts = []
    for column, here in benchmark.source.names.items():
        if not holds_texts(kind := kind_of(table.schema.field(here).type)):
            raise JobError(f"{where}.columns: column {column!r} holds {in_words(kind)}, and no texts")
        texts.append(flat_texts(table[here].combine_chunks())[0].cast(pa.large_string()))
    found = pa.concat_arrays(texts)
    if not len(found):
        raise JobError(f"{where}.columns: there are no texts in {', '.join(map(repr, benchmark.columns))}, only nulls")
    return found


def holds_texts(kind: str) -> bool:
    """Whether there are texts in a column of that kind, as they are, in lists, or in messages."""
    return kind in ("text", "conversation") or (kind.startswith("list[") and holds_texts(kind[5:-1]))


def flat_texts(values: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The texts in a column, but for nulls, and the row that each of them is in."""
    rows = np.arange(len(values))
    while not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        if pa.types.is_struct(values.type):  # a message
            names = {field.name for field in values.type}
            values = pc.struct_field(values, "content" if "content" in names else "value")
        else:
            rows = rows[np.asarray(pc.list_parent_indices(values))]
            values = pc.list_flatten(values)
    there = np.asarray(pc.is_valid(values))
    return values.filter(pa.array(there)), rows[there]
