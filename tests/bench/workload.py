"""The work of the benchmarks: two-turn Magpie rows with long-tailed lengths, on the CPU or on a GPU."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from batchgen.engines.base import Completion, Engine, EngineSpec, Request
from batchgen.engines.chat import TemplateChat
from batchgen.rows import random_seed

TURNS = 2
# Given, so that both sides have the same prompts: distilabel puts a long one of its own before several turns.
SYSTEM_PROMPT = "You are a helpful assistant."


@dataclass(frozen=True)
class Lengths:
    """Output tokens of a call: lognormal, from 4 to `longest`."""

    median: float = 24.5
    longest: int = 200

    def of(self, key: int) -> int:
        """The length of one call."""
        return max(4, min(self.longest, int(random.Random(key).lognormvariate(math.log(self.median), 0.9))))


@dataclass(frozen=True)
class Workload:
    """Rows on one engine.

    Args:
        model: "embedded", or the shape of a model that is made on the spot, with random weights.
        arguments: of the engine, beside its defaults.
        rows_per_slot: of a whole run. It drains once, at its end; a real one lasts hours, so this one is not to be all
            end.
    """

    model: str
    lengths: Lengths = Lengths()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    rows_per_slot: int = 16


SLOTS = 64
ROWS = 256
CPU = Workload("embedded", arguments={"max_model_len": 2048, "max_num_seqs": SLOTS, "dtype": "float32"})
SPEC = EngineSpec(CPU.model, arguments=CPU.arguments, seed=5)


class FixedLengths:
    """An engine whose completions have the workload's lengths, whatever the text: every variant does equal work.

    The length of a call follows from the request's seed, which batchgen derives from row and call.
    """

    def __init__(self, engine: Engine, lengths: Lengths = CPU.lengths) -> None:
        self._engine = engine
        self.lengths = lengths
        self.output_tokens = 0

    @property
    def model_name(self) -> str:
        """The engine's."""
        return self._engine.model_name

    @property
    def chat(self) -> TemplateChat:
        """The engine's."""
        return self._engine.chat  # type: ignore[return-value]

    @property
    def slots(self) -> int:
        """The engine's."""
        return self._engine.slots

    @property
    def tokens_in_flight(self) -> int:
        """The engine's."""
        return self._engine.tokens_in_flight

    async def start(self) -> None:
        """Starts the engine."""
        await self._engine.start()

    async def stop(self) -> None:
        """Stops the engine."""
        await self._engine.stop()

    async def generate(self, request: Request) -> Completion:
        """A completion of the workload's length."""
        tokens = self.lengths.of(request.seed)
        sampling: Mapping[str, Any] = {**request.sampling, "max_tokens": tokens, "ignore_eos": True}
        # Without the stop condition of user turns, which would end them early.
        fixed = replace(request, sampling=sampling, stop=(), stop_token_ids=())
        completion = await self._engine.generate(fixed)
        self.output_tokens += completion.output_tokens
        text = completion.text.replace("<|im_end|>", " ").strip() or "x"
        token_ids = completion.token_ids if text == completion.text else ()
        return Completion(text, "stop", completion.input_tokens, tokens, token_ids)


async def raw(engine: Engine, in_flight: int, row_seeds: Sequence[int]) -> int:
    """The same calls straight to the engine: prompts grow turn by turn as in a Magpie row, and keep their tokens.

    Args:
        row_seeds: of the rows' calls, as batchgen derives them, so that every variant has the same lengths in the same
            order.

    Returns:
        Output tokens.
    """
    gate = asyncio.Semaphore(in_flight)
    total = 0

    async def row(number: int, seed: int) -> None:
        nonlocal total
        async with gate:
            messages: list[dict[str, str]] = [{"role": "system", "content": SYSTEM_PROMPT}]
            known = None
            for call in range(2 * TURNS):
                user = call % 2 == 0
                opened = engine.chat.user_prompt if user else engine.chat.prompt
                prompt = opened(messages, known)
                key = f"raw-{time.monotonic_ns()}-{number}-{call}"
                request = Request(prompt.token_ids, {"temperature": 1.0}, seed=random_seed(seed, call), key=key)
                completion = await engine.generate(request)
                known = engine.chat.continued(prompt, completion)
                total += completion.output_tokens
                messages.append({"role": "user" if user else "assistant", "content": completion.text})

    await asyncio.gather(*(row(number, seed) for number, seed in enumerate(row_seeds)))
    return total
