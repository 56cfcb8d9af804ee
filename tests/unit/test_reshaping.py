"""Tasks that make columns out of columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from batchgen import run
from batchgen.errors import RowRejected
from tests.helpers import ScriptedEngine, run_task


def said(*messages: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]


@pytest.mark.parametrize(
    ("messages", "instruction", "system_prompt"),
    [
        (said(("user", "Add."), ("assistant", "3"), ("user", "Again.")), "Add.", None),
        (said(("system", "Be kind."), ("user", "Add.")), "Add.", "Be kind."),
        (said(("assistant", "Hello."), ("user", "Add.")), "Add.", None),
        ([{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Add."}], "Add.", "Be kind."),
    ],
)
def test_the_first_question_of_a_conversation(messages: list[dict[str, str]], instruction: str, system_prompt: Any):
    made = run_task("first_question", {"messages": messages}, ScriptedEngine([]))
    assert made == {"instruction": instruction, "system_prompt": system_prompt}


@pytest.mark.parametrize("messages", [[], said(("assistant", "Hello.")), said(("user", " "), ("user", "Add."))])
def test_a_conversation_without_a_question_is_rejected(messages: list[dict[str, str]]):
    with pytest.raises(RowRejected, match="no_question"):
        run_task("first_question", {"messages": messages}, ScriptedEngine([]))


def test_conversations_of_a_dataset_are_made_harder_and_answered_anew(tmp_path: Path):
    rows = [
        {"messages": said(("system", "Be kind."), ("user", f"What is {word}?"), ("assistant", "It is."))}
        for word in ("one", "two")
    ]
    tree = {
        "name": "harder",
        "source": {"rows": rows, "columns": {"messages": "conversation"}},
        "model": {"path": "chaos"},
        "steps": [
            {"task": "first_question", "input_mappings": {"messages": "conversation"}},
            {"task": "evol_instruct", "num_evolutions": 1, "eliminate": False},
            {"task": "text_generation", "input_mappings": {"instruction": "evolved_instruction"}},
        ],
        "output": str(tmp_path / "run"),
    }
    dataset = load_dataset(run(tree, in_process=True).dataset, split="train")
    assert dataset["instruction"][:] == ["What is one?", "What is two?"]
    for row in dataset:
        assert row["messages"] == said(
            ("system", "Be kind."), ("user", row["evolved_instruction"]), ("assistant", row["generation"])
        )
        assert row["conversation"][1]["content"] == row["instruction"]
