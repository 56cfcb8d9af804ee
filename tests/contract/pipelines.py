"""Pipelines written for distilabel; as a command, what distilabel itself makes of one, as JSON.

Without `from __future__ import annotations`: distilabel reads those of a step's `process` as they are.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline, base
from distilabel.steps import (
    CombineOutputs,
    ConversationTemplate,
    ExpandColumns,
    FormatChatGenerationDPO,
    FormatChatGenerationSFT,
    FormatTextGenerationDPO,
    FormatTextGenerationSFT,
    GeneratorStep,
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
    EmbeddingTaskGenerator,
    FormatPRM,
    GenerateSentencePair,
    GenerateTextRetrievalData,
    InstructionBacktranslation,
    MathShepherdCompleter,
    MathShepherdGenerator,
    MonolingualTripletGenerator,
    PrometheusEval,
    SelfInstruct,
    TextGeneration,
    UltraFeedback,
)
from openai import AsyncOpenAI

from tests.contract.random_pipelines import Maker

ROWS = [{"instruction": f"Do thing {number}.", "topic": f"topic {number}", "number": number} for number in range(6)]


RESPONSE = {"input_mappings": {"response": "generation"}}


def _llm(url: str, model: str = "judge") -> OpenAILLM:
    return OpenAILLM(model=model, base_url=url, generation_kwargs={"max_new_tokens": 64})


def chain(url: str) -> Any:
    """Two steps, the second of which reads what the first one wrote in the place of its input."""
    first = TextGeneration(llm=_llm(url), output_mappings={"generation": "instruction"}, system_prompt="Be brief.")
    second = TextGeneration(llm=_llm(url), output_mappings={"generation": "response"})
    return LoadDataFromDicts(data=ROWS) >> first >> second


def branches(url: str) -> Any:
    """One step, whose answers two others read."""
    answer = TextGeneration(
        llm=_llm(url), template="{{ instruction }} On {{ topic }}.", columns=["instruction", "topic"]
    )
    judge = PrometheusEval(name="judge", llm=_llm(url), mode="absolute", rubric="honesty")
    pair = GenerateSentencePair(
        name="pair", llm=_llm(url), action="paraphrase", triplet=True, input_mappings={"anchor": "generation"}
    )
    return LoadDataFromDicts(data=ROWS) >> answer >> [judge, pair]


def spread(url: str) -> Any:
    """A list, of which every item becomes a row."""
    write = SelfInstruct(llm=_llm(url), num_instructions=3, input_mappings={"input": "topic"})
    expand = ExpandColumns(columns={"instructions": "question"})
    answer = TextGeneration(llm=_llm(url), input_mappings={"instruction": "question"})
    return LoadDataFromDicts(data=ROWS) >> write >> expand >> answer


def rated(url: str) -> Any:
    """Several answers to a row in a list, and a judge of them."""
    mappings = {"generation": "generations"}
    answer = TextGeneration(llm=_llm(url), num_generations=2, group_generations=True, output_mappings=mappings)
    return LoadDataFromDicts(data=ROWS) >> answer >> UltraFeedback(llm=_llm(url), aspect="overall-rating")


def several(url: str) -> Any:
    """Several rows of one, each with an answer."""
    return LoadDataFromDicts(data=ROWS) >> TextGeneration(llm=_llm(url), num_generations=2)


def chat(url: str) -> Any:
    """Conversations to be gone on with."""
    rows = [
        {"messages": [{"role": "system", "content": "Hm."}, {"role": "user", "content": row["topic"]}]} for row in ROWS
    ]
    return LoadDataFromDicts(data=rows) >> ChatGeneration(llm=_llm(url))


def models(url: str) -> Any:
    """The answers of two models in a list, with the models' names, and a judge of them."""
    answers = [
        TextGeneration(name="terse", llm=_llm(url), system_prompt="Be brief."),
        TextGeneration(name="verbose", llm=_llm(url, "writer"), system_prompt="Tell all."),
    ]
    group = GroupColumns(columns=["generation", "model_name"], output_columns=["generations", "generation_models"])
    judge = UltraFeedback(llm=_llm(url), aspect="overall-rating", output_mappings={"model_name": "rated_by"})
    keep = KeepColumns(columns=["instruction", "generations", "generation_models", "ratings", "rated_by"])
    return LoadDataFromDicts(data=ROWS) >> answers >> group >> judge >> keep


