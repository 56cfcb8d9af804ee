"""Real vLLM on the embedded model."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from batchgen.commit import committed, new_attempt
from batchgen.embedded import grammar
from batchgen.engines import build_engine
from batchgen.engines.arguments import CODE_FIELDS, OWNED_ENGINE, _frozen, engine_arguments
from batchgen.engines.base import Engine, EngineSpec, Request
from batchgen.engines.vllm import VllmEngine
from batchgen.errors import EngineDead, EngineError, EngineStartError, EngineStopped, RowRejected
from batchgen.job import Job
from batchgen.merge import merge_run
from batchgen.model import Model
from batchgen.publish import publish_folder
from tests.helpers import worker_on

pytestmark = pytest.mark.engine
# The recipes with a second model are in test_serve.py and test_rewards.py.
RECIPES = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))
JOBS = [path for path in RECIPES if "\nmodels:" not in path.read_text()]


def test_the_frozen_arguments_are_those_of_the_installed_vllm():
    from batchgen.engines.vllm_freeze import frozen_arguments

    assert frozen_arguments() == _frozen()


def test_every_argument_by_which_vllm_imports_or_runs_something_is_refused():
    """By their names: a field of a later vLLM that is of this kind is found here."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    names_code = re.compile(r"_(cls|class|plugin|module|module_path|passes|processors)$|^pylogging_config_file$")
    found = set()
    for field in dataclasses.fields(AsyncEngineArgs):
        if names_code.search(field.name):
            found.add((field.name,))
        for kind in (field.type, *get_args(field.type)):
            if dataclasses.is_dataclass(kind):
                found |= {(field.name, each.name) for each in dataclasses.fields(kind) if names_code.search(each.name)}
    assert ("structured_outputs_config", "reasoning_parser_plugin") in found
    assert {path for path in found if path[0] not in OWNED_ENGINE and path not in CODE_FIELDS} == set()


def test_on_a_cpu_the_engine_is_one_process_and_needs_no_shared_memory(vllm_engine: Engine):
    assert vllm_engine._llm.vllm_config.parallel_config.distributed_executor_backend == "uni"


def configured(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> Any:
    """vLLM's configuration of an engine that is not started."""
    from vllm.v1.engine.async_llm import AsyncLLM

    made = []

    def configure(arguments: Any, usage_context: Any) -> None:
        made.append(arguments.create_engine_config(usage_context))
        raise RuntimeError("configured")

    monkeypatch.setattr(AsyncLLM, "from_engine_args", configure)
    with pytest.raises(EngineStartError, match="configured") as caught:
        asyncio.run(build_engine(EngineSpec("embedded", arguments={"max_model_len": 512, **arguments}, seed=1)).start())
    assert not caught.value.final  # nothing but vLLM's configuration says that a start can never work
    return made[0]


def test_what_vllm_s_configuration_refuses_is_not_tried_again():
    arguments = {"max_model_len": 512, "max_num_seqs": 4, "max_num_batched_tokens": 2}
    with pytest.raises(EngineStartError) as caught:
        asyncio.run(build_engine(EngineSpec("embedded", arguments=arguments, seed=1)).start())
    assert caught.value.final
    assert str(caught.value).startswith("vLLM did not start: max_num_batched_tokens (2) must be greater than or equal")


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"allowed_token_ids": [10**6]}, "out-of-vocab"),
        ({"logit_bias": {10**6: 1.0}}, "out-of-vocab"),
        ({"thinking_token_budget": 5}, "reasoning"),
        ({"allowed_token_ids": []}, "empty"),
    ],
)
def test_what_vllm_refuses_of_a_step_s_sampling_is_told_before_any_row(
    vllm_engine: Engine, loop_thread, sampling: dict[str, Any], said: str
):
    with pytest.raises(EngineStartError, match=said) as refused:
        loop_thread.run(vllm_engine._try("steps[1]", {"max_tokens": 5, **sampling}))
    assert refused.value.final
    assert str(refused.value).startswith("steps[1]: vLLM does not take its sampling parameters: ")


def test_a_step_s_sampling_is_tried_with_as_few_tokens_as_it_allows(vllm_engine: Engine, monkeypatch):
    asked = []

    async def generate(request: Request) -> None:
        asked.append(request.sampling["max_tokens"])

    monkeypatch.setattr(vllm_engine, "generate", generate)
    for sampling in ({}, {"max_tokens": None}, {"min_tokens": 3, "max_tokens": 100}):
        asyncio.run(vllm_engine._try("steps[0]", sampling))
    assert asked == [1, 1, 3]


