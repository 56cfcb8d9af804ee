"""For every task of the table: parameters, a row that it can work on, and a completion that it understands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRIPLE = json.dumps({"S1": "One.", "S2": "Two.", "S3": "Three."})
STEPS = "Step 1: 1 + 1 = 2\nStep 2: 2 + 1 = 3\nThe answer is: 3"


@dataclass(frozen=True)
class Example:
    """A row that a task can complete.

    Args:
        answer: what the engine says at every call.
        outputs: what the task makes of it.
    """

    answer: str
    outputs: Mapping[str, Any]
    row: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


EXAMPLES: Mapping[str, Example] = {
    "apigen_generator": Example(
        '```json\n[{"query": "Add 1 and 2.", "answers": [{"name": "add", "arguments": {"a": 1}}]}]\n```',
        {"query": "Add 1 and 2.", "answers": '[{"name": "add", "arguments": {"a": 1}}]'},
        {"examples": "None.", "func_name": "add", "func_desc": "adds"},
    ),
    "apigen_semantic_checker": Example(
        '{"thought": "It fits.", "passes": "yes"}',
        {"keep_row_after_semantic_check": True, "thought": "It fits."},
        {
            "func_desc": "adds",
            "query": "Add.",
            "answers": "[]",
            "execution_result": "3",
            "keep_row_after_execution_check": True,
        },
    ),
    "bitext_retrieval_generator": Example(
        TRIPLE, {"S1": "One.", "S2": "Two.", "S3": "Three."}, parameters={"target_language": "German"}
    ),
    "chat_generation": Example(
        "Paris.", {"generation": "Paris."}, {"messages": [{"role": "user", "content": "Capital of France?"}]}
    ),
    "choose": Example(
        "",
        {"topic": "algebra", "level": "easy", "number": 3, "short": True},
        parameters={"columns": {"topic": ["algebra"], "level": {"easy": 1, "hard": 0}, "number": [3], "short": [True]}},
    ),
    "clair": Example(
        "{teacher_reasoning}: Off by one.\n\n{corrected_student_solution}: 3",
        {"revision": "3", "rational": "Off by one."},
        {"task": "1 + 2?", "student_solution": "4"},
    ),
    "complexity_scorer": Example(
        "[1] score: 2\n\n[2] score: 5", {"scores": [2.0, 5.0]}, {"instructions": ["Add.", "Prove."]}
    ),
    "drop_duplicates": Example("", {}, {"instruction": "Add."}),
    "fill_template": Example(
        "",
        {"text": "3 questions about algebra (3)."},
        {"topic": "algebra", "number": 3},
        {"template": "{{ number }} questions about {{topic}} ({{ number }})."},
    ),
    "first_question": Example(
        "",
        {"instruction": "Add.", "system_prompt": "Be kind."},
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Add."}]},
    ),
    "filter": Example("", {}, {"score": 5.0}, {"keep": {"score": {"min": 4}}}),
    "embedding_task_generator": Example(
        '["Find a recipe.", "Find a law."]',
        {"tasks": ["Find a recipe.", "Find a law."]},
        parameters={"category": "text-retrieval"},
    ),
    "evol_complexity": Example("Prove more.", {"evolved_instruction": "Prove more."}, {"instruction": "Prove."}),
    "evol_instruct": Example("Prove more.", {"evolved_instruction": "Prove more."}, {"instruction": "Prove."}),
    "evol_quality": Example(
        "A long answer.", {"evolved_response": "A long answer."}, {"instruction": "Prove.", "response": "No."}
    ),
    "generate_long_text_matching_data": Example(
        '{"input": "A.", "positive_document": "B."}', {"input": "A.", "positive_document": "B."}, {"task": "Match."}
    ),
    "generate_sentence_pair": Example(
        "## Positive\n\nA cat.\n\n## Negative\n\nA dog.",
        {"positive": "A cat.", "negative": "A dog."},
        {"anchor": "The cat."},
        {"action": "paraphrase", "triplet": True},
    ),
    "generate_short_text_matching_data": Example(
        "{'input': 'A.', 'positive_document': 'B.'}", {"input": "A.", "positive_document": "B."}, {"task": "Match."}
    ),
    "generate_text_classification_data": Example(
        '{"input_text": "A.", "label": "b", "misleading_label": "c"}',
        {"input_text": "A.", "label": "b", "misleading_label": "c"},
        {"task": "Classify."},
    ),
    "generate_text_retrieval_data": Example(
        '{"user_query": "q", "positive_document": "p", "hard_negative_document": "n"}',
        {"user_query": "q", "positive_document": "p", "hard_negative_document": "n"},
        {"task": "Retrieve."},
    ),
    "genstruct": Example(
        " What is it?\n[[[Assistant]]] A text.",
        {"user": "What is it?", "assistant": "A text."},
        {"title": "T", "content": "C"},
    ),
    "group_columns": Example(
        "", {"grouped": ["Yes.", "No."]}, {"b": "Yes.", "a": "No."}, parameters={"columns": ["b", "a"]}
    ),
    "instruction_backtranslation": Example(
        "It fits well. Score: 4",
        {"score": 4.0, "score_reason": "It fits well."},
        {"instruction": "Add.", "generation": "3"},
    ),
    "magpie": Example("Hello there.", {"instruction": "Hello there.", "response": "Hello there."}),
    "math_shepherd_completer": Example(
        STEPS,
        {
            "labelled_solutions": [
                ["Step 1: 1 + 1 = 2 +", "Step 2: 2 + 1 = 3 The answer is: 3 +"],
            ]
        },
        {
            "instruction": "1 + 1 + 1?",
            "solutions": [STEPS.splitlines()],
            "golden_solution": STEPS.splitlines(),
        },
    ),
    "math_shepherd_generator": Example(STEPS, {"golden_solution": STEPS.splitlines()}, {"instruction": "1 + 1 + 1?"}),
    "monolingual_triplet_generator": Example(TRIPLE, {"S1": "One.", "S2": "Two.", "S3": "Three."}),
    "parse_json": Example(
        "",
        {"rationale": "It fits.", "score": 4.0},
        {"generation": 'Sure: {"rationale": "It fits.", "score": 4}'},
        {"columns": {"rationale": "text", "score": "number"}},
    ),
    "preference_pair": Example(
        "",
        {
            "prompt": [{"role": "user", "content": "Add."}],
            "chosen": [{"role": "assistant", "content": "b"}],
            "rejected": [{"role": "assistant", "content": "a"}],
            "chosen_rating": 5.0,
            "rejected_rating": 1.0,
        },
        {"instruction": "Add.", "generations": ["a", "b"], "ratings": [1.0, 5.0]},
    ),
    "prometheus_eval": Example(
        "Feedback: Good. [RESULT] 4",
        {"feedback": "Good.", "result": 4.0},
        {"instruction": "Add.", "generation": "3"},
        {"mode": "absolute", "rubric": "helpfulness"},
    ),
    "quality_scorer": Example(
        "[1] score: 2\n[2] score: 5", {"scores": [2.0, 5.0]}, {"instruction": "Add.", "responses": ["a", "b"]}
    ),
    "reward_scorer": Example(
        "-1.25", {"reward": -1.25}, {"instruction": "Add 1 and 2.", "generation": "3", "system_prompt": "Be kind."}
    ),
    "self_instruct": Example(
        "1. Add.\n2. Sort.", {"instructions": ["Add.", "Sort."]}, {"input": "Numbers."}, {"num_instructions": 2}
    ),
    "structured_generation": Example(
        "yes",
        {"generation": "yes"},
        {"instruction": "Is it?", "structured_output": '{"choice": ["yes", "no"]}'},
    ),
    "text_classification": Example('{"labels": "sport"}', {"labels": "sport"}, {"text": "A goal."}),
    "text_generation": Example("Paris.", {"generation": "Paris."}, {"instruction": "Capital of France?"}),
    "ultrafeedback": Example(
        "Here are the ratings.\n\n#### Output for Text 1\nRating: 2\nRationale: Short.\n\n"
        "#### Output for Text 2\nRating: 5\nRationale: Right.",
        {"ratings": [2.0, 5.0], "rationales": ["Short.", "Right."]},
        {"instruction": "Add.", "generations": ["a", "b"]},
    ),
    "urial": Example("Paris.\n\n# User\nMore", {"generation": "Paris."}, {"instruction": "Capital of France?"}),
}
