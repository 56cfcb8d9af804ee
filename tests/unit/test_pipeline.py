"""Pipelines that were written for distilabel, run here."""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from distilabel.distiset import Distiset
from distilabel.mixins.runtime_parameters import RuntimeParameter
from distilabel.models import (
    LLM,
    AzureOpenAILLM,
    ClientvLLM,
    InferenceEndpointsLLM,
    OpenAILLM,
    TogetherLLM,
    TransformersLLM,
    vLLM,
)
from distilabel.pipeline import InstructionResponsePipeline, Pipeline, routing_batch_function
from distilabel.steps import (
    CombineOutputs,
    DataSampler,
    ExpandColumns,
    FormatTextGenerationDPO,
    FormatTextGenerationSFT,
    GeneratorStep,
    GroupColumns,
    KeepColumns,
    LoadDataFromDicts,
    LoadDataFromDisk,
    LoadDataFromFileSystem,
    LoadDataFromHub,
    MergeColumns,
    PushToHub,
    RewardModelScore,
    Step,
    StepInput,
    StepResources,
    make_generator_step,
    step,
)
from distilabel.steps.tasks import (
    BitextRetrievalGenerator,
    ChatGeneration,
    EmbeddingTaskGenerator,
    EvolInstruct,
    EvolInstructGenerator,
    InstructionBacktranslation,
    Magpie,
    MagpieGenerator,
    MathShepherdCompleter,
    MathShepherdGenerator,
    SelfInstruct,
    StructuredGeneration,
    TextClassification,
    TextGeneration,
    UltraFeedback,
)
from pydantic import BaseModel, Field, SecretStr

from batchgen import JobError, from_pipeline
from batchgen.columns import trace_columns
from batchgen.engines.base import Completion, Request
from batchgen.engines.chaos import ChaosEngine
from batchgen.errors import PlanMismatch, SeedError, UserError
from batchgen.model import memory_shares
from batchgen.settle import read_plan
from batchgen.store import LocalStore
from batchgen.translation.segments import segments_of
from batchgen.translation.translate import translate

# `chaos` is a model here: the engine that needs none.
ROWS = [{"instruction": f"Write question {number}."} for number in range(6)]
# The columns of rows that are never loaded.
FIRST = {"instruction": "text", "input": "text", "number": "number", "text": "text"}

LISTING = vLLM(model="chaos", extra_kwargs={"reply": "1. Who?\n2. Where?"})


def llm(**generation):
    return vLLM(model="chaos", generation_kwargs=generation)


def translated(pipeline, columns: Mapping[str, str] | None = None) -> dict:
    """The jobs of a pipeline's segments, by name; `columns` are those of its rows, with their kinds."""
    steps = {name: pipeline.dag.get_step(name)["step"] for name in pipeline.dag}
    found: dict[Any, Any] = {}
    for segment in segments_of(pipeline.dag, steps):
        first = found[segment.parent].columns if segment.parent else columns or FIRST
        found[segment] = translate(segment, steps, first, Path("out"), {})
    return {segment.name: each.job for segment, each in found.items()}


def test_the_course_s_two_steps_run_with_the_last_line_changed(tmp_path: Path):
    with Pipeline() as pipeline:
        data = LoadDataFromDicts(data=ROWS)
        model = vLLM(model="chaos")
        gen_a = TextGeneration(llm=model, output_mappings={"generation": "instruction"})
        gen_b = TextGeneration(llm=model, output_mappings={"generation": "response"})
        data >> gen_a >> gen_b

    distiset = from_pipeline(pipeline, tmp_path / "out", in_process=True)
    assert list(distiset) == ["default"]
    dataset = distiset["default"]["train"]
    assert len(dataset) == 6
    asked = {row["instruction"] for row in ROWS}
    for row in dataset:
        assert row["instruction"] not in asked, "the first task wrote the instruction anew"
        assert row["instruction_before_text_generation_0"] in asked
        assert row["messages"] == [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["response"]},
        ]


class Character(BaseModel):
    name: str


@pytest.mark.parametrize(
    ("structured", "expected"),
    [
        ({"format": "json", "schema": Character}, {"json": Character.model_json_schema()}),
        ({"schema": Character.model_json_schema()}, {"json": Character.model_json_schema()}),
        ({"format": "json", "schema": '{"type": "object"}'}, {"json": '{"type": "object"}'}),
        ({"format": "regex", "schema": "[0-9]+"}, {"regex": "[0-9]+"}),
        ({"schema": "[0-9]+"}, {"regex": "[0-9]+"}),
    ],
)
def test_the_structure_of_an_llm_s_outputs_comes_along(structured: dict, expected: dict):
    model = vLLM(model="embedded", structured_output=structured)
    with Pipeline() as pipeline:
        LoadDataFromDicts(data=ROWS) >> TextGeneration(llm=model)
    (job,) = translated(pipeline).values()
    assert job.step_sampling(job.steps[0])["structured_outputs"] == expected


def test_the_same_call_goes_on(tmp_path: Path):
    with Pipeline() as pipeline:
        LoadDataFromDicts(data=ROWS) >> TextGeneration(llm=llm())
    first = from_pipeline(pipeline, tmp_path / "out", in_process=True)
    before = sorted((tmp_path / "out").rglob("attempts/*/*.parquet"))
    second = from_pipeline(pipeline, tmp_path / "out", in_process=True)
    assert sorted((tmp_path / "out").rglob("attempts/*/*.parquet")) == before
    assert first["default"]["train"].to_list() == second["default"]["train"].to_list()


def test_a_pipeline_is_given_more_rows_in_all_of_its_runs(tmp_path: Path):
    def branching(rows: int) -> Pipeline:
        with Pipeline("grown") as pipeline:
            data = LoadDataFromDicts(data=[{"instruction": f"What is {number}?"} for number in range(rows)])
            shared = TextGeneration(llm=llm(), name="shared", output_mappings={"generation": "text"})
            leaves = [
                TextGeneration(llm=llm(), name=name, input_mappings={"instruction": "text"}) for name in ("one", "two")
            ]
            data >> shared >> leaves
        return pipeline

    whole = from_pipeline(branching(12), tmp_path / "whole", in_process=True)
    from_pipeline(branching(5), tmp_path / "grown", in_process=True)
    with pytest.raises(PlanMismatch, match="seeds: 5 rows then, 12 now"):
        from_pipeline(branching(12), tmp_path / "grown", in_process=True)
    grown = from_pipeline(branching(12), tmp_path / "grown", in_process=True, extend=True)
    rows = {name: grown[name]["train"].to_list() for name in grown}
    assert rows == {name: whole[name]["train"].to_list() for name in whole}
    assert {name: len(of_leaf) for name, of_leaf in rows.items()} == {"one": 12, "two": 12}
    assert {len(read_plan(LocalStore(result.run)).earlier) for result in grown.runs.values()} == {1}


def test_every_leaf_is_a_config_and_shared_tasks_run_once(tmp_path: Path):
    with Pipeline() as pipeline:
        data = LoadDataFromDicts(data=ROWS, output_mappings={"instruction": "topic"})
        first = TextGeneration(
            llm=llm(),
            name="ask",
            input_mappings={"instruction": "topic"},
            output_mappings={"generation": "instruction"},
        )
        short = TextGeneration(llm=llm(max_new_tokens=10), name="short")
        hard = EvolInstruct(llm=llm(), name="hard", num_evolutions=1)
        data >> first >> [short, hard]

    distiset = from_pipeline(pipeline, tmp_path / "out", in_process=True)
    assert sorted(distiset) == ["hard", "short"]
    rows = {name: distiset[name]["train"].to_list() for name in distiset}
    asked = [{row["topic"]: row["instruction"] for row in rows[name]} for name in ("short", "hard")]
    assert asked[0] == asked[1], "both leaves continue the same rows"
    distiset.save_to_disk(tmp_path / "saved")
    with Pipeline() as again:
        load = LoadDataFromDisk(dataset_path=str(tmp_path / "saved"), is_distiset=True, config="short")
        load >> answer("more", input_mappings={"instruction": "generation"})
    more = from_pipeline(again, tmp_path / "more", in_process=True)["default"]["train"]
    assert sorted(more["generation_before_more"]) == sorted(row["generation"] for row in rows["short"])
    card = (distiset.dataset / "README.md").read_text()
    assert re.findall(r"^# (.*)$", card, re.MULTILINE) == ["hard", "short", "ask"], "how those came to be is told, too"
    assert all(row["evolved_instruction"] for row in rows["hard"])
    assert all(row["generation"] for row in rows["short"])


def test_models_and_generation_arguments_are_carried_over():
    with Pipeline() as pipeline:
        writer = TransformersLLM(
            model="org/writer", torch_dtype="bfloat16", generation_kwargs={"temperature": 0.7, "max_new_tokens": 300}
        )
        judge = OpenAILLM(model="judge", base_url="http://127.0.0.1:1/v1", generation_kwargs={"temperature": 0.1})
        write = TextGeneration(
            llm=writer, num_generations=2, group_generations=True, output_mappings={"generation": "generations"}
        )
        LoadDataFromDicts(data=ROWS) >> write >> UltraFeedback(llm=judge, aspect="honesty")
    (job,) = translated(pipeline).values()
    assert (job.model.path, job.model.backend, job.model.engine) == ("org/writer", "vllm", {"dtype": "bfloat16"})
    write_step, judge_step = job.steps
    assert (write_step.num_generations, write_step.group_generations) == (2, True)
    assert job.step_sampling(write_step) == {"max_tokens": 300, "temperature": 0.7, "top_p": 1.0}
    assert judge_step.parameters.aspect == "honesty"
    judge_model = job.model_of(judge_step)
    assert (judge_model.path, judge_model.backend) == ("judge", "openai")
    assert judge_model.engine["base_url"] == "http://127.0.0.1:1/v1"
    assert job.step_sampling(judge_step)["temperature"] == 0.1


