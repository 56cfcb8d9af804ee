"""batchgen: high-throughput batch generation of instruction datasets.

from batchgen import Job, run, show_progress
result = run(Job.load("jobs/demo.yaml"), watch=show_progress())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchgen.errors import (
    BatchgenError,
    CorruptShard,
    EngineError,
    JobError,
    ModelError,
    PlanMismatch,
    SeedError,
    ShardFailed,
    Stopped,
    UserError,
)

if TYPE_CHECKING:
    from batchgen.api import run
    from batchgen.display import show_progress
    from batchgen.job import Job
    from batchgen.pipeline import PipelineResult, from_pipeline
    from batchgen.result import Result
    from batchgen.tasks.spec import own_task

__all__ = [
    "BatchgenError",
    "CorruptShard",
    "EngineError",
    "Job",
    "JobError",
    "ModelError",
    "PipelineResult",
    "PlanMismatch",
    "Result",
    "SeedError",
    "ShardFailed",
    "Stopped",
    "UserError",
    "__version__",
    "from_pipeline",
    "own_task",
    "run",
    "show_progress",
]
__version__ = "0.1.0"

_LAZY = {
    "Job": "batchgen.job",
    "PipelineResult": "batchgen.pipeline",
    "Result": "batchgen.result",
    "from_pipeline": "batchgen.pipeline",
    "own_task": "batchgen.tasks.spec",
    "run": "batchgen.api",
    "show_progress": "batchgen.display",
}


def __getattr__(name: str) -> Any:
    # `batchgen --help` must not pay for pyarrow and pydantic.
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'batchgen' has no attribute {name!r}")
