"""The rows that a pipeline starts from: those of its loading step, or of a dataset that is given."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchgen.errors import JobError, SeedError
from batchgen.job import Source
from batchgen.seeds import load_seeds, without_own_columns
from batchgen.translation.steps import class_name, is_own_loader

# The input of `StructuredGeneration`.
_FORMAT = "structured_output"


def formats_of(steps: Iterable[Any]) -> frozenset[str]:
    """The columns that say in what form `StructuredGeneration` is to answer, in distilabel by a dictionary."""
    return frozenset(
        step.input_mappings.get(_FORMAT, _FORMAT) for step in steps if class_name(type(step)) == "StructuredGeneration"
    )


def rows_of_step(name: str, step: Any, seed: int, formats: Collection[str] = ()) -> pa.Table:
    """The rows of a loading step, under its output mappings.

    Args:
        formats: see `rows_of_dataset`; by the names that the columns have then.

    Raises:
        JobError: the step lacks a setting, or has no rows.
        SeedError: they cannot be read.
    """
    limit = getattr(step, "num_examples", None) or None
    if is_own_loader(step):
        return rows_of_dataset(_made_by(name, step, seed), formats, f"step {name!r}")
    named = {new: column for column, new in step.output_mappings.items()}
    formats = [named.get(column, column) for column in formats]
    if getattr(step, "_dataset", None) is not None:  # of distilabel's `make_generator_step`
        table = rows_of_dataset(step._dataset, formats, f"step {name!r}").slice(0, limit)
    elif class_name(type(step)) == "LoadDataFromDicts" and step.data:
        table = rows_of_dataset(step.data, formats, f"step {name!r}").slice(0, limit)
    else:
        source = _source_of(name, step).model_copy(update={"limit": limit})
        table = _with_text(_loaded(source, f"step {name!r}"), formats)
    return table.rename_columns([step.output_mappings.get(column, column) for column in table.column_names])


def side_by_side(tables: Mapping[str, pa.Table]) -> pa.Table:
    """The rows of several loading steps, one of each together; of equal columns the last step's, as in distilabel.

    Args:
        tables: by the names of the steps.

    Raises:
        JobError: they do not have as many rows.
    """
    if len({table.num_rows for table in tables.values()}) > 1:
        found = ", ".join(f"{name!r}: {table.num_rows}" for name, table in tables.items())
        raise JobError(f"steps whose rows go together have different numbers of them ({found})")
    return pa.table({column: table[column] for table in tables.values() for column in table.column_names})


def rows_of_dataset(dataset: Any, formats: Collection[str] = (), where: str = "dataset") -> pa.Table:
    """The rows of what `pipeline.run` takes as a dataset.

    Args:
        formats: columns in which dictionaries become JSON: a column of Arrow's gives each of them the keys of all.
        where: it was given, for errors.

    Raises:
        JobError: it is of another kind, or has no rows.
        SeedError: a column cannot be stored.
    """
    kind = type(dataset).__name__
    if kind not in ("list", "DataFrame", "Dataset"):
        legal = "a datasets.Dataset, a pandas DataFrame or a list of dictionaries"
        raise JobError(f"{where}: expected {legal}, got {kind}")
    if not len(dataset):
        raise JobError(f"{where}: there are no rows")
    if kind == "list":
        return _of_records(dataset, formats, where)
    if kind == "DataFrame":
        return _of_frame(dataset, formats, where)
    return _with_text(without_own_columns(dataset.with_format("arrow")[:]), formats)


def _of_records(records: Sequence[Any], formats: Collection[str], where: str) -> pa.Table:
    for index, record in enumerate(records):
        if not isinstance(record, dict) or not all(isinstance(column, str) for column in record):
            got = f"keys like {next(iter(record))!r}" if isinstance(record, dict) else type(record).__name__
            raise JobError(f"{where}[{index}]: expected a dictionary of columns by their names, got {got}")
    if formats:
        records = [
            {name: _as_text(value) if name in formats else value for name, value in record.items()}
            for record in records
        ]
    return _loaded(Source(rows=list(records)), where)


def _as_text(value: Any) -> Any:
    """A dictionary as JSON; any other value as it is."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


def _with_text(table: pa.Table, formats: Collection[str]) -> pa.Table:
    """Rows whose dictionaries are JSON, without the keys that Arrow has added to them."""
    for index, field in enumerate(table.schema):
        if field.name in formats and pa.types.is_struct(field.type):
            texts = [_as_text(_without_nulls(value)) for value in table.column(index).to_pylist()]
            table = table.set_column(index, field.name, pa.array(texts, pa.string()))
    return table


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _of_frame(frame: Any, formats: Collection[str], where: str) -> pa.Table:
    if not frame.columns.is_unique:
        raise JobError(f"{where}: it has two columns {frame.columns[frame.columns.duplicated()][0]!r}")
    frame = frame.assign(**{column: frame[column].map(_as_text) for column in frame.columns if column in formats})
    for column in frame.columns:
        try:
            pa.Array.from_pandas(frame[column])
        except (pa.ArrowException, TypeError, ValueError):  # its text may quote a row
            raise JobError(f"{where}: column {column!r} has values of different types") from None
    return without_own_columns(pa.Table.from_pandas(frame, preserve_index=False))


def _loaded(source: Source, where: str) -> pa.Table:
    try:
        return load_seeds(source, own=False).table
    except SeedError as error:
        raise SeedError(f"{where}: {error}") from error


def _made_by(name: str, step: Any, seed: int) -> list[dict[str, Any]]:
    """The rows that a loading step's own code makes, with the same random choices at every call: a run resumes by them.

    Raises:
        JobError: it makes none.
        Whatever that code raises.
    """
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        step.load()
        rows = []
        for batch, is_last in step.process_applying_mappings():
            rows += batch
            if is_last:
                break
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    if not rows:
        raise JobError(f"step {name!r}: it made no rows")
    return rows


def _source_of(name: str, step: Any) -> Source:
    place = {"LoadDataFromDicts": "data", "LoadDataFromFileSystem": "data_files", "LoadDataFromDisk": "dataset_path"}
    field = place.get(type(step).__name__, "repo_id")
    value = getattr(step, field)
    if not value:
        raise JobError(f"step {name!r}: {field} is not set; give it to the step or in parameters")
    if field == "data_files":
        return Source(path=str(Path(value) / "*") if Path(value).is_dir() else str(value))
    split = step.split or "train"
    if field == "dataset_path":
        # A Distiset on disk has a folder for each of its configs.
        folder = Path(value) / (step.config or "default") if step.is_distiset else Path(value)
        return Source(dataset=str(folder), split=split)
    return Source(dataset=value, config=step.config, split=split, revision=step.revision, streaming=step.streaming)
