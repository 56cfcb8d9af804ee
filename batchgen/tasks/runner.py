"""Runs one task on one row: distilabel's prompts and parsing, our engine, and guards around both."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import PrivateAttr

from batchgen import bridge
from batchgen.engines.base import Completion, Engine, Message, Request
from batchgen.errors import EngineError, RowRejected, Stopped
from batchgen.rows import random_seed
from batchgen.tasks.distilabel_api import LLM, MagpieChatTemplateMixin, tasks
from batchgen.tasks.table import TASKS, Row, TaskParameters, TaskSpec

_CLASSES = {spec.distilabel: getattr(tasks, spec.distilabel) for spec in TASKS.values()}


@dataclass(slots=True)
class CallLog:
    """What the calls of one row through one step cost.

    Args:
        key: names the row, step and attempt; request ids are made from it.
        seed: of this row in this step.
        calls: engine calls so far.
        finish_reason: "length" where any completion was cut, else the last one's.
    """

    key: str
    seed: int
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None

    def add(self, completion: Completion) -> None:
        """Counts one completion."""
        self.input_tokens += completion.input_tokens
        self.output_tokens += completion.output_tokens
        if self.finish_reason != "length":
            self.finish_reason = completion.finish_reason


class EngineLLM(LLM, MagpieChatTemplateMixin):  # type: ignore[misc]  # distilabel is untyped
    """distilabel's LLM contract over an `Engine`, for rows that run under `bridge.run_row`.

    A completion that is empty, and a user turn that is cut off, end the row here: distilabel would store the next
    text in its place.
    """

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
        calls = [self._complete(log, messages) for messages in inputs for _ in range(num_generations)]
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

    async def _complete(self, log: CallLog, messages: list[Message]) -> Completion:
        engine: Engine = self._engine
        opens_user_turn = self.use_magpie_template and (not messages or messages[-1]["role"] != "user")
        number, log.calls = log.calls, log.calls + 1
        if opens_user_turn:
            token_ids, (stop, stop_token_ids) = engine.chat.user_prompt(messages), engine.chat.user_stop
        else:
            token_ids, stop, stop_token_ids = engine.chat.prompt(messages), (), ()
        completion = await engine.generate(
            Request(
                token_ids=token_ids,
                sampling=self._sampling,
                seed=random_seed(log.seed, number),
                stop=stop,
                stop_token_ids=stop_token_ids,
                key=f"{log.key}-{number}",
            )
        )
        log.add(completion)
        if not completion.text.strip():
            raise RowRejected("empty_completion")
        if opens_user_turn:
            if completion.finish_reason == "length":
                raise RowRejected("truncated_instruction")
            # Models end a user turn with the white space that their template has before its end.
            return Completion(
                completion.text.strip(),
                completion.finish_reason,
                completion.input_tokens,
                completion.output_tokens,
            )
        return completion


async def _all(calls: list[Any]) -> list[Completion]:
    return list(await asyncio.gather(*calls))


class TaskRunner:
    """One step's task, shared by all rows of a worker.

    Args:
        name: of the task, a key of `TASKS`.
        parameters: as the job set them.
        input_mappings: task input to column, where they differ.
        output_mappings: task output to column, where they differ.
        engine: started or not; used only while rows run.
        sampling: vLLM's SamplingParams by name.
    """

    def __init__(
        self,
        name: str,
        parameters: TaskParameters,
        input_mappings: Mapping[str, str],
        output_mappings: Mapping[str, str],
        engine: Engine,
        sampling: Mapping[str, Any],
    ) -> None:
        self.spec: TaskSpec = TASKS[name]
        self.parameters = parameters
        self._inputs = {task_input: input_mappings.get(task_input, task_input) for task_input in self.spec.inputs}
        self._outputs = {output: output_mappings.get(output, output) for output in self.spec.outputs(parameters)}
        self._task = _CLASSES[self.spec.distilabel](
            name=name,
            llm=EngineLLM.over(engine, sampling),
            add_raw_input=False,
            add_raw_output=False,
            **parameters.for_distilabel(),
        )
        self._task.load()

    async def run(self, row: Row, log: CallLog) -> Row:
        """The columns that the task adds to a row.

        Raises:
            RowRejected: the row cannot be completed.
            EngineDead: the engine is gone; nobody knows about the row.
        """
        inputs: Row = {}
        for task_input, column in self._inputs.items():
            value = row.get(column)
            if value is not None:
                inputs[task_input] = value
            elif self.spec.inputs[task_input]:
                raise RowRejected(f"missing_input:{column}")
        try:
            outputs = await bridge.run_row(lambda: list(self._task.process([inputs])), log, log.seed)
            (batch,) = outputs
            (finished,) = batch
            finished = self.spec.finish({name: finished[name] for name in finished}, self.parameters)
            missing = [name for name in self._outputs if finished.get(name) is None]
        except (RowRejected, EngineError, Stopped, asyncio.CancelledError):
            raise
        except Exception as error:
            # Texts of exceptions may quote prompts; a reason never does.
            raise RowRejected(f"task_error:{type(error).__name__}") from error
        if missing:
            raise RowRejected("invalid_output")
        return {column: finished[name] for name, column in self._outputs.items()}
