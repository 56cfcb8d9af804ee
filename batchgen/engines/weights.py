"""Brings a model's weights from the Hub to this machine before an engine loads them, and tells how far they are.

vLLM would fetch them as well, but without a word, and within a start that is taken for hung after `start_seconds`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from batchgen.engines.base import EngineSpec
from batchgen.errors import EngineStartError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_INDEX = "model.safetensors.index.json"
_HUB_SECONDS = 10.0
# What takes less is not worth a word; what has brought nothing for so long may hang.
_TELL_SECONDS = 5.0
_STILL_SECONDS = 120.0


class Weights:
    """The weights of one engine's model.

    Only those of which it is certain that the engine will load them: safetensors of a commit on the Hub. Others are
    left to the engine, as is whatever the Hub has to say against it.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._cache: Path | None = None
        self._total = self._before = self._seen = 0
        self._begun = self._moved = 0.0

    @property
    def reason(self) -> str:
        """How far a download is, as long as something comes; "" where none is under way."""
        cache = self._cache  # a thread sets it
        if cache is None:
            return ""
        now, come = time.monotonic(), _bytes(cache) - self._before
        if come != self._seen:
            self._seen, self._moved = come, now
        if now - self._begun < _TELL_SECONDS or now - self._moved > _STILL_SECONDS:
            return ""
        total = f"of {_size(self._total)}" if self._total else "so far"
        return f"{self._spec.path} is being downloaded, {_size(come)} {total}"

    async def fetch(self) -> None:
        """Returns as soon as they are here.

        Raises:
            EngineStartError: they did not come.
        """
        spec = self._spec
        hub = spec.backend != "openai" and spec.revision is not None and _COMMIT.fullmatch(spec.revision)
        if hub and spec.arguments.get("load_format", "auto") in ("auto", "hf", "safetensors"):
            await asyncio.to_thread(self._fetch)

    def _fetch(self) -> None:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
        from huggingface_hub.file_download import repo_folder_name

        path, revision = self._spec.path, self._spec.revision
        place = self._spec.arguments.get("download_dir") or constants.HF_HUB_CACHE
        folder = Path(place) / repo_folder_name(repo_id=path, repo_type="model")
        missing = _missing(self._spec, folder / "snapshots" / str(revision), place)
        if not missing:
            return
        self._total, self._before = sum(missing.values()), _bytes(folder / "blobs")
        self._begun = self._moved = time.monotonic()
        self._cache = folder / "blobs"
        try:
            snapshot_download(path, revision=revision, cache_dir=place, allow_patterns=sorted(missing))
        except (GatedRepoError, RepositoryNotFoundError):
            return  # the engine will be refused as well, in better words
        except Exception as error:  # its text may hold an address that is signed
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise EngineStartError(f"the weights of {path!r} cannot be downloaded: {reason}") from None
        finally:
            self._cache = None


def _missing(spec: EngineSpec, snapshot: Path, cache: str) -> Mapping[str, int]:
    """Weights that are not in the cache, with their bytes; none where that cannot be told."""
    if _is_whole(snapshot):
        return {}
    from huggingface_hub import HfApi, hf_hub_download

    with contextlib.suppress(Exception):  # the engine asks the Hub again, and says what is wrong
        about = HfApi().model_info(spec.path, revision=spec.revision, timeout=_HUB_SECONDS, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in about.siblings or ()}
        if any(fnmatchcase(name, "consolidated*.safetensors") for name in sizes):
            return {}  # Mistral's own form beside transformers': which one vLLM takes depends on its version
        wanted = {name for name in sizes if name.endswith(".safetensors") and "/" not in name}
        if _INDEX in sizes:
            wanted = _indexed(Path(hf_hub_download(spec.path, _INDEX, revision=spec.revision, cache_dir=cache)))
        return {name: sizes.get(name, 0) for name in wanted if not (snapshot / name).exists()}
    return {}


def _is_whole(snapshot: Path) -> bool:
    """Whether a commit's weights are all in the cache, as far as that can be told without the Hub."""
    index = snapshot / _INDEX
    if index.is_file():
        return all((snapshot / name).exists() for name in _indexed(index))
    return (snapshot / "model.safetensors").exists()


def _indexed(index: Path) -> set[str]:
    return set(json.loads(index.read_text())["weight_map"].values())


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _bytes(folder: Path) -> int:
    """What is on the disk of a folder's files: a client may give them their length before they are here."""
    total = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):  # it has just been given its name
                about = entry.stat()
                total += min(about.st_size, 512 * about.st_blocks)
    return total
