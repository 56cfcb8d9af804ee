"""The merger: exact and near duplicates against oracles, filters with counts, and the same bytes every time."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import re
import resource
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from batchgen import minhash, run
from batchgen.api import plan_run
from batchgen.cli import main
from batchgen.errors import BatchgenError, CorruptShard, JobError, StoreError, UserError
from batchgen.job import Merge
from batchgen.merge import latest_version, merge_run, near, read_version
from batchgen.merge.compared import Compared
from batchgen.merge.conversations import chat_columns, settled
from batchgen.merge.rows import Reader
from batchgen.merge.version import Version, copy_file
from batchgen.minhash import normalise
from batchgen.plan import make_plan
from batchgen.publish import publish_folder, publish_store
from batchgen.seeds import load_seeds
from batchgen.settle import read_plan
from batchgen.store import LocalStore
from batchgen.tasks.spec import Chat
from tests.helpers import chaos_job

VOCABULARY = [f"word{i}" for i in range(2000)]
LONG = "please write a long and careful story about a river that runs through the old town"


def text(rng: random.Random, words: int = 60) -> list[str]:
    return rng.choices(VOCABULARY, k=words)


def jaccard(a: list[str], b: list[str]) -> float:
    grams = [{tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (a, b)]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def test_a_dataset_has_no_statistics_of_texts(tmp_path: Path):
    """Arrow has wrong ones now and then, of the same rows others than before: see `with_statistics`."""
    rows = [{"q": text, "score": float(number), "tags": [text]} for number, text in enumerate(("b", "a", ""))]
    job = {"name": "t", "source": {"rows": rows}, "steps": [], "output": str(tmp_path / "run")}
    result = run(job, in_process=True)
    (file,) = Path(result.dataset, "data").iterdir()
    columns = pq.ParquetFile(file).metadata.row_group(0)
    found = {c.path_in_schema: c.statistics for c in (columns.column(at) for at in range(columns.num_columns))}
    assert {name for name, statistics in found.items() if statistics is not None} == {
        *("input_tokens", "output_tokens", "score"),
    }
    assert (found["score"].min, found["score"].max, found["score"].null_count) == (0.0, 2.0, 0)


def test_a_job_without_steps_makes_one_dataset_of_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    script = {"path": "chaos", "engine": {"tokens": 4}}
    steps = [{"task": "magpie", "n_turns": 2}]
    runs = [
        run(chaos_job(tmp_path / name, seed=seed, model=script, steps=steps), in_process=True)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    said = [load_dataset(result.dataset, split="train")["messages"] for result in runs]
    job = {
        "name": "all",
        "source": {"path": [f"{result.dataset}/data/*.parquet" for result in runs], "columns": ["messages"]},
        "steps": [],
        "merge": {"prompt": "messages"},
        "output": str(tmp_path / "all"),
    }
    result = run(job, in_process=True)
    together = load_dataset(result.dataset, split="train")
    assert together["messages"][:] == [*said[0], *said[2]]
    assert result.version.dropped == {"exact duplicate": len(said[1])}
    assert {*together["model"]} == {"none"}
    card = (Path(result.dataset) / "README.md").read_text()
    assert f"{len(together)} rows of synthetic text, merged by batchgen." in card
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(job))
    assert main(["plan", str(path)]) == 0
    assert "model" not in capsys.readouterr().out.partition("\n")[0]


def test_compiling_does_without_a_place_on_disk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="no locator available"):
        numba.njit(cache=True)(jaccard)
    assert minhash.compiled(minhash.mix.py_func)(np.uint64(5)) == minhash.mix(np.uint64(5))


def test_signatures_estimate_jaccard_similarity_as_well_as_datasketch():
    from datasketch import MinHash

    rng = random.Random(1)
    mine, theirs = [], []
    for _ in range(60):
        a = text(rng)
        b = list(a)
        for _ in range(rng.randint(0, 8)):
            b[rng.randrange(len(b))] = rng.choice(VOCABULARY)
        true = jaccard(a, b)
        signatures = minhash.signatures(pa.array([" ".join(a), " ".join(b)]))
        mine.append(float(np.mean(signatures[0] == signatures[1])) - true)
        sketches = []
        for words in (a, b):
            sketch = MinHash(num_perm=128)
            for i in range(len(words) - 2):
                sketch.update(" ".join(words[i : i + 3]).encode())
            sketches.append(sketch)
        theirs.append(sketches[0].jaccard(sketches[1]) - true)
    assert abs(np.mean(mine)) < 0.02
    assert np.std(mine) < 1.3 * np.std(theirs)


def test_near_duplicates_are_found_and_others_are_not():
    rng = random.Random(2)
    texts, cluster = [], []
    for index in range(300):
        base = text(rng)
        for copy in range(1 + index % 3):
            words = list(base)
            if copy:
                words[rng.randrange(len(words))] = "changed"
            texts.append(" ".join(words))
            cluster.append(index)
    first = near.clusters(minhash.signatures(pa.array(texts)), 0.8)
    found = sum(first[i] == first[j] for i, j in pairs(cluster))
    assert found >= 0.98 * len(pairs(cluster))
    assert all(cluster[i] == cluster[first[i]] for i in range(len(texts))), "no two different texts are one"
    assert all(first[i] <= i for i in range(len(texts))), "the lowest of a cluster stays"


def pairs(cluster: list[int]) -> list[tuple[int, int]]:
    return [
        (i, j) for i in range(len(cluster)) for j in range(i + 1, min(i + 3, len(cluster))) if cluster[i] == cluster[j]
    ]


def test_texts_that_share_a_band_and_little_more_stay_apart():
    rng = random.Random(3)
    texts = []
    for _ in range(150):
        base = text(rng)
        copy = base[:15] + text(rng, 45) if rng.random() < 0.5 else base[:45] + text(rng, 15)
        texts += [" ".join(base), " ".join(copy)]
    signatures = minhash.signatures(pa.array(texts))
    bands = signatures.reshape(len(texts), minhash.BANDS, -1)
    sharing = sum(any((a == b).all(axis=1)) for a, b in zip(bands[::2], bands[1::2], strict=True))
    assert sharing > 20, "so that the signatures have something to tell apart"
    assert near.clusters(signatures, 0.8).tolist() == list(range(len(texts)))


def test_an_edge_agrees_in_as_many_places_as_the_threshold_expects():
    least = minhash.least_agreement(0.8)
    assert least == 103, "0.8 of 128, and what is alike by chance"
    for agreeing, first in ((least, [0, 0]), (least - 1, [0, 1])):
        pair = np.zeros((2, minhash.PERMUTATIONS), np.uint8)
        pair[1, agreeing:] = 1
        assert near.clusters(pair, 0.8).tolist() == first
    assert minhash.least_agreement(0.5) == 65
    assert minhash.least_agreement(1.0) == 128


def test_a_huge_bucket_is_one_cluster_and_signs_tell_texts_apart():
    same = near.clusters(minhash.signatures(pa.array(["the very same text again and again"] * 5000)), 0.8)
    assert set(same.tolist()) == {0}
    apart = near.clusters(minhash.signatures(pa.array(["what is 5 + 3 ?", "what is 5 - 3 ?", "what is 5 * 3 ?"])), 0.8)
    assert apart.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (
            "请解释一下什么是机器学习，并举一个简单的例子说明它在生活中的应用。",
            "请解释一下什么是机器学习，并举一个简单的例子说明它在生活中的应用！",
        ),
        (
            "機械学習とは何かを説明し、簡単な例を一つ挙げてください。",
            "機械学習とは何かを説明し、簡単な例を一つ挙げて下さい。",
        ),
        ("ช่วยอธิบายหลักการของการเรียนรู้ของเครื่องหน่อย", "ช่วยอธิบายหลักการของการเรียนรู้ของเครื่องหน่อยนะ"),
        ("What’s “the capital” of France – and of Spain?", 'What\'s "the capital" of France - and of Spain?'),
        (
            "Ответьте, пожалуйста, на один простой вопрос: сколько лет Москве?",
            "Ответьте, пожалуйста, на один простой вопрос: сколько лет Москве",
        ),
    ],
)
def test_near_duplicates_of_any_script_are_found(a: str, b: str):
    assert near.clusters(minhash.signatures(normalise(pa.array([a, b]))), 0.7).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("量子力学的基本原理是什么？请用简单的语言解释。", "相对论的主要内容是什么？请用简单的语言解释。"),
        ("5×3", "5÷3"),
        ("5 − 3 = ?", "5 + 3 = ?"),
        ("Сколько лет Москве?", "Сколько лет Минску?"),
        ("Was heißt größer?", "Was heißt größte?"),
        ("답은 무엇입니까", "답은 무엇입니다"),
        ("😀", "😁"),
    ],
)
def test_different_texts_of_any_script_are_none(a: str, b: str):
    assert near.clusters(minhash.signatures(normalise(pa.array([a, b]))), 0.7).tolist() == [0, 1]


def test_a_text_is_cut_into_words_and_signs():
    def tokens(text: str) -> list[int]:
        data = np.frombuffer(text.encode() or b" ", np.uint8)
        out = np.empty(len(data), np.uint64)
        return out[: minhash.hash_tokens(data, 0, len(data), out)].tolist()

    cut = "für | 5 | × | 3 | = | 15 | , | 机 | 器 | か | ก | 😀 | 𠀀 | हिन्दी | । | قال | ؟ | 한국어 | … | 10 | €"
    words = cut.split(" | ")
    assert tokens("für 5×3=15,机器かก😀𠀀 हिन्दी। قال؟ 한국어… 10€") == [
        token for word in words for token in tokens(word)
    ]
    assert [len(tokens(word)) for word in words] == [1] * len(words)
    assert len(set(tokens(cut.replace(" | ", " ")))) == len(words)


@pytest.mark.parametrize("texts", [[], ["one"], ["", ""], ["a", "a b"], ["ÄÖ ü", "ÄÖ ü"]])
def test_short_and_odd_texts_are_no_trouble(texts: list[str]):
    first = near.clusters(minhash.signatures(pa.array(texts, pa.string())), 0.8)
    assert [texts[i] for i in first] == texts


def test_a_sliced_array_is_read_from_its_own_start():
    whole = pa.array(["x y z w", "a b c d", "a b c d"])
    assert near.clusters(minhash.signatures(whole.slice(1)), 0.8).tolist() == [0, 0]


def test_normalisation():
    assert normalise(pa.array(["  Ｗhat\tIS \n it? "])).to_pylist() == ["what is it?"]


def test_every_run_of_white_space_is_a_single_space():
    rng = random.Random(5)
    signs = [" ", " ", "\t", "\n", "\r", "\f", "\v", "\u2028", "a", "b"]
    texts = ["".join(rng.choices(signs, k=rng.randrange(12))) for _ in range(3000)]
    expected = pc.utf8_trim_whitespace(pc.replace_substring_regex(pa.array(texts), pattern=r"\s+", replacement=" "))
    assert normalise(pa.array(texts)).equals(expected)


def answered(tmp_path: Path, texts: list[str], script: dict | None = None, **changes: object):
    """A finished run that answers the given instructions."""
    job = chaos_job(
        tmp_path / "run",
        source={"rows": [{"instruction": text} for text in texts]},
        model={"path": "chaos", "engine": script or {}},
        steps=[{"task": "text_generation"}],
        **changes,
    )
    return run(job, in_process=True)


def test_every_dropped_row_is_counted_by_reason(tmp_path: Path):
    long = "please write a long and careful story about a river that runs through the old town"
    texts = ["Hello there", "hello   THERE", long, long + " today", "cut this", "empty this", "other"]
    result = answered(tmp_path, texts, {"truncate_on": "cut this", "empty_on": "empty this"})
    version = result.version
    assert version.dropped == {
        "exact duplicate": 1,
        "near duplicate": 1,
        "rejected: empty_completion": 1,
        "truncated": 1,
    }
    assert (version.read, version.kept) == (7, 3)


def test_the_dataset_opens_and_reads_as_chat(tmp_path: Path):
    result = answered(tmp_path, ["a b c", "a B c", "d e f"])
    dataset = load_dataset(str(result.dataset), split="train", cache_dir=str(tmp_path / "cache"))
    assert [[m["role"] for m in row["messages"]] for row in dataset] == [["user", "assistant"]] * 2
    assert [row["messages"][0]["content"] for row in dataset] == ["a b c", "d e f"]
    assert [row["messages"][1]["content"] for row in dataset] == dataset["generation"]
    assert dataset["cluster_size"] == [2, 1]


ODD_COLUMNS = {
    "nanoseconds": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
    "zoned": pa.array([1_700_000_000], pa.timestamp("s", "Europe/Berlin")),
    "duration": pa.array([1_234_567], pa.duration("ns")),
    "time": pa.array([36_000], pa.time32("s")),
    "binary": pa.array([b"\xff\x00"]),
    "decimal": pa.array([Decimal("1.23")]),
    "half": pa.array([1.5], pa.float16()),
    "unsigned": pa.array([2**64 - 1], pa.uint64()),
    "infinite": pa.array([math.inf]),
    "category": pa.array(["a"]).dictionary_encode(),
    "nested": pa.array([{"a": [{"b": None, "c": "d"}]}]),
    "fixed": pa.array([[1, 2]], pa.list_(pa.float32(), 2)),
    "large": pa.array([["x"]], pa.large_list(pa.large_string())),
    "json": pa.array(['{"a": 1}'], pa.json_()),
    "nothing": pa.nulls(1),
}


@pytest.mark.parametrize("source", ["path", "dataset"])
def test_seed_columns_of_any_type_come_out_as_they_went_in(tmp_path: Path, source: str):
    """In one file, as a run is the same for all; which types are refused is in `test_seeds`."""
    # What the datasets library cannot keep in its own files.
    absent = {"json", "category", "nothing"} if source == "dataset" else set()
    columns = {name: values for name, values in ODD_COLUMNS.items() if name not in absent}
    table = pa.table({"instruction": ["text"], **columns})
    place = tmp_path / "seeds"
    if source == "path":
        pq.write_table(table, place.with_suffix(".parquet"))
        place = place.with_suffix(".parquet")
    else:
        Dataset(table).save_to_disk(place)
    result = run(
        chaos_job(tmp_path / "run", source={source: str(place)}, steps=[{"task": "text_generation"}]), in_process=True
    )
    dataset = load_dataset(str(result.dataset), split="train", cache_dir=str(tmp_path / "cache"))
    rows = dataset.with_format("arrow")[:]
    assert {name: rows[name].to_pylist() for name in columns} == {name: table[name].to_pylist() for name in columns}


@pytest.mark.parametrize("name", ["cluster_size", "messages"])
def test_seeds_cannot_have_a_column_that_the_dataset_makes(tmp_path: Path, name: str):
    job = chaos_job(tmp_path, source={"rows": [{"instruction": "a", name: "b"}]}, steps=[{"task": "text_generation"}])
    with pytest.raises(
        JobError, match=rf"column '{name}' is where the dataset .*; give yours another name \(.*{{{name}: NEW, "
    ):
        plan_run(job)


def test_a_list_that_was_spread_over_rows_is_no_column_of_the_dataset(tmp_path: Path):
    first = {"task": "text_generation", "explode": "items -> item"}
    second = {
        "task": "self_instruct",
        "input_mappings": {"input": "item"},
        "output_mappings": {"instructions": "asked"},
        "explode": "asked -> asked",
    }
    source = {"rows": [{"instruction": "a", "items": ["b", "c"]}]}
    model = {"path": "chaos", "engine": {"reply": "1. Why is it so?"}}
    merge = {"near": False, "exact": False}
    job = chaos_job(tmp_path / "run", model=model, source=source, steps=[first, second], merge=merge)
    result = run(job, in_process=True)
    dataset = load_dataset(str(result.dataset), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset["item"] == ["b", "c"]
    assert dataset["asked"] == ["Why is it so?"] * 2
    assert "items" not in dataset.column_names


OWN = ["row_id", "branch", "model", "finish_reason", "input_tokens", "output_tokens", "notes"]


@pytest.mark.parametrize(
    ("wanted", "columns"),
    [
        (None, ["messages", *OWN, "instruction", "page", "generation", "cluster_size"]),
        (["page", "messages"], ["messages", *OWN, "page", "cluster_size"]),
        (["generation", "instruction", "model"], [*OWN, "instruction", "generation", "cluster_size"]),
        (["messages"], ["messages", *OWN, "cluster_size"]),
    ],
)
def test_a_dataset_has_the_columns_that_are_asked_for(tmp_path: Path, wanted: list[str] | None, columns: list[str]):
    rows = [{"instruction": f"Say {word}.", "page": number} for number, word in enumerate("abc")]
    job = chaos_job(
        tmp_path, source={"rows": rows}, steps=[{"task": "text_generation"}], merge={"near": False, "columns": wanted}
    )
    dataset = load_dataset(run(job, in_process=True).dataset, split="train")
    assert dataset.column_names == columns
    assert len(dataset) == 3
    if "messages" in columns:
        assert [row["messages"][0]["content"] for row in dataset] == [row["instruction"] for row in rows]


def test_a_conversation_that_is_not_asked_for_is_left_out_and_an_own_one_kept(tmp_path: Path):
    rows = [{"messages": [{"role": "user", "content": f"Say {word}."}]} for word in "ab"]
    step = {"task": "chat_generation"}
    for wanted, columns in ((["generation"], [*OWN, "generation"]), (["messages"], ["messages", *OWN])):
        job = chaos_job(tmp_path / wanted[0], source={"rows": rows}, steps=[step], merge={"columns": wanted})
        dataset = load_dataset(run(job, in_process=True).dataset, split="train")
        assert dataset.column_names == [*columns, "cluster_size"]
    assert [len(row["messages"]) for row in dataset] == [2, 2], "the answer is a message of it"


SHARE_GPT = [("system", "Be brief."), ("human", "2 + 3?"), ("gpt", "5"), ("user", "And plus 1?"), ("chatgpt", "6")]
AS_MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 3?"},
    {"role": "assistant", "content": "5"},
    {"role": "user", "content": "And plus 1?"},
]


def test_conversations_of_sharegpt_are_read_as_others_are(tmp_path: Path):
    turns = [{"from": who, "value": text, "weight": 1} for who, text in SHARE_GPT]
    rows = [{"conversations": turns}, {"conversations": [{"from": "human", "value": None}]}]
    steps = [{"task": "chat_generation", "regenerate": True, "input_mappings": {"messages": "conversations"}}]
    result = run(chaos_job(tmp_path / "run", source={"rows": rows}, steps=steps), in_process=True)
    assert result.progress.reasons == {"invalid_conversation": 1}
    (row,) = load_dataset(result.dataset, split="train")
    assert row["messages"] == [*AS_MESSAGES, {"role": "assistant", "content": row["generation"]}]
    assert row["conversations"] == turns, "the seed's column stays as it is"


def test_conversations_of_sharegpt_become_messages_without_a_step(tmp_path: Path):
    rows = [{"messages": [{"from": who, "value": text} for who, text in SHARE_GPT[: 4 + n]]} for n in range(2)]
    rows.append({"messages": [{"from": "human", "value": None}]})
    merge = {"prompt": "messages", "compare": "conversation", "near": False}
    job = chaos_job(tmp_path, source={"rows": rows}, steps=[], merge=merge)
    dataset = load_dataset(run(job, in_process=True).dataset, split="train")
    assert [row["messages"] for row in dataset] == [
        AS_MESSAGES,
        [*AS_MESSAGES, {"role": "assistant", "content": "6"}],
    ]


def test_an_answer_that_is_given_anew_takes_the_place_of_the_old_one(tmp_path: Path):
    rows = [{"messages": [*AS_MESSAGES, {"role": "assistant", "content": "7"}]}]
    step = {"task": "chat_generation", "regenerate": True}
    job = chaos_job(tmp_path, source={"rows": rows}, steps=[step])
    (row,) = load_dataset(run(job, in_process=True).dataset, split="train")
    assert row["messages"] == [*AS_MESSAGES, {"role": "assistant", "content": row["generation"]}]


def test_answers_that_go_into_a_list_are_not_the_answer_of_messages(tmp_path: Path):
    steps = [
        {"task": "text_generation", "output_mappings": {"generation": "a"}},
        {"task": "text_generation", "output_mappings": {"generation": "b"}},
        {"task": "group_columns", "columns": ["a", "b"]},
    ]
    job = chaos_job(tmp_path / "all", source={"rows": [{"instruction": "Hm?"}]}, steps=steps)
    (row,) = load_dataset(run(job, in_process=True).dataset, split="train")
    assert "messages" not in row
    assert row["grouped"] == [row["a"], row["b"]]
    steps[2]["columns"] = ["b"]
    job = chaos_job(tmp_path / "one", source={"rows": [{"instruction": "Hm?"}]}, steps=steps)
    (row,) = load_dataset(run(job, in_process=True).dataset, split="train")
    assert row["messages"][1]["content"] == row["a"]


def test_messages_that_rows_do_not_have_are_not_asked_for(tmp_path: Path):
    steps = [{"task": "group_columns", "columns": ["instruction"]}]
    job = chaos_job(tmp_path, source={"rows": [{"instruction": "Hm?"}]}, steps=steps, merge={"columns": ["messages"]})
    with pytest.raises(JobError, match=r"merge\.columns: the rows of this job have no 'messages'"):
        run(job, in_process=True)


def test_rows_are_worked_on_in_batches_and_that_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(4)
    bases = [text(rng) for _ in range(12)]
    texts = [" ".join([*rng.choice(bases), f"{rng.randrange(3)}"]) for _ in range(60)] + ["cut this", "", "a b c"]
    result = answered(tmp_path, texts, {"truncate_on": "cut this"}, shard_rows=7)
    assert {"exact duplicate", "near duplicate", "truncated"} < set(result.version.dropped)
    monkeypatch.setattr("batchgen.merge.conversations._BATCH_ROWS", 3)
    monkeypatch.setattr("batchgen.merge.version.ROWS_PER_GROUP", 2)
    monkeypatch.setattr("batchgen.merge.version.ROWS_PER_FILE", 5)
    store = LocalStore(result.run)
    job = chaos_job(result.run, shard_rows=7, **_same(result))
    version = merge_run(store, read_plan(store), job)
    assert len(version.files) > 2
    assert (version.read, version.kept, version.dropped) == (63, result.version.kept, result.version.dropped)
    assert _rows(store, version) == _rows(store, result.version)


def _rows(store: LocalStore, version: Version) -> list[dict]:
    names = sorted(name for name in version.files if name.endswith(".parquet"))
    return [row for name in names for row in pq.read_table(store.path(version.files[name].key)).to_pylist()]


def test_a_dataset_without_rows_is_no_success(tmp_path: Path):
    """`load_dataset` would not open it, and whoever reads the exit code alone would not know."""
    with pytest.raises(
        BatchgenError, match=r"left out all 2 rows \(truncated 2\).*merge.drop_truncated: false"
    ) as caught:
        answered(tmp_path, ["a b", "c d"], {"truncate_on": "user"})
    assert caught.value.exit_code == 1
    store = LocalStore(tmp_path / "run")
    assert latest_version(store) is None, "it would be the one that is published"
    assert (
        answered(tmp_path, ["a b", "c d"], {"truncate_on": "user"}, merge={"drop_truncated": False}).version.kept == 2
    )


def test_nothing_is_merged_where_nothing_is_committed(tmp_path: Path, capsys):
    result = answered(tmp_path, ["a b", "c d"], {}, shard_rows=1)
    assert main(["revoke", result.run, "0", "1"]) == 0
    assert main(["merge", result.run, "--partial"]) == 2
    assert "no shard is committed yet" in capsys.readouterr().err
    version = latest_version(LocalStore(result.run))
    assert version is not None
    assert (version.number, version.kept) == (1, 2)


def test_switches_of_the_merge(tmp_path: Path):
    texts = ["a b c", "a B c", "cut"]
    keep = {"exact": False, "near": False, "drop_truncated": False}
    assert answered(tmp_path / "1", texts, {"truncate_on": "cut"}, merge=keep).version.kept == 3
    by_conversation = {"compare": "conversation"}
    assert answered(tmp_path / "2", texts, merge=by_conversation).version.kept == 3


@pytest.mark.parametrize("chatting", [False, True])
def test_a_question_under_two_system_prompts_is_two(tmp_path: Path, chatting: bool):
    poet, cook = (f"You are a {who}, who says so in each of his many sentences." for who in ("poet", "cook"))
    asked = [
        (poet, "Say hello."),
        (cook, "Say hello."),
        (None, "Say hello."),
        (poet, LONG),
        (cook, LONG),
        # Duplicates of these:
        (poet, "say  hello."),
        (None, "Say hello."),
        (cook, LONG + " today"),
    ]
    rows = [
        {"messages": [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]}
        if chatting
        else {"instruction": text, "system_prompt": system}
        for system, text in asked
    ]
    steps = [{"task": "chat_generation" if chatting else "text_generation"}]
    version = run(chaos_job(tmp_path, source={"rows": rows}, steps=steps), in_process=True).version
    assert version.merge["compare"] == "prompt"
    assert version.dropped == {"exact duplicate": 2, "near duplicate": 1}
    assert version.kept == 5


def test_pairs_of_preferences_are_compared_by_their_prompts(tmp_path: Path):
    answers = {**ANSWERS, "output_mappings": {"generation": "generations"}}
    rows = [
        {"instruction": text, "system_prompt": system}
        for text, system in (
            ("Add 2 and 3.", None),
            ("add 2  and 3.", ""),
            ("Say hello.", "Sing."),
            ("Say hello.", "Rap."),
        )
    ]
    reply = "\n\n".join(f"#### Output for Text {i}\nRating: {i}\nRationale: So it is." for i in (1, 2))
    judge = {"path": "chaos", "engine": {"reply": reply}}
    steps = [answers, {"task": "ultrafeedback", "model": "judge"}, {"task": "preference_pair"}]
    job = chaos_job(tmp_path, source={"rows": rows}, models={"judge": judge}, steps=steps)
    assert chat_columns(job, make_plan(job, load_seeds(job.source))) == Chat("prompt")
    assert run(job, in_process=True).version.dropped == {"exact duplicate": 1}


def test_a_conversation_begins_with_the_system_prompt_that_its_row_brought(tmp_path: Path):
    rows = [{"instruction": f"Say {i}.", "system_prompt": text} for i, text in enumerate(("Sing.", None, " ", "Rap."))]
    job = {"source": {"rows": rows}, "model": {"path": "chaos", "engine": {"reply": "Yes."}}, "steps": [ANSWER]}

    def roles(output: str, **changes: object) -> list[list[tuple[str, str]]]:
        result = run(chaos_job(tmp_path / output, **job | changes), in_process=True)
        dataset = load_dataset(str(result.dataset), split="train", cache_dir=str(tmp_path / "cache"))
        return [[(message["role"], message["content"]) for message in said] for said in dataset["messages"]]

    plain = [[("user", f"Say {i}."), ("assistant", "Yes.")] for i in range(4)]
    with_system = [[("system", "Sing."), *plain[0]], plain[1], plain[2], [("system", "Rap."), *plain[3]]]
    assert roles("own") == with_system
    assert roles("own-and-fixed", steps=[{**ANSWER, "system_prompt": "Be brief."}]) == with_system
    asked = {"prompt": "instruction", "answer": "generation"}
    assert roles("as-asked", merge=asked) == roles(
        "unread", steps=[{**ANSWER, "input_mappings": {"system_prompt": None}}]
    )
    assert roles("as-asked", merge=asked) == plain
    persona = [{"instruction": "Say it.", "persona": text} for text in ("You are a poet.", "You are a cook.")]
    mapped = [{**ANSWER, "input_mappings": {"system_prompt": "persona"}}]
    model = {"path": "chaos", "engine": {"lines": 2}}
    said = roles("mapped", source={"rows": persona}, steps=mapped, model=model)
    assert [each[0] for each in said] == [("system", "You are a poet."), ("system", "You are a cook.")]
    better = {"task": "evol_quality", "input_mappings": {"response": "generation"}, "num_evolutions": 1}
    again = {**better, "input_mappings": {"response": "evolved_response"}}
    again["output_mappings"] = {"evolved_response": "best"}
    assert roles("made-better", steps=[ANSWER, better, again]) == with_system
    others = [{**row, "generation": "Yes."} for row in rows]
    assert roles("not-answered-here", source={"rows": others}, steps=[better]) == plain


def test_several_answers_to_one_question_are_no_duplicates_unless_they_are_the_same(tmp_path: Path):
    source = {"rows": [{"instruction": text} for text in ("a b c", "d e f", "D e f")]}
    steps = [{"task": "text_generation", "num_generations": 4}]
    result = run(chaos_job(tmp_path / "run", source=source, steps=steps), in_process=True)
    assert (result.version.kept, result.version.dropped) == (8, {"exact duplicate": 4})
    assert "merge:\n  compare: answers\n" in (Path(result.dataset) / "README.md").read_text()
    alike = {"model": {"path": "chaos", "engine": {"reply": "Yes."}}}
    result = run(chaos_job(tmp_path / "alike", source=source, steps=steps, **alike), in_process=True)
    assert (result.version.kept, result.version.dropped) == (2, {"exact duplicate": 10})
    asked = {"merge": {"compare": "prompt"}}
    result = run(chaos_job(tmp_path / "asked", source=source, steps=steps, **asked), in_process=True)
    assert (result.version.kept, result.version.dropped) == (2, {"exact duplicate": 10})
    asked = {"merge": {"compare": "conversation"}}
    result = run(chaos_job(tmp_path / "with", source=source, steps=steps, **asked), in_process=True)
    assert result.version.kept > 8, "questions that are the same, with other answers"


def compared(rows: list[tuple[int, str, str]], **merge: object) -> tuple[list[int], list[int], dict[str, int]]:
    """(rows that stay, how many each stands for, rows left out by reason) of (seed row, question, answer)."""
    names = {"row_index": [seed for seed, _, _ in rows], "q": [q for _, q, _ in rows], "a": [a for _, _, a in rows]}
    seen = Compared(len(rows), Chat("q", "a"), Merge(**{"compare": "answers"} | merge))
    assert seen.add(pa.table(names)).all()
    alike = seen.alike()
    assert sum(alike.sizes) == len(rows)
    assert alike.stays[alike.first].all(), "who stands for others stays"
    dropped = Counter(f"{'exact' if exact else 'near'} duplicate" for exact in alike.exact[~alike.stays])
    return np.flatnonzero(alike.stays).tolist(), alike.sizes.tolist(), dict(dropped)


def test_of_questions_that_are_nearly_the_same_the_first_keeps_its_answers():
    near = f"{LONG} today"
    rows = [
        *((0, LONG, answer) for answer in ("No.", "Yes.", "yes.", "Perhaps.")),
        *((1, near, answer) for answer in ("No.", "Never.")),
        *((2, LONG.upper(), answer) for answer in ("No.", "Never.")),
        (3, "What else is there?", "No."),
        # Another question of the first row, as of a list that was spread.
        (0, near, "No."),
    ]
    both = {"exact duplicate": 1 + 2, "near duplicate": 2 + 1}
    assert compared(rows) == ([0, 1, 3, 8], [1 + 2 + 2 + 1, 2, 1, 1], both)
    assert compared(rows, near=None) == ([0, 1, 3, 4, 5, 8], [1 + 2, 2, 1, 1 + 1, 1, 1], {"exact duplicate": 4})
    alike = {"near duplicate": 2 + 2 + 1}
    assert compared(rows, exact=False) == ([0, 1, 2, 3, 8], [1 + 5, 1, 1, 1, 1], alike)
    assert compared(rows, exact=False, near=None) == (list(range(10)), [1] * 10, {})
    assert compared([]) == ([], [], {})


QUESTIONS = {"task": "self_instruct", "explode": "instructions -> instruction"}
ANSWER = {"task": "text_generation"}
ANSWERS = {**ANSWER, "output_mappings": {"generation": "answers"}, "num_generations": 2, "group_generations": True}
LISTED = {"prompt": "instruction", "answer": "answer"}


@pytest.mark.parametrize(
    ("columns", "steps", "merge", "compare"),
    [
        (["instruction"], [ANSWER], {}, "prompt"),
        (["instruction"], [{**ANSWER, "num_generations": 2}], {}, "answers"),
        (["instruction"], [{**ANSWER, "sampling": {"n": 2}}], {}, "answers"),
        (["instruction"], [{**ANSWERS, "explode": "answers -> answer"}], LISTED, "answers"),
        (["instruction"], [{**ANSWERS, "explode": "answers -> answer"}], {}, "answers"),
        (["instruction", "notes_"], [{**ANSWER, "explode": "notes_ -> note"}], {}, "answers"),
        # Each row has a question of its own by then.
        (["input"], [QUESTIONS, ANSWER], {}, "prompt"),
        (["input"], [{**QUESTIONS, "num_generations": 2}, ANSWER], {}, "prompt"),
        (["input"], [QUESTIONS], {}, "prompt"),
        (["input"], [{**QUESTIONS, "explode": "instructions -> instructions"}], {}, "prompt"),
        (["input"], [QUESTIONS, {**ANSWER, "num_generations": 2}], {}, "answers"),
        (["instruction"], [{"task": "evol_instruct", "num_generations": 2}], {}, "prompt"),
        ([], [{"task": "magpie", "num_generations": 2}], {}, "prompt"),
        ([], [{"task": "magpie", "n_turns": 2, "num_generations": 2}], {}, "prompt"),
        ([], [{"task": "magpie", "only_instruction": True}, {**ANSWER, "num_generations": 2}], {}, "answers"),
    ],
)
def test_what_has_to_differ_depends_on_what_is_asked_for(
    tmp_path: Path, columns: list[str], steps: list[dict], merge: dict, compare: str
):
    row = {name: ["x"] if name == "notes_" else "x" for name in columns}
    job = chaos_job(tmp_path, source={"rows": [row]} if columns else {"count": 2}, steps=steps, merge=merge)
    chat = chat_columns(job, make_plan(job, load_seeds(job.source)))
    assert settled(job, chat).compare == compare


@pytest.mark.parametrize(
    ("columns", "step", "chat"),
    [
        (["input"], QUESTIONS, Chat("instruction")),
        (["input"], {**QUESTIONS, "explode": "instructions -> instructions"}, Chat("instructions")),
        (["input"], {"task": "self_instruct"}, None),
        (["instruction"], {"task": "evol_instruct", "store_evolutions": True}, None),
        (
            ["instruction"],
            {"task": "evol_instruct", "store_evolutions": True, "explode": "evolved_instructions -> evolved"},
            Chat("evolved"),
        ),
    ],
)
def test_a_list_of_questions_makes_conversations_once_it_is_spread(
    tmp_path: Path, columns: list[str], step: dict, chat: Chat | None
):
    job = chaos_job(tmp_path, source={"rows": [dict.fromkeys(columns, "x")]}, steps=[step])
    assert chat_columns(job, make_plan(job, load_seeds(job.source))) == chat


OF_TWO = [{**ANSWER, "output_mappings": {"generation": name}} for name in "ab"]
JUDGE = {"task": "ultrafeedback", "input_mappings": {"generations": "answers"}}


@pytest.mark.parametrize(
    "steps",
    [
        [{**ANSWERS, "explode": "answers -> answer"}],
        [ANSWERS, {**JUDGE, "explode": "answers -> answer"}],
        [*OF_TWO, {"task": "group_columns", "columns": ["a", "b"], "explode": "grouped -> answer"}],
        [
            *OF_TWO,
            {"task": "group_columns", "columns": ["a", "b"], "output_mappings": {"grouped": "answers"}},
            {**JUDGE, "explode": "answers -> answer"},
        ],
    ],
)
def test_a_list_of_answers_makes_conversations_once_it_is_spread(tmp_path: Path, steps: list[dict]):
    job = chaos_job(tmp_path, source={"rows": [{"instruction": "x"}]}, steps=steps)
    chat = chat_columns(job, make_plan(job, load_seeds(job.source)))
    assert chat == Chat("instruction", "answer")
    assert settled(job, chat).compare == "answers"


def test_a_prompt_of_several_columns_begins_the_messages_where_it_is_kept(tmp_path: Path):
    rows = [
        {"topic": topic, "number": number, "system_prompt": "Be brief."}
        for topic in ("tides", "moons")
        for number in (1, 2)
    ]
    step = {"task": "text_generation", "template": "{{ number }} about {{ topic }} {{ topic }}", "keep_prompt": True}
    dataset = load_dataset(
        run(chaos_job(tmp_path / "one", source={"rows": rows}, steps=[step]), in_process=True).dataset
    )
    said = [[message["content"] for message in row["messages"]] for row in dataset["train"]]
    asked = [f"{row['number']} about {row['topic']} {row['topic']}" for row in rows]
    assert said == [
        ["Be brief.", text, answer] for text, answer in zip(asked, dataset["train"]["generation"], strict=True)
    ]
    assert dataset["train"]["full_prompt"] == asked
    step |= {"num_generations": 2, "output_mappings": {"full_prompt": "asked"}}
    dataset = load_dataset(
        run(chaos_job(tmp_path / "two", source={"rows": rows}, steps=[step]), in_process=True).dataset
    )
    assert dataset["train"]["asked"] == [text for text in asked for _ in range(2)]
    step |= {"group_generations": True, "output_mappings": {"generation": "answers"}, "explode": "answers -> answer"}
    dataset = load_dataset(
        run(chaos_job(tmp_path / "all", source={"rows": rows}, steps=[step]), in_process=True).dataset
    )
    assert [row["messages"][1]["content"] for row in dataset["train"]] == [text for text in asked for _ in range(2)]
    with pytest.raises(JobError, match="keep_prompt is for a template"):
        chaos_job(tmp_path, steps=[{"task": "text_generation", "keep_prompt": True}])


def test_a_list_of_conversations_is_what_it_is_made_of_once_it_is_spread(tmp_path: Path):
    step = {"task": "magpie", "n_turns": 2, "num_generations": 2, "group_generations": True}
    step |= {"output_mappings": {"conversation": "all"}, "explode": "all -> one"}
    dataset = load_dataset(run(chaos_job(tmp_path, source={"count": 3}, steps=[step]), in_process=True).dataset)
    assert dataset["train"].num_rows == 6
    for row in dataset["train"]:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 2


def test_every_answer_of_a_list_that_is_spread_is_a_row_of_the_dataset(tmp_path: Path):
    rows = [{"instruction": f"Say {word}."} for word in ("hello to the sea", "nothing at all", "what you think")]
    steps = [{**ANSWERS, "explode": "answers -> answer"}]
    dataset = load_dataset(run(chaos_job(tmp_path, source={"rows": rows}, steps=steps), in_process=True).dataset)
    said = [[message["content"] for message in row["messages"]] for row in dataset["train"]]
    assert said == [[row["instruction"], row["answer"]] for row in dataset["train"]]
    assert len(said) == 6


def test_a_merge_by_hand_finds_the_version_of_the_run_whatever_the_order_of_a_job_s_keys(tmp_path: Path, capsys):
    job = chaos_job(
        tmp_path / "run",
        sampling={"top_p": 0.9, "temperature": 0.5},
        steps=[{"task": "text_generation", "system_prompt": "x", "input_mappings": {"instruction": "a"}}],
        source={"rows": [{"a": "1"}, {"a": "2"}]},
    )
    assert run(job, in_process=True).version.number == 1
    assert main(["merge", job.output]) == 0
    assert "version 1;" in capsys.readouterr().out


def test_the_same_run_merges_to_the_same_bytes_and_the_same_version(tmp_path: Path):
    results = [answered(tmp_path / name, ["a b c", "d e f", "g h i"]) for name in ("1", "2")]
    files = [{k: v.sha256 for k, v in result.version.files.items()} for result in results]
    assert files[0] == files[1]
    store = LocalStore(results[0].run)
    again = merge_run(store, read_plan(store), chaos_job(results[0].run, **_same(results[0])))
    assert again.number == 1


def _same(result) -> dict:
    import json

    tree = json.loads((Path(result.run) / "job.json").read_text())
    return {name: tree[name] for name in ("source", "model", "steps", "merge")}


def test_other_settings_make_another_version_and_the_first_stays(tmp_path: Path):
    from batchgen.cli import main

    result = answered(tmp_path, ["a b c", "a B c"])
    assert main(["merge", str(result.run), "--set", "merge.exact=false", "--set", "merge.near=false"]) == 0
    store = LocalStore(result.run)
    newest = latest_version(store)
    assert (newest.number, newest.kept, result.version.kept) == (2, 2, 1)
    assert main(["publish", str(result.run), "--to", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\n")


def test_an_incomplete_run_is_merged_only_when_asked(tmp_path: Path, capsys):
    result = answered(tmp_path, ["a b", "c d"], shard_rows=1)
    assert main(["revoke", result.run, "1"]) == 0
    assert main(["merge", result.run]) == 2
    assert "1 of 2 shards are committed" in capsys.readouterr().err
    assert main(["merge", result.run, "--partial"]) == 0
    version = latest_version(LocalStore(result.run))
    assert (version.number, version.kept, version.shards, version.of_shards) == (2, 1, 1, 2)


def test_a_corrupt_shard_is_named_and_nothing_is_published(tmp_path: Path):
    from batchgen.cli import main

    result = answered(tmp_path, ["a b c", "d e f"])
    shard = next((Path(result.run) / "attempts").rglob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    store = LocalStore(result.run)
    with pytest.raises(CorruptShard, match="shard 000000"):
        merge_run(store, read_plan(store), chaos_job(result.run, **_same(result)))
    assert main(["merge", str(result.run)]) == 1
    assert latest_version(store).number == 1


def test_publish_replaces_a_dataset_and_nothing_else(tmp_path: Path):
    result = answered(tmp_path, ["a b c"])
    store = LocalStore(result.run)
    target = tmp_path / "out"
    publish_folder(store, result.version, target)
    (target / "data" / "train-00007-of-00009.parquet").write_bytes(b"of an earlier version")
    (target / ".cache").mkdir()
    publish_folder(store, result.version, target)
    assert [path.name for path in (target / "data").iterdir()] == ["train-00000-of-00001.parquet"]
    assert {path.name for path in target.iterdir()} == {"README.md", "data"}
    assert list(tmp_path.glob(".*")) == []


DATASET = {"README.md": None, "data/train-00000-of-00001.parquet": b"rows"}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"thesis.txt": b"do not lose"}, "'thesis.txt' is in it"),
        # A clone of a dataset's repository, and a project.
        ({**DATASET, ".git/HEAD": b"ref"}, "'.git' is in it"),
        ({**DATASET, "notes.md": b"mine"}, "'notes.md' is in it"),
        ({"README.md": b"# My project", "data/train-00000-of-00001.parquet": b"rows"}, "README.md is not batchgen's"),
        ({**DATASET, "README.md": b"batchgen, data of mine"}, "README.md is not batchgen's"),
        ({**DATASET, "data/measured.csv": b"1, 2"}, "'data/measured.csv' is in it"),
        ({**DATASET, "data/deep/down/train-00000-of-00001.parquet": b"rows"}, "is in it"),
        ({"data/train-00000-of-00001.parquet": b"rows"}, "it has no README.md"),
        ({"README.md": None}, "it has no folder 'data'"),
        ({"README.md": None, "data": b"a file"}, "it has no folder 'data'"),
    ],
)
def test_a_folder_with_anything_else_in_it_is_left_as_it_is(tmp_path: Path, files: dict[str, bytes | None], told: str):
    result = answered(tmp_path, ["a b c"])
    card = Path(result.dataset, "README.md").read_bytes()
    given = {name: card if data is None else data for name, data in files.items()}
    for name, data in given.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with pytest.raises(UserError, match=r"is not a published dataset \(.*\); it was left as it is") as caught:
        publish_folder(LocalStore(result.run), result.version, tmp_path / "mine")
    assert told in str(caught.value)
    found = [path for path in (tmp_path / "mine").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "mine").as_posix(): path.read_bytes() for path in found} == given
    assert list(tmp_path.glob(".*")) == []


def edit(card: Path) -> str:
    """Adds to a card what its dataset's maker has to say; returns all of it."""
    text = card.read_text().replace("## How it was made", "Of my students' questions.\n\n## How it was made")
    card.write_text(text)
    return text


