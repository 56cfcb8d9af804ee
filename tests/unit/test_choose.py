"""Columns that are drawn for every row: legal values, by their weights, and the same ones at every attempt."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from batchgen.errors import JobError
from batchgen.tasks.table import TASKS
from tests.helpers import ScriptedEngine, chaos_job, planned
from tests.unit.test_generate import run_all

COLUMNS = {
    "topic": ["algebra", "geometry"],
    "level": {"easy": 3, "hard": 1},
    "number": [2, 0.5],
    "short": [True, False],
}


def drawn(columns: dict[str, Any], seeds: range = range(4000)) -> list[dict[str, Any]]:
    spec = TASKS["choose"]
    parameters = spec.parameters.model_validate({"columns": columns})
    assert spec.draw is not None
    return [spec.draw(parameters, seed) for seed in seeds]


def test_every_value_comes_as_often_as_its_weight_says():
    counts = {name: Counter(row[name] for row in drawn(COLUMNS)) for name in COLUMNS}
    assert {name: set(count) for name, count in counts.items()} == {name: {*each} for name, each in COLUMNS.items()}
    for name, share in (("topic", 0.5), ("level", 0.75), ("number", 0.5), ("short", 0.5)):
        assert abs(counts[name][next(iter(COLUMNS[name]))] / 4000 - share) < 0.04, name


def test_a_weight_of_nothing_keeps_a_value_out():
    assert {row["a"] for row in drawn({"a": {"never": 0, "one": 1e-9, "two": 1e-9}})} == {"one", "two"}


def test_columns_are_drawn_alone_each():
    """Not with each other: else algebra would always be easy."""
    both = Counter((row["topic"], row["level"]) for row in drawn(COLUMNS))
    assert abs(both["algebra", "hard"] / 4000 - 0.125) < 0.03
    same = Counter((row["a"], row["b"]) for row in drawn({"a": [1, 2], "b": [1, 2]}))
    assert all(abs(count / 4000 - 0.25) < 0.04 for count in same.values())
    assert len(same) == 4


def test_the_order_of_a_mapping_is_of_no_account():
    """That of a job's copy, in its run, is another."""
    weights = {"c": 1, "a": 2, "b": 3}
    ordered = drawn({"x": weights, "y": [2, 1]})
    assert drawn({"y": [2, 1], "x": dict(sorted(weights.items()))}) == ordered


SKILLS = {
    "topic": {"algebra": 1, "geometry": 3, "music": 0},
    "skill": {"by": "topic", "of": {"algebra": ["factoring", "solving"], "geometry": {"proving": 3, "measuring": 1}}},
    "tool": {
        "by": "skill",
        "of": {name: [f"{name} tool"] for name in ("factoring", "solving", "proving", "measuring")},
    },
    "age": {"by": "topic", "of": {"algebra": [10, 11], "geometry": [30], "music": [5]}},
}


def test_a_column_may_be_drawn_by_what_another_one_has():
    rows = drawn(SKILLS)
    pairs = Counter((row["topic"], row["skill"]) for row in rows)
    shares = {("algebra", "factoring"): 1 / 8, ("algebra", "solving"): 1 / 8}
    shares |= {("geometry", "proving"): 9 / 16, ("geometry", "measuring"): 3 / 16}
    assert pairs.keys() == shares.keys()
    assert all(abs(pairs[pair] / 4000 - share) < 0.04 for pair, share in shares.items())
    assert all(row["tool"] == f"{row['skill']} tool" for row in rows)
    assert {(row["topic"], row["age"]) for row in rows} == {("algebra", 10), ("algebra", 11), ("geometry", 30)}
    assert drawn(dict(reversed(SKILLS.items()))) == rows, "in whatever order they stand"


def test_by_and_of_may_be_texts_with_weights():
    assert {row["word"] for row in drawn({"word": {"by": 1, "of": 2}})} == {"by", "of"}


