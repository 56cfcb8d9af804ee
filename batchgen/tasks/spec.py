"""What a task is to the rest of batchgen: parameters, columns, what becomes of a row. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

from batchgen.conditions import Conditions
from batchgen.errors import JobError

Row = dict[str, Any]
Conversation = Sequence[Mapping[str, str]]
OPTIONAL = "?"
# What a parameter `system_prompt` is where distilabel's task has one.
OWN_SYSTEM_PROMPT = "in place of the task's own"
# The kind of an input that goes along as it is, whatever its column holds.
ANY = "any"
# The kind of an input that is written into a text.
PRINTABLE = "printable"
# What becomes of a reasoning model's thoughts: left out, left in the text, or put into a column of their own.
Reasoning = Literal["drop", "keep", "column"]


class TaskParameters(BaseModel):
    """Base of a task's parameters, as a job may set them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def for_distilabel(self) -> dict[str, Any]:
        """The parameters that were set, as the distilabel task takes them."""
        return self.model_dump(exclude_none=True)


def structured_output(by_default: bool = False) -> Any:
    """The parameter `use_default_structured_output`."""
    return Field(by_default, description="holds completions to the form that the task reads, with structured outputs")


class Gate(Protocol):
    """What decides whether a row goes on; one for every engine, so that it may know the rows before."""

    def reason(self, text: str, row: int) -> str | None:
        """Why a row ends at the gate, a short code; None where it goes on.

        Args:
            text: of the gate's input.
            row: a number that is the row's own, at every attempt.
        """

    def describe(self, texts: Sequence[str]) -> bytes:
        """What another gate of this kind has to know of texts, to end rows that bring them again."""

    def learn(self, records: bytes) -> None:
        """Takes in texts of rows that ran elsewhere: what `describe` gave, once or several times, in one piece."""


class Chat(NamedTuple):
    """A conversation of one turn: what its parts are in, be it columns, or inputs and outputs of a task.

    Args:
        prompt: a text, or a conversation that the answer continues.
        answer: None where there is none.
        system: the system prompt of a row; None where rows have none of their own.
        revised: the answer that this one was made of, whose system prompt it has.
        regenerated: whether the answer takes the place of what follows the user's last message in the prompt.
    """

    prompt: str
    answer: str | None = None
    system: str | None = None
    revised: str | None = None
    regenerated: bool = False


def _same_row(row: Row, parameters: Any, notes: list[str]) -> Row:
    return row


def always(parameters: Any) -> bool:
    """Of a task that makes random choices whatever its parameters are, or may."""
    return True


def _never(parameters: Any) -> bool:
    return False


def _no_conditions(parameters: Any) -> Conditions:
    return {}


def _no_chat(parameters: Any) -> Chat | None:
    return None


