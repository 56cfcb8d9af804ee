"""A row on its way: what steps add to it, how it splits, and that the branches' counts are what the engine did."""

from __future__ import annotations

import pytest

from batchgen.branches import Branch, Generation, check_text, explode, grouped, storable
from batchgen.errors import RowRejected
from batchgen.tasks.llm import CallLog


def generation(
    text: str | None,
    input_tokens: int = 0,
    output_tokens: int = 0,
    finish_reason: str | None = "stop",
    reason: str | None = None,
    notes: tuple[str, ...] = (),
    last: str | None = None,
) -> Generation:
    log = CallLog("key", 0, lambda: 0, 1, input_tokens, output_tokens, finish_reason, notes=list(notes), last=last)
    log.cuts = int(finish_reason == "length")
    return Generation(log, {} if text is None else {"generation": text}, reason)


def test_a_branch_adds_up_what_its_steps_cost():
    first = Branch("", {"instruction": "a"}).after(generation("b", 5, 7, notes=("one",), last="b"))
    second = first.after(generation("c", 10, 20, notes=("two",), last="c"))
    assert (first.input_tokens, first.output_tokens, first.notes, first.last) == (5, 7, ("one",), "b")
    assert (second.input_tokens, second.output_tokens, second.notes, second.last) == (15, 27, ("one", "two"), "c")
    assert second.data == {"instruction": "a", "generation": "c"}
    assert second.reason is None
    assert second.after(generation(None, reason="refusal")).reason == "refusal"


def test_a_step_without_a_completion_leaves_the_last_one():
    branch = Branch("", {}).after(generation("b", finish_reason="stop", last="b"))
    after = branch.after(generation("c", finish_reason=None))
    assert (after.finish_reason, after.last) == ("stop", "b")


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (("stop", "length"), "length"),
        (("length", "stop"), "length"),
        (("length", None), "length"),
        (("stop", "stop"), "stop"),
        ((None, None), None),
    ],
)
def test_a_branch_one_of_whose_completions_was_cut_is_cut(reasons: tuple[str | None, ...], expected: str | None):
    branch = Branch("", {})
    for finish_reason in reasons:
        branch = branch.after(generation("text", finish_reason=finish_reason))
    assert branch.finish_reason == expected
    assert grouped([generation("text", finish_reason=each) for each in reasons]).log.finish_reason == expected


def test_what_was_spent_before_a_split_goes_with_the_first_branch():
    branch = Branch("", {"instruction": "a"}, 5, 7, "stop", ("note",), last="text")
    parts = branch.split(3)
    assert [part.path for part in parts] == ["0", "1", "2"]
    assert [(part.input_tokens, part.output_tokens, part.notes) for part in parts] == [
        (5, 7, ("note",)),
        (0, 0, ()),
        (0, 0, ()),
    ]
    assert {(part.finish_reason, part.last) for part in parts} == {("stop", "text")}
    assert [part.path for part in parts[1].split(2)] == ["1.0", "1.1"]


def test_a_list_becomes_a_branch_an_item():
    branch = Branch("2", {"instructions": ["a", None, "", "b"], "topic": "t"}, 5, 7)
    parts = explode(branch, {"instructions": "instruction"})
    assert [(part.path, part.data) for part in parts] == [
        ("2.0", {"topic": "t", "instruction": "a"}),
        ("2.1", {"topic": "t", "instruction": "b"}),
    ]
    assert sum(part.input_tokens for part in parts) == 5


@pytest.mark.parametrize("items", [[], None, [None, ""]])
def test_a_list_without_items_rejects_the_branch_which_keeps_what_it_cost(items: list[str] | None):
    (part,) = explode(Branch("1", {"instructions": items}, 5, 7), {"instructions": "instruction"})
    assert (part.reason, part.path, part.input_tokens) == ("nothing_to_explode", "1", 5)


def test_lists_are_spread_side_by_side():
    data = {"texts": ["a", None, "b", ""], "scores": [1.0, 2.0, None, 4.0], "scored": True}
    parts = explode(Branch("", data, 5, 7), {"texts": "text", "scores": "scores"})
    assert [part.data for part in parts] == [
        {"scored": True, "text": "a", "scores": 1.0},
        {"scored": True, "text": "b", "scores": None},
    ]
    assert [part.path for part in parts] == ["0", "1"]
    (none,) = explode(Branch("", {**data, "texts": [None] * 4}), {"texts": "text", "scores": "score"})
    assert none.reason == "nothing_to_explode"


@pytest.mark.parametrize("scores", [[1.0], [], None, [1.0, 2.0, 3.0]])
def test_lists_of_unequal_lengths_reject_the_branch(scores: list[float] | None):
    branch = Branch("1", {"texts": ["a", "b"], "scores": scores}, 5, 7)
    (part,) = explode(branch, {"texts": "text", "scores": "score"})
    assert (part.reason, part.data, part.input_tokens) == ("unequal_lists", branch.data, 5)


def test_a_rejected_branch_stays_one():
    branch = Branch("1", {"instructions": ["a", "b"]}, 5, 7, reason="refusal")
    assert explode(branch, {"instructions": "instruction"}) == [branch]


def test_generations_of_a_group_are_lists_and_cost_what_all_of_them_did():
    group = grouped(
        [
            generation("a", 1, 10, notes=("one",), last="a"),
            generation(None, 2, 20, reason="refusal", last="no"),
            generation("c", 4, 40, notes=("three",), last="c"),
        ]
    )
    assert (group.added, group.reason) == ({"generation": ["a", "c"]}, None)
    assert (group.log.input_tokens, group.log.output_tokens) == (7, 70)
    assert sorted(group.log.notes) == ["generation_failed:refusal", "one", "three"]


def test_a_group_fails_where_all_of_it_does_with_the_first_ones_reason_and_completion():
    failed = [
        generation(None, 1, 10, reason="refusal", last="no"),
        generation(None, 2, 20, reason="empty_output", last=""),
    ]
    group = grouped(failed)
    assert (group.added, group.reason, group.log.last) == ({}, "refusal", "no")
    assert (group.log.input_tokens, group.log.output_tokens, group.log.notes) == (3, 30, [])


def test_text_that_no_file_can_hold():
    check_text({"instruction": "naïve 🙂", "turns": [{"content": "fine"}]})
    with pytest.raises(RowRejected, match="invalid_text"):
        check_text({"turns": [{"content": "half \ud83d"}]})
    assert storable("half \ud83d") == "half ?"
    assert storable("naïve 🙂") == "naïve 🙂"
    assert storable("") == ""
    assert storable(None) is None
