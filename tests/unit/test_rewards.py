"""Reward models: what they read, what becomes of their scores, and which models are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchgen import run
from batchgen.draw import mermaid
from batchgen.engines.base import Completion, EngineSpec, Request
from batchgen.engines.chaos import ChaosEngine
from batchgen.engines.modelconfig import check_architecture
from batchgen.engines.repository import Repository
from batchgen.errors import EngineDead, EngineUnavailable, JobError, ModelError, RowRejected
from batchgen.fleet import HostConfig
from batchgen.remarks import remarks
from tests.helpers import ScriptedEngine, chaos_job, planned, run_task
from tests.unit.test_generate import run_all

ASKED = {"instruction": "Add 1 and 2.", "system_prompt": "Be kind."}
ANSWER = {"role": "assistant", "content": "3"}
SEVERAL = {
    "task": "text_generation",
    "num_generations": 3,
    "group_generations": True,
    "output_mappings": {"generation": "generations"},
}
SCORED = {"task": "reward_scorer", "model": "judge", "of": "generations", "output_mappings": {"rewards": "ratings"}}


def judged(output: Path, **changes: Any) -> Any:
    """A job of answers that a reward model scores."""
    made = {"steps": [SEVERAL, SCORED, {"task": "preference_pair"}], "models": {"judge": {"path": "chaos"}}}
    rows = [{"instruction": f"What is {number} plus 2?"} for number in range(6)]
    return chaos_job(output, **{"source": {"rows": rows}, **made, **changes})


@pytest.mark.parametrize(
    ("row", "of", "said"),
    [
        (ASKED | {"generation": "3"}, "generation", ["system: Be kind.", "user: Add 1 and 2.", "assistant: 3"]),
        (ASKED | {"generation": "3", "system_prompt": " "}, "generation", ["user: Add 1 and 2.", "assistant: 3"]),
        ({"messages": [{"role": "user", "content": "Hi"}, ANSWER]}, "messages", ["user: Hi", "assistant: 3"]),
        ({"messages": [{"from": "human", "value": "Hi"}, ANSWER]}, "messages", ["user: Hi", "assistant: 3"]),
    ],
)
def test_a_reward_model_reads_the_whole_conversation_and_nothing_is_opened_after_it(
    row: dict[str, Any], of: str, said: list[str]
):
    engine = ScriptedEngine(["1.5"], scores=True)
    assert run_task("reward_scorer", row, engine, of=of) == {"reward": 1.5}
    turns = [text.partition(": ") for text in said]
    assert engine.prompts == ["".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, _, text in turns)]


def test_every_answer_of_a_list_is_scored_in_its_place():
    engine = ScriptedEngine(
        lambda prompt, _: "2" if "\ntwo<" in prompt else "1" if "\none<" in prompt else "0", scores=True
    )
    row = {"instruction": "Count.", "generations": ["two", "none", "one", "two"]}
    assert run_task("reward_scorer", row, engine, of="generations") == {"rewards": [2.0, 0.0, 1.0, 2.0]}
    assert len({request.key for request in engine.requests}) == 4


@pytest.mark.parametrize(
    ("row", "of", "answer", "reason"),
    [
        (ASKED | {"generation": "3"}, "generation", "nan", "no_score"),
        (ASKED | {"generation": "3"}, "generation", "-inf", "no_score"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "messages", "1", "no_answer"),
        ({"messages": []}, "messages", "1", "no_answer"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "1", "invalid_conversation"),
        ({"instruction": "Count.", "generations": ["1", None]}, "generations", "1", "missing_input:generations"),
        ({"instruction": "Count.", "generations": []}, "generations", "1", "empty_input"),
        ({"instruction": " ", "generation": ""}, "generation", "1", "empty_input"),
    ],
)
def test_what_has_no_score_is_rejected(row: dict[str, Any], of: str, answer: str, reason: str):
    with pytest.raises(RowRejected) as caught:
        run_task("reward_scorer", row, ScriptedEngine(lambda *_: answer, scores=True), of=of)
    assert caught.value.reason == reason


@pytest.mark.parametrize("error", [EngineDead("gone"), EngineUnavailable("away"), RowRejected("prompt_too_long")])
def test_what_happens_to_one_request_happens_to_its_row(error: Exception):
    def answer(prompt: str, _: int) -> str:
        if "two" in prompt:
            raise error
        return "1"

    row = {"instruction": "Count.", "generations": ["one", "two", "three"]}
    with pytest.raises(type(error)) as caught:
        run_task("reward_scorer", row, ScriptedEngine(answer, scores=True), of="generations")
    assert caught.value is error


def test_the_best_and_the_worst_answer_become_a_pair(tmp_path: Path):
    result = run(judged(tmp_path / "run"), in_process=True)
    (file,) = Path(result.dataset, "data").iterdir()
    rows = pq.read_table(file).to_pylist()
    assert len(rows) == 6
    for row in rows:
        said = dict(zip(row["generations"], row["ratings"], strict=True))
        assert len(said) == 3
        assert row["chosen"][0]["content"] == max(said, key=said.__getitem__)
        assert row["rejected"][0]["content"] == min(said, key=said.__getitem__)
        assert row["output_tokens"] == sum(len(text.split()) for text in said), "a score is no token"
        asked, answered = (len(f"<|im_start|>{role}\n<|im_end|>\n") for role in ("user", "assistant"))
        opened, question = len("<|im_start|>assistant\n"), len(row["instruction"])
        generated = 3 * (asked + question + opened)
        assert row["input_tokens"] == generated + sum(asked + question + answered + len(text) for text in said)
        assert row["finish_reason"] == "stop"
    again = run(judged(tmp_path / "again", shard_rows=1), in_process=True)
    (file,) = Path(again.dataset, "data").iterdir()
    assert pq.read_table(file).to_pylist() == rows


def test_a_row_without_a_score_keeps_what_its_generator_wrote(tmp_path: Path):
    class NoScore(ChaosEngine):
        async def generate(self, request: Request) -> Completion:
            return Completion("", "stop", 1, 0)

    rows = [{"instruction": "Add."}]
    steps = [{"task": "text_generation"}, {"task": "reward_scorer", "model": "judge"}]
    job = judged(tmp_path, source={"rows": rows}, steps=steps)
    ((row,), _) = run_all(job, others={"judge": NoScore(EngineSpec("chaos", scores=True))})
    assert (row["outcome"], row["reason"]) == ("rejected", "no_score")
    assert row["failed_completion"] and row["failed_completion"] == row["generation"]


def test_engines_know_what_they_are_for(tmp_path: Path):
    job = judged(tmp_path)
    config = HostConfig(job, planned(job)[0], "store", 7)
    own, judge = config.engine_spec(), config.engine_spec("judge")
    assert (own.scores, list(own.samplings)) == (False, ["steps[0]"])
    assert (judge.scores, list(judge.samplings)) == (True, [])


OWN = [{"task": "reward_scorer", "of": "generation"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"steps": [SEVERAL, SCORED | {"model": None}]},
            r"steps\[1\].task: .* model of its own",
        ),
        (
            {"steps": [SEVERAL, SEVERAL | {"model": "judge", "output_mappings": {"generation": "b"}}, SCORED]},
            r"steps\[2\].model: .*this one writes, for steps\[1\] \(text_generation\)",
        ),
        (
            {"models": {"judge": {"path": "x", "backend": "transformers"}}},
            r"steps\[1\].task: .*the transformers backend gives none",
        ),
        (
            {"models": {"judge": {"path": "x", "backend": "openai", "engine": {"base_url": "http://127.0.0.1:1/v1"}}}},
            r"steps\[1\].task: .*the openai backend gives none",
        ),
        *(
            ({"steps": [SEVERAL, SCORED | asked]}, "reward_scorer scores what others wrote and generates nothing")
            for asked in (
                {"num_generations": 2},
                {"group_generations": True},
                {"reasoning": "keep"},
                {"logprobs": True},
            )
        ),
        ({"steps": [SEVERAL, SCORED | {"of": "answers"}]}, "'generation', 'generations' or 'messages'"),
    ],
)
def test_a_job_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(JobError, match=message):
        judged(tmp_path, **changes)


def test_a_dataset_may_be_scored_by_the_job_s_own_model(tmp_path: Path):
    rows = [{"instruction": "Add.", "generation": "3"}]
    job = chaos_job(tmp_path, source={"rows": rows}, steps=OWN, sampling={"n": 4})
    ((row,), _) = run_all(job, ChaosEngine(EngineSpec("chaos", scores=True)))
    assert row["outcome"] == "ok" and isinstance(row["reward"], float)
    assert (row["output_tokens"], row["finish_reason"]) == (0, None)


def test_sampling_parameters_of_a_score_are_remarked(tmp_path: Path):
    job = judged(tmp_path, steps=[SEVERAL, SCORED | {"sampling": {"temperature": 0.0}}])
    assert remarks(job, planned(job)[0]) == ["steps[1].sampling: means nothing, as reward_scorer generates nothing"]


@pytest.mark.parametrize(
    ("config", "scores", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, False, None),
        ({"architectures": ["LlamaForCausalLM"]}, True, r"is no reward model: it writes \(LlamaForCausalLM\)"),
        ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}, True, None),
        ({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "good"}}, True, None),
        ({"architectures": ["LlamaForSequenceClassification"]}, True, "is no reward model: it tells 2 classes"),
        (
            {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "good"}},
            False,
            r"writes nothing \(LlamaForSequenceClassification\); .* reward_scorer reads",
        ),
        ({"architectures": ["SomethingNew"]}, True, None),
        ({"architectures": ["SomethingNew"]}, False, None),
        ({"architectures": None}, True, None),
        ({}, False, None),
        (None, True, None),
        (None, False, None),
    ],
)
def test_a_model_is_one_kind_or_the_other_by_its_config(
    tmp_path: Path, config: dict[str, Any] | None, scores: bool, message: str | None
):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    repository = Repository("org/model", str(tmp_path))
    if message is None:
        check_architecture(repository, scores)
    else:
        with pytest.raises(ModelError, match=f"model.path: 'org/model' {message}"):
            check_architecture(repository, scores)


def test_a_drawing_says_which_model_a_step_is_on(tmp_path: Path):
    assert '  step1["reward_scorer on judge<br/>ratings"]' in mermaid(judged(tmp_path)).splitlines()