def test_an_argument_that_the_installed_vllm_lacks_is_named():
    # A job may only have the names of the pinned version; an older one, which is legal too, lacks some of those.
    arguments = {"max_model_len": 512, "of_a_later_version": 1}
    with pytest.raises(EngineStartError, match=r"installed here \(.*\) has no argument 'of_a_later_version'") as caught:
        asyncio.run(build_engine(EngineSpec("embedded", arguments=arguments, seed=1)).start())
    assert caught.value.final


def test_a_build_for_gpus_that_finds_none_says_so(monkeypatch: pytest.MonkeyPatch):
    from vllm.platforms import current_platform

    # What its platform is called then; the builds for GPUs themselves are not installed here.
    monkeypatch.setattr(type(current_platform), "device_type", "")
    with pytest.raises(EngineStartError, match="finds no device here") as caught:
        asyncio.run(build_engine(EngineSpec("embedded", arguments={"max_model_len": 512}, seed=1)).start())
    assert caught.value.final


def test_an_engine_has_vllm_s_sizes_for_offline_batches(monkeypatch: pytest.MonkeyPatch):
    from batchgen.engines.vllm import slots_of

    slots = slots_of(configured(monkeypatch).scheduler_config)
    assert slots == 256, "an `AsyncLLM` that is not told what it is for takes 128"
    assert slots_of(configured(monkeypatch, max_num_seqs=64).scheduler_config) == 64
    assert slots_of(configured(monkeypatch, max_num_seqs=64, max_num_active_seqs=32).scheduler_config) == 32


def test_an_engine_takes_as_many_gpus_as_vllm_has_workers():
    from vllm.config import ParallelConfig

    names = [name for name in engine_arguments() if name.endswith("parallel_size")]
    assert len(names) == 4
    for name in names:
        # Decode contexts are parts of a tensor-parallel group.
        engine = {name: 2, **({"tensor_parallel_size": 2} if name == "decode_context_parallel_size" else {})}
        config = ParallelConfig(**engine, distributed_executor_backend="mp")
        assert Model(path="embedded", engine=engine).gpus == config.world_size == 2


def test_mappings_of_a_job_become_vllm_s_configs(monkeypatch: pytest.MonkeyPatch):
    config = configured(
        monkeypatch,
        reasoning_parser="granite",
        eplb_config={"window_size": 10},
        compilation_config={"mode": 0},
    )
    assert config.structured_outputs_config.reasoning_parser == "granite"
    assert config.structured_outputs_config.disable_any_whitespace
    assert config.parallel_config.eplb_config.window_size == 10


