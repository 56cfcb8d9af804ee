"""Runs one task on one row: distilabel's prompts and parsing, our engine, and guards around both."""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from batchgen import bridge
from batchgen.engines.base import Engine, Message
from batchgen.errors import EngineError, EngineStartError, RowRejected, Stopped, own_place_of
from batchgen.progress import FILTERED
from batchgen.rows import as_message
from batchgen.tasks import completions
from batchgen.tasks.fixes import task_class
from batchgen.tasks.llm import CallLog, EngineLLM
from batchgen.tasks.plainstep import PlainStep
from batchgen.tasks.scorer import Scorer
from batchgen.tasks.spec import PRINTABLE, Reasoning, Row, TaskParameters, TaskSpec, bare, is_required

_TEXT_LISTS = ("list[text]", "list[list[text]]")


class TaskRunner:
    """One step's task, shared by all rows of a worker.

    Args:
        name: of the step, for distilabel's metadata.
        spec: of the task.
        parameters: as the job set them.
        input_mappings: task input to column, where they differ; None: the task does not get the input.
        output_mappings: task output to column, where they differ.
        engine: started or not; used only while rows run.
        sampling: vLLM's SamplingParams by name.
        logprobs: whether a row gets the log-probabilities of its completion's tokens.
        reasoning: what becomes of the thoughts in a completion.
        end_cut_rows: end a row whose text was cut, before it makes a further call; a class of the user's own decides
            itself.
    """

    def __init__(
        self,
        name: str,
        spec: TaskSpec,
        parameters: TaskParameters,
        input_mappings: Mapping[str, str | None],
        output_mappings: Mapping[str, str],
        engine: Engine,
        sampling: Mapping[str, Any],
        logprobs: bool = False,
        reasoning: Reasoning = "drop",
        end_cut_rows: bool = False,
    ) -> None:
        self.spec = spec
        self.parameters = parameters
        self._kinds = dict(spec.inputs(parameters))
        columns = {task_input: input_mappings.get(task_input, task_input) for task_input in self._kinds}
        self._columns = {task_input: column for task_input, column in columns.items() if column is not None}
        self._outputs = dict(spec.outputs(parameters))
        self._mappings = output_mappings
        self._logprobs = logprobs
        self._reasoning = reasoning
        self._chooses = spec.chooses(parameters)
        self.gate = spec.gate(parameters) if spec.gate is not None else None
        llm = EngineLLM.over(engine, sampling, reasoning, end_cut_rows and not isinstance(spec.distilabel, type))
        try:
            self._task = _set_up(name, spec, parameters, llm, engine)
        except Exception as error:
            place = own_place_of(error)
            why = f"{type(error).__name__}: {' '.join(str(error).split())}" + (f" ({place})" if place else "")
            raise EngineStartError(f"{name} cannot be set up: {why}", final=True) from error

    async def run(self, row: Row, log: CallLog) -> list[Row]:
        """The columns that the task adds to a row; to each of them, where it makes several of one.

        Raises:
            RowRejected: the row cannot be completed.
            EngineError: the engine is gone; nobody knows about the row.
        """
        try:
            inputs = self._inputs(row)
            if self.gate is not None:
                (text,) = inputs.values()
                if (reason := self.gate.reason(text, log.seed)) is not None:
                    raise RowRejected(reason)
            if isinstance(self._task, Scorer):
                made = await self._task.run(inputs, log)
            elif isinstance(self._task, PlainStep):
                made = await self._task.run(inputs, log, log.seed if self._chooses else None)
            else:
                made = [self._uncalled(inputs, log)] if self._task is None else await self._called(inputs, log)
            finished = [self.spec.finish(each, self.parameters, log.notes) for each in made]
            added = [self._fitted(each) for each in finished]
            if log.cuts and await self._reads_past_cut(inputs, log):
                log.set_aside()
        except RowRejected as rejection:
            if rejection.reason == "invalid_output" and log.finish_reason == "length":
                # Half a JSON object tells nothing of the model: `max_tokens` is what is to be looked at.
                raise RowRejected("truncated_output") from None
            raise
        except (EngineError, Stopped, asyncio.CancelledError):
            raise
        except Exception as error:
            # Texts of exceptions may quote prompts; a reason never does.
            place = own_place_of(error)
            raise RowRejected(f"task_error:{type(error).__name__}" + (f" ({place})" if place else "")) from error
        for each in added:
            if self._logprobs:
                each["logprobs"] = log.logprobs
            if self._reasoning == "column":
                each["reasoning"] = log.reasoning
        return [{self._mappings.get(name, name): value for name, value in each.items()} for each in added]

    def _fitted(self, finished: Row) -> Row:
        """The outputs of a finished row, as their columns can hold them."""
        if any(is_required(kind) and finished.get(name) is None for name, kind in self._outputs.items()):
            raise RowRejected("invalid_output")
        return {name: fitted(finished.get(name), kind) for name, kind in self._outputs.items()}

    def _inputs(self, row: Row) -> Row:
        """What the task reads of a row: a copy, which it may change."""
        inputs: Row = {}
        # What writes no prompt may make something of a text that is empty, or of none.
        prompts = not isinstance(self._task, PlainStep)
        for task_input, column in self._columns.items():
            value, kind = row.get(column), self._kinds[task_input]
            if value is None:
                if is_required(kind):
                    raise RowRejected(f"missing_input:{column}")
                if isinstance(self.spec.distilabel, type) and column in row:
                    inputs[task_input] = None
                continue
            if bare(kind) == "conversation":
                value = _conversation(value)
            elif prompts and self._task is not None and bare(kind) in _TEXT_LISTS:
                _check_texts(value, is_required(kind), column)
            inputs[task_input] = copy.deepcopy(value)
        texts = [inputs[name] for name, kind in self._kinds.items() if kind in ("text", PRINTABLE)]
        if prompts and texts and not any(str(text).strip() for text in texts):
            # A model answers an empty prompt with whatever comes to it. Where one of several is empty it may be meant.
            raise RowRejected("empty_input")
        return inputs

    def _uncalled(self, inputs: Row, log: CallLog) -> Row:
        return inputs if self.spec.draw is None else self.spec.draw(self.parameters, log.seed)

    async def _called(self, inputs: Row, log: CallLog) -> list[Row]:
        """What the task makes of a row, unless an engine left one of its calls without an answer.

        Then nothing counts that the task says, which may be a user's own and take every exception for a bad answer.
        """
        try:
            finished = await bridge.run_row(lambda: self._process(inputs), log, log.seed if self._chooses else None)
        except Exception:
            if log.lost is None:
                raise
        if log.lost is not None:
            raise log.lost
        return finished

    async def _reads_past_cut(self, inputs: Row, log: CallLog) -> bool:
        """Whether the task reads the same of a completion that was cut at `max_tokens`, however it might have gone on.

        A judge may go on about a verdict that is there; an answer is never known to be whole.
        """
        if not self.spec.single_call or isinstance(self._task, PlainStep):
            return False
        noted = list(log.notes)
        texts = (log.read or "", completions.continued(log.read or ""))
        read = [await bridge.run_row(partial(self._task.format_output, text, inputs), log, None) for text in texts]
        log.notes[:] = noted
        return bool(read[0] == read[1])

    def _process(self, inputs: Row) -> list[Row]:
        if self.spec.generator:
            ((made, _),) = self._task.process()
        else:
            made = [row for rows in self._task.process([inputs]) for row in rows]
        if not made:
            raise RowRejected(FILTERED)
        return [dict(row) for row in made]


