"""Every task beside distilabel's own: the same prompts, and the same columns of completions that are read right there.

What is made of other completions is in tests/unit.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchgen import from_pipeline
from batchgen.engines.chat import byte_chat
from batchgen.tasks.distilabel_api import LLM, MagpieChatTemplateMixin, tasks
from batchgen.tasks.table import TASKS
from tests.contract.pipelines import KINDS, NAMES, pipeline
from tests.helpers import ScriptedEngine, run_task
from tests.openaiserver import openai_server
from tests.task_examples import EXAMPLES

Answers = Callable[[int], str]
CHAT = byte_chat()


class PeerLLM(LLM, MagpieChatTemplateMixin):
    """An LLM of distilabel's that renders prompts as `ScriptedEngine` sees them, and answers by the call's number."""

    answers: Any
    prompts: list[str]
    structured_output: Any = None

    @property
    def model_name(self) -> str:
        return "peer"

    def generate(self, inputs: list[Any], num_generations: int = 1, **kwargs: Any) -> list[Any]:
        """A completion for every input."""
        made = []
        for given in inputs:
            messages = given[0] if isinstance(given, tuple) else given
            if isinstance(messages, str):
                prompt = messages
            else:
                opens_user_turn = self.use_magpie_template and (not messages or messages[-1]["role"] != "user")
                rendered = CHAT.user_prompt(messages) if opens_user_turn else CHAT.prompt(messages)
                prompt = bytes(rendered.token_ids).decode()
            text = self.answers(len(self.prompts))
            self.prompts.append(prompt)
            statistics = {"input_tokens": [1], "output_tokens": [1]}
            made.append({"generations": [text], "statistics": statistics})
        return made


@dataclass(frozen=True)
class Case:
    """A task with parameters.

    Args:
        answers: in the form that distilabel reads; by default the example's.
        renamed: parameters as distilabel calls them, where it does otherwise.
        columns: whether what is made of the answers is compared, too.
    """

    task: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    row: Mapping[str, Any] = field(default_factory=dict)
    answers: Answers | str | None = None
    renamed: Mapping[str, Any] | None = None
    columns: bool = True


def evolving(number: int) -> str:
    """An answer unlike all others, so that no evolution is eliminated."""
    return f"Answer {number} is about {('cats', 'dogs', 'birds', 'whales', 'ants')[number % 5]}."


RATED = "#### Output for Text 1\nRating: 2\nRationale: Short.\n\n#### Output for Text 2\nRating: 5\nRationale: Right."
TYPED = "\n\n".join(f"#### Output for Text {n}\nType: 1\nRationale: A.\nRating: {n}\nRationale: B." for n in (1, 2))
STORED = {"num_evolutions": 2, "store_evolutions": True}
UNFENCED = '[{"query": "Add.", "answers": [{"name": "add", "arguments": {"a": 1}}]}]'
PAIR = {"generations": ["a", "b"]}
# In place of the examples' answers, which are there to show what distilabel does not read.
ANSWERS: Mapping[str, Answers | str] = {
    "apigen_generator": UNFENCED,
    "complexity_scorer": "[1] score: 2\n[2] score: 5",
    "evol_complexity": evolving,
    "evol_instruct": evolving,
    "evol_quality": evolving,
    "magpie": evolving,
    "self_instruct": "Add.\nSort.",
    "ultrafeedback": RATED,
}
# Columns of another name or shape, each for a reason that the table's entry gives.
OTHER_COLUMNS = {"instruction_backtranslation", "math_shepherd_completer"}
CASES = [
    *(
        Case(name, EXAMPLES[name].parameters, columns=name not in OTHER_COLUMNS)
        for name, spec in sorted(TASKS.items())
        # Below: with that task's default structured output distilabel needs `outlines`.
        if spec.distilabel and name != "text_classification"
    ),
    Case("apigen_generator", {"use_tools": True}, {"tools": json.dumps([{"name": "add"}])}),
    Case(
        "bitext_retrieval_generator",
        {"target_language": "German", "unit": "phrase", "difficulty": "college", "high_score": "4.5", "low_score": "3"},
    ),
    Case("clair", {"system_prompt": "Be strict."}),
    *(
        Case("embedding_task_generator", {"category": category})
        for category in ("text-matching-short", "text-matching-long", "text-classification")
    ),
    Case("evol_complexity", {**STORED, "generate_answers": True}),
    Case("evol_instruct", {"num_evolutions": 3}),
    Case("evol_instruct", {**STORED, "generate_answers": True, "include_original_instruction": True}),
    Case("evol_quality", {**STORED, "include_original_response": True}),
    *(
        Case("generate_sentence_pair", {"action": action, "triplet": True, "hard_negative": hard, "context": "Pets."})
        for action in ("paraphrase", "semantically-similar", "query", "answer")
        for hard in (False, True)
    ),
    Case("generate_sentence_pair", {"action": "query"}),
    Case(
        "generate_text_retrieval_data",
        {
            "language": "German",
            "query_type": "common",
            "query_length": "5 to 15 words",
            "difficulty": "PhD",
            "clarity": "clear",
            "num_words": 100,
        },
    ),
    Case("magpie", {"n_turns": 2, "system_prompt": "Be kind.", "include_system_prompt": True}),
    Case("magpie", {"n_turns": 2, "end_with_user": True}),
    Case("magpie", {"only_instruction": True}),
    Case("magpie", {"system_prompt": ["A.", "B.", "C."]}, renamed={"system_prompt": ["A.", "B.", "C."]}),
    Case("math_shepherd_generator", {"M": 3, "extra_rules": "- Be short.", "few_shots": "None."}),
    *(
        Case(
            f"math_shepherd_{name}",
            {"system_prompt": f"Be kind.\n{place}\n", "extra_rules": "- {{x}}\n"},
            columns=name == "generator",
        )
        for name in ("completer", "generator")
        for place in ("{{ extra_rules }}{{few_shots}}", "{{ structured_prompt }}", "")
    ),
    *(
        Case("prometheus_eval", {"mode": "absolute", "rubric": rubric})
        for rubric in ("harmlessness", "honesty", "factual-validity", "reasoning")
    ),
    Case("prometheus_eval", {"mode": "relative", "rubric": "honesty"}, PAIR, "Feedback: Good. [RESULT] A"),
    Case("prometheus_eval", {"mode": "absolute", "rubric": "honesty", "reference": True}, {"reference": "3"}),
    Case("self_instruct", {"criteria_for_query_generation": "Be short.", "application_description": "A shop."}),
    Case("text_classification", {"use_default_structured_output": False}),
    Case(
        "text_classification",
        {
            "use_default_structured_output": False,
            "n": 2,
            "available_labels": {"sport": "games", "law": "courts"},
            "context": "News.",
            "examples": ["A goal: sport"],
            "default_label": "law",
            "query_title": "Article",
        },
        answers='{"labels": ["sport", "law"]}',
    ),
    Case("text_generation", {"system_prompt": "Be brief."}),
    Case("text_generation", {}, {"system_prompt": "Be brief."}, renamed={"use_system_prompt": True}),
    Case(
        "text_generation", {"template": "Do {{ instruction }} now."}, renamed={"template": "Do {{ instruction }} now."}
    ),
    Case(
        "text_generation",
        {"template": "Do {{ instruction }} {{ number }} {{ share }} {{ flag }} times."},
        {"number": 3, "share": 0.5, "flag": True},
        renamed={
            "template": "Do {{ instruction }} {{ number }} {{ share }} {{ flag }} times.",
            "columns": ["instruction", "number", "share", "flag"],
        },
    ),
    *(Case("ultrafeedback", {"aspect": aspect}) for aspect in ("honesty", "instruction-following", "overall-rating")),
    *(Case("ultrafeedback", {"aspect": aspect}, answers=TYPED) for aspect in ("helpfulness", "truthfulness")),
]


@pytest.fixture
def no_chance(monkeypatch: pytest.MonkeyPatch):
    """Whoever chooses, and however the generators are seeded, takes the second."""

    def second(items: Any, *arguments: Any, **options: Any) -> Any:
        return (range(items) if isinstance(items, int) else list(items))[1]

    monkeypatch.setattr(random, "choice", second)
    monkeypatch.setattr(random, "choices", lambda items, weights=None, k=1: [second(items)] * k)
    monkeypatch.setattr(np.random, "choice", second)
    monkeypatch.setattr(np.random, "randint", lambda low, high=None, size=None: 1)


def beside(case: Case, row: Mapping[str, Any], answers: Answers) -> tuple[dict[str, Any], list[str]]:
    """(columns, prompts) of distilabel's own task."""
    spec = TASKS[case.task]
    parameters = spec.parameters.model_validate(case.parameters)
    given = parameters.for_distilabel() if case.renamed is None else case.renamed
    given = {name: value for name, value in given.items() if name not in ("eliminate", "regenerate")}  # ours alone
    magpie = {"use_magpie_template": True, "magpie_pre_query_template": "qwen2"} if spec.user_turns else {}
    llm = PeerLLM(answers=answers, prompts=[], **magpie)
    task = getattr(tasks, str(spec.distilabel))(name="peer", llm=llm, **given)
    task.load()
    made = next(task.process()) if spec.generator else next(task.process([copy.deepcopy(dict(row))]))
    [columns] = made[0] if isinstance(made, tuple) else made
    return {name: columns.get(name) for name in spec.outputs(parameters)}, llm.prompts