def test_a_card_that_somebody_has_edited_stays_with_its_data(tmp_path: Path, capsys):
    result = answered(tmp_path, ["one", "two"])
    card = Path(result.dataset, "README.md")
    edited = edit(card)
    again = answered(tmp_path, ["one", "two"])
    assert (again.version, card.read_text()) == (result.version, edited)
    # Other data need another card: neither is to go without a word.
    assert main(["merge", result.run, "--set", "merge.columns=[instruction]"]) == 0
    publish = ["publish", result.run, "--to", result.dataset]
    assert main(publish) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"batchgen: error: {result.dataset}: its README.md was edited, and would be written over")
    assert card.read_text() == edited
    assert load_dataset(result.dataset, split="train", cache_dir=str(tmp_path / "cache")).num_rows == 2
    shutil.rmtree(result.dataset)
    assert main(publish) == 0
    assert "generation" not in pq.read_schema(next(Path(result.dataset, "data").iterdir())).names


def test_in_a_store_a_card_that_was_edited_stays_with_its_data(tmp_path: Path):
    result = answered(tmp_path, ["one", "two"])
    store = LocalStore(result.run)
    edited = edit(Path(result.dataset, "README.md")).encode()
    assert publish_store(store, result.version) == f"{store.location}/dataset"
    assert store.read("dataset/README.md") == edited
    store.put("dataset/data/train-00007-of-00009.parquet", b"of an earlier version")
    with pytest.raises(UserError, match="was edited, and would be written over"):
        publish_store(store, result.version)
    assert store.read("dataset/README.md") == edited


