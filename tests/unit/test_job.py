"""The job file: what is legal, and what a user reads when it is not."""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from batchgen import keys
from batchgen.engines.arguments import sampling_arguments
from batchgen.errors import JobError
from batchgen.job import Benchmark, Job, Merge, Near, Source
from batchgen.keys import EXAMPLES
from batchgen.model import Model
from batchgen.step import Step
from batchgen.tasks.table import TASKS

GOOD = """\
name: magpie-math
seed: 42
source: {count: 10000}
model: {path: HuggingFaceTB/SmolLM2-1.7B-Instruct, engine: {max_model_len: 4096, tensor_parallel_size: 1}}
sampling: {temperature: 1.0, top_p: 0.95, max_tokens: 1024}
steps:
  - task: magpie
    n_turns: 1
    system_prompt: You are an AI assistant that helps with math problems.
merge: {near: {threshold: 0.8}}
output: runs/magpie-math
"""
# A hundred million values in nine lines.
ALIASES = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '0'] * 10)}]" for i in range(8))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(JobError) as caught:
        Job.load(write(tmp_path, text), overrides)
    return str(caught.value).replace(str(tmp_path), "")


def test_the_documented_job_loads(tmp_path: Path):
    job = Job.load(write(tmp_path, GOOD))
    assert job.source.count == 10000
    assert job.steps[0].parameters.n_turns == 1
    assert job.model.gpus == 1
    assert job.merge.near is not None
    assert job.merge.near.threshold == 0.8


def test_a_job_survives_its_own_tree(tmp_path: Path):
    job = Job.load(write(tmp_path, GOOD))
    assert Job.of(job.tree()).tree() == job.tree()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{count: 10000}", "{count: 1}"),
        ("{count: 10000}", "{rows: [{system_prompt: a}, {system_prompt: b}]}"),
        ("system_prompt: You are", "system_prompt: [a, b]\n    # You are"),
    ],
)
def test_temperature_0_is_taken_where_rows_may_differ(tmp_path: Path, old: str, new: str):
    text = GOOD.replace("temperature: 1.0", "temperature: 0").replace(old, new)
    assert Job.load(write(tmp_path, text)).sampling["temperature"] == 0


