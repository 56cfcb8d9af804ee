"""The step table: every task that a job may name. Imports nothing heavy.

A task is one `TaskSpec` in the module of its family; `runner.py` turns it into the distilabel task and runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from batchgen.tasks.chance import CHANCE
from batchgen.tasks.domain import DOMAIN
from batchgen.tasks.evolution import EVOLUTION
from batchgen.tasks.gates import GATES
from batchgen.tasks.generation import GENERATION
from batchgen.tasks.judging import JUDGING
from batchgen.tasks.reshaping import RESHAPING
from batchgen.tasks.rewards import REWARDS
from batchgen.tasks.spec import TaskSpec
from batchgen.tasks.structure import STRUCTURE

_FAMILIES = (GENERATION, EVOLUTION, JUDGING, REWARDS, DOMAIN, RESHAPING, GATES, CHANCE, STRUCTURE)
TASKS: Mapping[str, TaskSpec] = MappingProxyType(dict(sorted(entry for each in _FAMILIES for entry in each.items())))

# Classes of `distilabel.steps.tasks` that are no entry, and why.
LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        "APIGenExecutionChecker": "runs code that a model wrote; calls no LLM",
        "ArgillaLabeller": "needs the argilla package and its record objects",
        "EvolComplexityGenerator": "use evol_complexity over seed rows",
        "EvolInstructGenerator": "use evol_instruct over seed rows",
        "FormatPRM": "calls no LLM",
        "GenerateEmbeddings": "needs a model's hidden states",
        "ImageGeneration": "needs an image model",
        "MagpieGenerator": "use magpie over `source: {count: N}`",
        "PairRM": "needs a ranking model",
        "TextGenerationWithImage": "needs a vision model",
    }
)
