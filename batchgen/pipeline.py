"""Runs a distilabel `Pipeline` that was written in Python: its tasks become jobs, its leaves configs of one dataset."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.api import Result, Watch, run
from batchgen.errors import JobError, SeedError
from batchgen.job import Source
from batchgen.merge.rows import CLUSTER_SIZE
from batchgen.parquet import read_parquet
from batchgen.publish import publish_configs
from batchgen.rows import META_NAMES
from batchgen.seeds import load_seeds
from batchgen.store import is_remote
from batchgen.translate import Segment, Translated, segments_of, translate


class PipelineResult(Mapping[str, Any]):
    """What a pipeline gave: one config of a dataset for every leaf, opened when it is asked for.

    Args:
        dataset: the published folder.
        runs: of the job behind every config.
    """

    def __init__(self, dataset: Path, runs: Mapping[str, Result]) -> None:
        self.dataset = dataset
        self.runs = runs

    def __getitem__(self, config: str) -> Any:
        if config not in self.runs:
            raise KeyError(config)
        from datasets import load_dataset

        return load_dataset(str(self.dataset), config)

    def __iter__(self) -> Iterator[str]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)


def from_pipeline(
    pipeline: Any,
    output: str | Path | None = None,
    address: str | None = None,
    engines: int | None = None,
    seed: int = 0,
    watch: Watch = lambda status: None,
    in_process: bool = False,
) -> PipelineResult:
    """Runs a pipeline's tasks on batchgen's engines, or goes on with a run of it that was interrupted.

    The LLM of a task becomes an engine with the same model and generation arguments: vLLM for distilabel's `vLLM` and
    `TransformersLLM`, a client for `OpenAILLM` and its like. Every row that ends well is in the dataset; nothing is
    deduplicated, as distilabel does not.

    Args:
        pipeline: a `distilabel.pipeline.Pipeline`; what it would do on its own machine is not used.
        output: folder of the runs and the dataset; `runs/<name of the pipeline>` by default.
        address: of a running Ray cluster.
        engines: number of engines; else one a GPU, or one on a CPU.
        seed: of the random choices.
        watch: called with the status about once a second.
        in_process: runs the engines in this process, without Ray.

    Raises:
        JobError: names the step that cannot be carried over, and why.
        BatchgenError: as `run` does.
    """
    if output is not None and is_remote(str(output)):
        raise JobError(f"output: {str(output)!r}: a pipeline's output is a folder")
    steps = {name: pipeline.dag.get_step(name)["step"] for name in pipeline.dag}
    segments = segments_of(pipeline.dag, steps)
    folder = Path(output) if output is not None else Path("runs") / re.sub(r"[^A-Za-z0-9._-]", "_", pipeline.name)
    (root,) = pipeline.dag.root_steps
    loaded = _load(root, steps[root])
    settings: dict[str, Any] = {"seed": seed, **({"engines": engines} if engines else {})}
    # Everything is translated before anything runs: a step that cannot be carried over costs no engine.
    jobs = {segment: translate(segment, steps, folder, settings) for segment in segments}
    tables: dict[Segment | None, pa.Table] = {None: loaded}
    results: dict[str, Result] = {}
    leaves = [segment for segment in segments if segment.leaf]
    for segment in segments:
        translated = jobs[segment]
        _write_seeds(tables[segment.parent], translated.renamed, Path(str(translated.job.source.path)))
        result = run(translated.job, address, watch, in_process=in_process)
        tables[segment] = _logical(_rows_of(result), translated)
        if segment.leaf:
            results["default" if len(leaves) == 1 else segment.name] = result
    dataset = publish_configs({name: Path(result.dataset) for name, result in results.items()}, folder / "dataset")
    return PipelineResult(dataset, results)


def _load(name: str, step: Any) -> pa.Table:
    """The rows of a loading step, under its output mappings."""
    kind = type(step).__name__
    base = Path()
    if kind == "LoadDataFromDicts":
        table = load_seeds(Source(rows=step.data), base).table
    elif kind == "LoadDataFromFileSystem":
        table = load_seeds(Source(path=str(step.data_files)), base).table
    elif kind == "LoadDataFromDisk":
        table = load_seeds(Source(dataset=str(step.dataset_path), split=step.split or "train"), base).table
    else:
        table = _from_hub(name, step)
    limit = getattr(step, "num_examples", None)
    table = table.slice(0, limit) if limit else table
    return table.rename_columns([step.output_mappings.get(column, column) for column in table.column_names])


def _from_hub(name: str, step: Any) -> pa.Table:
    from datasets import load_dataset

    try:
        dataset = load_dataset(step.repo_id, step.config, split=step.split, revision=step.revision)
    except Exception as error:  # the datasets library and its many back ends raise anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SeedError(f"step {name!r}: {step.repo_id!r} cannot be loaded: {reason}") from error
    table: pa.Table = dataset.with_format("arrow")[:]
    return table


def _write_seeds(table: pa.Table, renamed: Mapping[str, str], path: Path) -> None:
    """The rows that a segment starts from, with new names for what it writes again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    pq.write_table(table.rename_columns([renamed.get(name, name) for name in table.column_names]), fresh)
    shutil.move(fresh, path)


def _rows_of(result: Result) -> pa.Table:
    files = sorted((Path(result.dataset) / "data").glob("*.parquet"))
    return pa.concat_tables([read_parquet(file) for file in files])


def _logical(table: pa.Table, translated: Translated) -> pa.Table:
    """A segment's rows as distilabel has them: without batchgen's own columns and earlier versions of a column."""
    own = {*META_NAMES, CLUSTER_SIZE, *translated.earlier}
    if translated.adds_messages:
        own.add("messages")
    return table.select([name for name in table.column_names if name not in own])
