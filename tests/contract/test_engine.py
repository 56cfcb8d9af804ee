"""The engine contract, on every engine."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchgen.embedded import MODEL_PATH
from batchgen.engines import build_engine
from batchgen.engines.base import Completion, Engine, EngineSpec, Request
from batchgen.engines.chaos import ChaosEngine
from batchgen.errors import RowRejected

HOLD = "Hold this slot."
QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]


@pytest.fixture(scope="module")
def transformers_engine(loop_thread) -> Iterator[Engine]:
    import torch

    # Beside other busy processes two threads wait for each other at every step of so small a model: a batch of a
    # thousand tokens took minutes.
    torch.set_num_threads(1)
    engine = build_engine(EngineSpec("embedded", backend="transformers", arguments={"max_model_len": 2048}, seed=3))
    loop_thread.run(engine.start())
    yield engine
    loop_thread.run(engine.stop())


WITH_A_MODEL = ["transformers", pytest.param("vllm", marks=pytest.mark.engine)]


@pytest.fixture(params=["chaos", *WITH_A_MODEL])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "chaos":
        return ChaosEngine(EngineSpec("chaos", arguments={"max_model_len": 2048, "hang_on": HOLD}))
    return request.getfixturevalue(f"{request.param}_engine")


@pytest.fixture
def ask(engine: Engine, loop_thread):
    """Asks the engine something and returns the completion."""
    serial = iter(range(10_000))

    def request(**changes) -> Request:
        number = next(serial)
        whole = Request(
            engine.chat.prompt(QUESTION).token_ids, {"max_tokens": 40}, seed=number, key=f"{id(serial)}-{number}"
        )
        return replace(whole, **changes)

    def asks(count: int = 1, **changes):
        async def all_of_them():
            return await asyncio.gather(*(engine.generate(request(**changes)) for _ in range(count)))

        return loop_thread.run(all_of_them())

    return asks


def test_a_completion_says_what_it_cost(ask, engine: Engine):
    (completion,) = ask()
    assert completion.text.strip()
    assert completion.finish_reason == "stop"
    assert completion.input_tokens == len(engine.chat.prompt(QUESTION).token_ids)
    assert 0 < completion.output_tokens <= 40
    assert engine.slots >= 1
    assert engine.model_name


def test_special_tokens_are_not_part_of_the_text(ask):
    assert all("<|im_" not in completion.text for completion in ask(20))


def test_the_same_prompt_many_times_gives_different_texts(ask, engine: Engine):
    texts = [
        c.text
        for c in ask(
            40,
            token_ids=engine.chat.user_prompt([]).token_ids,
            stop=engine.chat.user_stop[0],
            stop_token_ids=engine.chat.user_stop[1],
        )
    ]
    assert len(set(texts)) > 20


def test_a_prompt_that_is_too_long_rejects_its_row_alone(ask, engine: Engine):
    too_long = engine.chat.prompt([{"role": "user", "content": "long " * 5000}]).token_ids
    with pytest.raises(RowRejected, match="prompt_too_long"):
        ask(token_ids=too_long)
    assert ask()[0].text


def test_more_requests_than_slots_are_all_answered(ask, engine: Engine):
    assert len(ask(3 * engine.slots)) == 3 * engine.slots


def test_lower_priorities_go_first(engine: Engine, loop_thread):
    prompt = engine.chat.user_prompt([]).token_ids
    holding = engine.chat.prompt([{"role": "user", "content": HOLD}]).token_ids
    ended: list[int] = []

    async def one(number: int, priority: int):
        await engine.generate(
            Request(prompt, {"max_tokens": 12}, number, key=f"p{priority}-{number}", priority=priority)
        )
        ended.append(priority)

    def holder(number: int) -> asyncio.Task[Completion]:
        request = Request(holding, {"min_tokens": 400, "max_tokens": 400}, number, key=f"holder-{number}", priority=0)
        return asyncio.create_task(engine.generate(request))

    async def go():
        # They hold all slots until the others wait: on the way to another process what is given up comes after these.
        holders = [holder(number) for number in range(engine.slots)]
        waves = [asyncio.create_task(one(n, priority)) for priority in (3, 2, 1) for n in range(engine.slots)]
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not ended
        for task in holders:
            task.cancel()
        await asyncio.gather(*waves)

    loop_thread.run(go())
    # The other way round than they came.
    by_priority = [sum(i for i, each in enumerate(ended) if each == priority) for priority in (1, 2, 3)]
    assert by_priority == sorted(by_priority)


def test_tokens_are_told_before_their_completions_end(engine: Engine, loop_thread):
    if isinstance(engine, ChaosEngine):
        engine = ChaosEngine(EngineSpec("chaos", arguments={"latency": 2.0, "tokens": 400}))
    prompt = engine.chat.prompt(QUESTION).token_ids

    async def go() -> tuple[list[int], int]:
        assert engine.tokens_in_flight == 0
        tasks = [
            asyncio.create_task(
                engine.generate(Request(prompt, {"min_tokens": 200, "max_tokens": 200}, number, key=f"told-{number}"))
            )
            for number in range(3)
        ]
        told = []
        while not any(task.done() for task in tasks):
            told.append(engine.tokens_in_flight)
            await asyncio.sleep(0.002)
        completions = await asyncio.gather(*tasks)
        assert engine.tokens_in_flight == 0
        return told, sum(completion.output_tokens for completion in completions)

    told, total = loop_thread.run(go())
    rising = told[: told.index(max(told)) + 1]  # one that has ended is no longer in flight, before it is answered
    assert rising == sorted(rising)
    assert len(set(told)) > 3
    assert max(told) <= total


def test_requests_that_are_given_up_leave_their_slots_to_others(engine: Engine, loop_thread):
    prompt, slots = engine.chat.user_prompt([]).token_ids, engine.slots

    async def go() -> int:
        def asked(number: int) -> asyncio.Task[Completion]:
            request = Request(prompt, {"max_tokens": 400}, number, key=f"given-up-{number}", priority=number)
            return asyncio.create_task(engine.generate(request))

        tasks = [asked(number) for number in range(3 * slots)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        left = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError | Completion) for each in left)
        return len(await asyncio.wait_for(asyncio.gather(*(asked(3 * slots + n) for n in range(slots))), 60))

    assert loop_thread.run(go()) == slots


with_a_model = pytest.mark.parametrize("engine", WITH_A_MODEL, indirect=True)


@with_a_model
def test_greedy_answers_limits_and_stops(ask):
    greedy = {"temperature": 0.0, "max_tokens": 40}
    assert ask(sampling=greedy)[0].text.strip() == "The capital of Japan is Tokyo."
    (cut,) = ask(sampling={"temperature": 0.0, "max_tokens": 3})
    assert (cut.finish_reason, cut.output_tokens) == ("length", 3)
    (stopped,) = ask(sampling={**greedy, "stop": ["Japan"]})
    assert stopped.text.strip() == "The capital of"
    assert stopped.finish_reason == "stop"


@with_a_model
def test_requests_of_different_sampling_go_side_by_side(engine: Engine, loop_thread):
    prompt = engine.chat.prompt(QUESTION).token_ids

    async def go():
        requests = [
            Request(
                prompt, {"temperature": 0.0, "max_tokens": 3 + number % 3}, number, key=f"side-{id(prompt)}-{number}"
            )
            for number in range(12)
        ]
        return await asyncio.gather(*(engine.generate(request) for request in requests))

    assert [completion.output_tokens for completion in loop_thread.run(go())] == [3 + n % 3 for n in range(12)]


def test_sampling_that_a_job_leaves_open_is_vllm_s_and_not_the_model_s_own(loop_thread, tmp_path: Path):
    """A model's generation config narrows what is drawn; vLLM, given SamplingParams, does not look at it."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL_PATH, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    narrow = {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.01, "repetition_penalty": 1.3}
    (folder / "generation_config.json").write_text(json.dumps(config | narrow))
    engine = build_engine(EngineSpec(str(folder), backend="transformers", arguments={"max_batch_size": 30}, seed=3))
    loop_thread.run(engine.start())
    prompt, (_, stop) = engine.chat.user_prompt([]).token_ids, engine.chat.user_stop

    async def ask():
        requests = (Request(prompt, {"max_tokens": 40}, number, stop_token_ids=stop) for number in range(30))
        return await asyncio.gather(*map(engine.generate, requests))

    completions = loop_thread.run(ask())
    loop_thread.run(engine.stop())
    assert len({completion.text for completion in completions}) > 15
    assert {completion.finish_reason for completion in completions} == {"stop"}


