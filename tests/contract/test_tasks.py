"""What holds for every task of the table: the columns it declares, and how its rows behave beside others."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import random
import re
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from batchgen.commit import read_manifest, read_shard
from batchgen.engines.base import EngineSpec
from batchgen.engines.chaos import ChaosEngine
from batchgen.errors import EngineDead, EngineUnavailable, RowRejected
from batchgen.rows import arrow_type
from batchgen.tasks.distilabel_api import tasks
from batchgen.tasks.fixes import task_class
from batchgen.tasks.judging import RUBRICS
from batchgen.tasks.llm import CallLog
from batchgen.tasks.runner import TaskRunner
from batchgen.tasks.spec import ANY, PRINTABLE, bare, is_required
from batchgen.tasks.table import LEFT_OUT, TASKS
from tests.helpers import ScriptedEngine, chaos_job, run_task, worker_on
from tests.task_examples import EXAMPLES

NAMES = sorted(TASKS)
# A gate ends rows on purpose: tests/unit/test_gates.py.
WORKING = [name for name in NAMES if TASKS[name].gate is None]
CALLING = [name for name in NAMES if TASKS[name].distilabel]
# A row whose prompt has this word gets an empty completion from the chaos engine.
POISON = "xyzzy"


def test_every_task_of_distilabel_is_an_entry_or_left_out_for_a_reason():
    classes = {
        name
        for name, value in vars(tasks).items()
        if inspect.isclass(value) and issubclass(value, tasks.Task | tasks.GeneratorTask | tasks.ImageTask)
    }
    classes |= {"FormatPRM", "APIGenExecutionChecker", "GenerateEmbeddings", "PairRM"}
    classes -= {"Task", "GeneratorTask", "ImageTask"}
    assert classes == {spec.distilabel for spec in TASKS.values() if spec.distilabel} | set(LEFT_OUT)


def test_every_task_has_an_example():
    assert set(EXAMPLES) == set(TASKS)


def built(name: str) -> Any:
    """distilabel's own object of a task with its example's parameters."""
    from batchgen.tasks.llm import EngineLLM

    spec, example = TASKS[name], EXAMPLES[name]
    kind = task_class(str(spec.distilabel))
    parameters = spec.parameters.model_validate(example.parameters)
    task = kind(name=name, llm=EngineLLM.over(ScriptedEngine([]), {}), **parameters.for_distilabel())
    task.load()
    return task


# Columns that batchgen names or types otherwise, each for the reason that its entry gives.
RENAMED = {
    "instruction_backtranslation": {"score_reason"},
    "math_shepherd_completer": {"labelled_solutions"},
}
UNUSED_INPUTS = {"urial": {"conversation"}}


@pytest.mark.parametrize("name", CALLING)
def test_columns_are_those_of_distilabel(name: str):
    spec, task = TASKS[name], built(name)
    parameters = spec.parameters.model_validate(EXAMPLES[name].parameters)
    declared = set(spec.outputs(parameters)) - RENAMED.get(name, set())
    assert declared <= {*task.outputs}
    assert {*task.outputs} - declared <= {"model_name", "reason"}
    theirs = {*getattr(task, "inputs", ())} - UNUSED_INPUTS.get(name, set())
    if name == "structured_generation":
        theirs |= {"system_prompt"}
    assert theirs == (set() if spec.generator else set(spec.inputs(parameters)))


@pytest.mark.parametrize("name", CALLING)
def test_parameters_are_those_of_distilabel(name: str):
    ours = set(TASKS[name].parameters.model_fields) - {"template", "keep_prompt"}
    assert ours <= set(type(built(name)).model_fields)


@pytest.mark.parametrize("name", NAMES)
def test_a_good_completion_gives_the_declared_columns(name: str):
    example, spec = EXAMPLES[name], TASKS[name]
    added = run_task(
        name,
        example.row,
        ScriptedEngine(lambda *_: example.answer, scores=spec.scored is not None),
        **example.parameters,
    )
    assert added == example.outputs
    kinds = spec.outputs(spec.parameters.model_validate(example.parameters))
    assert set(added) == set(kinds)
    import pyarrow as pa

    for column, kind in kinds.items():
        assert pa.array([added[column]], arrow_type(bare(kind))).to_pylist() == [added[column]]


def poisoned(name: str) -> dict[str, Any]:
    """The example's row with the marker in every text, so that it reaches the prompt."""

    def mark(value: Any) -> Any:
        if isinstance(value, str):
            return value if value.startswith("{") else f"{value} {POISON}"
        if isinstance(value, list):
            return [mark(item) for item in value]
        if isinstance(value, dict):
            return {key: item if key == "role" else mark(item) for key, item in value.items()}
        return value

    return {column: mark(value) for column, value in EXAMPLES[name].row.items()}


