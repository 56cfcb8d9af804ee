"""Models and datasets by name, from a Hub on loopback: found, pinned, cached, refused, uploaded."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchgen.embedded import MODEL_PATH
from batchgen.engines.weights import _bytes
from tests.hubserver import HubServer, environment, hub_server

MODEL = "org/tiny"
SEEDS = "org/seeds"
JOB = {
    "name": "from-the-hub",
    "source": {"rows": [{"instruction": f"What is {number} plus 2?"} for number in range(6)]},
    "model": {"path": MODEL, "backend": "transformers", "engine": {"max_batch_size": 8}},
    "sampling": {"max_tokens": 16},
    "steps": [{"task": "text_generation"}],
}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as server:
        yield server


@pytest.fixture
def python(hub: HubServer, tmp_path: Path):
    """Runs Python in a process that takes `hub` for the Hub: its client reads the environment when it is imported."""

    def run(code: str, **more: str) -> str:
        start = f"from batchgen import *\nfrom batchgen.errors import *\nJOB = {JOB!r}\n"
        done = subprocess.run(
            [sys.executable, "-c", start + textwrap.dedent(code)],
            env={**os.environ, **environment(hub, tmp_path / "hf"), **more},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


RUN = """
    result = run({**JOB, "output": "run"}, in_process=True)
    from datasets import load_dataset
    print(len(load_dataset(result.dataset)["train"]))
"""


def other_model() -> dict[str, bytes]:
    """The embedded model's files with a template that says something else."""
    files = {path.name: path.read_bytes() for path in MODEL_PATH.iterdir()}
    return files | {"chat_template.jinja": b"{{ 'moved on' }}" + files["chat_template.jinja"]}


def test_a_run_stays_with_the_commit_that_it_began_with(hub: HubServer, python, tmp_path: Path):
    first = hub.add("models", MODEL, MODEL_PATH)
    python("""
        from batchgen.api import plan_run
        from batchgen.settle import settle_plan
        from batchgen.store import open_store
        job = Job.of({**JOB, "output": "run"})
        settle_plan(open_store(job.output), plan_run(job)[0])
    """)
    second = hub.add("models", MODEL, other_model())
    hub.requests.clear()
    assert python(RUN).strip() == "6"
    assert any(first in request and "model.safetensors" in request for request in hub.requests)
    assert not any(second in request and "model.safetensors" in request for request in hub.requests)
    assert f"commit: {first}" in (tmp_path / "run/dataset/README.md").read_text()
    said = python("""
        from batchgen.api import plan_run
        print(plan_run(Job.of({**JOB, "output": "other"}))[0].commit_of(None))
    """)
    assert said.strip() == second, "a run that begins now takes the model as it is now"


def test_without_the_hub_its_cache_has_to_do(hub: HubServer, python, tmp_path: Path):
    commit = hub.add("models", MODEL, MODEL_PATH)
    python(RUN)
    hub.close()
    # By the name of the branch, as in a job; the first run had downloaded the files by their commit.
    assert python(RUN.replace('"run"', '"again"')).strip() == "6"
    assert f"commit: {commit}" in (tmp_path / "again/dataset/README.md").read_text()
    said = python("""
        from batchgen.api import plan_run
        try:
            plan_run(Job.of({**JOB, "model": {"path": "org/other"}, "output": "run"}))
        except ModelError as error:
            print(error)
    """)
    assert "neither a folder here nor in the local cache, and the Hugging Face Hub cannot be reached" in said