def test_a_job_cannot_be_changed(tmp_path: Path):
    job = Job.load(write(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        job.seed = 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 42", "sede: 42", "/job.yaml:2: sede: unknown key; did you mean 'seed'? Legal keys: name, seed"),
        ("seed: 42", "zzz: 42", "/job.yaml:2: zzz: unknown key; legal keys: name, seed"),
        ("count: 10000", "count: ten", '/job.yaml:3: source.count: input should be a valid integer, got "ten"'),
        ("count: 10000", "count: 0", "/job.yaml:3: source.count: input should be greater than or equal to 1, got 0"),
        ("{count: 10000}", "{}", "/job.yaml:3: source: give exactly one of count, rows, path, dataset; got none"),
        ("{count: 10000}", "{count: 1, path: x}", "source: give exactly one of"),
        (
            "{count: 10000}",
            "{path: x, split: test}",
            "source: config, revision, split and streaming belong to a dataset",
        ),
        ("{count: 10000}", "{count: 3, streaming: true}", "streaming belong to a dataset"),
        ("{count: 10000}", "{count: 1, columns: [x]}", "source: count makes rows without columns"),
        ("n_turns: 1", "n_turns: one", '/job.yaml:8: steps[0].n_turns: input should be a valid integer, got "one"'),
        ("n_turns: 1", "n_turn: 1", "/job.yaml:8: steps[0].n_turn: unknown key 'n_turn'; did you mean 'n_turns'?"),
        ("task: magpie", "task: magpy", "/job.yaml:7: steps[0].task: unknown task 'magpy'; did you mean 'magpie'?"),
        ("top_p: 0.95", "topp: 0.95", "/job.yaml:5: sampling.topp: unknown vLLM argument 'topp'; did you mean 'top_p'"),
        ("top_p: 0.95", "top_p: 9e-1", "sampling.top_p: expected float, got '9e-1' (YAML takes that for text; as a"),
        ("count: 10000", "count: 1e6", 'valid integer, got "1e6" (YAML takes that for text; as a number: 1000000)'),
        ("threshold: 0.8", "threshold: 8E-1", 'got "8E-1" (YAML takes that for text; as a number: 8.0e-1)'),
        (
            "temperature: 1.0",
            "temperature: 0",
            "/job.yaml:7: steps[0]: at temperature 0 all 10,000 rows of `count` would be the same",
        ),
        (
            "n_turns: 1",
            "num_generations: 4\n    sampling: {temperature: 0.0}",
            "steps[0]: at temperature 0 all 4 generations of a row would be the same",
        ),
        ("top_p: 0.95", "top_p: 1.5", "/job.yaml:5: sampling.top_p: must be from 1e-09 to 1, got 1.5"),
        (
            "top_p: 0.95",
            "structured_outputs: {jsn: {}}",
            "/job.yaml:5: sampling.structured_outputs.jsn: unknown vLLM argument 'jsn'; did you mean 'json'",
        ),
        ("top_p: 0.95", "structured_outputs: {regex: a, choice: [a]}", "give exactly one of json, regex, choice"),
        (
            "top_p: 0.95",
            "structured_outputs: {disable_any_whitespace: true}",
            "give exactly one of json, regex, choice",
        ),
        ("top_p: 0.95", "structured_outputs: {json: nonsense}", "sampling.structured_outputs.json: not JSON"),
        ("top_p: 0.95", "structured_outputs: {json: '[1]'}", "structured_outputs.json: expected a JSON schema"),
        ("top_p: 0.95", "structured_outputs: {choice: []}", "structured_outputs.choice: expected a list of texts"),
        ("top_p: 0.95", "stop: [END, 1]", "sampling.stop: expected texts that are not empty, got 1 among them"),
        ("top_p: 0.95", "stop: ''", "sampling.stop: expected texts that are not empty, got '' among them"),
        ("top_p: 0.95", "stop_token_ids: [a]", "sampling.stop_token_ids: expected token ids, got 'a' among them"),
        ("top_p: 0.95", "logit_bias: {a: 1}", "logit_bias: expected token ids and numbers, got 'a': 1 among them"),
        ("top_p: 0.95", "structured_outputs: {regex: 3}", "structured_outputs.regex: expected null or str, got 3"),
        ("top_p: 0.95", "repetition_detection: true", "expected a mapping with max_pattern_size, min_count, min_"),
        ("top_p: 0.95", "repetition_detection: {min_count: 3}", "max_pattern_size: must be at least 1, and is missing"),
        ("top_p: 0.95", "repetition_detection: {max_pattern_size: 3}", "min_count: must be at least 2, and is missing"),
        ("top_p: 0.95", "repetition_detection: {max_pattern: 3}", "unknown vLLM argument 'max_pattern'; did"),
        ("top_p: 0.95", "trace_decode_token_ids: [1]", "they would be every row's completion"),
        ("top_p: 0.95", "structured_outputs: json", "expected a mapping with one of json, regex"),
        ("task: magpie", "model: judge\n    task: magpie", "unknown model 'judge'; none is defined"),
        ("top_p: 0.95", "seed: 2", "/job.yaml:5: sampling.seed: 'seed' cannot be set here"),
        ("top_p: 0.95", "min_tokens: 1025", "/job.yaml:7: steps[0]: min_tokens (1025) is more than max_tokens (1024)"),
        ("top_p: 0.95", "n: 0", "/job.yaml:5: sampling.n: must be at least 1, got 0"),
        ("n_turns: 1", "num_generations: 3\n    sampling: {n: 2}", "num_generations and sampling.n are the same thing"),
        ("max_model_len: 4096", "max_len: 4096", "/job.yaml:4: model.engine.max_len: unknown vLLM argument"),
        ("max_model_len: 4096", "max_model_len: long", "model.engine.max_model_len: expected"),
        ("max_model_len: 4096", "trust_remote_code: true", "'trust_remote_code' cannot be set here"),
        ("max_model_len: 4096", "worker_cls: os.system", "names no code"),
        ("max_model_len: 4096", "distributed_executor_backend: ray", "an engine lives on one machine"),
        ("max_model_len: 4096", "data_parallel_rank: 1", "use `engines`"),
        ("max_model_len: 4096", "kv_transfer_config: {kv_connector_module_path: x}", "is kv_offloading_size"),
        ("max_model_len: 4096", "enable_log_requests: true", "and no prompt does"),
        ("max_model_len: 4096", "kv_events_config: {enable_kv_cache_events: true}", "would publish the tokens of"),
        ("max_model_len: 4096", "max_num_queued_reqs: 8", "would refuse rows for which it has no room yet"),
        ("max_model_len: 4096", "tokens_only: true", "with the model's own tokenizer"),
        ("max_model_len: 4096", "runner: pooling", "an engine generates text"),
        ("max_model_len: 4096", "override_generation_config: {top_k: 20}", "use `sampling`; servers alone go by it"),
        ("max_model_len: 4096", "spec_model: os.path", "use speculative_config"),
        ("max_model_len: 4096", "device_ids: [1]", "each engine is given GPUs of its own"),
        (
            "max_model_len: 4096",
            "structured_outputs_config: {reasoning_parser_plugin: /tmp/x.py}",
            "/job.yaml:4: model.engine.structured_outputs_config.reasoning_parser_plugin: cannot be set here: a job is",
        ),
        ("max_model_len: 4096", "compilation_config: {inductor_passes: {a: os.system}}", "inductor_passes: cannot be"),
        ("max_model_len: 4096", "compilation_config: {backend: os.system}", "legal: eager, inductor; got 'os.system'"),
        ("max_model_len: 4096", "speculative_config: {method: custom_class, model: a.B}", "got 'custom_class'"),
        ("max_model_len: 4096", "speculative_config: {model: a.B}", "vLLM would take 'a.B' for a class"),
        ("max_model_len: 4096", "speculative_config: {model: a.B, method: null}", "would take 'a.B' for a class"),
        ("tensor_parallel_size: 1", "tensor_parallel_size: 0", "/job.yaml:4: model.engine.tensor_parallel_size: must"),
        ("max_model_len: 4096", "prefill_context_parallel_size: 0", "context_parallel_size: must be at least 1"),
        (
            "max_model_len: 4096",
            "gpu_memory_utilization: 90",
            "/job.yaml:4: model.engine.gpu_memory_utilization: must be greater than 0 and at most 1, got 90",
        ),
        ("max_model_len: 4096", "gpu_memory_utilization: .nan", "must be greater than 0 and at most 1, got nan"),
        ("max_model_len: 4096", "max_num_seqs: 0", "model.engine.max_num_seqs: must be at least 1, got 0"),
        ("max_model_len: 4096", "max_model_len: -2", "model.engine.max_model_len: must be at least -1, got -2"),
        ("count: 10000", "count: 10000000000", "source.count: input should be less than or equal to 100000000"),
        ("threshold: 0.8", "threshold: 2", "/job.yaml:10: merge.near.threshold: input should be less than or equal"),
        ("name: magpie-math", "name: a/b", "/job.yaml:1: name: takes letters, digits, '.', '_' and '-', first a "),
        ("name: magpie-math", "name: ''", "first a letter or digit; got ''"),
        ("seed: 42", "seed: 42\nseed: 43", "/job.yaml:3: seed: key given twice"),
        ("seed: 42", "seed: [42", "not valid YAML"),
        (
            "{count: 10000}",
            "{rows: [{kind: list[text]}]}",
            "/job.yaml:3: not valid YAML: expected ',' or '}', but got '[' (within",
        ),
        (
            "{count: 10000}",
            "{rows: [really?]}",
            "but got '?' (within braces or brackets, a text with such a sign in it needs quotes)",
        ),
        ("count: 10000", "rows: &a [*a]", "/job.yaml:3: an alias to a value that contains it"),
        ("seed: 42", f"seed: 42\n{ALIASES}", "/job.yaml: its aliases repeat more than 100,000 values"),
        ("output: runs/magpie-math", "", "/job.yaml:1: output: missing"),
        ("model: {", "# model: {", "/job.yaml:1: model: missing"),
        ("name: magpie-math", "name: !!python/object/apply:os.getcwd []", "not valid YAML"),
        (
            "{count: 10000}",
            "{rows: [{a: 1}], columns: []}",
            "source.columns: name at least one column, or leave columns",
        ),
        (
            "{count: 10000}",
            "{rows: [{a: 1}], columns: {}}",
            "source.columns: name at least one column, or leave columns",
        ),
        ("{count: 10000}", "{rows: [{a: 1}], columns: {a: b, c: b}}", "source.columns: two columns would be 'b'"),
        ("{count: 10000}", "{rows: [{a: 1}], columns: {a: ''}}", "source.columns: a column has to have a name"),
        ("{count: 10000}", "{rows: [{a: 1}], columns: a}", "source.columns: expected a list or a mapping, got"),
        ("{count: 10000}", "{count: 3, columns: {a: b}}", "count makes rows without columns; leave columns out"),
        ("    n_turns: 1", "    explode: instruction", "steps[0].explode: must read `list column -> new column`"),
        ("    n_turns: 1", "    explode: [a -> b, c]", "steps[0].explode: must read `list column -> new column`"),
        ("    n_turns: 1", "    explode: []", "steps[0].explode: must read `list column -> new column`"),
        ("    n_turns: 1", "    explode: [a -> b, a -> c]", "steps[0].explode: spreads one list twice"),
        ("    n_turns: 1", "    explode: 5", "steps[0].explode: expected text or a list, got 5"),
        ("    n_turns: 1", "    input_mappings: {x: y}", "steps[0].input_mappings.x: 'x' is not an input of magpie"),
        (
            "  - task: magpie\n    n_turns: 1",
            "  - task: text_generation\n    input_mappings: {instruction: null}",
            "steps[0].input_mappings.instruction: text_generation needs 'instruction'; null leaves an input out that",
        ),
        (
            "    n_turns: 1",
            "    output_mappings: {x: y}",
            "'x' is not an output of magpie; legal: instruction, response",
        ),
    ],
)
def test_a_mistake_is_named_with_file_line_field_and_what_is_legal(tmp_path: Path, old: str, new: str, message: str):
    assert old in GOOD
    assert message in refused(tmp_path, GOOD.replace(old, new))