def rows_of(name: str, output: Any, order: list[int], slots: int) -> dict[str, dict[str, Any]]:
    """Six copies of the example through a worker on the chaos engine, the third poisoned; by their `tag` column."""
    example = EXAMPLES[name]
    reading = bool(example.row)
    rows = [
        {**(poisoned(name) if number == 2 and reading else example.row), "tag": f"row {number}"} for number in range(6)
    ]
    job = chaos_job(
        output,
        source={"rows": [rows[number] for number in order]},
        model={"path": "chaos", "engine": {"slots": slots, "reply": example.answer, "empty_on": POISON}},
        steps=[{"task": name, **example.parameters}],
        shard_rows=10,
    )
    scores = TASKS[name].scored is not None
    engine = ChaosEngine(EngineSpec("chaos", arguments=dict(job.model.engine), scores=scores))
    worker, plan, seeds, store = worker_on(engine, job)
    (shard,) = plan.shards
    asyncio.run(worker.shard(shard, "a", seeds.slice(0, 6)))
    manifest = read_manifest(store, plan, shard)
    table = read_shard(store, plan, manifest)
    return {record["tag"]: record for record in table.to_pylist()}


@pytest.mark.parametrize("name", WORKING)
def test_rows_in_are_rows_out_and_a_bad_one_is_rejected_alone(name: str, tmp_path):
    example, spec = EXAMPLES[name], TASKS[name]
    found = rows_of(name, tmp_path / "run", list(range(6)), slots=3)
    assert len(found) == 6
    rejected = {tag for tag, row in found.items() if row["outcome"] == "rejected"}
    poisonable = bool(example.row) and spec.calls_model
    assert rejected == ({"row 2"} if poisonable else set())
    for tag, row in found.items():
        source = poisoned(name) if tag == "row 2" and example.row else example.row
        for column, value in source.items():
            assert row[column] == value, "a column of the seed was lost or changed"
        assert not any("distilabel" in column for column in row)
        if tag in rejected:
            assert row["reason"] == ("empty_completion" if spec.generates else "no_score")
            assert all(row[column] is None for column in example.outputs)
        elif tag != "row 2":
            assert {column: row[column] for column in example.outputs} == example.outputs
    alone = {row["output_tokens"] for tag, row in found.items() if tag != "row 2"}
    assert len(alone) == 1, "tokens are counted row by row"


class Recording(ScriptedEngine):
    """Notes the prompts of each row by the row's own key."""


# Tasks that choose at random: a system prompt, a mutation, the wording of a prompt.
CHOOSING = {
    "magpie": {"system_prompt": [f"Topic {number}." for number in range(50)]},
    "evol_instruct": {"num_evolutions": 3, "eliminate": False},
    "evol_complexity": {"num_evolutions": 3, "eliminate": False},
    "evol_quality": {"num_evolutions": 3},
    "apigen_generator": {"number": [1, 2, 3, 4, 5]},
    "generate_text_retrieval_data": {},
    "generate_text_classification_data": {},
    "monolingual_triplet_generator": {},
    "bitext_retrieval_generator": {"target_language": "German"},
}