def combined(url: str) -> Any:
    """Branches that write the same column, and go on as one; after them, two leaves."""
    first = TextGeneration(name="first", llm=_llm(url), output_mappings={"generation": "topic"})
    again = TextGeneration(name="again", llm=_llm(url), input_mappings={"instruction": "topic"})
    other = TextGeneration(name="other", llm=_llm(url, "writer"), output_mappings={"generation": "topic"})
    last = TextGeneration(
        name="last", llm=_llm(url), template="{{ topic }} {{ generation }}", columns=["topic", "generation"]
    )
    judge = PrometheusEval(name="judge", llm=_llm(url), mode="absolute", rubric="honesty")
    begun = LoadDataFromDicts(data=ROWS)
    combine = CombineOutputs()
    begun >> first >> again >> combine
    begun >> other >> combine
    return combine >> [last, judge]


def formatted(url: str) -> Any:
    """Answers that are cut, and set in the forms that trainers read."""
    rows = [{**row, "system_prompt": f"Hm {row['number']}." if row["number"] % 2 else ""} for row in ROWS]
    answer = TextGeneration(llm=_llm(url))
    cut = TruncateTextColumn(column="generation", max_length=12)
    template = ConversationTemplate(**RESPONSE, output_mappings={"conversation": "talk"})
    merge = MergeColumns(columns=["topic", "instruction"], output_column="texts")
    return LoadDataFromDicts(data=rows) >> answer >> cut >> template >> FormatTextGenerationSFT() >> merge


def preferences(url: str) -> Any:
    """The better and the worse of two models' answers, with the models' names."""
    answers = [TextGeneration(name=model, llm=_llm(url, model)) for model in ("judge", "writer")]
    group = GroupColumns(columns=["generation", "model_name"], output_columns=["generations", "generation_models"])
    rated = UltraFeedback(llm=_llm(url), aspect="overall-rating", output_mappings={"model_name": "rated_by"})
    named = FormatTextGenerationDPO(output_mappings={"chosen": "better", "rejected": "worse"})
    return LoadDataFromDicts(data=ROWS) >> answers >> group >> rated >> named


def chats(url: str) -> Any:
    """Several answers to a conversation, the better and the worse of them, and the conversation with the first."""
    rows = [{**row, "messages": [{"role": "user", "content": row["topic"]}]} for row in ROWS]
    several = {"num_generations": 2, "group_generations": True, "output_mappings": {"generation": "generations"}}
    rated = UltraFeedback(llm=_llm(url), aspect="overall-rating")
    answer = ChatGeneration(llm=_llm(url, "writer"))
    return (
        LoadDataFromDicts(data=rows)
        >> ChatGeneration(llm=_llm(url), **several)
        >> rated
        >> FormatChatGenerationDPO()
        >> answer
        >> FormatChatGenerationSFT()
    )


def labelled(url: str) -> Any:
    """Solutions of which every step has a label."""
    return (
        LoadDataFromDicts(data=ROWS)
        >> MathShepherdGenerator(llm=_llm(url), name="golden", extra_rules=None, few_shots=None)
        >> MathShepherdGenerator(llm=_llm(url, "writer"), name="several", M=2)
        >> MathShepherdCompleter(llm=_llm(url), N=2)
        >> ExpandColumns(columns=["solutions"])
        >> FormatPRM(format="trl")
    )


