"""How many engines a job gets, and on what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchgen.engines.base import EngineSpec
from batchgen.errors import JobError, UserError
from batchgen.fleet import HostConfig, Placement, place_engines
from batchgen.job import Job
from batchgen.plan import make_plan
from batchgen.seeds import load_seeds


def job(engine: dict[str, Any] | None = None, **more: Any) -> Job:
    model = {"path": "embedded", "engine": engine or {}}
    return Job.of(
        {"name": "j", "source": {"count": 1}, "model": model, "steps": [{"task": "magpie"}], "output": "x", **more}
    )


@pytest.mark.parametrize(
    ("engine", "more", "machines", "local", "placement"),
    [
        ({}, {}, [0], True, Placement(1)),
        ({}, {"engines": 3}, [0], True, Placement(3)),
        ({}, {"engines": 3}, [0, 0], False, Placement(3)),
        ({}, {}, [2], True, Placement(2, 1)),
        ({}, {}, [0, 8, 8], False, Placement(16, 1, elastic=True)),
        ({}, {"engines": 5}, [0, 8, 8], False, Placement(5, 1)),
        ({}, {"engines": 16}, [0, 8, 8], False, Placement(16, 1)),
        ({"tensor_parallel_size": 2}, {}, [3, 3], False, Placement(2, 2, elastic=True)),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, {}, [8], True, Placement(2, 4)),
        ({}, {"wait_for_gpus": True, "engines": 9}, [0, 8], False, Placement(9, 1)),
        ({}, {"wait_for_gpus": True, "engines": 2}, [0], False, Placement(2, 1)),
        ({}, {"wait_for_gpus": True}, [0], False, Placement(1, 1, elastic=True)),
        ({"tensor_parallel_size": 4}, {"wait_for_gpus": True}, [2, 9], False, Placement(2, 4, elastic=True)),
        ({}, {"engines_per_gpu": 3}, [0], True, Placement(1)),
        ({}, {"engines_per_gpu": 3}, [2], True, Placement(6, 1, share=3)),
        ({}, {"engines_per_gpu": 3}, [0, 8, 1], False, Placement(27, 1, elastic=True, share=3)),
        ({}, {"engines_per_gpu": 3, "engines": 4}, [8], False, Placement(4, 1, share=3)),
        ({}, {"engines_per_gpu": 2, "wait_for_gpus": True}, [2], False, Placement(4, 1, elastic=True, share=2)),
    ],
)
def test_an_engine_a_gpu_or_as_many_as_fit(engine, more, machines, local, placement):
    assert place_engines(job(engine, **more), machines, local) == placement


@pytest.mark.parametrize(
    ("engine", "more", "machines", "message"),
    [
        ({}, {}, [0, 0], "engines: the cluster has no GPU, at least not yet"),
        ({"tensor_parallel_size": 4}, {}, [2, 3], "an engine takes 4 GPUs of one machine; none has more than 3"),
        (
            {"tensor_parallel_size": 2},
            {"engines": 2},
            [3, 1],
            r"2 engines take 2 GPUs each; .* has room for 1 \(wait_for_gpus: true has them wait for more machines\)$",
        ),
        (
            {},
            {"engines": 5, "engines_per_gpu": 2},
            [2],
            "5 engines need a GPU for every 2; the cluster has room for 4 ",
        ),
    ],
)
def test_no_room_is_told_before_anything_starts(engine, more, machines, message):
    with pytest.raises(UserError, match=message):
        place_engines(job(engine, **more), machines, local=False)


def test_on_one_machine_there_is_nothing_to_wait_for():
    with pytest.raises(UserError, match=r"3 engines take 1 GPU each; the cluster has room for 2$"):
        place_engines(job(engines=3), [2], local=True)
    with pytest.raises(UserError, match="wait_for_gpus: no machine joins a run on this machine alone"):
        place_engines(job(wait_for_gpus=True), [2], local=True)


TWO = {
    "models": {"judge": {"path": "embedded"}},
    "steps": [{"task": "magpie", "only_instruction": True}, {"task": "text_generation", "model": "judge"}],
}


def own(share: float) -> dict[str, Any]:
    return {"gpu_memory_utilization": share}


def judge(share: float) -> dict[str, Any]:
    return {**TWO, "models": {"judge": {"path": "embedded", "engine": own(share)}}}


@pytest.mark.parametrize(
    ("engine", "more", "shares"),
    [
        ({}, {}, {None: None}),
        (own(0.5), {}, {None: None}),
        ({}, {"engines_per_gpu": 2}, {None: 0.45}),
        ({}, {"engines_per_gpu": 3}, {None: 0.3}),
        (own(0.3), {"engines_per_gpu": 3}, {None: 0.3}),
        ({}, TWO, {None: 0.45, "judge": 0.45}),
        ({}, judge(0.6), {None: 0.3, "judge": 0.6}),
        (own(0.35), judge(0.6), {None: 0.35, "judge": 0.6}),
        ({}, {**judge(0.3), "engines_per_gpu": 2}, {None: 0.15, "judge": 0.3}),
        ({}, {**TWO, "models": {"judge": {"path": "chaos"}}}, {None: None}),
        ({}, {**TWO, "models": {"judge": {"path": "embedded", "backend": "transformers"}}}, {None: None}),
        ({"tensor_parallel_size": 2}, TWO, {None: 0.45, "judge": 0.45}),
    ],
)
def test_models_that_are_on_a_gpu_at_once_share_its_memory(engine, more, shares, tmp_path: Path):
    made = job(engine, **more)
    config = HostConfig(made, make_plan(made, load_seeds(made.source)), str(tmp_path), seed=0)
    specs = {name: config.engine_spec(name) for name, model in made.used_models.items() if model.backend == "vllm"}
    given = {name: spec.gpu_memory for name, spec in specs.items() if spec.path != "chaos"}
    assert given == {name: share if share is None else pytest.approx(share) for name, share in shares.items()}


@pytest.mark.parametrize(
    ("engine", "more", "message"),
    [
        (
            {"tensor_parallel_size": 2},
            {"engines_per_gpu": 2},
            "engines_per_gpu: an engine that takes 2 GPUs shares none",
        ),
        (own(0.6), {"engines_per_gpu": 2}, "model.engine.gpu_memory_utilization: 2 models would .* with 1.20 of its"),
        (own(0.6), judge(0.6), "model.engine.gpu_memory_utilization: 2 models would be on a GPU at once, with 1.20 of"),
        (
            {},
            judge(0.9),
            "models.judge.engine.gpu_memory_utilization: 2 models .* with 0.90 of its memory as asked for",
        ),
        ({}, {**judge(0.45), "engines_per_gpu": 2}, "4 models would be on a GPU at once, with 0.90 of its memory"),
        ({}, {"engines_per_gpu": 17}, "engines_per_gpu: input should be less than or equal to 16, got 17"),
    ],
)
def test_what_has_no_room_on_a_gpu_is_refused(engine, more, message):
    with pytest.raises(JobError, match=message):
        job(engine, **more)


def test_so_many_models_that_none_could_start_are_refused():
    names = ("a", "b", "c")
    steps = [{"task": "text_generation", "model": name, "output_mappings": {"generation": name}} for name in names]
    models = {name: {"path": "embedded"} for name in names}
    with pytest.raises(JobError, match="engines_per_gpu: 64 models would be on a GPU at once, which leaves each less"):
        job(models=models, steps=[{"task": "magpie"}, *steps], engines_per_gpu=16)


def test_models_of_one_job_share_an_engine_s_gpus_and_servers_take_none():
    judge = {"path": "judge", "backend": "openai", "engine": {"base_url": "http://localhost:1/v1"}}
    models = {"big": {"path": "embedded", "engine": {"tensor_parallel_size": 2}}, "judge": judge}
    steps = [{"task": "magpie", "only_instruction": True}, {"task": "text_generation", "model": "big"}]
    assert place_engines(job(models=models, steps=steps), [4], local=True) == Placement(2, 2)
    assert place_engines(job(models=models), [4], local=True) == Placement(4, 1), "no step runs on the big one"
    assert place_engines(job(model=judge, steps=[{"task": "genstruct"}]), [4], local=False) == Placement(1)


def test_each_model_has_a_spec_of_its_own_at_the_commit_that_the_run_began_with(tmp_path: Path):
    models = {"big": {"path": "org/big", "revision": "v2"}, "new": {"path": "org/new", "revision": "main"}}
    described = job({"max_model_len": 99}, models=models, output=str(tmp_path))
    plan = make_plan(described, load_seeds(described.source))
    config = HostConfig(described, plan.with_versions({None: {"files": "x"}, "new": {"commit": "c0ffee"}}), "store", 7)
    asked = {"steps[0]": {"max_tokens": 1024}}
    assert config.engine_spec() == EngineSpec("embedded", arguments={"max_model_len": 99}, seed=7, samplings=asked)
    assert config.engine_spec("big") == EngineSpec("org/big", revision="v2", seed=7)
    assert config.engine_spec("new") == EngineSpec("org/new", revision="c0ffee", seed=7)


def test_an_engine_is_told_what_the_steps_on_it_ask_for():
    steps = [
        {"task": "magpie", "only_instruction": True, "sampling": {"top_p": 0.5}},
        {"task": "drop_duplicates"},
        {"task": "text_generation", "model": "big"},
        {"task": "instruction_backtranslation", "sampling": {"n": 1, "max_tokens": 7}, "logprobs": True},
    ]
    described = job({}, models={"big": {"path": "org/big"}}, steps=steps, sampling={"temperature": 0.5})
    config = HostConfig(described, make_plan(described, load_seeds(described.source)), "store", 7)
    assert config.engine_spec().samplings == {
        "steps[0]": {"temperature": 0.5, "top_p": 0.5, "max_tokens": 1024},
        "steps[3]": {"temperature": 0.5, "max_tokens": 7, "logprobs": 0},
    }
    assert config.engine_spec("big").samplings == {"steps[2]": {"temperature": 0.5, "max_tokens": 1024}}
