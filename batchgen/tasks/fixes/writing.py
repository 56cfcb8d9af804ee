"""Tasks that write and rewrite: templates without code, evolutions that stay aligned, lists that are read as lists."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from batchgen import bridge
from batchgen.errors import RowRejected
from batchgen.progress import TRUNCATED_REASONING
from batchgen.rows import up_to_question
from batchgen.tasks import completions
from batchgen.tasks.distilabel_api import tasks
from batchgen.tasks.evolution import answer_elimination, elimination, response_elimination
from batchgen.tasks.generation import render_template

# What Genstruct's model writes before an answer.
_ASSISTANT = "[[[Assistant]]]"


def _messages(system_prompt: str | None, prompt: str) -> list[dict[str, str]]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": prompt}]


class TextGeneration(tasks.TextGeneration):  # type: ignore[misc]  # distilabel is untyped
    """Without Jinja: instructions are text, and a template has placeholders only."""

    prompt_template: str | None = None

    def format_input(self, input: dict[str, Any]) -> list[dict[str, str]]:
        """The row's system prompt, or the task's, and the prompt."""
        prompt = render_template(self.prompt_template, input) if self.prompt_template else input["instruction"]
        return _messages(input.get("system_prompt") or self.system_prompt, prompt)


class ChatGeneration(tasks.ChatGeneration):  # type: ignore[misc]
    """A conversation that ends with another role has a reason of its own.

    Args:
        regenerate: leave out what follows the user's last message.
    """

    regenerate: bool = False

    def format_input(self, input: dict[str, Any]) -> list[dict[str, str]]:
        """The conversation."""
        messages: list[dict[str, str]] = input["messages"]
        if self.regenerate:
            messages = up_to_question(messages)
        if not messages or messages[-1]["role"] != "user":
            raise RowRejected("last_message_is_not_the_user_s")
        return messages


# Why a message is missing where the ones before it are none the worse for it.
_MISSING = {
    "empty_completion",
    "prompt_too_long",
    "repetitive_completion",
    "truncated_instruction",
    TRUNCATED_REASONING,
}


class Magpie(tasks.Magpie):  # type: ignore[misc]
    """Chooses a system prompt a row, not a batch, with weights that need not sum to one.

    Attributes:
        keep_shorter: end a conversation before the first exchange that was cut or failed, unless it is the very first,
            in place of the whole row.
    """

    system_prompts: list[str] | dict[str, str | list[Any]] | None = None
    keep_shorter: bool = False

    def _generate_conversation_turn(
        self, role: str, conversations: list[list[dict[str, str]]], active_indices: list[int]
    ) -> tuple[list[list[dict[str, str]]], list[int], Sequence[Mapping[str, Any]]]:
        """Adds a message to a conversation, or ends it."""
        log, said = bridge.current_context(), list(conversations[0])
        cuts = log.cuts
        try:
            added: Any = super()._generate_conversation_turn(role, conversations, active_indices)
        except RowRejected as rejection:
            whole = self._whole(said)
            if not whole or rejection.reason not in _MISSING:
                raise
        else:
            whole = self._whole(said)
            if not whole or log.cuts == cuts or not self.llm.ends_cut_rows:
                return added  # type: ignore[no-any-return]
        if log.cuts > cuts:
            log.set_aside()
        log.notes.append("conversation_shortened")
        return [whole], [], [{"input_tokens": [], "output_tokens": []}]

    def _whole(self, said: list[dict[str, str]]) -> list[dict[str, str]]:
        """What is kept of a conversation that does not go on; nothing where no exchange in it is whole."""
        last = "user" if self.end_with_user else "assistant"
        whole = said[: 1 + max((at for at, message in enumerate(said) if message["role"] == last), default=-1)]
        answered = any(message["role"] == "assistant" for message in whole)
        return whole if self.keep_shorter and answered else []

    def _prepare_inputs_for_instruction_generation(
        self, inputs: list[dict[str, Any]]
    ) -> tuple[list[list[dict[str, str]]], list[str]]:
        keys: list[str] = []
        if self.system_prompts is not None:
            inputs = [input if "system_prompt" in input else self._with_system_prompt(input, keys) for input in inputs]
        prepared, _ = super()._prepare_inputs_for_instruction_generation(inputs)
        return prepared, keys

    def _with_system_prompt(self, input: dict[str, Any], keys: list[str]) -> dict[str, Any]:
        prompts = self.system_prompts
        if not isinstance(prompts, dict):
            return {**input, "system_prompt": random.choice(prompts or [""])}
        weights = [value[1] if isinstance(value, list) else 1.0 for value in prompts.values()]
        (key,) = random.choices(list(prompts), weights)
        keys.append(key)
        value = prompts[key]
        return {**input, "system_prompt": value[0] if isinstance(value, list) else value}


def _ask(task: Any, prompt: str) -> tuple[str, bool]:
    """A completion, and whether it was cut."""
    (output,) = task.llm.generate([task.format_input(prompt)])
    return str(output["generations"][0]), bridge.current_context().last_cut[0]


def _dropped(reason: str, cut: bool) -> None:
    log = bridge.current_context()
    log.notes.append(f"eliminated_{reason}")
    if cut:
        log.set_aside()


class _Evolving:
    """Evolves one row at a time, drops what WizardLM's rules eliminate, and keeps answers aligned."""

    def process(self: Any, inputs: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """Every row with its evolutions."""
        yield [{**row, **self._evolved(row)} for row in inputs]

    def _evolved(self: Any, row: Mapping[str, Any]) -> dict[str, Any]:
        texts = [row["instruction"]]
        for _ in range(self.num_evolutions):
            answer, cut = _ask(self, self._apply_random_mutation(texts[-1]))
            text = completions.without_lead(answer.split("Prompt#:")[-1])
            if self.eliminate and (reason := "truncated" if cut else elimination(text, texts[-1])):
                _dropped(reason, cut)
                text = texts[-1]
            texts.append(text)
        first = 0 if self.store_evolutions and self.include_original_instruction else 1
        numbers = range(first, len(texts)) if self.store_evolutions else [len(texts) - 1]
        if not self.generate_answers:
            chosen = [texts[number] for number in numbers]
            return {"evolved_instructions": chosen} if self.store_evolutions else {"evolved_instruction": chosen[-1]}
        answers = self._answers(dict.fromkeys(texts[number] for number in numbers))
        pairs = [self._answered(texts[: number + 1], answers) for number in numbers]
        if self.store_evolutions:
            return {"evolved_instructions": [text for text, _ in pairs], "answers": [answer for _, answer in pairs]}
        return {"evolved_instruction": pairs[-1][0], "answer": pairs[-1][1]}

    def _answers(self: Any, texts: Mapping[str, None]) -> dict[str, str | None]:
        """An answer each, all asked for at once; None where the answer shows that the text is no good."""
        outputs = self.llm.generate([self.format_input(text) for text in texts])
        answers: dict[str, str | None] = {}
        for text, output, cut in zip(texts, outputs, bridge.current_context().last_cut, strict=True):
            answer = str(output["generations"][0])
            answers[text] = answer
            if self.eliminate and (reason := answer_elimination(answer)):
                _dropped(f"answer_{reason}", cut)
                answers[text] = None
        return answers

    def _answered(self: Any, history: Sequence[str], answers: dict[str, str | None]) -> tuple[str, str]:
        """The last of an instruction's versions that has a good answer, with that answer."""
        for text in reversed(list(dict.fromkeys(history))):
            if text not in answers:
                answers |= self._answers({text: None})
            if (answer := answers[text]) is not None:
                return text, answer
        raise RowRejected("no_good_answer")


class EvolInstruct(_Evolving, tasks.EvolInstruct):  # type: ignore[misc]
    """distilabel's prompts and mutations; see `_Evolving`."""

    eliminate: bool = True


class EvolComplexity(_Evolving, tasks.EvolComplexity):  # type: ignore[misc]
    """distilabel's prompts and mutations; see `_Evolving`."""

    eliminate: bool = True


class EvolQuality(tasks.EvolQuality):  # type: ignore[misc]
    """Mutations differ from row to row: distilabel reseeds numpy's generator with one number for every batch.

    A response that was cut, or that holds what the prompt forbids, gives way to the one before.
    """

    eliminate: bool = True

    def process(self, inputs: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """Every row with its evolved answers."""
        yield [{**row, **self._evolved(row)} for row in inputs]

    def _evolved(self, row: Mapping[str, Any]) -> dict[str, Any]:
        texts = [row["response"]]
        for _ in range(self.num_evolutions):
            answer, cut = _ask(self, self._apply_random_mutation(row["instruction"], texts[-1]))
            text = completions.without_lead(answer.split("Rewritten Response#:")[-1])
            if self.eliminate and (reason := "truncated" if cut else response_elimination(text, texts[-1])):
                _dropped(reason, cut)
                text = texts[-1]
            if not text:
                raise RowRejected("empty_completion")
            texts.append(text)
        if not self.store_evolutions:
            return {"evolved_response": texts[-1]}
        return {"evolved_responses": texts[0 if self.include_original_response else 1 :]}


class StructuredGeneration(tasks.StructuredGeneration):  # type: ignore[misc]
    """A row's format is JSON text, as a column of Parquet can hold it."""

    def format_input(self, input: dict[str, Any]) -> Any:
        """Messages and the format that the completion must have."""
        try:
            wanted = json.loads(input["structured_output"])
        except ValueError:
            wanted = None
        if not isinstance(wanted, dict) or not wanted:
            raise RowRejected("invalid_structured_output")
        return _messages(input.get("system_prompt"), input["instruction"]), wanted


class URIAL(tasks.URIAL):  # type: ignore[misc]
    """With the examples of the paper's method, which distilabel's prompt has none of."""

    examples: list[dict[str, str]] | None = None

    def format_input(self, input: dict[str, Any]) -> Any:
        """The examples and the question as turns of one conversation."""
        turns = [
            {"role": role, "content": example[role]}
            for example in self.examples or ()
            for role in ("user", "assistant")
        ]
        return super().format_input({"conversation": [*turns, {"role": "user", "content": input["instruction"]}]})


class Genstruct(tasks.Genstruct):  # type: ignore[misc]
    """Looks for the answer's mark once; distilabel takes seconds for a long completion that has none."""

    def format_output(self, output: str | None, input: dict[str, Any]) -> dict[str, Any]:
        """The question before the mark, and the answer after it."""
        user, mark, assistant = (output or "").partition(_ASSISTANT)
        return {"user": user.strip(), "assistant": assistant.strip()} if mark else {"user": None, "assistant": None}


class SelfInstruct(tasks.SelfInstruct):  # type: ignore[misc]
    """Instructions without list marks, and without what a model says around them."""

    def format_output(self, output: str | None, input: dict[str, Any] | None = None) -> dict[str, Any]:
        """The instructions, once each, without one in which the completion was cut."""
        log = bridge.current_context()
        found, around = completions.listed_instructions(output or "")
        log.notes += ["line_left_out"] * around
        if log.cuts and (whole := completions.whole_instructions(output or "")) != found:
            log.notes.append("truncated_instruction")
            found = whole
        once = list(dict.fromkeys(found))
        log.notes += ["instruction_repeated"] * (len(found) - len(once))
        return {"instructions": once}
