"""Runs a distilabel `Pipeline` that was written in Python: its tasks become jobs, its leaves configs of one dataset."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.api import Watch, check_output, run
from batchgen.errors import JobError, Stopped
from batchgen.hub import upload
from batchgen.parquet import read_parquet
from batchgen.publish import publish_configs
from batchgen.result import Result
from batchgen.rows import kind_of
from batchgen.store import is_remote
from batchgen.translation.loading import formats_of, rows_of_dataset, rows_of_step, side_by_side
from batchgen.translation.segments import Segment, loaders_of, segments_of, set_parameters
from batchgen.translation.steps import check_kinds, generates
from batchgen.translation.translate import Translated, translate


class PipelineResult(Mapping[str, Any]):
    """What a pipeline gave: one config of a dataset for every leaf, opened when it is asked for.

    Args:
        dataset: the published folder.
        runs: of the job behind every config.
    """

    def __init__(self, dataset: Path, runs: Mapping[str, Result]) -> None:
        self.dataset = dataset
        self.runs = runs

    @property
    def complete(self) -> bool:
        """Whether the dataset is of all rows; otherwise the same call goes on with the rest."""
        return all(result.complete for result in self.runs.values())

    def __getitem__(self, config: str) -> Any:
        if config not in self.runs:
            raise KeyError(config)
        from datasets import load_dataset

        return load_dataset(str(self.dataset), config)

    def __repr__(self) -> str:
        kept = ", ".join(f"{config}: {result.version.kept:,} rows" for config, result in self.runs.items())
        return f"PipelineResult({str(self.dataset)!r}, {kept})"

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> None:
        """Uploads the dataset to the Hugging Face Hub, in one commit, in the place of an earlier one.

        Args:
            repo_id: the dataset's name there.
            private: of a repository that is made for it.
            token: of an account; by default the environment's, or that of `hf auth login`.

        Raises:
            UserError: it may not be written with this token, or has a card that you have edited, and other data.
            StoreError: the Hub cannot be reached, or fails.
        """
        upload(self.dataset, repo_id, private, token)

    def save_to_disk(self, folder: str | Path) -> None:
        """Writes every config to a folder of its own there, which `datasets.load_from_disk` opens."""
        for config, dataset in self.items():
            dataset.save_to_disk(Path(folder) / config)

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
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    dataset: Any = None,
    kinds: Mapping[str, str] | None = None,
    extend: bool = False,
    until: datetime | None = None,
) -> PipelineResult:
    """Runs a pipeline's tasks on batchgen's engines, or goes on with a run of it that was interrupted.

    The LLM of a task becomes an engine with the same model and generation arguments: vLLM for distilabel's `vLLM`,
    `TransformersLLM` and `InferenceEndpointsLLM`, a client for `OpenAILLM` and its like. Every row that ends well is in
    the dataset; nothing is deduplicated, as distilabel does not.

    Args:
        pipeline: a `distilabel.pipeline.Pipeline`; what it would do on its own machine is not used.
        output: folder of the runs and the dataset; `runs/<name of the pipeline>` by default.
        address: of a running Ray cluster.
        engines: number of engines; else one a GPU, or one on a CPU.
        seed: of the random choices.
        watch: called with the status about once a second; `show_progress()` prints it.
        in_process: runs the engines in this process, without Ray.
        parameters: runtime parameters of steps by their names, as `pipeline.run` takes them.
        dataset: rows for a pipeline without a step that loads some, as `pipeline.run` takes them: a
            `datasets.Dataset`, a pandas `DataFrame`, or a list of dictionaries.
        kinds: of the columns that tasks and steps of your own classes write, where they are no texts: `number`,
            `boolean`, `conversation`, or `list[...]` of a kind.
        extend: whether a run of the first of the pipeline's rows is given the others.
        until: when it is to be over, as of `run`; then the dataset is of what is there, if every leaf has rows by then.

    Raises:
        JobError: names the step that cannot be carried over, and why.
        BatchgenError: as `run` does.
    """
    pipeline = getattr(pipeline, "pipeline", pipeline)  # of `InstructionResponsePipeline`, which holds one
    _check_kind_of(pipeline, output, parameters=parameters, kinds=kinds)
    steps = {name: pipeline.dag.get_step(name)["step"] for name in pipeline.dag}
    set_parameters(steps, parameters or {})
    check_kinds(steps.values(), kinds or {})
    segments = segments_of(pipeline.dag, steps, loaded=dataset is not None)
    folder = Path(output) if output is not None else Path("runs") / re.sub(r"[^A-Za-z0-9._-]", "_", pipeline.name)
    loaded = _first_rows(pipeline.dag, steps, dataset, seed)
    settings: dict[str, Any] = {"seed": seed, **({"engines": engines} if engines is not None else {})}
    # Everything is translated before anything runs: a step that cannot be carried over costs no engine.
    jobs: dict[Segment, Translated] = {}
    for segment in segments:
        first = jobs[segment.parent].columns if segment.parent else _kinds_of(loaded)
        jobs[segment] = translate(segment, steps, first, folder, settings, kinds)
    check_output(str(folder))
    rows_after: dict[Segment | None, pa.Table | None] = {None: loaded}
    results: dict[str, Result] = {}
    earlier: list[Path] = []
    leaves = [segment for segment in segments if segment.leaf]
    for segment in segments:
        translated = jobs[segment]
        if (rows := rows_after[segment.parent]) is not None:
            _write_seeds(rows, translated.seeds, Path(str(translated.job.source.path)))
        result = run(translated.job, address, watch, in_process=in_process, until=until, extend=extend)
        if segment.leaf:
            results["default" if len(leaves) == 1 else segment.name] = result
        elif not result.complete:
            # What comes after would take these for all rows.
            raise Stopped(f"its time was up before {segment.name!r} had all rows, from which other steps go on")
        else:
            rows_after[segment] = _rows_of(result).select(list(translated.columns))
            earlier.append(Path(result.dataset))
    datasets = {name: Path(result.dataset) for name, result in results.items()}
    dataset = publish_configs(pipeline.name, datasets, folder / "dataset", earlier)
    return PipelineResult(dataset, results)


def _check_kind_of(pipeline: Any, output: str | Path | None, **mappings: Any) -> None:
    """Refuses arguments of other types than `from_pipeline` takes."""
    if not hasattr(pipeline, "dag"):
        raise JobError(f"from_pipeline: expected a distilabel Pipeline, got {type(pipeline).__name__}")
    for name, given in mappings.items():
        if not isinstance(given or {}, Mapping):
            raise JobError(f"{name}: expected a mapping, got {type(given).__name__}")
    if output is not None and is_remote(str(output)):
        raise JobError(f"output: {str(output)!r}: a pipeline's output is a folder")


def _first_rows(dag: Any, steps: Mapping[str, Any], dataset: Any, seed: int) -> pa.Table | None:
    """The rows that a pipeline begins with; None where it begins with a task that makes them."""
    formats = formats_of(steps.values())
    if dataset is not None:
        return rows_of_dataset(dataset, formats)
    loaders, _ = loaders_of(dag, steps)
    tables = {name: rows_of_step(name, steps[name], seed, formats) for name in loaders if not generates(steps[name])}
    return side_by_side(tables) if tables else None


def _kinds_of(rows: pa.Table | None) -> dict[str, str]:
    """The columns of loaded rows, with their kinds."""
    return {field.name: kind_of(field.type) for field in rows.schema} if rows is not None else {}


def _write_seeds(table: pa.Table, names: Mapping[str, str], path: Path) -> None:
    """The rows that a segment starts from, with the names that their columns have in its job."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    pq.write_table(table.select(list(names)).rename_columns(list(names.values())), fresh)
    shutil.move(fresh, path)


def _rows_of(result: Result) -> pa.Table:
    files = sorted((Path(result.dataset) / "data").glob("*.parquet"))
    return pa.concat_tables([read_parquet(file) for file in files])