def test_thoughts_stay_where_the_text_is_an_answer_and_else_hide_no_verdict():
    with Pipeline() as pipeline:
        answer = TextGeneration(llm=llm(), output_mappings={"generation": "answer"})
        LoadDataFromDicts(data=ROWS) >> answer >> SelfInstruct(llm=llm())
    (job,) = translated(pipeline).values()
    assert [step.reasoning for step in job.steps] == ["keep", "drop"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}),
        ({"top_k": 0}, {"top_k": -1}),
        ({"top_k": 7}, {"top_k": 7}),
    ],
)
def test_the_words_of_transformers_mean_what_they_meant(given: dict[str, Any], expected: dict[str, Any]):
    with Pipeline() as pipeline:
        LoadDataFromDicts(data=ROWS) >> TextGeneration(llm=TransformersLLM(model="chaos", generation_kwargs=given))
    (job,) = translated(pipeline).values()
    sampling = job.step_sampling(job.steps[0])
    assert {name: sampling[name] for name in expected} == expected


def test_what_vllm_s_own_sampling_takes_besides_comes_along():
    given = {"max_new_tokens": 9, "stop": None, "extra_sampling_params": {"min_tokens": 2, "seed": None}}
    with Pipeline() as pipeline:
        LoadDataFromDicts(data=ROWS) >> TextGeneration(llm=llm(**given))
    (job,) = translated(pipeline).values()
    sampling = job.steps[0].sampling
    assert (sampling["max_tokens"], sampling["min_tokens"]) == (9, 2)
    assert not {"stop", "seed", "extra_sampling_params"} & sampling.keys()


def test_the_revision_of_a_model_comes_along():
    with Pipeline() as pipeline:
        LoadDataFromDicts(data=ROWS) >> TextGeneration(llm=vLLM(model="org/model", revision="abc123"))
    (job,) = translated(pipeline).values()
    assert job.model.revision == "abc123"


def test_a_server_s_patience_comes_along_where_it_is_not_distilabel_s():
    with Pipeline() as pipeline:
        patient = OpenAILLM(model="slow", timeout=900, max_retries=2)
        draft = TextGeneration(llm=OpenAILLM(model="fast"), output_mappings={"generation": "draft"})
        LoadDataFromDicts(data=ROWS) >> draft >> TextGeneration(llm=patient)
    (job,) = translated(pipeline).values()
    assert not {"timeout", "max_retries"} & job.model.engine.keys()
    engine = job.model_of(job.steps[1]).engine
    assert (engine["timeout"], engine["max_retries"]) == (900, 2)


def test_a_text_of_one_s_own_that_opens_user_turns_comes_along_on_the_same_engine():
    with Pipeline() as pipeline:
        opens = vLLM(model="org/a", use_magpie_template=True, magpie_pre_query_template="<|user|>")
        opens_otherwise = vLLM(model="org/a", use_magpie_template=True, magpie_pre_query_template="<|human|>")
        magpie = Magpie(llm=opens, only_instruction=True)
        answer = TextGeneration(llm=vLLM(model="org/a"))
        again = Magpie(llm=opens_otherwise, only_instruction=True, output_mappings={"instruction": "another"})
        other = TextGeneration(llm=vLLM(model="org/a", revision="v2"), output_mappings={"generation": "other"})
        LoadDataFromDicts(data=[{"number": 1}]) >> magpie >> answer >> again >> other
    (job,) = translated(pipeline).values()
    assert [step.model for step in job.steps] == [None, None, "llm_1", "llm_2"]
    assert job.model.pre_query_template == "<|user|>"
    assert job.models["llm_1"].pre_query_template == "<|human|>"
    assert (job.models["llm_2"].pre_query_template, job.models["llm_2"].revision) == (None, "v2")


def test_a_key_of_the_environment_stays_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Pipeline() as pipeline:
        LoadDataFromDicts(data=ROWS) >> TextGeneration(llm=OpenAILLM(model="gpt"))
    (job,) = translated(pipeline).values()
    assert (job.model.path, job.model.engine["api_key_env"]) == ("gpt", "OPENAI_API_KEY")
    assert "sk-secret" not in str(job.tree())


@pytest.mark.parametrize(
    "make",
    [
        llm,
        lambda: OpenAILLM(model="x"),
        lambda: ClientvLLM(model="x", base_url="http://x/v1", tokenizer="x"),
        lambda: TogetherLLM(model="x"),
        lambda: InferenceEndpointsLLM(model_id="org/x"),
    ],
)
def test_distilabel_s_own_limit_of_tokens_stays(make: Callable[[], Any]):
    with Pipeline() as pipeline:
        LoadDataFromDicts(data=ROWS) >> TextGeneration(llm=make())
    (job,) = translated(pipeline).values()
    assert job.step_sampling(job.steps[0])["max_tokens"] == 128


def test_a_model_that_hugging_face_hosts_runs_here():
    with Pipeline() as pipeline:
        writer = InferenceEndpointsLLM(
            model_id="org/writer",
            tokenizer_id="org/writer",
            api_key="hf_secret",
            magpie_pre_query_template="<|me|>",
            use_magpie_template=True,
            generation_kwargs={
                "temperature": 0.7,
                "max_new_tokens": 300,
                "stop_sequences": ["\n\n"],
                "do_sample": True,
            },
        )
        judge = InferenceEndpointsLLM(model_id="org/judge", tokenizer_id="org/words")
        (
            LoadDataFromDicts(data=ROWS)
            >> TextGeneration(llm=writer)
            >> TextGeneration(
                llm=judge, input_mappings={"instruction": "generation"}, output_mappings={"generation": "verdict"}
            )
        )
    (job,) = translated(pipeline).values()
    assert (job.model.path, job.model.backend, job.model.engine) == ("org/writer", "vllm", {})
    assert job.model.pre_query_template == "<|me|>"
    assert job.models["llm_1"].engine == {"tokenizer": "org/words"}
    sampling = {"temperature": 0.7, "max_tokens": 300, "stop": ["\n\n"]}
    assert job.step_sampling(job.steps[0]) == sampling
    assert "hf_secret" not in str(job.tree())


def test_two_local_models_share_the_gpu():
    with Pipeline() as pipeline:
        a, b = vLLM(model="org/a"), vLLM(model="org/b", extra_kwargs={"gpu_memory_utilization": 0.3})
        chain = TextGeneration(llm=a, output_mappings={"generation": "draft"})
        LoadDataFromDicts(data=ROWS) >> chain >> TextGeneration(llm=b)
    (job,) = translated(pipeline).values()
    assert job.models["llm_1"].engine == {"gpu_memory_utilization": 0.3}
    assert memory_shares(job.used_models, 1) == {None: pytest.approx(0.6), "llm_1": 0.3}


def test_magpie_s_weights_and_a_template_are_carried_over():
    with Pipeline() as pipeline:
        prompts = {"math": ("Do math.", 0.5), "art": ("Do art.", 0.5)}
        magpie = Magpie(
            llm=vLLM(model="chaos", magpie_pre_query_template="qwen2"), system_prompt=prompts, only_instruction=True
        )
        answer = TextGeneration(llm=llm(), template="Q: {{ instruction }}", columns=["instruction"])
        LoadDataFromDicts(data=[{"number": i} for i in range(3)]) >> magpie >> answer
    (job,) = translated(pipeline).values()
    assert job.steps[0].parameters.system_prompt == {"math": ["Do math.", 0.5], "art": ["Do art.", 0.5]}
    assert job.steps[1].parameters.template == "Q: {{ instruction }}"


def test_rows_come_from_files_too(tmp_path: Path):
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with Pipeline() as pipeline:
        LoadDataFromFileSystem(data_files=str(tmp_path / "seeds.jsonl"), num_examples=3) >> TextGeneration(llm=llm())
    assert len(from_pipeline(pipeline, tmp_path / "out", in_process=True)["default"]["train"]) == 3


@step(inputs=["instruction"], outputs=["instruction"], step_type="global")
def Everything(inputs):  # a step class
    yield inputs


class OwnLLM(OpenAILLM):
    """A user's."""


@step(inputs=["instruction"], outputs=["instruction"])
def anything(inputs):
    yield inputs


# Which may do anything, though it is called like distilabel's.
NAMESAKE_LLM = type("vLLM", (vLLM,), {"__module__": __name__})


def answer(name: str, model: Any = None, **fields: Any) -> TextGeneration:
    return TextGeneration(name=name, llm=model or llm(), **fields)


def meet_unevenly(data) -> None:
    """Three branches, of which two meet."""
    a, b, c = map(answer, "abc")
    data >> [a, b, c]
    [a, b] >> CombineOutputs(name="combine")


def meet_crosswise(data) -> None:
    """Two branches, of which one meets a branch of the other."""
    a, b, c, d = map(answer, "abcd")
    data >> [a, b]
    b >> [c, d]
    [a, c] >> CombineOutputs(name="combine")


