"""Completions that were cut at `max_tokens`: a row counts as cut only where it has something that the cut touched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchgen import run as run_job
from batchgen.branches import Generation, grouped
from batchgen.engines.base import Completion, Request
from batchgen.errors import PlanMismatch, RowRejected
from batchgen.job import Job
from batchgen.progress import cut_hint
from batchgen.tasks.completions import whole_instructions
from batchgen.tasks.llm import CallLog
from batchgen.tasks.runner import TaskRunner
from batchgen.tasks.table import TASKS
from tests.helpers import ScriptedEngine, chaos_job, planned
from tests.task_examples import EXAMPLES


class Cutting(ScriptedEngine):
    """Says the answers in order; those with the given numbers were cut."""

    def __init__(self, answers: Sequence[str], cut: Sequence[int]) -> None:
        super().__init__(answers)
        self._cut = cut

    async def generate(self, request: Request) -> Completion:
        number = len(self.prompts)
        completion = await super().generate(request)
        return replace(completion, finish_reason="length" if number in self._cut else "stop")


def run(
    name: str,
    row: Mapping[str, Any],
    answers: Sequence[str],
    cut: Sequence[int] = (0,),
    end_cut_rows: bool = False,
    **parameters: Any,
) -> tuple[dict[str, Any], str | None, list[str]]:
    """(added columns, finish reason, notes) of a row."""
    spec, log = TASKS[name], CallLog("row", 0)
    given, engine = spec.parameters.model_validate(parameters), Cutting(answers, cut)
    runner = TaskRunner(name, spec, given, {}, {}, engine, {}, end_cut_rows=end_cut_rows)
    (added,) = asyncio.run(runner.run(dict(row), log))
    return added, log.finish_reason, log.notes


ONE_CALL = sorted(name for name, spec in TASKS.items() if spec.single_call and spec.calls_model)
# Their JSON says where it ends; what a judge says after its verdict is no part of a row.
JSON = {
    "apigen_generator",
    "apigen_semantic_checker",
    "bitext_retrieval_generator",
    "embedding_task_generator",
    "generate_long_text_matching_data",
    "generate_text_classification_data",
    "generate_text_retrieval_data",
    "monolingual_triplet_generator",
}
REMARKED = JSON | {
    "complexity_scorer",
    "instruction_backtranslation",
    "math_shepherd_generator",
    "prometheus_eval",
    "quality_scorer",
    "ultrafeedback",
}


@pytest.mark.parametrize("name", ONE_CALL)
def test_a_row_whose_outputs_go_up_to_the_cut_is_cut(name: str):
    example = EXAMPLES[name]
    added, finish_reason, notes = run(name, example.row, [example.answer], **example.parameters)
    if name == "self_instruct":
        *whole, _ = example.outputs["instructions"]
        missing = ["instruction_missing"] * (example.parameters["num_instructions"] - len(whole))
        assert (added, finish_reason, notes) == ({"instructions": whole}, "stop", ["truncated_instruction", *missing])
    else:
        # The example's answer by urial is one that goes on with the next question.
        expected = "stop" if name in JSON or name == "urial" else "length"
        assert (added, finish_reason) == (example.outputs, expected)
        assert notes == []


@pytest.mark.parametrize("name", sorted(REMARKED))
def test_a_row_is_whole_where_what_was_cut_is_no_part_of_it(name: str):
    example = EXAMPLES[name]
    answer = f"{example.answer}\n\nAll in all this is"
    assert run(name, example.row, [answer], **example.parameters) == (example.outputs, "stop", [])


@pytest.mark.parametrize(
    "name", ["quality_scorer", "complexity_scorer", "text_classification", "ultrafeedback", "generate_sentence_pair"]
)
def test_json_that_ends_at_the_cut_rejects_no_row(name: str):
    row = {**EXAMPLES[name].row}
    number = len(row.get("responses") or row.get("instructions") or row.get("generations") or ())
    fields = {"scores": [1] * number, "labels": "sport", "ratings": [1] * number, "rationales": ["a"] * number}
    fields |= {"positive": "a", "negative": "b"}
    parameters = {**EXAMPLES[name].parameters, "use_default_structured_output": True}
    added, _, _ = run(name, row, [json.dumps(fields)], **parameters)
    assert {name: fields[name] for name in added} == added


@pytest.mark.parametrize(
    ("answer", "finish_reason"),
    [
        ("[1] score: 2\n[2] score: 1", "length"),  # of 10, perhaps
        ("[1] score: 2\n[2] score: 1\n", "stop"),
        ("[1] score: 2\n[2] score: 1\n[3", "stop"),
    ],
)
def test_a_number_at_the_cut_is_not_known_to_be_whole(answer: str, finish_reason: str):
    row = {"instruction": "Add.", "responses": ["a", "b"]}
    assert run("quality_scorer", row, [answer]) == ({"scores": [2.0, 1.0]}, finish_reason, [])


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("1. Add.\n2. Prove it.\n3. Sho", ["Add.", "Prove it."]),
        ("1. Add.\n2. Prove it.\n3.", ["Add.", "Prove it."]),
        ("1. Add.\n2. Prove it.\n", ["Add.", "Prove it."]),
        ("Add.\nProve it.\nSho", ["Add.", "Prove it."]),
        ("1. Add:\n   - one\n   - tw", []),
        ("1. Add.\n2. Prove:\n   - one\n   - tw", ["Add."]),
        ("1. Add.\n2. Prove it.\n\nI hope th", ["Add.", "Prove it."]),
        ("Ad", []),
    ],
)
def test_instructions_before_the_cut_are_whole(text: str, whole: list[str]):
    assert whole_instructions(text) == whole


def test_a_list_cut_in_its_first_instruction_rejects_the_row():
    with pytest.raises(RowRejected, match=r"^truncated_output$"):
        run("self_instruct", {"input": "Text."}, ["1. Write a poem about"])


def test_an_evolution_that_was_cut_is_eliminated():
    answers = ["Add 2 and 3, and then show that", "Add 2, 3 and 4."]
    row, finish_reason, notes = run("evol_instruct", {"instruction": "Add 2 and 3."}, answers, num_evolutions=2)
    assert (row, finish_reason, notes) == ({"evolved_instruction": "Add 2, 3 and 4."}, "stop", ["eliminated_truncated"])
    answers = ["Add 2, 3 and 4.", "Add 2 and 3, and then show that"]
    row, finish_reason, _ = run("evol_instruct", {"instruction": "Add 2 and 3."}, answers, (1,), num_evolutions=2)
    assert (row, finish_reason) == ({"evolved_instruction": "Add 2, 3 and 4."}, "stop")


@pytest.mark.parametrize("eliminate", [True, False])
def test_a_response_that_was_cut_gives_way_to_the_one_before(eliminate: bool):
    row, answers = {"instruction": "Add 2 and 3.", "response": "5"}, ["It is 5, which can be"]
    added, finish_reason, notes = run("evol_quality", row, answers, eliminate=eliminate)
    if eliminate:
        assert (added, finish_reason, notes) == ({"evolved_response": "5"}, "stop", ["eliminated_truncated"])
    else:
        assert (added, finish_reason, notes) == ({"evolved_response": answers[0]}, "length", [])


def test_without_elimination_an_evolution_that_was_cut_stays_and_its_row_is_cut():
    answers = ["Add 2 and 3, and then show that"]
    row, finish_reason, notes = run("evol_instruct", {"instruction": "Add 2 and 3."}, answers, eliminate=False)
    assert (row, finish_reason, notes) == ({"evolved_instruction": answers[0]}, "length", [])


@pytest.mark.parametrize(("cut", "finish_reason"), [((1,), "stop"), ((2,), "length")])
def test_of_the_answers_to_evolutions_that_which_stays_counts(cut: Sequence[int], finish_reason: str):
    answers = ["Prove it.", "... ... ...", "It is 5."]
    row, finished, notes = run("evol_instruct", {"instruction": "Add."}, answers, cut, generate_answers=True)
    assert row == {"evolved_instruction": "Add.", "answer": "It is 5."}
    assert (finished, notes) == (finish_reason, ["eliminated_answer_says_nothing"])


STEPS = {
    "instruction": "1 + 1 + 1?",
    "solutions": [["Step 1: 1 + 1 = 2", "Step 2: 2 + 1 = 3", "The answer is: 3"]],
    "golden_solution": ["Step 1: 3", "The answer is: 3"],
}


@pytest.mark.parametrize(
    ("answer", "label", "finish_reason"),
    [
        ("Step 2: 3\nThe answer is: 3\n---\nStep 2: Well,", "+", "stop"),
        ("Step 2: 3\nThe answer is: 4\n---\nStep 2: Well,", "-", "length"),
        ("Step 2: 4\nThe answer is: 4\n---\nStep 2: 3\nThe answer is: 3", "+", "length"),  # of 30, perhaps
    ],
)
def test_a_step_that_is_right_before_the_cut_is_right(answer: str, label: str, finish_reason: str):
    row, finished, _ = run("math_shepherd_completer", STEPS, [answer], N=2)
    assert row["labelled_solutions"][0][0] == f"Step 1: 1 + 1 = 2 {label}"
    assert finished == finish_reason


def test_a_generation_that_is_left_out_of_its_group_does_not_cut_it():
    cut = CallLog("cut", 0, ended="length", cuts=1)
    whole = CallLog("whole", 0, ended="stop")
    group = grouped([Generation(whole, {"scores": [1.0]}, None), Generation(cut, {}, "truncated_output")])
    assert group.log.finish_reason == "stop"
    assert group.log.notes == ["generation_failed:truncated_output"]
    assert grouped([Generation(cut, {}, "truncated_output")] * 2).log.finish_reason == "length"


@pytest.mark.parametrize(("answers", "ends"), [(["q1", "a1", "q2", "a2"], True), (["q1", "a1"], False)])
def test_a_conversation_ends_with_the_answer_that_was_cut(answers: list[str], ends: bool):
    """Where cut rows are not wanted, the rest of it is not paid for; a cut last answer costs nothing more."""
    turns = len(answers) // 2
    if ends:
        with pytest.raises(RowRejected, match=r"^truncated$"):
            run("magpie", {}, answers[:2], (1,), True, n_turns=turns)
    else:
        assert run("magpie", {}, answers, (1,), True, n_turns=turns)[1] == "length"
    assert run("magpie", {}, answers, (1,), False, n_turns=turns)[1] == "length"


SAID = ["q1", "a1", "q2", "a2", "q3", "a3"]


@pytest.mark.parametrize(
    ("said", "cut", "end_with_user", "left", "calls"),
    [
        (SAID, (), False, 6, 6),
        (SAID, (5,), False, 4, 6),
        (SAID, (4,), False, 4, 5),
        (SAID, (3,), False, 2, 4),
        (SAID, (2,), False, 2, 3),
        ([*SAID[:3], ""], (), False, 2, 4),
        ([*SAID[:2], " \n"], (), False, 2, 3),
        ([*SAID[:3], "<think>Well,"], (3,), False, 2, 4),
        (SAID, (), True, 5, 5),
        (SAID, (4,), True, 3, 5),
        (SAID, (3,), True, 3, 4),
    ],
)
def test_a_conversation_may_be_kept_up_to_what_was_cut(
    said: list[str], cut: tuple[int, ...], end_with_user: bool, left: int, calls: int
):
    spec, log = TASKS["magpie"], CallLog("row", 0)
    given = spec.parameters.model_validate({"n_turns": 3, "keep_shorter": True, "end_with_user": end_with_user})
    runner = TaskRunner("magpie", spec, given, {}, {}, Cutting(said, cut), {}, end_cut_rows=True)
    (added,) = asyncio.run(runner.run({}, log))
    assert [message["content"] for message in added["conversation"]] == SAID[:left]
    assert [message["role"] for message in added["conversation"]] == (["user", "assistant"] * 3)[:left]
    assert (log.calls, log.finish_reason) == (calls, "stop")
    notes = [note for note in log.notes if note != "reasoning_dropped"]
    assert notes == (["conversation_shortened"] if left < 6 - end_with_user else [])


def test_a_conversation_without_a_whole_exchange_is_not_kept():
    for cut, reason in ((0, "truncated_instruction"), (1, "truncated")):
        with pytest.raises(RowRejected, match=f"^{reason}$"):
            run("magpie", {}, SAID, (cut,), True, n_turns=2, keep_shorter=True)
    with pytest.raises(RowRejected, match=r"^truncated_instruction$"):
        run("magpie", {}, SAID, (2,), True, n_turns=3, keep_shorter=True, end_with_user=True)
    with pytest.raises(RowRejected, match=r"^truncated_instruction$"):
        run("magpie", {}, SAID, (2,), True, n_turns=3)


def test_where_cut_answers_are_wanted_a_conversation_goes_on_behind_them():
    added, finish_reason, notes = run("magpie", {}, SAID, (1, 5), False, n_turns=3, keep_shorter=True)
    assert (len(added["conversation"]), finish_reason, notes) == (6, "length", [])


def test_what_is_no_fault_of_a_conversation_does_not_shorten_it():
    class Failing(Cutting):
        async def generate(self, request: Request) -> Completion:
            if len(self.prompts) == 4:
                raise RowRejected("engine_error")
            return await super().generate(request)

    spec = TASKS["magpie"]
    given = spec.parameters.model_validate({"n_turns": 3, "keep_shorter": True})
    runner = TaskRunner("magpie", spec, given, {}, {}, Failing(SAID, ()), {}, end_cut_rows=True)
    with pytest.raises(RowRejected, match=r"^engine_error$"):
        asyncio.run(runner.run({}, CallLog("row", 0)))


CHAIN = [
    {"task": "text_generation", "output_mappings": {"generation": "draft"}},
    {"task": "text_generation", "input_mappings": {"instruction": "draft"}},
]


@pytest.mark.parametrize(
    ("steps", "keep", "outcomes", "calls"),
    [
        (CHAIN, False, ["ok", "truncated"], 3),
        (CHAIN, True, ["ok", "ok"], 4),
        # Nothing more is paid for these: a merge with other settings may still want them.
        ([CHAIN[0]], False, ["ok", "ok"], 2),
        ([CHAIN[0], {"task": "drop_duplicates"}], False, ["ok", "ok"], 2),
    ],
)
def test_a_row_that_is_cut_ends_before_the_next_call(
    tmp_path: Path, steps: list[dict[str, Any]], keep: bool, outcomes: list[str], calls: int
):
    source = {"rows": [{"instruction": "Add."}, {"instruction": "Go on and on."}]}
    model = {"path": "chaos", "engine": {"truncate_on": "on and on", "reply": "one two"}}
    merge = {"drop_truncated": not keep, "exact": False, "near": False}
    done = run_job(chaos_job(tmp_path, source=source, model=model, steps=steps, merge=merge), in_process=True)
    rows = pq.read_table(next(tmp_path.glob("attempts/*/*.parquet"))).to_pylist()
    assert [row["reason"] or row["outcome"] for row in rows] == outcomes
    assert [row["draft"] for row in rows] == ["one two"] * 2
    assert sum(row["output_tokens"] for row in rows) == 2 * calls
    assert done.version.kept == (2 if keep else 1)


def generation(text: str, cut: bool, reason: str | None = None) -> Generation:
    return Generation(CallLog(text, 0, ended="stop", cuts=int(cut)), {"generation": text}, reason)


@pytest.mark.parametrize(
    ("whole", "texts", "finish_reason", "notes"),
    [
        (True, ["a", "c"], "stop", ["generation_failed:truncated"]),
        (False, ["a", "b", "c"], "length", []),
    ],
)
def test_a_group_has_whole_generations_where_cut_rows_are_not_wanted(
    whole: bool, texts: list[str], finish_reason: str, notes: list[str]
):
    group = grouped([generation("a", False), generation("b", True), generation("c", False)], whole)
    assert (group.added, group.reason) == ({"generation": texts}, None)
    assert (group.log.finish_reason, group.log.notes) == (finish_reason, notes)


def test_a_group_all_of_whose_generations_were_cut_has_them_and_is_cut():
    group = grouped([generation("a", True), generation("b", True), generation("c", False, "empty_completion")], True)
    assert group.added == {"generation": ["a", "b"]}
    assert (group.log.finish_reason, group.log.notes) == ("length", ["generation_failed:empty_completion"])


def test_a_run_with_groups_stays_with_what_it_does_with_cut_generations(tmp_path: Path):
    def job(group: bool, keep: bool) -> Job:
        step = {"task": "text_generation", "num_generations": 2, "group_generations": group}
        source = {"rows": [{"instruction": "Add."}]}
        output = tmp_path / str(group)
        return chaos_job(output, source=source, steps=[step], merge={"drop_truncated": not keep})

    planned(job(group=False, keep=False))
    planned(job(group=False, keep=True))
    planned(job(group=True, keep=False))
    with pytest.raises(PlanMismatch, match=r"merge\.drop_truncated: absent then, false now"):
        planned(job(group=True, keep=True))


@pytest.mark.parametrize(
    ("dropped", "hint"),
    [
        ({"truncated": 9}, ""),
        (
            {"truncated": 10},
            "a larger sampling.max_tokens (within max_model_len) cuts fewer; merge.drop_truncated: false keeps them",
        ),
        ({"truncated": 5, "rejected: truncated": 5}, "a larger sampling.max_tokens (within max_model_len) cuts fewer"),
        (
            {"rejected: truncated_instruction": 5, "rejected: truncated_output": 5, "exact duplicate": 50},
            "a larger sampling.max_tokens (within max_model_len) cuts fewer",
        ),
        (
            {"rejected: truncated_reasoning": 10},
            "a larger sampling.max_tokens (within max_model_len) cuts fewer; many templates leave thoughts out with "
            "model.chat_template_kwargs: {enable_thinking: false}",
        ),
        ({"rejected: truncated_reasoning": 9, "rejected: empty_completion": 50}, ""),
        ({}, ""),
    ],
)
def test_what_helps_where_many_rows_are_cut(dropped: dict[str, int], hint: str):
    assert cut_hint(dropped, 100) == hint
    keeps = "; magpie's keep_shorter: true keeps the turns before the cut"
    cut = hint and any(reason.startswith("rejected") for reason in dropped)
    assert (keeps in cut_hint(dropped, 100, turns_lost=True)) == bool(cut)


def test_a_job_whose_cut_turns_cost_others_is_told(tmp_path: Path):
    for magpie, loses in (
        ({"n_turns": 2}, True),
        ({"n_turns": 2, "keep_shorter": True}, False),
        ({"n_turns": 1}, False),
    ):
        job = chaos_job(tmp_path, source={"count": 1}, steps=[{"task": "magpie", **magpie}])
        assert job.loses_turns == loses
    assert not chaos_job(tmp_path, source={"rows": [{"instruction": "a"}]}, steps=CHAIN[:1]).loses_turns
