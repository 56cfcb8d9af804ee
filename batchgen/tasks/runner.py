"""Runs one task on one row: distilabel's prompts and parsing, our engine, and guards around both."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import PrivateAttr

from batchgen import bridge
from batchgen.engines.base import Completion, Engine, Message, Prompt, Request
from batchgen.errors import EngineError, RowRejected, Stopped
from batchgen.rows import random_seed
from batchgen.tasks import distilabel_fixes
from batchgen.tasks.distilabel_api import LLM, MagpieChatTemplateMixin, tasks
from batchgen.tasks.spec import Row, TaskParameters, TaskSpec, bare, is_required


@dataclass(slots=True)
class CallLog:
    """What the calls of one row through one step cost.

    Args:
        key: names the row, step and attempt; request ids are made from it.
        seed: of this row in this step.
        calls: engine calls so far.
        finish_reason: "length" where any completion was cut, else the last one's.
        known: the last prompt with its completion, for the next turn of the same conversation.
        logprobs: of the tokens of the last completion.
        notes: what happened that did not reject the row, a short code each.
        watch: told of every completion as it comes, long before the row has ended.
    """

    key: str
    seed: int
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    known: Prompt | None = None
    logprobs: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    watch: Callable[[Completion], None] = lambda completion: None

    def add(self, completion: Completion) -> None:
        """Counts one completion."""
        self.input_tokens += completion.input_tokens
        self.output_tokens += completion.output_tokens
        self.logprobs = list(completion.logprobs)
        if self.finish_reason != "length":
            self.finish_reason = completion.finish_reason
        self.watch(completion)


class EngineLLM(LLM, MagpieChatTemplateMixin):  # type: ignore[misc]  # distilabel is untyped
    """distilabel's LLM contract over an `Engine`, for rows that run under `bridge.run_row`.

    A completion that is empty, and a user turn that is cut off, end the row here: distilabel would store the next
    text in its place.
    """

    # Truthy, so that tasks leave their default structured output to `TaskRunner`: they would ask for other packages.
    structured_output: Any = "by batchgen"
    _engine: Any = PrivateAttr(None)
    _sampling: Any = PrivateAttr(None)

    @classmethod
    def over(cls, engine: Engine, sampling: Mapping[str, Any]) -> EngineLLM:
        """The LLM for one step."""
        # The template text is never used: user turns are opened by the engine's own chat format.
        llm = cls(magpie_pre_query_template="unused")
        llm._engine = engine
        llm._sampling = dict(sampling)
        return llm

    @property
    def model_name(self) -> str:
        """What the engine is called."""
        return str(self._engine.model_name)

    def generate(self, inputs: list[Any], num_generations: int = 1, **_: Any) -> list[dict[str, Any]]:
        """Completes every input `num_generations` times and waits for all of them."""
        log: CallLog = bridge.current_context()
        calls = [self._complete(log, *_split(item)) for item in inputs for _ in range(num_generations)]
        completions = [bridge.wait(calls[0])] if len(calls) == 1 else bridge.wait(_all(calls))
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

    async def _complete(self, log: CallLog, messages: list[Message], structure: Mapping[str, Any] | None) -> Completion:
        engine: Engine = self._engine
        opens_user_turn = self.use_magpie_template and (not messages or messages[-1]["role"] != "user")
        number, log.calls = log.calls, log.calls + 1
        prompt: Prompt | None = None
        stop: Sequence[str] = ()
        stop_token_ids: Sequence[int] = ()
        if engine.chat is not None and opens_user_turn:
            prompt, (stop, stop_token_ids) = engine.chat.user_prompt(messages, log.known), engine.chat.user_stop
        elif engine.chat is not None:
            prompt = engine.chat.prompt(messages, log.known)
        completion = await engine.generate(
            Request(
                token_ids=prompt.token_ids if prompt else (),
                sampling={**self._sampling, "structured_outputs": structure} if structure else self._sampling,
                seed=random_seed(log.seed, number),
                stop=stop,
                stop_token_ids=stop_token_ids,
                key=f"{log.key}-{number}",
                messages=messages,
            )
        )
        log.add(completion)
        if engine.chat is not None and prompt is not None:
            log.known = engine.chat.continued(prompt, completion)
        if not completion.text.strip():
            raise RowRejected("empty_completion")
        if opens_user_turn:
            if completion.finish_reason == "length":
                raise RowRejected("truncated_instruction")
            # Models end a user turn with the white space that their template has before its end.
            return replace(completion, text=completion.text.strip())
        return completion


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
    return wanted


async def _all(calls: list[Any]) -> list[Completion]:
    return list(await asyncio.gather(*calls))


class TaskRunner:
    """One step's task, shared by all rows of a worker.

    Args:
        name: of the step, for distilabel's metadata.
        spec: of the task.
        parameters: as the job set them.
        input_mappings: task input to column, where they differ.
        output_mappings: task output to column, where they differ.
        engine: started or not; used only while rows run.
        sampling: vLLM's SamplingParams by name.
        logprobs: whether a row gets the log-probabilities of its completion's tokens.
    """

    def __init__(
        self,
        name: str,
        spec: TaskSpec,
        parameters: TaskParameters,
        input_mappings: Mapping[str, str],
        output_mappings: Mapping[str, str],
        engine: Engine,
        sampling: Mapping[str, Any],
        logprobs: bool = False,
    ) -> None:
        self.spec = spec
        self.parameters = parameters
        self._kinds = dict(spec.inputs(parameters))
        self._columns = {task_input: input_mappings.get(task_input, task_input) for task_input in self._kinds}
        self._outputs = dict(spec.outputs(parameters))
        self._mappings = output_mappings
        self._logprobs = logprobs
        self._task: Any = _build(name, spec, parameters, engine, sampling) if spec.distilabel is not None else None

    async def run(self, row: Row, log: CallLog) -> Row:
        """The columns that the task adds to a row.

        Raises:
            RowRejected: the row cannot be completed.
            EngineError: the engine is gone; nobody knows about the row.
        """
        try:
            inputs = self._inputs(row)
            if self._task is None:
                finished = inputs
            else:
                finished = await bridge.run_row(lambda: self._process(inputs), log, log.seed)
            finished = self.spec.finish(finished, self.parameters, log.notes)
            if any(is_required(kind) and finished.get(name) is None for name, kind in self._outputs.items()):
                raise RowRejected("invalid_output")
            added = {name: fitted(finished.get(name), kind) for name, kind in self._outputs.items()}
        except (RowRejected, EngineError, Stopped, asyncio.CancelledError):
            raise
        except Exception as error:
            # Texts of exceptions may quote prompts; a reason never does.
            raise RowRejected(f"task_error:{type(error).__name__}") from error
        if self._logprobs:
            added["logprobs"] = log.logprobs
        return {self._mappings.get(name, name): value for name, value in added.items()}

    def _inputs(self, row: Row) -> Row:
        """What the task reads of a row: a copy, which it may change."""
        inputs: Row = {}
        for task_input, kind in self._kinds.items():
            value = row.get(self._columns[task_input])
            if value is None:
                if is_required(kind):
                    raise RowRejected(f"missing_input:{self._columns[task_input]}")
                continue
            if bare(kind) == "conversation":
                value = _conversation(value)
            inputs[task_input] = copy.deepcopy(value)
        texts = [inputs[name] for name, kind in self._kinds.items() if kind == "text"]
        if texts and not any(text.strip() for text in texts):
            # A model answers an empty prompt with whatever comes to it. Where one of several is empty it may be meant.
            raise RowRejected("empty_input")
        return inputs

    def _process(self, inputs: Row) -> Row:
        if self.spec.generator:
            ((batch, _),) = self._task.process()
        else:
            (batch,) = self._task.process([inputs])
        (finished,) = batch
        return dict(finished)


def _build(name: str, spec: TaskSpec, parameters: TaskParameters, engine: Engine, sampling: Mapping[str, Any]) -> Any:
    """distilabel's task, over our engine."""
    named: Any = spec.distilabel
    if isinstance(named, str):
        named = getattr(distilabel_fixes, named, None) or getattr(tasks, named)
    if spec.stop:
        given = sampling.get("stop") or []
        sampling = {**sampling, "stop": [*([given] if isinstance(given, str) else given), *spec.stop]}
    llm = EngineLLM.over(engine, sampling)
    task: Any = named(name=name, llm=llm, add_raw_input=False, add_raw_output=False, **parameters.for_distilabel())
    task.load()
    if task.use_default_structured_output and (schema := task.get_structured_output()):
        llm._sampling["structured_outputs"] = {"json": schema}
    return task


def _conversation(value: Sequence[Mapping[str, Any] | None]) -> list[Message]:
    """Messages as a task reads them: role and text.

    Raises:
        RowRejected: one of them lacks either, for which a chat template would write "None".
    """
    messages: list[Message] = []
    for message in value:
        role, content = (message or {}).get("role"), (message or {}).get("content")
        if not (isinstance(role, str) and isinstance(content, str)):
            raise RowRejected("invalid_conversation")
        messages.append({"role": role, "content": content})
    return messages


def fitted(value: Any, kind: str) -> Any:
    """A value as its column can hold it.

    Raises:
        RowRejected: it cannot.
    """
    kind = bare(kind)
    if value is None:
        return None
    if kind.startswith("list["):
        if isinstance(value, list):
            return [fitted(item, kind[5:-1]) for item in value]
    elif kind == "number":
        if isinstance(value, int | float):
            return float(value)
    elif kind == "boolean":
        if isinstance(value, bool):
            return value
    elif kind == "conversation":
        if isinstance(value, list):
            return [{name: fitted(message[name], "text") for name in ("role", "content")} for message in value]
    elif isinstance(value, str):
        return value
    raise RowRejected("invalid_output")
