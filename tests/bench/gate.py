"""What a gate saves, answers that are generated for duplicates, which the merger then drops; and what it costs.

Eight chaos engines in this process, whose questions are a few words of 32, so that more than half of them are
duplicates. Once engines tell each other what they have committed, and once each knows of its own rows alone; with one
engine, which knows all, there would be none. The sides take turns.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from batchgen import run
from batchgen.known import KnownTexts
from batchgen.tasks.seen import Seen
from tests.helpers import chaos_job

ROWS = 20_000
ENGINES = 8
TOLD, WORDS = 500_000, 25


def wasted(rows: int = ROWS, engines: int = ENGINES) -> tuple[int, int]:
    """(answers that were generated and dropped, rows of the dataset) of a run."""
    steps: list[dict[str, Any]] = [
        {"task": "magpie", "only_instruction": True},
        {"task": "drop_duplicates", "threshold": 0.8},
        {"task": "text_generation"},
    ]
    model = {"path": "chaos", "engine": {"slots": 16, "latency": 0.1, "tokens": 2}}
    with tempfile.TemporaryDirectory() as folder:
        job = chaos_job(folder, source={"count": rows}, model=model, steps=steps, engines=engines)
        result = run(job, in_process=True)
    return result.progress.ok - result.version.kept, result.version.kept


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def cost(threshold: float | None) -> dict[str, float]:
    """Microseconds and bytes a text, at a gate that has been told of `TOLD` others; of a process of its own."""
    rng = np.random.default_rng(0)
    gate = Seen(threshold)
    gate.learn(gate.describe(["compiles"]))
    parts = (rng.integers(0, 5000, (10_000, WORDS)) for _ in range(TOLD // 10_000))
    records = [gate.describe([" ".join(f"word{word}" for word in text) for text in part]) for part in parts]
    before, started = _resident(), time.perf_counter()
    for part in records:
        gate.learn(part)
    learnt, size = time.perf_counter() - started, _resident() - before
    own = [" ".join(f"word{word}" for word in text) for text in rng.integers(0, 5000, (10_000, WORDS))]
    started = time.perf_counter()
    for row, text in enumerate(own):
        gate.reason(text, row)
    brought = time.perf_counter() - started
    return {
        "us_a_text_of_its_own": round(brought / len(own) * 1e6, 1),
        "us_a_text_that_it_is_told": round(learnt / TOLD * 1e6, 2),
        "bytes_a_text": round(size / TOLD),
    }


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(repeats: int) -> dict[str, Any]:
    """Answers for duplicates, with and without what other engines committed, and what a gate costs."""
    shared, alone, kept = [], [], 0
    for _ in range(repeats):
        with mock.patch.object(KnownTexts, "untold", return_value=()):
            alone.append(wasted()[0])
        answers, kept = wasted()
        shared.append(answers)
    return {
        "workload": f"{ROWS} rows, {ENGINES} chaos engines of 16 slots, drop_duplicates with threshold 0.8",
        "rows_of_the_dataset": kept,
        "answers_dropped": {"each_engine_alone": alone, "told_by_the_others": shared},
        "ratio": round(statistics.median(shared) / statistics.median(alone), 2),
        "cost": {
            "texts": f"{TOLD} of {WORDS} words",
            "equal": _alone(cost, None),
            "with_threshold": _alone(cost, 0.8),
        },
    }
