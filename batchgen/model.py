"""A model of a job: what it is, what runs it, and how much of a GPU it has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from batchgen.checks import check_engine, check_options
from batchgen.complaint import complaint
from batchgen.engines import arguments
from batchgen.engines.chaos import ChaosScript
from batchgen.engines.options import OPTIONS
from batchgen.step import Part

# Of a GPU's memory that engines have between them, if not otherwise asked for; and the least that one could start with.
_SHARED_MEMORY = 0.9
_LEAST = 0.02
_MEMORY = "gpu_memory_utilization"


class Model(Part):
    """The model and how its engine is set up."""

    path: str = Field(min_length=1, description="a Hub name, a folder, `embedded` or `chaos`; the name on a server")
    backend: Literal["vllm", "openai", "transformers"] = Field("vllm", description="what runs the model")
    revision: str | None = Field(None, min_length=1, description="of a Hub model")
    lora: str | None = Field(None, description="folder of a LoRA adapter that every request uses (vLLM)")
    pre_query_template: str | None = Field(None, description="opens a user turn, where it cannot be derived (Magpie)")
    chat_template_kwargs: dict[str, bool | int | float | str | None] = Field(
        default_factory=dict, description="what the chat template is given besides the messages"
    )
    engine: dict[str, Any] = Field(default_factory=dict, description="vLLM's engine arguments, or the backend's own")

    @model_validator(mode="after")
    def _known_arguments(self) -> Model:
        if self.path == "chaos":
            check_options(self.engine, ChaosScript, "chaos engine")
        elif self.backend != "vllm":
            check_options(self.engine, OPTIONS[self.backend], f"{self.backend} backend")
        else:
            check_engine(self.engine)
        if self.backend != "vllm" and self.lora is not None:
            raise complaint("lora needs the vllm backend")
        for name in self.chat_template_kwargs:
            if name in arguments.OWNED_TEMPLATE:
                raise complaint("is batchgen's to set", ("chat_template_kwargs", name))
        if self.backend == "openai" and (self.revision or self.pre_query_template):
            raise complaint("the server decides on revision and chat template; leave them out")
        return self

    @property
    def gpus(self) -> int:
        """GPUs that one engine takes, all on one machine."""
        return math.prod(int(self.engine.get(name, 1)) for name in arguments.GPU_ARGUMENTS)

    @property
    def is_local(self) -> bool:
        """Whether the model is loaded by batchgen, so that its tokenizer is at hand and a GPU is wanted."""
        return self.path != "chaos" and self.backend != "openai"


def memory_shares(models: Mapping[str | None, Model], engines_per_gpu: int) -> dict[str | None, float | None]:
    """Which part of a GPU's memory each of the models on vLLM has; None where it is alone there, and vLLM decides.

    What a job says of some of them (`gpu_memory_utilization`) leaves the rest for the others.

    Args:
        models: of an engine, by name; the job's own is None.
        engines_per_gpu: engines that share a GPU, each with all of the models.

    Raises:
        PydanticCustomError: they have no room beside each other.
    """
    shared = {name: model for name, model in models.items() if model.backend == "vllm" and model.path != "chaos"}
    if engines_per_gpu > 1 and (several := max((model.gpus for model in shared.values()), default=1)) > 1:
        raise complaint(f"an engine that takes {several} GPUs shares none of them", ("engines_per_gpu",))
    if len(shared) * engines_per_gpu < 2:
        return dict.fromkeys(shared)
    given = {name: float(model.engine[_MEMORY]) for name, model in shared.items() if _MEMORY in model.engine}
    taken, others = engines_per_gpu * sum(given.values()), [name for name in shared if name not in given]
    left = (_SHARED_MEMORY - taken) / (engines_per_gpu * len(others)) if others else _LEAST
    if taken > 1 or left < _LEAST:
        on_it = f"{engines_per_gpu * len(shared)} models would be on a GPU at once"
        if not given:
            raise complaint(f"{on_it}, which leaves each less than {_LEAST} of its memory", ("engines_per_gpu",))
        name = next(iter(given))
        place = ("model", "engine", _MEMORY) if name is None else ("models", name, "engine", _MEMORY)
        raise complaint(f"{on_it}, with {taken:.2f} of its memory as asked for; left out, they share it", place)
    return {name: given.get(name, round(left, 4)) for name in shared}
