"""Engines: what turns prompts into completions."""

from batchgen.engines.base import Engine, EngineSpec


def build_engine(spec: EngineSpec) -> Engine:
    """The engine that a spec describes, not yet started."""
    if spec.path == "chaos":
        from batchgen.engines.chaos import ChaosEngine

        return ChaosEngine(spec)
    if spec.backend == "openai":
        from batchgen.engines.openai import OpenAIEngine

        return OpenAIEngine(spec)
    if spec.backend == "transformers":
        from batchgen.engines.transformers import TransformersEngine

        return TransformersEngine(spec)
    if spec.scores:
        from batchgen.engines.vllm_scores import VllmScorer

        return VllmScorer(spec)
    from batchgen.engines.vllm import VllmEngine

    return VllmEngine(spec)
