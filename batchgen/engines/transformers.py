"""transformers itself as an engine, for machines where vLLM does not install: the same rows, many times slower."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from batchgen.engines.base import Completion, EngineSpec, Request
from batchgen.engines.chat import TemplateChat
from batchgen.engines.installed import check_installed
from batchgen.engines.options import TransformersOptions
from batchgen.engines.repository import Repository, find_model, public_name
from batchgen.engines.tokenizer import chat_from_tokenizer, load_tokenizer
from batchgen.errors import EngineDead, EngineStartError, RowRejected

# vLLM's names for what `generate` can do as well; any other would be ignored without a word.
_SAMPLING: Mapping[str, str] = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
}
SAMPLING = frozenset({*_SAMPLING, "stop", "stop_token_ids"})

_Waiting = tuple[Request, "asyncio.Future[Completion]"]


class TransformersEngine:
    """An `Engine` that generates in padded batches: a batch ends when its longest completion does."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.options = TransformersOptions.model_validate(dict(spec.arguments))
        self.model_name = public_name(spec.path)
        self.slots = self.options.max_batch_size
        self._chat: TemplateChat | None = None
        self._tokenizer: Any = None
        self._model: Any = None
        self._max_model_len = 0
        self.tokens_in_flight = 0
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._loop: asyncio.Task[None] | None = None

    @property
    def chat(self) -> TemplateChat:
        """How the model writes a conversation."""
        assert self._chat is not None, "start() first"
        return self._chat

    async def start(self) -> None:
        """Loads the model; raises `EngineStartError`."""
        check_installed("transformers")
        spec = self.spec
        repository = find_model(spec.path, spec.revision)
        self._tokenizer = load_tokenizer(repository, spec.trust_remote_code)
        self._chat = chat_from_tokenizer(self._tokenizer, spec.pre_query_template, spec.chat_template_kwargs)
        try:
            await asyncio.to_thread(self._load, repository)
        except Exception as error:
            raise EngineStartError(f"transformers did not load the model: {type(error).__name__}: {error}") from error
        self._loop = asyncio.create_task(self._serve())

    def _load(self, repository: Repository) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        spec = self.spec
        torch.manual_seed(spec.seed % 2**63)
        device = self.options.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(
            repository.target,
            revision=repository.revision,
            trust_remote_code=spec.trust_remote_code,
            dtype=self.options.dtype,
        )
        self._model = model.to(device).eval()
        # Of the model's own config for generation only the tokens: what a job leaves open is vLLM's to say.
        own = model.generation_config
        model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)
        limit = getattr(model.config, "max_position_embeddings", None) or 2**31
        self._max_model_len = min(limit, self.options.max_model_len or limit)

    async def generate(self, request: Request) -> Completion:
        """Completes one prompt, together with others that wait."""
        if len(request.token_ids) >= self._max_model_len:
            raise RowRejected("prompt_too_long")
        if self._loop is None or self._loop.done():
            raise EngineDead("the engine is stopped")
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((request, future))
        return await future

    async def stop(self) -> None:
        """Ends the batches and lets the model go."""
        if self._loop is not None:
            self._loop.cancel()
            self._loop = None
        self._model = None

    async def _serve(self) -> None:
        held: list[_Waiting] = []
        while True:
            held.append(held.pop(0) if held else await self._waiting.get())
            await asyncio.sleep(0)  # rows that have just been answered ask again
            while not self._waiting.empty():
                held.append(self._waiting.get_nowait())
            # Nobody waits for some any more: their shard was given back.
            held = sorted((item for item in held if not item[1].done()), key=lambda item: item[0].priority)
            if not held:
                continue
            # Only equal parameters go together: `generate` has one set of them a batch.
            same = [item for item in held if self._key(item[0]) == self._key(held[0][0])][: self.slots]
            taken = {id(item[1]) for item in same}
            held = [item for item in held if id(item[1]) not in taken]
            try:
                completions = await asyncio.to_thread(self._batch, [request for request, _ in same])
            except Exception as error:
                failure = EngineDead(f"transformers failed: {type(error).__name__}")
                while not self._waiting.empty():  # they came while the batch ran
                    held.append(self._waiting.get_nowait())
                for _, future in (*same, *held):
                    if not future.done():
                        future.set_exception(failure)
                raise
            for (_, future), completion in zip(same, completions, strict=True):
                if not future.done():
                    future.set_result(completion)

    def _batch(self, requests: Sequence[Request]) -> list[Completion]:
        import torch
        from transformers import StoppingCriteriaList

        tokenizer, model = self._tokenizer, self._model
        longest = max(len(request.token_ids) for request in requests)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        padded = [[pad] * (longest - len(request.token_ids)) + list(request.token_ids) for request in requests]
        mask = [[0] * (longest - len(request.token_ids)) + [1] * len(request.token_ids) for request in requests]
        options, ends = self._options(requests[0])
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor(padded, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                pad_token_id=pad,
                eos_token_id=sorted(ends) or None,
                tokenizer=tokenizer,
                stopping_criteria=StoppingCriteriaList([self._counter(ends)]),
                **options,
            )
        self.tokens_in_flight = 0
        answers = output[:, longest:].tolist()
        return [self._completion(request, answer, ends, pad) for request, answer in zip(requests, answers, strict=True)]

    def _counter(self, ends: set[int]) -> Callable[..., Any]:
        """A criterion that stops nothing, and counts what a batch has written so far."""
        import torch

        ended: Any = False

        def count(ids: Any, scores: Any, **others: Any) -> Any:
            nonlocal ended
            ended = ended | torch.isin(ids[:, -1], torch.tensor(sorted(ends), dtype=ids.dtype, device=ids.device))
            self.tokens_in_flight += int((~ended).sum())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        return count

    def _room(self, request: Request) -> int:
        """Tokens that a completion may have; one without a limit ends with the model's context."""
        left = self._max_model_len - len(request.token_ids)
        wanted = request.sampling.get("max_tokens")
        return left if wanted is None else min(wanted, left)

    def _key(self, request: Request) -> str:
        """What all requests of a batch share.

        Their room too, or a long one would cut those beside it; and their length, where padding would be taken for
        words that are not to be repeated.
        """
        sampling = sorted(request.sampling.items())
        length = len(request.token_ids) if request.sampling.get("repetition_penalty", 1.0) != 1.0 else None
        return repr((sampling, tuple(request.stop), tuple(request.stop_token_ids), self._room(request), length))

    def _options(self, request: Request) -> tuple[dict[str, Any], set[int]]:
        sampling = request.sampling
        options = {_SAMPLING[name]: value for name, value in sampling.items() if name in _SAMPLING}
        options["max_new_tokens"] = self._room(request)
        options["do_sample"] = options.get("temperature", 1.0) > 0
        if not options["do_sample"]:
            options = {
                name: options[name] for name in options if name not in ("temperature", "top_p", "top_k", "min_p")
            }
        if options.get("top_k", 0) <= 0:
            options["top_k"] = 0  # transformers' own default is 50
        if stops := _stop_texts(request):
            options["stop_strings"] = stops
        model_ends = self._model.generation_config.eos_token_id
        ends = {*(model_ends if isinstance(model_ends, list) else [model_ends]), self._tokenizer.eos_token_id}
        ends |= {*(sampling.get("stop_token_ids") or ()), *request.stop_token_ids}
        return options, {end for end in ends if end is not None}

    def _completion(self, request: Request, answer: list[int], ends: set[int], pad: int) -> Completion:
        # One that has ended at a stop text is padded as long as others go on.
        stop_at = next((i for i, token in enumerate(answer) if token in ends or token == pad), len(answer))
        ids, ended = answer[:stop_at], answer[stop_at : stop_at + 1]
        text = self._tokenizer.decode(ids, skip_special_tokens=request.sampling.get("skip_special_tokens", True))
        stopped = bool(ended)
        for stop in _stop_texts(request):
            before, found, _ = text.partition(stop)
            if found:
                text, stopped = before, True
        output_tokens = len(ids) + sum(token in ends for token in ended)
        return Completion(text, "stop" if stopped else "length", len(request.token_ids), output_tokens)


def _stop_texts(request: Request) -> list[str]:
    stop = request.sampling.get("stop") or []
    return [*([stop] if isinstance(stop, str) else stop), *request.stop]
