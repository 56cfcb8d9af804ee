"""Greenlets, threads and distilabel's batches over one engine, against the raw engine, side by side.

All variants run the same two-turn Magpie rows with the same distribution of lengths on one vLLM engine in this
process, interleaved; figures are medians over the repeats of output tokens a second.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from batchgen import bridge
from batchgen.engines import build_engine
from batchgen.tasks.llm import CallLog
from batchgen.tasks.runner import TaskRunner
from batchgen.tasks.table import TASKS
from tests.bench.workload import ROWS, SLOTS, SPEC, SYSTEM_PROMPT, TURNS, FixedLengths, raw

IN_FLIGHT = 2 * SLOTS


def magpie_runner(engine: FixedLengths) -> TaskRunner:
    """The Magpie step of the workload."""
    spec = TASKS["magpie"]
    parameters = spec.parameters.model_validate({"n_turns": TURNS, "system_prompt": SYSTEM_PROMPT})
    return TaskRunner("magpie", spec, parameters, {}, {}, engine, {"temperature": 1.0})


async def greenlets(engine: FixedLengths) -> None:
    """A greenlet a row: what batchgen does."""
    runner, gate = magpie_runner(engine), asyncio.Semaphore(IN_FLIGHT)

    async def row(number: int) -> None:
        async with gate:
            await runner.run({}, CallLog(f"g-{time.monotonic_ns()}-{number}", number))

    await asyncio.gather(*(row(number) for number in range(ROWS)))


async def threads(engine: FixedLengths) -> None:
    """A thread a row: the same task code, blocking on futures of the event loop."""
    loop, local = asyncio.get_running_loop(), threading.local()
    real_wait, real_context = bridge.wait, bridge.current_context
    bridge.wait = lambda awaitable: asyncio.run_coroutine_threadsafe(_as_coroutine(awaitable), loop).result()
    bridge.current_context = lambda: local.log
    task = magpie_runner(engine)._task

    def row(number: int) -> None:
        local.log = CallLog(f"t-{time.monotonic_ns()}-{number}", number)
        list(task.process([{}]))

    try:
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            await asyncio.gather(*(loop.run_in_executor(pool, row, number) for number in range(ROWS)))
    finally:
        bridge.wait, bridge.current_context = real_wait, real_context


async def _as_coroutine(awaitable: Any) -> Any:
    return await awaitable


async def batches(engine: FixedLengths) -> None:
    """distilabel's way: batches of 50 (its default), a barrier at every turn."""
    runner = magpie_runner(engine)

    def batch(number: int) -> Callable[[], list[Any]]:
        return lambda: list(runner._task.process([{} for _ in range(50)]))

    for number in range(0, 100, 50):  # two batches show the rate; all of them would take most of the benchmark's time
        await bridge.run_row(batch(number), CallLog(f"b-{time.monotonic_ns()}-{number}", number), number)


def measure(repeats: int) -> dict[str, Any]:
    """Medians and ratios to the raw engine."""
    variants: dict[str, Callable[[FixedLengths], Coroutine[Any, Any, Any]]] = {
        "raw engine": lambda engine: raw(engine, IN_FLIGHT, range(ROWS)),
        "greenlet a row": greenlets,
        "thread a row": threads,
        "batches of 50": batches,
    }

    async def go() -> dict[str, list[tuple[float, float]]]:
        engine = FixedLengths(build_engine(SPEC))
        await engine.start()
        await raw(engine, IN_FLIGHT, range(64))
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for _ in range(repeats):
            for name, variant in variants.items():
                engine.output_tokens = 0
                started, cpu = time.perf_counter(), time.process_time()
                await variant(engine)
                seconds = time.perf_counter() - started
                figures[name].append((engine.output_tokens / seconds, time.process_time() - cpu))
                print(f"{name:16s} {figures[name][-1][0]:8,.0f} tok/s  {figures[name][-1][1]:.2f} s CPU", flush=True)
        await engine.stop()
        return figures

    figures = asyncio.run(go())
    base = [rate for rate, _ in figures["raw engine"]]
    return {
        "workload": f"{ROWS} rows, {TURNS} turns, {SLOTS} slots, {IN_FLIGHT} rows in flight, embedded model",
        "variants": {
            name: {
                "tokens_per_second": [round(rate) for rate, _ in values],
                "median": round(statistics.median(rate for rate, _ in values)),
                "ratio_to_raw": round(
                    statistics.median(rate / raw_rate for (rate, _), raw_rate in zip(values, base, strict=True)), 3
                ),
                "cpu_seconds_outside_the_engine": round(statistics.median(cpu for _, cpu in values), 2),
            }
            for name, values in figures.items()
        },
    }