@dataclass(frozen=True)
class TaskSpec:
    """One entry of the table.

    Columns are described by kinds, see `rows.arrow_type`; one whose kind ends in `?` may be absent or null.

    Args:
        summary: what it does, in a line.
        distilabel: class name in `distilabel.steps.tasks`, or a class of the user's own; None for an entry whose
            `finish` makes the outputs out of the inputs or ends rows, or whose `gate` or `draw` does.
        parameters: what a job may set.
        inputs: columns that it reads, name to kind, for given parameters.
        outputs: columns that it writes, name to kind, for given parameters.
        calls: engine calls a row, one after the other unless it says so; a formula over the parameters. "0" for an
            entry that uses no model.
        chat: those of its inputs and outputs that make a conversation, as a list of prompts does once it is spread.
        finish: guards and normalises a finished row; may add notes that are kept with the row; raises `RowRejected`.
        paper: arXiv number of where it comes from.
        user_turns: whether it has the model write user turns, so that the chat template must allow that.
        single_call: whether a row is one engine call, so that its tokens' log-probabilities mean something.
        plain: whether its prompt is one text that a base model goes on from, so that it needs no chat template.
        stop: texts at which its completions end, besides those of the job.
        generator: whether distilabel's class makes its prompts without any input.
        chooses: whether it draws from `random` or numpy's global generator, for given parameters. Seeding both for the
            row came to 18 of the 75 us that a call took here, besides the engine's own.
        common: outputs that all generations of a row have in common, so that a group of them has no list of those.
        groups: whether its inputs are alternatives, none of which is a row's answer from then on.
        differing: its input list that has to hold two different texts: a row without them is rejected as
            `no_preference`.
        gate: of an entry that reads one text and writes nothing; made once for every engine.
        draw: of an entry that makes its outputs by chance: out of its parameters and the row's seed.
        keep: of an entry that ends rows which do not meet conditions: those, by its inputs.
        scored: of an entry whose model is a reward model: the conversations of a row that it scores, out of the inputs
            and parameters. Its `finish` gets the scores, in their order, as `scores`.
        threads: on which rows of a class that uses no model run beside the engine's requests; 0: between them.
        example: parameters with which the columns are listed, where some have no default.
    """

    summary: str
    distilabel: str | type | None
    parameters: type[TaskParameters]
    inputs: Callable[[Any], Mapping[str, str]]
    outputs: Callable[[Any], Mapping[str, str]]
    calls: str = "1"
    chat: Callable[[Any], Chat | None] = _no_chat
    finish: Callable[[Row, Any, list[str]], Row] = field(default=_same_row)
    paper: str | None = None
    user_turns: bool = False
    single_call: bool = True
    plain: bool = False
    stop: tuple[str, ...] = ()
    generator: bool = False
    chooses: Callable[[Any], bool] = _never
    common: tuple[str, ...] = ()
    groups: bool = False
    differing: str | None = None
    gate: Callable[[Any], Gate] | None = None
    draw: Callable[[Any, int], Row] | None = None
    keep: Callable[[Any], Conditions] = _no_conditions
    scored: Callable[[Row, Any], Sequence[Conversation]] | None = None
    threads: int = 0
    example: Mapping[str, Any] = field(default_factory=dict)

    @property
    def calls_model(self) -> bool:
        """Whether it uses a model at all."""
        return self.calls != "0"

    @property
    def generates(self) -> bool:
        """Whether a model writes something for it."""
        return self.calls_model and self.scored is None

    @property
    def may_spread(self) -> bool:
        """Whether it may make several rows of one, as no entry of the table does."""
        return isinstance(self.distilabel, type)


def columns(**kinds: str) -> Callable[[Any], Mapping[str, str]]:
    """Inputs or outputs that do not depend on the parameters."""
    return lambda parameters: kinds


def are_alike(texts: Sequence[str | None]) -> bool:
    """Whether no two of some texts differ in more than the white space around them; an empty one is none."""
    return len({text.strip() for text in texts if text}) < 2


class AnyParameters(TaskParameters):
    """Those of a user's own task, which checks them itself."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    def for_distilabel(self) -> dict[str, Any]:
        """The parameters that were set; null is a value like any other to a class of the user's own."""
        return self.model_dump()


