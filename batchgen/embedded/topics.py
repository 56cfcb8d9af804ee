"""What the embedded model can be asked: topics, their questions and right answers, and what evolves a question.

Every topic is a list of `Form`s. A form is a question template whose `{slots}` range over finite domains, and
a function that computes the right answer from the slots.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from batchgen.embedded.vocabulary import CAPITALS, COLOURS, DOMAINS, PYTHON, UNITS, YOUNG

Slots = Mapping[str, str]


@dataclass(frozen=True)
class Form:
    """One kind of question.

    Args:
        questions: templates with the same slots, all with the same answer.
        answer: the right answer, from the slots.
        method: how the answer is found, as the end of a sentence that starts with "I".
        follow_ups: templates of a next question, each with its answer; their slots override the first ones.
        valid: which slots make sense together.
    """

    questions: tuple[str, ...]
    answer: Callable[[Slots], str]
    method: str
    follow_ups: tuple[tuple[str, Callable[[Slots], str]], ...] = ()
    valid: Callable[[Slots], bool] = lambda slots: True

    def sample(self, rng: random.Random) -> tuple[str, Slots]:
        """A question and its slots."""
        template = rng.choice(self.questions)
        while True:
            slots = {name: rng.choice(DOMAINS[name]) for name in slots_of(template)}
            if self.valid(slots):
                return template.format(**slots), slots


@dataclass(frozen=True)
class Topic:
    """A topic: its forms, the system prompts that ask for it, and what a text about it starts with."""

    name: str
    system_prompts: tuple[str, ...]
    context: str
    forms: tuple[Form, ...]
    weight: float = 1.0


def slots_of(template: str) -> list[str]:
    """Names of a template's slots, in order."""
    return re.findall(r"\{(\w+)\}", template)


def _sum(s: Slots) -> str:
    return f"{s['a']} plus {s['b']} is {int(s['a']) + int(s['b'])}."


def _difference(s: Slots) -> str:
    return f"{s['a']} minus {s['b']} is {int(s['a']) - int(s['b'])}."


def _product(s: Slots) -> str:
    return f"{s['m']} times {s['n']} is {int(s['m']) * int(s['n'])}."


def _more(s: Slots) -> str:
    return f"{s['who']} has {int(s['a']) + int(s['b'])} {s['thing']}."


def _less(s: Slots) -> str:
    return f"{s['who']} has {int(s['a']) - int(s['b'])} {s['thing']} left."


def _words(s: Slots) -> list[str]:
    return [s[name] for name in ("w1", "w2", "w3", "w4") if name in s]


def _sorted(s: Slots) -> str:
    return ", ".join(sorted(_words(s)))


def _reversed(s: Slots) -> str:
    return ", ".join(sorted(_words(s), reverse=True))


def _count(s: Slots) -> str:
    return f"There are {len(_words(s))} words."


def _distinct_words(s: Slots) -> bool:
    return len(set(_words(s))) == len(_words(s))


def _convert(s: Slots) -> str:
    return f"{s['k']} {s['big']} are {int(s['k']) * UNITS[s['little'], s['big']]} {s['little']}."


def _code(s: Slots) -> str:
    return f"Use `{PYTHON[s['op']].format(x=s['x'])}`."


def _polite(s: Slots) -> str:
    return f"Could you please {s['request']}?"


def _capital(s: Slots) -> str:
    return f"The capital of {s['country']} is {CAPITALS[s['country']]}."


def _no_less(s: Slots) -> bool:
    return int(s["a"]) >= int(s["b"])