def refused(build, folder: Path) -> str:
    with Pipeline() as pipeline:
        build(LoadDataFromDicts(data=ROWS, name="load"))
    with pytest.raises(JobError) as caught:
        from_pipeline(pipeline, folder / "unused", in_process=True)
    return str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda data: data >> Everything(name="all"), "'all' (Everything) cannot be carried over: a global step"),
        (
            lambda data: data >> MathShepherdGenerator(llm=llm(), system_prompt="{% if M %}", name="code"),
            "step 'code': system_prompt: may hold the placeholders {{ extra_rules }}",
        ),
        (
            lambda data: data >> MathShepherdCompleter(llm=llm(), tags=["+", "+"], name="same"),
            "step 'same': tags: must be two different texts",
        ),
        (
            lambda data: data >> TextGeneration(llm=llm()) >> PushToHub(name="push", repo_id="org/name"),
            "'push' (PushToHub) cannot be carried over: take it out, and call push_to_hub of what from_pipeline gives",
        ),
        (
            lambda data: data >> TextGeneration(llm=llm()) >> ExpandColumns(columns=["x"], name="spread"),
            "'spread': reads column 'x', which is not there; there are: instruction",
        ),
        (
            lambda data: data >> TextGeneration(llm=llm()) >> ExpandColumns(columns=["generation"], name="spread"),
            "'spread' (ExpandColumns): column 'generation' is not a list (it is text)",
        ),
        (
            lambda data: (
                data >> TextGeneration(llm=llm()) >> ExpandColumns(columns=["generation"], encoded=True, name="spread")
            ),
            "'spread' (ExpandColumns): lists that are encoded as texts are not carried over",
        ),
        (
            lambda data: data >> KeepColumns(columns=["instruction"], name="keep"),
            "no step of the pipeline is a task",
        ),
        (
            lambda data: data >> TextGeneration(llm=llm()) >> KeepColumns(columns=["answer"], name="keep"),
            "'keep': reads column 'answer', which is not there; there are: instruction, generation",
        ),
        (
            lambda data: (
                data
                >> TextGeneration(llm=llm())
                >> KeepColumns(columns=["generation"])
                >> EvolInstruct(llm=llm(), num_evolutions=1, name="late")
            ),
            "'late': reads column 'instruction', which is not there; there are: generation",
        ),
        (
            lambda data: data >> [answer("a"), answer("b")] >> GroupColumns(columns=["response"], name="group"),
            "'group': groups column 'response', which no step before it has",
        ),
        (
            lambda data: (
                data
                >> [answer("a"), answer("b")]
                >> GroupColumns(columns=["generation"], output_columns=["x", "y"], name="group")
            ),
            "'group' (GroupColumns): 1 columns, and 2 output_columns",
        ),
        (
            lambda data: (
                data
                >> [answer("a"), answer("b")]
                >> GroupColumns(columns=["generation"], output_mappings={"grouped_generation": "x"}, name="group")
            ),
            "'group' (GroupColumns): its mappings are not carried over",
        ),
        (
            lambda data: data >> [answer("a", num_generations=2), answer("b")] >> CombineOutputs(name="combine"),
            "'a' (TextGeneration): it makes several rows of one, and its branch meets others in 'combine'",
        ),
        (meet_unevenly, "'combine' (CombineOutputs): several steps lead to it; batchgen carries that over where"),
        (meet_crosswise, "'combine' (CombineOutputs): several steps lead to it; batchgen carries that over where"),
        (
            lambda data: data >> TextGeneration(llm=NAMESAKE_LLM(model="chaos"), name="alike"),
            "'alike': its LLM is a vLLM of your own",
        ),
        (
            lambda data: data >> TextGeneration(llm=OwnLLM(model="x"), name="own"),
            "'own': its LLM is a OwnLLM of your own",
        ),
        (
            lambda data: data >> TextGeneration(llm=InferenceEndpointsLLM(endpoint_name="x", api_key="k"), name="far"),
            "'far': its InferenceEndpointsLLM has an endpoint and no model_id; name the endpoint in an OpenAILLM",
        ),
        (
            lambda data: data >> TextGeneration(llm=OpenAILLM(model="x", api_key="sk-secret"), name="paid"),
            "'paid': its LLM has an API key in the code",
        ),
        (
            lambda data: data >> TextGeneration(llm=AzureOpenAILLM(model="x", base_url="http://x"), name="azure"),
            "'azure': its LLM is a AzureOpenAILLM, which cannot be carried over",
        ),
        (
            lambda data: data >> TextGeneration(llm=ClientvLLM(base_url="http://x/v1", tokenizer="x"), name="served"),
            "'served': its ClientvLLM needs `model`",
        ),
        (
            lambda data: data >> TextGeneration(llm=OpenAILLM(model="x", default_headers={"X-Team": "a"}), name="head"),
            "'head': default_headers",
        ),
        (
            lambda data: (
                data >> TextGeneration(llm=OpenAILLM(model="x", use_offline_batch_generation=True), name="off")
            ),
            "'off': use_offline_batch_generation",
        ),
        (
            lambda data: data >> TextGeneration(llm=vLLM(model="chaos", trust_remote_code=True), name="code"),
            "'code': trust_remote_code",
        ),
        (
            lambda data: data >> TextGeneration(llm=vLLM(model="chaos", chat_template="x"), name="template"),
            "'template': a chat template of its own",
        ),
        (
            lambda data: data >> RewardModelScore(model="x", name="rewards"),
            "'rewards' (RewardModelScore) cannot be carried over: it is not a task",
        ),
        (
            lambda data: data >> MergeColumns(columns=["instruction"], name="merge"),
            "no step of the pipeline is a task",
        ),
        (
            lambda data: data >> answer("a") >> MergeColumns(columns=["generation", "topic"], name="merge"),
            "'merge': reads column 'topic', which is not there; there are: instruction, generation",
        ),
        (lambda data: data, "step 'load': nothing comes after it"),
        (
            lambda data: LoadDataFromDicts(data=ROWS, name="more") >> TextGeneration(llm=llm()),
            "the pipeline has 2 first steps",
        ),
        (
            lambda data: data >> TextGeneration(llm=llm(), columns=["instruction", "context"], name="columns"),
            "'columns': `columns` without a template",
        ),
        (
            lambda data: data >> TextGeneration(llm=llm(), template="Say it.", name="none"),
            "must hold at least one {{ column }} placeholder",
        ),
    ],
)
def test_what_cannot_be_carried_over_is_refused_by_name(tmp_path: Path, build, message: str):
    found = refused(build, tmp_path)
    assert message in found
    assert "sk-secret" not in found


def test_what_is_in_the_dataset_s_place_is_told_before_anything_runs(tmp_path: Path):
    mine = tmp_path / "out" / "dataset" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    with Pipeline() as pipeline:
        LoadDataFromDicts(data=ROWS) >> TextGeneration(llm=llm())
    with pytest.raises(UserError, match=r"'mine\.txt' is in it"):
        from_pipeline(pipeline, output=tmp_path / "out", in_process=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]


def test_a_bucket_is_no_place_for_a_pipeline():
    with Pipeline() as pipeline:
        LoadDataFromDicts(data=ROWS) >> TextGeneration(llm=llm())
    with pytest.raises(JobError, match="a pipeline's output is a folder"):
        from_pipeline(pipeline, "s3://bucket/x", in_process=True)


def test_routing_functions_joins_and_generators_are_refused(tmp_path: Path):
    @routing_batch_function()
    def route(steps):
        return steps

    def routed(data):
        data >> route >> [TextGeneration(llm=llm(), name="a"), TextGeneration(llm=llm(), name="b")]

    assert "routing function" in refused(routed, tmp_path)

    def joined(data):
        a = TextGeneration(llm=llm(), name="a")
        b = TextGeneration(llm=llm(), name="b", output_mappings={"generation": "other"})
        data >> [a, b] >> TextGeneration(llm=llm(), name="both", output_mappings={"generation": "third"})

    assert "several steps lead to it; branches meet in GroupColumns or CombineOutputs" in refused(joined, tmp_path)
    with Pipeline() as pipeline:
        EvolInstructGenerator(llm=llm(), num_instructions=3, name="evolve") >> TextGeneration(llm=llm())
    with pytest.raises(JobError, match="use evol_instruct over seed rows"):
        from_pipeline(pipeline, tmp_path / "unused", in_process=True)


def test_branches_meet_in_a_list(tmp_path: Path):
    with Pipeline() as pipeline:
        data = LoadDataFromDicts(data=ROWS)
        other = vLLM(model="chaos", extra_kwargs={"reply": "Hm."})
        draft = answer("draft", output_mappings={"generation": "instruction"})
        branches = [draft, answer("other", other), answer("third")]
        group = GroupColumns(columns=["generation", "model_name"], output_columns=["answers", "models"])
        data >> branches[0] >> answer("own") >> group
        data >> branches[1:] >> group >> answer("last", output_mappings={"model_name": "by"})
    (job,) = translated(pipeline).values()
    assert [step.task for step in job.steps] == ["text_generation"] * 4 + ["group_columns"] * 2 + ["text_generation"]
    dataset = from_pipeline(pipeline, tmp_path / "out", in_process=True)["default"]["train"]
    asked = [row["instruction"] for row in ROWS]
    assert [row["instruction"] for row in dataset] == asked, "the last branch has the rows' own"
    for row in dataset:
        assert row["answers"] == [row["generation_of_own"], "Hm.", row["generation_of_third"]]
        assert row["instruction_of_draft"] not in asked
        assert row["models"] == ["chaos"] * 3
        assert row["by"] == "chaos"


