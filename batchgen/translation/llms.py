"""The LLM of a distilabel task as a job has it: a model with engine arguments, and sampling parameters."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from batchgen.errors import JobError
from batchgen.translation.steps import class_name

# distilabel's generation arguments by vLLM's names; None: nothing to carry over.
_GENERATION: Mapping[str, str | None] = {
    "max_new_tokens": "max_tokens",
    "stop_sequences": "stop",
    "do_sample": None,
    "echo": None,
}
# Of OpenAI's clients: what asks at other paths, with a version of the API.
_OTHER_PATHS = ("AzureOpenAILLM",)
# distilabel's names for texts that are derived from the model's chat template here.
_DERIVED = ("llama3", "qwen2")
# Of distilabel's vLLM and TransformersLLM: what is an engine argument here as well.
_ENGINE_FIELDS: Mapping[str, str] = {
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "quantization": "quantization",
    "tokenizer": "tokenizer",
    "tokenizer_mode": "tokenizer_mode",
    "tokenizer_revision": "tokenizer_revision",
}


def model_of(name: str, llm: Any) -> dict[str, Any]:
    """A job's model for a distilabel LLM."""
    kinds = [class_name(kind) for kind in type(llm).__mro__]
    if "OpenAILLM" in kinds and kinds[0] == type(llm).__name__ and kinds[0] not in _OTHER_PATHS:
        if getattr(llm, "api_key", None) is not None and not _from_environment(llm):
            raise JobError(f"step {name!r}: its LLM has an API key in the code; put it into {llm._api_key_env_var}")
        for field in ("default_headers", "use_offline_batch_generation"):
            if getattr(llm, field, None):
                raise JobError(f"step {name!r}: {field} of its LLM is not carried over")
        if not llm.model:
            raise JobError(f"step {name!r}: its {kinds[0]} needs `model`, as the server calls it")
        engine = {"base_url": str(llm.base_url or "https://api.openai.com/v1"), "api_key_env": llm._api_key_env_var}
        return {"path": llm.model, "backend": "openai", "engine": engine | _own_patience(llm)}
    if kinds[0] == "InferenceEndpointsLLM":
        return _hosted(name, llm)
    if kinds[0] not in ("vLLM", "TransformersLLM"):
        raise JobError(
            f"step {name!r}: its LLM is a {kinds[0]}, which cannot be carried over; legal: vLLM, TransformersLLM, "
            "InferenceEndpointsLLM, OpenAILLM and its like"
        )
    if llm.trust_remote_code:
        raise JobError(f"step {name!r}: trust_remote_code is not carried over; a job is data")
    if llm.chat_template is not None:
        raise JobError(f"step {name!r}: a chat template of its own is not carried over; put it into the tokenizer")
    engine = {
        ours: getattr(llm, theirs)
        for theirs, ours in _ENGINE_FIELDS.items()
        if getattr(llm, theirs, None) not in (None, "auto")
    }
    engine |= getattr(llm, "extra_kwargs", None) or {}
    model = {"path": llm.model, "engine": engine, **_opening(llm)}
    if llm.revision not in (None, "main"):
        model["revision"] = llm.revision
    return model


def _hosted(name: str, llm: Any) -> dict[str, Any]:
    """The model that Hugging Face would host, as one of this machine's."""
    if not llm.model_id:
        raise JobError(
            f"step {name!r}: its InferenceEndpointsLLM has an endpoint and no model_id; name the endpoint in an "
            "OpenAILLM (base_url, up to and with its /v1), or the model in a vLLM"
        )
    own = {"tokenizer": llm.tokenizer_id} if llm.tokenizer_id not in (None, llm.model_id) else {}
    return {"path": llm.model_id, "engine": own, **_opening(llm)}


def _opening(llm: Any) -> dict[str, str]:
    """The text that opens user turns, where it is one of the caller's own."""
    text = llm.magpie_pre_query_template
    return {"pre_query_template": text} if text not in (None, *_DERIVED) else {}


def place_of(models: list[dict[str, Any]], model: dict[str, Any]) -> int:
    """Where a model stands among those of a job; a text that opens user turns, which only Magpie needs, is no other."""
    for index, other in enumerate(models):
        agree = other | model == model | other
        if agree and other.keys() ^ model.keys() <= {"pre_query_template"}:
            models[index] = other | model
            return index
    models.append(model)
    return len(models) - 1


def _own_patience(llm: Any) -> dict[str, Any]:
    """Time-out and number of retries of a server's client, where they are not distilabel's."""
    fields = type(llm).model_fields
    given = {name: getattr(llm, name) for name in ("timeout", "max_retries") if name in fields}
    return {name: value for name, value in given.items() if value is not None and value != fields[name].default}


def _from_environment(llm: Any) -> bool:
    key = llm.api_key.get_secret_value() if hasattr(llm.api_key, "get_secret_value") else llm.api_key
    return bool(key == os.environ.get(llm._api_key_env_var))


def sampling_of(name: str, llm: Any) -> dict[str, Any]:
    """A job's sampling for a distilabel LLM: what was given, and distilabel's defaults for the rest."""
    # Clients have theirs where one input is completed.
    signature = inspect.signature(getattr(type(llm), "agenerate", type(llm).generate))
    legal = {key: p.default for key, p in signature.parameters.items() if p.default is not inspect.Parameter.empty}
    given = {key: legal[key] for key in ("max_new_tokens", "temperature", "top_p") if legal.get(key) is not None}
    given |= llm.generation_kwargs or {}
    given |= given.pop("extra_sampling_params", None) or {}
    if given.get("do_sample") is False:
        given["temperature"] = 0.0
    if given.get("top_k") == 0:
        given["top_k"] = -1  # distilabel's word for "all" with transformers
    for field in ("logits_processors", "logprobs", "top_logprobs", "response_format"):
        if given.pop(field, None) is not None:
            raise JobError(f"step {name!r}: generation argument {field!r} cannot be carried over")
    sampling = {_GENERATION.get(key, key): value for key, value in given.items() if value is not None}
    if structured := getattr(llm, "structured_output", None):
        sampling["structured_outputs"] = _structure(structured)
    return {key: value for key, value in sampling.items() if key is not None}


def _structure(structured: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's structured outputs for distilabel's, whose schema may be a class, and whose format may be left open."""
    schema = structured["schema"]
    schema = schema.model_json_schema() if hasattr(schema, "model_json_schema") else schema
    return {structured.get("format") or ("regex" if isinstance(schema, str) else "json"): schema}
