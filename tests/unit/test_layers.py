"""Rules of the tree: who may import what, and what is public."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import batchgen

ROOT = Path(batchgen.__file__).parent
# Lower layers first: a module imports only from its own layer and those above it in this list.
LAYERS = [
    ["errors"],
    [
        "rows",
        "yamlfile",
        "embedded",
        "faultpoints",
        "parquet",
        "store",
        "progress",
        "pulse",
        "meter",
        "sockets",
        "records",
        "paths",
        "plaintext",
        "patience",
        "deadline",
        "reasons",
        "trees",
        "outage",
        "stopsignals",
        "minhash",
        "repetition",
        "language",
        "complaint",
        "telling",
        "conditions",
    ],
    ["engines"],
    ["bridge"],
    ["tasks"],
    ["checks"],
    ["keys"],
    ["problems"],
    ["step"],
    ["model"],
    ["job"],
    ["seedfiles", "draw"],
    ["seeds", "columns"],
    ["benchmarks"],
    ["plan", "translation"],
    ["actions", "branches", "commit", "models", "remarks", "settle", "starts", "suspects"],
    ["enginestate", "inflight", "known", "software"],
    ["schedule"],
    ["generate", "fleet"],
    ["host", "drive"],
    ["prospects", "preview", "savedjob"],
    ["distributed"],
    ["card"],
    ["merge"],
    ["publish", "rejected", "upkeep"],
    ["hub"],
    ["result"],
    ["api"],
    ["display", "pipeline", "report"],
    ["commands", "inspecting"],
    ["cli"],
    ["__main__"],
]
# The embedded model's training script is a program of its own: it asks the tasks for their prompts.
EXEMPT = {"embedded/train.py"}
ONLY_IN = {"ray": "distributed/", "vllm": "engines/vllm", "distilabel": "tasks/distilabel_api.py"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_heavy_libraries_are_imported_in_one_place(name: str):
    for library, place in ONLY_IN.items():
        used = any(module == library or module.startswith(library + ".") for module in imports(ROOT / name))
        assert not used or name.startswith(place), f"{name} imports {library}"


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__.py" and name not in EXEMPT])
def test_imports_point_one_way(name: str):
    depth = {module: level for level, modules in enumerate(LAYERS) for module in modules}
    own = name.split("/")[0].removesuffix(".py")
    for module in imports(ROOT / name):
        if module.startswith("batchgen."):
            other = module.split(".")[1]
            if other in depth:
                assert depth[other] <= depth[own], f"{name} imports {module}"


def test_every_module_has_a_layer():
    tops = {name.split("/")[0].removesuffix(".py") for name in MODULES} - {"__init__"}
    assert tops == {module for modules in LAYERS for module in modules}


def test_the_public_surface():
    for name in batchgen.__all__:
        assert getattr(batchgen, name) is not None
    from batchgen import Job, run

    assert callable(run)
    assert Job.__module__ == "batchgen.job"
    with pytest.raises(AttributeError):
        _ = batchgen.nothing
