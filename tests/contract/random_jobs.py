"""Jobs at random, each from its seed: chains of the table's tasks, with everything that a step and a merge take."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from batchgen.engines.base import Completion, EngineSpec, Request
from batchgen.engines.chat import byte_chat
from batchgen.job import Job
from batchgen.tasks.spec import bare, is_required, takes
from batchgen.tasks.table import TASKS
from tests.task_examples import EXAMPLES

# Names and kinds of the columns that seed rows may have.
SEEDS = {
    "instruction": "text",
    "text": "text",
    "instructions": "list[text]",
    "generations": "list[text]",
    "score": "number",
    "flag": "boolean",
    "system_prompt": "text",
}
_WORDS = "sun moon star sea tree stone wind".split()
_ODD = (
    "",
    " \n ",
    "[]",
    "null",
    "```json\n{}\n```",
    "Rating: 3\nRationale: fine",
    "<think>hm</think>yes",
    "I'm sorry, no.",
    "a \x00 b",
)
_COUNTS: Mapping[str, tuple[int, int]] = {"n_turns": (1, 3), "num_evolutions": (1, 3)}
_SWITCHES = (
    "end_with_user",
    "keep_shorter",
    "only_instruction",
    "include_system_prompt",
    "store_evolutions",
    "generate_answers",
    "include_original_instruction",
    "include_original_response",
    "eliminate",
    "name_models",
)


class Maker:
    """Makes one job's tree. Some of them are refused, as are some that people write."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        # Those of a row so far, with their kinds.
        self._columns: dict[str, str] = {}

    def tree(self, output: Path) -> dict[str, Any]:
        """The whole job."""
        chance = self._random.random
        made: dict[str, Any] = {"name": "random", "seed": self._random.randrange(100), "model": {"path": "chaos"}}
        made |= {"source": self._source(), "output": str(output), "models": {"other": {"path": "chaos"}}}
        made["models"]["rewards"] = {"path": "chaos"}
        made["steps"] = self._steps(self._random.randint(1, 4))
        made["models"] = {name: made["models"][name] for step in made["steps"] if (name := step.get("model"))}
        made["merge"] = self._merge()
        return made | ({"shard_rows": self._random.randint(1, 4)} if chance() < 0.5 else {})

    def _source(self) -> dict[str, Any]:
        if self._random.random() < 0.2:
            return {"count": self._random.randint(1, 12)}
        names = ["instruction", *self._random.sample([*SEEDS][1:], self._random.randint(1, len(SEEDS) - 1))]
        self._columns = {name: SEEDS[name] for name in names}
        rows = [{name: self._value(SEEDS[name]) for name in names} for _ in range(self._random.randint(1, 12))]
        return {"rows": rows}

    def _value(self, kind: str) -> Any:
        if kind == "number":
            return float(self._random.randrange(5))
        if kind == "boolean":
            return self._random.random() < 0.5
        if kind == "list[text]":
            return [self._value("text") for _ in range(self._random.randrange(4))]
        return " ".join(self._random.choices(_WORDS, k=self._random.randrange(8)))

    def _steps(self, number: int) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = []
        while len(steps) < number:
            step = self._step(len(steps), others=any(TASKS[each["task"]].calls_model for each in steps))
            steps += [step] if step is not None else []
        return steps

    def _step(self, index: int, others: bool) -> dict[str, Any] | None:
        """A step over the columns so far; None where the task that was drawn finds too few of them.

        Args:
            others: whether it may run on another model, as one before it runs on the job's own.
        """
        name = self._random.choice([*TASKS])
        spec = TASKS[name]
        if len(self._of("text")) < {"group_columns": 2, "filter": 1}.get(name, 0):
            return None
        given = self._parameters(name)
        parameters = spec.parameters.model_validate(given)
        mappings = self._mappings(spec.inputs(parameters)) if name != "filter" else {}
        if mappings is None:
            return None
        outputs = {column: bare(kind) for column, kind in spec.outputs(parameters).items()}
        renamed = {each: f"{each}_{index}" for each in outputs if each in self._columns or self._random.random() < 0.3}
        step = {"task": name, **given, "input_mappings": mappings, "output_mappings": renamed}
        if spec.scored is not None:
            step |= {"model": "rewards"} if others else {}
        elif spec.calls_model:
            step |= self._options(spec.single_call, others)
        kinds = {renamed.get(each, each): kind for each, kind in outputs.items()}
        if step.get("group_generations"):
            kinds = {each: f"list[{kind}]" for each, kind in kinds.items()}
        self._columns |= kinds
        return step | self._explode(index)

    def _parameters(self, name: str) -> dict[str, Any]:
        chance = self._random.random
        given = {**TASKS[name].example, **EXAMPLES[name].parameters}
        if name == "group_columns":
            return {"columns": self._random.sample(self._of("text"), 2)}
        if name == "filter":
            return {"keep": {self._random.choice(self._of("text")): {"max_words": self._random.randint(3, 7)}}}
        fields = TASKS[name].parameters.model_fields
        if name == "reward_scorer":
            given["of"] = self._random.choice(["generation", "generations"])
        given |= {each: chance() < 0.5 for each in _SWITCHES if each in fields and chance() < 0.5}
        given |= {
            each: self._random.randint(*among) for each, among in _COUNTS.items() if each in fields and chance() < 0.5
        }
        if name == "magpie" and chance() < 0.5:
            prompts = ["Be kind.", ["Be kind.", "Be brief."], {"kind": ["Be kind.", 0.3], "brief": ["Be brief.", 0.7]}]
            given["system_prompt"] = self._random.choice(prompts)
        if name == "text_generation" and chance() < 0.3:
            given |= {"template": "Say {{ thing }}, {{ thing }}.", "keep_prompt": chance() < 0.5}
        if given.get("keep_shorter"):
            given |= {"n_turns": 2, "only_instruction": False}
        if name == "drop_duplicates" and chance() < 0.5:
            given["threshold"] = 0.7
        return given

    def _of(self, kind: str) -> list[str]:
        return [name for name, of in self._columns.items() if of == kind]

    def _mappings(self, inputs: Mapping[str, str]) -> dict[str, str | None] | None:
        """A column for every input that has to have one, and for some of the others; None where there is none."""
        mappings: dict[str, str | None] = {}
        for name, kind in inputs.items():
            fitting = [column for column, of in self._columns.items() if takes(bare(kind), of)]
            if is_required(kind) and not fitting:
                return None
            if fitting and (is_required(kind) or self._random.random() < 0.4):
                mappings[name] = self._random.choice(fitting)
            elif name in self._columns:
                mappings[name] = None
        return mappings

    def _options(self, single_call: bool, others: bool) -> dict[str, Any]:
        chance = self._random.random
        options: dict[str, Any] = {}
        options |= {"num_generations": self._random.randint(2, 3)} if chance() < 0.25 else {}
        options |= {"group_generations": True} if chance() < 0.25 else {}
        options |= {"model": "other"} if others and chance() < 0.3 else {}
        options |= {"reasoning": "keep"} if chance() < 0.1 else {}
        for name, fields in (("model_name", {"model_name": True}), ("logprobs", {"logprobs": True})):
            if name not in self._columns and chance() < 0.15 and (name == "model_name" or single_call):
                options |= fields
        return options

    def _explode(self, index: int) -> dict[str, Any]:
        """Perhaps spreads a list over rows, or two of them, under its own name where it is no seed's."""
        lists = [name for name, kind in self._columns.items() if kind.startswith("list[")]
        if not lists or self._random.random() < 0.6:
            return {}
        spread = []
        for number, column in enumerate(self._random.sample(lists, min(len(lists), self._random.choice([1, 1, 1, 2])))):
            new = column if column not in SEEDS and self._random.random() < 0.5 else f"item_{index}_{number}"
            self._columns[new] = self._columns.pop(column).removeprefix("list[").removesuffix("]")
            spread.append(f"{column} -> {new}")
        return {"explode": spread if len(spread) > 1 else spread[0]}

    def _merge(self) -> dict[str, Any]:
        chance = self._random.random
        merge: dict[str, Any] = {"exact": chance() < 0.7, "drop_truncated": chance() < 0.6}
        merge["near"] = self._random.choice([False, {"threshold": 0.5}, {"threshold": 0.8}])
        merge["compare"] = self._random.choice([None, None, "prompt", "conversation", "answers"])
        if (texts := self._of("text")) and chance() < 0.15:
            merge |= {"prompt": self._random.choice(texts), "answer": self._random.choice(texts)}
        if chance() < 0.2:
            merge["columns"] = self._random.sample([*self._columns], 1)
        if chance() < 0.2:
            merge["prefer"] = "output_tokens"
        if chance() < 0.2:
            merge["keep"] = {"output_tokens": {"max": self._random.randint(40, 200)}}
        if chance() < 0.2:
            merge["limit"] = self._random.randint(1, 8)
        return merge


