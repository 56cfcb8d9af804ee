"""What distilabel gets wrong and `tasks/fixes` puts right: a test for every difference."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from batchgen.engines.structure import check_structure
from batchgen.errors import RowRejected
from batchgen.tasks.completions import parse_data
from batchgen.tasks.evolution import answer_elimination, elimination, response_elimination
from tests.helpers import ScriptedEngine, run_task, run_with_log
from tests.task_examples import EXAMPLES


@pytest.mark.parametrize(
    ("previous", "evolved", "reason"),
    [
        ("Add 2 and 3.", "Add 2 and 3, then explain why the order does not matter.", None),
        ("Add 2 and 3.", "add 2, and 3!", "no_gain"),
        ("Add 2 and 3.", "3 and 2", "no_gain"),
        ("Add 2 and 3.", "", "says_nothing"),
        ("Add 2 and 3.", "... ?!", "says_nothing"),
        ("Add 2 and 3.", "And so the, of it.", "says_nothing"),
        ("Add 2 and 3.", "I'm sorry, but this cannot be made harder.", "refusal"),
        ("Add 2 and 3.", "As an AI, I have no opinion.", "refusal"),
        ("Add 2 and 3.", "Here is the rewritten prompt: add 2 and 3 and 4.", "copied_prompt"),
        ("Add 2 and 3.", "#Rewritten Prompt# Add 7.", "copied_prompt"),
        ("Add 2 and 3.", "Take the given prompt and add 7.", "copied_prompt"),
        ("Add 2 and 3.", '"Add 2 and 3."\n\nIn the original prompt, you asked for a sum.', "copied_prompt"),
        ("Add 2 and 3.", "I'm ready to assist. What prompt would you like to rewrite?", "copied_prompt"),
        ("Add 2 and 3.", "Rewriting this as a harder prompt: add 2 and 3, then halve it.", "copied_prompt"),
        ("Add 2 and 3.", "Rewrite 2 + 3 as a product. Be prompt.", None),
        ("Write a prompt for a picture.", "Write a prompt for a picture, then rewrite that prompt for a film.", None),
        # A rule is about what the rewriting did, not about what the user asked for.
        ("Explain the phrase 'given prompt'.", "Explain in detail the phrase 'given prompt'.", None),
        ("Write that you are sorry.", "Write to a friend that you are sorry for being late.", None),
    ],
)
def test_wizardlm_s_rules_on_evolutions(previous: str, evolved: str, reason: str | None):
    assert elimination(evolved, previous) == reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("The sum is 5.", None),
        ("I'm sorry, I can't do that.", "refusal"),
        ("Sorry.", "refusal"),
        ("As much as I wish to, sorry, no.", "refusal"),
        ("As an AI, I have no opinion.", "refusal"),
        ("I cannot help with that.", "refusal"),
        ("word " * 79 + "sorry", None),
        ("word " * 78 + "sorry", "refusal"),
        ("I am sorry. " + "But here is a long and useful answer. " * 20, None),
        ("!!!", "says_nothing"),
        ("The of and.", "says_nothing"),
    ],
)
def test_wizardlm_s_rules_on_answers(answer: str, reason: str | None):
    assert answer_elimination(answer) == reason


def test_an_eliminated_evolution_keeps_the_last_good_one_and_is_noted():
    engine = ScriptedEngine(["Add 2, 3 and 4.", "I'm sorry, no.", "Add 2, 3, 4 and 5."])
    row, notes = run_with_log("evol_instruct", {"instruction": "Add 2 and 3."}, engine, num_evolutions=3)
    assert row == {"evolved_instruction": "Add 2, 3, 4 and 5."}
    assert notes == ["eliminated_refusal"]
    assert "Add 2, 3 and 4." in engine.prompts[2], "the third evolution starts from the last good one"


def test_stored_evolutions_repeat_the_last_good_one_in_place_of_an_eliminated_one():
    engine = ScriptedEngine(["Add 2, 3 and 4.", "Add.", "Add 2, 3, 4 and 5."])
    row, notes = run_with_log(
        "evol_complexity",
        {"instruction": "Add 2 and 3."},
        engine,
        num_evolutions=3,
        store_evolutions=True,
        include_original_instruction=True,
    )
    assert row["evolved_instructions"] == ["Add 2 and 3.", "Add 2, 3 and 4.", "Add 2, 3 and 4.", "Add 2, 3, 4 and 5."]
    assert notes == ["eliminated_no_gain"]


@pytest.mark.parametrize(
    ("previous", "evolved", "reason"),
    [
        ("It is 5.", "It is 5, as 2 and 3 are 5.", None),
        ("It is 5.", "5", None),
        ("42", "42", None),
        ("It is 5.", "...", "says_nothing"),
        ("It is 5.", "#Rewritten Response#\n#Given Prompt#", "copied_prompt"),
        ("It is 5.", "To improve the given response, add a reason.", "copied_prompt"),
        ("It is 5.", "Write a new response to them.", None),
        ("The given response was late.", "The given response came late.", None),
        ("It is 5.", "I'm sorry, I cannot rewrite this.", "refusal"),
    ],
)
def test_rules_on_evolved_responses(previous: str, evolved: str, reason: str | None):
    assert response_elimination(evolved, previous) == reason


def test_an_eliminated_response_keeps_the_last_good_one():
    answers = ["It is 5, as 2 and 3 are 5.", "#Given Response#"]
    row = {"instruction": "Add 2 and 3.", "response": "5"}
    added, notes = run_with_log("evol_quality", row, ScriptedEngine(answers), num_evolutions=2)
    assert (added, notes) == ({"evolved_response": answers[0]}, ["eliminated_copied_prompt"])
    added, notes = run_with_log(
        "evol_quality", row, ScriptedEngine(answers), num_evolutions=2, store_evolutions=True, eliminate=False
    )
    assert (added, notes) == ({"evolved_responses": answers}, [])


def test_a_rewriting_that_says_nothing_costs_no_row_that_has_a_good_response():
    row = {"instruction": "Add 2 and 3.", "response": "5"}
    answers = ["#Rewritten Response#:", "It is 5."]
    added, notes = run_with_log("evol_quality", row, ScriptedEngine(answers), num_evolutions=2)
    assert (added, notes) == ({"evolved_response": "It is 5."}, ["eliminated_says_nothing"])
    with pytest.raises(RowRejected, match="empty_completion"):
        run_task("evol_quality", row, ScriptedEngine(answers[:1]), eliminate=False)


def test_elimination_can_be_turned_off():
    engine = ScriptedEngine(["I'm sorry, no."])
    row, notes = run_with_log("evol_instruct", {"instruction": "Add."}, engine, eliminate=False)
    assert (row, notes) == ({"evolved_instruction": "I'm sorry, no."}, [])


@pytest.mark.parametrize("store", [False, True])
def test_an_evolution_that_nobody_can_answer_gives_way_to_the_last_that_somebody_can(store: bool):
    def answer(prompt: str, number: int) -> str:
        if "Prompt#" in prompt:
            return "Prove it." if number else "Add 2, 3 and 4."
        return "Sorry, I can't." if "Prove it." in prompt else "It is 9."

    row, notes = run_with_log(
        "evol_instruct",
        {"instruction": "Add 2 and 3."},
        ScriptedEngine(answer),
        num_evolutions=2,
        generate_answers=True,
        store_evolutions=store,
    )
    if store:
        assert row == {"evolved_instructions": ["Add 2, 3 and 4."] * 2, "answers": ["It is 9."] * 2}
    else:
        assert row == {"evolved_instruction": "Add 2, 3 and 4.", "answer": "It is 9."}
    assert notes == ["eliminated_answer_refusal"]


def test_only_what_is_kept_is_answered():
    for store, calls in ((False, 4), (True, 6)):
        engine = ScriptedEngine(lambda prompt, number: f"Add {number} and more." if "Prompt#" in prompt else "It is 9.")
        run_task(
            "evol_instruct",
            {"instruction": "Add 2 and 3."},
            engine,
            num_evolutions=3,
            generate_answers=True,
            store_evolutions=store,
        )
        assert len(engine.requests) == calls


def test_a_row_that_no_version_of_has_a_good_answer_is_rejected():
    engine = ScriptedEngine(lambda prompt, number: "Prove it." if "Prompt#" in prompt else "Sorry.")
    with pytest.raises(RowRejected, match="no_good_answer"):
        run_task("evol_instruct", {"instruction": "Add."}, engine, generate_answers=True)


def test_evol_quality_mutates_rows_differently():
    """distilabel seeds numpy with one number for every batch, so that all rows get one mutation."""
    prompts = set()
    for seed in range(30):
        engine = ScriptedEngine(["Better."])
        run_task("evol_quality", {"instruction": "Add.", "response": "5"}, engine, seed=seed)
        prompts.add(engine.prompts[0])
    assert len(prompts) > 2


def test_evol_quality_keeps_the_original_where_it_is_asked_to():
    row = run_task(
        "evol_quality",
        {"instruction": "Add.", "response": "5"},
        ScriptedEngine(["five", "#Rewritten Response#: It is five."]),
        num_evolutions=2,
        store_evolutions=True,
        include_original_response=True,
    )
    assert row == {"evolved_responses": ["5", "five", "It is five."]}


def chosen_prompts(system_prompt: Any, rows: int = 300) -> Counter[str]:
    found: Counter[str] = Counter()
    for seed in range(rows):
        engine = ScriptedEngine(["Hi.", "Ho."])
        row = run_task("magpie", {}, engine, seed=seed, system_prompt=system_prompt)
        found[row.get("system_prompt_key") or engine.prompts[0].split("\n")[1].split("<")[0]] += 1
    return found


def test_magpie_chooses_its_system_prompt_row_by_row():
    assert set(chosen_prompts(["Math.", "Art."])) == {"Math.", "Art."}


def test_weights_of_system_prompts_need_not_sum_to_one():
    """distilabel compares a sum of floats with 1.0 and refuses 0.7, 0.2 and 0.1."""
    found = chosen_prompts({"math": ["Do math.", 0.7], "art": ["Do art.", 0.2], "code": ["Do code.", 0.1]})
    assert found["math"] > found["art"] > found["code"] > 0
    assert chosen_prompts({"math": ["Do math.", 3], "art": ["Do art.", 0]}, rows=40) == {"math": 40}


@pytest.mark.parametrize("prompts", [{"a": "Do A.", "b": "Do B."}, {"a": ["Do A.", 1], "b": ["Do B.", 3]}])
def test_the_system_prompt_that_is_used_is_the_one_of_the_key(prompts: dict[str, Any]):
    keys = set()
    for seed in range(20):
        engine = ScriptedEngine(["Hi.", "Ho."])
        key = run_task("magpie", {}, engine, seed=seed, system_prompt=prompts)["system_prompt_key"]
        keys.add(key)
        assert f"system\nDo {key.upper()}.<" in engine.prompts[0]
    assert keys == {"a", "b"}


def test_a_row_s_own_system_prompt_has_no_key():
    engine = ScriptedEngine(["Hi.", "Ho."])
    row = run_task("magpie", {"system_prompt": "Own."}, engine, system_prompt={"math": "Do math."})
    assert row["system_prompt_key"] is None
    assert "Own." in engine.prompts[0]


HOSTILE = [
    "__import__('os').system('touch {path}')",
    "```json\n__import__('os').system('touch {path}')\n```",
    "[__import__('os').system('touch {path}')]",
    '{{"S1": __import__("os").system("touch {path}"), "S2": "b", "S3": "c"}}',
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "name", ["embedding_task_generator", "monolingual_triplet_generator", "generate_text_retrieval_data"]
)
def test_a_completion_is_never_evaluated(name: str, text: str, tmp_path):
    """distilabel calls `eval` on what the model says."""
    marker = tmp_path / "marker"
    example = EXAMPLES[name]
    with pytest.raises(RowRejected, match="invalid_output"):
        run_task(name, example.row, ScriptedEngine([text.format(path=marker)]), **example.parameters)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ('{"a": "b"}', {"a": "b"}),
        ("{'a': 'b'}", {"a": "b"}),
        ('Here it is:\n```json\n["a", "b"]\n```\nDone.', ["a", "b"]),
        ('{"a": "two\nlines"}', {"a": "two\nlines"}),
        ("nothing", None),
        ("[" * 100_000, None),
        ("(" * 90 + ")" * 90, None),
    ],
)
def test_data_in_completions(text: str, data: Any):
    assert parse_data(text) == data


@pytest.mark.parametrize("fence", ["```\n", "```json\n"])
def test_apigen_reads_fences_that_name_their_language(fence: str):
    answer = fence + '[{"query": "Add.", "answers": []}]\n```'
    row = run_task("apigen_generator", EXAMPLES["apigen_generator"].row, ScriptedEngine([answer]))
    assert row == {"query": "Add.", "answers": "[]"}


def test_scores_survive_blank_lines_and_a_missing_one_rejects_the_row():
    row = {"instruction": "Add.", "responses": ["a", "b"]}
    assert run_task("quality_scorer", row, ScriptedEngine(["\n[1] score: 2\n\n[2] Score: 3"])) == {"scores": [2.0, 3.0]}
    with pytest.raises(RowRejected, match="invalid_output"):
        run_task("quality_scorer", row, ScriptedEngine(["[1] score: 2"]))


def test_an_output_that_was_cut_off_says_so():
    row = {"instruction": "Add.", "responses": ["a", "b"]}
    with pytest.raises(RowRejected, match=r"^truncated_output$"):
        run_task("quality_scorer", row, ScriptedEngine(["[1] score: 2\n[2] sc"], finish_reason="length"))
    cut = ScriptedEngine(["[1] score: 2\n[2] score: 3\n[3"], finish_reason="length")
    assert run_task("quality_scorer", row, cut) == {"scores": [2.0, 3.0]}, "what was asked for is there"


@pytest.mark.parametrize(
    "answer", ["Rating: 3\nRationale: Good.", "Rating: ?\nRationale: a\n\nRating: 1\nRationale: b"]
)
def test_ultrafeedback_needs_a_rating_a_text(answer: str):
    with pytest.raises(RowRejected, match="invalid_output"):
        run_task("ultrafeedback", EXAMPLES["ultrafeedback"].row, ScriptedEngine([answer]))


def test_text_classification_keeps_to_the_labels():
    labels = {"available_labels": ["sport", "art"]}
    row = {"text": "A goal."}
    for said in ("sport", "Sport", " SPORT "):
        answer = ScriptedEngine([json.dumps({"labels": said})])
        assert run_task("text_classification", row, answer, **labels) == {"labels": "sport"}
    answer = ScriptedEngine(['{"labels": ["Art", "sport"]}'])
    assert run_task("text_classification", row, answer, n=2, **labels) == {"labels": ["art", "sport"]}
    with pytest.raises(RowRejected, match="unknown_label"):
        run_task("text_classification", row, ScriptedEngine(['{"labels": "law"}']), **labels)
    for answer in ('{"label": "sport"}', '{"labels": ["sport"]}', '{"labels": null}'):
        with pytest.raises(RowRejected, match="invalid_output"):
            run_task("text_classification", row, ScriptedEngine([answer]), **labels)


def test_default_structured_output_goes_to_the_engine_as_a_schema():
    engine = ScriptedEngine(['{"labels": "sport"}'])
    run_task("text_classification", {"text": "A goal."}, engine)
    schema = engine.requests[0].sampling["structured_outputs"]["json"]
    assert schema["required"] == ["labels"]
    engine = ScriptedEngine(['{"labels": "sport"}'])
    run_task("text_classification", {"text": "A goal."}, engine, use_default_structured_output=False)
    assert "structured_outputs" not in engine.requests[0].sampling


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        ('{"choice": ["yes", "no"]}', {"choice": ["yes", "no"]}),
        ('{"format": "regex", "schema": "a+"}', {"regex": "a+"}),
        ('{"format": "json", "schema": {"type": "object"}}', {"json": {"type": "object"}}),
        ('{"json": "{\\"type\\": \\"object\\"}"}', {"json": {"type": "object"}}),
    ],
)
def test_structured_generation_takes_its_format_from_the_row(wanted: str, sent: dict[str, Any]):
    engine = ScriptedEngine(["yes"])
    run_task("structured_generation", {"instruction": "Is it?", "structured_output": wanted}, engine)
    assert engine.requests[0].sampling["structured_outputs"] == sent


@pytest.mark.parametrize(
    "wanted",
    [
        "no json",
        "[]",
        "{}",
        '{"grammar": "x"}',
        '{"choice": "yes"}',
        '{"format": "xml"}',
        '{"json": "no"}',
        '{"json": "[1]"}',
    ],
)
def test_a_format_that_is_none_rejects_the_row(wanted: str):
    with pytest.raises(RowRejected, match="invalid_structured_output"):
        run_task("structured_generation", {"instruction": "x", "structured_output": wanted}, ScriptedEngine(["yes"]))


def test_a_shortfall_of_instructions_is_noted():
    row, notes = run_with_log("self_instruct", {"input": "x"}, ScriptedEngine(["1. Add."]), num_instructions=3)
    assert row == {"instructions": ["Add."]}
    assert notes == ["instruction_missing"] * 2


def test_a_template_fills_columns_and_runs_no_code():
    engine = ScriptedEngine(["ok"])
    row = {"question": "{{ answer }} {% for x in y %}", "answer": 42}
    row["answer"] = "forty-two"
    run_task("text_generation", row, engine, template="Q: {{ question }} A: {{answer}}", system_prompt="Judge.")
    assert "Q: {{ answer }} {% for x in y %} A: forty-two" in engine.prompts[0]
    assert "Judge." in engine.prompts[0]


def test_a_conversation_has_to_end_with_the_user():
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    with pytest.raises(RowRejected, match="last_message_is_not_the_user_s"):
        run_task("chat_generation", {"messages": messages}, ScriptedEngine(["x"]))


def test_a_conversation_that_is_answered_anew_is_asked_up_to_its_last_question():
    said = ["Be brief.", "Hi", "Yo", "How?", "Well.", "Found it."]
    roles = ["system", "user", "assistant", "user", "assistant", "tool"]
    messages = [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]
    engine = ScriptedEngine(["Fine."])
    row = run_task("chat_generation", {"messages": messages}, engine, regenerate=True)
    assert row["generation"] == "Fine."
    assert engine.requests[0].messages == messages[:4]
    with pytest.raises(RowRejected, match="last_message_is_not_the_user_s"):
        run_task("chat_generation", {"messages": messages[:1]}, ScriptedEngine(["x"]), regenerate=True)


@pytest.mark.parametrize(
    ("ratings", "reason"),
    [([3.0, 3.0], "no_preference"), ([3.0, None], "no_preference"), ([3.0], "invalid_input")],
)
def test_a_preference_needs_two_different_ratings(ratings: list[float | None], reason: str):
    row = {"instruction": "Add.", "generations": ["a", "b"], "ratings": ratings}
    with pytest.raises(RowRejected, match=reason):
        run_task("preference_pair", row, ScriptedEngine([]))


@pytest.mark.parametrize(
    ("task", "row", "parameters", "answer"),
    [
        (
            "generate_sentence_pair",
            {"anchor": "The cat."},
            {"action": "paraphrase"},
            "## Positive\n\nthe  cat.\n",
        ),
        (
            "generate_sentence_pair",
            {"anchor": "The cat."},
            {"action": "paraphrase", "triplet": True},
            "## Positive\n\nA cat.\n\n## Negative\n\nA cat.",
        ),
        (
            "generate_text_classification_data",
            {"task": "Classify."},
            {},
            '{"input_text": "A.", "label": "Good", "misleading_label": "good"}',
        ),
        (
            "generate_text_retrieval_data",
            {"task": "Find."},
            {},
            '{"user_query": "q", "positive_document": "p", "hard_negative_document": "p"}',
        ),
        ("monolingual_triplet_generator", {}, {}, '{"S1": "One.", "S2": "Two.", "S3": "One."}'),
    ],
)
def test_texts_that_are_to_be_told_apart_differ(task: str, row: dict, parameters: dict, answer: str):
    with pytest.raises(RowRejected, match="equal_texts"):
        run_task(task, row, ScriptedEngine([answer]), **parameters)


@pytest.mark.parametrize(
    ("generations", "ratings", "pair"),
    [
        (["a", "b", "c"], [3.0, 5.0, 1.0], ("b", "c")),
        (["a", " a\n", "b"], [5.0, 1.0, 4.0], ("a", "b")),
        (["a", "b", "c"], [5.0, 5.0, 5.0], None),
        (["a", "a"], [5.0, 1.0], None),
        (["", "a"], [5.0, 1.0], None),
        ([], [], None),
    ],
)
def test_the_same_answer_is_not_preferred_to_itself(generations: list[str], ratings: list[float], pair: object):
    row = {"instruction": "Add.", "generations": generations or ["x"], "ratings": ratings or [None]}
    if pair is None:
        with pytest.raises(RowRejected, match="no_preference"):
            run_task("preference_pair", row, ScriptedEngine([]))
    else:
        found = run_task("preference_pair", row, ScriptedEngine([]))
        assert (found["chosen"][0]["content"], found["rejected"][0]["content"]) == pair


def test_a_preference_can_ask_for_a_margin():
    row = {"instruction": "Add.", "generations": ["a", "b"], "ratings": [3.0, 4.0]}
    assert run_task("preference_pair", row, ScriptedEngine([]), min_difference=1)["chosen_rating"] == 4.0
    user = {"role": "user", "content": row["instruction"]}
    for given, system in (("Sing.", [{"role": "system", "content": "Sing."}]), (None, []), (" \n", [])):
        pair = run_task("preference_pair", {**row, "system_prompt": given}, ScriptedEngine([]))
        assert pair["prompt"] == [*system, user]
    with pytest.raises(RowRejected, match="no_preference"):
        run_task("preference_pair", row, ScriptedEngine([]), min_difference=2)


def test_a_preference_says_whose_answers_it_has_where_it_is_told():
    row = {"instruction": "Add.", "generations": ["", "b", "c"], "ratings": [5.0, 3.0, 4.0]}
    models = ["one", "two", "three"]
    pair = run_task("preference_pair", row | {"generation_models": models}, ScriptedEngine([]), name_models=True)
    assert (pair["chosen"][0]["content"], pair["chosen_model"]) == ("c", "three")
    assert (pair["rejected"][0]["content"], pair["rejected_model"]) == ("b", "two")
    with pytest.raises(RowRejected, match="invalid_input"):
        run_task("preference_pair", row | {"generation_models": models[:2]}, ScriptedEngine([]), name_models=True)


def test_a_judge_s_schema_has_an_item_for_every_text():
    engine = ScriptedEngine(['{"ratings": [2, 5], "rationales": ["a", "b"]}'])
    row = run_task("ultrafeedback", EXAMPLES["ultrafeedback"].row, engine, use_default_structured_output=True)
    assert row == {"ratings": [2.0, 5.0], "rationales": ["a", "b"]}
    schema = engine.requests[0].sampling["structured_outputs"]["json"]["properties"]
    assert schema["ratings"]["minItems"] == schema["ratings"]["maxItems"] == schema["rationales"]["maxItems"] == 2
    assert (schema["ratings"]["items"]["minimum"], schema["ratings"]["items"]["maximum"]) == (1, 5)
    engine = ScriptedEngine(['{"scores": [2, 5, 1]}'])
    run_task("complexity_scorer", {"instructions": ["a", "b", "c"]}, engine, use_default_structured_output=True)
    scores = engine.requests[0].sampling["structured_outputs"]["json"]["properties"]["scores"]
    assert (scores["minItems"], scores["items"]["maximum"]) == (3, 4)


@pytest.mark.parametrize(
    ("parameters", "labels"),
    [
        ({}, {"type": "string", "maxLength": 100}),
        ({"available_labels": ["a", "b"]}, {"type": "string", "enum": ["a", "b", "Unclassified"]}),
        (
            {"available_labels": {"a": "first", "b": "second"}, "default_label": "b"},
            {"type": "string", "enum": ["a", "b"]},
        ),
        ({"available_labels": ["a"], "default_label": ["c", "d"]}, {"type": "string", "enum": ["a", "c", "d"]}),
        (
            {"available_labels": ["a"], "n": 3},
            {"type": "array", "items": {"type": "string", "enum": ["a", "Unclassified"]}, "minItems": 1, "maxItems": 3},
        ),
    ],
)
def test_a_label_s_schema_has_those_that_there_are(parameters: dict, labels: dict):
    given = ["a"] if parameters.get("n") else "a"
    engine = ScriptedEngine([json.dumps({"labels": given})])
    assert run_task("text_classification", {"text": "A text."}, engine, **parameters) == {"labels": given}
    (request,) = engine.requests
    schema = request.sampling["structured_outputs"]["json"]
    assert schema == {"type": "object", "properties": {"labels": labels}, "required": ["labels"]}
    check_structure({"json": schema}, "labels")


def test_a_query_s_schema_has_as_many_pairs_as_the_row_asks_for():
    example = EXAMPLES["apigen_generator"]
    answer = json.dumps({"pairs": [{"query": "Add.", "answers": [{"name": "add", "arguments": {"a": "1"}}]}]})
    numbers = set()
    for seed in range(20):
        engine = ScriptedEngine([answer])
        parameters = {"number": {1: 1.0, 3: 1.0}, "use_default_structured_output": True}
        row = run_task("apigen_generator", example.row, engine, seed=seed, **parameters)
        assert row["query"] == "Add."
        schema = engine.requests[0].sampling["structured_outputs"]["json"]
        pairs = schema["properties"]["pairs"]
        assert pairs["minItems"] == pairs["maxItems"]
        assert f"generate {pairs['minItems']} diverse query" in engine.prompts[0]
        check_structure({"json": schema}, "pairs")
        numbers.add(pairs["minItems"])
    assert numbers == {1, 3}