@pytest.mark.usefixtures("no_chance")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.task} {' '.join(map(str, case.parameters.values()))}")
def test_a_task_asks_and_reads_as_distilabel_s_own(case: Case):
    row = {**EXAMPLES[case.task].row, **case.row}
    given = case.answers or ANSWERS.get(case.task, EXAMPLES[case.task].answer)
    answers: Answers = given if callable(given) else lambda number: given
    engine = ScriptedEngine(lambda prompt, number: answers(number))
    ours = run_task(case.task, row, engine, **case.parameters)
    theirs, prompts = beside(case, row, answers)
    assert engine.prompts == prompts
    assert prompts
    if case.columns:
        assert ours == theirs


# Of the JSON objects that tasks for embeddings ask for.
_KEYS = ("user_query", "positive_document", "hard_negative_document", "S1", "S2", "S3")


def said(messages: list[Any]) -> str:
    """What the server says: something that depends on the messages, in the form that they ask for."""
    asked = "\n".join(message["content"] for message in messages)
    words = [hashlib.sha256(f"{number} {asked}".encode()).hexdigest()[:8] for number in range(3)]
    if "Output for Text" in asked:
        # In the prompt's form and in its texts.
        numbers = range(1, asked.count("<text ") // 2 + 1)
        ratings = [
            f"#### Output for Text {n}\nRating: {int(words[n % 3], 16) % 5 + 1}\nRationale: {words[n % 3]}."
            for n in numbers
        ]
        return "\n\n".join(ratings)
    if found := re.search(r"Score 1-(\d+)\.", asked):
        return "\n".join(f"[{n}] Score: {n}" for n in range(1, int(found[1]) + 1))
    if "[RESULT]" in asked:
        return f"Feedback: {words[0]}. [RESULT] {int(words[1], 16) % 5 + 1}"
    if "5-point scale" in asked:
        return f"{words[0]}. Score: {int(words[1], 16) % 5 + 1}"
    if "The answer is" in asked:
        solutions = [f"Step 1: {word}.\nStep 2: Done.\nThe answer is: {int(word, 16) % 2}" for word in words[:2]]
        return "\n---\n".join(solutions) if "---" in asked else solutions[0]
    if "Brainstorm" in asked:
        return json.dumps([f"Find {word}." for word in words])
    if keys := [key for key in _KEYS if f'"{key}"' in asked]:
        return json.dumps({key: f"{key} {words[0]}" for key in keys})
    if "## Positive" in asked:
        return f"## Positive\n\n{words[0]}.\n\n## Negative\n\n{words[1]}."
    return "\n".join(f"What is {word}?" for word in words)


def test_pipelines_give_the_rows_that_distilabel_s_own_run_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with openai_server() as server:
        server.answers = said
        server.models.append("writer")
        command = [sys.executable, "-m", "tests.contract.pipelines", server.url, str(tmp_path)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        theirs = json.loads((tmp_path / "rows.json").read_text())
        ours = {
            name: from_pipeline(
                pipeline(name, server.url, tmp_path / "cache"), tmp_path / name, in_process=True, kinds=KINDS.get(name)
            )
            for name in NAMES
        }
    assert {name: set(configs) for name, configs in theirs.items()} == {name: set(made) for name, made in ours.items()}
    for name, configs in theirs.items():
        for config, rows in configs.items():
            kept = set(rows[0]) - {"distilabel_metadata"}
            made = ours[name][config]["train"].to_list()
            assert [{column: row[column] for column in kept} for row in made] == [
                {column: row[column] for column in kept} for row in rows
            ], (name, config)