@pytest.mark.parametrize(
    "argument",
    [
        "compilation_config: {mode: 3, backend: eager}",
        "compilation_config: 3",
        "structured_outputs_config: {backend: guidance}",
        "speculative_config: {method: ngram, num_speculative_tokens: 3}",
        "speculative_config: {model: org/draft.v2, num_speculative_tokens: 3}",
        "speculative_config: {method: draft_model, model: draft.v2, num_speculative_tokens: 3}",
        "kv_offloading_size: 4",
    ],
)
def test_arguments_that_name_no_code_are_vllm_s_to_judge(tmp_path: Path, argument: str):
    (name, _) = argument.split(":", 1)
    assert name in Job.load(write(tmp_path, GOOD.replace("max_model_len: 4096", argument))).model.engine


def test_every_mistake_is_named_at_once(tmp_path: Path):
    text = refused(tmp_path, GOOD.replace("seed: 42", "sede: 42").replace("count: 10000", "count: -1"))
    assert "sede" in text
    assert "source.count" in text


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str):
    assert "a job is a mapping" in refused(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(JobError, match=r"a folder, and no job file; a run goes on with its own command$"):
        Job.load(tmp_path)
    with pytest.raises(JobError, match=r"nope\.yaml: no such job file"):
        Job.load(tmp_path / "nope.yaml")


def test_set_takes_any_field(tmp_path: Path):
    overrides = ["steps.0.n_turns=3", "model.path=embedded", "source.rows=[{a: b}]", "merge.near=false", "engines=2"]
    job = Job.load(write(tmp_path, GOOD), overrides)
    assert job.steps[0].parameters.n_turns == 3
    assert job.model.path == "embedded"
    assert job.source.rows == [{"a": "b"}]
    assert job.source.count is None
    assert job.merge.near is None
    assert job.engines == 2
    whole = Job.load(write(tmp_path, GOOD), ["steps.0={task: magpie, n_turns: 4}"])
    assert whole.steps[0].parameters.n_turns == 4


def test_a_job_without_a_step_that_calls_a_model_names_none(tmp_path: Path):
    head, merge = "name: t\nsource: {rows: [{q: a}]}\n", "merge: {prompt: q}\noutput: x\n"
    for steps in ("[]", "[{task: drop_duplicates, input_mappings: {instruction: q}}]"):
        job = Job.load(write(tmp_path, f"{head}steps: {steps}\n{merge}"))
        assert (job.model.path, job.used_models) == ("none", {})
        assert Job.of(job.tree()) == job
    step = "steps: [{task: text_generation, model: j, input_mappings: {instruction: q}}]\nmodels: {j: {path: chaos}}\n"
    message = "/job.yaml:1: model: missing; make one of `models` ('j') the job's own"
    assert message in refused(tmp_path, f"{head}{step}{merge}")
    numbered = "name: t\nsource: {count: 3}\nsteps: []\noutput: x\n"
    assert "/job.yaml:3: steps: numbered rows are empty" in refused(tmp_path, numbered)


def test_set_makes_no_part_out_of_one_that_is_empty(tmp_path: Path):
    assert "--set merge.near=false: 'merge' is empty in the job" in refused(
        tmp_path, f"{GOOD.partition('merge:')[0]}merge:\noutput: x\n", "merge.near=false"
    )


def test_a_source_that_is_set_replaces_the_one_in_the_file_with_what_belongs_to_it(tmp_path: Path):
    source = "source: {dataset: some/set, config: main, split: test, streaming: true, columns: [x], limit: 5}"
    path = write(tmp_path, GOOD.replace("source: {count: 10000}", source))
    count, rows, other = (
        Job.load(path, [f"source.{name}={value}"]).source
        for name, value in (("count", "3"), ("rows", "[{x: a}]"), ("dataset", "some/other"))
    )
    assert (count.count, count.columns, count.limit, count.streaming) == (3, None, 5, False)
    assert (rows.rows, rows.columns, rows.split) == ([{"x": "a"}], ["x"], "train")
    assert (other.dataset, other.config, other.split, other.streaming) == ("some/other", "main", "test", True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "must read key=value"),
        ("modle.path=x", "--set: modle: unknown key; did you mean 'model'?"),
        ("source.count=many", "--set: source.count: input should be a valid integer"),
        ("steps.7.task=magpie", "'7' is not an index of a list of 1"),
        ("steps.1.task=magpie", "'1' is not an index of a list of 1"),
        ("steps.²=magpie", "'²' is not an index of a list of 1"),
        ("name.x=1", "is not a mapping"),
        ("seed=[1", "--set seed=[1:1: not valid YAML: expected"),
        ("source.rows=&a [*a]", "an alias to a value that contains it"),
        ("model={path: a, path: b}", "path: key given twice"),
    ],
)
def test_a_bad_override_is_named(tmp_path: Path, override: str, message: str):
    assert message in refused(tmp_path, GOOD, override)


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("temperature=0.5", "sampling"),
        ("model.temperature=0.5", "sampling"),
        ("model.engine.temperature=0.5", "sampling"),
        ("steps.0.temperature=0.5", "steps[0].sampling"),
        ("tensor_parallel_size=2", "model.engine"),
        ("sampling.max_model_len=2", "model.engine"),
        ("steps.0.sampling.max_model_len=2", "model.engine"),
        ("models={judge: {path: chaos, dtype: float32}}", "models.judge.engine"),
        ("model.engine.lora=x", "model"),
        ("model.base_url='http://x/v1'", "model.engine, with backend: openai"),
        ("model.engine.engines=2", "the job itself"),
        ("steps.0.seed=2", "the job itself; it is for all steps"),
        ("merge.near.exact=false", "merge"),
        ("path=x", "source or model"),
        ("explode=a -> b", "a step"),
        ("steps.0.template=x", "a step with task: fill_template, text_generation"),
        ("threshold=0.7", "merge.near or a step with task: drop_duplicates"),
        ("system_prompt=x", "a step of some tasks"),
        ("mutation_templates={}", "a step with task: evol_complexity, evol_instruct, evol_quality"),
    ],
)
def test_a_key_that_stands_in_the_wrong_place_is_told_the_right_one(tmp_path: Path, override: str, place: str):
    key = override.partition("=")[0].rpartition(".")[2].replace("models", "dtype")
    complaint = refused(tmp_path, GOOD, override)
    assert complaint.endswith(f": unknown key; {key!r} belongs to {place}"), complaint


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "steps.0.llm=x",
            "key 'llm': the job's model answers, or the one of the job's models that the step's model names",
        ),
        ("steps.0.input_batch_size=50", "key 'input_batch_size': rows do not wait for each other"),
        ("steps.0.sampling.max_new_tokens=64", "key 'max_new_tokens': its name here is max_tokens"),
        ("sampling.num_return_sequences=2", "key 'num_return_sequences': a step has num_generations"),
        ("steps.0.columns=[a]", "; a text_generation reads those that its template's {{ placeholders }} name"),
    ],
)
def test_a_key_of_distilabel_s_is_told_what_does_the_same_here(tmp_path: Path, override: str, told: str):
    complaint = refused(tmp_path, GOOD, override)
    assert "unknown key" in complaint
    assert complaint.endswith(told)


