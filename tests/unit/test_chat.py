"""User turns opened and closed by a model's own chat template."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoTokenizer

from batchgen.embedded import MODEL_PATH
from batchgen.engines.chat import TemplateChat, byte_chat
from batchgen.engines.repository import find_model
from batchgen.engines.tokenizer import chat_from_tokenizer, has_chat_template, load_tokenizer
from batchgen.errors import ModelError, RowRejected

LLAMA3 = (
    "{{- '<|begin_of_text|>' }}{% for m in messages %}"
    "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{- '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{- '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{- m.content + '</s>' }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{- '<bos>' }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n'"
    " + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"
)
NO_USER = "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"
BARE = "{% for m in messages %}{{ m.content }}{% endfor %}"

SYSTEM = {"role": "system", "content": "S."}
TURN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_PATH)


def chat_with(tokenizer, template: str, **options):
    tokenizer.chat_template = template
    return chat_from_tokenizer(tokenizer, **options)


@pytest.mark.parametrize(
    ("template", "opening", "after_a_turn", "stop"),
    [
        (
            LLAMA3,
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
            "Yo<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|>",
        ),
        (MISTRAL, "<s>[INST]", "[/INST]Yo</s>[INST]", "[/INST]"),
        (GEMMA, "<bos><start_of_turn>user\n", "Yo<end_of_turn>\n<start_of_turn>user\n", "<end_of_turn>"),
    ],
)
def test_user_turns_of_known_formats(tokenizer, template: str, opening: str, after_a_turn: str, stop: str):
    chat = chat_with(tokenizer, template)
    chat.check_user_turn()
    assert tokenizer.decode(chat.user_prompt([]).token_ids) == opening
    assert tokenizer.decode(chat.user_prompt(TURN).token_ids).endswith(after_a_turn)
    assert chat.user_stop == ((stop,), ())


def test_the_embedded_model_s_turn_ends_with_one_token(tokenizer):
    chat = chat_from_tokenizer(tokenizer)
    chat.check_user_turn()
    assert (
        tokenizer.decode(chat.user_prompt([SYSTEM]).token_ids) == "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\n"
    )
    assert chat.user_stop == ((), (tokenizer.convert_tokens_to_ids("<|im_end|>"),))


def test_prompts_are_the_tokens_that_the_tokenizer_gives_for_the_conversation(tokenizer):
    chat = chat_from_tokenizer(tokenizer)
    messages = [SYSTEM, *TURN, {"role": "user", "content": "What is 5 plus 3?"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert chat.prompt(messages).token_ids == expected
    # A user turn's opening is the beginning of the same conversation.
    assert expected[: len(chat.user_prompt([SYSTEM, *TURN]).token_ids)] == chat.user_prompt([SYSTEM, *TURN]).token_ids


def test_a_bos_of_the_template_is_not_doubled(tokenizer):
    chat = chat_with(tokenizer, LLAMA3)
    assert tokenizer.decode(chat.prompt([{"role": "user", "content": "x"}]).token_ids).count("<|begin_of_text|>") == 1


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (NO_USER, "drops or changes user messages"),
        (BARE, "does not mark where a user turn ends"),
        ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "writes nothing before a user turn"),
        ("{{ raise_exception('chat is off') }}", "chat is off"),
    ],
)
def test_a_template_that_cannot_open_a_user_turn_is_refused_with_the_reason(tokenizer, template: str, reason: str):
    with pytest.raises(ModelError, match=reason):
        chat_with(tokenizer, template).check_user_turn()


def test_a_given_pre_query_template_overrides(tokenizer):
    chat = chat_with(tokenizer, MISTRAL, pre_query_template="<s>[INST] As a teacher, ")
    assert tokenizer.decode(chat.user_prompt([]).token_ids) == "<s>[INST] As a teacher, "


@pytest.mark.parametrize("begin", ["", "<|endoftext|>"])
@pytest.mark.parametrize("given", ["", "<|endoftext|>"])
def test_a_conversation_begins_once_whatever_its_pre_query_template_says(tokenizer, begin: str, given: str):
    opening = "<|im_start|>user\nAs a teacher, "
    chat = chat_with(tokenizer, begin + tokenizer.chat_template, pre_query_template=given + opening)
    if begin:
        given = begin
    assert chat.user_prompt([]).text == given + opening
    system = "<|im_start|>system\nS.<|im_end|>\n"
    turn = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    # A template without a BOS knows of none that a given text could repeat.
    second = opening if begin else given + opening
    assert chat.user_prompt([SYSTEM]).text == begin + system + second
    assert chat.user_prompt([SYSTEM, *TURN]).text == begin + system + turn + second


def test_models_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ModelError, match="there is no folder"):
        find_model(str(tmp_path / "nope"))
    with pytest.raises(ModelError, match=r"has no config\.json\)$"):
        find_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json, and a LoRA adapter, which belongs to model\.lora beside its"):
        find_model(str(tmp_path))
    with pytest.raises(ModelError, match=r"is a file; a model is a folder with a config\.json"):
        find_model(str(tmp_path / "adapter_config.json"))


def test_whatever_keeps_the_hub_s_client_from_a_model_is_named(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    monkeypatch.setattr("batchgen.engines.repository._hub_answers", lambda *_: True)
    with pytest.raises(ModelError, match=r"the config of 'org/tiny' cannot be loaded: .*No space left on device"):
        find_model("org/tiny")


def test_a_model_in_two_formats_is_read_in_the_one_with_a_chat_template(tmp_path):
    """Mistral's newer models have `tekken.json` beside `tokenizer.json`; newer transformers take the former."""
    shutil.copytree(MODEL_PATH, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))
    (tmp_path / "model" / "tekken.json").write_text("{}")
    assert has_chat_template(load_tokenizer(find_model(str(tmp_path / "model"))))