class Answering:
    """An engine that mostly answers as a job's tasks want it, and that gives the same answer to the same request."""

    def __init__(self, spec: EngineSpec, tasks: Sequence[str]) -> None:
        self.model_name = spec.path
        self.chat = byte_chat()
        self._scores = spec.scores
        self.slots = 8
        self.tokens_in_flight = 0
        self._tasks = tasks

    async def start(self) -> None:
        """Nothing to load."""

    async def generate(self, request: Request) -> Completion:
        """An example's answer, one that another task wants, or something odd; now and then it is cut."""
        chosen = random.Random(f"{request.seed} {request.token_ids!r}")
        await asyncio.sleep(0)
        if self._scores:
            score = chosen.choice([0.5, -1.25, 3.0, None])
            return Completion("", "stop", len(request.token_ids), 0, score=score)
        text = EXAMPLES[chosen.choice(self._tasks)].answer
        if chosen.random() < 0.2:
            text = chosen.choice(_ODD)
        elif chosen.random() < 0.2:
            text = " ".join(chosen.choices(_WORDS, k=chosen.randint(1, 20))) + "?"
        text = text.replace("One", f"One {chosen.randrange(20)}")
        words = len(text.split())
        return Completion(
            text,
            "length" if chosen.random() < 0.08 else "stop",
            len(request.token_ids),
            words,
            logprobs=[-1.0] * words if "logprobs" in request.sampling else (),
        )

    async def stop(self) -> None:
        """Nothing to release."""


def answering(job: Job) -> Any:
    """What builds engines for a job."""
    tasks = [step.task for step in job.steps if step.spec.calls_model]
    return lambda spec: Answering(spec, tasks)
