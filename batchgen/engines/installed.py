"""Whether what a backend needs is installed: vLLM and PyTorch come with an extra, or not at all."""

from __future__ import annotations

from importlib.util import find_spec

from batchgen.errors import EngineStartError

_NEEDS = {
    "vllm": (
        "vllm",
        "vLLM is not installed in this environment; in batchgen's clone: pip install '.[gpu]', or without a GPU: make "
        "setup, which installs vLLM's CPU build",
    ),
    "transformers": ("torch", "PyTorch is not installed in this environment: pip install torch"),
}


def missing(backend: str) -> str | None:
    """What a backend lacks in this environment, and how to get it; None where it lacks nothing."""
    package, message = _NEEDS.get(backend, ("", ""))
    return message if package and find_spec(package) is None else None


def check_installed(backend: str) -> None:
    """Refuses to start an engine that lacks a package.

    Raises:
        EngineStartError: says which, and how to get it.
    """
    if (message := missing(backend)) is not None:
        raise EngineStartError(message, final=True)
