"""The benchmarks' own drivers, on the chaos engine: they are to run when somebody wants a figure."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from batchgen import generate
from batchgen.commit import commit_shard, committed
from batchgen.distributed.cluster import connected
from batchgen.engines import build_engine
from batchgen.engines.base import EngineSpec
from batchgen.fleet import HostConfig
from tests.bench import bridge, merge, resume, server
from tests.bench.fill import Actor, BenchHost, _pairs
from tests.bench.gate import wasted
from tests.bench.order import _Ordered, _rows
from tests.bench.protocol import _one_run, no_commit
from tests.bench.workload import FixedLengths, Lengths, Workload
from tests.helpers import chaos_job, planned


@pytest.mark.parametrize("commit", [commit_shard, no_commit])
def test_a_run_on_an_engine_that_is_up_already_commits_every_shard_or_none(
    tmp_path: Path, commit: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(generate, "commit_shard", commit)
    job = chaos_job(tmp_path)
    plan, seeds, store = planned(job)
    config = HostConfig(job, plan, store.location, 0)

    async def go() -> None:
        host = BenchHost(config)
        await host.start()
        await _one_run(host, config, seeds)

    asyncio.run(go())
    assert len(committed(store, plan)) == (len(plan.shards) if commit is commit_shard else 0)


def test_a_gate_is_measured_by_the_answers_that_it_did_not_save():
    answers, kept = wasted(rows=200, engines=1)
    assert answers == 0
    assert 0 < kept < 200, "there are duplicates, which ended at the gate"


@pytest.mark.cluster
def test_a_pair_of_the_fill_benchmark_does_the_same_calls_on_both_sides(tmp_path: Path):
    async def go() -> dict[str, Any]:
        actor = Actor(tmp_path, "chaos", {"slots": 4}, 0)
        await actor.start()
        figures = await _pairs(actor, Workload("chaos", Lengths(5, 9), rows_per_slot=4), 2)
        await actor.stop()
        return figures

    with connected(None, 1):
        figures = asyncio.run(go())
    assert figures["workload"].startswith("16 rows, 2 turns, 4 slots, 8 rows in flight, chaos model")
    assert len(figures["ratio_of_each_pair"]) == 2 and figures["ratio"] > 0


def test_a_run_that_goes_on_is_timed_in_a_folder_and_in_a_bucket(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resume, "COMMITTED", 20)
    monkeypatch.setattr(resume, "OPEN", 3)
    figures = resume.measure(1)
    assert figures["workload"].startswith("20 committed shards, 3 open")
    assert 0 < figures["median"]["folder"] < 120 and 0 < figures["median"]["bucket"] < 120


def test_a_merge_is_measured_of_rows_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(merge, "ROWS", 300)
    size = merge._commit_rows(str(tmp_path / "run"))
    seconds, memory, kept = merge._merge(str(tmp_path / "run"))
    assert kept == 300 and size > 300 * 140 * 3
    assert seconds > 0 and memory > 0


def test_both_ways_to_find_duplicates_find_about_as_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(merge, "TEXTS", 400)
    texts = merge._texts()
    assert abs(merge._ours(texts) - merge._datasketch(texts)) < 20
    assert len(texts) == 400


@pytest.mark.parametrize("variant", [bridge.greenlets, bridge.threads, bridge.batches])
def test_every_way_to_run_a_row_asks_the_engine(variant: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bridge, "ROWS", 8)

    async def tokens() -> int:
        engine = FixedLengths(build_engine(EngineSpec("chaos")))
        await variant(engine)
        return engine.output_tokens

    assert asyncio.run(tokens()) > 0


def test_requests_to_a_server_are_measured_with_both_transports():
    with server.served() as url:
        found = server.sides(url, 4, 8)
    assert found.keys() == {"aiohttp", "default"}
    assert all(0 < rate <= 4 / server.ANSWER_SECONDS and spent > 0 for rate, spent in found.values())


def test_both_orders_do_the_same_work():
    async def tokens(ordered: bool) -> int:
        engine = _Ordered(build_engine(EngineSpec("chaos")))
        engine.ordered = ordered
        await _rows(engine, 8)
        return engine.output_tokens

    assert asyncio.run(tokens(True)) == asyncio.run(tokens(False)) > 0
