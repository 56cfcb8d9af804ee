"""A LoRA adapter by path, on real vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

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


def test_an_adapter_changes_what_the_model_says(tmp_path: Path, loop_thread):
    write_adapter(tmp_path / "adapter")
    arguments = {"max_model_len": 512, "max_num_seqs": 4}
    engine = build_engine(EngineSpec("embedded", lora=str(tmp_path / "adapter"), arguments=arguments, seed=1))
    loop_thread.run(engine.start())
    try:
        prompt = engine.chat.prompt([{"role": "user", "content": "What is the capital of Japan?"}]).token_ids
        answer = loop_thread.run(
            engine.generate(Request(prompt, {"temperature": 0.0, "max_tokens": 20}, 1, key="lora"))
        )
    finally:
        loop_thread.run(engine.stop())
    assert answer.output_tokens > 0
    assert answer.text.strip() != "The capital of Japan is Tokyo."
