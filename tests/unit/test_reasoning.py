"""The thoughts of reasoning models: told from answers, left out, kept, or in a column of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AddedToken, AutoTokenizer

from batchgen import Job, JobError, run
from batchgen.embedded import MODEL_PATH
from batchgen.engines.base import Completion, Request
from batchgen.engines.reasoning import THINK, marks_of
from batchgen.engines.tokenizer import chat_from_tokenizer
from batchgen.errors import RowRejected
from tests.helpers import ScriptedEngine, chaos_job, run_task

HARMONY = "<|channel|>analysis<|message|>A sum.<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>"


@pytest.mark.parametrize(
    ("prompt", "text", "structured", "split"),
    [
        ("assistant\n", "<think>\nA sum.\n</think>\n\nIt is 4.", False, ("A sum.", "It is 4.")),
        ("assistant\n<think>\n", "A sum.\n</think>\n\nIt is 4.", False, ("A sum.", "It is 4.")),
        ("assistant\n<think>\n", "\n</think>\n\nIt is 4.", False, (None, "\n\nIt is 4.")),
        ("assistant\n", "<think>\n\n</think>\n\nIt is 4.", False, ("", "It is 4.")),
        ("assistant\n<think>\n\n</think>\n\n", "It is 4.", False, (None, "It is 4.")),
        ("assistant\n", "It is 4.", False, (None, "It is 4.")),
        ("assistant\n", "Write <think>a</think> around it.", False, (None, "Write <think>a</think> around it.")),
        ("assistant\n", "<think>\nA sum of", False, ("A sum of", None)),
        ("assistant\n<think>\n", "A sum of", False, ("A sum of", None)),
        ("assistant\n<think>\n", '{"answer": 4}', True, (None, '{"answer": 4}')),
        ("assistant\n<think>\n", 'A sum.\n</think>\n\n{"answer": 4}', True, ("A sum.", '{"answer": 4}')),
        ("assistant\n", "<think>a</think>b</think>c", False, ("a", "b</think>c")),
        ("assistant\n", "A sum.\n</think>\n\nIt is 4.", False, (None, "A sum.\n</think>\n\nIt is 4.")),
        # A server writes the prompt, and may leave the thoughts to its clients.
        (None, "A sum.\n</think>\n\nIt is 4.", False, ("A sum.", "It is 4.")),
        (None, "<think>\nA sum.\n</think>\n\nIt is 4.", False, ("A sum.", "It is 4.")),
        (None, "Write <think>a</think> around it.", False, (None, "Write <think>a</think> around it.")),
        (None, "It is 4.", False, (None, "It is 4.")),
        (None, '{"answer": 4}', True, (None, '{"answer": 4}')),
        (None, 'A sum.\n</think>\n\n{"answer": 4}', True, ("A sum.", '{"answer": 4}')),
    ],
)
def test_thoughts_are_told_from_the_answer(prompt: str | None, text: str, structured: bool, split: tuple):
    assert THINK.split(prompt, text, structured) == split


def test_channels_of_gpt_oss_are_told_apart():
    tokens = {"<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"}
    marks = marks_of(tokens, tokens)
    assert marks.special
    assert marks.split("<|start|>assistant", HARMONY) == ("A sum.", "It is 4.<|return|>")
    assert marks.split("<|start|>assistant", "<|channel|>final<|message|>Hi.") == (None, "Hi.")
    assert marks.split("<|start|>assistant", "<|channel|>analysis<|message|>A s") == ("A s", None)


@pytest.mark.parametrize(
    ("added", "start"),
    [
        ((), "<think>"),
        (("<s>",), "<think>"),
        (("<s>", "<think>", "</think>"), "<think>"),
        (("[THINK]", "[/THINK]", "[INST]"), "[THINK]"),
        (("<seed:think>", "</seed:think>"), "<seed:think>"),
        (("<think:opensource>", "</think:opensource>"), "<think:opensource>"),
        (("<ifm|think_fast>", "</ifm|think_fast>", "<ifm|think>", "</ifm|think>"), "<ifm|think>"),
        (("</think>",), "<think>"),
        (("<|channel>", "<channel|>", "<|think|>"), "<|channel>thought\n"),
    ],
)
def test_marks_are_those_of_the_tokenizer(added: tuple[str, ...], start: str):
    marks = marks_of(added, added)
    assert (marks.start, marks.special) == (start, any("think" in token.lower() for token in added))
    assert (marks_of(added, ()).start, marks_of(added, ()).special) == (start, False)


@pytest.mark.parametrize(
    ("tokens", "prompt", "text", "split"),
    [
        (
            ("<|channel>", "<channel|>", "<|turn>", "<turn|>"),
            "<|turn>model\n",
            "<|channel>thought\nA sum.\n<channel|>It is 4.",
            ("A sum.", "It is 4."),
        ),
        (
            ("<|channel>", "<channel|>", "<|turn>", "<turn|>"),
            "<|turn>model\n<|channel>thought\n<channel|>",
            "It is 4.",
            (None, "It is 4."),
        ),
        (
            ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
            "<|CHATBOT_TOKEN|>",
            "<|START_THINKING|>A sum.<|END_THINKING|><|START_RESPONSE|>It is 4.<|END_RESPONSE|>",
            ("A sum.", "<|START_RESPONSE|>It is 4.<|END_RESPONSE|>"),
        ),
        (
            ("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"),
            "<|start|>assistant",
            " to=self<|message|>A sum.<|eom|><|start|>assistant to=user<|message|>It is 4.<|eot|>",
            ("A sum.", "It is 4.<|eot|>"),
        ),
        (
            ("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"),
            "<|start|>assistant",
            " to=user<|message|>It is 4.",
            (None, "It is 4."),
        ),
        (
            ("<|begin|>", "<|think|>", "<|content|>", "<|end|>"),
            "<|begin|>assistant",
            "<|think|>A sum.<|end|><|begin|>assistant<|content|>It is 4.<|end|>",
            ("A sum.", "It is 4.<|end|>"),
        ),
        (
            ("<|open|>", "<|close|>", "<|sep|>"),
            '<|open|>message role="assistant"<|sep|><|open|>think<|sep|>',
            "A sum.<|close|>think<|sep|><|open|>response<|sep|>It is 4.<|close|>response<|sep|>",
            ("A sum.", "It is 4.<|close|>response<|sep|>"),
        ),
        # A row may have asked for the tags.
        ((), "assistant\n", "<think>A sum.</think>\n<answer>4</answer>", ("A sum.", "<answer>4</answer>")),
    ],
)
def test_marks_of_other_families(tokens: tuple[str, ...], prompt: str, text: str, split: tuple):
    assert marks_of(tokens, tokens).split(prompt, text) == split


class _Thinker(ScriptedEngine):
    """An engine whose answers have thoughts; user turns have none."""

    def __init__(self, *answers: str, finish_reason: str = "stop") -> None:
        super().__init__(lambda prompt, number: answers[number % len(answers)], finish_reason)


THOUGHT = "<think>\n1. They want questions.\n2. I will write them.\n</think>\n\n"


def test_what_a_model_thinks_is_no_instruction():
    row = run_task("self_instruct", {"input": "Rain."}, _Thinker(THOUGHT + "1. Why is it wet?\n2. When?"))
    assert row["instructions"] == ["Why is it wet?", "When?"]


def test_a_rewritten_instruction_has_no_thoughts_in_it():
    row = run_task("evol_instruct", {"instruction": "Add."}, _Thinker(THOUGHT + "Add two primes."), num_evolutions=1)
    assert row["evolved_instruction"] == "Add two primes."


def test_a_judge_s_thoughts_are_no_verdict():
    thought = "<think>\nRating: 1\nRationale: no, more.\n\nRating: 2\nRationale: hm.\n</think>\n"
    verdict = "#### Output for Text 1\nRating: 4\nRationale: fine\n\n#### Output for Text 2\nRating: 5\nRationale: good"
    row = run_task("ultrafeedback", {"instruction": "q", "generations": ["a", "b"]}, _Thinker(thought + verdict))
    assert row["ratings"] == [4.0, 5.0]


@pytest.mark.parametrize(
    ("reasoning", "added"),
    [
        ("drop", {"generation": "It is 4."}),
        ("keep", {"generation": "<think>\nA sum.\n</think>\n\nIt is 4."}),
        ("column", {"generation": "It is 4.", "reasoning": "A sum."}),
    ],
)
def test_a_step_says_what_becomes_of_thoughts(tmp_path: Path, reasoning: str, added: dict[str, str]):
    job = chaos_job(
        tmp_path / "run",
        source={"rows": [{"instruction": "2 + 2?"}]},
        model={"path": "chaos", "engine": {"reply": "<think>\nA sum.\n</think>\n\nIt is 4."}},
        steps=[{"task": "text_generation", "reasoning": reasoning}],
    )
    result = run(job, in_process=True)
    (row,) = _rows(result)
    assert {name: row[name] for name in ("generation", "reasoning") if name in row} == added
    assert row["messages"][1]["content"] == added["generation"]
    assert row["notes"] == (["reasoning_dropped"] if reasoning == "drop" else [])
    assert result.progress.notes == ({"reasoning_dropped": 1} if reasoning == "drop" else {})


def _rows(result: Any) -> list[dict[str, Any]]:
    from datasets import load_dataset

    return load_dataset(result.dataset)["train"].to_list()


def test_generations_have_their_thoughts_in_a_list(tmp_path: Path):
    job = chaos_job(
        tmp_path / "run",
        source={"rows": [{"instruction": "2 + 2?"}]},
        model={"path": "chaos", "engine": {"reply": "<think>\nA sum.\n</think>\n\nIt is 4."}},
        steps=[
            {"task": "text_generation", "reasoning": "column", "num_generations": 2, "group_generations": True},
        ],
    )
    (row,) = _rows(run(job, in_process=True))
    assert row["reasoning"] == ["A sum.", "A sum."]


@pytest.mark.parametrize("reasoning", ["drop", "column"])
def test_thoughts_that_never_end_reject_the_row(reasoning: str):
    engine = _Thinker("<think>\nOn and on", finish_reason="length")
    with pytest.raises(RowRejected, match=r"^truncated_reasoning$"):
        run_task("text_generation", {"instruction": "q"}, engine, reasoning=reasoning)


def test_where_a_model_was_told_not_to_think_nothing_was_left_out(tmp_path: Path):
    job = chaos_job(
        tmp_path / "run",
        source={"rows": [{"instruction": "2 + 2? /no_think"}]},
        model={"path": "chaos", "engine": {"reply": "<think>\n\n</think>\n\nIt is 4."}},
        steps=[{"task": "text_generation"}],
    )
    (row,) = _rows(run(job, in_process=True))
    assert (row["generation"], row["notes"]) == ("It is 4.", [])


def test_thoughts_that_never_end_are_kept_as_they_are():
    engine = _Thinker("<think>\nOn and on", finish_reason="length")
    assert run_task("text_generation", {"instruction": "q"}, engine, reasoning="keep")["generation"] == (
        "<think>\nOn and on\n"
    )


def test_a_thought_without_an_answer_rejects_the_row():
    for reasoning in ("drop", "keep", "column"):
        with pytest.raises(RowRejected, match=r"^empty_completion$"):
            run_task("text_generation", {"instruction": "q"}, _Thinker("<think>\nHm.\n</think>\n"), reasoning=reasoning)


@pytest.mark.parametrize("reasoning", ["drop", "keep", "column"])
def test_thoughts_that_a_template_opened_and_no_mark_closed_are_no_answer(reasoning: str):
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    opening = "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"

    def answered(text: str, **given: Any) -> dict[str, Any]:
        engine = ScriptedEngine([text])
        engine.chat = chat_from_tokenizer(tokenizer)
        engine.decode = lambda ids: tokenizer.decode(ids)
        return run_task("text_generation", {"instruction": "2 + 2?"}, engine, reasoning=reasoning, **given)

    tokenizer.chat_template += opening
    with pytest.raises(RowRejected, match=r"^empty_completion$"):
        answered("Two and two. Hm.")
    row = answered('{"sum": 4}', sampling={"structured_outputs": {"json": {"type": "object"}}})
    assert row["generation"] == '{"sum": 4}'


class _Server(ScriptedEngine):
    """An engine that tells thoughts apart by itself, as servers with a reasoning parser do."""

    async def generate(self, request: Request) -> Completion:
        return replace(await super().generate(request), reasoning="A sum.")


@pytest.mark.parametrize(
    ("reasoning", "added"),
    [
        ("drop", {"generation": "It is 4."}),
        ("keep", {"generation": "<think>\nA sum.\n</think>\n\nIt is 4."}),
        ("column", {"generation": "It is 4.", "reasoning": "A sum."}),
    ],
)
def test_thoughts_that_a_server_tells_apart_are_treated_alike(reasoning: str, added: dict[str, str]):
    engine = _Server(["It is 4."])
    engine.chat = None
    engine.decode = lambda ids: ""
    assert run_task("text_generation", {"instruction": "2 + 2?"}, engine, reasoning=reasoning) == added
    cut = _Server([""], finish_reason="length")
    cut.chat, cut.decode = None, engine.decode
    if reasoning != "keep":
        with pytest.raises(RowRejected, match=r"^truncated_reasoning$"):
            run_task("text_generation", {"instruction": "2 + 2?"}, cut, reasoning=reasoning)


def test_the_next_turn_goes_on_from_the_answer():
    engine = _Thinker("Why?", THOUGHT + "Because.", "And then?", THOUGHT + "Nothing.")
    row = run_task("magpie", {}, engine, n_turns=2)
    assert [message["content"] for message in row["conversation"]] == ["Why?", "Because.", "And then?", "Nothing."]
    assert "They want" not in engine.prompts[-1]


def test_marks_that_are_special_tokens_are_asked_for_and_left_out_of_the_answer():
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    names = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
    tokenizer.add_tokens([AddedToken(name, special=True) for name in names])
    engine = ScriptedEngine([HARMONY])
    engine.chat = chat_from_tokenizer(tokenizer)
    engine.decode = lambda ids: tokenizer.decode(ids)
    row = run_task("text_generation", {"instruction": "2 + 2?"}, engine, reasoning="column")
    assert row == {"generation": "It is 4.", "reasoning": "A sum."}
    assert engine.requests[0].sampling["skip_special_tokens"] is False
    again = ScriptedEngine([HARMONY])
    again.chat, again.decode = engine.chat, engine.decode
    kept = run_task("text_generation", {"instruction": "2 + 2?"}, again, reasoning="keep")
    assert kept["generation"] == "<think>\nA sum.\n</think>\n\nIt is 4."


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("<think>", "</think>"), "<think>\nA sum.\n</think>\n\nIt is 4."),
        (("<|channel>", "<channel|>"), "<|channel>thought\nA sum.\n<channel|>It is 4."),
        (("[THINK]", "[/THINK]"), "[THINK]A sum.[/THINK]It is 4.</s>"),
    ],
)
def test_thoughts_are_kept_between_the_same_marks_whatever_the_model_s_are(names: tuple[str, ...], text: str):
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    tokenizer.add_tokens([AddedToken(name, special=True) for name in (*names, "</s>")])
    engine = ScriptedEngine([text])
    engine.chat, engine.decode = chat_from_tokenizer(tokenizer), tokenizer.decode
    kept = run_task("text_generation", {"instruction": "2 + 2?"}, engine, reasoning="keep")
    assert kept["generation"] == "<think>\nA sum.\n</think>\n\nIt is 4."


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"task": "magpie", "reasoning": "column"}, "magpie makes several calls a row; reasoning: column needs a task"),
        ({"task": "text_generation", "reasoning": "hide"}, "reasoning: .*'drop', 'keep' or 'column'"),
        (
            {"task": "preference_pair", "reasoning": "keep"},
            "preference_pair calls no model",
        ),
    ],
)
def test_what_cannot_be_done_with_thoughts_is_refused(step: dict, message: str):
    with pytest.raises(JobError, match=message):
        Job.of({"name": "t", "source": {"count": 1}, "model": {"path": "chaos"}, "steps": [step], "output": "unused"})
