"""Rows that have texts in common with benchmarks: against plain sets of n-grams, through a merge, what is refused."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from batchgen import JobError, run
from batchgen.api import plan_run
from batchgen.benchmarks import benchmark_name, flat_texts, holds_texts
from batchgen.cli import main
from batchgen.errors import UserError
from batchgen.job import Benchmark, Job
from batchgen.merge import contamination
from batchgen.merge.contamination import Contamination
from tests.helpers import chaos_job

DUCKS = (
    "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for her friends "
    "every day with four. How much does she make?"
)
ALIKE = "Solve this: JANET’S ducks lay 16 eggs per day; she eats **three** for breakfast -- every morning!"


def benchmark(folder: Path, *texts: Any, **changes: Any) -> Benchmark:
    path = folder / "bench.jsonl"
    path.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts))
    return Benchmark(**{"path": str(path), "columns": ["question"], **changes})


def contaminated(known: Contamination, *texts: Any) -> list[bool]:
    (found,) = known.found(pa.table({"text": pa.array(texts)})).values()
    return found.tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DUCKS, True),
        (ALIKE, True),
        ("Janet's ducks lay 16 eggs per day. Why?", False),  # words in a row, but too few
        ("three for breakfast every morning and bakes muffins for her friends every", False),  # 12 of them
        ("three for breakfast every morning and bakes muffins for her friends every day", True),
        ("16 eggs per day she eats three for breakfast every morning and bakes bread", True),
        ("who wrote  HAMLET", True),
        ("**Who wrote Hamlet?**", True),
        ("Say who wrote Hamlet?", False),
        ("What is 2+2?", True),
        ("What is 2 - 2?", False),
        ("Yes", False),
        ("Yes, sir", False),  # as short as this it is in anything
        ("谁写了哈姆雷特？", True),
        ("", False),
        (None, False),
    ],
)
def test_which_texts_are_in_common(tmp_path: Path, text: str | None, expected: bool):
    known = Contamination(
        [benchmark(tmp_path, DUCKS, "Who wrote Hamlet?", "What is 2 + 2?", "Yes, sir!", "谁写了哈姆雷特")]
    )
    assert contaminated(known, "Another.", text, "What else?") == [False, expected, False]


JANET = "janet s ducks lay 16 eggs per day she eats three for breakfast every morning"
MUFFINS = "and bakes muffins for her friends every day with four how much does she make"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([DUCKS], f"{JANET} {MUFFINS}"),
        (["No.", ALIKE, DUCKS], JANET),  # the first of its texts, from its first word in common to the last in a row
        (["Eat for a day: 16 eggs per day she eats three for breakfast every morning and bakes bread"], "16 eggs"),
        (["**Who wrote Hamlet?**"], "who wrote hamlet"),
        (["What is 2+2?"], "what is 2+2"),
        (["谁写了哈姆雷特？"], "谁写了哈姆雷特"),
        (["Say who wrote Hamlet?"], None),
        ([], None),
    ],
)
def test_what_is_in_common_is_told(tmp_path: Path, texts: list[str], expected: str | None):
    known = Contamination(
        [
            benchmark(tmp_path, "Is it nothing of these, and nothing else?"),
            benchmark(tmp_path, DUCKS, "Who wrote Hamlet?", "What is 2 + 2?", "谁写了哈姆雷特"),
        ]
    )
    row = pa.table({"id": [7], "a": ["A text."], "b": pa.array([texts], pa.list_(pa.string()))})
    found = known.in_common(row, "bench.jsonl")
    if expected == "16 eggs":
        expected = f"{JANET.partition('lay ')[2]} and bakes"
    assert found == (None if expected is None else ("b", expected))
    assert (found is not None) == any(contaminated(known, *texts))
    assert known.in_common(row, "another.jsonl") is None


def words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKC", text).lower()
    return "".join(" " if unicodedata.category(sign)[0] in "PS" else sign for sign in plain).split()


def marks(text: str, size: int) -> set[Any]:
    """What `_marks` hashes, as it stands in its description."""
    told = words(text)
    if len(told) >= size:
        return {tuple(told[at : at + size]) for at in range(len(told) - size + 1)}
    trimmed = re.sub(r"^[\W_]+|[\W_]+$", "", unicodedata.normalize("NFKC", text).lower())
    return {(*re.findall(r"[^\W_]+|[^\s\w]|_", trimmed), "whole")} if len(told) >= 3 else set()


@pytest.mark.parametrize("size", [5, 8, 13])
def test_it_finds_what_sets_of_n_grams_find(tmp_path: Path, size: int):
    rng = random.Random(size)
    vocabulary = ["one", "two", "Three", "fünf", "6", "7", "a,", "b.", "(c)", "d-e", "F's"]

    def text() -> str:
        return " ".join(rng.choices(vocabulary, k=rng.randrange(1, 40))) + rng.choice(["", "?", "!!", " ."])

    known_texts = [text() for _ in range(120)]
    parts = [known.split() for known in known_texts]
    texts = [text() for _ in range(1500)]
    for _ in range(600):
        part = rng.choice(parts)
        start = rng.randrange(len(part))
        texts.append(" ".join(["x", *part[start : start + rng.randrange(1, 20)], "y"]))
        texts.append(" ".join(part).upper())
    known = set().union(*(marks(each, size) for each in known_texts))
    expected = [not marks(each, size).isdisjoint(known) for each in texts]
    contamination = Contamination([benchmark(tmp_path, *known_texts, ngram=size)])
    found = contaminated(contamination, *texts)
    assert found == expected
    for each, is_found in list(zip(texts, found, strict=True))[::20]:
        told = contamination.in_common(pa.table({"text": [each]}), "bench.jsonl")
        assert (told is not None) == is_found
        if told is not None and len(words(each)) >= size:
            assert marks(told.words, size) <= known, "and no word beside those"
            assert marks(told.words, size) <= marks(each, size)
    assert 200 < sum(found) < len(found) - 200, "so that there is something to tell apart"


def test_it_is_the_same_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = [f"{DUCKS} {number}" for number in range(10)]
    whole = Contamination([benchmark(tmp_path, *texts, None)])
    monkeypatch.setattr(contamination, "_BATCH_TEXTS", 3)
    pieces = Contamination([benchmark(tmp_path, *texts, None)])
    rows = [*texts, "None of them, not at all."]
    assert contaminated(whole, *rows) == contaminated(pieces, *rows) == [True] * 10 + [False]


@pytest.mark.parametrize(
    ("kind", "holds"),
    [
        ("text", True),
        ("list[text]", True),
        ("list[list[text]]", True),
        ("conversation", True),
        ("list[conversation]", True),
        ("number", False),
        ("list[number]", False),
        ("other", False),
    ],
)
def test_texts_are_in_texts_lists_and_messages(kind: str, holds: bool):
    assert holds_texts(kind) == holds


def test_every_text_of_a_column_is_known_by_its_row():
    message = {"role": "user", "content": "d"}
    for values, expected in (
        (["a", None, "b"], [("a", 0), ("b", 2)]),
        ([["a", "b"], None, [], ["c", None]], [("a", 0), ("b", 0), ("c", 3)]),
        ([[["a"], []], [["b"]]], [("a", 0), ("b", 1)]),
        ([None, [message, {"role": "user", "content": None}]], [("d", 1)]),
        ([[{"from": "human", "value": "d"}]], [("d", 0)]),
    ):
        texts, rows = flat_texts(pa.array(values))
        assert list(zip(texts.to_pylist(), rows.tolist(), strict=True)) == expected
        sliced, rows = flat_texts(pa.array(values).slice(1))
        assert list(zip(sliced.to_pylist(), rows + 1, strict=True)) == [each for each in expected if each[1] > 0]


def test_all_texts_of_a_row_count_and_none_that_batchgen_adds(tmp_path: Path):
    known = Contamination([benchmark(tmp_path, DUCKS)])
    conversation = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": ALIKE}]
    table = pa.table({
        "model": pa.array([DUCKS] * 4),
        "q": pa.array(["Hello.", ALIKE, None, "Hello."]),
        "said": pa.array([conversation, None, conversation[:1], None]),
        "listed": pa.array([[], None, ["Hello.", None, DUCKS], None]),
        "number": pa.array([1, 2, 3, 4]),
    })  # fmt: skip
    (found,) = known.found(table).values()
    assert found.tolist() == [True, True, True, False]


def tree(folder: Path, **merge: Any) -> dict[str, Any]:
    rows = [
        {"q": ALIKE},
        {"q": "What is the weather like today?"},
        {"q": "Who wrote Hamlet?"},
        {"q": "Paris is where?"},
    ]
    return {
        "name": "clean",
        "source": {"rows": rows},
        "model": {"path": "chaos"},
        "steps": [{"task": "text_generation", "input_mappings": {"instruction": "q"}}],
        "merge": merge,
        "output": str(folder / "run"),
    }


def test_a_merge_leaves_them_out_and_says_of_which_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    benchmark(tmp_path, DUCKS)
    Dataset.from_dict({"turns": [["Who wrote Hamlet?", "And why?"], ["When?"]], "id": [1, 2]}).save_to_disk(
        tmp_path / "plays"
    )
    benchmarks = [
        {"path": [f"{tmp_path}/bench.jsonl"], "columns": ["question"]},
        {"dataset": str(tmp_path / "plays"), "split": "train", "columns": ["turns"], "ngram": 8},
    ]
    job = tree(tmp_path, decontaminate=benchmarks, keep={"q": {"not_matches": "Paris"}})
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    assert main(["plan", str(tmp_path / "job.yaml")]) == 0
    line = "merge: rows stay that meet the conditions on q; rows go that have texts in common with bench.jsonl, plays; "
    assert line in capsys.readouterr().out
    result = run(job, in_process=True)
    assert load_dataset(result.dataset, split="train")["q"][:] == ["What is the weather like today?"]
    dropped = {"contaminated: bench.jsonl": 1, "contaminated: plays": 1, "filtered: q": 1}
    assert result.version.dropped == dropped
    card = (Path(result.dataset) / "README.md").read_text()
    assert "| contaminated: plays | 1 |" in card
    assert str(tmp_path) not in card, "where the benchmarks are on a machine is nobody's business"
    assert "  decontaminate:\n  - columns:\n    - question\n    path:\n    - bench.jsonl\n" in card

    # The run's job can be read again, and merges to the same.
    assert main(["merge", job["output"]]) == 0
    assert f"version {result.version.number};" in capsys.readouterr().out
    assert run(job, in_process=True).version == result.version
    # A row is counted for one reason, the first of them.
    assert main(["merge", job["output"], "--set", "merge.decontaminate.1.columns=[turns, turns]"]) == 0
    assert "contaminated: bench.jsonl 1, contaminated: plays 1, filtered: q 1" in capsys.readouterr().out
    (tmp_path / "bench.jsonl").unlink()
    assert main(["merge", job["output"]]) == 2
    assert "merge.decontaminate[0].path: no file matches" in capsys.readouterr().err


def test_a_row_that_is_in_two_benchmarks_is_counted_once(tmp_path: Path):
    first = {"path": str(benchmark(tmp_path, DUCKS).path), "columns": ["question"]}
    (tmp_path / "again.jsonl").write_text((tmp_path / "bench.jsonl").read_text())
    second = {"path": f"{tmp_path}/again.jsonl", "columns": ["question"]}
    result = run(tree(tmp_path, decontaminate=[first, second]), in_process=True)
    assert result.version.dropped == {"contaminated: bench.jsonl": 1}


def test_its_columns_may_have_names_that_are_batchgen_s_own(tmp_path: Path):
    (tmp_path / "bench.jsonl").write_text(json.dumps({"reason": DUCKS, "model": "x", "row_id": "Who wrote Hamlet?"}))
    known = Contamination([Benchmark(path=str(tmp_path / "bench.jsonl"), columns=["reason", "row_id"])])
    assert contaminated(known, DUCKS, "Who wrote Hamlet?", "x") == [True, True, False]


def test_one_benchmark_needs_no_list(tmp_path: Path):
    one = {"path": "a.jsonl", "columns": ["q"]}
    assert Job.of(tree(tmp_path, decontaminate=one)).merge.decontaminate == [Benchmark(**one)]


def test_a_dataset_of_batchgen_s_own_can_be_one(tmp_path: Path):
    held_out = run(chaos_job(tmp_path / "held", source={"count": 5}), in_process=True)
    path = f"{held_out.dataset}/data/*.parquet"
    job = chaos_job(
        tmp_path / "run",
        source={"count": 10},
        merge={"decontaminate": {"path": path, "columns": ["messages"], "ngram": 5}},
    )
    dropped = run(job, in_process=True).version.dropped
    assert dropped["contaminated: *.parquet"] >= 5, "the first five rows of the same seed are the same"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"path": "a/b.jsonl"}, "b.jsonl"),
        ({"path": ["a/b.jsonl", "s3://x/c.csv"]}, "b.jsonl, c.csv"),
        ({"dataset": "openai/gsm8k"}, "openai/gsm8k"),
        ({"dataset": "/data/held-out"}, "held-out"),
    ],
)
def test_a_benchmark_is_called_by_the_last_part_of_its_place(given: dict[str, Any], name: str):
    assert benchmark_name(Benchmark(**given, columns=["q"])) == name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{columns: [q]}", r"decontaminate\[0\]: give exactly one of path, dataset; got none"),
        ("{path: a.jsonl, dataset: b, columns: [q]}", r"decontaminate\[0\]: give exactly one of .* got both"),
        ("{path: a.jsonl}", r"decontaminate\[0\]\.columns: missing"),
        ("{path: a.jsonl, columns: []}", r"decontaminate\[0\]\.columns: "),
        (
            "{path: a.jsonl, columns: [q], split: train}",
            r"decontaminate\[0\]: config, revision and split belong to a d",
        ),
        ("{path: a.jsonl, columns: [q], ngram: 4}", r"decontaminate\[0\]\.ngram: .* greater than or equal to 5"),
        ("{path: a.jsonl, columns: [q], ngrams: 8}", r"decontaminate\[0\]\.ngrams: unknown key; did you mean 'ngram'"),
        ("5", r"decontaminate: input should be a valid list"),
        ("[a.jsonl]", r"decontaminate\[0\]: expected a mapping, like {path: benchmark\.jsonl, columns: \[question\]}"),
    ],
)
def test_benchmarks_that_are_none_are_refused(tmp_path: Path, given: str, message: str):
    job = f"name: j\nsource: {{rows: [{{q: a}}]}}\nsteps: []\noutput: {tmp_path}\nmerge:\n  decontaminate: {given}\n"
    (tmp_path / "job.yaml").write_text(job)
    with pytest.raises(JobError, match=rf"job\.yaml:6: merge\.{message}"):
        Job.load(tmp_path / "job.yaml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": "gone.jsonl"}, r"^merge\.decontaminate\[1\]\.path: no file matches 'gone\.jsonl'"),
        (
            {"columns": ["nope"]},
            r"^merge\.decontaminate\[1\]\.columns: .*bench\.jsonl has no column 'nope'; available: q",
        ),
        ({"columns": ["id"]}, r"^merge\.decontaminate\[1\]\.columns: column 'id' holds numbers, and no texts"),
        ({"path": []}, r"^merge\.decontaminate\[1\]\.path: names no file"),
        ({"path": "broken.jsonl"}, r"broken\.jsonl:2: not JSON"),
        (
            {"path": "nulls.parquet"},
            r"^merge\.decontaminate\[1\]\.columns: there are no texts in 'question', only nulls",
        ),
        (
            {"path": "maps.parquet"},
            r"^merge\.decontaminate\[1\]: column 'question' is map<.*\.decontaminate\[1\]\.columns$",
        ),
        ({"path": "empty.jsonl"}, r"^merge\.decontaminate\[1\]\.path: empty\.jsonl: the file has no rows"),
    ],
)
def test_benchmarks_that_cannot_be_read_are_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], message: str
):
    monkeypatch.chdir(tmp_path)
    good = {"path": "bench.jsonl", "columns": ["question"]}
    Path("bench.jsonl").write_text('{"question": "Why is it so?", "id": 1}\n')
    Path("broken.jsonl").write_text('{"question": "Why?"}\n{"question\n')
    Path("empty.jsonl").write_text("")
    pq.write_table(pa.table({"question": pa.array([None, None], pa.string())}), "nulls.parquet")
    pq.write_table(pa.table({"question": pa.array([None], pa.map_(pa.string(), pa.string()))}), "maps.parquet")
    job = Job.of(tree(tmp_path, decontaminate=[good, {**good, **given}]))
    with pytest.raises(UserError, match=message):
        plan_run(job)
    assert not (tmp_path / "run").exists()