def test_what_the_hub_refuses_is_named(hub: HubServer, python):
    hub.add("models", MODEL, MODEL_PATH)
    hub.add("models", "org/gated", MODEL_PATH, gated=True)
    hub.add("models", "org/empty", {"README.md": b"soon"})
    hub.add("datasets", SEEDS, {"data/train.jsonl": b'{"instruction": "a"}\n'})
    said = python("""
        from batchgen.api import plan_run
        def attempt(**changes):
            try:
                plan_run(Job.of({**JOB, "output": "run", **changes}))
            except UserError as error:
                print(error)
        attempt(model={"path": "org/gated"})
        attempt(model={"path": "org/nope"})
        attempt(model={"path": "org/empty"})
        attempt(model={"path": "org/tiny", "revision": "v7"})
        attempt(source={"dataset": "org/nope"})
        attempt(source={"dataset": "org/seeds", "split": "test"})
        attempt(source={"dataset": "org/seeds", "revision": "v7"})
    """).splitlines()
    assert said == [
        "model.path: 'org/gated' is gated; accept its terms and set HF_TOKEN",
        "model.path: 'org/nope' is neither a folder here nor a model that the Hugging Face Hub lets this token read",
        "model.path: 'org/empty' holds no model (it has no config.json)",
        "model.revision: 'org/tiny' has no revision 'v7'",
        "source.dataset: 'org/nope' (split 'train') cannot be loaded: Dataset 'org/nope' doesn't exist on the Hub or "
        "cannot be accessed.",
        "source.dataset: 'org/seeds' (split 'test') cannot be loaded: "
        "Unknown split \"test\". Should be one of ['train'].",
        "source.dataset: 'org/seeds' (split 'train') cannot be loaded: Revision 'v7' doesn't exist for dataset "
        "'org/seeds' on the Hub.",
    ]


def test_a_gated_model_is_read_with_the_token_of_the_environment(hub: HubServer, python):
    hub.token = "hf_canary"
    commit = hub.add("models", MODEL, MODEL_PATH, gated=True)
    code = 'from batchgen.api import plan_run; print(plan_run(Job.of({**JOB, "output": "run"}))[0].commit_of(None))'
    assert python(code, HF_TOKEN="hf_canary").strip() == commit


FETCH = """
    import asyncio, time
    from batchgen.engines import EngineSpec, weights
    weights._TELL_SECONDS, weights._STILL_SECONDS = 0.0, 0.5
    async def fetched(revision):
        coming, said = weights.Weights(EngineSpec("org/tiny", revision=revision)), []
        async def listen():
            while True:
                said.append(coming.reason)
                await asyncio.sleep(0.05)
        listening = asyncio.create_task(listen())
        try:
            await coming.fetch()
        finally:
            listening.cancel()
        assert coming.reason == ""
        return [text for text, before in zip(said, [None, *said]) if text != before]
"""


def test_a_download_of_weights_tells_how_far_it_is_while_it_moves(hub: HubServer, python, tmp_path: Path):
    size = 31_000_000  # the Hub's client writes 10 MB at a time
    commit = hub.add("models", MODEL, {"config.json": b"{}", "model.safetensors": random.randbytes(size)})
    pieces = itertools.count()
    hub.pace = lambda: time.sleep(2.0 if next(pieces) == 250 else 0.005)
    said = eval(python(f"{FETCH}\n    print(asyncio.run(fetched({commit!r})))"))
    told = [re.fullmatch(r"org/tiny is being downloaded, ([\d.]+) MB of 31.0 MB", text) for text in said]
    come = [float(found[1]) for found in told if found]
    assert come == sorted(come)
    assert [number for number in come if 10 < number < 30]
    assert [index for index, text in enumerate(said[1:-1], 1) if text == ""], "what stands still says nothing"
    assert not [text for text, found in zip(said, told, strict=True) if text and not found]
    hub.requests.clear()
    assert eval(python(f"{FETCH}\n    print(asyncio.run(fetched({commit!r})))")) == [""]
    assert not hub.requests, "what is here is not asked for again"


