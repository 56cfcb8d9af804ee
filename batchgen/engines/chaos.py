"""The chaos engine: deterministic text, and scripted latency, failures, crashes and hangs.

It needs no model and starts at once; `model: {path: chaos, engine: {...}}` takes the fields of `ChaosScript`. Text
depends on the prompt and the request's seed alone, so a run that was interrupted ends in the same bytes as one that
was not; so does the time that it takes, so that a test has the same rows in flight whenever it runs.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from batchgen.engines.base import Completion, EngineSpec, Request
from batchgen.engines.chat import TemplateChat, byte_chat
from batchgen.engines.slots import Slots
from batchgen.errors import EngineDead, EngineStartError, RowRejected

_MEMORY_LEFT = 256 * 2**20
_WORDS = [
    "amber",
    "basin",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "haven",
    "inlet",
    "jade",
    "knoll",
    "lagoon",
    "meadow",
    "north",
    "ocean",
    "prairie",
    "quartz",
    "ridge",
    "stone",
    "tide",
    "upland",
    "valley",
    "willow",
    "yonder",
    "zephyr",
    "bright",
    "calm",
    "deep",
    "early",
    "fresh",
    "gentle",
    "hidden",
]


class ChaosScript(BaseModel):
    """What a chaos engine does.

    The `*_on` fields name a text: a prompt that contains it is served in that way. With `once_file`, a crash, hang or
    failed start happens only as long as that file does not exist, and creates it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    slots: int = Field(default=16, ge=1)
    latency: float = Field(default=0.0, ge=0.0, description="mean seconds a completion, long-tailed")
    tokens: int = Field(default=12, ge=1, description="mean length of a completion in words")
    lines: int = Field(default=1, ge=1, description="lines a completion")
    reply: str | None = Field(default=None, description="this text for every completion, or score, instead of words")
    max_model_len: int = Field(default=100_000, ge=1, description="longest prompt in bytes")
    empty_on: str | None = None
    truncate_on: str | None = None
    error_on: str | None = None
    crash_on: str | None = None
    hang_on: str | None = None
    crash_after: int | None = Field(default=None, ge=1, description="requests until the engine crashes")
    crash_mode: Literal["raise", "exit", "memory"] = "raise"
    start_failures: bool = False
    start_hangs: bool = False
    start_seconds: float = Field(default=0.0, ge=0.0)
    once_file: str | None = None


class ChaosEngine:
    """An `Engine` that follows a script."""

    def __init__(self, spec: EngineSpec) -> None:
        self.script = ChaosScript.model_validate(dict(spec.arguments))
        self.model_name = "chaos"
        self._scores = spec.scores
        self.chat: TemplateChat = byte_chat()
        self.slots = self.script.slots
        self._free = Slots(self.slots)
        self._served = 0
        self._writing: dict[object, tuple[float, float, int]] = {}
        self._dead_of: str | None = None

    async def start(self) -> None:
        """Waits as scripted; raises `EngineStartError` where the script says so."""
        await asyncio.sleep(self.script.start_seconds)
        if self.script.start_failures and self._fault():
            raise EngineStartError("chaos: this engine never starts")
        if self.script.start_hangs and self._fault():
            await asyncio.Event().wait()

    async def generate(self, request: Request) -> Completion:
        """Completes one prompt as the script says."""
        script = self.script
        prompt = bytes(request.token_ids).decode("utf-8", "replace")
        if len(request.token_ids) > script.max_model_len:
            raise RowRejected("prompt_too_long")
        async with self._free.held(request.priority):
            self._served += 1
            if self._dead_of is not None:
                raise EngineDead(self._dead_of)
            if _in(script.crash_on, prompt) or self._served == script.crash_after:
                self._crash()
            if _in(script.hang_on, prompt) and self._fault():
                await asyncio.Event().wait()
            if _in(script.error_on, prompt):
                # Real ones quote the prompt as well; whoever catches this must not pass its text on.
                raise ValueError(f"chaos: scripted failure of one request: {prompt}")
            rng = random.Random(f"{request.seed}\n{prompt}")
            text = "" if _in(script.empty_on, prompt) else self._text(rng)
            words = 0 if self._scores else len(text.split())
            await self._write(words, rng.expovariate(1 / script.latency) if script.latency else 0)
        if self._scores:
            # Of the prompt alone, as a model's are.
            score = random.Random(prompt).gauss() if script.reply is None else float(script.reply)
            given = None if _in(script.empty_on, prompt) else score
            return Completion("", "stop", len(request.token_ids), 0, score=given)
        truncated = _in(script.truncate_on, prompt)
        return Completion(
            text,
            "length" if truncated else "stop",
            len(request.token_ids),
            words,
            logprobs=[-1.0] * words if "logprobs" in request.sampling else (),
        )

    async def _write(self, words: int, seconds: float) -> None:
        """Takes its time for a completion, in which one word comes after the other."""
        self._writing[completion := object()] = time.monotonic(), seconds, words
        try:
            await asyncio.sleep(seconds)
        finally:
            del self._writing[completion]

    @property
    def tokens_in_flight(self) -> int:
        """Words so far of the completions that it writes."""
        now = time.monotonic()
        return sum(
            int(words * min(1.0, (now - since) / seconds))
            for since, seconds, words in self._writing.values()
            if seconds
        )

    async def stop(self) -> None:
        """Nothing to release."""

    def _text(self, rng: random.Random) -> str:
        def line() -> str:
            words = rng.choices(_WORDS, k=1 + int(rng.expovariate(1 / self.script.tokens)))
            return " ".join(words).capitalize() + "."

        if self.script.reply is not None:
            return self.script.reply
        return "\n".join(line() for _ in range(self.script.lines))

    def _crash(self) -> None:
        if not self._fault():
            return
        if self.script.crash_mode == "exit":
            os._exit(1)
        self._dead_of = "chaos: scripted crash"
        if self.script.crash_mode == "memory":
            self._dead_of = "chaos: out of memory"
            _take_all_memory()
        raise EngineDead(self._dead_of)

    def _fault(self) -> bool:
        """Whether a scripted fault happens now; with a `once_file`, only the first time in a run."""
        if self.script.once_file is None:
            return True
        try:
            Path(self.script.once_file).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _take_all_memory() -> None:
    """Takes memory until there is none: what there is ends a little above what the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY_LEFT, before[1]))
    held = []
    try:
        while True:
            held.append(bytearray(_MEMORY_LEFT // 8))
    except MemoryError:
        held.clear()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _in(marker: str | None, prompt: str) -> bool:
    return marker is not None and marker in prompt
