"""Gates: duplicates end before their answers are paid for, and no row is taken for its own duplicate."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchgen import known as known_texts
from batchgen import run
from batchgen.commit import committed, read_shard
from batchgen.engines.base import EngineSpec
from batchgen.engines.chaos import ChaosEngine
from batchgen.host import LocalFleet
from batchgen.job import Job
from batchgen.known import KnownTexts, Texts, committed_texts
from batchgen.merge.near import clusters
from batchgen.minhash import PERMUTATIONS, least_agreement, normalise, signatures
from batchgen.tasks import nearindex
from batchgen.tasks.seen import Seen
from batchgen.upkeep import revoke
from tests.helpers import chaos_job, planned, worker_on

STEPS: list[dict[str, Any]] = [{"task": "drop_duplicates"}, {"task": "text_generation"}]


def rows_of(job: Job) -> list[dict[str, Any]]:
    """All rows of a run that is complete, in order."""
    plan, _, store = planned(job)
    manifests = committed(store, plan)
    assert len(manifests) == len(plan.shards)
    return [row for index in sorted(manifests) for row in read_shard(store, plan, manifests[index]).to_pylist()]


def test_a_text_that_another_row_had_is_a_duplicate_however_it_is_written():
    seen = Seen(None)
    assert seen.reason("What is 2 + 2?", 1) is None
    assert seen.reason("what  is\n2 + 2?", 2) == "duplicate"
    assert seen.reason("What is 2 - 2?", 3) is None
    assert seen.reason("What is 2 + 2?", 1) is None, "the row itself, again"
    assert seen.reason("What is 2 + 2?", 4) == "duplicate"


def test_near_duplicates_are_those_of_the_merger():
    words = [f"word{i}" for i in range(60)]
    near, far = " ".join([*words[:-1], "other"]), " ".join([*words[:30], *(f"else{i}" for i in range(30))])
    seen = Seen(0.8)
    assert seen.reason(" ".join(words), 1) is None
    assert seen.reason(near, 2) == "near_duplicate"
    assert seen.reason(far, 3) is None
    assert seen.reason(near, 1) is None, "the row itself, which says something else this time"
    assert Seen(None).reason(near, 1) is None
    strict = Seen(1.0)
    assert strict.reason(" ".join(words), 1) is None
    assert strict.reason(near, 2) is None


@pytest.mark.parametrize(("threshold", "width"), [(None, 16), (0.8, 144)])
def test_a_gate_learns_what_rows_elsewhere_have_brought(threshold: float | None, width: int):
    texts = ["What is 2 + 2?", " ".join(f"word{i}" for i in range(60))]
    there, here = Seen(threshold), Seen(threshold)
    assert here.reason(texts[0], 7) is None
    records = there.describe(texts)
    assert len(records) == 2 * width
    assert there.reason(texts[1], 1) is None, "describing a text is not bringing it"
    here.learn(records[:width])
    here.learn(b"")
    assert here.reason(texts[1], 2) is None
    assert here.reason(texts[0], 7) is None, "it was this row's own before"
    here = Seen(threshold)
    here.learn(records + records)
    assert [here.reason(text, 0) for text in texts] == ["duplicate", "duplicate"]
    near = here.reason(f"{texts[1]} more", 3)
    assert near == (None if threshold is None else "near_duplicate")
    assert there.describe([]) == b""


def test_near_duplicates_are_found_in_every_part_of_an_index(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nearindex, "_TEXTS", 4)
    texts = [f"{word} " * 3 + " ".join(f"{word}{i}" for i in range(20)) for word in "abcdefghijk"]
    seen = Seen(0.8)
    seen.learn(Seen(0.8).describe(texts[:6]))
    assert [seen.reason(text, row) for row, text in enumerate(texts[6:])] == [None] * 5
    assert {seen.reason(f"{text} more", 99) for text in texts} == {"near_duplicate"}


def test_what_counts_as_near_is_what_the_merger_says(tmp_path: Path):
    """Random texts with a few words changed: the same pairs, but for one value in 256 that is alike by chance."""
    rng = np.random.default_rng(0)
    differ = 0
    for _ in range(300):
        words = [f"w{n}" for n in rng.integers(0, 500, 40)]
        other = [f"x{n}" if rng.random() < 0.05 else word for n, word in enumerate(words)]
        pair = [" ".join(words), " ".join(other)]
        merged = clusters(signatures(normalise(pa.array(pair))), 0.8)[1] == 0
        seen = Seen(0.8)
        ended = [seen.reason(text, row) is not None for row, text in enumerate(pair)][1]
        differ += merged != ended
    assert differ <= 3


def test_a_duplicate_ends_before_its_answer_is_asked_for(tmp_path: Path):
    texts = ["One?", "Two?", "one?", "Three?", "One?"]
    job = chaos_job(
        tmp_path, source={"rows": [{"instruction": text, "n": n} for n, text in enumerate(texts)]}, steps=STEPS
    )

    class Counting(ChaosEngine):
        calls = 0

        async def generate(self, request):
            self.calls += 1
            return await super().generate(request)

    engine = Counting(EngineSpec("chaos"))
    worker, plan, seeds, _ = worker_on(engine, job)
    asyncio.run(worker.shard(plan.shards[0], "a", seeds.slice(0, 5)))
    rows = rows_of(job)
    assert [row["reason"] for row in rows] == [None, None, "duplicate", None, "duplicate"]
    assert [row["n"] for row in rows] == list(range(5)), "rejected rows keep their columns"
    assert [row["output_tokens"] > 0 for row in rows] == [True, True, False, True, False]
    assert engine.calls == 3


def test_items_of_one_row_s_list_are_told_apart(tmp_path: Path):
    steps = [
        {"task": "self_instruct", "input_mappings": {"input": "context"}, "explode": "instructions -> instruction"},
        *STEPS,
    ]
    script = {"reply": "Sum 1 and 2.\nSum 3 and 4.\nsum 1 and 2."}
    job = chaos_job(
        tmp_path,
        source={"rows": [{"context": "x"}, {"context": "y"}]},
        model={"path": "chaos", "engine": script},
        steps=steps,
        merge={"exact": False, "near": False},
    )
    result = run(job, in_process=True)
    assert [(row["branch"], row["reason"]) for row in rows_of(job)] == [
        ("0", None),
        ("1", None),
        ("2", "duplicate"),
        ("0", "duplicate"),
        ("1", "duplicate"),
        ("2", "duplicate"),
    ]
    assert (result.progress.ok, result.progress.rejected) == (1, 1)


def test_rows_that_run_again_on_their_engine_are_no_duplicates_of_themselves(tmp_path: Path):
    """A row that hangs is searched for by running parts of its shard alone, on engines that live on."""
    rows = [{"instruction": "deadly" if i == 5 else f"row {i}"} for i in range(16)]
    job = chaos_job(
        tmp_path,
        source={"rows": rows},
        model={"path": "chaos", "engine": {"crash_on": "deadly"}},
        steps=STEPS,
        merge={"exact": False, "near": False},
    )
    result = run(job, in_process=True)
    assert (result.progress.ok, dict(result.progress.reasons)) == (15, {"engine_crash": 1})


def test_the_same_rows_end_at_every_threshold_of_the_merger(tmp_path: Path):
    """What the gate lets through, the merger of a run with one engine keeps."""
    rows = [{"instruction": f"What is {i % 7} + {i % 5}?"} for i in range(100)]
    job = chaos_job(tmp_path, source={"rows": rows}, steps=STEPS)
    result = run(job, in_process=True)
    assert result.progress.ok == 35
    assert (result.version.kept, dict(result.version.dropped)) == (35, {"rejected: duplicate": 65})


REPEATED = {"rows": [{"instruction": f"What is {i % 40}?"} for i in range(400)]}


def test_a_duplicate_of_what_another_engine_committed_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two engines that knew of their own rows alone would answer all forty questions, each of them."""
    monkeypatch.setattr("batchgen.drive.POLL_SECONDS", 0.02)
    model = {"path": "chaos", "engine": {"slots": 1, "latency": 0.02}}
    job = chaos_job(tmp_path, source=REPEATED, steps=STEPS, shard_rows=8, engines=2, model=model)
    result = run(job, in_process=True)
    assert result.version.kept == 40
    assert result.progress.ok + result.progress.reasons["duplicate"] == 400
    assert result.progress.ok < 70


