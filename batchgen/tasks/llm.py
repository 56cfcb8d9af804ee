"""distilabel's LLM contract over an engine, and what the calls of a row cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import PrivateAttr

from batchgen import bridge
from batchgen.engines.base import Completion, Engine, Message, Prompt, Request
from batchgen.engines.reasoning import THINK, ReasoningMarks
from batchgen.errors import EngineError, RowRejected
from batchgen.progress import TRUNCATED, TRUNCATED_REASONING
from batchgen.rows import random_seed
from batchgen.tasks import completions
from batchgen.tasks.distilabel_api import LLM, MagpieChatTemplateMixin
from batchgen.tasks.spec import Reasoning

Result = TypeVar("Result")


@dataclass(slots=True)
class CallLog:
    """What the calls of one row through one step cost.

    Args:
        key: names the row, step and attempt; request ids are made from it.
        seed: of this row in this step.
        priority: gives that of a request which is made now.
        calls: engine calls so far.
        ended: the finish reason of the last completion.
        cuts: completions that were cut at `max_tokens`, less those of which nothing was used that the cut touched.
        last_cut: of the completions that came together last, which were cut.
        read: the last completion, as its task read it.
        known: the last prompt with its completion, for the next turn of the same conversation.
        logprobs: of the tokens of the last completion.
        reasoning: the thoughts of the last completion; None where it had none.
        last: the last completion, as the model wrote it.
        lost: why a call has no answer, where that is no fault of the row.
        notes: what happened that did not reject the row, a short code each.
        watch: told of every completion as it comes, long before the row has ended.
    """

    key: str
    seed: int
    priority: Callable[[], int] = lambda: 0
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    ended: str | None = None
    cuts: int = 0
    last_cut: Sequence[bool] = ()
    read: str | None = None
    known: Prompt | None = None
    logprobs: list[float] = field(default_factory=list)
    reasoning: str | None = None
    last: str | None = None
    lost: EngineError | None = None
    notes: list[str] = field(default_factory=list)
    watch: Callable[[Completion], None] = lambda completion: None

    def add(self, completion: Completion) -> None:
        """Takes in one completion."""
        self.logprobs = list(completion.logprobs)
        self.last = completion.text or completion.reasoning or ""
        self.ended = completion.finish_reason
        self.cuts += completion.finish_reason == "length"
        self.count(completion)

    def count(self, completion: Completion) -> None:
        """Counts what one completion cost, whatever is in it."""
        self.input_tokens += completion.input_tokens
        self.output_tokens += completion.output_tokens
        self.watch(completion)

    @property
    def finish_reason(self) -> str | None:
        """The last completion's; "length" where the row has something of one that was cut."""
        return "length" if self.cuts else self.ended

    def set_aside(self) -> None:
        """One of the completions that were cut has nothing in the row that the cut touched."""
        self.cuts -= 1
        self.ended = "stop"


@dataclass(frozen=True, slots=True)
class _Given:
    """What the calls of a step have in common; in one place, as pydantic takes a microsecond to find a private one."""

    engine: Engine
    sampling: dict[str, Any]
    reasoning: Reasoning
    end_cut_rows: bool


class EngineLLM(LLM, MagpieChatTemplateMixin):  # type: ignore[misc]  # distilabel is untyped
    """distilabel's LLM contract over an `Engine`, for rows that run under `bridge.run_row`.

    A completion that is empty, and a user turn that is cut off, end the row here: distilabel would store the next
    text in its place.
    """

    # Truthy, so that tasks leave their default structured output to `TaskRunner`: they would ask for other packages.
    structured_output: Any = "by batchgen"
    _given: Any = PrivateAttr(None)

    @classmethod
    def over(
        cls, engine: Engine, sampling: Mapping[str, Any], reasoning: Reasoning = "drop", end_cut_rows: bool = False
    ) -> EngineLLM:
        """The LLM for one step.

        Args:
            end_cut_rows: end a row that has something of a completion that was cut, before it makes a further call.
        """
        # The template text is never used: user turns are opened by the engine's own chat format.
        llm = cls(magpie_pre_query_template="unused")
        llm._given = _Given(engine, dict(sampling), reasoning, end_cut_rows)
        return llm

    @property
    def sampling(self) -> dict[str, Any]:
        """vLLM's SamplingParams of every call, which may be added to before the first one."""
        given: _Given = self._given
        return given.sampling

    @property
    def ends_cut_rows(self) -> bool:
        """Whether a row ends that has something of a completion that was cut."""
        given: _Given = self._given
        return given.end_cut_rows

    @property
    def model_name(self) -> str:
        """What the engine is called."""
        return str(self._given.engine.model_name)

    def generate(self, inputs: list[Any], num_generations: int = 1, **_: Any) -> list[dict[str, Any]]:
        """Completes every input `num_generations` times and waits for all of them."""
        log: CallLog = bridge.current_context()
        given: _Given = self._given
        if given.end_cut_rows and log.cuts:
            raise RowRejected(TRUNCATED)
        calls = [self._complete(given, log, *_split(item)) for item in inputs for _ in range(num_generations)]
        try:
            completions = [bridge.wait(calls[0])] if len(calls) == 1 else bridge.wait(all_of(calls))
        except EngineError as error:
            log.lost = error
            raise
        log.last_cut = [completion.finish_reason == "length" for completion in completions]
        log.read = completions[-1].text if completions else None
        return [
            {
                "generations": [c.text for c in group],
                "statistics": {
                    "input_tokens": [c.input_tokens for c in group],
                    "output_tokens": [c.output_tokens for c in group],
                },
            }
            for start in range(0, len(completions), num_generations)
            for group in [completions[start : start + num_generations]]
        ]

    async def _complete(
        self, given: _Given, log: CallLog, messages: list[Message], structure: Mapping[str, Any] | None
    ) -> Completion:
        engine = given.engine
        opens_user_turn = self.use_magpie_template and (not messages or messages[-1]["role"] != "user")
        number, log.calls = log.calls, log.calls + 1
        prompt: Prompt | None = None
        stop: Sequence[str] = ()
        stop_token_ids: Sequence[int] = ()
        if engine.chat is not None and opens_user_turn:
            prompt, (stop, stop_token_ids) = engine.chat.user_prompt(messages, log.known), engine.chat.user_stop
        elif engine.chat is not None:
            prompt = engine.chat.prompt(messages, log.known)
        marks = engine.chat.reasoning if engine.chat is not None else THINK
        sampling = {**given.sampling, "structured_outputs": structure} if structure else given.sampling
        if marks.special and not opens_user_turn:
            sampling = {**sampling, "skip_special_tokens": False}
        completion = await engine.generate(
            Request(
                token_ids=prompt.token_ids if prompt else (),
                sampling=sampling,
                seed=random_seed(log.seed, number),
                stop=stop,
                stop_token_ids=stop_token_ids,
                key=f"{log.key}-{number}",
                messages=messages,
                priority=log.priority(),
            )
        )
        log.add(completion)
        if completion.finish_reason == "repetition":
            raise RowRejected("repetitive_completion")
        if not opens_user_turn:
            wanted = sampling.get("structured_outputs") or {}
            completion = _answer(given, marks, prompt.text if prompt else None, completion, wanted, log)
        if engine.chat is not None and prompt is not None:
            log.known = engine.chat.continued(prompt, completion)
        if not completion.text.strip():
            raise RowRejected("empty_completion")
        if opens_user_turn:
            if completion.finish_reason == "length":
                raise RowRejected("truncated_instruction")
            # Models end a user turn with the white space that their template has before its end.
            return _with_text(completion, completion.text.strip())
        return completion


