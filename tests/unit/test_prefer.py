"""Which of several rows that are alike stays: the one with the highest number in a column, else the first."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import load_dataset

from batchgen import JobError, run
from batchgen.cli import main
from batchgen.job import Merge
from batchgen.merge.compared import Alike, Compared
from batchgen.tasks.spec import Chat
from tests.helpers import chaos_job, planned

LONG = "please write a long and careful story about a river that runs through the old town"


def alike(rows: list[dict[str, Any]], **merge: Any) -> Alike:
    """What rows are to each other: of seed row, question, answer and score."""
    seen = Compared(len(rows), Chat("q", "a"), Merge(**{"compare": "prompt"} | merge))
    for start in range(0, len(rows), 7):
        part = rows[start : start + 7]
        table = pa.table({"row_index": [row["seed"] for row in part]} | {
            name: pa.array([row[name] for row in part], kind)
            for name, kind in (("q", pa.string()), ("a", pa.string()), ("score", pa.float64()))
        })  # fmt: skip
        seen.add(table)
    return seen.alike()


def row(question: str, score: float | None, seed: int = 0, answer: str = "a") -> dict[str, Any]:
    return {"seed": seed, "q": question, "a": answer, "score": score}


@pytest.mark.parametrize("merge", [{}, {"near": None}, {"exact": False}])
def test_the_highest_stays_and_of_equal_ones_the_first(merge: dict[str, Any]):
    scores = [3.0, None, 5.0, float("nan"), 5.0, float("-inf")]
    found = alike([row(LONG, score) for score in scores], prefer="score", **merge)
    assert np.flatnonzero(found.stays).tolist() == [2]
    assert found.first.tolist() == [2] * 6
    assert found.sizes.tolist() == [6]
    assert alike([row(LONG, None), row(LONG, float("nan"))], prefer="score", **merge).first.tolist() == [0, 0]
    assert alike([row(LONG, float("-inf")), row(LONG, None)], prefer="score", **merge).first.tolist() == [0, 0]
    assert alike([row(LONG, float("inf")), row(LONG, 9.0)], prefer="score", **merge).first.tolist() == [0, 0]
    assert alike([row(LONG, 1.0), row(LONG, 2.0)], **merge).first.tolist() == [0, 0], "where none is preferred"


def test_rows_without_a_conversation_have_no_value_among_those_of_others():
    rows = [row(LONG, 1.0), row(" ", 9.0), row("Another question.", 2.0), row(LONG, 3.0)]
    seen = Compared(4, Chat("q", "a"), Merge(compare="prompt", prefer="score"))
    table = pa.table({"row_index": [0] * 4, **{name: [each[name] for each in rows] for name in ("q", "a", "score")}})
    assert seen.add(table).tolist() == [True, False, True, True]
    assert seen.alike().first.tolist() == [2, 1, 2], "of those with one"


@pytest.mark.parametrize("compare", ["prompt", "conversation", "answers"])
@pytest.mark.parametrize("near", [{"threshold": 0.7}, None])
@pytest.mark.parametrize("exact", [True, False])
def test_it_is_what_comes_of_rows_that_are_in_that_order(compare: str, near: dict[str, float] | None, exact: bool):
    rng = random.Random(f"{compare}{near}{exact}")
    words = LONG.split()
    rows = []
    for _ in range(300):
        text = [*words[: rng.choice([9, 12, 16])], *rng.choices(["today", "there", "now"], k=rng.randrange(2))]
        rows.append(row(" ".join(text), rng.choice([1.0, 2.0, 3.0, None]), rng.randrange(60), rng.choice("abc")))
    given: dict[str, Any] = {"compare": compare, "near": near, "exact": exact}
    found = alike(rows, **given, prefer="score")
    order = sorted(range(300), key=lambda index: -(rows[index]["score"] or 0))
    plain = alike([rows[index] for index in order], **given)
    assert sorted(np.flatnonzero(found.stays)) == sorted(order[index] for index in np.flatnonzero(plain.stays))
    assert [found.first[index] for index in order] == [order[index] for index in plain.first]
    assert [found.exact[index] for index in order] == plain.exact.tolist()
    assert found.stays[found.first].all()
    assert found.sizes.sum() == 300


def test_a_dataset_has_the_best_of_its_duplicates(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"q": text, "a": text[:3], "score": score} for text, score in (
        (LONG, 2), ("What is it?", 1), (f"{LONG} now", 3), (LONG.upper(), 5), ("Who is it?", None), ("what is it?", 1),
    )]  # fmt: skip
    tree = {
        "name": "best",
        "source": {"rows": rows},
        "steps": [],
        "shard_rows": 2,
        "merge": {"prompt": "q", "answer": "a", "prefer": "score"},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "job.yaml").write_text(json.dumps(tree))
    assert main(["plan", str(tmp_path / "job.yaml")]) == 0
    assert "duplicates are told by q; of such rows the one with the highest score stays\n" in capsys.readouterr().out
    result = run(tree, in_process=True)
    dataset = load_dataset(result.dataset, split="train")
    assert dataset["q"][:] == ["What is it?", LONG.upper(), "Who is it?"], "in the order of the seeds all the same"
    assert dataset["cluster_size"][:] == [2, 3, 1]
    assert "prefer: score" in (Path(result.dataset) / "README.md").read_text()
    assert main(["dropped", tree["output"], "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["row_index"], each["reason"], each["duplicate_of"]["row_index"]) for each in told] == [
        (0, "exact duplicate", 3),
        (2, "near duplicate", 3),
        (5, "exact duplicate", 1),
    ]
    assert main(["merge", tree["output"], "--set", "merge.prefer=null"]) == 0
    assert "version 2;" in capsys.readouterr().out


def test_the_longest_answer_is_one_that_batchgen_counts(tmp_path: Path):
    rows = [{"instruction": "Say something."}] * 6
    steps = [{"task": "text_generation"}]
    merge = {"prefer": "output_tokens"}
    dataset = load_dataset(
        run(chaos_job(tmp_path / "all", source={"rows": rows}, steps=steps, merge={"exact": False, "near": False}),
            in_process=True).dataset, split="train"
    )  # fmt: skip
    lengths = dataset["output_tokens"][:]
    assert len(set(lengths)) > 1
    longest = run(chaos_job(tmp_path / "one", source={"rows": rows}, steps=steps, merge=merge), in_process=True)
    assert load_dataset(longest.dataset, split="train")["output_tokens"][:] == [max(lengths)]


@pytest.mark.parametrize(
    ("prefer", "message"),
    [
        ("scores", r"merge\.prefer: no column 'scores' with numbers; did you mean 'score'\? available: .*, score"),
        ("q", r"merge\.prefer: no column 'q' with numbers; available: row_index, input_tokens, output_tokens, score"),
    ],
)
def test_what_is_preferred_has_to_be_a_number(tmp_path: Path, prefer: str, message: str):
    with pytest.raises(JobError, match=message):
        planned(chaos_job(tmp_path, source={"rows": [{"q": "a", "score": 1}]}, steps=[], merge={"prefer": prefer}))