def test_engines_of_a_resumed_run_are_told_what_was_committed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[Texts] = []

    class Listening(LocalFleet):
        async def tell(self, engine: int, texts: Texts) -> None:
            told.append(texts)
            await super().tell(engine, texts)

    monkeypatch.setattr("batchgen.host.LocalFleet", Listening)
    monkeypatch.setattr("batchgen.drive.POLL_SECONDS", 0.05)
    rows = {"rows": [{"instruction": f"What is {i % 15}?"} for i in range(20)]}
    model = {"path": "chaos", "engine": {"slots": 1, "latency": 0.5}}
    job = chaos_job(tmp_path, source=rows, steps=STEPS, shard_rows=10, model=model)
    first = run(job.model_copy(update={"model": job.model.model_copy(update={"engine": {}})}), in_process=True)
    assert (first.progress.ok, first.progress.reasons, told) == (15, {"duplicate": 5}, [])
    plan, _, store = planned(job)
    revoke(store, plan, "1")
    run(job, in_process=True)
    assert told == [(Seen(None).describe([f"What is {i}?" for i in range(10)]),)]


def test_only_rows_that_a_worker_committed_itself_and_that_ended_well_are_told_to_others(tmp_path: Path):
    rows = {"rows": [{"instruction": text} for text in ("One?", "Nothing!", "one?", "Two?")]}
    job = chaos_job(tmp_path, source=rows, steps=STEPS, model={"path": "chaos", "engine": {"empty_on": "Nothing!"}})
    worker, plan, seeds, _ = worker_on(ChaosEngine(EngineSpec("chaos", arguments=job.model.engine)), job)
    shard = plan.shards[0]
    first = asyncio.run(worker.shard(shard, "a", seeds.slice(0, 4)))
    assert first is not None
    assert first.texts == (Seen(None).describe(["One?", "Two?"]),)
    other, *_ = worker_on(ChaosEngine(EngineSpec("chaos")), job)
    second = asyncio.run(other.shard(shard, "b", seeds.slice(0, 4)))
    assert second is not None
    assert (second.progress, second.texts) == (first.progress, ())