@pytest.mark.parametrize("name", sorted(CHOOSING))
def test_random_choices_are_the_row_s_own_in_any_order_and_on_any_engine(name: str):
    """Eight rows, in two orders on two engines, beside one another: each asks the same both times."""
    from batchgen.tasks.llm import CallLog
    from batchgen.tasks.runner import TaskRunner

    spec, example = TASKS[name], EXAMPLES[name]
    parameters = spec.parameters.model_validate({**example.parameters, **CHOOSING[name]})

    def asked(order: list[int]) -> dict[int, list[str]]:
        engine = ScriptedEngine(lambda *_: example.answer)
        runner = TaskRunner(name, spec, parameters, {}, {}, engine, {})

        async def go() -> None:
            await asyncio.gather(*(runner.run(dict(example.row), CallLog(f"{n}", 1000 + n)) for n in order))

        asyncio.run(go())
        prompts: dict[int, list[str]] = {}
        for prompt, request in zip(engine.prompts, engine.requests, strict=True):
            prompts.setdefault(int(request.key.split("-")[0]), []).append(prompt)
        return prompts

    first, second = asked(list(range(8))), asked(list(reversed(range(8))))
    assert first == second
    assert len({tuple(prompts) for prompts in first.values()}) > 1, "rows differ from one another"


@pytest.mark.parametrize("name", CALLING)
def test_only_tasks_that_say_so_choose_at_random(name: str):
    """The random generators are not seeded for the others: their choices would be anybody's."""
    from batchgen.tasks.llm import CallLog
    from batchgen.tasks.runner import TaskRunner

    spec, example = TASKS[name], EXAMPLES[name]
    choosing = spec.parameters.model_validate({**example.parameters, **CHOOSING.get(name, {})})
    assert spec.chooses(choosing) or name not in CHOOSING
    parameters = spec.parameters.model_validate(example.parameters)
    if not spec.chooses(parameters):
        runner = TaskRunner(name, spec, parameters, {}, {}, ScriptedEngine(lambda *_: example.answer), {})
        before = random.getstate(), str(np.random.get_state())
        asyncio.run(runner.run(dict(example.row), CallLog("row", 0)))
        assert (random.getstate(), str(np.random.get_state())) == before


@pytest.mark.parametrize("name", CALLING)
def test_words_that_mean_nothing_never_end_a_shard(name: str, tmp_path):
    """Whatever a model says, a row ends as ok or rejected with a short reason."""
    example = EXAMPLES[name]
    for number, reply in enumerate(("word", "{", '{"S1": 3}', "[1, 2", "Score: x", "\ud800", "#" * 3000, "- \n- \n")):
        job = chaos_job(
            tmp_path / f"run-{number}",
            source={"rows": [{**example.row, "tag": "t"}]},
            model={"path": "chaos", "engine": {"reply": reply}},
            steps=[{"task": name, **example.parameters}],
        )
        engine = ChaosEngine(EngineSpec("chaos", arguments=dict(job.model.engine)))
        worker, plan, seeds, _ = worker_on(engine, job)
        done = asyncio.run(worker.shard(plan.shards[0], "a", seeds.slice(0, 1)))
        assert done is not None
        assert done.progress.ok + done.progress.rejected == 1


@pytest.mark.parametrize("error", [EngineDead("gone"), EngineUnavailable("away"), RowRejected("a reason of its own")])
@pytest.mark.parametrize("name", CALLING)
def test_what_happens_to_a_call_happens_to_its_row(name: str, error: Exception):
    """Code of a task that takes every exception for a bad completion would store a row that nobody answered."""
    example = EXAMPLES[name]
    for calls in range(100):

        def answer(_: str, number: int, last: int = calls) -> str:
            if number == last:
                raise error
            return example.answer

        engine = ScriptedEngine(answer)
        try:
            run_task(name, example.row, engine, **example.parameters)
        except type(error) as caught:
            assert caught is error
        else:
            assert len(engine.prompts) == calls > 0
            return
    raise AssertionError("it never ends")


def test_the_rubrics_that_a_job_may_name_are_distilabel_s():
    assert tasks.PrometheusEval.model_fields["rubrics"].default.keys() == {*RUBRICS}


def test_optional_columns_are_marked_once():
    for name, spec in TASKS.items():
        for kind in spec.inputs(spec.parameters.model_validate(EXAMPLES[name].parameters)).values():
            assert bare(kind) in (ANY, PRINTABLE) or arrow_type(bare(kind)) is not None
            assert is_required(kind) != kind.endswith("?")


