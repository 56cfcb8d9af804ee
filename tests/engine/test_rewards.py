"""A reward model on real vLLM: its scores are those of transformers, and they make pairs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import load_dataset
from transformers import AutoTokenizer, LlamaForSequenceClassification

from batchgen.commit import committed, new_attempt, read_shard
from batchgen.embedded import MODEL_PATH
from batchgen.engines import build_engine
from batchgen.engines.base import Engine, EngineSpec, Request
from batchgen.errors import EngineStartError, EngineStopped, RowRejected
from batchgen.job import Job
from batchgen.merge import merge_run
from batchgen.publish import publish_folder
from tests.helpers import worker_on

pytestmark = pytest.mark.engine
CONTEXT = 512


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with a head of random weights that gives a score."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    model = LlamaForSequenceClassification.from_pretrained(MODEL_PATH, num_labels=1, dtype=torch.float32)
    model.score.weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(reward_model: Path, loop_thread) -> Iterator[Engine]:
    arguments = {"max_model_len": CONTEXT, "max_num_seqs": 16}
    engine = build_engine(EngineSpec(str(reward_model), arguments=arguments, seed=1, scores=True))
    loop_thread.run(engine.start())
    yield engine
    loop_thread.run(engine.stop())


def reference(folder: Path, conversation: list[dict[str, str]]) -> float:
    """A conversation's score, as cards of reward models have it computed."""
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    with torch.no_grad():
        return float(model(tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]).logits[0, 0])


def test_scores_are_those_of_transformers(scorer: Engine, reward_model: Path, loop_thread):
    questions = [("What is 3 plus 4?", "3 plus 4 is 7."), ("Sort: b, a.", "a, b"), ("Capital of Japan?", "")]
    conversations = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in questions
    ]
    conversations.append([{"role": "system", "content": "Be kind."}, *conversations[0], *conversations[1]])

    async def scored() -> list[Any]:
        requests = [
            Request(scorer.chat.conversation(each).token_ids, {}, seed=number, key=f"score-{number}")
            for number, each in enumerate(conversations)
        ]
        return await asyncio.gather(*map(scorer.generate, requests))

    completions = loop_thread.run(scored())
    expected = [reference(reward_model, each) for each in conversations]
    assert [completion.score for completion in completions] == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.1
    assert {(each.text, each.finish_reason, each.output_tokens) for each in completions} == {("", "stop", 0)}
    assert all(
        each.input_tokens == len(scorer.chat.conversation(said).token_ids)
        for each, said in zip(completions, conversations, strict=True)
    )


def test_a_conversation_may_fill_the_context_and_a_longer_one_is_rejected(scorer: Engine, loop_thread):
    def scored(length: int) -> Any:
        return loop_thread.run(scorer.generate(Request([5] * length, {}, seed=0, key=f"length-{length}")))

    assert isinstance(scored(CONTEXT).score, float)
    with pytest.raises(RowRejected, match="prompt_too_long"):
        scored(CONTEXT + 1)


def test_the_recipe_makes_pairs_of_the_best_and_the_worst_answer(
    scorer: Engine, vllm_engine: Engine, reward_model: Path, loop_thread, tmp_path: Path
):
    overrides = {
        "model.path": "embedded",
        "model.engine": "{max_model_len: 2048}",
        "models.reward.path": reward_model,
        "models.reward.engine": f"{{max_model_len: {CONTEXT}}}",
        "source.count": 24,
        # The tiny model seldom has two answers to a question, and the same answers make no pair.
        "steps.1.sampling": "{temperature: 1.8}",
        "output": tmp_path / "run",
    }
    path = Path(__file__).parents[2] / "jobs" / "preference_reward.yaml"
    job = Job.load(path, [f"{name}={value}" for name, value in overrides.items()])

    async def go() -> Any:
        worker, plan, seeds, store = worker_on(vllm_engine, job, {"reward": scorer})
        await asyncio.gather(*(worker.shard(s, new_attempt(), seeds.slice(s.start, s.stop)) for s in plan.shards))
        return plan, store

    plan, store = loop_thread.run(go())
    manifests = committed(store, plan)
    rows = [row for shard in plan.shards for row in read_shard(store, plan, manifests[shard.index]).to_pylist()]
    good = [row for row in rows if row["outcome"] == "ok"]
    assert len(rows) == 24 and len(good) >= 8
    for row in good:
        rated = list(zip(row["ratings"], row["generations"], strict=True))
        assert row["chosen"][0]["content"] == max(rated)[1]
        assert row["rejected"][0]["content"] == min(rated)[1]
        chosen = [{"role": "user", "content": row["instruction"]}, *row["chosen"]]
        assert row["chosen_rating"] == pytest.approx(reference(reward_model, chosen), abs=1e-4)
    published = publish_folder(store, merge_run(store, plan, job), tmp_path / "dataset")
    dataset = load_dataset(str(published), split="train", cache_dir=str(tmp_path / "cache"))
    assert {"prompt", "chosen", "rejected", "chosen_rating", "rejected_rating"} <= set(dataset.column_names)
    assert "messages" not in dataset.column_names
    assert all(row["chosen_rating"] > row["rejected_rating"] for row in dataset)


class Pooling:
    """What vLLM has for requests, where it is not what a reward model gives."""

    def __init__(self, values: list[float], tasks: tuple[str, ...] = ("classify",)) -> None:
        self.errored = True
        self._values = values
        self._tasks = tasks

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return self._tasks

    async def encode(self, *_: Any, **__: Any) -> Any:
        yield SimpleNamespace(outputs=SimpleNamespace(data=torch.tensor(self._values)))


@pytest.mark.parametrize(
    ("llm", "message"),
    [
        (Pooling([1.0], ("embed", "token_embed")), "vLLM runs it for embed, token_embed"),
        (Pooling([0.5, 0.5]), "it gives several"),
    ],
)
def test_a_model_that_gives_no_single_score_does_not_start(llm: Pooling, message: str):
    engine = build_engine(EngineSpec("org/classifier", scores=True))
    engine._llm, engine._max_model_len = llm, CONTEXT
    with pytest.raises(EngineStartError, match=f"'org/classifier' is no reward model .*{message}") as caught:
        asyncio.run(engine._check())
    assert caught.value.final


def test_a_request_that_vllm_breaks_off_is_none_with_a_score():
    engine = build_engine(EngineSpec("org/reward", scores=True))
    engine._llm, engine._max_model_len = Pooling([]), CONTEXT
    with pytest.raises(EngineStopped):
        asyncio.run(engine.generate(Request((5,), {}, seed=0, key="cut")))