def test_each_engine_is_told_once_what_others_committed():
    known = KnownTexts()
    known.add((b"before", b"BEFORE"))
    known.add((b"-a", b"-A"), engine=0)
    assert known.untold(0) == (b"before", b"BEFORE")
    assert known.untold(1) == (b"before-a", b"BEFORE-A")
    known.add((b"-b", b"-B"), engine=1)
    assert known.untold(1) == ()
    assert known.untold(0) == (b"-b", b"-B")
    assert known.untold(2) == (b"before-a-b", b"BEFORE-A-B"), "a new engine knows nothing"
    assert KnownTexts().untold(0) == ()


def test_what_an_engine_is_told_at_a_time_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known_texts, "_MOST_BYTES", 5)
    known = KnownTexts()
    for text in (b"aaa", b"bbb", b"ccc"):
        known.add((text,))
    assert [known.untold(0) for _ in range(3)] == [(b"aaabbb",), (b"ccc",), ()]


def test_a_shard_that_cannot_be_read_is_not_known_and_ends_no_run(tmp_path: Path):
    job = chaos_job(tmp_path, source=REPEATED, steps=STEPS, shard_rows=100)
    run(job, in_process=True)
    plan, _, store = planned(job)
    manifests = committed(store, plan)
    assert len(list(committed_texts(store, plan, job, manifests))) == len(manifests)
    path = store.path(manifests[1].key)
    path.write_bytes(b"torn")
    assert len(list(committed_texts(store, plan, job, manifests))) == len(manifests) - 1
    path.unlink()
    path.mkdir()  # the store itself says that it cannot be read
    assert len(list(committed_texts(store, plan, job, manifests))) == 1
    assert list(committed_texts(store, plan, chaos_job(tmp_path), manifests)) == [], "a job without gates"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"threshold": 0.2}, "threshold"),
        ({"threshold": "near"}, "threshold"),
        ({"sampling": {}, "num_generations": 2}, "drop_duplicates calls no model and generates nothing"),
        ({"input_mappings": {"instruction": "nothing"}}, "reads column 'nothing', which no step writes"),
    ],
)
def test_a_gate_that_is_told_something_wrong_is_refused(tmp_path: Path, step: dict[str, Any], message: str):
    from batchgen import UserError

    with pytest.raises(UserError, match=message):
        job = chaos_job(
            tmp_path,
            source={"rows": [{"instruction": "x"}]},
            steps=[{"task": "drop_duplicates", **step}, {"task": "text_generation"}],
        )
        planned(job)


def test_a_near_text_agrees_in_as_many_places_as_the_threshold_expects():
    index = nearindex.NearIndex(0.8)
    index.add(np.zeros((1, PERMUTATIONS), np.uint8), row=0)
    for agreeing, near in ((least_agreement(0.8), True), (least_agreement(0.8) - 1, False)):
        signature = np.zeros(PERMUTATIONS, np.uint8)
        signature[agreeing:] = 1
        assert index.has_another(signature, row=1) is near
        assert not index.has_another(signature, row=0), "it is the row's own"
