"""What the engines other than vLLM can be told in a job; checked without importing any of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator
from pydantic_core import PydanticCustomError

# A job must not be able to send any other secret of the environment to a server of its choice.
_KEY_NAME = re.compile(r"[A-Z][A-Z0-9_]*_API_KEY")


class OpenAIOptions(BaseModel):
    """How to reach an OpenAI-compatible server."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    base_url: str = Field(pattern=r"^https?://\S+$", description="of the API, up to and with its /v1")
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key; where it is not set, none is sent"
    )
    max_concurrency: PositiveInt = Field(64, description="requests in flight from one batchgen engine")
    timeout: float | None = Field(
        None, gt=0, description="seconds a request, with its retries; else 600, or more where max_tokens is large"
    )
    max_retries: int = Field(
        8, ge=0, description="of a request, with back-off, on 408, 409, 429, 5xx and lost connections"
    )
    stream: bool = Field(
        False, description="has answers sent in pieces, for a gateway that gives up where none comes for a minute"
    )

    # What may be a secret is not repeated in a message.
    @field_validator("base_url")
    @classmethod
    def _without_password(cls, url: str) -> str:
        if "@" in urlsplit(url).netloc:
            raise PydanticCustomError(
                "password", "must hold no user or password, which would be kept in the run's files; use api_key_env"
            )
        return url

    @field_validator("api_key_env")
    @classmethod
    def _name_of_a_key(cls, name: str) -> str:
        if not _KEY_NAME.fullmatch(name):
            raise PydanticCustomError(
                "key", "must be the name of an environment variable, `*_API_KEY` in capitals, and not the key itself"
            )
        return name


class TransformersOptions(BaseModel):
    """How to run a model with transformers itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto: a GPU where there is one")
    max_batch_size: PositiveInt = Field(8, description="requests that are generated together")
    max_model_len: PositiveInt | None = Field(None, description="longest prompt and completion; else the model's own")


OPTIONS: Mapping[str, type[BaseModel]] = {"openai": OpenAIOptions, "transformers": TransformersOptions}