def test_columns_that_are_drawn_by_others_run(tmp_path: Path):
    steps = [
        {"task": "choose", "columns": SKILLS},
        {"task": "text_generation", "template": "{{ topic }}: {{ skill }} with {{ tool }}, at {{ age }}"},
    ]
    engine = ScriptedEngine(lambda *_: "Done.")
    rows, _ = run_all(chaos_job(tmp_path, source={"count": 20}, steps=steps), engine)
    assert len({row["skill"] for row in rows}) > 2
    for row in rows:
        said = f"{row['topic']}: {row['skill']} with {row['tool']}, at {row['age']:.0f}"
        assert any(said in prompt for prompt in engine.prompts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "topik", "of": {"a": [1]}}, r"x\.by: no column 'topik' is drawn in this step; it draws topic, n, x"),
        ({"by": "x", "of": {"a": [1]}}, r"x\.by: columns depend on each other: x by x"),
        ({"by": "n", "of": {"1": [1]}}, r"x\.by: column 'n' has no texts"),
        ({"by": "topic", "of": {"a": [1]}}, r"x\.of: nothing to draw for 'b', of column 'topic'"),
        (
            {"by": "topic", "of": {"a": [1], "b": [2], "d": [3]}},
            r"x\.of\.d: no value of column 'topic'; it has a, b, c",
        ),
        ({"by": "topic", "of": {"a": [1], "b": ["x"]}}, r"x: what is drawn must be of one kind"),
        ({"by": "topic", "of": {"a": [1], "b": []}}, r"x: must be a list of texts"),
        ({"by": "topic", "of": {"a": [1], "b": {"by": "topic", "of": {}}}}, r"x: `of` has texts, and for each of them"),
        ({"by": "topic", "of": {1: [1]}}, r"x: `of` has texts, and for each of them"),
        ({"by": "topic", "of": {}}, r"x: `by` is the name of a column, and `of` what"),
        ({"by": 1, "of": {"a": [1]}}, r"x: `by` is the name of a column, and `of` what"),
        ({"by": "topic"}, r"x: a mapping has texts and their weights, .* or `by` and `of`"),
        ({"by": "topic", "of": {"a": [1]}, "if": 1}, r"x: a mapping has texts and their weights, .* or `by` and `of`"),
    ],
)
def test_what_nothing_can_be_drawn_by_is_refused_by_column(tmp_path: Path, options: Any, message: str):
    step = {"task": "choose", "columns": {"topic": {"a": 1, "b": 1, "c": 0}, "n": [1, 2], "x": options}}
    with pytest.raises(JobError, match=rf"steps\[0\]\.columns\.{message}"):
        chaos_job(tmp_path, steps=[step])


def test_columns_that_are_drawn_by_each_other_are_refused(tmp_path: Path):
    columns = {
        "a": {"by": "b", "of": {"x": ["x"]}},
        "b": {"by": "c", "of": {"x": ["x"]}},
        "c": {"by": "b", "of": {"x": ["x"]}},
    }
    with pytest.raises(JobError, match=r"columns\.a\.by: columns depend on each other: a by b by c by b"):
        chaos_job(tmp_path, steps=[{"task": "choose", "columns": columns}])


def test_a_row_draws_the_same_at_every_attempt_and_another_seed_draws_others(tmp_path: Path):
    def rows(name: str, **changes: Any) -> list[Any]:
        job = chaos_job(
            tmp_path / name, source={"count": 40}, steps=[{"task": "choose", "columns": COLUMNS}], **changes
        )
        return [(row["row_index"], *(row[column] for column in COLUMNS)) for row in run_all(job)[0]]

    first = rows("a", shard_rows=10)
    assert rows("b", shard_rows=3) == first
    assert rows("c", seed=8) != first


def test_a_prompt_has_what_was_drawn_and_a_whole_number_as_one(tmp_path: Path):
    steps = [
        {"task": "choose", "columns": {"number": [3], "share": [0.5], "who": ["a child"]}},
        {"task": "text_generation", "template": "Write {{ number }} of {{ share }} for {{ who }}."},
    ]
    engine = ScriptedEngine(lambda *_: "Done.")
    (row,), _ = run_all(chaos_job(tmp_path, source={"count": 1}, steps=steps), engine)
    assert "Write 3 of 0.5 for a child." in engine.prompts[0]
    assert (row["number"], row["share"], row["who"]) == (3.0, 0.5, "a child")


