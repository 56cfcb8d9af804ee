"""Starts vLLM: the arguments that it gets, and why it did not start."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any, get_args

from batchgen.engines.arguments import GPU_ARGUMENTS
from batchgen.engines.base import EngineSpec
from batchgen.engines.repository import Repository
from batchgen.errors import EngineStartError
from batchgen.paths import expanded

# Why another start on the same kind of machine would fail as well: what cannot be imported, and a KV cache that has no
# room for one text of `max_model_len` (`_check_enough_kv_cache_memory`). Free memory that is short is not among them:
# it may be that of an engine which is just ending.
_FINAL_CAUSES = (
    "ModuleNotFoundError:",
    "ImportError:",
    "ValueError: No available memory for the cache blocks.",
    "ValueError: To serve at least one request with the model's max seq len",
)
_NO_DEVICE = (
    "vLLM finds no device here that it could run on: its build for GPUs is installed, and the driver shows it none; "
    "does nvidia-smi list one? Without a GPU: make setup, which installs vLLM's CPU build"
)
# On a CPU what hands each draft token its request's temperature writes into a copy, which is thrown away.
_SPECULATION = (
    "model.engine: speculative_config: vLLM's CPU build accepts drafts that the model would not have written; "
    "leave it out on a machine without a GPU"
)


def async_llm(spec: EngineSpec, model: Repository) -> Any:
    """vLLM's engine; raises whatever vLLM does."""
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    if not current_platform.device_type:
        raise EngineStartError(_NO_DEVICE, final=True)
    arguments: dict[str, Any] = {
        "enable_log_requests": False,
        "disable_log_stats": True,
        "scheduling_policy": "priority",
        # The tokenizer that prompts are written with; of Mistral's models vLLM would take another.
        "tokenizer_mode": "hf",
        # Small models fill a JSON object with white space until they are cut, where any is allowed.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if current_platform.is_cpu():
        if spec.arguments.get("speculative_config") is not None:
            raise EngineStartError(_SPECULATION, final=True)
        # Has one process less, which starts 15 s earlier and needs no 400 MB in /dev/shm, of which a container
        # has 64. `nobind` above is what makes a worker of its own unnecessary.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        # Nothing is captured or compiled on a CPU that would pay for the time it takes.
        arguments["enforce_eager"] = True
        # In bfloat16 the CPU build's workers now and then died of SIGILL on a virtual machine with AMX.
        arguments["dtype"] = "float32"
    elif spec.gpu_memory is not None:
        arguments["gpu_memory_utilization"] = spec.gpu_memory
    if spec.lora is not None:
        arguments |= _lora_arguments(spec.lora)
    arguments |= spec.arguments
    if any(spec.arguments.get(name, 1) > 1 for name in GPU_ARGUMENTS):
        # Within Ray vLLM may take Ray for it, and would look for GPUs beside those that the actor has.
        arguments["distributed_executor_backend"] = "mp"
    arguments |= {
        "model": model.target,
        "revision": model.revision,
        "trust_remote_code": spec.trust_remote_code,
        "seed": spec.seed % 2**31,
        **({"runner": "pooling"} if spec.scores else {}),
    }
    if unknown := sorted(arguments.keys() - {field.name for field in dataclasses.fields(AsyncEngineArgs)}):
        message = f"model.engine: the vLLM that is installed here ({vllm.__version__}) has no argument {unknown[0]!r}"
        raise EngineStartError(message, final=True)
    # vLLM's sizes for offline batches: on an H100 1,024 requests at once, where it would take 128 otherwise.
    given = AsyncEngineArgs(**_with_configs(arguments, AsyncEngineArgs))
    return AsyncLLM.from_engine_args(given, usage_context=UsageContext.LLM_CLASS)


def _with_configs(arguments: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Arguments with vLLM's config objects where a job has mappings: vLLM makes only some of them itself."""
    made = dict(arguments)
    for field in dataclasses.fields(kind):
        config = next((part for part in (field.type, *get_args(field.type)) if dataclasses.is_dataclass(part)), None)
        if isinstance(config, type) and isinstance(value := made.get(field.name), dict):
            made[field.name] = config(**value)
    return made


def not_started(error: Exception, cause: str | None) -> EngineStartError:
    """What is said of a start that failed.

    Args:
        cause: in a process of vLLM's own, of which there is the text alone; None where there is none.
    """
    if cause is not None:
        return EngineStartError(f"vLLM did not start: {cause}", cause.startswith(_FINAL_CAUSES))
    return EngineStartError(f"vLLM did not start: {_reason(error)}", is_final(error))


def _reason(error: Exception) -> str:
    """Why vLLM did not start; of what pydantic complains about, without the arguments it quotes."""
    if hasattr(error, "errors"):
        return "; ".join(str((item.get("ctx") or {}).get("error") or item["msg"]) for item in error.errors())
    return f"{type(error).__name__}: {error}"


def is_final(error: Exception) -> bool:
    """Whether another start here would fail as well.

    So it is where vLLM cannot be imported, built for another CUDA, say; where a text has no room in its KV cache; and
    where its configuration does not take what it got, which is pydantic's and made before anything is loaded. What came
    of something else, such as a Hub that did not answer, may be otherwise the next time.
    """
    if not hasattr(error, "errors"):
        return _reason(error).startswith(_FINAL_CAUSES)
    complaints = [(item.get("ctx") or {}).get("error") for item in error.errors()]
    return all(complaint is None or complaint.__cause__ is None for complaint in complaints)


def _lora_arguments(folder: str) -> dict[str, Any]:
    """The engine arguments that an adapter needs."""
    rank = json.loads((expanded(folder) / "adapter_config.json").read_text())["r"]
    # vLLM takes a few ranks only, and keeps room for the largest.
    ranks = (8, 16, 32, 64, 128, 256, 320, 512)
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": next((r for r in ranks if r >= rank), rank)}
