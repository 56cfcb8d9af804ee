"""Prompts in the formats of known models, compared as token ids with what the model's own tokenizer gives."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from batchgen.embedded import MODEL_PATH
from batchgen.engines.base import Completion, Prompt
from batchgen.engines.chat import chat_from_tokenizer
from tests.templates import TEMPLATES, Template

SYSTEM = {"role": "system", "content": "You help with math."}
FIRST = [{"role": "user", "content": "What is 2 plus 3?"}, {"role": "assistant", "content": "It is 5."}]
SECOND = {"role": "user", "content": "And 4 plus 4?"}


def tokenizer_of(template: Template):
    """The embedded tokenizer with a model's special tokens and template."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    tokenizer.add_special_tokens({"additional_special_tokens": list(template.special)})
    if template.bos is not None:
        tokenizer.bos_token = template.bos
    ends = [token for token in template.special if token in ("</s>", "<|endoftext|>", "<｜end▁of▁sentence｜>")]
    if ends:
        tokenizer.eos_token = ends[0]
    tokenizer.chat_template = template.source
    return tokenizer


CASES = [(name, system) for name, template in TEMPLATES.items() for system in ((False, True)[: 1 + template.system])]


@pytest.mark.parametrize(("name", "system"), CASES)
def test_prompts_are_the_tokenizer_s_own_tokens(name: str, system: bool):
    template = TEMPLATES[name]
    tokenizer = tokenizer_of(template)
    chat = chat_from_tokenizer(tokenizer)
    before = [SYSTEM] if system else []
    for messages in ([*before, FIRST[0]], [*before, *FIRST, SECOND]):
        own = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        prompt = chat.prompt(messages)
        assert list(prompt.token_ids) == own
        if template.bos is not None:
            bos = tokenizer.convert_tokens_to_ids(template.bos)
            assert own[0] == bos != own[1], "one BOS"


@pytest.mark.parametrize(("name", "system"), CASES)
def test_a_user_turn_opens_where_the_same_conversation_has_it(name: str, system: bool):
    template = TEMPLATES[name]
    tokenizer = tokenizer_of(template)
    chat = chat_from_tokenizer(tokenizer)
    before = [SYSTEM] if system else []
    for messages, user in ((before, FIRST[0]), ([*before, *FIRST], SECOND)):
        whole = tokenizer.apply_chat_template([*messages, user], tokenize=False)
        opened = chat.user_prompt(messages)
        assert whole.startswith(opened.text + user["content"]), "no empty assistant header before the user's"
        assert list(opened.token_ids) == tokenizer(opened.text, add_special_tokens=False)["input_ids"]


LEAVES_OUT = (
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize("kind", ["refuses", "leaves out"])
def test_without_a_system_role_the_prompt_stands_before_the_first_message(kind: str):
    tokenizer = tokenizer_of(TEMPLATES["gemma-2" if kind == "refuses" else "qwen-2.5"])
    if kind == "leaves out":
        tokenizer.chat_template = LEAVES_OUT
    chat = chat_from_tokenizer(tokenizer)
    first = {**FIRST[0], "content": f"{SYSTEM['content']}\n\n{FIRST[0]['content']}"}
    own = tokenizer.apply_chat_template([first, FIRST[1], SECOND], add_generation_prompt=True, return_dict=False)
    assert list(chat.prompt([SYSTEM, *FIRST, SECOND]).token_ids) == own
    opening = chat.user_prompt([SYSTEM]).text
    assert opening == chat.user_prompt([]).text + SYSTEM["content"] + "\n\n"
    assert chat.prompt([SYSTEM, FIRST[0]]).text.startswith(opening + FIRST[0]["content"])
    overridden = chat_from_tokenizer(tokenizer, "<start>user\n")
    begin = "<bos>" if kind == "refuses" else ""
    assert overridden.user_prompt([SYSTEM]).text == f"{begin}<start>user\n{SYSTEM['content']}\n\n"


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if template.bos is not None])
@pytest.mark.parametrize("given", ["with its BOS", "without"])
def test_a_pre_query_template_of_the_job_s_gives_one_bos(name: str, given: str):
    template = TEMPLATES[name]
    assert template.bos is not None
    tokenizer = tokenizer_of(template)
    bos = tokenizer.convert_tokens_to_ids(template.bos)
    opening = template.opening.removeprefix(template.bos)
    chat = chat_from_tokenizer(tokenizer, (template.bos if given == "with its BOS" else "") + opening)
    assert list(chat.user_prompt([]).token_ids) == [bos, *tokenizer(opening, add_special_tokens=False)["input_ids"]]
    before = tokenizer.apply_chat_template(FIRST, tokenize=False)
    assert chat.user_prompt(FIRST).text == before + opening


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if template.bos is None])
def test_where_a_template_has_no_bos_a_pre_query_template_stays_as_it_is(name: str):
    tokenizer = tokenizer_of(TEMPLATES[name])
    opening = TEMPLATES[name].opening
    chat = chat_from_tokenizer(tokenizer, opening)
    assert chat.user_prompt([]).text == opening
    assert chat.user_prompt(FIRST).text == tokenizer.apply_chat_template(FIRST, tokenize=False) + opening