def test_system_prompts_are_made_of_what_was_drawn(tmp_path: Path):
    steps = [
        {"task": "choose", "columns": {"topic": ["algebra", "geometry"], "years": [1, 2]}},
        {
            "task": "fill_template",
            "template": "You teach {{ topic }} for {{years}} years.",
            "output_mappings": {"text": "system_prompt"},
        },
        {"task": "magpie"},
    ]
    engine = ScriptedEngine(lambda *_: "Hello.")
    rows, _ = run_all(chaos_job(tmp_path, source={"count": 20}, steps=steps), engine)
    said = {f"You teach {topic} for {years} years." for topic in ("algebra", "geometry") for years in (1, 2)}
    assert {row["system_prompt"] for row in rows} == said
    asked = [prompt for prompt in engine.prompts if prompt.endswith("<|im_start|>user\n")]
    for row in rows:
        assert row["system_prompt"] == f"You teach {row['topic']} for {row['years']:.0f} years."
    assert Counter(next(text for text in said if text in prompt) for prompt in asked) == Counter(
        row["system_prompt"] for row in rows
    )


def test_a_template_that_is_none_is_refused(tmp_path: Path):
    for template, message in (
        ("You teach.", "must hold at least one {{ column }} placeholder"),
        ("{% if a %}{{ a }}{% endif %}", "may hold {{ column }} placeholders and no other"),
    ):
        with pytest.raises(JobError, match=message.replace("{", r"\{")):
            chaos_job(tmp_path, steps=[{"task": "fill_template", "template": template}])
    job = chaos_job(tmp_path, steps=[{"task": "fill_template", "template": "On {{ topic }}."}])
    with pytest.raises(JobError, match=r"steps\[0\] \(fill_template\): reads column 'topic', which no step writes"):
        planned(job)


@pytest.mark.parametrize(
    "options",
    [
        *([], ["a", 1], [1, True], ["a", None], [["a"]], [None], [float("nan")], [10**400], "a", 5, None),
        *({"a": "x"}, {1: 1}, {"a": True}, {"a": -1}, {"a": float("inf")}, {"a": float("nan")}, {"a": 1e300}),
    ],
)
def test_what_nothing_can_be_drawn_from_is_refused_by_column(tmp_path: Path, options: Any):
    step = {"task": "choose", "columns": {"fine": [1], "topic": options}}
    with pytest.raises(JobError, match=r"steps\[0\]\.columns\.topic: (must be a list of|a mapping has) texts"):
        chaos_job(tmp_path, steps=[step])


@pytest.mark.parametrize("weights", [{}, {"a": 0, "b": 0.0}])
def test_some_weight_has_to_be_above_zero(tmp_path: Path, weights: dict[str, float]):
    with pytest.raises(JobError, match="at least one weight must be above zero"):
        chaos_job(tmp_path, steps=[{"task": "choose", "columns": {"topic": weights}}])


def test_a_step_that_draws_nothing_is_refused(tmp_path: Path):
    for step in ({"task": "choose"}, {"task": "choose", "columns": {}}):
        with pytest.raises(JobError, match=r"steps\[0\]\.columns: "):
            chaos_job(tmp_path, steps=[step])


def test_columns_that_are_taken_are_refused_by_the_plan(tmp_path: Path):
    for name, said in (("model", "one that batchgen writes itself"), ("instruction", "already exists")):
        job = chaos_job(
            tmp_path, source={"rows": [{"instruction": "Add."}]}, steps=[{"task": "choose", "columns": {name: ["a"]}}]
        )
        with pytest.raises(JobError, match=rf"steps\[0\] \(choose\): column '{name}'.*{said}"):
            planned(job)