def test_a_card_from_before_cards_had_digests_is_replaced(tmp_path: Path):
    result = answered(tmp_path, ["one", "two"])
    card = Path(result.dataset, "README.md")
    written = card.read_text()
    card.write_text(re.sub(", card [0-9a-f]{32}$", "", written, flags=re.MULTILINE))
    assert card.read_text() != written
    publish_folder(LocalStore(result.run), result.version, result.dataset)
    assert card.read_text() == written


def test_what_comes_while_a_dataset_is_copied_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = answered(tmp_path, ["a b c"])

    def copy(*arguments: Any) -> None:
        copy_file(*arguments)
        Path(result.dataset, "mine.txt").write_text("do not lose")

    monkeypatch.setattr("batchgen.publish.copy_file", copy)
    with pytest.raises(UserError, match=r"'mine\.txt' is in it"):
        publish_folder(LocalStore(result.run), result.version, result.dataset)
    assert Path(result.dataset, "mine.txt").read_text() == "do not lose"


@pytest.mark.parametrize("name", ["file", "folder"])
def test_a_link_is_followed_and_a_file_is_no_folder(tmp_path: Path, name: str):
    result = answered(tmp_path, ["a b c"])
    (tmp_path / "file").write_text("do not lose")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(name)
    store = LocalStore(result.run)
    if name == "file":
        with pytest.raises(UserError, match="it is a file"):
            publish_folder(store, result.version, tmp_path / "link")
        assert (tmp_path / "file").read_text() == "do not lose"
    else:
        assert publish_folder(store, result.version, tmp_path / "link") == tmp_path / "folder"
        assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("place", ["s3://bucket/data", "https://x/y"])