def test_a_cpu_s_drafts_are_refused_as_it_accepts_what_the_model_would_not_write():
    """Where this fails because the kernel writes what it should, the refusal can go."""
    import torch
    from vllm.platforms import current_platform
    from vllm.utils.cpu_triton_utils import _expand_kernel_impl

    current_platform.import_kernels()
    temperatures = torch.full((3,), 7.0)
    _expand_kernel_impl(temperatures, torch.tensor([1.0, 0.5]), torch.tensor([1, 3]), 0, 1)
    assert temperatures.tolist() != [1.0, 0.5, 0.5]
    arguments = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}}
    with pytest.raises(EngineStartError, match=r"model\.engine: speculative_config: vLLM's CPU build") as caught:
        asyncio.run(build_engine(EngineSpec("embedded", arguments=arguments, seed=1)).start())
    assert caught.value.final


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (["stop"], "text 0"),
        (["error", "stop"], "text 1"),
        (["raise", "stop"], "text 1"),
        (["raise", "others are answered", "raise"], RowRejected("engine_error")),
        (["error", "raise", "error"], RowRejected("engine_error")),
        (["raise", "raise", "raise"], EngineDead("vLLM fails at what it is asked: ZeroDivisionError")),
        (["raise", "dead"], EngineDead("vLLM's engine process died")),
        (["abort"], EngineDead("vLLM breaks requests off")),
        (["abort", "ends"], EngineStopped("vLLM's engine process was told to end")),
        ([], EngineDead("vLLM ended a request without an output")),
    ],
)
def test_what_vllm_broke_off_is_no_completion(
    reasons: list[str], expected: str | Exception, monkeypatch: pytest.MonkeyPatch
):
    """vLLM itself gives an answer that is aborted in tests/faults/test_kill_vllm.py."""
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    monkeypatch.setattr("batchgen.engines.vllm._PAUSE", 0)

    class Broken:
        asked = 0
        errored = "ends" in reasons

        async def generate(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
            number, self.asked = self.asked, self.asked + 1
            if reasons:
                reason = reasons[number]
                if reason == "dead":
                    raise EngineDeadError()
                if reason == "raise":
                    raise EngineGenerateError() from ZeroDivisionError()
                if reason == "others are answered":
                    engine._answered += 1
                    reason = "error"
                answer = {"text": f"text {number}", "finish_reason": reason, "token_ids": [5, 6]}
                yield SimpleNamespace(outputs=[SimpleNamespace(**answer, stop_reason=None, logprobs=None)])

    engine = VllmEngine(EngineSpec("embedded"))
    engine._llm, engine._max_model_len = Broken(), 100
    if isinstance(expected, Exception):
        with pytest.raises(EngineError if isinstance(expected, EngineError) else RowRejected, match=str(expected)) as e:
            asyncio.run(engine.generate(Request([1, 2], {}, seed=1)))
        assert type(e.value) is type(expected)
    else:
        completion = asyncio.run(engine.generate(Request([1, 2], {}, seed=1)))
        assert (completion.text, completion.finish_reason, completion.output_tokens) == (expected, "stop", 2)


def test_what_a_process_died_of_is_looked_up_once_for_all_requests(monkeypatch: pytest.MonkeyPatch):
    from vllm.v1.engine.exceptions import EngineDeadError

    looked: list[int] = []

    class Dead:
        errored = True

        async def generate(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
            raise EngineDeadError()
            yield

    engine = VllmEngine(EngineSpec("embedded"))
    engine._llm, engine._max_model_len = Dead(), 100
    monkeypatch.setattr(engine._log, "cause", lambda: (looked.append(1), "MemoryError: of a row's text")[1])
    for number in range(3):
        with pytest.raises(EngineDead, match=r"^vLLM's engine process died of MemoryError$"):
            asyncio.run(engine.generate(Request([1, 2], {}, seed=number)))
    assert looked == [1]


def test_an_engine_that_is_stopped_rejects_no_row():
    engine = VllmEngine(EngineSpec("embedded"))
    asyncio.run(engine.stop())
    with pytest.raises(EngineDead, match="the engine is stopped"):
        asyncio.run(engine.generate(Request([1, 2], {}, seed=1)))


def test_sampling_parameters_reach_the_engine(vllm_engine: Engine, loop_thread):
    prompt = vllm_engine.chat.prompt([{"role": "user", "content": "What is the capital of Japan?"}]).token_ids

    def ask(**sampling) -> object:
        return loop_thread.run(vllm_engine.generate(Request(prompt, sampling, seed=1, key=json.dumps(sampling))))

    greedy = ask(temperature=0.0, max_tokens=40)
    assert greedy.text.strip() == "The capital of Japan is Tokyo."
    assert greedy.finish_reason == "stop"
    cut = ask(temperature=0.0, max_tokens=3)
    assert (cut.finish_reason, cut.output_tokens) == ("length", 3)
    assert "Tokyo" not in ask(temperature=0.0, max_tokens=40, stop=["Tokyo"]).text
    looping = {"temperature": 0.0, "max_tokens": 400, "ignore_eos": True, "logit_bias": {str(prompt[-1]): 100}}
    looped = ask(**looping, repetition_detection={"max_pattern_size": 4, "min_count": 5})
    assert (looped.finish_reason, looped.output_tokens) == ("repetition", 5)
    choice = ask(temperature=0.0, max_tokens=40, structured_outputs={"choice": ["Lima", "Oslo"]})
    assert choice.text in ("Lima", "Oslo")
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 5}}, "required": ["n"]}
    assert 1 <= json.loads(ask(temperature=0.0, max_tokens=90, structured_outputs={"json": schema}).text)["n"] <= 5
    assert re.fullmatch("[ab]{3}", ask(temperature=0.0, max_tokens=9, structured_outputs={"regex": "[ab]{3}"}).text)
    scored = ask(temperature=0.0, max_tokens=40, logprobs=0)
    assert len(scored.logprobs) == scored.output_tokens
    assert all(value <= 0 for value in scored.logprobs)