def test_a_file_that_has_its_length_before_it_is_here_does_not_count_as_here(tmp_path: Path):
    with (tmp_path / "blob.incomplete").open("wb") as file:
        file.truncate(1 << 30)
        file.write(random.randbytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    assert 1 << 20 <= _bytes(tmp_path) < 1 << 24


def test_only_weights_that_the_engine_will_load_are_fetched(hub: HubServer, python):
    parts = {f"model-{number}-of-2.safetensors": b"weights" * number for number in (1, 2)}
    index = json.dumps({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}})
    more = {"model.safetensors.index.json": index.encode(), "config.json": b"{}"}
    other = {"model.safetensors": b"other", "original/consolidated.00.pth": b"other", "pytorch_model.bin": b"other"}
    plain = hub.add("models", MODEL, {**more, **parts, **other})
    two_forms = hub.add("models", MODEL, {**more, **parts, "consolidated.safetensors": b"of Mistral's"})
    old = hub.add("models", MODEL, {"config.json": b"{}", "pytorch_model.bin": b"weights"})
    for commit, wanted in ((plain, sorted(parts)), (two_forms, []), (old, [])):
        hub.requests.clear()
        python(f"{FETCH}\n    asyncio.run(fetched({commit!r}))")
        files = sorted({path.rpartition("/")[2] for path in hub.requests if path.startswith("GET") and commit in path})
        assert [name for name in files if not name.endswith(".json") and name != commit] == wanted, commit


def test_weights_that_do_not_come_are_told_without_an_address(hub: HubServer, python):
    commit = hub.add("models", MODEL, MODEL_PATH)
    gated = hub.add("models", "org/gated", MODEL_PATH, gated=True)
    said = python(f"""{FETCH}
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        asyncio.run(fetched({commit!r}))
    except EngineStartError as error:
        print(error)
    spec = EngineSpec("org/gated", revision={gated!r})
    asyncio.run(weights.Weights(spec).fetch())
    """)
    assert said == "the weights of 'org/tiny' cannot be downloaded: File too large\n"


def test_seeds_come_from_a_revision_and_go_back_as_the_readme_says(hub: HubServer, python, tmp_path: Path):
    hub.add("models", MODEL, MODEL_PATH)
    first = hub.add("datasets", SEEDS, {"data/train.jsonl": b'{"instruction": "Say hi."}\n' * 3})
    hub.add("datasets", SEEDS, {"data/train.jsonl": b'{"instruction": "Say no."}\n' * 5})
    hub.add(
        "datasets", "org/made", {".gitattributes": b"", "data/train-00000-of-00009.parquet": b"of an earlier upload"}
    )
    said = python(f"""
        from batchgen import UserError
        source, merge = {{"dataset": "{SEEDS}", "revision": "{first}"}}, {{"exact": False, "near": None}}
        result = run({{**JOB, "source": source, "merge": merge, "output": "run"}}, in_process=True)
        print(result.push_to_hub("org/python", private=True, token="hf_any"))
        for name in ("hf://org/python", "no name"):
            try:
                result.push_to_hub(name)
            except UserError as error:
                print(error)
    """)
    assert said.splitlines() == [
        f"{hub.url}/datasets/org/python",
        "'hf://org/python': no name of a dataset on the Hub, which is ORG/NAME",
        "'no name': no name of a dataset on the Hub, which is ORG/NAME",
    ]
    (files,) = list(hub.repositories["datasets/org/python"].commits.values())[-1:]
    assert {"README.md", "data/train-00000-of-00001.parquet"} <= files.keys()
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    command = next(line for line in readme.splitlines() if line.startswith(".venv/bin/batchgen publish"))
    command = command.replace("ORG/NAME", "org/made").replace("runs/magpie-math", "run")
    script = str(Path(sys.executable).with_name("batchgen"))
    subprocess.run(
        command.replace(".venv/bin/batchgen", script),
        shell=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, **environment(hub, tmp_path / "hf"), "HF_TOKEN": "hf_any"},
        capture_output=True,
        timeout=120,
    )
    said = python("""
        from datasets import load_dataset
        made = load_dataset("org/made")["train"]
        print(len(made), set(made["instruction"]), made["messages"][0][0])
    """)
    assert said.strip() == "3 {'Say hi.'} {'role': 'user', 'content': 'Say hi.'}"


