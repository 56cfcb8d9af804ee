"""The plan: shards, columns, and what a resumed run is compared with."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest

from batchgen.api import plan_run
from batchgen.columns import trace_columns
from batchgen.embedded import MODEL_PATH
from batchgen.engines import repository
from batchgen.engines.arguments import engine_arguments
from batchgen.errors import JobError, ModelError, PlanMismatch, SeedError
from batchgen.job import Job, Source
from batchgen.plan import _TEXT_ARGUMENTS, Plan, make_plan, shard_bounds
from batchgen.seeds import load_seeds
from batchgen.settle import read_plan, settle_plan
from batchgen.store import LocalStore
from tests.helpers import chaos_job, planned


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 100, 1_000, 54_321, 1_000_000])
@pytest.mark.parametrize("shard_rows", [None, 1, 3, 512])
def test_shards_cover_the_rows_without_gap_or_overlap_and_end_small(rows: int, shard_rows: int | None):
    bounds = shard_bounds(rows, shard_rows)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == rows
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bounds))
    sizes = [stop - start for start, stop in bounds]
    assert min(sizes) >= 1
    assert max(sizes) <= (shard_rows or 512)
    assert sizes == sorted(sizes, reverse=True)
    assert sum(size for size in sizes if size == sizes[0]) >= rows // 2
    if rows >= max(1_000, 10 * sizes[0]):
        assert sizes[-1] <= 8, "so that no engine ends long after the others"


RECIPES = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_planned_on_the_embedded_model(path: Path):
    # Of a reward model it is none.
    reward = ["models.reward={path: chaos}"] if path.stem == "preference_reward" else []
    plan, seeds = plan_run(Job.load(path, ["model.path=embedded", *reward]))
    assert plan.rows == seeds.count > 0


def test_a_context_that_the_model_does_not_have_is_refused_before_an_engine_starts(monkeypatch: pytest.MonkeyPatch):
    tree = {"name": "t", "source": {"count": 1}, "steps": [{"task": "magpie"}], "output": "unused"}
    model = {"path": "embedded", "engine": {"max_model_len": 8193}}
    with pytest.raises(JobError, match=r"max_model_len: 'embedded' takes at most 8192 tokens, got 8193"):
        plan_run(Job.of({**tree, "model": model}))
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    plan_run(Job.of({**tree, "model": model}))


def test_code_of_a_model_is_pinned_unless_it_is_a_folder_or_ships_with_the_package(monkeypatch: pytest.MonkeyPatch):
    tree = {"name": "t", "source": {"count": 1}, "steps": [{"task": "magpie"}], "output": "unused"}
    plan_run(Job.of({**tree, "model": {"path": "embedded"}}), trust_remote_code=True)
    monkeypatch.setenv("HOME", str(MODEL_PATH.parent))
    plan_run(Job.of({**tree, "model": {"path": f"~/{MODEL_PATH.name}"}}), trust_remote_code=True)
    with pytest.raises(JobError, match=r"--trust-remote-code: runs the model's own code; pin it with model\.revision"):
        plan_run(Job.of({**tree, "model": {"path": "some/model"}}), trust_remote_code=True)


def test_a_tokenizer_with_code_of_its_own_runs_only_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = tmp_path / "model"
    shutil.copytree(MODEL_PATH, model)
    ran = tmp_path / "ran"
    (model / "own.py").write_text(
        f"import pathlib\nfrom transformers import PreTrainedTokenizerFast\npathlib.Path({str(ran)!r}).touch()\n"
        "class Own(PreTrainedTokenizerFast): pass\n"
    )
    config = json.loads((model / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    tree = {"name": "t", "source": {"count": 1}, "model": {"path": str(model)}, "steps": [{"task": "magpie"}]}
    job = Job.of({**tree, "output": "unused"})
    with pytest.raises(ModelError, match=r"contains custom code .* \(--trust-remote-code lets it run\)"):
        plan_run(job)
    assert not ran.exists()
    plan, _ = plan_run(job, trust_remote_code=True)
    assert ran.exists()
    with (model / "own.py").open("a") as file:
        file.write("# other code\n")
    assert plan_run(job, trust_remote_code=True)[0].fingerprint != plan.fingerprint, "code changes what a model says"


def test_a_template_takes_what_can_be_written_into_a_text():
    def traced(**kinds: str) -> dict[str, str]:
        steps = [{"task": "text_generation", "template": "{{ a }} {{ b }}"}]
        return trace_columns(chaos_job("out", steps=steps), kinds)

    assert traced(a="text", b="number") == traced(a="boolean", b="text") == {"generation": "text"}
    with pytest.raises(
        JobError, match="input 'b' takes texts, numbers or booleans, and column 'b' holds lists of texts"
    ):
        traced(a="text", b="list[text]")
    with pytest.raises(JobError, match="input 'instruction' takes texts, and column 'instruction' holds numbers"):
        trace_columns(chaos_job("out", steps=[{"task": "text_generation"}]), {"instruction": "number"})


@pytest.mark.parametrize(
    ("task", "templates", "message"),
    [
        ("evol_instruct", {}, "there must be at least one template"),
        ("evol_complexity", {"HARDER": "Make it harder."}, "the template 'HARDER' must hold <PROMPT>"),
        ("evol_quality", {"BETTER": "Improve <PROMPT>."}, "the template 'BETTER' must hold <RESPONSE>"),
    ],
)
def test_a_mutation_that_would_say_nothing_of_the_row_is_refused(task: str, templates: dict[str, str], message: str):
    rows = [{"instruction": "x", "response": "y"}]
    steps = [{"task": task, "mutation_templates": templates}]
    with pytest.raises(JobError, match=message):
        Job.of({"name": "t", "source": {"rows": rows}, "model": {"path": "chaos"}, "steps": steps, "output": "unused"})


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"path": "/nowhere"}, "models.judge.path: there is no folder '/nowhere'"),
        ({"path": "embedded", "engine": {"tokenizer": "/nowhere"}}, "models.judge.engine.tokenizer: the tok"),
        ({"path": "embedded", "engine": {"max_model_len": 999_999}}, "models.judge.engine.max_model_len: 'embed"),
        ({"path": "embedded", "lora": "/nowhere"}, "models.judge.lora: there is no folder '/nowhere'"),
        ({"path": "/model.path"}, "models.judge.path: there is no folder '/model.path'"),
    ],
)
def test_what_is_wrong_with_one_of_several_models_is_told_of_that_one(
    tmp_path: Path, judge: dict[str, object], message: str
):
    steps = [{"task": "magpie"}, {"task": "complexity_scorer", "model": "judge"}]
    changes = {"source": {"count": 1}, "model": {"path": "chaos"}, "models": {"judge": judge}}
    steps[1]["input_mappings"] = {"instructions": "answers"}
    steps.insert(1, {"task": "group_columns", "columns": ["response"], "output_mappings": {"grouped": "answers"}})
    with pytest.raises((ModelError, JobError)) as caught:
        plan_run(chaos_job(tmp_path, **changes, steps=steps))
    assert str(caught.value).startswith(message)
    own = {**changes, "model": judge, "models": {"judge": {"path": "chaos"}}}
    with pytest.raises((ModelError, JobError)) as caught:
        plan_run(chaos_job(tmp_path, **own, steps=steps))
    assert str(caught.value).startswith(message.replace("models.judge", "model"))


def test_an_adapter_that_is_not_there_is_named(tmp_path: Path):
    for lora, message in (
        ("org/adapter", "model.lora: there is no folder 'org/adapter'; fetch one from the Hub with `hf download`"),
        (str(tmp_path / "none"), f"model.lora: there is no folder '{tmp_path}/none'"),
        (str(tmp_path), f"model.lora: the folder '{tmp_path}' holds no LoRA adapter (it has no adapter_config.json)"),
    ):
        with pytest.raises(ModelError) as caught:
            plan_run(chaos_job(tmp_path / "run", source={"count": 1}, model={"path": "embedded", "lora": lora}))
        assert str(caught.value) == message


def test_a_base_model_takes_the_tasks_that_need_no_chat_template(tmp_path: Path):
    shutil.copytree(MODEL_PATH, tmp_path / "base", ignore=shutil.ignore_patterns("chat_template.jinja"))
    tree = {
        "name": "t",
        "source": {"rows": [{"instruction": "What is rain?"}]},
        "model": {"path": str(tmp_path / "base")},
        "output": str(tmp_path / "run"),
    }
    plan_run(Job.of({**tree, "steps": [{"task": "urial"}]}))
    answer = {"task": "text_generation", "output_mappings": {"generation": "other"}, "model": "judge"}
    both = {**tree, "models": {"judge": {"path": "embedded"}}, "steps": [{"task": "urial"}, answer]}
    plan_run(Job.of(both))
    with pytest.raises(ModelError, match=r"no chat template, which text_generation needs; .* such a base model: urial"):
        plan_run(Job.of({**tree, "steps": [{"task": "text_generation"}]}))


@pytest.mark.parametrize(
    ("template", "step", "message"),
    [
        (
            "{{ functions[0] }}{{ messages[0].content }}",
            {"task": "text_generation"},
            r"cannot write a user message: 'functions' is undefined; its template may want model\.chat_template_kwargs",
        ),
        ("Hello.", {"task": "text_generation"}, "drops or changes user messages"),
        ("{{ messages[0].content }}", {"task": "text_generation"}, None),
        ("{{ messages[0].content }}", {"task": "magpie"}, r"where a user turn ends, .*; set model\.pre_query_template"),
    ],
)
def test_a_template_that_would_not_write_what_a_row_asks_is_refused(
    tmp_path: Path, template: str, step: dict[str, str], message: str | None
):
    shutil.copytree(MODEL_PATH, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    source = {"count": 1} if step["task"] == "magpie" else {"rows": [{"instruction": "What is rain?"}]}
    tree = {"name": "t", "source": source, "model": {"path": str(tmp_path / "model")}, "steps": [step]}
    job = Job.of({**tree, "output": str(tmp_path / "run")})
    if message is None:
        plan_run(job)
    else:
        with pytest.raises(ModelError, match=message):
            plan_run(job)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ({"regex": "([a-z"}, "sampling.structured_outputs.regex: vLLM cannot compile it: .*Unclosed '\\['"),
        ({"json": {"type": "objekt"}}, 'sampling.structured_outputs.json: vLLM cannot compile it: .*"objekt"'),
        ({"regex": "[a-z]+"}, None),
        ({"json": '{"type": "object"}'}, None),
        ({"grammar": 'root ::= "a"'}, None),
    ],
)
@pytest.mark.parametrize("where", ["job", "step"])
def test_structured_outputs_are_compiled_when_a_run_is_planned(structure: dict, message: str | None, where: str):
    sampling = {"structured_outputs": structure}
    step = {"task": "text_generation", **({"sampling": sampling} if where == "step" else {})}
    tree = {"name": "t", "source": {"rows": [{"instruction": "a"}]}, "model": {"path": "embedded"}, "output": "unused"}
    job = Job.of({**tree, "steps": [step], **({"sampling": sampling} if where == "job" else {})})
    if message is None:
        plan_run(job)
        return
    with pytest.raises(JobError, match=("^" if where == "job" else r"^steps\[0\]\.") + message):
        plan_run(job)


def test_structured_outputs_are_compiled_for_the_model_that_a_step_runs_on():
    """A server has its own compiler."""
    server = {"path": "m", "backend": "openai", "engine": {"base_url": "http://127.0.0.1:1/v1"}}
    other = {"task": "text_generation", "output_mappings": {"generation": "other"}}
    broken = {"task": "text_generation", "sampling": {"structured_outputs": {"regex": "([a-z"}}}
    tree = {"name": "t", "source": {"rows": [{"instruction": "a"}]}, "output": "unused"}
    for model, judge, refused in (({"path": "embedded"}, server, False), (server, {"path": "embedded"}, True)):
        steps = [other, broken | {"model": "judge"}]
        job = Job.of({**tree, "model": model, "models": {"judge": judge}, "steps": steps})
        if refused:
            with pytest.raises(JobError, match=r"^steps\[1\]\.sampling\.structured_outputs\.regex"):
                plan_run(job)
        else:
            plan_run(job)


def test_a_plan_survives_its_file(tmp_path: Path):
    plan, _, store = planned(chaos_job(tmp_path))
    assert read_plan(store) == plan
    assert Plan.parse(plan.dump()).fingerprint == plan.fingerprint


def test_a_torn_or_changed_plan_is_refused(tmp_path: Path):
    plan, _, _ = planned(chaos_job(tmp_path))
    with pytest.raises(PlanMismatch, match="cannot be read"):
        Plan.parse(plan.dump()[:-10])
    with pytest.raises(PlanMismatch, match="was changed"):
        Plan.parse(plan.dump().replace(b'"seed":0', b'"seed":1'))
    with pytest.raises(
        PlanMismatch, match=r"is of another version of batchgen \(format 2; this one reads 3\); go on with that version"
    ):
        Plan.parse(b'{"format": 2, "fingerprint": "0"}')


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"sampling": {"temperature": 0.5}}, "sampling.temperature: absent then, 0.5 now"),
        ({"steps": [{"task": "magpie", "n_turns": 2}]}, "steps[0].n_turns: absent then, 2 now"),
        ({"steps": [{"task": "magpie", "model_name": True}]}, "steps[0].model_name: absent then, true now"),
        ({"source": {"count": 41}}, "seeds: 40 rows then, 41 now"),
        ({"source": {"rows": [{"x": str(i)} for i in range(40)]}}, "seeds: 40 rows then, 40 now (other content)"),
        ({"shard_rows": 5}, "shard_rows: null then, 5 now"),
        ({"model": {"path": "chaos", "engine": {"tokens": 3}}}, "model.engine.tokens: absent then, 3 now"),
    ],
)
def test_a_changed_job_is_refused_and_the_change_named(tmp_path: Path, change: dict, named: str):
    planned(chaos_job(tmp_path))
    with pytest.raises(PlanMismatch) as caught:
        planned(chaos_job(tmp_path, **change))
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"engines": 3}, {"merge": {"near": None}}, {"name": "x"}, {"model": {"path": "chaos", "engine": {"slots": 3}}}],
)
def test_what_does_not_change_the_rows_may_change(tmp_path: Path, change: dict):
    first, _, _ = planned(chaos_job(tmp_path))
    second, _, _ = planned(chaos_job(tmp_path, **change))
    assert first == second


@pytest.mark.parametrize(
    ("engine", "named"),
    [
        ({"max_num_seqs": 3, "gpu_memory_utilization": 0.5, "enforce_eager": False, "attention_backend": "X"}, None),
        ({"dtype": "float16"}, r"model\.engine\.dtype: absent then, \"float16\" now"),
        ({"reasoning_parser": "qwen3"}, r"model\.engine\.reasoning_parser: absent then, \"qwen3\" now"),
        ({"kv_cache_dtype": "fp8"}, r"model\.engine\.kv_cache_dtype: absent then, \"fp8\" now"),
    ],
)
def test_engine_arguments_that_change_the_text_may_not_change(tmp_path: Path, engine: dict, named: str | None):
    jobs = [
        chaos_job(tmp_path, source={"count": 3}, model={"path": "embedded", "engine": given}) for given in ({}, engine)
    ]
    plans = [make_plan(job, load_seeds(job.source)) for job in jobs]
    store = LocalStore(tmp_path)
    settle_plan(store, plans[0])
    if named is None:
        assert settle_plan(store, plans[1]) == plans[0]
    else:
        with pytest.raises(PlanMismatch, match=named):
            settle_plan(store, plans[1])


def test_arguments_that_change_the_text_are_vllm_s():
    assert set(_TEXT_ARGUMENTS) <= engine_arguments().keys()


def test_columns_are_those_of_the_steps():
    job = chaos_job(
        "x",
        source={"rows": [{"context": "text", "page": 3}]},
        steps=[
            {"task": "self_instruct", "input_mappings": {"input": "context"}, "explode": "instructions -> instruction"},
            {"task": "evol_instruct"},
            {"task": "text_generation", "input_mappings": {"instruction": "evolved_instruction"}},
        ],
    )
    plan = make_plan(job, load_seeds(job.source))
    assert plan.schema.names[-5:] == ["context", "page", "instruction", "evolved_instruction", "generation"]
    assert str(plan.schema.field("page").type) == "int64"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [{"task": "text_generation"}],
            r"steps\[0\] \(text_generation\): reads column 'instruction', which no step writes; available: text",
        ),
        (
            [{"task": "text_generation", "input_mappings": {"instruction": "tex"}}],
            "'tex', which no step writes; did you mean 'text'",
        ),
        (
            [{"task": "self_instruct", "input_mappings": {"input": "text"}}, {"task": "text_generation"}],
            r"\(map it with input_mappings: \{instruction: \.\.\.\}; to spread 'instructions' over rows: explode: "
            r"instructions -> instruction on the step before\)$",
        ),
        (
            [
                {"task": "self_instruct", "input_mappings": {"input": "text"}},
                {"task": "text_generation", "input_mappings": {"instruction": "instructions"}},
            ],
            "'instructions' holds lists of texts; to spread 'instructions' over rows: explode: instructions -> NEW",
        ),
        (
            [{"task": "magpie"}, {"task": "quality_scorer"}],
            r"\(map it with input_mappings: \{responses: \.\.\.\}; for lists of 'response': num_generations and "
            r"group_generations: true on the step that writes it\)$",
        ),
        (
            [{"task": "magpie"}, {"task": "quality_scorer", "input_mappings": {"responses": "response"}}],
            "input 'responses' takes lists of texts, and column 'response' holds texts; for lists of 'response': num",
        ),
        (
            [{"task": "text_generation", "input_mappings": {"instruction": "text"}}, {"task": "ultrafeedback"}],
            r"reads column 'instruction', which no step writes; available: text, generation \(map it with "
            r"input_mappings: \{instruction: \.\.\.\}\)$",
        ),
        (
            [{"task": "magpie"}, {"task": "magpie"}],
            r"steps\[1\] \(magpie\): column 'instruction' already exists; give the new one another name",
        ),
        ([{"task": "magpie", "explode": "nope -> x"}], r"explode: no column 'nope'"),
        ([{"task": "magpie", "explode": "instruction -> x"}], r"explode: column 'instruction' is not a list"),
        (
            [{"task": "magpie", "output_mappings": {"response": "reason"}}],
            "'reason' is one that batchgen writes itself",
        ),
        (
            [{"task": "chat_generation", "input_mappings": {"messages": "text"}}],
            r"input 'messages' takes conversations \(lists of messages with `role` and `content`, or `from` and "
            r"`value`\), and column 'text' holds texts",
        ),
        (
            [{"task": "quality_scorer", "input_mappings": {"instruction": "text", "responses": "text"}}],
            "input 'responses' takes lists of texts, and column 'text' holds texts",
        ),
    ],
)
def test_steps_that_do_not_fit_are_refused(steps: list, message: str):
    job = chaos_job("x", source={"rows": [{"text": "t"}]}, steps=steps)
    with pytest.raises(JobError, match=message):
        make_plan(job, load_seeds(job.source))


def test_a_list_of_the_seeds_keeps_its_name_though_it_is_spread_over_rows():
    again = {"input_mappings": {"instruction": "item"}, "output_mappings": {"generation": "items"}}
    steps = [{"task": "text_generation", "explode": "items -> item"}, {"task": "text_generation", **again}]
    job = chaos_job("x", source={"rows": [{"instruction": "t", "items": ["a"]}]}, steps=steps)
    with pytest.raises(JobError, match=r"steps\[1\] \(text_generation\): column 'items' already exists"):
        make_plan(job, load_seeds(job.source))


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ({"prompt": "tex"}, "merge: no text or conversation column 'tex'; did you mean 'text'"),
        ({"prompt": "page"}, "merge: no text or conversation column 'page'; available: text, generation"),
        ({"answer": "page"}, "merge: no text column 'page'; available: text, generation"),
        ({"columns": ["text", "genration"]}, "merge.columns: no column 'genration'; did you mean 'generation'"),
    ],
)
def test_columns_of_the_merge_that_do_not_fit_are_refused(merge: dict, message: str):
    step = {"task": "text_generation", "input_mappings": {"instruction": "text"}}
    job = chaos_job("x", source={"rows": [{"text": "t", "page": 3}]}, steps=[step], merge=merge)
    with pytest.raises(JobError, match=message):
        make_plan(job, load_seeds(job.source))


def test_a_row_without_a_required_value_is_named_with_its_line(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "x"}\n{"other": "y"}\n')
    job = chaos_job("x", source={"path": "a.jsonl"}, steps=[{"task": "text_generation"}])
    with pytest.raises(SeedError, match=r"a\.jsonl:2: column 'instruction' is missing or null"):
        make_plan(job, load_seeds(Source(path="a.jsonl"), tmp_path))


def test_a_folder_without_a_plan_is_no_run(tmp_path: Path):
    with pytest.raises(PlanMismatch, match="is not a batchgen run"):
        read_plan(LocalStore(tmp_path))


def test_of_two_that_settle_at_once_both_have_one_plan(tmp_path: Path):
    plan, _, store = planned(chaos_job(tmp_path))
    assert settle_plan(store, plan) == plan


def test_the_fingerprint_is_hashed_once(tmp_path: Path):
    """Each of thousands of manifests is compared with it, and it is over thousands of shards."""
    plan, _, _ = planned(chaos_job(tmp_path))
    assert plan.fingerprint is plan.fingerprint


def test_a_model_folder_with_other_files_is_refused_and_named(tmp_path: Path):
    shutil.copytree(MODEL_PATH, tmp_path / "model")
    job = Job.of(
        {
            "name": "t",
            "source": {"count": 3},
            "model": {"path": str(tmp_path / "model")},
            "steps": [{"task": "magpie"}],
            "output": str(tmp_path / "run"),
        }
    )
    store = LocalStore(job.output)
    plan = settle_plan(store, plan_run(job)[0])
    (tmp_path / "model" / "README.md").write_text("What training leaves beside a model does not count.")
    (tmp_path / "model" / "optimizer.pt").write_bytes(b"state")
    assert settle_plan(store, plan_run(job)[0]) == plan
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(PlanMismatch, match=r"model\.files: \"[0-9a-f]{32}\" then, \"[0-9a-f]{32}\" now"):
        settle_plan(store, plan_run(job)[0])


def test_of_large_model_files_both_ends_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(repository, "_WHOLE", 100)
    monkeypatch.setattr(repository, "_END", 10)
    weights = tmp_path / "model.safetensors"
    digests = []
    for content in (b"a" * 200, b"b" + b"a" * 199, b"a" * 199 + b"b", b"a" * 201, b"a" * 100 + b"b" + b"a" * 99):
        weights.write_bytes(content)
        digests.append(repository.files_digest(str(tmp_path)))
    assert len(set(digests[:4])) == 4
    assert digests[4] == digests[0], "the middle is not read: a model of hundreds of gigabytes is planned in seconds"