def test_only_keys_that_distilabel_has_and_a_job_has_not_are_told_so():
    from distilabel.steps.tasks import EmbeddingTaskGenerator, EvolInstruct, StructuredGeneration, TextGeneration

    fields = {*Step.model_fields, *(name for spec in TASKS.values() for name in spec.parameters.model_fields)}
    assert keys._OF_STEPS.keys() & fields == {"columns"}
    assert not keys._OF_SAMPLING.keys() & sampling_arguments()
    distilabel = {name for task in (TextGeneration, EvolInstruct, StructuredGeneration) for name in task.model_fields}
    distilabel |= {*EmbeddingTaskGenerator.model_fields}
    assert keys._OF_STEPS.keys() - distilabel == {"generation_kwargs"}, "a field of its LLMs"


def test_a_key_that_stands_nowhere_is_told_what_is_legal_there(tmp_path: Path):
    model = refused(tmp_path, GOOD, "models={judge: {path: chaos, pth: x}}")
    assert model.startswith("--set: models.judge.pth: unknown key; did you mean 'path'? Legal keys: path, backend, ")
    server = {"path": "x", "backend": "openai", "engine": {"base_url": "http://x/v1", "max_model_len": 9}}
    legal = "legal: api_key_env, base_url, max_concurrency, max_retries, stream, timeout"
    complaint = refused(tmp_path, GOOD, f"models={{judge: {json.dumps(server)}}}")
    assert complaint.endswith(
        f"models.judge.engine.max_model_len: unknown field of the openai backend 'max_model_len'; {legal}"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "source=seeds.jsonl",
            "source: expected a mapping, like {count: 100}, {path: seeds.jsonl} or {dataset: ORG/NAME}, got "
            '"seeds.jsonl"',
        ),
        ("model=embedded", 'model: expected a mapping, like {path: ORG/NAME}, got "embedded"'),
        ("steps=[magpie]", 'steps[0]: expected a mapping, like {task: magpie}, got "magpie"'),
        ("merge.near=0.8", "merge.near: expected a mapping, like {threshold: 0.8}; or false, got 0.8"),
        ("sampling=0.8", "sampling: expected a mapping of keys to values, got 0.8"),
        ("source.path=3", "source.path: expected text or a list, got 3"),
        ("source.path=[a, 3]", "source.path[1]: input should be a valid string, got 3"),
        ("steps.0.system_prompt=3", "steps[0].system_prompt: expected text or a list or a mapping, got 3"),
        ("steps.0.system_prompt=[3]", "steps[0].system_prompt[0]: input should be a valid string, got 3"),
        ("steps.0.system_prompt={a: 3}", "steps[0].system_prompt.a: expected text or a list, got 3"),
        ('output="a\\0b"', r"output: a path has no NUL in it, got 'a\x00b'"),
        (
            "sampling.repetition_detection={1: 2}",
            "sampling.repetition_detection[1]: unknown vLLM argument '1'; legal: max_pattern_size, min_count, "
            "min_pattern_size",
        ),
        ("merge.near={threshold: 3}", "merge.near.threshold: input should be less than or equal to 1, got 3"),
    ],
)
def test_a_part_of_another_shape_is_told_what_it_looks_like(tmp_path: Path, override: str, message: str):
    assert refused(tmp_path, GOOD, override) == f"--set: {message}"