def beside(url: str) -> Any:
    """Rows of two loaders that go together, one of which writes over a column of the other."""
    combine = CombineOutputs()
    answer = TextGeneration(llm=_llm(url), template="{{ words }} {{ topic }}", columns=["words", "topic"])
    [LoadDataFromDicts(data=ROWS), Numbered(name="numbered")] >> combine
    return combine >> answer


def shots(url: str) -> Any:
    """A prompt with examples, written by a template with a loop."""
    rows = [{**row, "examples": [f"Do {n}." for n in range(row["number"] + 1)]} for row in ROWS]
    template = "{% for each in examples %}{{ loop.index }}. {{ each | upper }}\n{% endfor %}Another on {{ topic }}:"
    ask = TextGeneration(
        llm=_llm(url),
        template=template,
        columns=["examples", "topic"],
        system_prompt="Be brief.",
        input_mappings={"topic": "instruction"},
        output_mappings={"generation": "question"},
    )
    answer = TextGeneration(llm=_llm(url, "writer"), input_mappings={"instruction": "question"})
    return LoadDataFromDicts(data=rows) >> ask >> answer


def embedded(url: str) -> Any:
    """Tasks that a model thinks up, and data for each of them."""
    think = EmbeddingTaskGenerator(llm=_llm(url), category="text-retrieval", flatten_tasks=True, num_generations=2)
    chosen = {"query_type": "common", "query_length": "5 to 15 words", "difficulty": "PhD", "clarity": "clear"}
    return think >> GenerateTextRetrievalData(llm=_llm(url, "writer"), num_words=50, **chosen)


def triplets(url: str) -> Any:
    """Sentences of a prompt alone, and how two of them go together."""
    chosen = {"unit": "sentence", "difficulty": "college", "high_score": "4", "low_score": "3"}
    write = MonolingualTripletGenerator(llm=_llm(url), **chosen, output_mappings={"S1": "anchor", "model_name": "by"})
    pair = GenerateSentencePair(llm=_llm(url), action="paraphrase")
    return write >> pair >> KeepColumns(columns=["anchor", "S2", "S3", "positive", "by"])


def scored(url: str) -> Any:
    """Answers, and why they have their score."""
    judge = InstructionBacktranslation(llm=_llm(url), output_mappings={"reason": "why", "score": "points"})
    return LoadDataFromDicts(data=ROWS) >> TextGeneration(llm=_llm(url)) >> judge


def forms(url: str) -> Any:
    """Rows that a step without a model goes through first, one answer to each, and two forms of it."""
    first, kept = Clipped(most=5), KeepColumns(columns=["instruction", "topic"])
    answer = TextGeneration(llm=_llm(url), input_mappings={"instruction": "topic"})
    other, again = (TextGeneration(name=name, llm=_llm(url, "writer")) for name in ("other", "again"))
    begun = LoadDataFromDicts(data=ROWS) >> first
    begun >> kept >> [other, again]
    keep = KeepColumns(name="keep", columns=["topic", "generation"])
    return begun >> answer >> [FormatTextGenerationSFT(name="sft"), ConversationTemplate(name="t", **RESPONSE), keep]


def conversed(url: str) -> Any:
    """An answer to a conversation, after which two others answer the same one."""
    rows = [{"messages": [{"role": "user", "content": row["topic"]}]} for row in ROWS]
    first, *others = (
        ChatGeneration(llm=_llm(url), name=name, output_mappings={"generation": name}) for name in ("a", "b", "c")
    )
    return LoadDataFromDicts(data=rows) >> first >> others


class Clipped(Step):
    """Cuts topics, counts what is left, and leaves rows of an odd number out."""

    most: int = 100

    @property
    def inputs(self) -> list[str]:
        return ["topic", "number"]

    @property
    def outputs(self) -> list[str]:
        return ["topic", "letters"]

    def process(self, inputs: StepInput) -> Iterator[list[dict[str, Any]]]:
        kept = [row for row in inputs if row["number"] % 2 == 0]
        yield [{**row, "topic": row["topic"][-self.most :], "letters": len(row["topic"])} for row in kept]


