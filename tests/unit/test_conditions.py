"""Conditions on columns: what they may be, which values meet them, and what a filter and the merger make of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from batchgen import BatchgenError, JobError, run
from batchgen.cli import main
from batchgen.conditions import checked_conditions, is_for, met
from batchgen.engines.base import EngineSpec
from batchgen.engines.chaos import ChaosEngine
from batchgen.job import Job
from batchgen.merge import latest_version
from batchgen.store import LocalStore
from tests.helpers import chaos_job, planned, worker_on

LOOP = "I need it for my friend. " * 20
SAID = [{"role": "user", "content": "What is two plus two?"}, {"role": "assistant", "content": "Four."}]


@pytest.mark.parametrize(
    ("condition", "values", "expected"),
    [
        ({"min": 3}, [2, 3, 4, None], [False, True, True, False]),
        ({"max": 3.5}, [2.0, 3.5, 4.0, float("nan"), None], [True, True, False, False, False]),
        ({"min": 2, "max": 3}, [1, 2, 3, 4], [False, True, True, False]),
        ({"min": 3, "max": 3}, [2, 3, 4], [False, True, False]),
        (3, [3, 4, None], [True, False, False]),
        (3, [3.0, 3.1], [True, False]),
        ([1, 2.5], [1.0, 2.0, 2.5], [True, False, True]),
        (True, [True, False, None], [True, False, False]),
        ("math", ["math", "Math", "", None], [True, False, False, False]),
        (["math", "code"], ["code", "art", "math"], [True, False, True]),
        ({"min_words": 2}, ["one", " one  two ", "", None], [False, True, False, False]),
        ({"min_words": 0, "max_words": 10**9}, ["one", "", None], [True, True, False]),
        ({"max_words": 2}, ["one two", "one two three", ""], [True, False, True]),
        ({"min_chars": 3, "max_chars": 4}, ["né", "née", "née!", "née!!"], [False, True, True, False]),
        ({"matches": "(?i)sorry"}, ["I am Sorry.", "No."], [True, False]),
        ({"not_matches": "^I"}, ["I can't.", "Can I?", None], [False, True, False]),
        ({"min_words": 2, "not_matches": ":$"}, ["Write this:", "Write this.", "Write"], [False, True, False]),
        ({"max_repeated": 0.5}, [LOOP, "It is 4.", "", None], [False, True, True, False]),
        ({"max_repeated": 0}, ["a b c d e f a b c d e", "a b c d e f a b c d"], [False, True]),
        ({"max_repeated": 1}, [LOOP], [True]),
        (
            {"language": "en"},
            ["What is two plus two?", "Was ist zwei und zwei?", "4", "", None],
            [True, False, True, True, False],
        ),
        (
            {"language": ["de", "en"], "min_chars": 2},
            ["What is two plus two?", "Was ist das?", "4"],
            [True, True, False],
        ),
        # Lists, and conversations, by each of their items.
        (
            {"language": "en"},
            [SAID, [*SAID[:1], {"role": "assistant", "content": "Das sind vier, ganz ohne Zweifel."}]],
            [True, False],
        ),
        ({"max_repeated": 0.5, "min_words": 2}, [["It is.", LOOP], ["It is.", "It was."]], [False, True]),
        ({"min": 3}, [[3, 4], [2, 4], [], None], [True, False, True, False]),
        ("a", [["a", "a"], ["a", "b"]], [True, False]),
        ({"min": 3}, [[[3], [4]], [[3], [2]], [[], None]], [True, False, False]),
        ({"min_words": 2}, [SAID, SAID[:1], []], [False, True, True]),
        ({"max_words": 5}, [[{"from": "human", "value": "One two."}]], [True]),
    ],
)
def test_which_values_meet_a_condition(condition: Any, values: list[Any], expected: list[bool]):
    checked_conditions({"column": condition})
    array = pa.array(values)
    assert met(array, condition).tolist() == expected
    assert met(pa.concat_arrays([array, array]).slice(1), condition).tolist() == (expected * 2)[1:]
    assert [bool(met(pa.array([value]), condition)[0]) for value in values] == expected, "as a filter asks"


@pytest.mark.parametrize("type", [pa.int8(), pa.uint64(), pa.float32(), pa.float64()])
def test_a_number_is_one_whatever_its_width(type: pa.DataType):
    values = pa.array([1, 2, 3], type)
    assert met(values, [1, 3]).tolist() == [True, False, True]
    assert met(values, {"min": 1.5}).tolist() == [False, True, True]


def test_numbers_that_are_no_floats_are_compared_all_the_same():
    values = pa.array([2**60 + 1, -(2**62), 5, None])
    assert met(values, {"min": 1.5}).tolist() == [True, False, True, False]
    assert met(values, {"min": -(10**30), "max": 10**30}).tolist() == [True, True, True, False]
    assert met(values, [2**60 + 1, 10**30]).tolist() == [True, False, False, False]
    assert met(pa.array([1.0, 2.0], pa.float16()), {"min": 1.5}).tolist() == [False, True]


def test_a_text_is_one_whatever_its_offsets():
    values = pa.array(["a", "b c", None], pa.large_string())
    assert met(values, "a").tolist() == [True, False, False]
    assert met(values, {"min_words": 2}).tolist() == [False, True, False]
    assert met(pa.array([["a"], ["b"]], pa.large_list(pa.large_string())), ["a"]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("kind", "fitting"),
    [
        ("number", {"min", "one"}),
        ("text", {"min_words", "matches", "word"}),
        ("boolean", {"true"}),
        ("list[number]", {"min", "one"}),
        ("list[list[text]]", {"min_words", "matches", "word"}),
        ("conversation", {"min_words", "matches", "word"}),
        ("other", set()),
    ],
)
def test_a_condition_is_for_columns_of_its_kind(kind: str, fitting: set[str]):
    conditions: dict[str, Any] = {
        "min": {"min": 1},
        "one": 1,
        "min_words": {"min_words": 1},
        "matches": {"matches": "a"},
        "word": ["a"],
        "true": True,
    }
    assert {name for name, condition in conditions.items() if is_for(condition, kind)} == fitting


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("{score: {mim: 3}}", r"merge\.keep\.score\.mim: unknown key; legal keys: min, max, min_words, max_words, "),
        ("{score: {min: x}}", r"merge\.keep\.score\.min: expected a number, got 'x'"),
        ("{score: {min: true}}", r"merge\.keep\.score\.min: expected a number, got True"),
        ("{score: {max: .inf}}", r"merge\.keep\.score\.max: expected a number, got inf"),
        ("{q: {min_words: -1}}", r"merge\.keep\.q\.min_words: expected a whole number from 0 to 1,000,000,000, got -1"),
        ("{q: {max_chars: 1.5}}", r"merge\.keep\.q\.max_chars: expected a whole number from 0 to .* got 1\.5"),
        (f"{{q: {{max_chars: {10**40}}}}}", r"merge\.keep\.q\.max_chars: expected a whole number from 0 to"),
        (f"{{score: {{min: -{10**400}}}}}", r"merge\.keep\.score\.min: expected a number, got -1000"),
        (f"{{score: [1, {10**400}]}}", r"merge\.keep\.score: expected a value"),
        (
            "{q: {language: english}}",
            r"merge\.keep\.q\.language: expected a language's code, such as en \(`no` in quotes\), or a list of some",
        ),
        ("{q: {language: [en, xx]}}", r"merge\.keep\.q\.language: expected .* zu\), got \['en', 'xx'\]"),
        ("{q: {language: []}}", r"merge\.keep\.q\.language: expected a language's code, .* got \[\]"),
        ("{q: {language: no}}", r"merge\.keep\.q\.language: expected a language's code, .* got False"),
        ("{q: {language: {en: 1}}}", r"merge\.keep\.q\.language: expected a language's code, .* got {'en': 1}"),
        ("{q: {max_repeated: 1.5}}", r"merge\.keep\.q\.max_repeated: expected a number from 0 to 1, got 1\.5"),
        ("{q: {max_repeated: yes}}", r"merge\.keep\.q\.max_repeated: expected a number from 0 to 1, got True"),
        ("{q: {max_repeated: 0, max: 2}}", r"merge\.keep\.q: bounds of numbers and of texts do not go together"),
        ("{score: .inf}", r"merge\.keep\.score: expected a value"),
        ('{q: "\\ud800"}', r"merge\.keep\.q: expected a value"),
        ('{q: {matches: "a\\udfff"}}', r"merge\.keep\.q\.matches: expected a regular expression"),
        ("{q: {matches: '('}}", r"merge\.keep\.q\.matches: expected a regular expression that RE2 knows, got '\('"),
        ("{q: {not_matches: '(?=a)'}}", r"merge\.keep\.q\.not_matches: expected a regular expression that RE2 knows"),
        ("{q: {matches: ''}}", r"merge\.keep\.q\.matches: expected a regular expression"),
        ("{q: {matches: 5}}", r"merge\.keep\.q\.matches: expected a regular expression"),
        ("{score: {min: 5, max: 2}}", r"merge\.keep\.score: min \(5\) is more than max \(2\)"),
        ("{q: {min_words: 5, max_words: 2}}", r"merge\.keep\.q: min_words \(5\) is more than max_words \(2\)"),
        ("{q: {min_chars: 5, max_chars: 2}}", r"merge\.keep\.q: min_chars \(5\) is more than max_chars \(2\)"),
        ("{q: {min: 1, min_words: 2}}", r"merge\.keep\.q: bounds of numbers and of texts do not go together"),
        ("{q: {}}", r"merge\.keep\.q: expected a value, a list of values, or a mapping with min, "),
        ("{q: []}", r"merge\.keep\.q: expected a value, a list of values, or a mapping with min, "),
        ("{q: null}", r"merge\.keep\.q: expected a value, a list of values, or a mapping"),
        ("{q: [a, 1]}", r"merge\.keep\.q: expected a value, a list of values, or a mapping .* got \['a', 1\]"),
        ("{score: [1, true]}", r"merge\.keep\.score: expected a value"),
        ("{score: .nan}", r"merge\.keep\.score: expected a value"),
        ("{q: [[a]]}", r"merge\.keep\.q: expected a value"),
        ("5", r"merge\.keep: expected a mapping"),
    ],
)
def test_conditions_that_are_none_are_refused_with_their_place(tmp_path: Path, keep: str, message: str):
    job = f"name: j\nsource: {{rows: [{{q: a, score: 1}}]}}\nsteps: []\noutput: {tmp_path}\nmerge:\n  keep: {keep}\n"
    (tmp_path / "job.yaml").write_text(job)
    with pytest.raises(JobError, match=rf"job\.yaml:6: {message}"):
        Job.load(tmp_path / "job.yaml")


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"scor": 1}, r"merge\.keep: no column 'scor'; did you mean 'score'\? available: .*q, score"),
        ({"score": "high"}, r"merge\.keep\.score: a condition on texts, and the column holds numbers"),
        ({"q": {"min": 2}}, r"merge\.keep\.q: a condition on numbers, and the column holds texts"),
        ({"messages": {"min_words": 2}}, r"merge\.keep: no column 'messages'"),
        ({"cluster_size": 1}, r"merge\.keep: no column 'cluster_size'"),
    ],
)
def test_conditions_on_columns_that_are_not_there_or_hold_something_else(
    tmp_path: Path, keep: dict[str, Any], message: str
):
    rows = [{"q": "a", "score": 1}]
    with pytest.raises(JobError, match=message):
        planned(chaos_job(tmp_path / "run", source={"rows": rows}, steps=[], merge={"keep": keep}))
    step = {"task": "filter", "keep": keep}
    with pytest.raises(JobError, match=message.replace(r"merge\.keep", r"steps\[0\] \(filter\)\.keep")):
        planned(chaos_job(tmp_path / "run", source={"rows": rows}, steps=[step]))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({}, "keep: missing"),
        ({"keep": {}}, "keep: there must be at least one condition"),
        ({"keep": {"q": {"min": "x"}}}, r"steps\[0\]\.keep\.q\.min: expected a number"),
        ({"keep": {"q": "a"}, "input_mappings": {"q": None}}, "input_mappings.q: filter needs 'q'"),
        ({"keep": {"q": "a"}, "num_generations": 2}, "filter calls no model and generates nothing"),
    ],
)
def test_a_filter_that_is_told_something_wrong_is_refused(tmp_path: Path, step: dict[str, Any], message: str):
    with pytest.raises(JobError, match=message):
        chaos_job(tmp_path, source={"rows": [{"q": "x"}]}, steps=[{"task": "filter", **step}])


def rows_of(job: Job) -> list[dict[str, Any]]:
    (part,) = Path(job.output).glob("attempts/*/*.parquet")

    return pq.read_table(part).to_pylist()


def test_a_filter_ends_a_row_before_its_answer_is_asked_for(tmp_path: Path):
    class Counting(ChaosEngine):
        calls = 0

        async def generate(self, request):
            self.calls += 1
            return await super().generate(request)

    rows = [
        {"instruction": "Add one and two.", "rating": 4.0, "label": "math"},
        {"instruction": "Add one and two!", "rating": 2.0, "label": "math"},
        {"instruction": "Paint it red now.", "rating": 5.0, "label": "art"},
        {"instruction": "Add three.", "rating": None, "label": "math"},
    ]
    keep = {"score": {"min": 3}, "label": ["math", "code"]}
    steps = [
        {"task": "filter", "keep": keep, "input_mappings": {"score": "rating"}},
        {"task": "text_generation"},
    ]
    job = chaos_job(tmp_path, source={"rows": rows}, steps=steps)
    engine = Counting(EngineSpec("chaos"))
    worker, plan, seeds, _ = worker_on(engine, job)
    asyncio.run(worker.shard(plan.shards[0], "a", seeds.slice(0, 4)))
    ended = rows_of(job)
    assert [row["reason"] for row in ended] == [None, "filtered:score", "filtered:label", "filtered:score"]
    assert [{name: row[name] for name in rows[0]} for row in ended] == rows, "a rejected row keeps its columns"
    assert engine.calls == 1


def test_items_of_a_list_are_filtered_each_by_itself(tmp_path: Path):
    rows = [{"tags": ["long enough", "short", "also long"]}]
    steps = [
        {"task": "filter", "keep": {"tags": {"min_chars": 2}}},
        {"task": "magpie", "explode": "tags -> tag"},
        {"task": "filter", "keep": {"tag": {"min_words": 2}}},
    ]
    all_of_them = {"exact": False, "near": None}
    job = chaos_job(tmp_path / "run", source={"rows": rows}, steps=steps, merge=all_of_them)
    result = run(job, in_process=True)
    assert load_dataset(result.dataset, split="train")["tag"][:] == ["long enough", "also long"]
    assert result.progress.reasons == {"filtered:tag": 1}


def test_scores_stay_with_the_texts_that_they_are_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [
        {"texts": ["a one", "b two", "", "d four"], "scores": [1.0, 5.0, 3.0, 4.0], "said": [SAID] * 4},
        {"texts": ["e five"], "scores": [], "said": [SAID]},
        {"texts": ["f six", "g seven"], "scores": [None, 2.0], "said": [SAID[:1], SAID]},
    ]
    spread = ["texts -> text", " scores->score ", "said -> scores"]
    steps = [
        {"task": "filter", "keep": {"texts": {"max_words": 2}}, "explode": spread},
        {"task": "filter", "keep": {"score": {"min": 2}}},
        {"task": "text_generation", "input_mappings": {"instruction": "text"}},
    ]
    everything = {"exact": False, "near": False}
    tree = {"name": "t", "source": {"rows": rows}, "model": {"path": "chaos"}, "steps": steps, "merge": everything}
    (tmp_path / "job.yaml").write_text(json.dumps({**tree, "output": str(tmp_path / "refused")}))
    assert main(["plan", str(tmp_path / "job.yaml")]) == 2
    assert "column 'scores' already exists" in capsys.readouterr().err, "it is the seeds' own"
    spread[2] = "said -> conversation"
    (tmp_path / "job.yaml").write_text(json.dumps({**tree, "output": str(tmp_path / "run")}))
    assert main(["plan", str(tmp_path / "job.yaml")]) == 0
    line = "  1. filter; explode texts -> text, scores -> score, said -> conversation\n"
    assert line in capsys.readouterr().out
    assert main(["draw", str(tmp_path / "job.yaml")]) == 0
    assert '== "texts → text, scores → score, said → conversation" ==>' in capsys.readouterr().out
    result = run({**tree, "output": str(tmp_path / "run")}, in_process=True)
    dataset = load_dataset(result.dataset, split="train")
    assert list(zip(dataset["text"], dataset["score"], strict=True)) == [
        ("b two", 5.0),
        ("d four", 4.0),
        ("g seven", 2.0),
    ]
    assert dataset["conversation"][0] == SAID
    assert not {"texts", "scores", "said"} & set(dataset.column_names)
    assert result.progress.reasons == {"filtered:score": 2, "unequal_lists": 1}
    card = (Path(result.dataset) / "README.md").read_text()
    assert "| `score` | `double` | one of the list `scores`, spread by step 1, filter |" in card


@pytest.mark.parametrize(
    ("explode", "message"),
    [
        (["texts -> text", "score -> s"], "explode: no column 'score'; did you mean 'scores'"),
        (["texts -> text", "n -> m"], "explode: column 'n' is not a list"),
        (["texts -> text", "scores -> text"], "explode: column 'text' already exists"),
        (["texts -> text", "scores -> n"], "explode: column 'n' already exists"),
        (["texts -> text", "scores -> row_id"], "explode: column 'row_id' is one that batchgen writes itself"),
    ],
)
def test_lists_that_cannot_be_spread_are_refused(tmp_path: Path, explode: list[str], message: str):
    rows = [{"texts": ["a"], "scores": [1.0], "n": 1}]
    steps = [{"task": "filter", "keep": {"n": 1}, "explode": explode}]
    with pytest.raises(JobError, match=message):
        planned(chaos_job(tmp_path / "run", source={"rows": rows}, steps=steps))


def test_the_merger_leaves_out_rows_that_do_not_meet_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [
        {"q": "What is one and one?", "score": 2},  # else its better twin would be the duplicate
        {"q": "What is one and one?", "score": 5},
        {"q": "Sorry, what is two and two?", "score": 5},
        {"q": "What is three and three?", "score": None},
    ]
    tree = {
        "name": "filtered",
        "source": {"rows": rows},
        "model": {"path": "chaos"},
        "steps": [{"task": "text_generation", "input_mappings": {"instruction": "q"}}],
        # In an order other than that of names: a row is counted for the first of these all the same.
        "merge": {"keep": {"score": {"min": 3}, "q": {"not_matches": "Sorry"}, "output_tokens": {"min": 1}}},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "job.yaml").write_text(json.dumps(tree))
    assert main(["plan", str(tmp_path / "job.yaml")]) == 0
    line = "merge: rows stay that meet the conditions on output_tokens, q, score; duplicates are told by q"
    assert line in capsys.readouterr().out
    result = run(tree, in_process=True)
    assert load_dataset(result.dataset, split="train")["score"][:] == [5]
    assert result.version.dropped == {"filtered: q": 1, "filtered: score": 2}
    card = (Path(result.dataset) / "README.md").read_text()
    assert "| filtered: q | 1 |" in card
    assert "      not_matches: Sorry\n" in card

    # Merged again as it was, it is the version that is there; with other conditions it is another.
    store = LocalStore(tree["output"])
    assert main(["merge", tree["output"]]) == 0
    assert latest_version(store) == result.version
    assert main(["merge", tree["output"], "--set", "merge.keep.score.min=1", "--set", "merge.near=false"]) == 0
    looser = latest_version(store)
    assert looser is not None
    assert (looser.number, looser.kept, looser.dropped) == (
        2,
        1,
        {"exact duplicate": 1, "filtered: q": 1, "filtered: score": 1},
    )


def test_conditions_may_change_when_a_run_goes_on(tmp_path: Path):
    first = run(chaos_job(tmp_path / "run"), in_process=True)
    assert "keep" not in first.version.merge, "runs of before there were conditions merge to what they were"
    least = {"keep": {"output_tokens": {"min": 10**6}}}
    told = r"the merge left out all 40 rows \(filtered: output_tokens 40\); there is nothing to publish"
    with pytest.raises(BatchgenError, match=rf"{told}$"):
        run(chaos_job(tmp_path / "run", merge=least), in_process=True)
    # Where there is no version with other settings, it can be looked at why.
    other = tmp_path / "other"
    with pytest.raises(BatchgenError, match=rf"{told}\. To look at them: batchgen dropped {other}$"):
        run(chaos_job(other, merge=least), in_process=True)
    assert main(["dropped", str(other), "--limit", "1"]) == 0
