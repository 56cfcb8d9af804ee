"""Looks at the models of a job before any engine starts: that they are there, and can write a conversation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from batchgen.engines.chat import TemplateChat, byte_chat
from batchgen.engines.modelconfig import check_architecture, longest_context
from batchgen.engines.repository import files_digest, find_folder, find_model, is_hub_name
from batchgen.engines.structure import check_structure
from batchgen.engines.tokenizer import chat_from_tokenizer, has_chat_template, load_tokenizer
from batchgen.errors import JobError, ModelError
from batchgen.job import Job
from batchgen.model import Model
from batchgen.paths import expanded
from batchgen.plan import ModelVersion
from batchgen.step import Step
from batchgen.tasks.table import TASKS


def check_models(job: Job, trust_remote_code: bool) -> dict[str | None, ModelVersion]:
    """The versions of the models that are used, by name.

    Raises:
        ModelError: one is not there, or cannot write what its steps ask of it.
        JobError: it is asked for more than it has.
    """
    versions = {}
    for name, model in job.used_models.items():
        steps = [step for step in job.steps if step.model == name]
        try:
            versions[name] = _check_model(model, steps, trust_remote_code)
        except (ModelError, JobError) as error:
            raise type(error)(named(name, str(error))) from error
    for index, step in enumerate(job.steps):
        structure = job.step_sampling(step).get("structured_outputs")
        model = job.model_of(step)
        if structure and model.is_local and model.backend == "vllm" and "structured_outputs_config" not in model.engine:
            where = f"steps[{index}].sampling" if "structured_outputs" in step.sampling else "sampling"
            check_structure(structure, f"{where}.structured_outputs")
    return versions


_FIELD = re.compile(rf"(?<![\w/.'-])model\.(?=(?:{'|'.join(Model.model_fields)})\b)")


def named(name: str | None, message: str) -> str:
    """What is said of a model, with the place that it has in the job.

    Args:
        name: in the job's `models`; None for its own.
    """
    if name is None:
        return message
    placed = _FIELD.sub(f"models.{name}.", message)
    return placed if placed != message else f"models.{name}: {message}"


def _check_model(model: Model, steps: Sequence[Step], trust_remote_code: bool) -> ModelVersion:
    if not model.is_local:
        return {}
    if trust_remote_code and model.revision is None and not Path(find_folder(model.path)).is_dir():
        raise JobError("--trust-remote-code: runs the model's own code; pin it with model.revision")
    if model.lora is not None and not (expanded(model.lora) / "adapter_config.json").is_file():
        if not expanded(model.lora).is_dir():
            hint = "; fetch one from the Hub with `hf download`" if is_hub_name(model.lora) else ""
            raise ModelError(f"model.lora: there is no folder {model.lora!r}{hint}")
        raise ModelError(f"model.lora: the folder {model.lora!r} holds no LoRA adapter (it has no adapter_config.json)")
    repository = find_model(model.path, model.revision)
    if "hf_overrides" not in model.engine:
        check_architecture(repository, any(step.spec.scored is not None for step in steps))
    tokenizer = load_tokenizer(repository, trust_remote_code, model.engine)
    chatting = [step.task for step in steps if step.spec.calls_model and not step.spec.plain]
    if chatting and not has_chat_template(tokenizer):
        raise ModelError(
            f"model.path: {model.path!r} has no chat template, which {chatting[0]} needs; tasks for such a base model: "
            f"{', '.join(name for name, spec in TASKS.items() if spec.plain)}"
        )
    wanted = model.engine.get("max_model_len")
    if isinstance(wanted, int) and "hf_overrides" not in model.engine:
        longest = longest_context(repository, trust_remote_code)
        if longest is not None and wanted > longest:
            raise JobError(f"model.engine.max_model_len: {model.path!r} takes at most {longest} tokens, got {wanted}")
    if chatting:
        chat = chat_from_tokenizer(tokenizer, model.pre_query_template, model.chat_template_kwargs)
        _check_chat(chat, model, any(step.spec.user_turns for step in steps))
    version = {"commit": repository.commit} if repository.commit else {"files": files_digest(repository.target)}
    return version | ({"lora_files": files_digest(model.lora)} if model.lora else {})


def _check_chat(chat: TemplateChat, model: Model, user_turns: bool) -> None:
    hint = "its template may want model.chat_template_kwargs"
    try:
        chat.check_prompt()
        hint = "set model.pre_query_template"
        if user_turns:
            chat.check_user_turn()
    except ModelError as error:
        raise ModelError(f"model.path: {model.path!r}: {error}; {hint}") from None


def chat_of(model: Model, trust_remote_code: bool) -> TemplateChat | None:
    """How a model writes a conversation; None where its server does.

    Raises:
        ModelError: it is not there, or cannot be loaded.
    """
    if model.path == "chaos":
        return byte_chat()
    if not model.is_local:
        return None
    tokenizer = load_tokenizer(find_model(model.path, model.revision), trust_remote_code, model.engine)
    return chat_from_tokenizer(tokenizer, model.pre_query_template, model.chat_template_kwargs)


def user_turns(job: Job, trust_remote_code: bool) -> dict[str, tuple[str, str]]:
    """How Magpie's user turns are opened and what ends them, by the path of each model that writes some."""
    turns = {}
    for name, model in job.used_models.items():
        if model.is_local and any(step.spec.user_turns for step in job.steps if step.model == name):
            chat = chat_of(model, trust_remote_code)
            assert chat is not None
            turns[model.path] = (chat.user_prompt([]).text, chat.user_end)
    return turns
