"""The four tasks: what they give, and a guard for each fault of distilabel that touches them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from batchgen.embedded import MODEL_PATH
from batchgen.engines.base import Completion, Request
from batchgen.engines.tokenizer import chat_from_tokenizer
from batchgen.errors import RowRejected
from batchgen.tasks.llm import CallLog
from batchgen.tasks.runner import TaskRunner, fitted
from batchgen.tasks.table import TASKS
from tests.helpers import ScriptedEngine, run_task
from tests.task_examples import EXAMPLES


def test_text_generation_answers_the_instruction():
    engine = ScriptedEngine(["Paris."])
    assert run_task("text_generation", {"instruction": "Capital?"}, engine) == {"generation": "Paris."}
    assert engine.prompts == ["<|im_start|>user\nCapital?<|im_end|>\n<|im_start|>assistant\n"]


def test_text_generation_takes_the_row_s_system_prompt_before_its_own():
    engine = ScriptedEngine(["a", "b"])
    run_task("text_generation", {"instruction": "x", "system_prompt": "Row."}, engine, system_prompt="Fixed.")
    run_task("text_generation", {"instruction": "x", "system_prompt": None}, engine, system_prompt="Fixed.")
    assert ["Row." in prompt for prompt in engine.prompts] == [True, False]
    assert ["Fixed." in prompt for prompt in engine.prompts] == [False, True]


def test_text_generation_does_not_read_the_instruction_as_a_template():
    engine = ScriptedEngine(["a"])
    run_task("text_generation", {"instruction": "{{ 7 * 7 }} {% for x in y %}"}, engine)
    assert "{{ 7 * 7 }} {% for x in y %}" in engine.prompts[0]


def test_a_base_model_s_answer_ends_where_the_next_question_begins():
    engine = ScriptedEngine(["Paris.", "Rome."])
    assert run_task("urial", {"instruction": "Capital?"}, engine) == {"generation": "Paris."}
    run_task("urial", {"instruction": "Capital?"}, engine, sampling={"stop": "##"})
    assert [request.sampling["stop"] for request in engine.requests] == [["\n\n# User"], ["##", "\n\n# User"]]


def test_a_base_model_is_shown_examples():
    engine = ScriptedEngine(["Paris."])
    examples = [{"user": "2 + 2?", "assistant": "It is 4."}, {"user": "Open a car?", "assistant": "Sorry, no."}]
    assert run_task("urial", {"instruction": "Capital?"}, engine, examples=examples) == {"generation": "Paris."}
    turns = ["# User:", "2 + 2?", "# Assistant:", "It is 4.", "# User:", "Open a car?", "# Assistant:", "Sorry, no."]
    assert "\n\n".join([*turns, "# User:", "Capital?", "# Assistant:"]) in engine.prompts[0]


@pytest.mark.parametrize("name", ["text_generation", "evol_instruct"])
def test_a_missing_input_rejects_the_row(name: str):
    with pytest.raises(RowRejected, match="missing_input:instruction"):
        run_task(name, {"instruction": None}, ScriptedEngine(["a", "b"]))


LISTS = [
    (name, column)
    for name, spec in sorted(TASKS.items())
    if spec.distilabel
    for column, kind in spec.inputs(spec.parameters.model_validate(EXAMPLES[name].parameters)).items()
    if kind.startswith("list[")
]


@pytest.mark.parametrize(("name", "column"), LISTS)
def test_a_list_without_all_its_texts_rejects_the_row_before_a_judge_is_shown_none(name: str, column: str):
    example, engine = EXAMPLES[name], ScriptedEngine([])
    for value, reason in (([], "empty_input"), ([*example.row[column], None], f"missing_input:{column}")):
        with pytest.raises(RowRejected) as rejection:
            run_task(name, {**example.row, column: value}, engine, **example.parameters)
        assert rejection.value.reason == reason
    assert engine.requests == []


@pytest.mark.parametrize("name", sorted(name for name, spec in TASKS.items() if spec.distilabel))
def test_an_empty_completion_rejects_the_row(name: str):
    example = EXAMPLES[name]
    with pytest.raises(RowRejected, match="empty_completion"):
        run_task(name, example.row, ScriptedEngine(lambda prompt, number: " \n"), **example.parameters)


def test_a_failing_request_rejects_the_row_without_quoting_it():
    def fail(prompt: str, number: int) -> str:
        raise ValueError("secret prompt text")

    with pytest.raises(RowRejected) as caught:
        run_task("text_generation", {"instruction": "x"}, ScriptedEngine(fail))
    assert caught.value.reason == "task_error:ValueError"


# Fault 7: list numbers and code fences stay in SelfInstruct's lines.
def test_self_instruct_lines_lose_list_marks_and_fences():
    text = (
        "```\n1. Name a river.\n2) Sort 3 words.\n- Add 2 and 3.\n\n* Why?\nQuery 5: Explain it.\n6. 3.5 is what?\n```"
    )
    row = run_task("self_instruct", {"input": "text"}, ScriptedEngine([text]))
    expected = ["Name a river.", "Sort 3 words.", "Add 2 and 3.", "Why?", "Explain it.", "3.5 is what?"]
    assert row == {"instructions": expected}


def test_self_instruct_without_any_instruction_is_rejected():
    with pytest.raises(RowRejected, match="no_instructions"):
        run_task("self_instruct", {"input": "text"}, ScriptedEngine(["```\n1. \n```"]))


# Fault 1: a user turn that fails is not noticed, and the next text becomes the assistant's.
@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_magpie_rejects_a_row_with_an_empty_turn(failing: int):
    engine = ScriptedEngine(lambda prompt, number: "" if number == failing else f"turn {number}")
    with pytest.raises(RowRejected, match="empty_completion"):
        run_task("magpie", {}, engine, n_turns=2)
    assert len(engine.prompts) == failing + 1, "nothing is generated after the failed turn"


def test_magpie_rejects_a_truncated_instruction_before_its_answer_is_paid_for():
    engine = ScriptedEngine(["What is the", "answer"], finish_reason="length")
    with pytest.raises(RowRejected, match="truncated_instruction"):
        run_task("magpie", {}, engine)
    assert len(engine.prompts) == 1


@pytest.mark.parametrize("cut", [1, 3])
def test_a_row_is_cut_where_any_of_its_answers_was(cut: int):
    class Cutting(ScriptedEngine):
        async def generate(self, request: Request) -> Completion:
            completion = await super().generate(request)
            return replace(completion, finish_reason="length" if len(self.prompts) == cut + 1 else "stop")

    log, spec = CallLog("row", 0), TASKS["magpie"]
    given = spec.parameters.model_validate({"n_turns": 2})
    runner = TaskRunner("magpie", spec, given, {}, {}, Cutting(["q1", "a1", "q2", "a2"]), {})
    asyncio.run(runner.run({}, log))
    assert (log.calls, log.finish_reason) == (4, "length")


def test_a_turn_goes_on_from_the_tokens_that_the_engine_generated():
    """As the model wrote them, letter by letter here, and not as its tokenizer would write the same text."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)

    class Spelling(ScriptedEngine):
        async def generate(self, request: Request) -> Completion:
            completion = await super().generate(request)
            return replace(completion, token_ids=[tokenizer(letter)["input_ids"][0] for letter in completion.text])

    engine = Spelling(["why", "because", "so", "yes"])
    engine.chat, engine.decode = chat_from_tokenizer(tokenizer), tokenizer.decode
    assert run_task("magpie", {}, engine, n_turns=2)["conversation"][3]["content"] == "yes"
    spelled = [tokenizer(letter)["input_ids"][0] for letter in "because"]
    assert len(tokenizer("because")["input_ids"]) < len(spelled)
    for request in engine.requests[2:]:
        assert any(list(request.token_ids[at : at + 7]) == spelled for at in range(len(request.token_ids)))