ODD = (
    *("null", "-1", "0", "1.5", "1e400", ".nan", "true", "2020-01-01", "99999999999999999999999", "!!binary aGk="),
    *('""', "x", "~x", "..", "/", '"*"', '"\\0"', "²", '"{{ x }}"', '"->"', '"$HOME"', "s3://b/c"),
    *("[]", "[null]", "[[1]]", "[{a: 1}]", "[.nan]", "[a, b]"),
    *("{}", "{a: null}", "{1: 2}", "{null: 1}", "{a: {b: [1]}}", "{a: .inf}", "{instruction: null}"),
)


def fields(part: object, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The paths of everything in a tree."""
    inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in inner:
        yield ".".join((*path, str(key)))
        yield from fields(value, (*path, str(key)))


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_no_value_of_any_field_is_more_than_refused(path: Path):
    keys = [*fields(yaml.safe_load(path.read_text())), *Job.model_fields]
    parts = {"source": Source, "model": Model, "merge": Merge}
    keys += [f"{part}.{key}" for part, kind in parts.items() for key in kind.model_fields]
    keys += [f"steps.0.{key}" for key in Step.model_fields]
    keys += [f"sampling.{key}" for key in ("n", "stop", "logit_bias", "structured_outputs", "repetition_detection")]
    chance = random.Random(path.stem)
    for key in keys:
        for value in chance.sample(ODD, 2):
            override = f"{key}={value}"
            with contextlib.suppress(JobError):
                assert Job.load(path, [override]), override


def test_of_very_many_mistakes_the_first_are_told(tmp_path: Path):
    lines = refused(tmp_path, GOOD, f"source.rows=[{', '.join(['3'] * 1025)}]").splitlines()
    assert lines[19] == "--set: source.rows[19]: expected a mapping of keys to values, got 3"
    assert lines[20:] == ["... and 1,005 more"]
    assert len(refused(tmp_path, GOOD, f"source.rows=[{', '.join(['3'] * 20)}]").splitlines()) == 20


def test_the_shapes_that_are_told_are_good_ones():
    kinds = {kind.__name__: kind for kind in (Source, Model, Step, Merge, Benchmark, Near)}
    assert EXAMPLES.keys() == kinds.keys()
    for name, text in EXAMPLES.items():
        shapes = re.findall(r"\{[^{}]*(?:\{[^{}]*\})?\}", text)
        assert shapes
        for shape in shapes:
            kinds[name].model_validate(yaml.safe_load(shape))


def test_several_generations_of_every_step_are_refused(tmp_path: Path):
    assert Job.load(write(tmp_path, GOOD), ["sampling.n=4"]).sampling["n"] == 4
    one = GOOD.replace("    n_turns: 1\n", "    only_instruction: true\n")
    one = one.replace("merge:", "  - task: drop_duplicates\nmerge:")
    assert Job.load(write(tmp_path, one), ["sampling.n=4"]).sampling["n"] == 4
    two = one.replace("merge:", "  - task: text_generation\nmerge:")
    assert refused(tmp_path, two, "sampling.n=4") == (
        "--set: sampling.n: every step would run 4 times for each row; give num_generations to the one that is meant"
    )
    assert Job.load(write(tmp_path, two), ["sampling.n=1", "steps.2.sampling={n: 4}"]).steps[2].sampling == {"n": 4}


def test_the_chaos_engine_s_fields_are_checked(tmp_path: Path):
    chaos = GOOD.replace("HuggingFaceTB/SmolLM2-1.7B-Instruct", "chaos").replace("tensor_parallel_size: 1", "slot: 1")
    assert "model.engine.slot: unknown field of the chaos engine 'slot'; did you mean 'slots'?" in refused(
        tmp_path, chaos
    )


@pytest.mark.parametrize("last", ["Job.load({path!r})", "import batchgen.api"], ids=["checked", "run"])
def test_a_job_is_checked_and_a_run_begun_without_importing_anything_heavy(tmp_path: Path, last: str):
    code = f"""
import sys
from batchgen.job import Job
{last.format(path=str(write(tmp_path, GOOD)))}
names = {{"vllm", "ray", "distilabel", "torch", "transformers", "datasets", "numba", "scipy", "pandas"}}
heavy = names & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


JUDGED = """\
name: judged
source: {count: 10}
model: {path: embedded}
models:
  judge: {path: big, backend: openai, engine: {base_url: "http://127.0.0.1:8000/v1"}}
steps:
  - task: magpie
    only_instruction: true
  - task: quality_scorer
    model: judge
    input_mappings: {responses: answers}
output: runs/judged
"""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokenize": True}, "model.chat_template_kwargs.tokenize: is batchgen's to set"),
        ({"documents": []}, "model.chat_template_kwargs.documents"),
    ],
)
def test_arguments_of_the_chat_template_are_checked(given: dict, message: str):
    tree = {"name": "t", "source": {"count": 1}, "steps": [{"task": "magpie"}], "output": "unused"}
    model = {"path": "embedded", "chat_template_kwargs": {"enable_thinking": False}}
    assert Job.of({**tree, "model": model}).model.chat_template_kwargs == {"enable_thinking": False}
    with pytest.raises(JobError, match=re.escape(message)):
        Job.of({**tree, "model": {**model, "chat_template_kwargs": given}})