def test_a_dataset_is_published_to_folders_and_to_the_hub_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, place: str
):
    monkeypatch.chdir(tmp_path)
    answered(tmp_path, ["a", "b"])
    assert main(["publish", "run", "--to", place]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"batchgen: error: {place}: not a folder, nor a dataset of the Hub (hf://ORG/NAME)")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["of[1]", "a::b"])
def test_a_dataset_goes_where_load_dataset_finds_it(tmp_path: Path, name: str):
    result = answered(tmp_path, ["a b c"])
    store = LocalStore(result.run)
    with pytest.raises(UserError, match=r"load_dataset opens no folder with '(\[1\]|::)' in its path"):
        publish_folder(store, result.version, tmp_path / name / "dataset")
    assert not (tmp_path / name).exists()
    whole = publish_folder(store, result.version, tmp_path / "a[b *?#%20{c}: d" / "dataset")
    assert load_dataset(str(whole), split="train", cache_dir=str(tmp_path / "cache")).num_rows == 1


def test_in_a_store_the_card_comes_after_the_data_and_what_was_there_goes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    result = answered(tmp_path, ["one", "two"])
    store, elsewhere = LocalStore(result.run), ("attempts/kept", "dataset/mine.txt", "dataset/data/mine.csv")
    for key in elsewhere:
        store.put(key, b"not the dataset's")
    for key in ("dataset/data/train-00007-of-00009.parquet", "dataset/README.md"):
        store.put(key, b"of an earlier version")
    done: list[tuple[str, str]] = []

    class Watched(LocalStore):
        def put(self, key: str, data: bytes) -> None:
            done.append(("put", key))
            super().put(key, data)

        def delete(self, key: str) -> None:
            done.append(("delete", key))
            super().delete(key)

    assert publish_store(Watched(result.run), result.version) == f"{store.location}/dataset"
    data = "dataset/data/train-00000-of-00001.parquet"
    assert done == [
        ("put", data),
        ("put", "dataset/README.md"),
        ("delete", "dataset/data/train-00007-of-00009.parquet"),
    ]
    assert store.read("dataset/README.md") == (tmp_path / "run" / "dataset" / "README.md").read_bytes()
    assert all(store.read(key) == b"not the dataset's" for key in elsewhere)


