"""Columns out of JSON that a model wrote: what is read, what is not guessed, and what that means for the row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchgen.errors import JobError
from batchgen.tasks.table import TASKS
from tests.helpers import ScriptedEngine, chaos_job, planned
from tests.unit.test_generate import run_all

KINDS = {"why": "text", "score": "number", "good": "boolean", "tags": "list[text]", "more": "text"}
WHOLE = {"why": "It fits.", "score": 4, "good": True, "tags": ["a", "b"]}


def step(columns: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"task": "parse_json", "columns": columns, "optional": ["more"] if "more" in columns else [], **more}


def parsed(tmp_path: Path, texts: list[str], columns: dict[str, str]) -> list[dict[str, Any]]:
    """What the step makes of completions, row by row, as the shard has it."""
    rows = [{"generation": text} for text in texts]
    return run_all(chaos_job(tmp_path, source={"rows": rows}, steps=[step(columns)]))[0]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(WHOLE),
        f"Sure! Here it is:\n```json\n{json.dumps(WHOLE, indent=2)}\n```\nI hope that this helps.",
        f"My verdict: {json.dumps(WHOLE)} as you see.",
        json.dumps([WHOLE]),
        json.dumps(WHOLE | {"more": None, "other": {"x": 1}}),
        json.dumps(WHOLE | {"score": "4"}),
        str(WHOLE),
    ],
)
def test_an_object_is_found_in_what_a_model_writes_around_it(tmp_path: Path, text: str):
    (row,) = parsed(tmp_path, [text], KINDS)
    assert row["outcome"] == "ok"
    assert {name: row[name] for name in KINDS} == {**WHOLE, "score": 4.0, "more": None}
    assert row["generation"] == text, "it stays"


@pytest.mark.parametrize(
    "text",
    [
        "It fits.",
        "4",
        "[1, 2]",
        json.dumps([WHOLE, WHOLE]),
        json.dumps({name: value for name, value in WHOLE.items() if name != "tags"}),
        json.dumps(WHOLE | {"why": None}),
        json.dumps(WHOLE | {"why": ["It fits."]}),
        json.dumps(WHOLE | {"score": "four"}),
        json.dumps(WHOLE | {"score": True}),
        json.dumps(WHOLE | {"score": [4]}),
        json.dumps(WHOLE | {"score": float("nan")}),
        json.dumps(WHOLE | {"score": "-inf"}),
        json.dumps(WHOLE)[:-20],
        json.dumps(WHOLE).replace("4", "1" + "0" * 400),
        json.dumps(WHOLE | {"good": "yes"}),
        json.dumps(WHOLE | {"tags": "a, b"}),
        json.dumps(WHOLE | {"tags": ["a", None]}),
        json.dumps(WHOLE | {"tags": [["a"]]}),
        json.dumps(WHOLE | {"more": ["x"]}),
    ],
)
def test_what_is_not_of_the_form_is_rejected_and_not_guessed(tmp_path: Path, text: str):
    first, second = parsed(tmp_path, [text, json.dumps(WHOLE)], KINDS)
    assert (first["outcome"], first["reason"]) == ("rejected", "invalid_output")
    assert second["outcome"] == "ok"


def test_conversations_and_lists_of_numbers_are_read_too(tmp_path: Path):
    said = [{"role": "user", "content": "Hi."}, {"from": "gpt", "value": "Hello."}]
    columns = {"talk": "conversation", "numbers": "list[number]", "pairs": "list[list[number]]", "big": "number"}
    good = {"talk": said, "numbers": [1, "2.5"], "pairs": [[1], []], "big": 2**60}
    broken = [good | {"talk": [{"role": "user"}]}, good | {"talk": ["Hi."]}, good | {"numbers": [1, "x"]}]
    rows = parsed(tmp_path, [json.dumps(each) for each in (good, *broken)], columns)
    assert [row["outcome"] for row in rows] == ["ok"] + ["rejected"] * 3
    assert rows[0]["talk"] == [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    assert (rows[0]["numbers"], rows[0]["pairs"], rows[0]["big"]) == ([1.0, 2.5], [[1.0], []], float(2**60))


@pytest.mark.parametrize("kind", ["text", "number", "boolean", "conversation", "list[text]"])
def test_what_may_be_absent_may_be_null_and_is_nothing_else(tmp_path: Path, kind: str):
    rows = parsed(tmp_path, ["{}", '{"more": null}', '{"more": {"x": 1}}'], {"more": kind})
    assert [(row["outcome"], row["reason"]) for row in rows] == [("ok", None)] * 2 + [("rejected", "invalid_output")]
    assert [row["more"] for row in rows] == [None] * 3


@pytest.mark.parametrize("around", ["{}", '{{"items": {}}}', "Here they are:\n```json\n{}\n```"])
def test_several_objects_are_lists_side_by_side_which_are_spread_over_rows(tmp_path: Path, around: str):
    made = [{"question": f"What is {n}?", "answer": n, "hint": None if n else "none"} for n in range(3)]
    broken: list[Any] = [{"question": "No answer?"}, {"question": "?", "answer": [1]}, "?", None]
    text = around.format(json.dumps([made[0], *broken, *made[1:]]))
    columns = {"question": "text", "answer": "text", "hint": "text"}
    spread = [f"{name} -> {name}" for name in columns]
    steps = [step(columns, optional=["hint"], several=True, explode=spread)]
    rows, _ = run_all(chaos_job(tmp_path, source={"rows": [{"generation": text}]}, steps=steps))
    assert [(row["question"], row["answer"], row["hint"]) for row in rows] == [
        ("What is 0?", "0", "none"),
        ("What is 1?", "1", None),
        ("What is 2?", "2", None),
    ]
    assert rows[0]["notes"].count("object_left_out") == 4


@pytest.mark.parametrize("text", ["[]", "{}", '{"items": []}', "None.", '[{"question": 5.5, "answer": null}]', "[1, 2"])
def test_a_list_without_an_object_of_the_form_rejects_its_row(tmp_path: Path, text: str):
    steps = [step({"question": "text", "answer": "text"}, several=True)]
    (row,), _ = run_all(chaos_job(tmp_path, source={"rows": [{"generation": text}]}, steps=steps))
    assert (row["outcome"], row["reason"], row["question"]) == ("rejected", "invalid_output", None)


def test_one_object_is_a_list_of_one_where_several_are_asked_for(tmp_path: Path):
    steps = [step({"tags": "list[text]"}, several=True)]
    texts = ['{"tags": ["a"], "more": 1}', '[{"tags": ["a"]}, {"tags": []}]']
    rows, _ = run_all(chaos_job(tmp_path, source={"rows": [{"generation": text} for text in texts]}, steps=steps))
    assert [row["tags"] for row in rows] == [[["a"]], [["a"], []]]


def test_half_a_surrogate_pair_rejects_its_row_alone(tmp_path: Path):
    first, second = parsed(tmp_path, ['{"why": "a\\ud800"}', '{"why": "\\u00e9"}'], {"why": "text"})
    assert (first["outcome"], first["reason"]) == ("rejected", "invalid_text")
    assert (second["outcome"], second["why"]) == ("ok", "é")


def test_a_number_is_a_text_where_one_is_asked_for(tmp_path: Path):
    (row,) = parsed(tmp_path, ['{"answer": 42, "half": 0.5}'], {"answer": "text", "half": "text"})
    assert (row["answer"], row["half"]) == ("42", "0.5")


def test_a_judge_by_a_rubric_of_one_s_own_filters_answers(tmp_path: Path):
    def says(prompt: str, number: int) -> str:
        if "Score this" not in prompt:
            return "Paris." if "France" in prompt else "No idea."
        return json.dumps({"why": "Because.", "score": 5 if "Paris" in prompt else 1})

    steps = [
        {"task": "text_generation", "output_mappings": {"generation": "answer"}},
        {
            "task": "text_generation",
            "template": "Score this: {{ answer }}",
            "output_mappings": {"generation": "verdict"},
        },
        step({"why": "text", "score": "number"}, input_mappings={"generation": "verdict"}),
        {"task": "filter", "keep": {"score": {"min": 4}}},
    ]
    rows = [{"instruction": f"What is the capital of {land}?"} for land in ("France", "Spain")]
    results, _ = run_all(chaos_job(tmp_path, source={"rows": rows}, steps=steps), ScriptedEngine(says))
    assert [(row["reason"], row["why"], row["score"]) for row in results] == [
        (None, "Because.", 5.0),
        ("filtered:score", "Because.", 1.0),
    ]


def test_json_that_was_cut_says_so(tmp_path: Path):
    steps = [{"task": "text_generation"}, step({"score": "number"})]
    for finish, expected in (("length", "truncated_output"), ("stop", "invalid_output")):
        job = chaos_job(tmp_path / finish, source={"rows": [{"instruction": "Score."}]}, steps=steps)
        (row,), _ = run_all(job, ScriptedEngine(lambda *_: '{"score": ', finish_reason=finish))
        assert (row["outcome"], row["reason"]) == ("rejected", expected)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"score": "int"},
            r"steps\[0\]\.columns\.score: expected text, number, boolean, conversation, or list\[\.\.\.\]",
        ),
        ({"score": 5}, r"steps\[0\]\.columns\.score: expected text, number, .* of one of these, got 5"),
        ({"score": "number?"}, r"steps\[0\]\.columns\.score: expected text, number"),
        ({}, r"steps\[0\]\.columns: "),
    ],
)
def test_kinds_that_are_none_are_refused(tmp_path: Path, columns: dict[str, Any], message: str):
    with pytest.raises(JobError, match=message):
        chaos_job(tmp_path, steps=[step(columns)])


def test_what_may_be_absent_has_to_be_a_key_that_is_read(tmp_path: Path):
    with pytest.raises(JobError, match=r"steps\[0\]\.optional: no column 'scores' is read"):
        chaos_job(tmp_path, steps=[step({"score": "number"}, optional=["score", "scores"])])


def test_columns_that_are_there_or_taken_are_refused_by_the_plan(tmp_path: Path):
    rows = [{"generation": "{}", "score": 1}]
    for name, said in (("score", "already exists"), ("model", "one that batchgen writes itself")):
        with pytest.raises(JobError, match=rf"steps\[0\] \(parse_json\): column '{name}'.*{said}"):
            planned(chaos_job(tmp_path, source={"rows": rows}, steps=[step({name: "number"})]))
    with pytest.raises(JobError, match=r"reads column 'generation', which no step writes"):
        planned(chaos_job(tmp_path, source={"count": 1}, steps=[step({"score": "number"})]))


def test_it_calls_no_model_and_loads_nothing_heavy_to_be_listed():
    assert not TASKS["parse_json"].calls_model
    code = "import sys, batchgen.tasks.table; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