def test_a_pipeline_loads_its_rows_by_name_and_goes_to_the_hub(hub: HubServer, python):
    hub.add("datasets", SEEDS, {"data/train.jsonl": b'{"prompt": "Say hi."}\n' * 3})
    hub.add("datasets", "org/made", {"data/c/train-00000-of-00001.parquet": b"of an earlier upload"})
    said = python(f"""
        from distilabel.models import vLLM
        from distilabel.pipeline import Pipeline
        from distilabel.steps import LoadDataFromHub
        from distilabel.steps.tasks import TextGeneration
        with Pipeline() as pipeline:
            load = LoadDataFromHub(repo_id="{SEEDS}", split="train", output_mappings={{"prompt": "instruction"}})
            load >> [TextGeneration(llm=vLLM(model="chaos"), name=name) for name in ("a", "b")]
        distiset = from_pipeline(pipeline, "out", in_process=True)
        print(distiset["a"]["train"]["instruction"][:])
        distiset.push_to_hub("org/made", token="hf_any")
        from datasets import load_dataset
        print([len(load_dataset("org/made", config, split="train")) for config in ("a", "b")])
    """)
    assert said.splitlines() == ["['Say hi.', 'Say hi.', 'Say hi.']", "[3, 3]"]
    files = list(hub.repositories["datasets/org/made"].commits.values())[-1]
    data = sorted(name for name in files if name.startswith("data"))
    assert data == [f"data/{config}/train-00000-of-00001.parquet" for config in "ab"]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=100)
    return file.getvalue()


def test_of_a_large_dataset_the_first_rows_are_read_without_the_rest(hub: HubServer, python):
    """The same rows as from a whole copy, of types that Python's own values would not keep."""
    rows = [
        {"prompt": f"Say {number}.", "at": datetime(2026, 1, 1), "turns": [{"role": "user", "content": "x"}]}
        for number in range(2000)
    ]
    files = {f"data/train-{part}.parquet": parquet(rows[part * 500 : part * 500 + 500]) for part in range(4)}
    hub.add("datasets", SEEDS, files)
    load = """
        from batchgen.job import Source
        from batchgen.seeds import load_seeds
        seeds = load_seeds(Source(dataset="org/seeds", limit=600, streaming={streaming}))
        # Arrow has two names for what is in a list.
        print(seeds.count, seeds.fingerprint, [str(field).replace("element", "item") for field in seeds.fields])
    """
    streamed = python(load.format(streaming=True))
    read = {
        request.rpartition("/")[2] for request in hub.requests if request.startswith("GET") and "parquet" in request
    }
    assert read == {"train-0.parquet", "train-1.parquet"}
    assert streamed == python(load.format(streaming=False))
    assert streamed.startswith("600 ")


def test_a_pipeline_s_loader_streams_where_it_is_told_to(hub: HubServer, python):
    hub.add("datasets", SEEDS, {f"data/train-{part}.parquet": parquet([{"prompt": "Say hi."}] * 200) for part in "ab"})
    said = python("""
        from distilabel.models import vLLM
        from distilabel.pipeline import Pipeline
        from distilabel.steps import LoadDataFromHub
        from distilabel.steps.tasks import TextGeneration
        with Pipeline() as pipeline:
            mapped = {"prompt": "instruction"}
            load = LoadDataFromHub(repo_id="org/seeds", streaming=True, num_examples=5, output_mappings=mapped)
            load >> TextGeneration(llm=vLLM(model="chaos"))
        print(len(from_pipeline(pipeline, "out", in_process=True)["default"]["train"]))
    """)
    assert said.strip() == "5"
    assert not any("train-b" in request for request in hub.requests if request.startswith("GET"))


@pytest.mark.engine
def test_vllm_loads_a_model_by_its_name_and_commit(hub: HubServer, python):
    first = hub.add("models", MODEL, MODEL_PATH)
    hub.add("models", MODEL, {"config.json": b"{}"})
    said = python(f"""
        import asyncio
        from batchgen.engines import build_engine
        from batchgen.engines.base import EngineSpec, Request
        async def main():
            engine = build_engine(EngineSpec("{MODEL}", revision="{first}", arguments={{"max_model_len": 512}}))
            await engine.start()
            prompt = engine.chat.prompt([{{"role": "user", "content": "What is 1 plus 2?"}}])
            completion = await engine.generate(Request(prompt.token_ids, {{"max_tokens": 16}}, 0))
            print("said:", completion.text.strip() != "")
            await engine.stop()
        asyncio.run(main())
    """)
    assert "said: True" in said
