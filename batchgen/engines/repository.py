"""Where a model's files are, and which version of them: a folder, or a commit on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from batchgen.embedded import MODEL_PATH
from batchgen.errors import ModelError
from batchgen.paths import expanded

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# A commit of a model in the Hub's cache: .../models--org--name/snapshots/<commit>
_CACHED = re.compile(r"models--(?P<name>[^/]+)/snapshots/[0-9a-f]{40}$")
_HUB_SECONDS = 10.0
# Of what a training leaves in a folder, only these change what a model says.
_MODEL_FILES = re.compile(
    r"(?!trainer_state).*\.(gguf|jinja|json|model|py|safetensors|tiktoken|txt)|(pytorch|adapter)_model.*\.bin"
)
_WHOLE = 64 << 20
_END = 1 << 20


@dataclass(frozen=True)
class Repository:
    """A model's files, as transformers and vLLM take them.

    Args:
        path: as the job has it.
        target: a folder, or a name on the Hub.
        revision: on the Hub, the commit, which never changes; None of a folder.
        commit: of a folder too, where it is the Hub's cache.
    """

    path: str
    target: str
    revision: str | None = None
    commit: str | None = None


def is_hub_name(path: str) -> bool:
    """Whether a path could be the name of a model or dataset on the Hub; a relative folder's may be, too."""
    return _HUB_NAME.fullmatch(path) is not None


def public_name(path: str, served: str | Sequence[str] | None = None) -> str:
    """What rows and dataset cards call a model: no folders of whoever runs it, as they may be published.

    Args:
        path: as the job has it.
        served: vLLM's `served_model_name`, which is taken where it is given; of several the first.
    """
    if served:
        return served if isinstance(served, str) else str(served[0])
    plain = path.rstrip("/")
    if is_hub_name(plain):
        return path
    if cached := _CACHED.search(plain):
        return cached["name"].replace("--", "/", 1)
    return PurePosixPath(plain).name or path


def find_folder(path: str) -> str:
    """The folder behind a job's `model.path`, or the path as it is where there is none."""
    if path == "embedded":
        return str(MODEL_PATH)
    folder = expanded(path)
    return str(folder) if folder.is_dir() else path


def find_model(path: str, revision: str | None = None) -> Repository:
    """Finds a model's files; downloads no more of them than its config.

    Where the Hub cannot be asked, its cache on this machine has to do.

    Raises:
        ModelError: there is no such model, or none that may be read with the token of the environment.
    """
    target = find_folder(path)
    if Path(target).is_dir():
        if not (Path(target) / "config.json").is_file():
            adapter = (Path(target) / "adapter_config.json").is_file()
            hint = ", and a LoRA adapter, which belongs to model.lora beside its base model" * adapter
            raise ModelError(f"model.path: the folder {path!r} holds no model (it has no config.json{hint})")
        return Repository(path, target)
    if expanded(path).is_file():
        raise ModelError(
            f"model.path: {path!r} is a file; a model is a folder with a config.json, or a name on the Hub"
        )
    if not is_hub_name(path):
        raise ModelError(f"model.path: there is no folder {path!r}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    offline = not _hub_answers(path, revision)
    try:
        # By the revision's own name: what is in the cache is found under it later, without the Hub.
        config = hf_hub_download(path, "config.json", revision=revision, local_files_only=offline)
    except GatedRepoError as error:
        raise ModelError(f"model.path: {path!r} is gated; accept its terms and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"model.path: {path!r} is neither a folder here nor a model that the Hugging Face Hub lets this token read"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"model.revision: {path!r} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"model.path: {path!r} is neither a folder here nor in the local cache, and the Hugging Face Hub "
            "cannot be reached"
        ) from error
    except EntryNotFoundError as error:
        raise ModelError(f"model.path: {path!r} holds no model (it has no config.json)") from error
    except Exception as error:  # a full disk, a proxy, an answer that the client does not know
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"model.path: the config of {path!r} cannot be loaded: {reason}") from error
    snapshot = Path(config).parent
    if offline:
        # As a folder: vLLM asks the Hub for a name's files even where all of them are in the cache.
        return Repository(path, str(snapshot), commit=snapshot.name)
    return Repository(path, path, snapshot.name, snapshot.name)


def _hub_answers(path: str, revision: str | None) -> bool:
    """Whether the Hub can be asked for a model, whatever it says."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi().model_info(path, revision=revision, timeout=_HUB_SECONDS)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return True
    except Exception:  # no network, offline mode, a proxy's answer: all of them mean "ask the cache"
        return False
    return True


def files_digest(folder: str) -> str:
    """128 bits over a model's or adapter's files, to see whether they are the same later.

    Of large files only the size and both ends count, which differ between any two trainings.
    """
    digest = hashlib.blake2b(digest_size=16)
    files = (path for path in expanded(folder).iterdir() if _MODEL_FILES.fullmatch(path.name))
    for path in sorted(path for path in files if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(size if size <= _WHOLE else _END))
            if size > _WHOLE:
                file.seek(-_END, 2)
                digest.update(file.read())
    return digest.hexdigest()