# A template engine would make something else of it.
CODE = "<PROMPT> <RESPONSE> {{ 7919 * 7919 }} {% if 1 %}{{ 7907 * 7907 }}{% endif %} {0} {x}"
VALUE = re.compile(f"{7919 * 7919}|{7907 * 7907}")


def with_code(value: Any) -> Any:
    """A value of a row with code in its texts."""
    if isinstance(value, dict):
        return {key: with_code(item) if key == "content" else item for key, item in value.items()}
    return [with_code(item) for item in value] if isinstance(value, list) else f"{value}{CODE}"


@pytest.mark.parametrize("name", CALLING)
def test_no_text_of_a_job_or_a_row_is_run_as_a_template(name: str):
    """distilabel's templates are not sandboxed: who may write a job could run anything on its machines."""
    spec, example = TASKS[name], EXAMPLES[name]
    forms = (CODE, [CODE], {"a": CODE}, [{"user": CODE, "assistant": CODE}], None)
    asked: list[str] = []
    for field, form in [*itertools.product(spec.parameters.model_fields, forms[:-1]), (None, None)]:
        given = {**example.parameters, **({field: form} if field is not None else {})}
        try:
            spec.parameters.model_validate(given)
        except ValidationError:
            continue
        texts = {key: value for key, value in example.row.items() if field is None and key != "structured_output"}
        row = {**example.row, **{key: with_code(value) for key, value in texts.items()}}
        engine = ScriptedEngine(lambda prompt, number: f"{example.answer}")
        with contextlib.suppress(RowRejected):
            run_task(name, row, engine, **given)
        asked += engine.prompts
        assert field is not None or not example.row or any(CODE in prompt for prompt in engine.prompts)
    assert asked
    assert not any(VALUE.search(prompt) for prompt in asked)


VALUES = (
    *("", " ", "x", "{", "<PROMPT><RESPONSE>", None, True, 0, 1, -1, 2.5),
    *([], [1], ["x"], ["x", "x"], [["x", 1]], [{"user": "a", "assistant": "b"}]),
    *({}, {"": ""}, {"a": "x"}, {"a": "<PROMPT><RESPONSE>"}, {"a": ["x", 1]}, {1: 0}, {1: -1}, {1: "x"}, {"1": 0.5}),
)


@pytest.mark.parametrize("name", CALLING)
def test_what_a_job_may_say_to_a_task_the_task_takes(name: str):
    """What it does not take is to be told before an engine starts."""
    spec, example = TASKS[name], EXAMPLES[name]
    for field, value in itertools.product(spec.parameters.model_fields, VALUES):
        try:
            parameters = spec.parameters.model_validate({**example.parameters, field: value})
        except ValidationError:
            continue
        engine = ScriptedEngine(lambda prompt, number: f"{example.answer} {number}")
        runner = TaskRunner(name, spec, parameters, {}, {}, engine, {})
        try:
            asyncio.run(runner.run(dict(example.row), CallLog("row", 0)))
        except RowRejected as rejection:
            assert not rejection.reason.startswith("task_error"), (field, value)


# What models write until they are cut, once they repeat themselves.
LOOPS = ("a", "\n", "rewrite ", "1. a\n", "[1, ", "Step 1: x ", "**Rating:** 4\n")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", CALLING)
def test_a_completion_that_goes_on_and_on_is_read_in_no_time(name: str):
    """All rows of an engine wait meanwhile. An expression that begins anew at every character takes minutes for these,
    which is what the limit is for."""
    example, field = EXAMPLES[name], "use_default_structured_output"
    forms = [{field: True}, {field: False}] if field in TASKS[name].parameters.model_fields else [{}]
    ends: set[str] = set()
    for loop in LOOPS:
        endless = loop * (200_000 // len(loop))
        for text in (endless, f"{example.answer}{endless}", f"```json{endless}"):
            for form, finish_reason in itertools.product(forms, ("stop", "length")):
                engine = ScriptedEngine(lambda prompt, number, text=text: text, finish_reason)
                try:
                    ends.add(str(run_task(name, dict(example.row), engine, **{**example.parameters, **form}).keys()))
                except RowRejected as rejection:
                    ends.add(rejection.reason)
    assert ends and not any(end.startswith("task_error") for end in ends), ends