def test_a_long_neighbour_does_not_cut_a_completion(transformers_engine: Engine, loop_thread):
    """Requests are padded to the longest of their batch, which has little room left."""
    engine = transformers_engine
    short = engine.chat.prompt(QUESTION).token_ids
    long = (list(engine.chat.prompt([{"role": "user", "content": "long " * 2000}]).token_ids) * 3)[: 2048 - 3]

    async def ask(limit: int | None):
        sampling = {"temperature": 0.0, "max_tokens": limit}
        return await asyncio.gather(*(engine.generate(Request(ids, sampling, 0)) for ids in (short, long, short)))

    for limit in (40, None):
        first, cut, second = loop_thread.run(ask(limit))
        assert first.text.strip() == second.text.strip() == "The capital of Japan is Tokyo."
        assert first.finish_reason == "stop"
        assert cut.output_tokens <= 3


def test_a_completion_costs_the_same_whatever_goes_on_beside_it(transformers_engine: Engine, loop_thread):
    engine = transformers_engine
    questions = ("What is the capital of Japan?", "What is the capital of Japan? Explain your answer step by step.")
    prompts = [engine.chat.prompt([{"role": "user", "content": question}]).token_ids for question in questions]
    sampling = {"temperature": 0.0, "max_tokens": 40, "stop": ["Japan"]}

    async def ask(number: int):
        return await asyncio.gather(*(engine.generate(Request(ids, sampling, 0)) for ids in prompts[:number]))

    (alone,), (beside, other) = (loop_thread.run(ask(number)) for number in (1, 2))
    assert beside == alone
    assert other.output_tokens > alone.output_tokens, "or nothing went on beside it"


def test_padding_is_nothing_that_a_penalty_falls_on(loop_thread, tmp_path: Path):
    """Many models are padded with the token that ends their turns, which would not come any more."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL_PATH, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": config["eos_token"]}))
    engine = build_engine(EngineSpec(str(folder), backend="transformers", seed=3))
    loop_thread.run(engine.start())
    short = list(engine.chat.user_prompt([]).token_ids)
    prompts = [short, short + list(engine.chat.prompt(QUESTION).token_ids)[len(short) : len(short) + 3]]
    sampling = {"temperature": 0.0, "max_tokens": 40, "repetition_penalty": 50.0}

    async def ask(number: int):
        return await asyncio.gather(*(engine.generate(Request(ids, sampling, 0)) for ids in prompts[:number]))

    (alone,), (beside, _) = (loop_thread.run(ask(number)) for number in (1, 2))
    loop_thread.run(engine.stop())
    assert beside == alone


@with_a_model
def test_without_a_limit_a_completion_ends_with_the_context(ask):
    (completion,) = ask(sampling={"temperature": 0.0, "max_tokens": None})
    assert completion.text.strip() == "The capital of Japan is Tokyo."