# Fault 2: an empty assistant header stands before the user header.
def test_magpie_prompts_have_no_empty_assistant_header():
    engine = ScriptedEngine(["q1", "a1", "q2", "a2"])
    row = run_task("magpie", {}, engine, n_turns=2, system_prompt="Be short.")
    start, end = "<|im_start|>", "<|im_end|>\n"
    system = f"{start}system\nBe short.{end}"
    first = f"{system}{start}user\nq1{end}{start}assistant\na1{end}"
    assert engine.prompts == [
        f"{system}{start}user\n",
        f"{system}{start}user\nq1{end}{start}assistant\n",
        f"{first}{start}user\n",
        f"{first}{start}user\nq2{end}{start}assistant\n",
    ]
    assert [message["content"] for message in row["conversation"]] == ["q1", "a1", "q2", "a2"]
    assert [message["role"] for message in row["conversation"]] == ["user", "assistant"] * 2


def test_magpie_user_turns_end_at_the_template_s_end_of_turn():
    engine = ScriptedEngine(["q", "a"])
    run_task("magpie", {}, engine)
    assert [list(request.stop) for request in engine.requests] == [["<|im_end|>"], []]


# Fault 1, second half: with include_system_prompt the system prompt comes out as the instruction.
@pytest.mark.parametrize(
    ("parameters", "roles"),
    [
        ({"include_system_prompt": True, "system_prompt": "S."}, ["system", "user", "assistant"]),
        ({"include_system_prompt": True, "system_prompt": "S.", "end_with_user": True}, ["system", "user"]),
        ({"include_system_prompt": True}, ["user", "assistant"]),
        ({"end_with_user": True}, ["user"]),
        ({"end_with_user": True, "n_turns": 2}, ["user", "assistant", "user"]),
        ({"n_turns": 2, "include_system_prompt": True, "system_prompt": "S."}, ["system", *["user", "assistant"] * 2]),
    ],
)
def test_magpie_gives_the_declared_columns_for_every_shape(parameters: dict, roles: list[str]):
    row = run_task("magpie", {}, ScriptedEngine(lambda prompt, number: f"t{number}"), **parameters)
    assert list(row) == ["conversation"]
    assert [message["role"] for message in row["conversation"]] == roles
    assert [m["content"] for m in row["conversation"] if m["role"] == "system"] == ["S."] * ("system" in roles)


