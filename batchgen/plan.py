"""The plan of a run: which seed rows make which shard, and what the run depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import pyarrow as pa

from batchgen.columns import trace_columns
from batchgen.errors import PlanMismatch, SeedError
from batchgen.job import Job
from batchgen.records import OtherFormat, RecordError, seal, unseal
from batchgen.rows import canonical_json, kind_of, shard_schema
from batchgen.seeds import Seeds
from batchgen.tasks.spec import is_required

PLAN_KEY = "plan.json"
FORMAT = 3
# Engine arguments that change what is generated; any other (memory, batch sizes) may change between two starts.
_TEXT_ARGUMENTS = (
    "code_revision",
    "config_format",
    "diffusion_config",
    "disable_sliding_window",
    "dtype",
    "generation_config",
    "hf_config_path",
    "hf_overrides",
    "kv_cache_dtype",
    "kv_cache_dtype_skip_layers",
    "load_format",
    "logprobs_mode",
    "lora_dtype",
    "lora_target_modules",
    "mamba_cache_dtype",
    "mamba_ssm_cache_dtype",
    "max_model_len",
    "model_weights",
    "quantization",
    "quantization_config",
    "reasoning_config",
    "reasoning_parser",
    "structured_outputs_config",
    "tokenizer",
    "tokenizer_mode",
    "tokenizer_revision",
    "watermark",
    "watermark_config",
)
# What tells the version of a model: `commit` of one from the Hub; `files`, `lora_files`: digests of folders.
ModelVersion = Mapping[str, str]
_MIN_SHARD, _MAX_SHARD, _SHARDS = 8, 512, 64


@dataclass(frozen=True)
class Shard:
    """A fixed slice of the seed rows: [start, stop)."""

    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Sortable, and safe as part of a key."""
        return f"{self.index:06d}"


@dataclass(frozen=True)
class Earlier:
    """A plan that another one extends, by its number of seed rows, which are the other's first."""

    rows: int
    fingerprint: str


@dataclass(frozen=True)
class Plan:
    """What `plan.json` says, or `plans/NNNN.json` of a run that was extended.

    Args:
        inputs: everything that the generated rows depend on, as a flat mapping of field to value.
        shards: cover the seed rows without gap or overlap.
        schema: of every shard file.
        step_columns: name to kind.
        earlier: the plans that the run had before, the first one first.
    """

    inputs: Mapping[str, Any]
    rows: int
    shards: tuple[Shard, ...]
    schema: pa.Schema
    step_columns: Mapping[str, str]
    earlier: tuple[Earlier, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """128 bits over everything that the generated rows depend on, and over the shards.

        Hashed once: it takes milliseconds in a plan of many shards, and each of their manifests is compared with it.
        """
        bounds = [(shard.start, shard.stop) for shard in self.shards]
        return hashlib.blake2b(canonical_json([self.inputs, bounds]), digest_size=16).hexdigest()

    @property
    def key(self) -> str:
        """Where the plan is."""
        return f"plans/{len(self.earlier):04d}.json" if self.earlier else PLAN_KEY

    def fingerprint_of(self, shard: Shard) -> str:
        """The fingerprint of the plan that brought a shard: what its manifest has, whichever plan its driver knew."""
        return next((plan.fingerprint for plan in self.earlier if shard.stop <= plan.rows), self.fingerprint)

    def behind(self, earlier: tuple[Earlier, ...]) -> Plan:
        """The plan of the same rows for a run that had other plans before, whose shards it keeps."""
        ends = [*(plan.rows for plan in earlier), self.rows]
        bounds = [
            (start + first, start + last)
            for start, stop in pairwise([0, *ends])
            for first, last in shard_bounds(stop - start, self.inputs["shard_rows"])
        ]
        shards = tuple(Shard(index, *bound) for index, bound in enumerate(bounds))
        return replace(self, shards=shards, earlier=earlier)

    def commit_of(self, model: str | None) -> str | None:
        """The commit of the job's model, or of a further one by name; None where it is not from the Hub."""
        commit: str | None = self.inputs.get(_model_input(model, "commit"))
        return commit

    def with_versions(self, versions: Mapping[str | None, ModelVersion]) -> Plan:
        """The plan for the job's model (None) and its further ones, by name, as they are now."""
        added = {_model_input(name, key): value for name, version in versions.items() for key, value in version.items()}
        return replace(self, inputs={**self.inputs, **added})

    def dump(self) -> bytes:
        """The plan as the bytes of `plan.json`."""
        tree = {
            "fingerprint": self.fingerprint,
            "inputs": self.inputs,
            "rows": self.rows,
            "shards": [list(asdict(shard).values()) for shard in self.shards],
            "schema": self.schema.serialize().to_pybytes().hex(),
            "step_columns": self.step_columns,
            **({"earlier": [asdict(plan) for plan in self.earlier]} if self.earlier else {}),
        }
        return seal(tree, FORMAT)

    @classmethod
    def parse(cls, data: bytes, key: str = PLAN_KEY) -> Plan:
        """The plan from its bytes.

        Args:
            key: where they are from.

        Raises:
            PlanMismatch: it is torn or changed, or of another version of batchgen.
        """
        try:
            tree = unseal(data, FORMAT)
        except OtherFormat as error:
            raise PlanMismatch(f"{key} {error}; go on with that version, or choose another output") from error
        except RecordError as error:
            again = "the job's own command" + (" with --extend" if key != PLAN_KEY else "")
            raise PlanMismatch(f"{key} {error}; remove it, and {again} writes it again") from error
        return cls(
            inputs=tree["inputs"],
            rows=tree["rows"],
            shards=tuple(Shard(*shard) for shard in tree["shards"]),
            schema=pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(tree["schema"]))),
            step_columns=tree["step_columns"],
            earlier=tuple(Earlier(**plan) for plan in tree.get("earlier", ())),
        )