def test_merges_of_one_run_at_the_same_time_all_give_a_version(tmp_path: Path):
    result = answered(tmp_path, ["a b c"])
    store, plan = LocalStore(result.run), read_plan(LocalStore(result.run))
    settings = [{"near": {"threshold": threshold}} for threshold in (0.6, 0.7, 0.9) for _ in range(2)]
    jobs = [chaos_job(result.run, **{**_same(result), "merge": merge}) for merge in settings]
    with ThreadPoolExecutor(6) as pool:
        versions = list(pool.map(lambda job: merge_run(store, plan, job), jobs))
    assert {version.merge["near"]["threshold"] for version in versions} == {0.6, 0.7, 0.9}
    assert all(read_version(store, version.number) == version for version in versions)
    # Version 1 is the run's own. Two equal merges give one version, unless a third came between their looks.
    assert {version.number for version in versions} == set(range(2, latest_version(store).number + 1))
    assert latest_version(store).number <= 7


def test_publishers_of_one_folder_do_not_hinder_each_other(tmp_path: Path):
    """Two drivers of one run end at the same time, as they wait for the same last shard."""
    result = answered(tmp_path, ["a b c"])
    store = LocalStore(result.run)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(publish_folder, store, result.version, tmp_path / "out") for _ in range(200)]
        assert {future.result() for future in futures} == {tmp_path / "out"}
    assert load_dataset(str(tmp_path / "out"), split="train").num_rows == 1
    assert list(tmp_path.glob(".*")) == []