def test_every_version_of_a_column_has_a_name():
    with Pipeline() as pipeline:
        mappings = {"generation": "instruction"}
        first, second = (answer(name, output_mappings=mappings) for name in ("first", "second"))
        third = answer("third", output_mappings={**mappings, "model_name": "by"})
        LoadDataFromDicts(data=ROWS) >> first >> second >> third >> answer("fourth")
    (job,) = translated(pipeline).values()
    read = [step.input_mappings["instruction"] for step in job.steps]
    before = [f"instruction_before_{name}" for name in ("first", "second", "third")]
    assert read == [*before, "instruction"]
    assert [step.output_mappings["generation"] for step in job.steps] == [*before[1:], "instruction", "generation"]
    assert [step.model_column for step in job.steps] == [None, None, "by", "model_name"]


def test_inputs_that_may_be_absent_are_read_where_they_are_there():
    def read(rows: list[dict[str, Any]], **fields: Any) -> list[dict[str, str | None]]:
        with Pipeline() as pipeline:
            draft, last = answer("draft", output_mappings={"generation": "draft"}), answer("last")
            prompts = answer("prompts", output_mappings={"generation": "system_prompt"})
            LoadDataFromDicts(data=rows) >> draft >> OWN(llm=llm(), name="own", **fields) >> prompts >> last
        (job,) = translated(pipeline, dict.fromkeys(rows[0], "text")).values()
        return [dict(step.input_mappings) for step in job.steps]

    asked = {"instruction": "instruction", "system_prompt": None}
    written = {"instruction": "instruction", "system_prompt": "system_prompt"}
    # A class of one's own sees all columns.
    whole = {"instruction": "instruction", "draft": "draft"}
    assert read(ROWS) == [asked, whole, asked, written]
    first = {"instruction": "instruction", "system_prompt": "system_prompt_before_prompts"}
    assert read([{**row, "system_prompt": "Be brief."} for row in ROWS]) == [first, whole | first, first, written]
    mapped = {"instruction": "instruction", "system_prompt": "draft"}
    assert read(ROWS, input_mappings={"system_prompt": "draft"}) == [asked, mapped, asked, written]


def test_a_model_is_named_where_a_leaf_or_a_step_wants_it():
    with Pipeline() as pipeline:
        begun = LoadDataFromDicts(data=ROWS) >> answer("begun", output_mappings={"generation": "draft"})
        keep = KeepColumns(columns=["instruction", "draft", "model_name"], name="keep")
        begun >> keep >> [answer("a"), EvolInstruct(llm=llm(), num_evolutions=1, name="evolve")]
        asked = translated(pipeline)
    assert {name: job.steps[0].model_column for name, job in asked.items()} == {
        "keep": "model_name",
        "a": "model_name",
        "evolve": "model_name",
    }
    assert asked["keep"].merge.columns == ["instruction", "draft", "model_name"]
    with Pipeline() as pipeline:
        draft = answer("draft", output_mappings={"generation": "draft"})
        LoadDataFromDicts(data=ROWS) >> draft >> answer("a") >> answer("b")
    assert [step.model_column for step in translated(pipeline)["b"].steps] == [None, None, "model_name"]


def test_the_name_of_an_earlier_model_goes_no_further_than_where_somebody_asks_for_it(tmp_path: Path):
    with Pipeline() as pipeline:
        begun = LoadDataFromDicts(data=ROWS) >> answer("begun", output_mappings={"generation": "draft"})
        begun >> answer("a")
        begun >> answer("b", template="{{ model_name }}", columns=["model_name"])
        begun >> answer("c", output_mappings={"model_name": "by"})
    distiset = from_pipeline(pipeline, tmp_path / "out", in_process=True)
    columns = {leaf: {name for name in distiset[leaf]["train"].column_names if "model_name" in name} for leaf in "abc"}
    assert columns == {"a": {"model_name"}, "b": {"model_name", "model_name_before_b"}, "c": {"model_name"}}


def test_what_is_not_there_any_more_is_not_read(tmp_path: Path):
    with Pipeline() as pipeline:
        rows = [{**row, "system_prompt": "Be brief."} for row in ROWS]
        keep = KeepColumns(columns=["instruction", "generation"])
        structure = {"format": "json", "schema": {"type": "object"}}
        chain = LoadDataFromDicts(data=[{**row, "structured_output": structure} for row in rows]) >> answer("a")
        chain >> keep >> answer("b")
        chain >> StructuredGeneration(llm=llm(), name="c")
    jobs = translated(pipeline, {"instruction": "text", "system_prompt": "text", "structured_output": "text"})
    assert jobs["a"].steps[0].reads == {"instruction": "instruction", "system_prompt": "system_prompt"}
    assert jobs["b"].steps[0].reads == {"instruction": "instruction"}
    assert "system_prompt" not in jobs["c"].steps[0].reads


def test_lists_are_made_of_whatever_branches_bring():
    with Pipeline() as pipeline:
        several = {"num_generations": 2, "group_generations": True, "output_mappings": {"generation": "generations"}}
        judges = [UltraFeedback(llm=llm(), name=name) for name in ("one", "two")]
        group = GroupColumns(columns=["ratings", "generation", "number"], name="group")
        begun = LoadDataFromDicts(data=ROWS) >> answer("begun", **several)
        begun >> answer("again", input_mappings={"instruction": "text"}) >> judges[0] >> group
        begun >> judges[1] >> group
    with pytest.raises(JobError, match="'group': groups column 'number', which branches have from the same step"):
        translated(pipeline)
    group.columns.remove("number")
    (job,) = translated(pipeline).values()
    grouped = [step for step in job.steps if step.task == "group_columns"]
    assert [(step.parameters.kind, step.parameters.columns) for step in grouped] == [
        ("list[number]", ["ratings_of_one", "ratings_of_two"]),
        ("text", ["generation"]),
    ]


def test_what_is_not_kept_is_not_published(tmp_path: Path):
    with Pipeline() as pipeline:
        draft = answer("draft", output_mappings={"generation": "instruction"})
        keep = KeepColumns(columns=["number", "instruction"])
        rows = [{**row, "number": number} for number, row in enumerate(ROWS)]
        LoadDataFromDicts(data=rows) >> draft >> keep >> [answer("a"), EvolInstruct(llm=llm(), num_evolutions=1)]
    distiset = from_pipeline(pipeline, tmp_path / "out", in_process=True)
    dataset = distiset["a"]["train"]
    assert "instruction_before_draft" not in dataset.column_names
    assert {"number", "instruction", "generation", "model_name", "messages"} <= set(dataset.column_names)
    assert sorted(dataset["number"]) == list(range(6))


def test_steps_without_a_model_write_what_there_is_something_to_write_of():
    def written(make: Callable[[], Any], keep: bool = True) -> set[str]:
        several = {"num_generations": 2, "group_generations": True, "output_mappings": {"generation": "generations"}}
        with Pipeline() as pipeline:
            chain = LoadDataFromDicts(data=ROWS) >> answer("a", **several) >> UltraFeedback(llm=llm())
            if keep:
                chain = chain >> KeepColumns(columns=["instruction", "generations", "ratings"])
            chain >> make()
        (job,) = translated(pipeline, {**FIRST, "generation_models": "list[text]"}).values()
        return set(job.steps[-1].output_mappings.values())

    pair = {"prompt", "prompt_id", "chosen", "chosen_rating", "rejected", "rejected_rating"}
    assert written(FormatTextGenerationDPO, keep=False) == {*pair, "chosen_model", "rejected_model"}
    assert written(FormatTextGenerationDPO) == pair
    assert written(lambda: MergeColumns(columns=["instruction", "generations"])) == {"merged_column"}
    with pytest.raises(JobError, match=r"do not go into one list: instruction: text, ratings: list\[number"):
        written(lambda: MergeColumns(columns=["instruction", "ratings"]))


def test_a_format_s_conversation_is_the_dataset_s_and_needs_no_system_prompt(tmp_path: Path):
    with Pipeline() as pipeline:
        rows = [{**row, "system_prompt": number and f"Hm {number}."} for number, row in enumerate(ROWS)]
        rows[0]["system_prompt"] = None
        LoadDataFromDicts(data=rows) >> answer("a") >> FormatTextGenerationSFT()
    made = from_pipeline(pipeline, tmp_path / "out", in_process=True)["default"]["train"].to_list()
    roles = [[message["role"] for message in row["messages"]] for row in made]
    assert roles == [["user", "assistant"], *[["system", "user", "assistant"]] * 5]
    assert [row["messages"][-1]["content"] for row in made] == [row["generation"] for row in made]


def test_outputs_have_distilabel_s_names_where_the_names_are_free():
    with Pipeline() as pipeline:
        shepherd = [
            MathShepherdGenerator(llm=llm(), name="golden"),
            MathShepherdGenerator(llm=llm(), name="several", M=2),
            MathShepherdCompleter(llm=llm(), name="label"),
        ]
        judges = [
            InstructionBacktranslation(llm=llm(), name="judge", input_mappings={"generation": "text"}),
            InstructionBacktranslation(
                llm=llm(), name="again", input_mappings={"generation": "text"}, output_mappings={"reason": "why"}
            ),
        ]
        chain = LoadDataFromDicts(data=ROWS)
        for each in (*shepherd, *judges):
            chain = chain >> each
    (job,) = translated(pipeline).values()
    _, several, label, judge, again = job.steps
    assert several.output_mappings["solutions"] == label.input_mappings["solutions"] == "solutions_before_label"
    assert label.output_mappings == {"labelled_solutions": "solutions"}
    assert judge.output_mappings["score_reason"] == "score_reason"
    assert again.output_mappings["score_reason"] == "why"