def _set_up(name: str, spec: TaskSpec, parameters: TaskParameters, llm: EngineLLM, engine: Engine) -> Any:
    """What runs a task's rows; None for an entry of the table that needs no class."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", name)  # distilabel takes no others
    if (conversations := spec.scored) is not None:
        return Scorer(lambda row: conversations(row, parameters), engine)
    if spec.distilabel is None:
        return None
    return _build(name, spec, parameters, llm) if spec.calls_model else PlainStep(name, spec, parameters)


def _build(name: str, spec: TaskSpec, parameters: TaskParameters, llm: EngineLLM) -> Any:
    """distilabel's task, over our engine."""
    named: Any = spec.distilabel
    if isinstance(named, str):
        named = task_class(named)
    if spec.stop:
        given = llm.sampling.get("stop") or []
        llm.sampling["stop"] = [*([given] if isinstance(given, str) else given), *spec.stop]
    # A step of the user's own that has an LLM, and is no task, has no such fields.
    left_out = {field: False for field in ("add_raw_input", "add_raw_output") if field in named.model_fields}
    task: Any = named(name=name, llm=llm, **left_out, **parameters.for_distilabel())
    task.load()
    if getattr(task, "use_default_structured_output", False) and (schema := task.get_structured_output()):
        llm.sampling["structured_outputs"] = {"json": schema}
    return task


def _check_texts(value: Sequence[Any], required: bool, column: str) -> None:
    """Refuses a list of texts, or of such lists, that a prompt could not show: a null would stand there as "None".

    Raises:
        RowRejected: says why.
    """
    if required and not value:
        raise RowRejected("empty_input")
    if any(item is None or (not isinstance(item, str) and None in item) for item in value):
        raise RowRejected(f"missing_input:{column}")


def _conversation(value: Sequence[Mapping[str, Any] | None]) -> list[Message]:
    """Messages as a task reads them: role and text.

    Raises:
        RowRejected: one of them lacks either, for which a chat template would write "None".
    """
    messages: list[Message] = []
    for message in value:
        if (read := as_message(message)) is None:
            raise RowRejected("invalid_conversation")
        messages.append(read)
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
            # In a template after it, 3 is to be "3". Beyond, not every whole number has a float of its own.
            return value if type(value) is int and abs(value) <= 2**53 else float(value)
    elif kind == "boolean":
        if isinstance(value, bool):
            return value
    elif kind == "conversation":
        if isinstance(value, list):
            return [{name: fitted(message[name], "text") for name in ("role", "content")} for message in value]
    elif isinstance(value, str):
        return value
    raise RowRejected("invalid_output")