def test_magpie_gives_a_pair_for_one_turn_and_an_instruction_alone():
    assert run_task("magpie", {}, ScriptedEngine(["q", "a"])) == {"instruction": "q", "response": "a"}
    assert run_task("magpie", {}, ScriptedEngine(["q"]), only_instruction=True) == {"instruction": "q"}


# Faults 4 and 10: a random system prompt is chosen once a batch, from unseeded global state.
def test_magpie_chooses_a_system_prompt_per_row_and_reproducibly():
    prompts = [f"Prompt {i}." for i in range(8)]

    def chosen(seed: int) -> str:
        engine = ScriptedEngine(["q", "a"])
        run_task("magpie", {}, engine, seed=seed, system_prompt=prompts)
        return next(prompt for prompt in prompts if prompt in engine.prompts[0])

    choices = [chosen(seed) for seed in range(20)]
    assert choices == [chosen(seed) for seed in range(20)]
    assert len(set(choices)) > 3


def test_random_choices_do_not_depend_on_what_runs_beside_a_row():
    engine = ScriptedEngine(lambda prompt, number: "text")
    parameters = TASKS["evol_instruct"].parameters.model_validate({"num_evolutions": 3})

    async def mutations(order: list[int]) -> dict[int, list[str]]:
        runner = TaskRunner("evol_instruct", TASKS["evol_instruct"], parameters, {}, {}, engine, {})
        engine.prompts.clear()
        await asyncio.gather(*(runner.run({"instruction": f"row {i}"}, CallLog(str(i), i)) for i in order))
        first = {i: [p for p in engine.prompts if f"row {i}" in p] for i in order}
        return {i: sorted(prompts) for i, prompts in first.items()}

    assert asyncio.run(mutations([0, 1, 2, 3])) == asyncio.run(mutations([3, 1, 0, 2]))


# Fault 5: answers are misaligned or raise when only the last of several evolutions is kept.
@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("evolutions", [1, 3])
def test_evol_instruct_answers_belong_to_their_instructions(store: bool, original: bool, evolutions: int):
    def answer(prompt: str, number: int) -> str:
        text = prompt.removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0]
        return f"evolved {number}" if "Prompt#" in text else f"answer to {text}"

    row = run_task(
        "evol_instruct",
        {"instruction": "start"},
        ScriptedEngine(answer),
        num_evolutions=evolutions,
        store_evolutions=store,
        include_original_instruction=original,
        generate_answers=True,
    )
    if store:
        expected = ["start"] * original + [f"evolved {i}" for i in range(evolutions)]
        assert row == {"evolved_instructions": expected, "answers": [f"answer to {text}" for text in expected]}
    else:
        last = f"evolved {evolutions - 1}"
        assert row == {"evolved_instruction": last, "answer": f"answer to {last}"}


def test_evol_instruct_keeps_what_follows_a_repeated_header():
    row = run_task("evol_instruct", {"instruction": "x"}, ScriptedEngine(["#Rewritten Prompt#: harder"]))
    assert row == {"evolved_instruction": "harder"}
    with pytest.raises(RowRejected, match="empty_completion"):
        run_task("evol_instruct", {"instruction": "x"}, ScriptedEngine(["#Rewritten Prompt#:"]), eliminate=False)


# Faults 5 and 8: metadata of a whole batch on every row; `process` changes the rows it is given.
def test_a_task_gives_only_its_declared_columns_and_leaves_its_row_alone():
    row = {"instruction": "x", "distilabel_metadata": {"mine": 1}, "generation": "old"}
    given = dict(row)
    assert set(run_task("evol_instruct", given, ScriptedEngine(["y"]))) == {"evolved_instruction"}
    assert given == row


def test_token_counts_are_the_row_s_own():
    engine = ScriptedEngine(["one two", "three four five"])
    runner = TaskRunner("magpie", TASKS["magpie"], TASKS["magpie"].parameters(), {}, {}, engine, {})
    log = CallLog("row", 0)
    asyncio.run(runner.run({}, log))
    assert (log.calls, log.output_tokens, log.input_tokens) == (2, 5, sum(map(len, engine.prompts)))


def test_importing_distilabel_leaves_the_traceback_hook_alone():
    code = "import sys; hook = sys.excepthook; import batchgen.tasks.distilabel_api; print(sys.excepthook is hook)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("text", "list[text]"),
        ({"a": "b"}, "list[text]"),
        (["a", 1], "list[text]"),
        ("4", "number"),
        (1, "boolean"),
        (4, "text"),
        ({"role": "user"}, "conversation"),
    ],
)
def test_a_value_that_its_column_cannot_hold_rejects_its_row(value: object, kind: str):
    with pytest.raises(RowRejected, match="invalid_output"):
        fitted(value, kind)


def test_values_are_made_to_fit_where_they_can():
    assert fitted([[4, None]], "list[list[number]]") == [[4.0, None]]
    assert fitted([{"role": "user", "content": "x", "name": "y"}], "conversation?") == [
        {"role": "user", "content": "x"}
    ]
    assert fitted(None, "text?") is None
