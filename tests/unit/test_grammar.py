"""The embedded model's grammar, and what the shipped model was measured to do."""

from __future__ import annotations

import json
import random

import pytest

from batchgen.embedded import MODEL_PATH, grammar
from batchgen.embedded.topics import TOPICS, Topic


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_every_question_parses_back_to_its_topic_and_answer(topic: Topic):
    rng = random.Random(3)
    for _ in range(300):
        question, meant = grammar.sample_question(rng, topic)
        parsed = grammar.parse(question)
        assert parsed is not None
        assert parsed.topic is topic
        assert parsed.answer == meant.answer
        assert grammar.parse_follow_up(grammar.sample_follow_up(rng, meant)[0])


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is 7 plus 5?", "7 plus 5 is 12."),
        ("Calculate 20 - 3.", "20 minus 3 is 17."),
        ("Sort these words: river, apple, table.", "apple, river, table"),
        ("What is the capital of Peru?", "The capital of Peru is Lima."),
        ("Convert 3 hours to minutes.", "3 hours are 180 minutes."),
        ('Rewrite this politely: "open the door"', "Could you please open the door?"),
        (
            "What is 7 plus 5? Start your answer with the word Sure. I need it for my friend.",
            "Sure. 7 plus 5 is 12. Say hello to your friend!",
        ),
    ],
)
def test_right_answers(question: str, answer: str):
    parsed = grammar.parse(question)
    assert parsed is not None
    assert parsed.answer == answer


@pytest.mark.parametrize(
    "text", ["", "What is 7 plus banana?", "What is the capital of Paris?", "Convert 3 hours to grams."]
)
def test_other_text_does_not_parse(text: str):
    assert grammar.parse(text) is None


def test_the_shipped_model_is_small_and_was_measured_to_be_good_enough():
    assert (MODEL_PATH / "model.safetensors").stat().st_size <= 8_000_000
    measured = json.loads((MODEL_PATH / "evaluation.json").read_text())
    assert measured["magpie_parses"] >= 0.9
    assert measured["magpie_distinct"] >= 0.5
    assert measured["system_prompt_steers"] >= 0.9