def shard_bounds(rows: int, shard_rows: int | None = None) -> list[tuple[int, int]]:
    """Slices of `rows` rows: of one size, with the last fifth in smaller and smaller ones.

    Engines that finish late finish a small shard; the slices depend on nothing but the arguments, so that a run can
    go on with another number of engines.
    """
    size = shard_rows or max(_MIN_SHARD, min(_MAX_SHARD, rows // _SHARDS))
    bounds: list[tuple[int, int]] = []
    start = 0
    while start < rows:
        left = rows - start
        step = size if left > rows // 5 else max(min(size, _MIN_SHARD), min(size, left // 4))
        bounds.append((start, min(rows, start + step)))
        start += step
    return bounds


def make_plan(job: Job, seeds: Seeds) -> Plan:
    """The plan of a job over its seeds.

    Raises:
        JobError: the steps do not fit each other or the seeds.
        SeedError: a row lacks a value that a step needs.
    """
    added = trace_columns(job, {field.name: kind_of(field.type) for field in seeds.fields})
    _check_nulls(job, seeds)
    return Plan(
        inputs=_flat(_inputs(job, seeds)),
        rows=seeds.count,
        shards=tuple(Shard(i, *bounds) for i, bounds in enumerate(shard_bounds(seeds.count, job.shard_rows))),
        schema=shard_schema(seeds.fields, added),
        step_columns=added,
    )


def _inputs(job: Job, seeds: Seeds) -> dict[str, Any]:
    """Everything that the generated rows depend on, but for the models' versions."""
    tree = job.tree()
    calling = [step for step in job.steps if step.spec.calls_model]
    # Where a row that is cut is dropped anyway, it ends before its next call, and groups do without it.
    depends = len(calling) > 1 or any(step.group_generations or not step.spec.single_call for step in calling)
    return {
        "seeds": seeds.fingerprint,
        "seed": tree["seed"],
        "model": _model_inputs(tree["model"]),
        "models": {name: _model_inputs(model) for name, model in tree["models"].items()},
        "sampling": tree["sampling"],
        # A key that came after the first runs: those without it can still be gone on with.
        "steps": [{k: v for k, v in step.items() if (k, v) != ("model_name", False)} for step in tree["steps"]],
        "shard_rows": tree["shard_rows"],
        **({"merge": {"drop_truncated": False}} if depends and not job.merge.drop_truncated else {}),
    }


def _model_inputs(model: dict[str, Any]) -> dict[str, Any]:
    """What of a model the generated rows depend on."""
    return {**model, "engine": text_arguments(model["path"], model["engine"])}


def text_arguments(model: str, engine: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a model's engine arguments that change what is generated.

    Args:
        model: its path.
    """
    names = ("tokens", "lines", "reply") if model == "chaos" else _TEXT_ARGUMENTS
    return {name: value for name, value in engine.items() if name in names}


def _model_input(model: str | None, field: str) -> str:
    """The name of an input that tells a model's version."""
    return f"model.{field}" if model is None else f"models.{model}.{field}"


def _check_nulls(job: Job, seeds: Seeds) -> None:
    """Names the first seed row without a value for a required input of the first step."""
    if not job.steps:
        return
    step = job.steps[0]
    for task_input, column in step.reads.items():
        if (
            not is_required(step.inputs[task_input])
            or column not in seeds.table.column_names
            or not seeds.table[column].null_count
        ):
            continue
        index = seeds.table[column].is_null().index(True).as_py()
        raise SeedError(
            f"{seeds.place(index)}: column {column!r} is missing or null, and steps[0] ({step.task}) reads it"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for name, value in tree.items() for k, v in _flat(value, f"{prefix}.{name}".lstrip(".")).items()}
    if isinstance(tree, list) and tree and any(isinstance(item, dict) for item in tree):
        return {k: v for i, value in enumerate(tree) for k, v in _flat(value, f"{prefix}[{i}]").items()}
    return {prefix: tree}