def _answer(
    given: _Given,
    marks: ReasoningMarks,
    prompt: str | None,
    completion: Completion,
    wanted: Mapping[str, Any],
    log: CallLog,
) -> Completion:
    """A completion as its task reads it: without the thoughts, unless they are to be kept."""
    cut = completion.finish_reason == "length"
    thoughts, answer = marks.split(prompt, completion.text, bool(wanted) and not cut)
    if thoughts is None and completion.reasoning is not None:
        thoughts, answer = completion.reasoning.strip(), completion.text.strip() or (None if cut else "")
    if (chat := given.engine.chat) is not None:
        answer = chat.unwrapped(answer) if answer is not None else None
        thoughts = chat.without_special(thoughts) if thoughts is not None and marks.special else thoughts
    log.reasoning = thoughts
    unfinished = thoughts is not None and answer is None and cut
    if thoughts is not None and not answer and not unfinished:
        raise RowRejected("empty_completion")
    if given.engine.chat is None and answer and not cut and not completions.keeps_to(wanted, answer):
        raise RowRejected("structure_ignored")
    text = answer or ""
    if thoughts is not None and given.reasoning == "keep":
        # As most models write them, whatever this one's marks are, and whether or not its template opens them.
        text = f"{THINK.start}\n{thoughts}\n" + (f"{THINK.end}\n\n{answer}" if answer is not None else "")
    elif thoughts is not None:
        if thoughts and given.reasoning == "drop" and "reasoning_dropped" not in log.notes:
            log.notes.append("reasoning_dropped")
        if unfinished:
            raise RowRejected(TRUNCATED_REASONING)
    return _with_text(completion, text, token_ids=())


def _with_text(completion: Completion, text: str, **changes: Any) -> Completion:
    """A completion with a text that is another one in few cases."""
    return completion if text == completion.text else replace(completion, text=text, **changes)


def _split(item: Any) -> tuple[list[Message], Mapping[str, Any] | None]:
    """(messages, structure) of an input, which is the messages alone in most tasks."""
    return (item[0], vllm_structure(item[1])) if isinstance(item, tuple) else (item, None)


def vllm_structure(wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """The structured outputs that a row asks for, as vLLM takes them.

    Args:
        wanted: `{"json": schema}`, `{"regex": text}` or `{"choice": [texts]}`, or distilabel's
            `{"format": "json" or "regex", "schema": ...}`.

    Raises:
        RowRejected: it is neither.
    """
    if "format" in wanted:
        wanted = {str(wanted["format"]): wanted.get("schema")}
    types = {"json": (dict, str), "regex": (str,), "choice": (list,)}
    if len(wanted) != 1 or not all(name in types and isinstance(value, types[name]) for name, value in wanted.items()):
        raise RowRejected("invalid_structured_output")
    if isinstance(schema := wanted.get("json"), str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            schema = None
        if not isinstance(schema, dict):
            raise RowRejected("invalid_structured_output")
        return {"json": schema}
    return wanted


async def all_of(calls: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """What all calls of a row give; where one rejects the row, nobody wants the others any more."""
    running = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*running))
    finally:
        for call in running:
            call.cancel()