def test_a_tokenizer_of_the_engine_arguments_is_the_one_that_prompts_are_written_with(tmp_path):
    shutil.copytree(MODEL_PATH, tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(MISTRAL)
    tokenizer = load_tokenizer(find_model("embedded"), arguments={"tokenizer": str(tmp_path / "tokenizer")})
    assert tokenizer.chat_template == MISTRAL
    with pytest.raises(ModelError, match=r"model\.engine\.tokenizer: the tokenizer of .*nope"):
        load_tokenizer(find_model("embedded"), arguments={"tokenizer": str(tmp_path / "nope")})


def test_the_template_is_given_the_job_s_arguments(tokenizer):
    tokenizer.chat_template = "{{ messages[0].content }}{% if not enable_thinking %}<think></think>{% endif %}"
    messages = [{"role": "user", "content": "Hi"}]
    texts = [chat_from_tokenizer(tokenizer, None, {"enable_thinking": value}).prompt(messages).text for value in (0, 1)]
    assert texts == ["Hi<think></think>", "Hi"]


def test_a_base_model_goes_on_from_a_text(tokenizer):
    tokenizer.chat_template = None
    chat = chat_from_tokenizer(tokenizer)
    text = "# Query: What is 2 plus 3?\n# Answer:"
    assert chat.prompt([{"role": "user", "content": text}]).token_ids == tokenizer(text)["input_ids"]
    with pytest.raises(RowRejected, match="needs_chat_template"):
        chat.prompt([SYSTEM, *TURN])


def test_marks_around_an_answer_are_found_whatever_a_prompt_opens_before_it(tokenizer):
    """Command R7B's prompts end in empty thoughts, which a conversation's answers do not have before them."""
    marks = ["<|turn|>", "<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"]
    tokenizer.add_tokens(marks)
    chat = chat_with(
        tokenizer,
        "{% for m in messages %}<|turn|>{{ m.role }}: {% if m.role == 'assistant' %}<|START_RESPONSE|>{{ m.content }}"
        "<|END_RESPONSE|>{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant: <|START_THINKING|><|END_THINKING|>{% endif %}",
    )
    assert chat.unwrapped("<|START_RESPONSE|>Yo<|END_RESPONSE|>") == "Yo"
    assert chat.unwrapped("Yo <|END_RESPONSE|>\nAnd more") == "Yo"
    assert chat.unwrapped(" Yo ") == " Yo "


@pytest.mark.parametrize(
    "template", ["{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "{{ x.y }}"]
)
def test_a_template_that_shows_no_answer_has_nothing_around_one(tokenizer, template: str):
    assert chat_with(tokenizer, template).unwrapped(" Yo<|im_end|>") == " Yo<|im_end|>"


def test_a_prompt_of_several_generations_is_encoded_once():
    """Rows one after the other, four generations of each, as a worker begins them."""
    encoded: list[str] = []

    def encode(text: str) -> list[int]:
        encoded.append(text)
        return list(text.encode())

    chat = TemplateChat(lambda messages, _: messages[0]["content"], encode, {})
    prompts = [chat.prompt([{"role": "user", "content": f"row {number // 4}"}]) for number in range(400)]
    assert encoded == [f"row {number}" for number in range(100)]
    assert [bytes(prompt.token_ids).decode() for prompt in prompts] == [f"row {number // 4}" for number in range(400)]


def test_bytes_survive_any_text():
    ids = byte_chat().prompt([{"role": "user", "content": "Grüße 🙂"}]).token_ids
    assert "Grüße 🙂" in bytes(ids).decode()
