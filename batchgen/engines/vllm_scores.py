"""A reward model on vLLM: requests come back with a score, and nothing is written."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from batchgen.engines.base import Completion, Request
from batchgen.engines.vllm import SOME_TOKEN, VllmEngine
from batchgen.errors import EngineDead, EngineStartError, RowRejected

# Of sequence classification, for which a reward model is one with a single class.
_TASK = "classify"


class VllmScorer(VllmEngine):
    """A `VllmEngine` whose model reads whole conversations and gives each a score, as it comes from its last layer.

    Args:
        spec: one that `scores`.
    """

    _least_written = 0

    @property
    def tokens_in_flight(self) -> int:
        """None: it writes nothing."""
        return 0

    async def _check(self) -> None:
        """Has the model score something, whatever that is.

        Raises:
            EngineStartError: it does not give one number.
        """
        tasks = await self._llm.get_supported_tasks()
        if _TASK not in tasks:
            raise EngineStartError(_refusal(self.spec.path, f"vLLM runs it for {', '.join(tasks) or 'nothing'}"), True)
        try:
            completion = await self.generate(Request((SOME_TOKEN,), {}, seed=0, key="start"))
        except EngineDead as error:
            raise EngineStartError(f"vLLM did not start: {error}") from error
        except RowRejected as error:
            raise EngineStartError(_refusal(self.spec.path, f"vLLM says {error.reason}"), True) from error
        if completion.score is None:
            raise EngineStartError(_refusal(self.spec.path, "it gives several"), True)

    def _parameters(self, request: Request) -> Any:
        # A score as it is: an activation would squeeze those of good answers together, below 1.
        return _pooling_params()(task=_TASK, use_activation=False)

    def _outputs(self, llm: Any, prompt: Any, params: Any, request: Request) -> Any:
        return llm.encode(prompt, params, request.key, lora_request=self._lora, priority=request.priority)

    def _answer_of(self, output: Any) -> Any:
        scores = output.outputs.data.flatten().tolist()
        # Of a request that it breaks off vLLM has an empty tensor.
        return SimpleNamespace(scores=scores, finish_reason="stop" if scores else "abort")

    def _completion(self, request: Request, answer: Any) -> Completion:
        score = answer.scores[0] if len(answer.scores) == 1 else None
        return Completion("", "stop", len(request.token_ids), 0, score=score)


@cache
def _pooling_params() -> Any:
    """vLLM's class, which is not looked up for every request."""
    from vllm import PoolingParams

    return PoolingParams


def _refusal(path: str, why: str) -> str:
    return f"model.path: {path!r} is no reward model that gives an answer one score: {why}"