def test_what_may_be_a_key_is_in_no_message(tmp_path: Path):
    for old, new in (("://", "://me:hush-hush@"), ("base_url:", "api_key_env: sk-hush-hush, base_url:")):
        with pytest.raises(JobError) as caught:
            Job.load(write(tmp_path, JUDGED.replace(old, new)))
        assert "/job.yaml:5: models.judge.engine." in str(caught.value)
        assert "hush" not in str(caught.value)


def test_a_key_of_the_environment_is_refused_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEARCH_API_KEY", "hush-0123456789ab")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "/root/.ray/auth_token")
    monkeypatch.setenv("ASK_FOR_TOKEN", "true")
    for old, new, field in (
        (
            "only_instruction: true",
            "system_prompt: {a: 'Look it up: hush-0123456789ab.'}",
            ":8: steps[0].system_prompt.a",
        ),
        (":8000/v1", ":8000/v1?key=hush-0123456789ab", ":5: models.judge.engine.base_url"),
    ):
        with pytest.raises(JobError) as caught:
            Job.load(write(tmp_path, JUDGED.replace(old, new)))
        assert f"/job.yaml{field}: holds the value of SEARCH_API_KEY, which would be kept in" in str(caught.value)
        assert "hush" not in str(caught.value)
    as_it_is = JUDGED.replace("only_instruction: true", "system_prompt: true /root/.ray/auth_token")
    assert Job.load(write(tmp_path, as_it_is)).steps[0].parameters.system_prompt == "true /root/.ray/auth_token"
    rows = {"source": {"rows": [{"instruction": "hush-0123456789ab"}]}, "model": {"path": "chaos"}, "output": "unused"}
    assert Job.of({"name": "t", "steps": [{"task": "text_generation"}], **rows}), "rows are what the user makes of them"


