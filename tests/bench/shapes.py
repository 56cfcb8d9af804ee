"""Models of a given shape with random weights: what an engine's speed depends on, without a download."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from batchgen.embedded import MODEL_PATH

# https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct/blob/main/config.json
_QWEN2_0_5B = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 1_000_000.0,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SHAPES = {"qwen2-0.5b": _QWEN2_0_5B}


def make_model(shape: str, folder: Path) -> Path:
    """Writes a model in bfloat16, with the embedded model's tokenizer and a word for every other token.

    No word begins with white space: an answer seldom does, and tasks strip it, after which tokens would be made anew.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(**SHAPES[shape], dtype=torch.bfloat16)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.copy_(torch.ones(()) if "norm" in name else 0.02 * torch.randn(weights.shape))
    model.save_pretrained(folder)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(MODEL_PATH / name, folder / name)
    tokenizer = json.loads((MODEL_PATH / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    taken = set(vocabulary.values())
    vocabulary |= {f"w{number},": number for number in range(config.vocab_size) if number not in taken}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    return folder
