"""The grammar that the embedded model was trained on: samples questions with right answers, and parses both.

The same table of topics generates training text, parses a generated question back into its topic and slots, and tells
whether a generated answer is right.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cached_property

from batchgen.embedded.topics import EVOLUTIONS, THANKS, TOPICS, Form, Slots, Topic, slots_of
from batchgen.embedded.vocabulary import DOMAINS


@dataclass(frozen=True)
class Parsed:
    """A question that the grammar knows."""

    topic: Topic
    form: Form
    slots: Slots
    evolutions: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        """The right answer, evolutions applied."""
        text = self.form.answer(self.slots)
        for suffix in self.evolutions:
            text = EVOLUTIONS[suffix](text, self.form)
        return text


class _Parser:
    """All forms as regular expressions, compiled on first use."""

    @cached_property
    def questions(self) -> list[tuple[re.Pattern[str], Topic, Form]]:
        return [
            (self._compile(question), topic, form)
            for topic in TOPICS
            for form in topic.forms
            for question in form.questions
        ]

    @cached_property
    def follow_ups(self) -> list[tuple[re.Pattern[str], Topic | None]]:
        own: list[tuple[re.Pattern[str], Topic | None]] = [
            (self._compile(question), topic)
            for topic in TOPICS
            for form in topic.forms
            for question, _ in form.follow_ups
        ]
        return own + [(self._compile(thanks), None) for thanks, _ in THANKS]

    @staticmethod
    def _compile(template: str) -> re.Pattern[str]:
        seen: set[str] = set()

        def slot(match: re.Match[str]) -> str:
            name = match[1]
            if name in seen:
                return f"(?P={name})"
            seen.add(name)
            return f"(?P<{name}>{'|'.join(re.escape(value) for value in DOMAINS[name])})"

        return re.compile(re.sub(r"\\\{(\w+)\\\}", slot, re.escape(template)))


_PARSER = _Parser()


def parse(question: str) -> Parsed | None:
    """The topic, form and slots of a question, with the evolutions it ends in; None where the grammar has none."""
    text = question.strip()
    evolutions: list[str] = []
    while suffix := next((s for s in EVOLUTIONS if text.endswith(" " + s)), None):
        evolutions.insert(0, suffix)
        text = text[: -len(suffix)].rstrip()
    for pattern, topic, form in _PARSER.questions:
        if match := pattern.fullmatch(text):
            slots = match.groupdict()
            return Parsed(topic, form, slots, tuple(evolutions)) if form.valid(slots) else None
    return None


def parse_follow_up(question: str) -> bool:
    """Whether the grammar knows the text as a next question (or as thanks)."""
    return any(pattern.fullmatch(question.strip()) for pattern, _ in _PARSER.follow_ups)


def sample_topic(rng: random.Random) -> Topic:
    """A topic, by weight."""
    return rng.choices(TOPICS, [topic.weight for topic in TOPICS])[0]


def sample_question(rng: random.Random, topic: Topic) -> tuple[str, Parsed]:
    """A question of the topic, and what it means."""
    form = rng.choice(topic.forms)
    question, slots = form.sample(rng)
    return question, Parsed(topic, form, slots)


def sample_follow_up(rng: random.Random, parsed: Parsed) -> tuple[str, str]:
    """A next question about a first one, and its right answer."""
    if not parsed.form.follow_ups or rng.random() < 0.2:
        return rng.choice(THANKS)
    template, answer = rng.choice(parsed.form.follow_ups)
    while True:
        slots = {**parsed.slots, **{name: rng.choice(DOMAINS[name]) for name in slots_of(template)}}
        # Another unit has another factor: a follow-up stays within the pair of the first question.
        if "big" in slots:
            slots["big"] = parsed.slots["big"]
        if parsed.form.valid(slots):
            return template.format(**slots), answer(slots)


def sample_context(rng: random.Random, topic: Topic) -> str:
    """A short text about a topic, as SelfInstruct takes it: what the topic is, and one or two facts of it."""
    facts = [sample_question(rng, topic)[1].answer for _ in range(rng.randint(0, 2))]
    return " ".join([topic.context, *facts])