def test_messages_that_are_not_kept_are_in_nobody_s_way(tmp_path: Path):
    with Pipeline() as pipeline:
        rows = [{**row, "messages": [{"role": "user", "content": "Hm?"}]} for row in ROWS]
        keep = KeepColumns(columns=["instruction", "generation"])
        LoadDataFromDicts(data=rows) >> ChatGeneration(llm=llm()) >> answer("a") >> keep
    dataset = from_pipeline(pipeline, tmp_path / "out", in_process=True)["default"]["train"]
    assert {"instruction", "generation"} <= set(dataset.column_names)
    assert "messages" not in dataset.column_names


def test_a_branch_may_have_no_task(tmp_path: Path):
    with Pipeline() as pipeline:
        asked = FormatTextGenerationSFT(name="asked", input_mappings={"generation": "instruction"})
        begun = LoadDataFromDicts(data=ROWS) >> asked
        written = answer("written", vLLM(model="chaos", extra_kwargs={"reply": "Yes."}))
        begun >> [answer("other"), written]
        written >> [FormatTextGenerationSFT(name="sft"), EvolInstruct(llm=llm(), num_evolutions=1, name="evolve")]
    jobs = translated(pipeline)
    assert jobs["asked"].used_models == jobs["sft"].used_models == {}
    assert jobs["sft"].model.engine == {"reply": "Yes."}
    distiset = from_pipeline(pipeline, tmp_path / "out", in_process=True)
    assert set(distiset) == {"other", "sft", "evolve"}
    place = str(tmp_path / "out" / "dataset")
    assert repr(distiset) == f"PipelineResult({place!r}, other: 6 rows, evolve: 6 rows, sft: 6 rows)"
    made = distiset["sft"]["train"].to_list()
    assert [row["messages"][-1]["content"] for row in made] == ["Yes."] * len(ROWS)
    assert {row["model"] for row in made} == {"chaos"}


def test_a_branch_may_keep_columns_alone(tmp_path: Path):
    with Pipeline() as pipeline:
        start = answer("start")
        LoadDataFromDicts(data=[{**row, "other": "x"} for row in ROWS]) >> start
        start >> [KeepColumns(columns=["generation"], name="kept"), answer("b")]
    distiset = from_pipeline(pipeline, tmp_path / "out", in_process=True)
    kept = distiset["kept"]["train"]
    assert len(kept) == len(ROWS)
    assert "generation" in kept.column_names
    assert not {"instruction", "other"} & set(kept.column_names)


def test_a_branch_may_be_no_more_than_a_line(tmp_path: Path):
    with Pipeline() as pipeline:
        start = answer("start", output_mappings={"generation": "topic"})
        combine = CombineOutputs(name="combine")
        LoadDataFromDicts(data=ROWS) >> start
        start >> answer("a") >> combine
        start >> combine
        combine >> EvolInstruct(llm=llm(), num_evolutions=1, name="evolve")
    (job,) = translated(pipeline).values()
    assert [step.task for step in job.steps] == ["text_generation", "text_generation", "evol_instruct"]
    dataset = from_pipeline(pipeline, tmp_path / "out", in_process=True)["default"]["train"]
    assert {"topic", "generation", "evolved_instruction"} <= set(dataset.column_names)


class TextGeneration2(TextGeneration):
    """A user's, with what distilabel's has."""

    marks: int = 1

    @property
    def outputs(self):
        return ["generation", "length", "model_name"]

    def format_output(self, output, input=None):
        return {"generation": output + "!" * self.marks, "length": len(output)}


# Which is called like distilabel's, and may do anything.
OWN = type("TextGeneration", (TextGeneration2,), {"__module__": __name__})


def tidied(inputs, most=9):
    """Cuts instructions and leaves those out that hold a 3."""
    kept = [row for row in inputs if "3" not in row["instruction"]]
    yield [{**row, "instruction": row["instruction"][:most], "rank": 1} for row in kept]


# distilabel reads annotations as they are, and here they would be texts.
tidied.__annotations__ = {"inputs": StepInput, "most": RuntimeParameter[int]}
Tidied = step(inputs=["instruction"], outputs=["instruction", "rank"])(tidied)


def called(name: str) -> type:
    """A step of one's own that is called like distilabel's."""
    made = step(inputs=["instruction"], outputs=["instruction", "model_name"])(tidied)
    return type(name, (made,), {"__module__": __name__})


def test_steps_that_are_called_like_distilabel_s_are_one_s_own():
    with Pipeline() as pipeline:
        first = called("KeepColumns")(name="first")
        second = called("GroupColumns")(name="second", output_mappings={"model_name": "rank"})
        start = answer("start", output_mappings={"generation": "draft"})
        leaves = [answer("a"), answer("b", output_mappings={"model_name": "by"})]
        LoadDataFromDicts(data=ROWS) >> first >> second >> start >> leaves
    job = translated(pipeline)["start"]
    assert [step.task for step in job.steps] == ["own:first", "own:second", "text_generation"]
    assert [step.model_column for step in job.steps] == [None, None, "model_name"]
    assert [list(step.outputs) for step in job.steps] == [
        ["instruction_before_second", "model_name_before_start"],
        ["instruction", "rank"],
        ["draft", "model_name"],
    ]


def test_classes_of_one_s_own_come_along(tmp_path: Path):
    with Pipeline() as pipeline:
        rows = [{**row, "system_prompt": "Be brief."} for row in ROWS]
        tidy = Tidied(name="tidy", output_mappings={"rank": "order"}, resources=StepResources(replicas=2))
        hm = vLLM(model="chaos", extra_kwargs={"reply": "Hm"})
        own = OWN(name="own", llm=hm, marks=2, system_prompt="Be long.", resources=StepResources(replicas=2))
        LoadDataFromDicts(data=rows) >> tidy >> own
    (job,) = translated(pipeline).values()
    assert [step.spec.threads for step in job.steps] == [2, 0], "replicas of a task are the engines' affair"
    assert (job.merge.exact, job.merge.near, job.merge.drop_truncated) == (False, None, False)
    parameters = {"tidy": {"most": 5}}
    kinds = {"order": "number", "length": "number"}
    out = tmp_path / "out"
    with pytest.raises(JobError, match=r"kinds\['order'\]: expected text, number, .*, got 'numbers'"):
        from_pipeline(pipeline, out, in_process=True, kinds={"order": "numbers"})
    distiset = from_pipeline(pipeline, out, in_process=True, parameters=parameters, kinds=kinds)
    dataset = distiset["default"]["train"]
    assert len(dataset) == 5
    assert distiset.runs["default"].progress.reasons == {"filtered": 1}
    for row in dataset:
        told = [row[name] for name in ("instruction", "order", "generation", "length", "model_name")]
        assert told == ["Write", 1, "Hm!!", 2, "chaos"]


def filled(inputs):
    """Writes instructions where there are none, and no rank where there is no number."""
    rows = [{**row, "rank": row["number"], "instruction": row["instruction"] or "Ask!"} for row in inputs]
    yield [{**row, "rank": row["rank"] and row["rank"] + 1} for row in rows]


filled.__annotations__ = {"inputs": StepInput}
Filled = step(inputs=["instruction", "number"], outputs=["instruction", "rank"])(filled)


def test_a_step_of_one_s_own_reads_and_writes_nulls_and_empty_texts(tmp_path: Path):
    rows = [
        {"instruction": None, "number": 1},
        {"instruction": "", "number": None},
        {"instruction": "Hm?", "number": 2},
    ]
    with Pipeline() as pipeline:
        LoadDataFromDicts(data=rows) >> Filled(name="filled") >> answer("answer")
    (job,) = translated(pipeline, {"instruction": "text", "number": "number"}).values()
    assert job.steps[0].spec.threads == 0
    made = from_pipeline(pipeline, tmp_path / "out", in_process=True, kinds={"rank": "number"})["default"]["train"]
    assert [(row["instruction"], row["rank"]) for row in made] == [("Ask!", 2.0), ("Ask!", None), ("Hm?", 3.0)]
    assert all(made["generation"])


class Overview(Step):
    """Says what it sees of a row, of which it has asked for one column."""

    @property
    def inputs(self):
        return ["topic"]

    @property
    def outputs(self):
        return ["seen"]

    def process(self, inputs):
        yield [{**row, "seen": json.dumps({**row, "moment": str(row["moment"])}, sort_keys=True)} for row in inputs]


Overview.process.__annotations__ = {"inputs": StepInput}


def test_a_class_of_one_s_own_sees_the_whole_row_under_distilabel_s_names(tmp_path: Path):
    moment = datetime(2026, 1, 1)
    talk = [{"role": "user", "content": None}]
    rows = [
        {"instruction": "Do.", "talk": talk, "note": None, "moment": moment},
        {"instruction": "No.", "note": "x"},
    ]
    with Pipeline() as pipeline:
        start = LoadDataFromDicts(data=rows) >> answer("first", output_mappings={"generation": "draft"})
        again = answer("again", output_mappings={"generation": "draft"})
        start >> Overview(name="overview", input_mappings={"topic": "draft"}) >> again
    made = from_pipeline(pipeline, tmp_path / "out", in_process=True)["default"]["train"]
    assert [set(json.loads(seen)) for seen in made["seen"]] == [{"instruction", "talk", "moment", "note", "topic"}] * 2
    first, second = map(json.loads, made["seen"])
    assert (first["talk"], first["note"], first["moment"]) == (talk, None, str(moment))
    assert (second["talk"], second["note"], second["topic"]) == (None, "x", made["draft_before_again"][1])


