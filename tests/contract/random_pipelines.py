"""Pipelines at random, each from its seed: what distilabel can run of chains, branches, and branches that meet.

Left out is what distilabel itself gets wrong: it loses a column where a later task's output of that name is mapped to
another, gives rows a mapped input of other rows where there are several generations, and cannot join branches with
grouped ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from distilabel.steps import (
    CombineOutputs,
    ConversationTemplate,
    ExpandColumns,
    FormatTextGenerationDPO,
    FormatTextGenerationSFT,
    GroupColumns,
    KeepColumns,
    LoadDataFromDicts,
    MergeColumns,
    Step,
    StepInput,
    TruncateTextColumn,
)
from distilabel.steps.tasks import (
    ChatGeneration,
    ComplexityScorer,
    GenerateSentencePair,
    InstructionBacktranslation,
    PrometheusEval,
    SelfInstruct,
    TextGeneration,
    UltraFeedback,
)

Kinds = dict[str, str]
# The columns of a row after a step, with their kinds, and the step; None: there is nothing for it to read.
Made = tuple[Any, Kinds] | None

_ROWS = [
    {
        "instruction": f"Do thing {number}.",
        "topic": f"topic {number}",
        "system_prompt": f"Hm {number % 2}.",
        "messages": [{"role": "user", "content": f"Say {number}."}],
        "texts": [f"a{number}", f"b{number}"],
    }
    for number in range(4)
]
_FIRST: Kinds = {"instruction": "text", "topic": "text", "system_prompt": "text", "messages": "chat", "texts": "texts"}


class Halves(Step):
    """Makes two rows of a long text."""

    @property
    def inputs(self) -> list[str]:
        return ["whole"]

    @property
    def outputs(self) -> list[str]:
        return ["half"]

    def process(self, inputs):  # type: ignore[no-untyped-def]
        texts = [(row, row["whole"]) for row in inputs]
        yield [{**row, "half": half} for row, text in texts for half in (text[:9], text[9:]) if half]


# distilabel reads annotations as they are, and here they would be texts.
Halves.process.__annotations__ = {"inputs": StepInput}


class Maker:
    """Builds one pipeline, inside a distilabel `Pipeline`.

    Args:
        llm: makes an LLM of the model of that name.
    """

    def __init__(self, seed: int, llm: Callable[[str], Any]) -> None:
        self._random = random.Random(seed)
        self._make_llm = llm
        self._number = 0

    def build(self) -> None:
        """The whole pipeline."""
        columns = ["instruction", *(name for name in _FIRST if name != "instruction" and self._random.random() < 0.7)]
        begun = LoadDataFromDicts(name="load", data=[{name: row[name] for name in columns} for row in _ROWS])
        end, kinds = self._chain(begun, {name: _FIRST[name] for name in columns}, self._random.randint(1, 3))
        shape = self._random.choice(("line", "leaves", "leaves", "combine", "group"))
        if shape == "leaves":
            for _ in range(self._random.randint(2, 3)):
                self._chain(end, kinds, self._random.randint(1, 2))
        elif shape == "line":
            end >> TextGeneration(name="last", llm=self._llm())
        else:
            self._meet(end, kinds, shape)

    def _meet(self, end: Any, kinds: Kinds, shape: str) -> None:
        """Two branches that meet, and what comes after."""
        ends, after = zip(
            *(self._chain(end, kinds, self._random.randint(1, 2), single=True) for _ in "ab"), strict=True
        )
        answers = [TextGeneration(name=f"last_{name}", llm=self._llm()) for name in "ab"]
        joined = {**after[0], **after[1], "generation": "text", "model_name": "text"}
        if shape == "combine":
            join = CombineOutputs(name=shape)
        else:
            join = GroupColumns(name=shape, columns=["generation"], output_columns=["grouped"])
            joined["grouped"] = "texts"
            del joined["generation"]
        for branch, answer in zip(ends, answers, strict=True):
            branch >> answer >> join
        self._chain(join, joined, self._random.randint(1, 2))

    def _chain(self, end: Any, kinds: Kinds, length: int, single: bool = False) -> tuple[Any, Kinds]:
        """Steps one after the other; without several generations where `single`."""
        menu = [self._generation] * 3 + [self._written, self._templated, self._judged, self._paired, self._kept]
        menu += [self._cut, self._chatted, self._formatted, self._talked, self._scored]
        menu += [] if single else [self._several, self._instructions, self._rated, self._preferred, self._merged]
        menu += [] if single else [self._ranked, self._multiplied]
        menu += [] if single else [self._spread, self._spread, self._halved]
        for _ in range(length):
            made = None
            while made is None:
                made = self._random.choice(menu)(dict(kinds))
            step, kinds = made
            end = end >> step
        return end, kinds

    def _name(self, of: str) -> str:
        self._number += 1
        return f"{of}_{self._number}"

    def _llm(self) -> Any:
        return self._make_llm(self._random.choice(("judge", "writer")))

    def _of(self, kinds: Kinds, kind: str) -> list[str]:
        return [name for name, of in kinds.items() if of == kind]

    def _reads(self, kinds: Kinds, **wanted: str) -> dict[str, str] | None:
        """Mappings of inputs of these kinds to columns, no column to two; None where there are too few."""
        mappings: dict[str, str] = {}
        left = dict(kinds)
        for name, kind in wanted.items():
            fitting = self._of(left, kind)
            if not fitting:
                return None
            column = name if name in fitting and self._random.random() < 0.6 else self._random.choice(fitting)
            del left[column]
            mappings[name] = column
        return {name: column for name, column in mappings.items() if name != column}

    def _answered(self, kinds: Kinds, task: type, reads: dict[str, str] | None, **fields: Any) -> Made:
        """A task that writes `generation`, under that name or another."""
        if reads is None:
            return None
        writes = {}
        if "generation" not in kinds and self._random.random() < 0.4:
            writes["generation"] = self._random.choice([*self._of(kinds, "text"), f"said_{self._number}"])
        if self._random.random() < 0.2:
            writes["model_name"] = f"by_{self._number}"
        if "model_name" in writes.values() or set(reads) & set(writes.values()):
            return None
        step = task(name=self._name("answer"), llm=self._llm(), input_mappings=reads, output_mappings=writes, **fields)
        if "model_name" in writes:
            kinds.pop("model_name", None)
        names = (writes.get(name, name) for name in ("generation", "model_name"))
        return step, {**kinds, **dict.fromkeys(names, "text")}

    def _generation(self, kinds: Kinds) -> Made:
        return self._answered(kinds, TextGeneration, self._reads(kinds, instruction="text"))

    def _written(self, kinds: Kinds) -> Made:
        return self._answered(kinds, TextGeneration, self._reads(kinds, instruction="text"), system_prompt="Be brief.")

    def _templated(self, kinds: Kinds) -> Made:
        columns = self._random.sample(self._of(kinds, "text"), min(2, len(self._of(kinds, "text"))))
        template = " ".join(f"{{{{ {column} }}}}" for column in columns)
        return self._answered(kinds, TextGeneration, {}, template=template, columns=columns) if columns else None

    def _chatted(self, kinds: Kinds) -> Made:
        return self._answered(kinds, ChatGeneration, self._reads(kinds, messages="chat"))

    def _task(self, kinds: Kinds, task: type, reads: dict[str, str] | None, adds: Kinds, **fields: Any) -> Made:
        if reads is None or set(adds) & set(reads):
            return None
        step = task(name=self._name("task"), llm=self._llm(), input_mappings=reads, **fields)
        return step, {**kinds, **adds, "model_name": "text"}

    def _judged(self, kinds: Kinds) -> Made:
        reads = self._reads(kinds, instruction="text", generation="text")
        adds = {"feedback": "text", "result": "number"}
        return self._task(kinds, PrometheusEval, reads, adds, mode="absolute", rubric="honesty")

    def _paired(self, kinds: Kinds) -> Made:
        reads, adds = self._reads(kinds, anchor="text"), {"positive": "text", "negative": "text"}
        return self._task(kinds, GenerateSentencePair, reads, adds, action="paraphrase", triplet=True)

    def _scored(self, kinds: Kinds) -> Made:
        reads = self._reads(kinds, instruction="text", generation="text")
        why = f"why_{self._number}"
        mapped = {"output_mappings": {"reason": why}}
        return self._task(kinds, InstructionBacktranslation, reads, {"score": "number", why: "text"}, **mapped)

    def _instructions(self, kinds: Kinds) -> Made:
        reads = self._reads(kinds, input="text")
        return self._task(kinds, SelfInstruct, reads, {"instructions": "texts"}, num_instructions=3)

    def _rated(self, kinds: Kinds) -> Made:
        reads = self._reads(kinds, instruction="text", generations="texts")
        adds = {"ratings": "numbers", "rationales": "list"}
        return self._task(kinds, UltraFeedback, reads, adds, aspect="overall-rating")

    def _ranked(self, kinds: Kinds) -> Made:
        return self._task(kinds, ComplexityScorer, self._reads(kinds, instructions="texts"), {"scores": "list"})

    def _several(self, kinds: Kinds) -> Made:
        reads = self._reads(kinds, instruction="text")
        if reads is None or "generation" in kinds:
            return None
        several = {"num_generations": 2, "group_generations": True, "output_mappings": {"generation": "generations"}}
        step = TextGeneration(name=self._name("several"), llm=self._llm(), input_mappings=reads, **several)
        return step, {**kinds, "generations": "texts", "model_name": "list"}

    def _multiplied(self, kinds: Kinds) -> Made:
        return self._answered(kinds, TextGeneration, {}, num_generations=2) if "instruction" in kinds else None

    def _plain(self, kinds: Kinds, step: type, reads: dict[str, str] | None, adds: Kinds) -> Made:
        if reads is None or set(adds) & set(reads):
            return None
        return step(name=self._name("plain"), input_mappings=reads), {**kinds, **adds}

    def _formatted(self, kinds: Kinds) -> Made:
        reads = self._reads(kinds, instruction="text", generation="text")
        adds = {"prompt": "text", "prompt_id": "text", "messages": "list"}
        return self._plain(kinds, FormatTextGenerationSFT, reads, adds)

    def _talked(self, kinds: Kinds) -> Made:
        reads = self._reads(kinds, instruction="text", response="text")
        return self._plain(kinds, ConversationTemplate, reads, {"conversation": "list"})

    def _preferred(self, kinds: Kinds) -> Made:
        reads = self._reads(kinds, instruction="text", generations="texts", ratings="numbers")
        adds = {"prompt": "text", "prompt_id": "text", "chosen": "list", "rejected": "list"}
        adds |= {"chosen_rating": "number", "rejected_rating": "number"}
        return self._plain(kinds, FormatTextGenerationDPO, reads, adds)

    def _merged(self, kinds: Kinds) -> Made:
        texts = [name for name in self._of(kinds, "text") if name != "instruction"]  # which others read
        lists = self._of(kinds, "texts")
        if not texts or not lists:
            return None
        columns = [self._random.choice(texts), self._random.choice(lists)]
        output = self._random.choice([None, "merged", *columns])
        step = MergeColumns(name=self._name("merge"), columns=columns, output_column=output)
        left = {name: kind for name, kind in kinds.items() if name not in columns}
        return step, {**left, step.outputs[0]: "texts"}

    def _spread(self, kinds: Kinds) -> Made:
        lists = self._of(kinds, "texts")
        if not lists:
            return None
        column = self._random.choice(lists)
        new = self._random.choice([column, "question", *self._of(kinds, "text")])
        step = ExpandColumns(name=self._name("spread"), columns={column: new})
        return step, {**kinds, new: "text"}

    def _halved(self, kinds: Kinds) -> Made:
        texts = [name for name in self._of(kinds, "text") if name != "instruction"]
        if not texts:
            return None
        column = self._random.choice(texts)
        step = Halves(name=self._name("halves"), input_mappings={"whole": column}, output_mappings={"half": column})
        return step, kinds

    def _cut(self, kinds: Kinds) -> Made:
        texts = self._of(kinds, "text")
        if not texts:
            return None
        return TruncateTextColumn(name=self._name("cut"), column=self._random.choice(texts), max_length=8), kinds

    def _kept(self, kinds: Kinds) -> Made:
        columns = [name for name in kinds if name == "instruction" or self._random.random() < 0.7]
        return KeepColumns(name=self._name("keep"), columns=columns), {name: kinds[name] for name in columns}
