"""The openai engine against `vllm serve` of the embedded model on loopback, and the recipes that use one."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchgen.commit import committed, new_attempt, read_shard
from batchgen.embedded import MODEL_PATH
from batchgen.engines import build_engine
from batchgen.engines.base import Engine, EngineSpec, Request
from batchgen.errors import RowRejected
from batchgen.generate import Worker
from batchgen.job import Job
from tests.helpers import planned

pytestmark = pytest.mark.engine
JOBS = Path(__file__).parents[2] / "jobs"
QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a server of the embedded model, called `tiny`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    # What `vllm serve` runs; that command itself asks for a package called vllm, which the CPU build is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={MODEL_PATH}"]
    command += [
        "--served-model-name=tiny",
        "--host=127.0.0.1",
        f"--port={port}",
        "--max-model-len=2048",
        "--enforce-eager",
        "--dtype=float32",
    ]
    # The tiny model would fill a JSON object with white space.
    command += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(1)
        else:
            pytest.fail(log.read_text()[-3000:])
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait(30)


def engine_on(url: str, **options: Any) -> Engine:
    return build_engine(EngineSpec("tiny", backend="openai", arguments={"base_url": url, **options}))


@pytest.mark.parametrize("stream", [False, True])
def test_it_completes_with_the_sampling_it_is_given(served: str, stream: bool):
    async def go():
        engine = engine_on(served, stream=stream)
        await engine.start()

        async def ask(**sampling):
            return await engine.generate(Request((), sampling, seed=1, messages=QUESTION))

        try:
            return (
                await ask(temperature=0.0, max_tokens=40, logprobs=0),
                await ask(temperature=0.0, max_tokens=3),
                await ask(max_tokens=40, structured_outputs={"choice": ["Lima", "Oslo"]}),
                await ask(max_tokens=200, structured_outputs={"json": {"type": "integer"}}),
            )
        finally:
            await engine.stop()

    whole, cut, choice, number = asyncio.run(go())
    assert whole.text.strip() == "The capital of Japan is Tokyo."
    assert len(whole.logprobs) == whole.output_tokens
    assert whole.input_tokens > 5
    assert cut.finish_reason == "length"
    assert choice.text in ("Lima", "Oslo")
    assert int(number.text) is not None


def test_a_prompt_that_is_too_long_rejects_its_row(served: str):
    async def go():
        engine = engine_on(served)
        await engine.start()
        long = [{"role": "user", "content": "capital " * 5000}]
        try:
            await engine.generate(Request((), {"max_tokens": 5}, seed=1, messages=long))
        finally:
            await engine.stop()

    with pytest.raises(RowRejected, match="refused_by_server"):
        asyncio.run(go())


@pytest.fixture
def rows_of(served: str, vllm_engine: Engine, loop_thread, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs a recipe on the embedded model, with its other model on the server; gives the rows that are committed."""

    def run(recipe: str, other: str, *more: str) -> list[dict[str, Any]]:
        overrides = ["model.path=embedded", "model.engine={max_model_len: 2048}", "source.count=12"]
        overrides += [f"models.{other}.path=tiny", f"models.{other}.engine.base_url={served}"]
        job = Job.load(JOBS / f"{recipe}.yaml", [*overrides, *more, f"output={tmp_path / 'run'}"])

        async def go():
            engine = build_engine(EngineSpec("tiny", backend="openai", arguments=job.models[other].engine))
            await engine.start()
            plan, seeds, store = planned(job)
            worker = Worker(job, plan, store, vllm_engine, {other: engine})
            try:
                shards = (worker.shard(s, new_attempt(), seeds.slice(s.start, s.stop)) for s in plan.shards)
                await asyncio.gather(*shards)
            finally:
                await engine.stop()
            manifests = committed(store, plan)
            return [row for i in sorted(manifests) for row in read_shard(store, plan, manifests[i]).to_pylist()]

        return loop_thread.run(go())

    return run


def test_the_recipe_with_a_judge_on_a_server(rows_of):
    rows = rows_of("judge_openai", "judge")
    assert len(rows) == 12
    good = [row for row in rows if row["outcome"] == "ok"]
    assert len(good) >= 8, [row["reason"] for row in rows]
    assert all(len(row["scores"]) == len(row["responses"]) for row in good)


def test_the_recipe_with_the_answers_of_two_models(rows_of):
    # The tiny model seldom has two answers to a question, and the same answers make no pair; nor do equal ratings.
    rows = rows_of("preference_models", "teacher", *(f"steps.{n}.sampling={{temperature: 1.8}}" for n in (1, 2)))
    assert len(rows) == 12
    assert {row["reason"] for row in rows} <= {None, "no_preference"}
    good = [row for row in rows if row["outcome"] == "ok"]
    assert good
    for row in good:
        answers = [row["generation_here"], row["generation_of_teacher"]]
        assert row["generations"] == answers
        pair = [row["chosen"][-1]["content"], row["rejected"][-1]["content"]]
        models = [row["chosen_model"], row["rejected_model"]]
        assert row["generation_models"] == [row["model_here"], row["model_of_teacher"]]
        here_is_better = row["ratings"][0] > row["ratings"][1]
        assert pair == (answers if here_is_better else answers[::-1])
        assert models == (row["generation_models"] if here_is_better else row["generation_models"][::-1])