@pytest.mark.parametrize("name", TEMPLATES)
def test_openings_and_ends_of_user_turns(name: str):
    template = TEMPLATES[name]
    tokenizer = tokenizer_of(template)
    chat = chat_from_tokenizer(tokenizer)
    chat.check_user_turn()
    assert chat.user_prompt([]).text == template.opening
    stops, stop_ids = chat.user_stop
    if template.stop in template.special:
        assert (stops, stop_ids) == ((), (tokenizer.convert_tokens_to_ids(template.stop),))
    else:
        assert (stops, stop_ids) == ((template.stop,), ())


@pytest.mark.parametrize("name", TEMPLATES)
def test_generated_tokens_are_kept_where_the_text_allows_it(name: str):
    """A model may write a text with other tokens than its tokenizer would."""
    template = TEMPLATES[name]
    tokenizer = tokenizer_of(template)
    chat = chat_from_tokenizer(tokenizer)
    opened = chat.user_prompt([])
    # One character a token: never what the tokenizer makes of a word.
    spelled = [tokenizer(character, add_special_tokens=False)["input_ids"][-1] for character in "sum"]
    written = tokenizer.decode(spelled)
    assert tokenizer(written, add_special_tokens=False)["input_ids"] != spelled
    known = chat.continued(opened, Completion(written, "stop", 0, 3, spelled))
    assert known == Prompt(opened.text + written, [*opened.token_ids, *spelled])
    messages = [{"role": "user", "content": written}]
    again = chat.prompt(messages, known)
    assert again.text == chat.prompt(messages).text
    kept = list(again.token_ids)[: len(known.token_ids)] == list(known.token_ids)
    # Only a special token right after the text makes the rest of the tokens the same as in one piece.
    assert kept == (template.stop in template.special)


def test_tokens_are_not_kept_where_the_template_changes_the_text():
    tokenizer = tokenizer_of(TEMPLATES["qwen-3"])
    chat = chat_from_tokenizer(tokenizer)
    question = [{"role": "user", "content": "Hi"}]
    thought = "<think>Hm.</think>\n\nHello."
    asked = chat.prompt(question)
    ids = tokenizer(thought.replace("<think>", "(").replace("</think>", ")"), add_special_tokens=False)["input_ids"]
    known = chat.continued(asked, Completion(thought, "stop", 0, len(ids), ids))
    messages = [*question, {"role": "assistant", "content": thought}]
    assert chat.user_prompt(messages, known) == chat.user_prompt(messages)


def test_special_tokens_and_broken_characters_are_not_kept():
    tokenizer = tokenizer_of(TEMPLATES["qwen-2.5"])
    chat = chat_from_tokenizer(tokenizer)
    prompt = chat.user_prompt([])
    special = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert chat.continued(prompt, Completion("a", "stop", 0, 2, [5, special])) is None
    assert chat.continued(prompt, Completion("a\ufffd", "stop", 0, 1, [5])) is None
    assert chat.continued(prompt, Completion("a", "stop", 0, 1)) is None