def test_the_tokens_of_a_completion_are_those_of_its_text(vllm_engine: Engine, loop_thread):
    prompt = vllm_engine.chat.prompt([{"role": "user", "content": "What is the capital of Japan?"}])

    def ask(**sampling):
        request = Request(
            prompt.token_ids, {"temperature": 0.0, **sampling}, seed=1, key=f"tokens-{json.dumps(sampling)}"
        )
        return loop_thread.run(vllm_engine.generate(request))

    whole = ask(max_tokens=40)
    known = vllm_engine.chat.continued(prompt, whole)
    messages = [
        {"role": "user", "content": "What is the capital of Japan?"},
        {"role": "assistant", "content": whole.text},
    ]
    follow_up = vllm_engine.chat.user_prompt(messages, known)
    assert follow_up == vllm_engine.chat.user_prompt(messages)
    assert list(follow_up.token_ids)[: len(known.token_ids)] == list(known.token_ids)
    assert len(ask(max_tokens=3).token_ids) == 3
    assert ask(max_tokens=40, stop=["Tokyo"]).token_ids == []


def test_vllm_drops_what_nobody_waits_for_any_more(vllm_engine: Engine, loop_thread):
    prompt = vllm_engine.chat.user_prompt([]).token_ids
    processor = vllm_engine._llm.output_processor

    async def go() -> list[int]:
        sampling = {"max_tokens": 1500, "ignore_eos": True}
        requests = [Request(prompt, sampling, n, key=f"dropped-{n}", priority=n) for n in range(3 * vllm_engine.slots)]
        asked = [asyncio.create_task(vllm_engine.generate(request)) for request in requests]
        while processor.get_num_unfinished_requests() < len(asked):
            await asyncio.sleep(0.01)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        return [processor.get_num_unfinished_requests(), sum(task.cancelled() for task in asked) - len(asked)]

    assert loop_thread.run(go()) == [0, 0]
    # Behind what was dropped, which would take the engine 40 seconds and more.
    last = vllm_engine.generate(Request(prompt, {"max_tokens": 2}, 0, key="after", priority=1000))
    assert loop_thread.run(asyncio.wait_for(last, 20)).output_tokens


def test_magpie_user_turns_are_the_grammar_s_and_end_cleanly(vllm_engine: Engine, loop_thread):
    chat = vllm_engine.chat
    stop, stop_token_ids = chat.user_stop
    system = [{"role": "system", "content": "You are an AI assistant that helps with math problems."}]
    prompt = chat.user_prompt(system).token_ids

    async def turns() -> list[str]:
        requests = [
            Request(prompt, {"temperature": 0.7, "max_tokens": 60}, i, stop, stop_token_ids, f"turn-{i}")
            for i in range(40)
        ]
        return [c.text for c in await asyncio.gather(*(vllm_engine.generate(request) for request in requests))]

    parsed = [grammar.parse(text) for text in loop_thread.run(turns())]
    assert sum(p is not None and p.topic.name == "arithmetic" for p in parsed) >= 34


ANY_VERDICT = {
    "deita": ["steps.2.keep.complexity.min=1", "merge.keep.quality.min=1"],
    "rubric": ["merge.keep.score.min=1"],
}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_recipe_runs_to_a_dataset(path: Path, vllm_engine: Engine, loop_thread, tmp_path: Path):
    from datasets import load_dataset

    overrides = ["model.path=embedded", "model.engine={max_model_len: 2048}", f"output={tmp_path / 'run'}"]
    # The embedded model's verdicts are no judgement: what recipes ask of them would leave a row or not by chance.
    overrides += ANY_VERDICT.get(path.stem, [])
    job = Job.load(path, overrides)
    if job.source.count is not None:
        if path.stem == "preference":
            # The tiny model seldom has two answers to a question, and the same answers make no pair.
            overrides.append("steps.1.sampling={temperature: 1.8}")
        # Long rationales of a tiny judge take most of the time of all recipes.
        job = Job.load(path, [*overrides, f"source.count={12 if path.stem == 'preference' else 24}"])

    async def go():
        worker, plan, seeds, store = worker_on(vllm_engine, job)
        shards = [worker.shard(s, new_attempt(), seeds.slice(s.start, s.stop)) for s in plan.shards]
        await asyncio.gather(*shards)
        return plan, store

    plan, store = loop_thread.run(go())
    manifests = committed(store, plan)
    assert sum(m.ok + m.rejected for m in manifests.values()) == plan.rows
    # The embedded model gives all its answers one rating now and then, which is no preference.
    assert sum(m.ok for m in manifests.values()) >= (0.2 if path.stem == "preference" else 0.7) * plan.rows
    dataset = load_dataset(
        str(publish_folder(store, merge_run(store, plan, job), tmp_path / "dataset")),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert len(dataset) >= 2
    texts = ["prompt", "chosen", "rejected"] if path.stem == "preference" else ["messages"]
    for text in texts:
        assert {message["role"] for message in dataset[0][text]} <= {"user", "assistant"}
        assert all(message["content"].strip() for row in dataset for message in row[text])
