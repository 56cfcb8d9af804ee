"""Completions in the shapes that chat models give them, read without guessing."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from batchgen.errors import RowRejected
from batchgen.tasks.completions import (
    keeps_to,
    listed_instructions,
    parse_data,
    same_answer,
    solution_steps,
    without_lead,
)
from batchgen.tasks.llm import CallLog
from batchgen.tasks.runner import TaskRunner
from batchgen.tasks.table import TASKS
from tests.helpers import ScriptedEngine, run_task, run_with_log
from tests.task_examples import EXAMPLES

TWO = {"instruction": "Add.", "generations": ["a", "b"]}


@pytest.mark.parametrize(
    ("text", "found", "left_out"),
    [
        ("What is 2 + 2?\nSort these.", ["What is 2 + 2?", "Sort these."], 0),
        ("1. Add.\n2) Sort.\n```", ["Add.", "Sort."], 0),
        ("Here are 2 user queries:\n\n1. Add.\n2. Sort.\n\nLet me know if you want more!", ["Add.", "Sort."], 2),
        ("Sure! Here are the queries:\nAdd.\nSort.", ["Add.", "Sort."], 1),
        ("**1.** Add.\n**2.** Sort.", ["Add.", "Sort."], 0),
        ("**Query 1:** Add.\n\n**Query 2:** Sort.", ["Add.", "Sort."], 0),
        ("User Query 1: Add.\nUser Query 2: Sort.", ["Add.", "Sort."], 0),
        ("- Add.\n- Sort.", ["Add.", "Sort."], 0),
        ('1. "Add."\n2. “Sort.”\n3. **Why?**', ["Add.", "Sort.", "Why?"], 0),
        ('1. Say "a" or "b"', ['Say "a" or "b"'], 0),
        ("1. Compare:\n- cats\n- dogs\n2. Sort.", ["Compare:\n- cats\n- dogs", "Sort."], 0),
        ("1. Compare:\n   - cats\n   - dogs\n2. Sort.", ["Compare:\n- cats\n- dogs", "Sort."], 0),
        ("  1. Add.\n  2. Sort.", ["Add.", "Sort."], 0),
        ("Sure:\n  - Add.\n  - Sort.", ["Add.", "Sort."], 1),
        ("1. Add.\n\t- with care\n2. Sort.", ["Add.\n- with care", "Sort."], 0),
        ("**Bold words** start this.\n*Why?*", ["**Bold words** start this.", "*Why?*"], 0),
        ("Here is one:\n\n1. Add.", ["Add."], 1),
        ("2024 was what year?\n10 times 3 is?", ["2024 was what year?", "10 times 3 is?"], 0),
        ("Translate this:\nIs it late?", ["Translate this:", "Is it late?"], 0),
        ("Which of these is largest:", ["Which of these is largest:"], 0),
        ("* Add.", ["Add."], 0),
        ("以下是三个问题：\n1、请相加。\n2．请排序。\n3.为什么？", ["请相加。", "请排序。", "为什么？"], 1),
        ("① 足してください。\n②並べ替えてください。", ["足してください。", "並べ替えてください。"], 0),
        ("问题1：请相加。\n问题2：“请排序。”", ["请相加。", "请排序。"], 0),
        (
            "3、4、5中哪个最大？\n3.5大于3吗？\n8：30是几点？",
            ["3、4、5中哪个最大？", "3.5大于3吗？", "8：30是几点？"],
            0,
        ),
        ("1. 请比较：\n- 猫\n- 狗\n2. 请排序。", ["请比较：\n- 猫\n- 狗", "请排序。"], 0),
        ("• Add.\n– Sort.\n● «Why?»", ["Add.", "Sort.", "Why?"], 0),
        ("1. Sort a\tb.\n2. Add.", ["Sort a\tb.", "Add."], 0),
        ("# Queries\n\nAdd.\n\n## More\nSort.", ["Add.", "Sort."], 2),
        ("## Queries\n\n1. Add.\n2. Sort.", ["Add.", "Sort."], 1),
        ("### 1. Add.\n\n### 2. Sort.", ["Add.", "Sort."], 0),
        ("### Query 1: Add.\n### Query 2: Sort.\n\nGood luck!", ["Add.", "Sort."], 1),
        ("# Add.\n# Sort.", ["Add.", "Sort."], 0),
        ("#hashtags are what?\nSort.", ["#hashtags are what?", "Sort."], 0),
        ("What does this do?\n```python\n# Adds.\n```", ["What does this do?", "# Adds."], 0),
        ("1. \n2. ", [], 0),
        ("```\n```", [], 0),
        ("", [], 0),
    ],
)
def test_instructions_are_told_from_what_is_said_around_them(text: str, found: list[str], left_out: int):
    assert listed_instructions(text) == (found, left_out)


def test_lines_that_are_no_instructions_are_noted():
    answer = "Here are two queries:\n1. Add.\n2. Sort."
    row, notes = run_with_log("self_instruct", {"input": "x"}, ScriptedEngine([answer]), num_instructions=2)
    assert row == {"instructions": ["Add.", "Sort."]}
    assert notes == ["line_left_out"]


def test_an_instruction_that_a_model_repeats_is_there_once():
    answer = "1. Add.\n2. Sort.\n3. Add.\n4. Add."
    row, notes = run_with_log("self_instruct", {"input": "x"}, ScriptedEngine([answer]), num_instructions=4)
    assert row == {"instructions": ["Add.", "Sort."]}
    assert sorted(notes) == ["instruction_missing"] * 2 + ["instruction_repeated"] * 2


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("Prove it twice.", "Prove it twice."),
        ("Sure! Here is the rewritten prompt:\n\nProve it twice.", "Prove it twice."),
        ("Here's a more complex version of the prompt:\nProve it:\n1. twice", "Prove it:\n1. twice"),
        ("**Rewritten Prompt:**\nProve it.", "Prove it."),
        ("**#New Prompt#**:\n\nProve it.", "Prove it."),
        ("#New Prompt#：\n请证明。", "请证明。"),
        ("Here is a list of numbers: 1, 2. Sort it.", "Here is a list of numbers: 1, 2. Sort it."),
        ("Answer these:\n1. a", "Answer these:\n1. a"),
        ("Here are three numbers:\n1, 2, 3\nSort them.", "Here are three numbers:\n1, 2, 3\nSort them."),
        ("Here is a passage:\nIt rains.\nSum it up.", "Here is a passage:\nIt rains.\nSum it up."),
        ("Surely true:\nIt rains.", "Surely true:\nIt rains."),
        ("Here is the prompt:\n", "Here is the prompt:"),
    ],
)
def test_an_announcement_is_no_part_of_a_text(text: str, rest: str):
    assert without_lead(text) == rest


def test_evolutions_lose_their_announcement():
    answer = "Sure, here is the rewritten prompt:\n\nProve it twice."
    row, notes = run_with_log("evol_instruct", {"instruction": "Prove it."}, ScriptedEngine([answer]))
    assert (row, notes) == ({"evolved_instruction": "Prove it twice."}, [])
    row = run_task(
        "evol_quality",
        {"instruction": "Add.", "response": "5"},
        ScriptedEngine(["Here is the rewritten response:\n\nIt is 5."]),
    )
    assert row == {"evolved_response": "It is 5."}


PLAIN = "#### Output for Text 1\nRating: 2\nRationale: Short.\n\n#### Output for Text 2\nRating: 5\nRationale: Right."


@pytest.mark.parametrize(
    "answer",
    [
        PLAIN,
        PLAIN.replace("Rating:", "**Rating:**").replace("Rationale:", "**Rationale**:"),
        PLAIN.replace("Rating: 2", "Rating: 2/5 (low quality)").replace("Rating: 5", "Rating: [5]"),
        PLAIN.replace("\nRationale", "\n\nRationale"),
        PLAIN.replace("\n\n####", "\n####"),
        PLAIN.replace("#### Output", "**Output").replace("Text 1", "Text 1**").replace("Text 2", "Text 2:**"),
        PLAIN.removeprefix("#### Output for Text 1\n"),
        f"I compared both.\n\n{PLAIN}\n\nOverall, the second text is better.",
        PLAIN.replace("Rating:", "- Rating:").replace("Rationale:", "- Rationale:"),
        PLAIN.replace(": ", "："),
    ],
)
def test_ultrafeedback_reads_ratings_however_they_are_set_out(answer: str):
    row = run_task("ultrafeedback", TWO, ScriptedEngine([answer]))
    assert row == {"ratings": [2.0, 5.0], "rationales": ["Short.", "Right."]}


@pytest.mark.parametrize(
    "answer",
    [
        PLAIN.replace("Text 1", "Text 3"),
        PLAIN.replace("Rating: 2", "Rating: 9"),
        PLAIN.replace("Rating: 2", "Rating: N/A"),
        PLAIN.replace("Rationale: Short", "Rating: 4"),
        PLAIN + "\n\n#### Output for Text 3\nRating: 1\nRationale: None.",
        PLAIN.replace("Text 1", "Text 0").replace("Text 2", "Text 1").replace("Text 0", "Text 2"),
        "Rating: 4",
        "",
    ],
)
def test_ultrafeedback_takes_no_rating_of_another_text(answer: str):
    with pytest.raises(RowRejected):
        run_task("ultrafeedback", TWO, ScriptedEngine([answer]))


def test_ultrafeedback_reads_types_with_their_own_rationales():
    part = "**Type:** {}\n**Rationale:** Clear.\n**Rating:** {}\n**Rationale:** Right."
    answer = "\n\n".join([part.format("1, 3", 4), part.format("None", 2)])
    assert run_task("ultrafeedback", TWO, ScriptedEngine([answer]), aspect="helpfulness") == {
        "types": [1.0, None],
        "rationales": ["Clear.", "Clear."],
        "ratings": [4.0, 2.0],
        "rationales-for-ratings": ["Right.", "Right."],
    }


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ("[1] Score: 1\n[2] Score: 3", [1.0, 3.0]),
        ("Here are the scores:\n\n**[1] Score: 1**\n**[2] Score: 3**\n\nThe second is better.", [1.0, 3.0]),
        ("[2] Score: 3\n[1] Score: 1", [1.0, 3.0]),
        ("[1] **Score:** 1\n[2] **Score:** 3", [1.0, 3.0]),
        ("1. Score: 1\n2. Score: 3", [1.0, 3.0]),
        ("[1] Score: 1\n[1] Score: 1\n[2] Score: 3", [1.0, 3.0]),
        ("[1] Score: 1\n[2] Score: 2\n...\n[1] Score: 2\n[2] Score: 3", None),
        ("[1] Score: 1", None),
        ("[1] Score: 1\n[3] Score: 3", None),
        ("[1] Score: 1\n[2] Score: 9", [1.0, 9.0]),
        ("Score: 1\nScore: 3", None),
    ],
)
@pytest.mark.parametrize("task", ["quality_scorer", "complexity_scorer"])
def test_scores_go_by_their_numbers(task: str, answer: str, scores: list[float] | None):
    row = {"instruction": "Add.", "responses": ["a", "b"], "instructions": ["a", "b"]}
    if scores is None:
        with pytest.raises(RowRejected):
            run_task(task, row, ScriptedEngine([answer]))
    else:
        assert run_task(task, row, ScriptedEngine([answer])) == {"scores": scores}


@pytest.mark.parametrize(
    ("mode", "answer", "row"),
    [
        ("absolute", "Feedback: Good. [RESULT] 4", ("Good.", 4.0)),
        ("absolute", "**Feedback:** Good.\n\n**[RESULT]** 4", ("Good.", 4.0)),
        ("absolute", "The [RESULT] is below. [RESULT] (4).", ("The [RESULT] is below.", 4.0)),
        ("absolute", "Good.\n[RESULT]: Score: 4/5\nThank you.", ("Good.", 4.0)),
        ("absolute", "Feedback：很好。[RESULT]：4", ("很好。", 4.0)),
        ("absolute", "Good. [RESULT] 7", None),
        ("absolute", "Good. [RESULT] 4 or 5", None),
        ("absolute", "Good. [RESULT] A", None),
        ("absolute", "Good. 4", None),
        ("absolute", "Good. [RESULT]", None),
        ("relative", "B is better. [RESULT] Response B", ("B is better.", "B")),
        ("relative", "B is better. [RESULT] **B**", ("B is better.", "B")),
        ("relative", "[RESULT] A better answer is B", None),
        ("relative", "Good. [RESULT] 1", None),
    ],
)
def test_prometheus_results(mode: str, answer: str, row: tuple[str, Any] | None):
    given = {"instruction": "Add.", "generation": "3", "generations": ["3", "4"]}
    parameters = {"mode": mode, "rubric": "helpfulness"}
    if row is None:
        with pytest.raises(RowRejected):
            run_task("prometheus_eval", given, ScriptedEngine([answer]), **parameters)
    else:
        expected = {"feedback": row[0], "result": row[1]}
        assert run_task("prometheus_eval", given, ScriptedEngine([answer]), **parameters) == expected


@pytest.mark.parametrize(
    ("structure", "kept", "ignored"),
    [
        ({"choice": ["yes", "no "]}, ["yes", " no\n"], ["Yes.", "yes or no"]),
        ({"regex": "[0-9]+|none"}, ["12", "none", " 7"], ["12 of 13", "none of them"]),
        ({"regex": "a.b "}, ["a\nb "], ["a.b c"]),
        ({"regex": "(?=[0-9])x"}, ["anything: RE2 does not know it"], []),
        ({"json": {"type": "object"}}, ['{"a": 1}', '```json\n{"a": 1}\n```', '"a"', "0"], ["The sum is 3.", ""]),
        ({"json_object": True}, ["{}"], ["Sure!"]),
        ({"grammar": 'root ::= "x"'}, ["y"], []),
        ({}, ["y"], []),
    ],
)
def test_whether_a_completion_has_the_form_that_was_asked_for(structure: dict, kept: list[str], ignored: list[str]):
    assert [text for text in (*kept, *ignored) if keeps_to(structure, text)] == kept


def test_a_server_that_ignores_the_form_of_an_answer_is_found_out():
    def ask(answer: str, finish_reason: str = "stop", server: bool = True) -> dict[str, Any]:
        engine = ScriptedEngine([answer], finish_reason)
        if server:
            engine.chat, engine.decode = None, lambda ids: ""  # type: ignore[assignment]
        sampling = {"structured_outputs": {"choice": ["yes", "no"]}}
        return run_task("text_generation", {"instruction": "Is it?"}, engine, sampling=sampling)

    assert ask("yes") == ask("<think>\nMaybe.\n</think>\nyes") == {"generation": "yes"}
    with pytest.raises(RowRejected, match="structure_ignored"):
        ask("It is.")
    assert ask("It i", "length") == {"generation": "It i"}, "that it was cut is known"
    assert ask("It is.", server=False) == {"generation": "It is."}, "vLLM itself keeps to it"


def test_a_judge_that_compares_two_answers_is_given_two():
    parameters = {"mode": "relative", "rubric": "honesty"}
    for number in (1, 3):
        row, engine = {"instruction": "Add.", "generations": ["a"] * number}, ScriptedEngine([])
        with pytest.raises(RowRejected, match="invalid_input"):
            run_task("prometheus_eval", row, engine, **parameters)
        assert not engine.prompts


@pytest.mark.parametrize(
    ("answer", "score", "reason"),
    [
        ("It fits well. Score: 4", 4.0, "It fits well."),
        ("A score: 1 would be harsh.\n\n**Score: <4>**", 4.0, "A score: 1 would be harsh."),
        ("Score: 4\n\nIt fits.", 4.0, "It fits."),
        ("It fits.\n\nScore: 5", 5.0, "It fits."),
        ("It fits.\n\nScore: 1", 1.0, "It fits."),
        ("It fits.\n\nScore: 0", None, ""),
        ("It fits.\n\nScore: 10", None, ""),
        ("It fits.", None, ""),
    ],
)
def test_backtranslation_takes_the_last_score(answer: str, score: float | None, reason: str):
    row = {"instruction": "Add.", "generation": "3"}
    if score is None:
        with pytest.raises(RowRejected, match="invalid_output"):
            run_task("instruction_backtranslation", row, ScriptedEngine([answer]))
    else:
        found = run_task("instruction_backtranslation", row, ScriptedEngine([answer]))
        assert found == {"score": score, "score_reason": reason}


@pytest.mark.parametrize(
    "answer",
    [
        "{teacher_reasoning}: Off by one.\n\n{corrected_student_solution}: -3",
        "**Teacher Reasoning:** Off by one.\n\n**Corrected Student Solution:**\n-3",
        "**{teacher_reasoning}:** Off by one.\n\n**{corrected_student_solution}:** -3",
        "teacher_reasoning: Off by one.\n\ncorrected_student_solution: -3",
        "{teacher_reasoning}: Off by one. {corrected_student_solution}: -3",
        "**Teacher Reasoning:** Off by one. **Corrected Student Solution:** -3",
    ],
)
def test_clair_splits_at_the_solution_s_heading(answer: str):
    row = {"task": "1 + 2?", "student_solution": "4"}
    assert run_task("clair", row, ScriptedEngine([answer])) == {"revision": "-3", "rational": "Off by one."}


@pytest.mark.parametrize(
    "answer",
    [
        "It is off by one.",
        "We give {teacher_reasoning}, then the {corrected_student_solution} to structure the answer.",
        "{teacher_reasoning}: See.\n\n{corrected_student_solution}: the {student_solution}, then {teacher_reasoning}",
    ],
)
def test_clair_without_a_solution_rejects_the_row(answer: str):
    with pytest.raises(RowRejected, match="invalid_output"):
        run_task("clair", {"task": "1 + 2?", "student_solution": "4"}, ScriptedEngine([answer]))


@pytest.mark.parametrize(
    "answers",
    ['"add(1, 2)"', '{"name": "add"}', '[{"name": "add"}]', '[{"query": "Add.", "arguments": {}}]', "null", '["add"]'],
)
def test_answers_that_are_no_calls_reject_the_row(answers: str):
    answer = f'[{{"query": "Add 1 and 2.", "answers": {answers}}}]'
    with pytest.raises(RowRejected, match="invalid_output"):
        run_task("apigen_generator", EXAMPLES["apigen_generator"].row, ScriptedEngine([answer]))


def test_clair_s_reasoning_may_speak_of_the_solution():
    answer = "{teacher_reasoning}: See {corrected_student_solution}: it is 3.\n\n{corrected_student_solution}: 3"
    found = run_task("clair", {"task": "1 + 2?", "student_solution": "4"}, ScriptedEngine([answer]))
    assert found == {"revision": "3", "rational": "See {corrected_student_solution}: it is 3."}


@pytest.mark.parametrize(
    "answer",
    [
        "## Positive\n\nA cat.\n\n## Negative\n\nA dog.",
        "**Positive:** A cat.\n\n**Negative:** A dog.",
        "### Positive:\nA cat.\n### Negative:\nA dog.",
        "Positive\n\nA cat.\n\nNegative\n\nA dog.",
    ],
)
def test_sentence_pairs_stand_under_headings_of_any_make(answer: str):
    parameters = {"action": "paraphrase", "triplet": True}
    row = run_task("generate_sentence_pair", {"anchor": "The cat."}, ScriptedEngine([answer]), **parameters)
    assert row == {"positive": "A cat.", "negative": "A dog."}


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ('Here is the JSON:\n\n{"a": [1, 2]}\n\nI hope it helps.', {"a": [1, 2]}),
        ('["a"] and more', ["a"]),
        ("Here it is: {'a': 'b'}", None),
        ("It is [1, 2", None),
        ("{" * 100_000, None),
    ],
)
def test_data_with_words_around_it(text: str, data: Any):
    assert parse_data(text) == data


def test_a_completion_that_is_no_good_python_is_read_without_a_word(recwarn: pytest.WarningsRecorder):
    assert parse_data("['\\d', '2']") == ["\\d", "2"]
    assert parse_data("[1or 2]") is None
    assert not recwarn.list


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("Step 1: 1 + 1 = 2\nThe answer is: 2", ["Step 1: 1 + 1 = 2", "The answer is: 2"]),
        ("**Step 1:** 1 + 1 = 2\n\n**The answer is: 2**", ["Step 1: 1 + 1 = 2", "The answer is: 2"]),
        ("### Step 1: Add\n1 + 1 = 2\n\nSo the final answer is 2", ["Step 1: Add\n1 + 1 = 2", "The answer is: 2"]),
        ("Step 1. 1 + 1 = 2\nThe answer is: $2$\n\nI hope it helps!", ["Step 1: 1 + 1 = 2", "The answer is: $2$"]),
        ("Step 1: the answer is not 3\nThe answer is: 2", ["Step 1: the answer is not 3", "The answer is: 2"]),
        ("Step 1: a\n\n---\n\nStep 2: b\n---\nThe answer is: 2\n---", ["Step 1: a", "Step 2: b", "The answer is: 2"]),
        ("It is 2.", []),
    ],
)
def test_steps_of_a_solution(text: str, steps: list[str]):
    assert solution_steps(text) == steps


SOLVED, WRONG = "Step 2: 2 + 1 = 3\nThe answer is: 3.", "Step 2: 2 + 1 = 4\nThe answer is: 4"
STEPS = {
    "instruction": "1 + 1 + 1?",
    "solutions": [["Step 1: 1 + 1 = 2", "Step 2: 2 + 1 = 3", "The answer is: 3"]],
    "golden_solution": ["Step 1: 3", "The answer is: $3$"],
}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The answer is: 3", "The answer is: **$3$.**", True),
        ("The answer is: 1 1/2", "The answer is: 11/2", False),
        ("The answer is: .5", "The answer is: 5", False),
        ("The answer is: x  = 3", "The answer is: x = 3", True),
        ("The answer is:", "The answer is: ", False),
    ],
)
def test_the_same_answer_may_be_set_otherwise(one: str, other: str, same: bool):
    assert same_answer(one, other) == same


def structured(*solutions: str) -> str:
    return json.dumps({"solutions": [{"solution": solution} for solution in solutions]})


@pytest.mark.parametrize(
    ("answer", "parameters", "label"),
    [
        (SOLVED, {}, "+"),
        (WRONG, {}, "-"),
        (f"{WRONG}\n---\n{SOLVED}", {"N": 2}, "+"),
        # distilabel forgets that one was right where one of N is missing, and never reads structured ones.
        (f"{SOLVED}\n---\n", {"N": 3}, "+"),
        (f"---\n{WRONG}\n---\n{WRONG}\n---\n{SOLVED}", {"N": 2}, "-"),
        (structured(SOLVED), {"use_default_structured_output": True}, "+"),
        (structured(WRONG, SOLVED), {"N": 2, "use_default_structured_output": True}, "+"),
        (structured(WRONG), {"N": 1, "use_default_structured_output": True}, "-"),
    ],
)
def test_a_step_is_right_where_any_completion_ends_right(answer: str, parameters: dict[str, Any], label: str):
    row = run_task("math_shepherd_completer", STEPS, ScriptedEngine([answer]), **parameters)
    last = "Step 2: 2 + 1 = 3 The answer is: 3 +"
    assert row == {"labelled_solutions": [[f"Step 1: 1 + 1 = 2 {label}", last]]}


@pytest.mark.parametrize(
    ("answer", "parameters"),
    [("I cannot.", {}), ("---", {"N": 2}), ("no JSON", {"use_default_structured_output": True})],
)
def test_a_step_without_a_label_rejects_the_row(answer: str, parameters: dict[str, Any]):
    with pytest.raises(RowRejected, match="invalid_output"):
        run_task("math_shepherd_completer", STEPS, ScriptedEngine([answer]), **parameters)


@pytest.mark.parametrize("task", ["text_generation", "magpie"])
def test_a_completion_that_goes_round_in_circles_rejects_its_row(task: str):
    row = {"instruction": "Count."} if task == "text_generation" else {}
    engine = ScriptedEngine(lambda prompt, number: "and so on, and so on", finish_reason="repetition")
    with pytest.raises(RowRejected, match="repetitive_completion"):
        run_task(task, row, engine)
    assert len(engine.prompts) == 1


def test_calls_of_a_row_that_is_rejected_leave_the_engine():
    class Slow(ScriptedEngine):
        ended = 0

        async def generate(self, request):
            completion = await super().generate(request)
            if completion.text:
                try:
                    await asyncio.sleep(60)
                finally:
                    self.ended += 1
            return completion

    engine = Slow(["", SOLVED, SOLVED])
    row = {**STEPS, "solutions": STEPS["solutions"] * 3}
    spec = TASKS["math_shepherd_completer"]
    runner = TaskRunner("completer", spec, spec.parameters(), {}, {}, engine, {})

    async def go() -> None:
        with pytest.raises(RowRejected, match="empty_completion"):
            await runner.run(row, CallLog("row", 0))
        await asyncio.sleep(0)
        assert (len(engine.prompts), engine.ended) == (3, 2)

    asyncio.run(go())


def test_solutions_end_in_an_answer_and_missing_ones_are_noted():
    task, row = "math_shepherd_generator", {"instruction": "1 + 1 + 1?"}
    solved = ["Step 2: 2 + 1 = 3", "The answer is: 3."]
    texts = f"{SOLVED}\n---\nStep 1: I do not know.\n---\n"
    assert run_with_log(task, row, ScriptedEngine([texts]), M=2) == ({"solutions": [solved]}, ["solution_missing"])
    engine = ScriptedEngine([structured(SOLVED)])
    found = run_with_log(task, row, engine, use_default_structured_output=True)
    assert found == ({"golden_solution": solved}, [])
    (schema,) = [request.sampling["structured_outputs"]["json"] for request in engine.requests]
    assert (schema["properties"]["solutions"]["minItems"], schema["properties"]["solutions"]["maxItems"]) == (1, 1)
    ruled = "Step 1: 1 + 1 = 2\n\n---\n\n" + SOLVED
    assert run_task(task, row, ScriptedEngine([ruled])) == {"golden_solution": ["Step 1: 1 + 1 = 2", *solved]}
    for answer in ("Step 1: I do not know.", '{"solutions": 3}'):
        with pytest.raises(RowRejected, match="invalid_output"):
            run_task(task, row, ScriptedEngine([answer]))


PAIR = {"query": "Add 1 and 2.", "answers": [{"name": "add", "arguments": {"a": 1}}]}


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps([PAIR]),
        json.dumps(PAIR),
        json.dumps({"pairs": [PAIR]}),
        f"Here are the pairs:\n\n{json.dumps([PAIR, PAIR])}\n\nThey fit.",
        f"```json\n{json.dumps([PAIR])}\n```",
    ],
)
def test_apigen_s_first_pair(answer: str):
    row = run_task("apigen_generator", EXAMPLES["apigen_generator"].row, ScriptedEngine([answer]))
    assert row == {"query": "Add 1 and 2.", "answers": json.dumps(PAIR["answers"])}


@pytest.mark.parametrize("answer", ['[{"query": "canary"}]', '["canary"]', '{"canary": 1}', "[]", "canary", "[[]]"])
def test_what_is_no_pair_rejects_the_row_and_is_in_no_log(answer: str, caplog: pytest.LogCaptureFixture):
    with pytest.raises(RowRejected, match="invalid_output"):
        run_task("apigen_generator", EXAMPLES["apigen_generator"].row, ScriptedEngine([answer]))
    assert "canary" not in caplog.text


@pytest.mark.parametrize(
    ("passes", "kept"),
    [("yes", True), ("Yes.", True), ("NO", False), (True, True), (False, False), ("unsure", None), (None, None)],
)
def test_a_semantic_check_says_yes_or_no(passes: Any, kept: bool | None):
    answer = f"I think so:\n{json.dumps({'thought': 'It fits.', 'passes': passes})}"
    given = EXAMPLES["apigen_semantic_checker"].row
    if kept is None:
        with pytest.raises(RowRejected, match="invalid_output"):
            run_task("apigen_semantic_checker", given, ScriptedEngine([answer]))
    else:
        row = run_task("apigen_semantic_checker", given, ScriptedEngine([answer]))
        assert row == {"keep_row_after_semantic_check": kept, "thought": "It fits."}