def own_task(
    task: type, inputs: Mapping[str, str], outputs: Mapping[str, str], summary: str = "", threads: int = 0
) -> TaskSpec:
    """An entry for a user's own distilabel task or step, for `run(..., tasks={name: entry})`.

    Args:
        task: a class that can be pickled: a subclass of distilabel's `Task`, or of its `Step` (which `@step` makes of a
            function). It sees one row at a time, and makes one row of it, or several, or none.
        inputs: columns that it reads, name to kind (`text`, `number`, `boolean`, `conversation`, `list[...]`), with a
            `?` behind it where the column may be absent or null.
        outputs: columns that it writes, name to kind, with a `?` where it may be null.
        summary: what it does, in a line; by default the first of the class's docstring.
        threads: rows that a `Step` works on at once beside every engine, each with an instance of its own: for one that
            waits for a sandbox or a server. By default it runs between the engine's requests, one row at a time; what
            takes long there holds them up, but its random choices are the row's own.

    Raises:
        JobError: it is no such class, or there is no such kind; threads for a task, which runs where its requests do,
            or fewer than none.
    """
    _check_class(task)
    _check_kinds(f"{task.__name__}: inputs", inputs, also=ANY)
    _check_kinds(f"{task.__name__}: outputs", outputs)
    calls_model = "llm" in getattr(task, "model_fields", {})
    if not isinstance(threads, int) or threads < 0 or (threads and calls_model):
        legal = "it calls a model, and runs where its requests do" if calls_model else "a whole number of 0 or more"
        raise JobError(f"{task.__name__}: threads={threads!r}: {legal}")
    return TaskSpec(
        summary or (task.__doc__ or task.__name__).strip().splitlines()[0],
        task,
        AnyParameters,
        inputs=lambda parameters: inputs,
        outputs=lambda parameters: outputs,
        calls="?" if calls_model else "0",
        single_call=False,
        chooses=always,
        threads=threads,
    )


class _Elsewhere:
    """Stands for a class that only the program has which ran it."""


def declared(task: TaskSpec, parameters: Any) -> dict[str, Any]:
    """What a run keeps of a user's own task: its columns, without its code."""
    return {"inputs": dict(task.inputs(parameters)), "outputs": dict(task.outputs(parameters)), "calls": task.calls}


def as_declared(kept: Mapping[str, Any]) -> TaskSpec:
    """The entry of a task of which `declared` was kept: for what is done with its columns, not to run it."""
    return TaskSpec(
        "",
        _Elsewhere,
        AnyParameters,
        inputs=lambda parameters: kept["inputs"],
        outputs=lambda parameters: kept["outputs"],
        calls=kept["calls"],
        single_call=False,
        chooses=always,
    )


def _check_class(task: Any) -> None:
    if not isinstance(task, type) or all(base.__module__.partition(".")[0] != "distilabel" for base in task.__mro__):
        got = getattr(task, "__name__", f"an object of type {type(task).__name__}")
        legal = "a subclass of distilabel's Task or Step (which @step makes of a function)"
        raise JobError(f"own_task: expected {legal}, got {got}")
    if odd := {"GeneratorStep", "GlobalStep"} & {base.__name__ for base in task.__mro__}:
        raise JobError(f"own_task: {task.__name__} is a {odd.pop()}; a task or step sees one row at a time")


def _check_kinds(where: str, kinds: Any, also: str = "") -> None:
    from batchgen.rows import KINDS, is_kind  # with Arrow, which most of those who look at the table do not need

    if not isinstance(kinds, Mapping):
        raise JobError(f"{where}: expected a mapping of columns to kinds, got {type(kinds).__name__}")
    for column, kind in kinds.items():
        if not isinstance(kind, str) or not (is_kind(bare(kind)) or bare(kind) == also):
            raise JobError(f"{where}: {column!r}: expected {KINDS}, got {kind!r}")


def check_own_tasks(tasks: Any) -> None:
    """Checks the entries of a user's own tasks.

    Raises:
        JobError: they are none.
    """
    if not isinstance(tasks, Mapping):
        raise JobError(f"tasks: expected a mapping of names to what own_task gives, got {type(tasks).__name__}")
    for name, entry in tasks.items():
        if not isinstance(entry, TaskSpec):
            got = entry.__name__ if isinstance(entry, type) else type(entry).__name__
            raise JobError(f"tasks[{name!r}]: expected what own_task(class, inputs, outputs) gives, got {got}")


def is_required(kind: str) -> bool:
    """Whether a column must be there."""
    return not kind.endswith(OPTIONAL)


def takes(kind: str, column: str) -> bool:
    """Whether an input of a kind, without its mark, can read a column of another."""
    return kind in (ANY, column) or (kind == PRINTABLE and column in ("text", "number", "boolean"))


def bare(kind: str) -> str:
    """A kind without its mark."""
    return kind.removesuffix(OPTIONAL)