class Asker(Step):
    """Has an LLM, and is no task; makes a row of every word that it is told."""

    llm: LLM

    def load(self):
        super().load()
        self.llm.load()

    @property
    def inputs(self):
        return ["instruction"]

    @property
    def outputs(self):
        return ["word"]

    def process(self, inputs):
        asked = [[{"role": "user", "content": row["instruction"]}] for row in inputs]
        said = [answer["generations"][0] for answer in self.llm.generate_outputs(inputs=asked)]
        yield [{**row, "word": word} for row, text in zip(inputs, said, strict=True) for word in text.split()]


Asker.process.__annotations__ = {"inputs": StepInput}


def test_a_step_with_an_llm_comes_along(tmp_path: Path):
    with Pipeline() as pipeline:
        two = vLLM(model="chaos", extra_kwargs={"reply": "one two"}, generation_kwargs={"temperature": 0.5})
        LoadDataFromDicts(data=ROWS[:2]) >> Asker(llm=two, name="ask")
    (job,) = translated(pipeline).values()
    assert job.steps[0].sampling["temperature"] == 0.5
    made = from_pipeline(pipeline, tmp_path / "out", in_process=True)["default"]["train"]
    assert made["word"] == ["one", "two"] * 2
    assert made["output_tokens"] == [2, 0] * 2
    assert "model_name" not in made.column_names


class Keyed(Tidied):
    """Has a key of the environment, and a limit that may be none."""

    key: SecretStr | None = None
    token: str = Field(default_factory=lambda: os.environ["SEARCH_API_KEY"])
    limit: Any = 5

    def process(self, inputs):
        yield [{**row, "instruction": f"{self.token[:4]} {self.limit}", "rank": 1} for row in inputs]


Keyed.process.__annotations__ = {"inputs": StepInput}


def keyed(**fields: Any) -> Pipeline:
    with Pipeline(name="keyed") as pipeline:
        LoadDataFromDicts(data=ROWS) >> Keyed(name="keyed", **fields) >> answer("answer")
    return pipeline


def test_a_key_of_the_environment_is_not_kept_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEARCH_API_KEY", "hush-0123456789ab")
    dataset = from_pipeline(keyed(), tmp_path / "out", in_process=True, kinds={"rank": "number"})["default"]["train"]
    assert set(dataset["instruction"]) == {"hush 5"}
    kept = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(kept) > 5
    assert not [file for file in kept if b"hush-0123456789ab" in file.read_bytes()]
    with pytest.raises(JobError, match="step 'keyed': key: SecretStr cannot be part of a job: it would be kept in the"):
        translated(keyed(key=SecretStr("x")))
    with pytest.raises(
        JobError, match="step 'keyed': limit: vLLM cannot be part of a job: a step's LLM is its field `ll"
    ):
        translated(keyed(limit=llm()))
    with pytest.raises(JobError, match=r"steps\[0\].token: holds the value of OTHER_TOKEN"):
        monkeypatch.setenv("OTHER_TOKEN", "wxyz-0123456789ab")
        translated(keyed(token="wxyz-0123456789ab"))


def test_a_table_of_numbers_reaches_a_class_as_it_is_and_an_array_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SEARCH_API_KEY", raising=False)
    pipeline = keyed(token="none", limit={1: 0.5, np.int64(2): [True, {None: "x"}], "a": np.float32(2)})
    dataset = from_pipeline(pipeline, tmp_path / "out", in_process=True, kinds={"rank": "number"})["default"]["train"]
    assert set(dataset["instruction"]) == {"none {1: 0.5, 2: [True, {None: 'x'}], 'a': 2.0}"}
    for value, what in (
        (np.arange(2), "limit: ndarray"),
        ({"a": [pd.Series([1, 2])]}, r"limit.a\[0\]: Series"),
        (pd.DataFrame({"a": [1]}), "limit: DataFrame"),
    ):
        with pytest.raises(JobError, match=f"step 'keyed': {what} cannot be part of a job: have the class make it in"):
            translated(keyed(token="none", limit=value))
    with pytest.raises(JobError, match="step 'keyed': limit: a key of type tuple cannot be part of a job"):
        translated(keyed(token="none", limit={(1, 2): 3}))


def test_none_is_a_value_where_a_class_has_another_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SEARCH_API_KEY", raising=False)
    (job,) = translated(keyed(token="mine", limit=None)).values()
    assert job.steps[0].parameters.for_distilabel() == {"token": "mine", "limit": None}
    with Pipeline() as pipeline:
        shepherd = MathShepherdGenerator(llm=llm(), name="shepherd", extra_rules=None, system_prompt=None)
        LoadDataFromDicts(data=ROWS) >> shepherd >> TextClassification(llm=llm(), context=None, name="labels")
    (job,) = translated(pipeline).values()
    texts = [
        job.steps[0].parameters.extra_rules,
        job.steps[0].parameters.system_prompt,
        job.steps[1].parameters.context,
    ]
    assert texts == ["", "", ""]
    assert job.steps[0].parameters.few_shots is None, "distilabel's own"


def magpie_of_its_own(**parameters: Any) -> Pipeline:
    with Pipeline() as pipeline:
        prompts = {"math": ("Do math.", 0.5), "art": ("Do art.", 0.5)}
        writer = vLLM(model="chaos", magpie_pre_query_template="qwen2")
        magpie = MagpieGenerator(llm=writer, only_instruction=True, system_prompt=prompts, name="ask", **parameters)
        answer = TextGeneration(llm=llm(), name="answer", output_mappings={"generation": "answer"})
        magpie >> [answer, EvolInstruct(llm=llm(), num_evolutions=1, name="evolve")]
    return pipeline


def test_magpie_makes_rows_of_its_own(tmp_path: Path):
    distiset = from_pipeline(magpie_of_its_own(num_rows=20), tmp_path / "out", in_process=True)
    asked = [sorted(distiset[name]["train"]["instruction"]) for name in ("answer", "evolve")]
    assert asked[0] == asked[1], "both leaves continue the same rows"
    assert len(set(asked[0])) == 20
    assert set(distiset["answer"]["train"]["system_prompt_key"]) == {"math", "art"}
    more = {"ask": {"num_rows": 3}}
    distiset = from_pipeline(magpie_of_its_own(), tmp_path / "again", in_process=True, parameters=more)
    assert len(distiset["answer"]["train"]) == 3


def test_a_leaf_may_end_in_a_conversation(tmp_path: Path):
    with Pipeline() as pipeline:
        MagpieGenerator(llm=vLLM(model="chaos", magpie_pre_query_template="qwen2"), num_rows=3, n_turns=2)
    dataset = from_pipeline(pipeline, tmp_path / "out", in_process=True)["default"]["train"]
    assert [len(row["messages"]) for row in dataset] == [4, 4, 4]
    assert dataset["messages"] == dataset["conversation"]


class Turns(Step):
    """Reads a conversation, and does not go on with it."""

    @property
    def inputs(self):
        return ["conversation"]

    @property
    def outputs(self):
        return ["turns"]

    def process(self, inputs):
        yield [{**row, "turns": str(len(row["conversation"]))} for row in inputs]


def test_a_conversation_that_a_step_looks_at_is_the_dataset_s(tmp_path: Path):
    with Pipeline() as pipeline:
        writer = vLLM(model="chaos", magpie_pre_query_template="qwen2")
        MagpieGenerator(llm=writer, num_rows=3, n_turns=2) >> Turns(name="turns")
    dataset = from_pipeline(pipeline, tmp_path / "out", in_process=True)["default"]["train"]
    assert [[message["role"] for message in row["messages"]] for row in dataset] == [["user", "assistant"] * 2] * 3
    assert dataset["messages"] == dataset["conversation"]
    assert dataset["turns"] == ["4"] * 3


def test_branches_go_on_from_conversations(tmp_path: Path):
    with Pipeline() as pipeline:
        writer = vLLM(model="chaos", magpie_pre_query_template="qwen2")
        magpie = MagpieGenerator(llm=writer, num_rows=3, n_turns=2, end_with_user=True)
        chats = [ChatGeneration(llm=llm(), name=name, input_mappings={"messages": "conversation"}) for name in "ab"]
        magpie >> chats
    distiset = from_pipeline(pipeline, tmp_path / "out", in_process=True)
    for name in "ab":
        for row in distiset[name]["train"]:
            assert row["messages"] == [*row["conversation"], {"role": "assistant", "content": row["generation"]}]
            assert [message["role"] for message in row["conversation"]] == ["user", "assistant", "user"]


def test_a_list_is_spread_over_rows(tmp_path: Path):
    with Pipeline() as pipeline:
        load = LoadDataFromDicts(data=[{"text": f"About {topic}.", "instruction": topic} for topic in ("cats", "dogs")])
        write = SelfInstruct(llm=LISTING, num_instructions=2, input_mappings={"input": "text"})
        spread = ExpandColumns(columns={"instructions": "instruction"})
        load >> write >> spread >> TextGeneration(llm=LISTING)
    (job,) = translated(pipeline).values()
    assert [step.task for step in job.steps] == ["self_instruct", "own:expand_columns_0", "text_generation"]
    made = from_pipeline(pipeline, tmp_path / "out", in_process=True)["default"]["train"]
    asked = Counter((row["text"], row["instruction"]) for row in made)
    assert asked == {(f"About {topic}.", ask): 1 for topic in ("cats", "dogs") for ask in ("Who?", "Where?")}
    assert all(made["generation"])
    assert made["instructions"] == [["Who?", "Where?"]] * 4