def test_a_judge_may_be_another_model(tmp_path: Path):
    job = Job.load(write(tmp_path, JUDGED))
    assert [job.model_of(step).path for step in job.steps] == ["embedded", "big"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model: judge", "model: juge", "/job.yaml:10: steps[1].model: unknown model 'juge'; did you mean 'judge'?"),
        ("only_instruction: true", "model: judge", "steps[0].task: magpie writes user turns, which a server"),
        ('base_url: "http://127.0.0.1:8000/v1"', "timeout: 3.0", "models.judge.engine.base_url: missing"),
        ("http://127.0.0.1:8000/v1", "file:///etc", "models.judge.engine.base_url: string should match pattern"),
        ("base_url:", "base: x, base_url:", "unknown field of the openai backend 'base'; did you mean 'base_url'?"),
        (
            "base_url:",
            "api_key_env: AWS_SECRET_ACCESS_KEY, base_url:",
            "models.judge.engine.api_key_env: must be the name of an environment variable, `*_API_KEY` in capitals",
        ),
        ("://", "://me:hush@", "models.judge.engine.base_url: must hold no user or password, which would be kept in"),
        ("backend: openai", "backend: openal", "models.judge.backend: input should be 'vllm', 'openai' or 'transfo"),
        ("backend: openai", "backend: openai, lora: x", "models.judge: lora needs the vllm backend"),
        ("backend: openai", "backend: openai, revision: x", "models.judge: the server decides on revision"),
        ("path: embedded", "path: embedded, backend: transformers, engine: {dtype: int8}", "model.engine.dtype: input"),
        (
            "path: embedded",
            "path: embedded, engine: {dtype: flot16}",
            "'flot16'; did you mean 'float16' or 'bfloat16'?",
        ),
        ("path: embedded", "path: embedded, engine: {max_lora_rank: 12}", "expected 1 or 8 or 16 or 32 or 64"),
        ("path: embedded", "path: embedded, engine: {max_lora_rank: true}", "got True"),
        (
            "only_instruction: true",
            "only_instruction: true\n    logprobs: true",
            "steps[0]: magpie makes several calls a row; logprobs: true needs a task that makes one",
        ),
        (
            "only_instruction: true",
            "system_prompt: {a: [x, 1], b: y}",
            "steps[0].system_prompt: give every system prompt a weight, or none of them",
        ),
        ("only_instruction: true", "system_prompt: {a: [x, -1]}", "weights must be numbers of 0 or more"),
        ("only_instruction: true", "system_prompt: {a: [x, 0]}", "at least one weight must be above zero"),
        (
            "model: judge\n    input_mappings: {responses: answers}",
            "num_generations: 2\n  - task: preference_pair\n    num_generations: 2",
            "preference_pair calls no model and generates nothing",
        ),
        (
            "model: judge\n    input_mappings: {responses: answers}",
            "num_generations: 2\n  - task: preference_pair\n    model_name: true",
            "preference_pair calls no model and generates nothing",
        ),
        (
            "model: judge\n    input_mappings: {responses: answers}",
            "num_generations: 2\n  - task: group_columns\n    columns: [answers, answers]",
            "columns: name 'answers' twice",
        ),
        (
            "model: judge\n    input_mappings: {responses: answers}",
            "num_generations: 2\n  - task: group_columns\n    columns: [answers]\n    kind: texts",
            "kind: input should be 'text', 'number', 'boolean'",
        ),
        ("task: quality_scorer", "task: quality_score", "did you mean 'quality_scorer'"),
        ("only_instruction: true", "system_prompt: {a: [x, .inf]}", "weights must be numbers of 0 or more"),
        (
            "only_instruction: true",
            "output_mappings: {instruction: response}",
            "two outputs would be the column 'response'",
        ),
        ("only_instruction: true", "output_mappings: {instruction: ''}", "a column has to have a name"),
        ("path: embedded", "path: embedded, revision: ''", "model.revision: string should have at least 1 character"),
        (
            "output: runs/judged",
            "output: gs://bucket/run",
            "/job.yaml:12: output: no store for 'gs'; legal: a folder",
        ),
        (
            "  - task: magpie\n    only_instruction: true\n",
            "  - task: text_generation\n    model: judge\n",
            "/job.yaml:3: model: no step runs on it: all name others of `models` ('judge'); make one of",
        ),
        (
            "output: runs/judged",
            "output: s3:/bucket/run",
            "output: no store for 's3'; legal: a folder that all",
        ),
        (
            "output: runs/judged",
            "output: $SCRATCH/run",
            "output: variables are not replaced in a job, got '$S",
        ),
    ],
)
def test_mistakes_in_models_and_steps_are_named(tmp_path: Path, old: str, new: str, message: str):
    assert old in JUDGED
    assert message in refused(tmp_path, JUDGED.replace(old, new, 1))


@pytest.mark.parametrize(
    ("sampling", "step", "message"),
    [
        (
            "presence_penalty: 1.0",
            "task: magpie",
            "sampling has 'presence_penalty', which the transformers backend does",
        ),
        ("top_p: 0.9", "task: text_classification", "text_classification asks for structured outputs"),
    ],
)
def test_the_transformers_backend_refuses_what_it_would_ignore(tmp_path: Path, sampling: str, step: str, message: str):
    text = (
        "name: t\nsource: {rows: [{text: a}]}\nmodel: {path: embedded, backend: transformers}\n"
        f"sampling: {{{sampling}}}\nsteps: [{{{step}}}]\noutput: x\n"
    )
    assert message in refused(tmp_path, text)


def test_a_text_generation_template_is_no_code(tmp_path: Path):
    text = (
        "name: t\nsource: {rows: [{q: a}]}\nmodel: {path: chaos}\n"
        'steps: [{task: text_generation, template: "%s"}]\noutput: x\n'
    )
    job = Job.load(write(tmp_path, text % "Q: {{ q }}"))
    assert dict(job.steps[0].inputs) == {"q": "printable", "system_prompt": "text?"}
    assert "placeholders and no other template code" in refused(tmp_path, text % "{{ q }}{% raw %}")
    assert "placeholders and no other template code" in refused(tmp_path, text % "{{ q }}{{ q.__class__ }}")
    assert "at least one {{ column }} placeholder" in refused(tmp_path, text % "Q")


@pytest.mark.parametrize("task", ["math_shepherd_generator", "math_shepherd_completer"])
def test_a_system_prompt_with_places_for_rules_is_no_code(tmp_path: Path, task: str):
    """distilabel makes an unsandboxed Jinja template of it: a job could run anything."""
    text = (
        "name: t\nsource: {rows: [{instruction: a, solutions: [[a, b]], golden_solution: [a, b]}]}\n"
        f'model: {{path: chaos}}\nsteps: [{{task: {task}, system_prompt: "%s"}}]\noutput: x\n'
    )
    Job.load(write(tmp_path, text % "{{ extra_rules }}{{few_shots}} {x} {{ structured_prompt }}"))
    Job.load(write(tmp_path, text % "Be kind."))
    legal = "may hold the placeholders {{ extra_rules }}, {{ few_shots }} and {{ structured_prompt }}, and no other"
    for code in (
        "{{ cycler.__init__.__globals__.os.getpid() }}",
        "{{ extra_rules }}{% if few_shots %}",
        "{{ rules }}",
        "{{ extra_rules | upper }}",
        "{# a #}",
    ):
        assert f"job.yaml:4: steps[0].system_prompt: {legal}" in refused(tmp_path, text % code)


