"""What a model's config says of it, before anything of it is loaded."""

from __future__ import annotations

import os
from typing import Any

from batchgen.engines.repository import Repository
from batchgen.errors import ModelError

_CLASSIFIER = "ForSequenceClassification"
# Architectures that vLLM has write; the names of reward models end in all kinds of ways.
_WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def longest_context(model: Repository, trust_remote_code: bool = False) -> int | None:
    """The most tokens that vLLM lets a model take, where its config says so plainly; None where only vLLM can tell."""
    if os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") not in ("0", ""):
        return None
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            model.target, revision=model.revision, trust_remote_code=trust_remote_code
        ).get_text_config()
    except Exception:  # an architecture that only vLLM knows, files that are not there yet: vLLM will tell
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "default":
        return None  # stretched positions: by how much is vLLM's to work out
    longest = getattr(config, "max_position_embeddings", None)
    return longest if isinstance(longest, int) else None


def check_architecture(model: Repository, scores: bool) -> None:
    """Refuses a model that cannot do what it is for, as far as its config says so plainly.

    Args:
        scores: whether it is to be a reward model, or else to write.

    Raises:
        ModelError: says which it is.
    """
    config = _config(model)
    architecture = next(iter(getattr(config, "architectures", None) or ()), "")
    is_classifier, of_it = architecture.endswith(_CLASSIFIER), f"model.path: {model.path!r}"
    if not scores and is_classifier:
        raise ModelError(
            f"{of_it} writes nothing ({architecture}); the score of a reward model is what the task reward_scorer reads"
        )
    if scores and architecture.endswith(_WRITERS):
        which = f"the architecture of most reward models ends in {_CLASSIFIER}"
        raise ModelError(f"{of_it} is no reward model: it writes ({architecture}); {which}")
    if scores and is_classifier and config.num_labels != 1:
        raise ModelError(f"{of_it} is no reward model: it tells {config.num_labels} classes, and gives no single score")


def _config(model: Repository) -> Any:
    """A config of no model in particular, with what the file says; None where it cannot be read just now."""
    from transformers import PretrainedConfig

    try:
        found, _ = PretrainedConfig.get_config_dict(model.target, revision=model.revision)
        return PretrainedConfig.from_dict(found)
    except Exception:  # files that are not there yet: vLLM will tell
        return None