def test_a_list_that_keeps_its_name_is_spread_too(tmp_path: Path):
    with Pipeline() as pipeline:
        write = SelfInstruct(llm=LISTING, num_instructions=2, input_mappings={"input": "instruction"})
        LoadDataFromDicts(data=ROWS[:1]) >> write >> ExpandColumns(columns=["instructions"], name="spread")
    made = from_pipeline(pipeline, tmp_path / "out", in_process=True)["default"]["train"]
    assert sorted(made["instructions"]) == ["Where?", "Who?"]


def test_lists_are_spread_wherever_they_stand(tmp_path: Path):
    rows = [
        {"instruction": "Ask.", "a": ["x", None], "b": [["1"], ["2", "3"]]},
        {"instruction": "No.", "a": [], "b": []},
    ]
    with Pipeline() as pipeline:
        spread = ExpandColumns(columns=["a", "b"], split_statistics=True)
        again = ExpandColumns(columns={"b": "c"}, output_mappings={"c": "d"})
        LoadDataFromDicts(data=rows) >> [answer("answer"), spread]
        spread >> again >> answer("again")
    distiset = from_pipeline(pipeline, tmp_path / "out", in_process=True)
    assert len(distiset["answer"]["train"]) == 2
    made = distiset["again"]["train"]
    assert [(row["a"], row["b"], row["d"]) for row in made] == [
        ("x", ["1"], "1"),
        (None, ["2", "3"], "2"),
        (None, ["2", "3"], "3"),
    ]
    assert distiset.runs["again"].progress.reasons == {"filtered": 1}


class Drawn(GeneratorStep):
    """Makes rows out of numbers that it draws, in batches."""

    rows: RuntimeParameter[int] = 5

    @property
    def outputs(self):
        return ["topic", "rank"]

    def load(self):
        super().load()
        self._topics = ["cats", "dogs", "birds"]

    def process(self, offset: int = 0):
        for first in range(offset, self.rows, 2):
            batch = [
                {"topic": f"{random.choice(self._topics)} {np.random.randint(1_000_000)}", "rank": rank}
                for rank in range(first, min(first + 2, self.rows))
            ]
            yield batch, first + 2 >= self.rows


@pytest.mark.parametrize("rows", [5, 4])
def test_a_loader_of_one_s_own_makes_the_same_rows_again(tmp_path: Path, rows: int):
    def load() -> Pipeline:
        with Pipeline(name="drawn") as pipeline:
            Drawn(name="draw", rows=rows, output_mappings={"topic": "instruction"}) >> answer("answer")
        return pipeline

    before = random.getstate()
    first = from_pipeline(load(), tmp_path / "out", in_process=True)["default"]["train"]
    assert random.getstate() == before
    assert sorted(first["rank"]) == list(range(rows))
    assert len(set(first["instruction"])) == rows
    random.seed(rows)  # another process has drawn other numbers
    np.random.seed(rows)
    again = from_pipeline(load(), tmp_path / "out", in_process=True, parameters={"draw": {"rows": rows}})
    assert again["default"]["train"].to_list() == first.to_list()
    other = from_pipeline(load(), tmp_path / "other", in_process=True, seed=1)["default"]["train"]
    assert set(other["instruction"]) != set(first["instruction"])
    with pytest.raises(JobError, match="step 'draw': it made no rows"):
        from_pipeline(load(), tmp_path / "none", in_process=True, parameters={"draw": {"rows": 0}})
    with pytest.raises(JobError, match="step 'draw': it has rows of its own, and dataset is given too"):
        from_pipeline(load(), tmp_path / "none", in_process=True, dataset=ROWS)


def joined(inputs):
    """Joins what was sampled."""
    yield [{**row, "instruction": " ".join(row["text"])} for row in inputs]


joined.__annotations__ = {"inputs": StepInput}
Joined = step(inputs=["text"], outputs=["instruction"])(joined)


def test_samples_of_rows_come_along(tmp_path: Path):
    with Pipeline() as pipeline:
        sampler = DataSampler(data=[{"text": word} for word in ("a", "b", "c")], size=2, samples=4, batch_size=3)
        sampler >> Joined(name="join") >> answer("answer")
    made = from_pipeline(pipeline, tmp_path / "out", in_process=True)["default"]["train"]
    assert len(made) == 4
    assert {len(text) for text in made["instruction"]} == {3}


def test_how_many_rows_magpie_makes_has_to_be_said_once(tmp_path: Path):
    with pytest.raises(JobError, match="step 'ask': num_rows is not set; give it to the step or in parameters"):
        from_pipeline(magpie_of_its_own(), tmp_path / "out", in_process=True)
    with pytest.raises(JobError, match="step 'ask': it has rows of its own, and dataset is given too"):
        from_pipeline(magpie_of_its_own(num_rows=3), tmp_path / "out", in_process=True, dataset=ROWS)


@pytest.mark.parametrize("kind", ["list", "pandas", "datasets"])
def test_rows_are_given_as_pipeline_run_takes_them(tmp_path: Path, kind: str):
    with Pipeline() as pipeline:
        TextGeneration(llm=llm(), name="answer")
        EvolInstruct(llm=llm(), num_evolutions=1, name="evolve")
    selected = Dataset.from_list([*ROWS, *ROWS]).select(range(6))
    dataset = {"list": ROWS, "pandas": pd.DataFrame(ROWS, index=range(9, 3, -1)), "datasets": selected}
    distiset = from_pipeline(pipeline, tmp_path / "out", in_process=True, dataset=dataset[kind])
    assert {name: len(distiset[name]["train"]) for name in distiset} == {"answer": 6, "evolve": 6}
    assert not [name for name in distiset["answer"]["train"].column_names if "index" in name], "pandas' own"


def test_given_rows_go_through_branches_that_meet(tmp_path: Path):
    with Pipeline() as pipeline:
        [answer("b"), answer("a")] >> GroupColumns(columns=["generation"], name="group")
    made = from_pipeline(pipeline, tmp_path / "out", in_process=True, dataset=ROWS)["default"]["train"]
    assert [row["grouped_generation"] for row in made] == [
        [row["generation_of_b"], row["generation_of_a"]] for row in made
    ]
    assert len(made) == 6


def test_a_step_made_of_a_dataset_loads_it(tmp_path: Path):
    with Pipeline() as pipeline:
        rows = Dataset.from_list([{"prompt": f"Write {number}."} for number in range(3)])
        make_generator_step(rows, output_mappings={"prompt": "instruction"}) >> TextGeneration(llm=llm())
    made = from_pipeline(pipeline, tmp_path / "out", in_process=True)["default"]["train"]
    assert sorted(made["instruction"]) == ["Write 0.", "Write 1.", "Write 2."]


def test_rows_of_several_loaders_go_together_where_all_meet_at_once(tmp_path: Path):
    """As a sampler of examples beside the rows that they are for."""

    def pipeline(samples: int, between: bool = False) -> Pipeline:
        with Pipeline() as made:
            load = LoadDataFromDicts(data=ROWS, name="rows")
            sampler = DataSampler(data=[{"shot": str(n)} for n in range(9)], size=2, samples=samples, name="shots")
            template = "{% for each in shot %}{{ each }} {% endfor %}{{ instruction }}"
            asked = TextGeneration(llm=llm(), template=template, columns=["shot", "instruction"], name="asked")
            combine = CombineOutputs(name="combine")
            [load, sampler >> Tidied(name="tidied") if between else sampler] >> combine
            combine >> [asked, answer("plain")]
        return made

    distiset = from_pipeline(pipeline(samples=6), tmp_path / "out", in_process=True)
    rows = distiset["asked"]["train"].to_list()
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in ROWS]
    assert all(len(row["shot"]) == 2 for row in rows)
    assert distiset["plain"]["train"]["shot"] == [row["shot"] for row in rows]
    with pytest.raises(JobError, match=r"different numbers of them \('rows': 6, 'shots': 5\)"):
        from_pipeline(pipeline(samples=5), tmp_path / "other", in_process=True)
    with pytest.raises(JobError, match=r"has 2 first steps; .* or several that load rows and all meet in a CombineOut"):
        from_pipeline(pipeline(samples=6, between=True), tmp_path / "other", in_process=True)


@pytest.mark.parametrize("kind", ["hub", "pandas", "datasets", "list"])
def test_a_pipeline_goes_on_from_the_dataset_of_another(tmp_path: Path, kind: str):
    """What batchgen wrote about its rows is left out; a column that is only called so is still refused."""
    with Pipeline() as first:
        LoadDataFromDicts(data=ROWS) >> answer("a", output_mappings={"generation": "draft"})
    made = from_pipeline(first, tmp_path / "first", in_process=True)
    table = made["default"]["train"]
    with Pipeline() as second:
        task = answer("b", input_mappings={"instruction": "draft"})
        if kind == "hub":
            table.to_parquet(tmp_path / "files" / "rows.parquet")
            LoadDataFromHub(repo_id=str(tmp_path / "files")) >> task
    given = {"pandas": table.to_pandas(), "datasets": table, "list": table.to_list()}.get(kind)
    rows = from_pipeline(second, tmp_path / "second", in_process=True, dataset=given)["default"]["train"]
    assert sorted(rows["draft"]) == sorted(table["draft"])
    assert set(rows["row_id"]) != set(table["row_id"])
    with pytest.raises(SeedError, match="column 'row_id' is one that batchgen writes itself"):
        with Pipeline() as third:
            answer("c")
        from_pipeline(third, tmp_path / "third", dataset=[{"instruction": "x", "row_id": "y"}])


