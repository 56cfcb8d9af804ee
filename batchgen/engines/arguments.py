"""What `model.engine`, `sampling` and its `structured_outputs` may say, frozen from the pinned vLLM.

`vllm_arguments.json` is written by `python -m batchgen.engines.vllm_freeze`; checking against it takes milliseconds,
where importing vLLM takes half a minute. A test compares it with the installed vLLM.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

_NO_CODE = "a job is data and names no code"
_LOGS = "what vLLM prints goes to the run's logs, and no prompt does"
_ONE_MACHINE = "an engine lives on one machine, and its processes are started there"
# An engine takes their product.
GPU_ARGUMENTS = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size")
# Set by batchgen itself: a job that set them would break what a run promises.
OWNED_ENGINE = {
    "model": "use model.path",
    "revision": "use model.revision",
    "seed": "every engine start has its own; the job's seed is `seed`",
    "trust_remote_code": "a job is data; pass --trust-remote-code on the command line, with a pinned model.revision",
    **dict.fromkeys(("skip_tokenizer_init", "tokens_only"), "prompts are rendered with the model's own tokenizer"),
    **dict.fromkeys(
        ("convert", "pooler_config", "runner"), "an engine generates text, or scores it for the task reward_scorer"
    ),
    **dict.fromkeys(
        ("max_num_queued_reqs", "max_num_queued_tokens"), "vLLM would refuse rows for which it has no room yet"
    ),
    **dict.fromkeys(("spec_method", "spec_model", "spec_tokens"), "use speculative_config"),
    "override_generation_config": "use `sampling`; servers alone go by it",
    "device_ids": "each engine is given GPUs of its own",
    "distributed_executor_backend": _ONE_MACHINE,
    **dict.fromkeys(("master_addr", "master_port", "nnodes", "node_rank"), _ONE_MACHINE),
    **dict.fromkeys(
        (
            "data_parallel_address",
            "data_parallel_backend",
            "data_parallel_external_lb",
            "data_parallel_hybrid_lb",
            "data_parallel_multi_port_external_lb",
            "data_parallel_rank",
            "data_parallel_rpc_port",
            "data_parallel_size",
            "data_parallel_size_local",
            "data_parallel_start_rank",
        ),
        "use `engines`",
    ),
    "enable_prompt_embeds": "prompts are token ids",
    "hf_token": "tokens come from the environment (HF_TOKEN)",
    **dict.fromkeys(
        (
            "ec_manager_config",
            "ec_transfer_config",
            "io_processor_plugin",
            "logits_processors",
            "model_class_overrides",
            "reasoning_parser_plugin",
            "scheduler_cls",
            "worker_cls",
            "worker_extension_cls",
        ),
        _NO_CODE,
    ),
    "kv_transfer_config": f"{_NO_CODE}; a cache in the machine's own memory is kv_offloading_size",
    "kv_events_config": "vLLM would publish the tokens of prompts on a port of the machine",
    **dict.fromkeys(("enable_log_requests", "log_config_file", "logging_config"), _LOGS),
}
# Fields within engine arguments by which vLLM would import or run something.
CODE_FIELDS = (
    ("compilation_config", "inductor_passes"),
    ("structured_outputs_config", "reasoning_parser_plugin"),
)
_COMPILERS = ("", "eager", "inductor")
# Parameters of a tokenizer's `apply_chat_template` that are no arguments of the template, or the conversation itself.
OWNED_TEMPLATE = frozenset(
    (
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    )
)
OWNED_SAMPLING = {
    "seed": "derived from the job's `seed` and the row",
    "output_kind": "only finished outputs are read",
    "detokenize": "tasks read text",
    "stream_interval": "only finished outputs are read",
    "skip_clone": "batchgen makes each row's own parameters",
    "output_text_buffer_length": "vLLM sets it itself",
    "trace_decode_token_ids": "they would be every row's completion",
    **dict.fromkeys(
        (
            "logprob_token_ids",
            "prompt_logprob_start",
            "prompt_logprob_token_ids",
            "prompt_logprobs",
            "routed_experts_prompt_start",
        ),
        "there is no column for them",
    ),
    "logprobs": "use `logprobs: true` on a step",
}
# Legal values; or type names with " | " between, or "any".
Kind = str | list[Any]
# Pydantic's words for the limits of a number: what they mean, in words too.
LIMITS: Mapping[str, tuple[str, Callable[[float, float], bool]]] = {
    "ge": ("at least", operator.ge),
    "gt": ("greater than", operator.gt),
    "le": ("at most", operator.le),
    "lt": ("less than", operator.lt),
}
_TYPES: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
    "list": (list,),
    "dict": (dict,),
}


@cache
def _frozen() -> dict[str, dict[str, Any]]:
    text = (files("batchgen.engines") / "vllm_arguments.json").read_text()
    frozen: dict[str, dict[str, Any]] = json.loads(text)
    return frozen


def engine_arguments() -> Mapping[str, Kind]:
    """Names that `model.engine` takes, with their kinds."""
    return {name: kind for name, kind in _frozen()["engine"].items() if name not in OWNED_ENGINE}


def range_of(name: str, value: Any) -> str:
    """What the number of an engine argument has to be, in words; "" where it is so, or is no number."""
    limits = _frozen()["ranges"].get(name, {})
    if not isinstance(value, int | float) or all(LIMITS[kind][1](value, limit) for kind, limit in limits.items()):
        return ""
    return " and ".join(f"{LIMITS[kind][0]} {limit}" for kind, limit in limits.items())


def sampling_arguments() -> Mapping[str, Kind]:
    """Names that `sampling` takes, with their kinds."""
    return {name: kind for name, kind in _frozen()["sampling"].items() if name not in OWNED_SAMPLING}


def structured_arguments() -> Mapping[str, Kind]:
    """Names that `sampling.structured_outputs` takes, with their kinds."""
    return _frozen()["structured_outputs"]


def repetition_arguments() -> Mapping[str, Kind]:
    """Names that `sampling.repetition_detection` takes, with their kinds."""
    return _frozen()["repetition_detection"]


def code_within(engine: Mapping[str, Any]) -> tuple[tuple[str, str], str] | None:
    """Where legal engine arguments name code within a mapping, and what is wrong with that; None where they do not."""
    configs = {name: value for name, value in engine.items() if isinstance(value, dict)}
    for name, field in CODE_FIELDS:
        if configs.get(name, {}).get(field):
            return (name, field), _NO_CODE
    compiler = configs.get("compilation_config", {}).get("backend", "")
    if compiler not in _COMPILERS:
        return ("compilation_config", "backend"), f"{_NO_CODE}; legal: eager, inductor; got {compiler!r}"
    draft = configs.get("speculative_config", {})
    if draft.get("method") == "custom_class":
        return ("speculative_config", "method"), f"{_NO_CODE}, got 'custom_class'"
    model = str(draft.get("model", ""))
    parts = model.split(".")
    # vLLM takes such a name for that of a class, where no method says otherwise.
    if draft.get("method") is None and len(parts) > 1 and all(part.isidentifier() for part in parts):
        return ("speculative_config", "model"), f"vLLM would take {model!r} for a class; {_NO_CODE}"
    return None


def fits(value: Any, kind: Kind) -> bool:
    """Whether a value is of a frozen kind; those that vLLM alone can judge ("any") always fit."""
    if isinstance(kind, list):
        return any(value == legal and type(value) is type(legal) for legal in kind)
    members = kind.split(" | ")
    if "any" in members:
        return True
    if isinstance(value, bool):
        return "bool" in members
    return any(isinstance(value, _TYPES[member]) for member in members)
