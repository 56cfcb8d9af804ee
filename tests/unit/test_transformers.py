"""The transformers engine's own parts, without a model; `tests/contract/test_engine.py` has it with one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from batchgen.engines.base import Completion, EngineSpec, Request
from batchgen.engines.transformers import TransformersEngine
from batchgen.errors import EngineDead


@pytest.fixture
def engine() -> TransformersEngine:
    """An engine whose model ends with token 2, and its tokenizer's texts with 3."""
    engine = TransformersEngine(EngineSpec("embedded", backend="transformers"))
    engine._model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=2))
    engine._tokenizer = SimpleNamespace(eos_token_id=3)
    engine._max_model_len = 100
    return engine


def options(engine: TransformersEngine, sampling: dict[str, Any]) -> dict[str, Any]:
    return engine._options(Request([1] * 10, sampling, seed=0))[0]


def test_what_a_job_leaves_open_is_vllm_s_default_and_not_the_library_s(engine: TransformersEngine):
    assert options(engine, {}) == {"max_new_tokens": 90, "do_sample": True, "top_k": 0}
    assert options(engine, {"top_k": -1})["top_k"] == 0
    assert options(engine, {"top_k": 5})["top_k"] == 5


def test_without_temperature_nothing_is_sampled(engine: TransformersEngine):
    greedy = options(engine, {"temperature": 0, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "max_tokens": 7})
    assert greedy == {"max_new_tokens": 7, "do_sample": False, "top_k": 0}


def test_a_completion_ends_with_the_model_s_tokens_and_those_of_the_job(engine: TransformersEngine):
    request = Request([1], {"stop_token_ids": [7]}, seed=0, stop_token_ids=(9,))
    assert engine._options(request)[1] == {2, 3, 7, 9}
    engine._model.generation_config.eos_token_id = [4, 5]
    engine._tokenizer.eos_token_id = None
    assert engine._options(Request([1], {}, seed=0))[1] == {4, 5}


def test_where_a_batch_fails_all_that_wait_are_told(engine: TransformersEngine):
    begun, go = threading.Event(), threading.Event()

    def batch(requests: Any) -> Any:
        begun.set()
        go.wait(10)
        raise RuntimeError("CUDA error")

    engine._batch = batch  # type: ignore[method-assign]

    async def run() -> list[Any]:
        engine._loop = asyncio.create_task(engine._serve())
        first = asyncio.create_task(engine.generate(Request([1], {}, seed=0)))
        await asyncio.to_thread(begun.wait, 10)
        late = asyncio.create_task(engine.generate(Request([1], {}, seed=0)))
        await asyncio.sleep(0)
        go.set()
        answers = await asyncio.wait_for(asyncio.gather(first, late, return_exceptions=True), 10)
        with pytest.raises(EngineDead, match="stopped"):
            await engine.generate(Request([1], {}, seed=0))
        with contextlib.suppress(RuntimeError):
            await engine._loop
        return answers

    for answer in asyncio.run(run()):
        assert isinstance(answer, EngineDead)
        assert str(answer) == "transformers failed: RuntimeError", "its text may quote a prompt"


def test_what_nobody_waits_for_any_more_is_not_generated(engine: TransformersEngine):
    batches: list[list[int]] = []

    def batch(requests: Any) -> Any:
        batches.append([request.seed for request in requests])
        return [Completion("x", "stop", 1, 1) for _ in requests]

    engine._batch = batch  # type: ignore[method-assign]

    async def run() -> None:
        engine._loop = asyncio.create_task(engine._serve())
        asked = [asyncio.create_task(engine.generate(Request([1], {}, seed=seed))) for seed in range(4)]
        await asyncio.sleep(0)
        asked[1].cancel()
        asked[2].cancel()
        await asyncio.gather(asked[0], asked[3])
        lonely = asyncio.create_task(engine.generate(Request([1], {}, seed=5)))
        await asyncio.sleep(0)
        lonely.cancel()
        await engine.generate(Request([1], {}, seed=6))
        engine._loop.cancel()

    asyncio.run(asyncio.wait_for(run(), 10))
    assert batches == [[0, 3], [6]]