@pytest.mark.parametrize("kind", ["dicts", "list", "pandas", "datasets", "hub", "own"])
def test_the_forms_of_structured_answers_are_those_of_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """distilabel's rows say them by dictionaries, of which a column of Arrow's would give each the keys of all."""
    forms = [
        {"format": "json", "schema": {"type": "object", "properties": {"name": {"type": "string"}}}},
        {"format": "json", "schema": {"type": "object", "properties": {"age": {"type": "integer", "minimum": 1}}}},
        {"format": "json", "schema": {"anyOf": [{"type": "integer", "maximum": 9}, {"type": "string"}]}},
    ]
    forms += [{"format": "regex", "schema": "[ab]+"}] * (kind in ("dicts", "list", "pandas"))  # else of another type
    other = {"other": {"a": 1}} if kind in ("datasets", "hub") else {}
    rows = [{"instruction": f"Do {number}.", "form": form, **other} for number, form in enumerate(forms)]
    asked: dict[str, Any] = {}

    async def generate(engine: ChaosEngine, request: Request) -> Completion:
        asked[request.messages[-1]["content"]] = request.sampling["structured_outputs"]
        return Completion("{}", "stop", 1, 1)

    monkeypatch.setattr(ChaosEngine, "generate", generate)
    mappings = {"structured_output": "form"}
    with Pipeline() as pipeline:
        task = StructuredGeneration(llm=llm(), name="form", input_mappings=mappings)
        if kind == "dicts":
            named = [{"instruction": row["instruction"], "given": row["form"]} for row in rows]
            LoadDataFromDicts(data=named, output_mappings={"given": "form"}) >> task
        elif kind == "own":
            Listed(rows=rows) >> task
        elif kind == "hub":
            Dataset.from_list(rows).to_parquet(tmp_path / "files" / "rows.parquet")
            LoadDataFromHub(repo_id=str(tmp_path / "files")) >> task
    given = {"list": list, "pandas": pd.DataFrame, "datasets": Dataset.from_list}
    dataset = given[kind](rows) if kind in given else None
    made = from_pipeline(pipeline, tmp_path / "out", in_process=True, dataset=dataset)["default"]["train"]
    assert asked == {row["instruction"]: {row["form"]["format"]: row["form"]["schema"]} for row in rows}
    assert [json.loads(text) for text in made["form"]] == forms
    assert not other or made["other"] == [{"a": 1}] * len(rows)


class Listed(GeneratorStep):
    """Makes the rows that it is given."""

    rows: list[dict[str, Any]]

    @property
    def outputs(self):
        return list(self.rows[0])

    def process(self, offset=0):
        yield self.rows, True
        yield [{**self.rows[0], "instruction": "Nobody asks for more."}], True


def test_distilabel_s_ready_made_pipeline_is_taken(tmp_path: Path):
    ready = InstructionResponsePipeline(llm=vLLM(model="chaos", magpie_pre_query_template="qwen2"), num_rows=3)
    made = from_pipeline(ready, tmp_path / "out", in_process=True)["default"]["train"]
    assert len(made) == 3
    assert {"instruction", "response"} <= set(made.column_names)


@pytest.mark.parametrize(
    ("make", "columns"),
    [
        (lambda: EmbeddingTaskGenerator(llm=llm(), category="text-retrieval"), {"tasks": "list[text]"}),
        (
            lambda: EmbeddingTaskGenerator(
                llm=llm(), category="text-retrieval", flatten_tasks=True, output_mappings={"task": "idea"}
            ),
            {"idea": "text"},
        ),
        (
            lambda: BitextRetrievalGenerator(
                llm=llm(), target_language="German", num_generations=3, group_generations=True
            ),
            {"S1": "text", "S2": "text", "S3": "text"},
        ),
    ],
)
def test_a_pipeline_may_begin_with_a_task_that_needs_no_input(make: Callable[[], Any], columns: dict[str, str]):
    with Pipeline() as pipeline:
        made = make()
        made >> KeepColumns(columns=list(columns))
    (job,) = translated(pipeline).values()
    assert job.source.count == 1
    assert trace_columns(job, {}) == columns
    assert job.steps[0].num_generations == made.num_generations


@pytest.mark.parametrize("kind", ["hub", "disk", "config", "folder"])
def test_runtime_parameters_are_set_as_pipeline_run_sets_them(tmp_path: Path, kind: str):
    Dataset.from_list(ROWS).to_parquet(tmp_path / "files" / "rows.parquet")
    rows = {"default": DatasetDict({"train": Dataset.from_list(ROWS)})}
    Distiset({**rows, "few": DatasetDict({"train": Dataset.from_list(ROWS[:2])})}).save_to_disk(tmp_path / "saved")
    saved = {"dataset_path": str(tmp_path / "saved"), "is_distiset": True}
    with Pipeline() as pipeline:
        loader, given = {
            "hub": (LoadDataFromHub, {"repo_id": str(tmp_path / "files"), "num_examples": 4}),
            "disk": (LoadDataFromDisk, saved),
            "config": (LoadDataFromDisk, {**saved, "config": "few"}),
            "folder": (LoadDataFromFileSystem, {"data_files": str(tmp_path / "files")}),
        }[kind]
        loader(name="load") >> TextGeneration(llm=llm(), name="answer")
    parameters = {"load": given, "answer": {"llm": {"generation_kwargs": {"max_new_tokens": 3}}}}
    made = from_pipeline(pipeline, tmp_path / "out", in_process=True, parameters=parameters)["default"]["train"]
    assert len(made) == (2 if kind == "config" else given.get("num_examples", 6))
    (step,) = json.loads((tmp_path / "out/runs/answer/job.json").read_text())["steps"]
    assert step["sampling"]["max_tokens"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "step 'load': repo_id is not set; give it to the step or in parameters"),
        ({"dataset": ROWS}, "step 'load': it has rows of its own, and dataset is given too"),
        ({"parameters": {"lod": {}}}, "parameters: no step 'lod'; legal: answer, load"),
        ({"kinds": {"generation": "number"}}, "kinds: no class of your own writes a column 'generation'; legal: there"),
        (
            {"parameters": {"load": {"repo": "x"}}},
            r"parameters\['load'\]: no .*'repo'; legal: .*repo_id",
        ),
        ({"parameters": {"answer": {"llm": {"max_new_tokens": 3}}}}, r"parameters\['answer'\]\['llm'\]: no .*'max_new"),
        ({"parameters": {"load": {"repo_id": "no such folder"}}}, "step 'load': source.dataset: 'no such folder'"),
        ({"parameters": ["load"]}, "parameters: expected a mapping, got list"),
        ({"parameters": {"load": 5}}, r"parameters\['load'\]: expected a mapping, got int"),
        ({"parameters": {"answer": {"llm": 5}}}, r"parameters\['answer'\]\['llm'\]: expected a mapping, got int"),
        ({"kinds": ["number"]}, "kinds: expected a mapping, got list"),
        ({"pipeline": "pipeline.yaml"}, "from_pipeline: expected a distilabel Pipeline, got str"),
    ],
)
def test_what_is_wrong_with_parameters_and_rows_is_named(tmp_path: Path, changes: dict, message: str):
    with Pipeline() as pipeline:
        LoadDataFromHub(name="load") >> TextGeneration(llm=llm(), name="answer")
    with pytest.raises(UserError, match=message):
        from_pipeline(**{"pipeline": pipeline, "output": tmp_path / "out", "in_process": True, **changes})
    with pytest.raises(JobError, match="engines: input should be greater than 0, got 0"):
        from_pipeline(keyed(token="x"), tmp_path / "out", engines=0, kinds={"rank": "number"})


def test_a_pipeline_without_rows_and_rows_of_an_odd_kind_are_refused(tmp_path: Path):
    with Pipeline() as pipeline:
        TextGeneration(llm=llm(), name="answer")
    with pytest.raises(JobError, match=r"a pipeline starts with one of LoadDataFromDicts, .*, or dataset is given"):
        from_pipeline(pipeline, tmp_path / "out", in_process=True)
    for dataset, message in (
        (
            DatasetDict({"train": Dataset.from_list(ROWS)}),
            r"dataset: expected a datasets\.Dataset, .*, got DatasetDict",
        ),
        ([], "dataset: there are no rows"),
        (Dataset.from_dict({"instruction": []}), "dataset: there are no rows"),
        (pd.DataFrame({"instruction": []}), "dataset: there are no rows"),
        ([ROWS[0], "x"], r"dataset\[1\]: expected a dictionary of columns by their names, got str"),
        ([{0: "x"}], r"dataset\[0\]: expected a dictionary of columns by their names, got keys like 0"),
        (pd.DataFrame({"instruction": ["canary", 1]}), "dataset: column 'instruction' has values of different types"),
        (pd.DataFrame([["a", "b"]], columns=["a", "a"]), "dataset: it has two columns 'a'"),
        (
            [{"instruction": Path("canary")}],
            r"dataset: source.rows\[0\]: column 'instruction' holds a value of type Posix",
        ),
        (
            [*ROWS, {"instruction": [1, "canary"]}],
            r"dataset: source.rows\[6\]: column 'instruction' is list here and str",
        ),
        ([{"instruction": [1, {"canary": 2}]}], "type list, whose parts have different types"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            from_pipeline(pipeline, tmp_path / "out", dataset=dataset)
        assert "canary" not in str(caught.value)