class Parts(Step):
    """Makes a row of every part of a topic, and none of one that has an odd number."""

    @property
    def inputs(self) -> list[str]:
        return ["topic", "number"]

    @property
    def outputs(self) -> list[str]:
        return ["topic", "place"]

    def process(self, inputs: StepInput) -> Iterator[list[dict[str, Any]]]:
        even = [row for row in inputs if row["number"] % 2 == 0]
        yield [
            {**row, "topic": part, "place": place} for row in even for place, part in enumerate(row["topic"].split())
        ]


class Numbered(GeneratorStep):
    """Makes rows in two batches."""

    @property
    def outputs(self) -> list[str]:
        return ["instruction", "words", "number"]

    def process(self, offset: int = 0) -> Iterator[tuple[list[dict[str, Any]], bool]]:
        rows = [{"instruction": f"Do {n}.", "words": "word " * (n + 1), "number": n} for n in range(6)]
        yield rows[:4], False
        yield rows[4:], True


def parts(url: str) -> Any:
    """A step that makes several rows of one, before a task and after it."""
    load = Numbered(name="numbered", output_mappings={"number": "place"})
    # An output goes where the input of its name comes from, unless it is mapped itself.
    cut = Parts(input_mappings={"topic": "words", "number": "place"}, output_mappings={"place": "part"})
    answer = TextGeneration(llm=_llm(url), input_mappings={"instruction": "words"})
    list_them = SelfInstruct(llm=_llm(url), num_instructions=3, input_mappings={"input": "generation"})
    words = MergeColumns(columns=["words", "generation", "instruction"], output_column="all")
    two = ExpandColumns(columns={"instructions": "question", "all": "word"})
    return load >> cut >> answer >> list_them >> words >> two


class Loud(TextGeneration):
    """Answers in capitals."""

    marks: int = 1

    def format_output(self, output: str | None, input: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"generation": output and output.upper() + "!" * self.marks}


def own(url: str) -> Any:
    """A step and a task of classes that are not distilabel's."""
    loud = Loud(llm=_llm(url), marks=2, system_prompt="Shout.", input_mappings={"instruction": "topic"})
    return LoadDataFromDicts(data=ROWS) >> Clipped(most=3) >> loud


PIPELINES: Mapping[str, Callable[[str], Any]] = {
    make.__name__: make
    for make in (
        chain,
        branches,
        spread,
        rated,
        several,
        chat,
        conversed,
        models,
        combined,
        formatted,
        preferences,
        chats,
        labelled,
        beside,
        shots,
        embedded,
        triplets,
        scored,
        forms,
        own,
        parts,
    )
}


RANDOM: Mapping[str, int] = {f"random_{seed}": seed for seed in range(8)}
NAMES = (*PIPELINES, *RANDOM)
# What the columns of classes of one's own hold that are no texts.
KINDS: Mapping[str, Mapping[str, str]] = {
    "own": {"letters": "number"},
    "forms": {"letters": "number"},
    "parts": {"part": "number"},
}


def pipeline(name: str, url: str, cache: Path) -> Any:
    """A pipeline by its name, on a server."""
    with Pipeline(name=name, cache_dir=cache) as made:
        if name in RANDOM:
            Maker(RANDOM[name], partial(_llm, url)).build()
        else:
            PIPELINES[name](url)
    return made


def main(url: str, folder: str) -> None:
    """Runs all of them; writes rows by pipeline and config."""
    # distilabel looks only every 2.5 s whether the processes of its steps are there.
    base.time = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 25))
    # They are forked from this process: what it has imported they need not import, which takes each a second.
    AsyncOpenAI(api_key="none")
    rows = {}
    for name in NAMES:
        distiset = pipeline(name, url, Path(folder) / "cache").run(use_cache=False)
        rows[name] = {config: distiset[config]["train"].to_list() for config in distiset}
    (Path(folder) / "rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
