"""Chat templates in the formats of models that people run, shortened to the parts that matter here.

Each follows the template of the model's own repository: headers, ends of turns, BOS, default system prompts, what is
done with a system message, and what happens to thinking in earlier turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """One model's format.

    Args:
        opening: what comes before the first user message of an empty conversation.
        stop: what ends a user turn.
        special: its special tokens.
        bos: the token that the template itself writes first, where it writes one.
        named_bos: the token that the tokenizer calls its BOS, where the template does not write it.
        system: whether it takes a system message.
        in_parts: whether it reads contents as lists of parts alone, and drops a text.
    """

    source: str
    opening: str
    stop: str
    special: tuple[str, ...]
    bos: str | None = None
    named_bos: str | None = None
    system: bool = True
    in_parts: bool = False


_ALTERNATE = (
    "{%- for m in messages %}{%- if m.role != 'system' and (m.role == 'user') != (ns.n % 2 == 0) %}"
    "{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
    "{%- if m.role != 'system' %}{%- set ns.n = ns.n + 1 %}{%- endif %}{%- endfor %}"
)
_CHATML_BODY = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
_CHATML = ("<|im_start|>", "<|im_end|>")

TEMPLATES: Mapping[str, Template] = {
    "llama-3": Template(
        "{{- bos_token }}{%- if messages[0].role == 'system' %}{%- set system = messages[0].content | trim %}"
        "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
        "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\n' }}"
        "{{- system + '<|eot_id|>' }}"
        "{%- for m in messages %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim "
        "+ '<|eot_id|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\n"
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|>",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
    ),
    "qwen-2.5": Template(
        "{%- if messages[0].role != 'system' %}"
        "{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.<|im_end|>\n' }}{%- endif %}" + _CHATML_BODY,
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>",
        _CHATML,
    ),
    "qwen-3": Template(
        "{%- for m in messages %}{%- if m.role == 'assistant' %}"
        "{%- set content = m.content.split('</think>')[-1].lstrip('\n') if '</think>' in m.content else m.content %}"
        "{{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}"
        "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
        "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
        "{%- endif %}",
        "<|im_start|>user\n",
        "<|im_end|>",
        (*_CHATML, "<think>", "</think>"),
    ),
    "smollm2": Template(
        "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
        "trained by Hugging Face<|im_end|>\n' }}{%- endif %}" + _CHATML_BODY,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n",
        "<|im_end|>",
        _CHATML,
    ),
    "mistral": Template(
        "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}"
        "{%- set messages = messages[1:] %}{%- endif %}{%- set ns = namespace(n=0) %}" + _ALTERNATE + "{{- bos_token }}"
        "{%- for m in messages %}{%- if m.role == 'user' %}{%- if loop.last and system is defined %}"
        "{{- '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}{%- else %}{{- '[INST] ' + m.content + '[/INST]' }}"
        "{%- endif %}{%- else %}{{- ' ' + m.content | trim + eos_token }}{%- endif %}{%- endfor %}",
        "<s>[INST]",
        "[/INST]",
        ("<s>", "</s>", "[INST]", "[/INST]"),
        bos="<s>",
    ),
    "vicuna": Template(
        "{%- if messages[0].role == 'system' %}{{- messages[0].content + ' ' }}{%- set messages = messages[1:] %}"
        "{%- endif %}{%- for m in messages %}{%- if m.role == 'user' %}{{- 'USER: ' + m.content + ' ' }}"
        "{%- else %}{{- 'ASSISTANT: ' + m.content + '</s>' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}",
        "USER:",
        "ASSISTANT:",
        ("</s>",),
    ),
    "gemma-2": Template(
        "{{- bos_token }}{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}"
        "{%- endif %}{%- set ns = namespace(n=0) %}" + _ALTERNATE + "{%- for m in messages %}"
        "{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim "
        "+ '<end_of_turn>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}",
        "<bos><start_of_turn>user\n",
        "<end_of_turn>",
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        system=False,
    ),
    "gemma-3": Template(
        "{{- bos_token }}{%- if messages[0].role == 'system' %}{%- set first = messages[0].content + '\n\n' %}"
        "{%- set messages = messages[1:] %}{%- else %}{%- set first = '' %}{%- endif %}"
        "{%- set ns = namespace(n=0) %}" + _ALTERNATE + "{%- for m in messages %}"
        "{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first else '') "
        "+ m.content | trim + '<end_of_turn>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}",
        "<bos><start_of_turn>user\n",
        "<end_of_turn>",
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
    ),
    "phi-3": Template(
        "{%- for m in messages %}{{- '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}",
        "<|user|>\n",
        "<|end|>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "phi-3.5": Template(
        "{%- for m in messages %}{{- '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- else %}{{- eos_token }}{%- endif %}",
        "<|user|>\n",
        "<|end|>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
    ),
    "phi-4": Template(
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant<|im_sep|>' }}{%- endif %}",
        "<|im_start|>user<|im_sep|>",
        "<|im_end|>",
        (*_CHATML, "<|im_sep|>"),
    ),
    "olmo-2": Template(
        "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'assistant' %}"
        "{{- '<|assistant|>\n' + m.content + eos_token }}{%- if not loop.last %}{{- '\n' }}{%- endif %}"
        "{%- else %}{{- '<|' + m.role + '|>\n' + m.content + '\n' }}{%- endif %}"
        "{%- if loop.last and add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}{%- endfor %}",
        "<|endoftext|><|user|>\n",
        "<|assistant|>",
        ("<|endoftext|>",),
        bos="<|endoftext|>",
    ),
    "deepseek": Template(
        "{%- set ns = namespace(system='') %}{%- for m in messages %}{%- if m.role == 'system' %}"
        "{%- set ns.system = m.content %}{%- endif %}{%- endfor %}{{- bos_token + ns.system }}"
        "{%- for m in messages %}{%- if m.role == 'user' %}{{- '<｜User｜>' + m.content }}"
        "{%- elif m.role == 'assistant' %}{%- set content = m.content.split('</think>')[-1] %}"
        "{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<｜Assistant｜><think>\n' }}{%- endif %}",
        "<｜begin▁of▁sentence｜><｜User｜>",
        "<｜Assistant｜>",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        bos="<｜begin▁of▁sentence｜>",
    ),
    "deepseek-v3.1": Template(
        "{%- set ns = namespace(system='') %}{%- for m in messages %}{%- if m.role == 'system' %}"
        "{%- set ns.system = m.content %}{%- endif %}{%- endfor %}{{- bos_token + ns.system }}"
        "{%- for m in messages %}{%- if m.role == 'user' %}{{- '<｜User｜>' + m.content }}"
        "{%- elif m.role == 'assistant' %}"
        "{{- '<｜Assistant｜></think>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{%- endif %}"
        "{%- endfor %}{%- if add_generation_prompt %}"
        "{{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}{%- endif %}",
        "<｜begin▁of▁sentence｜><｜User｜>",
        "<｜Assistant｜>",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
        bos="<｜begin▁of▁sentence｜>",
    ),
    "glm-4.6": Template(
        "{{- '[gMASK]<sop>' }}{%- for m in messages %}{%- if m.role == 'assistant' %}"
        "{{- '<|assistant|>\n<think></think>\n' + m.content.split('</think>')[-1] | trim }}"
        "{%- else %}{{- '<|' + m.role + '|>\n' + m.content }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}",
        "[gMASK]<sop><|user|>\n",
        "<|assistant|>",
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<think>", "</think>"),
    ),
    "kimi-k2": Template(
        "{%- if messages[0].role != 'system' %}"
        "{{- '<|im_system|>system<|im_middle|>You are Kimi, an AI assistant.<|im_end|>' }}{%- endif %}"
        "{%- for m in messages %}{{- '<|im_' + m.role + '|>' + m.role + '<|im_middle|>' + m.content + '<|im_end|>' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_assistant|>assistant<|im_middle|>' }}{%- endif %}",
        "<|im_system|>system<|im_middle|>You are Kimi, an AI assistant.<|im_end|><|im_user|>user<|im_middle|>",
        "<|im_end|>",
        ("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>", "[BOS]"),
        named_bos="[BOS]",
    ),
    "command-a": Template(
        "{{- bos_token }}{%- for m in messages %}{{- '<|START_OF_TURN_TOKEN|>' }}{%- if m.role == 'assistant' %}"
        "{{- '<|CHATBOT_TOKEN|><|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}"
        "{%- else %}{{- '<|' + m.role | upper + '_TOKEN|>' + m.content }}{%- endif %}{{- '<|END_OF_TURN_TOKEN|>' }}"
        "{%- endfor %}{%- if messages[-1].role == 'user' %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}"
        "{%- endif %}",
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        (
            *("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"),
            *("<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        ),
        bos="<BOS_TOKEN>",
    ),
    "smolvlm": Template(
        "{{- '<|im_start|>' }}{%- for m in messages %}{{- m.role | capitalize + ':' }}"
        "{%- for part in m.content %}{%- if part.type == 'text' %}{{- ' ' + part.text }}{%- endif %}{%- endfor %}"
        "{{- '<end_of_utterance>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}",
        "<|im_start|>User:",
        "<end_of_utterance>",
        ("<|im_start|>", "<end_of_utterance>"),
        bos="<|im_start|>",
        in_parts=True,
    ),
    "gpt-oss": Template(
        "{{- '<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nReasoning: medium"
        "<|end|>' }}{%- for m in messages %}{%- if m.role == 'system' %}"
        "{{- '<|start|>developer<|message|># Instructions\n\n' + m.content + '\n\n<|end|>' }}"
        "{%- elif m.role == 'assistant' %}"
        "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}"
        "{%- else %}{{- '<|start|>user<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}",
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nReasoning: medium<|end|>"
        "<|start|>user<|message|>",
        "<|end|>",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"),
    ),
}
