"""Prompts in the formats of known models, compared as token ids with what the model's own tokenizer gives."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from batchgen.embedded import MODEL_PATH
from batchgen.engines.base import Completion, Prompt
from batchgen.engines.tokenizer import chat_from_tokenizer
from batchgen.errors import ModelError
from tests.templates import TEMPLATES, Template

SYSTEM = {"role": "system", "content": "You help with math."}
FIRST = [{"role": "user", "content": "What is 2 plus 3?"}, {"role": "assistant", "content": "It is 5."}]
SECOND = {"role": "user", "content": "And 4 plus 4?"}


def conversation(tokenizer, template: Template, messages: list[dict[str, str]], **options):
    """A conversation by the tokenizer itself, whose template may want parts."""
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} if template.in_parts else m for m in messages]
    return tokenizer.apply_chat_template(parts, return_dict=False, **options)


def tokenizer_of(template: Template):
    """The embedded tokenizer with a model's special tokens and template."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    tokenizer.add_special_tokens({"additional_special_tokens": list(template.special)})
    tokenizer.bos_token = template.bos or template.named_bos
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
        own = conversation(tokenizer, template, messages, add_generation_prompt=True)
        prompt = chat.prompt(messages)
        assert list(prompt.token_ids) == own
        assert all(message["content"] in prompt.text for message in messages)
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
        whole = conversation(tokenizer, template, [*messages, user], tokenize=False)
        opened = chat.user_prompt(messages)
        assert whole.startswith(opened.text), "no empty assistant header before the user's"
        assert whole[len(opened.text) :].lstrip(" ").startswith(user["content"])
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert ids[: len(opened.token_ids)] == list(opened.token_ids), "no token that the conversation has not"
        assert tokenizer.decode(opened.token_ids) == opened.text


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
    before = conversation(tokenizer, template, FIRST, tokenize=False)
    assert chat.user_prompt(FIRST).text == before + opening


@pytest.mark.parametrize("given", ["[gMASK]<sop>", ""])
def test_what_a_conversation_begins_with_stands_once_where_the_tokenizer_does_not_name_it(given: str):
    template = TEMPLATES["glm-4.6"]
    tokenizer = tokenizer_of(template)
    chat = chat_from_tokenizer(tokenizer, given + "<|user|>\nAs a teacher, ")
    assert chat.user_prompt([]).text == "[gMASK]<sop><|user|>\nAs a teacher, "
    before = conversation(tokenizer, template, FIRST, tokenize=False)
    assert chat.user_prompt(FIRST).text == before + "<|user|>\nAs a teacher, "


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if template.bos is None])
def test_where_a_template_has_no_bos_a_pre_query_template_stays_as_it_is(name: str):
    template = TEMPLATES[name]
    tokenizer = tokenizer_of(template)
    opening = template.opening.removeprefix("[gMASK]<sop>")
    chat = chat_from_tokenizer(tokenizer, opening)
    assert chat.user_prompt([]).text.removeprefix("[gMASK]<sop>") == opening
    assert chat.user_prompt(FIRST).text == conversation(tokenizer, template, FIRST, tokenize=False) + opening


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
    messages = [{"role": "user", "content": "sum"}]
    # Some templates have a space before a user's words, which is the model's to write.
    space = " " if chat.prompt(messages).text.startswith(f"{opened.text} sum") else ""
    # One character a token: never what the tokenizer makes of a word.
    spelled = [tokenizer(character, add_special_tokens=False)["input_ids"][-1] for character in f"{space}sum"]
    written = tokenizer.decode(spelled)
    assert tokenizer(written, add_special_tokens=False)["input_ids"] != spelled
    known = chat.continued(opened, Completion(written, "stop", 0, len(spelled), spelled))
    assert known == Prompt(opened.text + written, [*opened.token_ids, *spelled])
    again = chat.prompt(messages, known)
    assert again.text == chat.prompt(messages).text
    kept = list(again.token_ids)[: len(known.token_ids)] == list(known.token_ids)
    # Only a special token right after the text makes the rest of the tokens the same as in one piece.
    assert kept == (template.stop in template.special)


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("command-a", "<|START_RESPONSE|>It is 5.", "It is 5."),
        ("command-a", " It is 5.", " It is 5."),
        ("glm-4.6", "\n<think></think>\nIt is 5.", "It is 5."),
        ("qwen-2.5", "ChatML ends a turn with <|im_end|>.", "ChatML ends a turn with <|im_end|>."),
        ("gpt-oss", "It is 5.<|end|><|start|>assistant", "It is 5."),
        ("llama-3", "It is 5.\n", "It is 5.\n"),
        ("vicuna", "It is 5. USER: And 6?", "It is 5. USER: And 6?"),
    ],
)
def test_what_a_template_has_around_an_answer_is_no_part_of_one(name: str, text: str, answer: str):
    assert chat_from_tokenizer(tokenizer_of(TEMPLATES[name])).unwrapped(text) == answer


def test_a_template_that_cannot_write_what_it_is_asked_for_is_refused():
    tokenizer = tokenizer_of(TEMPLATES["qwen-2.5"])
    for source, reason in (
        ("{{ functions[0] }}{{ messages[0].content }}", "cannot write a user message: 'functions' is undefined"),
        ("{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}", "drops or changes user messages"),
    ):
        tokenizer.chat_template = source
        with pytest.raises(ModelError, match=reason):
            chat_from_tokenizer(tokenizer).check_prompt()
    tokenizer.chat_template = "{{ functions }}{{ messages[0].content }}"
    chat_from_tokenizer(tokenizer, arguments={"functions": "none"}).check_prompt()


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
