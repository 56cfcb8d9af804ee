"""What it is worth that rows which began earlier go first, against first come, first served, on one vLLM engine.

Two-turn Magpie rows with long-tailed lengths, and a KV cache with room for what the slots hold and little more, as a
large model leaves on a GPU. A conversation's next turn finds the turns before it in vLLM's prefix cache only if nothing
else has taken their place meanwhile. The sides take turns.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from batchgen.engines import build_engine
from batchgen.engines.base import Completion, Request
from batchgen.tasks.llm import CallLog
from tests.bench.bridge import magpie_runner
from tests.bench.workload import SLOTS, SPEC, TURNS, FixedLengths

ROWS = 6 * SLOTS
BLOCK, BLOCKS = 32, 4 * SLOTS  # a conversation has 100 tokens at its half


class _Ordered(FixedLengths):
    """The workload's engine; `ordered` says whether requests have priorities."""

    ordered = True

    async def generate(self, request: Request) -> Completion:
        return await super().generate(request if self.ordered else replace(request, priority=0))


class _Counted:
    """vLLM's engine, with the prompt tokens counted that it found in its prefix cache."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self.cached = self.prompted = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    async def generate(self, prompt: Any, *arguments: Any, **named: Any) -> AsyncIterator[Any]:
        async for output in self._llm.generate(prompt, *arguments, **named):
            self.prompted += len(output.prompt_token_ids)
            self.cached += output.num_cached_tokens or 0
            yield output


async def _rows(engine: FixedLengths, rows: int) -> None:
    runner, gate = magpie_runner(engine), asyncio.Semaphore(2 * SLOTS)

    async def row(number: int) -> None:
        async with gate:
            await runner.run({}, CallLog(f"o-{time.monotonic_ns()}-{number}", number, lambda: number))

    await asyncio.gather(*(row(number) for number in range(rows)))


def measure(repeats: int) -> dict[str, Any]:
    """Output tokens a second and the share of prompt tokens that were cached, of both orders."""
    figures: dict[bool, list[tuple[float, float]]] = {True: [], False: []}

    async def go() -> None:
        arguments = {**SPEC.arguments, "block_size": BLOCK, "num_gpu_blocks_override": BLOCKS}
        vllm = build_engine(replace(SPEC, arguments=arguments))
        engine = _Ordered(vllm)
        await engine.start()
        vllm._llm = counted = _Counted(vllm._llm)
        await _rows(engine, SLOTS)
        for pair in range(repeats):
            for ordered in (True, False) if pair % 2 else (False, True):
                engine.ordered, engine.output_tokens, counted.cached, counted.prompted = ordered, 0, 0, 0
                started = time.perf_counter()
                await _rows(engine, ROWS)
                rate = engine.output_tokens / (time.perf_counter() - started)
                figures[ordered].append((rate, counted.cached / counted.prompted))
                print(f"ordered {ordered!s:5} {rate:8,.0f} tok/s  {figures[ordered][-1][1]:.3f} cached", flush=True)
        await engine.stop()

    asyncio.run(go())
    pairs = [ours[0] / theirs[0] for ours, theirs in zip(figures[True], figures[False], strict=True)]
    return {
        "workload": f"{ROWS} rows, {TURNS} turns, {SLOTS} slots, {BLOCKS} blocks of {BLOCK} tokens, embedded model",
        **{
            name: {
                "tokens_per_second": [round(rate) for rate, _ in figures[ordered]],
                "prompt_tokens_cached": [round(share, 3) for _, share in figures[ordered]],
            }
            for name, ordered in (("earlier_rows_first", True), ("first_come_first_served", False))
        },
        "ratio": [round(pair, 3) for pair in pairs],
        "median_ratio": round(statistics.median(pairs), 3),
    }
