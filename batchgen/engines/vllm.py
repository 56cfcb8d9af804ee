"""The vLLM engine. Nothing imports vllm but this module, and `vllm_freeze` beside it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from functools import cache, cached_property
from types import SimpleNamespace
from typing import Any

from batchgen.engines.base import Completion, EngineSpec, Request
from batchgen.engines.chat import TemplateChat
from batchgen.engines.installed import check_installed
from batchgen.engines.processlog import ProcessLog
from batchgen.engines.repository import find_model, public_name
from batchgen.engines.tokenizer import chat_from_tokenizer, load_tokenizer
from batchgen.engines.vllm_start import async_llm, not_started
from batchgen.errors import EngineDead, EngineStartError, EngineStopped, RowRejected
from batchgen.paths import expanded
from batchgen.sockets import socket_folder

_SOCKET_BYTES = len("/01234567-89ab-cdef-0123-456789abcdef")
# Read by vLLM when it is imported. Two engines on one machine would both bind to core 0 without `nobind`.
_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # An engine lives on one machine; its processes meet on loopback.
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOOPBACK_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    # How long a start may take the job says (`start_seconds`); vLLM has ten minutes for a part of it.
    "VLLM_ENGINE_READY_TIMEOUT_S": "86400",
    "VLLM_CONFIGURE_LOGGING": "1",
}

# Of a request that fails within vLLM, which says of itself that it may recover; and seconds between them.
_TRIES = 3
_PAUSE = 1.0
# In every vocabulary.
SOME_TOKEN = 0
# In which a process that was told to end does so.
_ENDING_SECONDS = 20

_STOPPED = "vLLM's engine process was told to end"


class VllmEngine:
    """An `Engine` over one `AsyncLLM`, on as many GPUs as its `tensor_parallel_size` says, or on the CPU.

    A request's own seed is not passed on: every engine start has a seed of its own instead. A generator a request costs
    a GPU's sampler one launch a row, and on the CPU vLLM 0.32 dies of it as soon as a prefill is chunked ("CPU
    Generator does not use offset").
    """

    # Tokens for which a prompt has to leave room in the model's context.
    _least_written = 1

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.model_name = public_name(spec.path, spec.arguments.get("served_model_name"))
        self.slots = 1
        self._chat: TemplateChat | None = None
        self._llm: Any = None
        self._lora: Any = None
        self._log = ProcessLog()
        self._max_model_len = 0
        self._answered = 0
        self._aborts = False

    @property
    def chat(self) -> TemplateChat:
        """How the model writes a conversation."""
        assert self._chat is not None, "start() first"
        return self._chat

    @property
    def tokens_in_flight(self) -> int:
        """Output tokens so far of the requests that it works on, as vLLM keeps them in this process.

        They are no part of its API: 0 in a version that keeps them otherwise. Its own statistics of them cost something
        a token, whether anybody looks or not.
        """
        try:
            states = list(self._llm.output_processor.request_states.values())
            return sum(state.detokenizer.num_output_tokens() for state in states if state.detokenizer is not None)
        except AttributeError:
            return 0

    async def start(self) -> None:
        """Loads the model; raises `EngineStartError` with vLLM's own reason."""
        check_installed("vllm")
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("VLLM_RPC_BASE_PATH", socket_folder(room=_SOCKET_BYTES))
        spec = self.spec
        model = find_model(spec.path, spec.revision)
        tokenizer = load_tokenizer(model, spec.trust_remote_code, spec.arguments)
        self._chat = chat_from_tokenizer(tokenizer, spec.pre_query_template, spec.chat_template_kwargs)
        try:
            self._llm = async_llm(spec, model)
        except EngineStartError:
            raise
        except Exception as error:
            raise not_started(error, self._log.cause()) from error
        if spec.lora is not None:
            from vllm.lora.request import LoRARequest

            self._lora = LoRARequest(lora_name="adapter", lora_int_id=1, lora_path=str(expanded(spec.lora)))
        config = self._llm.vllm_config
        self.slots = slots_of(config.scheduler_config)
        self._max_model_len = config.model_config.max_model_len
        await self._check()

    async def _check(self) -> None:
        """Raises `EngineStartError` where the model does not do what the job asks of it."""
        for where, sampling in self.spec.samplings.items():
            await self._try(where, sampling)

    async def _try(self, where: str, sampling: Mapping[str, Any]) -> None:
        """Has vLLM judge a step's sampling parameters, by a request that ends as soon as they allow.

        What it refuses it would refuse for every row, whose reason does not say why.

        Raises:
            EngineStartError: with vLLM's reason.
        """
        shortest = {**sampling, "max_tokens": max(1, sampling.get("min_tokens") or 0)}
        try:
            await self.generate(Request((SOME_TOKEN,), shortest, seed=0, key=where))
        except EngineDead as error:
            raise EngineStartError(f"vLLM did not start: {error}") from error
        except Exception as error:
            cause = error.__cause__ or error
            refused = f"{where}: vLLM does not take its sampling parameters: {cause}"
            # Its own kind of error is a ValueError in some versions only.
            judged = isinstance(cause, ValueError | _names().VLLMValidationError)
            raise EngineStartError(refused, final=judged) from error

    async def generate(self, request: Request) -> Completion:
        """Completes one prompt."""
        vllm, llm = _names(), self._llm
        if llm is None:
            raise EngineDead("the engine is stopped")
        if len(request.token_ids) + self._least_written > self._max_model_len:
            raise RowRejected("prompt_too_long")
        params = self._parameters(request)
        try:
            answer = await self._answer(llm, request, params)
        except vllm.VLLMValidationError as error:
            raise RowRejected("invalid_request") from error
        except vllm.EngineDeadError as error:
            if self._aborts:
                raise EngineStopped(_STOPPED) from error
            raise EngineDead(self._death) from error
        if answer.finish_reason == "abort":
            raise await self._aborted(llm)
        self._answered += 1
        return self._completion(request, answer)

    def _parameters(self, request: Request) -> Any:
        """What vLLM is told of a request besides its prompt."""
        vllm = _names()
        # Made for this request alone: a deep copy of them took twice as long as making them.
        return vllm.SamplingParams(
            **_sampling_options(request), output_kind=vllm.RequestOutputKind.FINAL_ONLY, skip_clone=True
        )

    def _outputs(self, llm: Any, prompt: Any, params: Any, request: Request) -> Any:
        """What vLLM has for a request as it comes, an asynchronous iterator."""
        return llm.generate(prompt, params, request.key, lora_request=self._lora, priority=request.priority)

    def _answer_of(self, output: Any) -> Any:
        """The part of vLLM's last output that answers the request; it has a `finish_reason`."""
        return output.outputs[0]

    def _completion(self, request: Request, answer: Any) -> Completion:
        return Completion(
            text=answer.text,
            finish_reason=str(answer.finish_reason),
            input_tokens=len(request.token_ids),
            output_tokens=len(answer.token_ids),
            token_ids=_tokens_of_text(answer, request.sampling),
            logprobs=[
                step[token].logprob for token, step in zip(answer.token_ids, answer.logprobs or (), strict=False)
            ],
        )

    @cached_property
    def _death(self) -> str:
        """What vLLM's engine process died of, which all requests in flight ask at once."""
        # The exception's kind alone: its text may quote a row.
        kind = (self._log.cause() or "").partition(":")[0]
        return f"vLLM's engine process died{f' of {kind}' if kind else ''}"

    async def _aborted(self, llm: Any) -> EngineDead:
        """Why vLLM broke a request off, which nobody here waits for any more where it was asked to.

        Told to end, its process does that with all of them.
        """
        self._aborts = True
        for _ in range(_ENDING_SECONDS):
            if llm.errored:
                return EngineStopped(_STOPPED)
            await asyncio.sleep(_PAUSE)
        self._aborts = False
        return EngineDead("vLLM breaks requests off")

    async def _answer(self, llm: Any, request: Request, params: Any) -> Any:
        """What vLLM has for a request, after a few tries where it fails by an error of its own.

        Raises:
            RowRejected: it fails at this request: it says so, or meanwhile answered others.
            EngineDead: it fails, and answered no other.
        """
        before: int | None = None
        problem: str | None = None
        for _ in range(_TRIES):
            try:
                answer = await self._last_output(llm, request, params)
            except _names().EngineGenerateError as error:
                problem = type(error.__cause__ or error).__name__
            else:
                if answer.finish_reason != "error":
                    return answer
                problem = None
            before = self._answered if before is None else before
            await asyncio.sleep(_PAUSE)
        if problem is None or self._answered > (before or 0):
            raise RowRejected("engine_error")
        raise EngineDead(f"vLLM fails at what it is asked: {problem}")

    async def _last_output(self, llm: Any, request: Request, params: Any) -> Any:
        final = None
        # Marked as tokens; a prompt that vLLM takes for raw makes a detour through a thread.
        prompt = _names().tokens_input(list(request.token_ids))
        async for output in self._outputs(llm, prompt, params, request):
            final = output
        if final is None:
            raise EngineDead("vLLM ended a request without an output")
        return self._answer_of(final)

    async def stop(self) -> None:
        """Ends the engine's processes."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None


def slots_of(scheduler: Any) -> int:
    """How many requests vLLM works on at once, by its `SchedulerConfig`."""
    slots: int = getattr(scheduler, "max_num_active_seqs", None) or scheduler.max_num_seqs
    return slots


# With these the text is not what the tokens before the stop token say.
_TEXT_OPTIONS = ("include_stop_str_in_output", "spaces_between_special_tokens")


def _tokens_of_text(answer: Any, options: Mapping[str, Any]) -> list[int]:
    """The tokens of exactly the completion's text; none where a stop text was cut off or options change the text."""
    ids = list(answer.token_ids)
    if any(name in options for name in _TEXT_OPTIONS) or isinstance(answer.stop_reason, str):
        return []
    return ids[:-1] if answer.finish_reason == "stop" else ids


@cache
def _names() -> SimpleNamespace:
    """What a request needs of vLLM; imports in each of them came to 4 % of what this process does for a short call."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    found = (
        SamplingParams,
        StructuredOutputsParams,
        RequestOutputKind,
        VLLMValidationError,
        EngineDeadError,
        EngineGenerateError,
    )
    return SimpleNamespace(**{each.__name__: each for each in found}, tokens_input=tokens_input)


def _sampling_options(request: Request) -> dict[str, Any]:
    options = dict(request.sampling)
    if isinstance(structured := options.get("structured_outputs"), dict):
        options["structured_outputs"] = _names().StructuredOutputsParams(**structured)
    if isinstance(repetition := options.get("repetition_detection"), dict):
        from vllm.sampling_params import RepetitionDetectionParams

        options["repetition_detection"] = RepetitionDetectionParams(**repetition)
    if bias := options.get("logit_bias"):
        options["logit_bias"] = {int(token): value for token, value in bias.items()}  # JSON has text for keys
    stop = options.get("stop") or []
    options["stop"] = [*([stop] if isinstance(stop, str) else stop), *request.stop]
    options["stop_token_ids"] = [*(options.get("stop_token_ids") or []), *request.stop_token_ids]
    return options
