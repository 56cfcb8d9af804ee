"""A LoRA adapter by path, on real vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from batchgen.embedded import MODEL_PATH
from batchgen.engines import build_engine
from batchgen.engines.base import EngineSpec, Request

pytestmark = pytest.mark.engine


def write_adapter(folder: Path) -> None:
    """A random adapter that is strong enough to change every answer."""
    config = json.loads((MODEL_PATH / "config.json").read_text())
    hidden, rank = config["hidden_size"], 4
    generator = torch.Generator().manual_seed(5)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator)
        weights[f"{name}.lora_B.weight"] = torch.randn(hidden, rank, generator=generator)
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 16, "bias": "none"}
    adapter |= {"target_modules": ["o_proj"], "base_model_name_or_path": str(MODEL_PATH)}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))


def merged_model(adapter: Path) -> Any:
    """transformers' model with an adapter's weights added to its own, as LoRA defines them."""
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32)
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights = load_file(adapter / "adapter_model.safetensors")
    for layer, block in enumerate(model.model.layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        change = weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
        block.self_attn.o_proj.weight.data += config["lora_alpha"] / config["r"] * change
    return model


def test_the_model_says_what_it_says_with_the_adapter_s_weights(tmp_path: Path, loop_thread):
    write_adapter(tmp_path / "adapter")
    arguments = {"max_model_len": 512, "max_num_seqs": 4}
    engine = build_engine(EngineSpec("embedded", lora=str(tmp_path / "adapter"), arguments=arguments, seed=1))
    loop_thread.run(engine.start())
    try:
        prompt = engine.chat.prompt([{"role": "user", "content": "What is the capital of Japan?"}]).token_ids
        sampling = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True, "logprobs": 0}
        answer = loop_thread.run(engine.generate(Request(prompt, sampling, 1, key="lora")))
    finally:
        loop_thread.run(engine.stop())
    assert answer.text.strip() != "The capital of Japan is Tokyo."
    said = list(answer.token_ids)
    assert len(said) == 20
    with torch.no_grad():
        logits = merged_model(tmp_path / "adapter")(torch.tensor([[*prompt, *said]])).logits[0]
    expected = logits[len(prompt) - 1 : -1].log_softmax(-1)
    assert expected.argmax(-1).tolist() == said
    assert answer.logprobs == pytest.approx(expected.max(-1).values.tolist(), abs=1e-3)