def test_a_dataset_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = answered(tmp_path, ["a b c"])
    store = LocalStore(result.run)
    target = publish_folder(store, result.version, tmp_path / "out")
    before = (target / "README.md").stat().st_ino
    replace = os.replace

    def full(source: Path, place: Path) -> None:
        if place == target and not source.name.endswith(".old"):
            raise OSError(errno.EIO, "disk")
        replace(source, place)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreError, match="cannot publish"):
        publish_folder(store, result.version, target)
    assert (target / "README.md").stat().st_ino == before
    assert list(tmp_path.glob(".*")) == []


def test_a_target_that_cannot_be_looked_into_just_now_is_published_to_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    result = answered(tmp_path, ["a b c"])
    opened = os.open

    def stale(path: str | Path, *arguments: int, **options: int) -> int:
        if path == tmp_path / "out":
            raise OSError(errno.ESTALE, "Stale file handle")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", stale)
    with pytest.raises(StoreError, match=r"cannot publish to .*Stale file handle"):
        publish_folder(LocalStore(result.run), result.version, tmp_path / "out")
    assert list(tmp_path.glob(".*")) == []


def test_a_merge_that_has_no_room_for_its_files_says_where_and_goes_on_later(tmp_path: Path):
    result = answered(tmp_path, [" ".join(text(random.Random(i))) for i in range(20)])
    store = LocalStore(result.run)
    job = chaos_job(result.run, merge={"near": None})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"cannot write the dataset in .*File too large.*TMPDIR names another"):
            merge_run(store, read_plan(store), job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert latest_version(store).number == 1
    assert merge_run(store, read_plan(store), job).number == 2


def test_a_dataset_is_on_the_disk_before_it_takes_another_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = answered(tmp_path, ["a b c"])
    (tmp_path / "place").mkdir()
    flushed: list[Path] = []
    in_place: list[int] = []
    fsync, replace = os.fsync, os.replace

    def flush(handle: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    def place(source: Path, target: Path) -> None:
        replace(source, target)
        in_place.append(len(flushed))

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", place)
    target = publish_folder(LocalStore(result.run), result.version, tmp_path / "place" / "out")
    (before,) = in_place
    kept = {path.relative_to(target) for path in target.rglob("*")}
    names = {path.name for path in kept}
    assert {path.name for path in flushed[1:before]} == names == {"README.md", "data", "train-00000-of-00001.parquet"}
    assert flushed[0].parent == tmp_path / "place"
    assert flushed[before:] == [tmp_path / "place"]


def test_a_file_system_that_cannot_flush_folders_is_published_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = answered(tmp_path, ["a b c"])
    failing = errno.EINVAL

    def fsync(handle: int) -> None:
        raise OSError(failing, "fsync")

    monkeypatch.setattr(os, "fsync", fsync)
    publish_folder(LocalStore(result.run), result.version, tmp_path / "out")
    failing = errno.EIO
    with pytest.raises(StoreError, match="cannot publish"):
        publish_folder(LocalStore(result.run), result.version, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_file_is_published_in_pieces_and_refused_where_it_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchgen.merge.version._PIECE", 100)
    result = answered(tmp_path, ["a b c", "d e f"])
    store = LocalStore(result.run)
    target = publish_folder(store, result.version, tmp_path / "out")
    data = target / "data" / "train-00000-of-00001.parquet"
    file = store.path(result.version.files["data/train-00000-of-00001.parquet"].key)
    assert data.read_bytes() == file.read_bytes()
    assert len(data.read_bytes()) > 200
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptShard, match="is not what was merged"):
        publish_folder(store, result.version, tmp_path / "out")
    assert data.read_bytes() != file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_datasets_in_folders_of_one_name_are_not_taken_for_each_other(tmp_path: Path):
    """`load_dataset` caches by the folder's name and the card; the card has to tell two datasets apart."""
    from batchgen import run

    rows = {}
    for name in ("a", "b"):
        job = chaos_job(tmp_path / name, seed=ord(name), source={"count": 9})
        dataset = run(job, in_process=True).dataset
        assert Path(dataset).name == "dataset"
        rows[name] = load_dataset(dataset, split="train", cache_dir=str(tmp_path / "cache"))["instruction"][:]
    assert rows["a"] != rows["b"]


def test_rows_without_a_conversation_are_merged_as_they_are(tmp_path: Path):
    result = run(
        chaos_job(
            tmp_path,
            source={"rows": [{"anchor": "same", "cluster_size": 7}] * 3},
            model={"path": "chaos", "engine": {"reply": "## Positive\n\nIt is."}},
            steps=[{"task": "generate_sentence_pair", "action": "paraphrase"}],
        ),
        in_process=True,
    )
    rows = load_dataset(str(result.dataset), split="train")
    assert "messages" not in rows.column_names
    assert [(row["anchor"], row["positive"], row["cluster_size"]) for row in rows] == [("same", "It is.", 7)] * 3
    assert result.version.merge["compare"] is None


def test_each_kind_of_duplicate_is_looked_for_alone(tmp_path: Path):
    base = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    texts = [base, base.upper(), f"{base} more", "something else"]
    exact = answered(tmp_path / "1", texts, merge={"near": None})
    assert (exact.version.kept, exact.version.dropped) == (3, {"exact duplicate": 1})
    near = answered(tmp_path / "2", texts, merge={"exact": False})
    assert (near.version.kept, near.version.dropped) == (2, {"near duplicate": 2})
    (first, other) = _rows(LocalStore(near.run), near.version)
    assert (first["cluster_size"], other["cluster_size"]) == (3, 1)


def test_conversations_with_nothing_to_say_are_left_out(tmp_path: Path):
    say = [{"role": "user", "content": "Say it."}]
    rows = [
        {"messages": say, "more": None},
        {"messages": [{"role": "system", "content": " \n"}, *say], "more": None},
        {"messages": [{"role": "user", "content": "And?"}], "more": "x"},
    ]
    job = chaos_job(tmp_path / "run", source={"rows": rows}, steps=[{"task": "chat_generation"}])
    result = run(job, in_process=True)
    assert (result.version.kept, result.version.dropped) == (2, {"empty": 1})
    found = _rows(LocalStore(result.run), result.version)
    assert [row["messages"][:-1] for row in found] == [rows[0]["messages"], rows[2]["messages"]]
    assert [row["messages"][-1] for row in found] == [
        {"role": "assistant", "content": row["generation"]} for row in found
    ]
    assert list(found[0]) == [
        "messages",
        *(name for name in found[0] if name not in ("messages", "cluster_size")),
        "cluster_size",
    ]


def test_a_reader_reads_no_further_than_it_has_to():
    read = []

    def tables():
        for start in range(0, 12, 4):
            read.append(start)
            yield pa.table({"n": list(range(start, start + 4))})

    reader = Reader(tables(), pa.schema([("n", pa.int64())]))
    assert reader.take(0).num_rows == 0
    assert read == []
    assert [reader.take(size)["n"].to_pylist() for size in (3, 1)] == [[0, 1, 2], [3]]
    assert read == [0]
    assert reader.take(5)["n"].to_pylist() == [4, 5, 6, 7, 8]
    assert reader.take(9)["n"].to_pylist() == [9, 10, 11]
    assert reader.take(1).num_rows == 0