RUBRIC = json.dumps("\n".join(["[Is it so?]", *(f"Score {score}: {score} of 5." for score in range(1, 6))]))
JUDGE, LABELS, STEPS = "prometheus_eval, mode: absolute", "text_classification", "math_shepherd_completer"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            f"{JUDGE}, rubric: helpfulnes",
            "rubric: no rubric 'helpfulnes'; did you mean 'helpfulness'? Legal: helpfulne",
        ),
        (f"{JUDGE}, rubric: y, rubrics: {{x: {RUBRIC}}}", "rubric: no rubric 'y'; legal: x"),
        (
            f'{JUDGE}, rubric: x, rubrics: {{x: "Score 1: bad"}}',
            "rubrics: 'x' must read [CRITERIA], and on a line each `Score 1: ...",
        ),
        (f"{JUDGE}, rubric: x, rubrics: {{x: {RUBRIC}}}", None),
        (f"{JUDGE}, rubric: reasoning", None),
        (f"{LABELS}, available_labels: []", "available_labels: list should have at least 1 item"),
        (f"{LABELS}, available_labels: {{}}", "available_labels: dictionary should have at least 1"),
        (f"{STEPS}, tags: [a, a]", "tags: must be two different texts"),
        (f"{STEPS}, tags: [a, '']", "tags: must be two different texts"),
        (f"{STEPS}, tags: [a]", "tags: list should have at least 2 items"),
        ("apigen_generator, number: x", "number: expected a whole number or a list or a mapping, got"),
        ("apigen_generator, number: 0", "number: input should be greater than 0, got 0"),
        ("apigen_generator, number: []", "number: list should have at least 1 item"),
        ("apigen_generator, number: {}", "number: dictionary should have at least 1 item"),
        ("apigen_generator, number: {a: 3}", 'number.a: input should be a valid integer, got "a"'),
        ("apigen_generator, number: {1: [2]}", "number[1]: input should be a valid number, got [2]"),
        ("apigen_generator, number: {1: -1}", "number[1]: input should be greater than or equal to 0, got -1"),
        ("apigen_generator, number: {1: 0}", "number: at least one weight must be above zero"),
        ("apigen_generator, number: {1: 0.5, 2: 3}", None),
    ],
)
def test_what_a_task_could_do_nothing_with_is_refused(tmp_path: Path, step: str, message: str | None):
    text = f"name: t\nsource: {{rows: [{{q: a}}]}}\nmodel: {{path: chaos}}\nsteps: [{{task: {step}}}]\noutput: x\n"
    if message is None:
        job = Job.load(write(tmp_path, text))
        assert Job.of(json.loads(json.dumps(job.tree()))).steps[0].parameters == job.steps[0].parameters
    else:
        (line,) = refused(tmp_path, text).splitlines()
        assert f"job.yaml:4: steps[0].{message}" in line


def test_no_field_s_name_is_another_thing_in_yaml():
    """YAML 1.1 reads `on`, `off`, `yes` and `no` as booleans, keys among them."""
    import yaml

    from batchgen.job import Merge, Near, Source
    from batchgen.model import Model
    from batchgen.step import Step
    from batchgen.tasks.table import TASKS

    parts = [Job, Merge, Model, Near, Source, Step, *(spec.parameters for spec in TASKS.values())]
    for part in parts:
        for name in part.model_fields:
            assert yaml.safe_load(f"{name}: 1") == {name: 1}


@pytest.mark.parametrize(
    ("sampling", "step", "times"),
    [
        ({}, {}, 1),
        ({"n": 3}, {}, 3),
        ({}, {"sampling": {"n": 2}}, 2),
        ({"n": 3}, {"sampling": {"n": 2}}, 2),
        ({"n": 3}, {"num_generations": 4}, 4),
        ({}, {"num_generations": 4, "sampling": {"n": 4}}, 4),
    ],
)
def test_n_is_another_word_for_generations(sampling: dict, step: dict, times: int):
    tree = {"name": "n", "source": {"count": 1}, "model": {"path": "chaos"}, "output": "x"}
    job = Job.of({**tree, "sampling": sampling, "steps": [{"task": "magpie", **step}]})
    assert job.generations(job.steps[0]) == times
    assert "n" not in job.step_sampling(job.steps[0])


def test_aliases_and_merged_keys_are_taken_as_what_they_stand_for(tmp_path: Path):
    text = GOOD.replace("  - task: magpie", "  - &first {task: magpie}\n  - <<: *first").replace(
        "{max_model", "&e {max_model"
    )
    job = Job.load(write(tmp_path, f"{text}models: {{b: {{path: embedded, engine: *e}}}}\n"))
    assert [step.task for step in job.steps] == ["magpie", "magpie"]
    assert job.models["b"].engine == job.model.engine


def test_a_part_of_a_task_s_parameter_is_checked_like_the_rest(tmp_path: Path):
    steps = "steps:\n  - task: urial\n    examples:\n      - {user: a, asistant: b}\n"
    text = GOOD[: GOOD.index("steps:")] + steps + "output: run\n"
    with pytest.raises(JobError) as caught:
        Job.load(write(tmp_path, text))
    line = text[: text.index("asistant")].count("\n") + 1
    at = f"{tmp_path}/job.yaml:{line}: steps[0].examples[0]"
    assert str(caught.value).splitlines() == [
        f"{at}.assistant: missing",
        f"{at}.asistant: unknown key; did you mean 'assistant'? Legal keys: user, assistant",
    ]