TOPICS: tuple[Topic, ...] = (
    Topic(
        "arithmetic",
        (
            "You are an AI assistant that helps with math problems.",
            "You are a patient math teacher.",
            "You help students with arithmetic.",
            "You are a calculator that answers questions about numbers.",
        ),
        "Arithmetic is about numbers: adding, subtracting and multiplying.",
        (
            Form(
                ("What is {a} plus {b}?", "Add {a} and {b}.", "Calculate {a} + {b}."),
                _sum,
                "added the two numbers",
                (("And what is {a} minus {b}?", _difference),),
                _no_less,
            ),
            Form(
                ("What is {a} minus {b}?", "Subtract {b} from {a}.", "Calculate {a} - {b}."),
                _difference,
                "took the second number away from the first",
                (("And what is {a} plus {b}?", _sum),),
                _no_less,
            ),
            Form(
                ("What is {m} times {n}?", "Multiply {m} by {n}.", "Calculate {m} * {n}."),
                _product,
                "multiplied the two numbers",
                (("And what is {m} times {n}?", _product),),
            ),
            Form(
                ("{who} has {a} {thing} and gets {b} more. How many {thing} does {who} have now?",),
                _more,
                "added the two numbers",
                valid=_no_less,
            ),
            Form(
                ("{who} has {a} {thing} and gives {b} away. How many {thing} does {who} have left?",),
                _less,
                "took the second number away from the first",
                valid=_no_less,
            ),
        ),
        weight=1.4,
    ),
    Topic(
        "words",
        (
            "You are an AI assistant that sorts and counts words.",
            "You are a careful editor of word lists.",
            "You help people to put words in order.",
            "You answer questions about lists of words.",
        ),
        "Word lists can be sorted in alphabetical order, and their words can be counted.",
        (
            Form(
                (
                    "Sort these words: {w1}, {w2}, {w3}.",
                    "Put these words in alphabetical order: {w1}, {w2}, {w3}.",
                    "Sort these words: {w1}, {w2}, {w3}, {w4}.",
                ),
                _sorted,
                "compared the first letters",
                (("Now sort them in reverse order.", _reversed), ("How many words are there?", _count)),
                _distinct_words,
            ),
            Form(
                (
                    "How many words are in this list: {w1}, {w2}?",
                    "How many words are in this list: {w1}, {w2}, {w3}?",
                    "Count the words: {w1}, {w2}, {w3}, {w4}.",
                ),
                _count,
                "counted them one by one",
                (("Now sort them.", _sorted),),
                _distinct_words,
            ),
        ),
        weight=1.4,
    ),
    Topic(
        "facts",
        (
            "You are an AI assistant that knows capitals and other small facts.",
            "You are a friendly geography teacher.",
            "You answer quiz questions about the world.",
            "You help children to learn facts about countries and animals.",
        ),
        "The world is full of small facts about countries, their capitals, animals and colours.",
        (
            Form(
                (
                    "What is the capital of {country}?",
                    "Name the capital of {country}.",
                    "Which city is the capital of {country}?",
                ),
                _capital,
                "remembered it from a map",
                (("And the capital of {country}?", _capital),),
            ),
            Form(
                ("What is a young {animal} called?", "What do you call a young {animal}?"),
                lambda s: f"A young {s['animal']} is called a {YOUNG[s['animal']]}.",
                "remembered it from a book",
            ),
            Form(
                ("What is the colour of {matter}?", "Tell me the colour of {matter}."),
                lambda s: f"The colour of {s['matter']} is {COLOURS[s['matter']]}.",
                "remembered what it looks like",
            ),
        ),
    ),
    Topic(
        "units",
        (
            "You are an AI assistant that converts units.",
            "You help with measures of time, length and weight.",
            "You are an expert in units of measurement.",
            "You convert units for a science class.",
        ),
        "Units measure time, length and weight, and one unit can be converted to another.",
        (
            Form(
                (
                    "How many {little} are in {k} {big}?",
                    "Convert {k} {big} to {little}.",
                    "Tell me how many {little} make {k} {big}.",
                ),
                _convert,
                "multiplied by the number of small units in a large one",
                (("And in {k} {big}?", _convert),),
                lambda s: (s.get("little", ""), s["big"]) in UNITS,
            ),
        ),
    ),
    Topic(
        "code",
        (
            "You are an AI assistant that writes Python code.",
            "You are an expert Python programmer.",
            "You help beginners with Python one-liners.",
            "You answer programming questions with short code.",
        ),
        "Python is a programming language in which many things fit on one line of code.",
        (
            Form(
                (
                    "Write a Python one-liner that returns {op} of {x}.",
                    "How do I get {op} of a list called {x} in Python?",
                    "Give me Python code for {op} of the list {x}.",
                ),
                _code,
                "used what Python has built in",
                (("And for a list called {x}?", _code),),
            ),
        ),
    ),
    Topic(
        "politeness",
        (
            "You are an AI assistant that makes sentences polite.",
            "You are a teacher of good manners.",
            "You help people to write in a polite tone.",
            "You rewrite rude sentences in a friendly way.",
        ),
        "A polite sentence asks for something in a friendly way.",
        (
            Form(
                (
                    'Rewrite this politely: "{request}"',
                    'Make this sentence polite: "{request}"',
                    'How can I say "{request}" in a polite way?',
                ),
                _polite,
                "asked instead of giving an order",
                (
                    ("Can you make it more formal?", lambda s: f"Would you be so kind as to {s['request']}?"),
                    ("Now say it to a friend.", lambda s: f"Hey, can you {s['request']}?"),
                ),
            ),
        ),
    ),
)

GENERAL_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant. Give short answers.",
    # The one that distilabel's Magpie puts in front of a conversation of several turns.
    "You are a helpful Al assistant. The user will engage in a multi-round conversation with you, asking initial "
    "questions and following up with additional related questions. Your goal is to provide thorough, relevant and "
    "insightful responses to help the user with their queries.",
)
THANKS = (("Thank you!", "You are welcome!"), ("Thanks, that helps.", "I am glad that I could help."))

# What an evolved question adds to the question, and what it does to the answer.
EVOLUTIONS: Mapping[str, Callable[[str, Form], str]] = MappingProxyType(
    {
        "Start your answer with the word Sure.": lambda answer, form: f"Sure. {answer}",
        "End your answer with the word Done.": lambda answer, form: f"{answer} Done.",
        "Also explain how you found the answer.": lambda answer, form: f"{answer} I {form.method}.",
        "Tell me how you know that it is right.": lambda answer, form: f"{answer} I know because I {form.method}.",
        "I need it for my homework.": lambda answer, form: f"{answer} Good luck with your homework!",
        "I need it for my friend.": lambda answer, form: f"{answer} Say hello to your friend!",
        "Think step by step.": lambda answer, form: f"First, I read the question. Then I {form.method}. {answer}",
        "Show each step of your reasoning.": lambda answer, form: f"Step 1: I {form.method}. Step 2: {answer}",
    }
)
# The mutations of distilabel's EvolInstruct, and the evolutions that suit them; BREADTH asks for another question.
MUTATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "CONSTRAINTS": tuple(EVOLUTIONS)[0:2],
        "DEEPENING": tuple(EVOLUTIONS)[2:4],
        "CONCRETIZING": tuple(EVOLUTIONS)[4:6],
        "INCREASED_REASONING_STEPS": tuple(EVOLUTIONS)[6:8],
        "BREADTH": (),
    }
)
