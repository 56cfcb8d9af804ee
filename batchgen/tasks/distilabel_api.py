"""The only import of distilabel, and what it does to a process undone.

Importing distilabel installs a traceback hook that prints local variables, which would put prompts and completions into
logs, and its steps log several lines for every row.
"""

from __future__ import annotations

import logging
import sys
import warnings

from pydantic.warnings import UnsupportedFieldAttributeWarning

_excepthook = sys.excepthook
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import distilabel.steps.tasks as tasks
    from distilabel.models.llms.base import LLM
    from distilabel.models.mixins.magpie import MagpieChatTemplateMixin
    from distilabel.steps.tasks.evol_instruct.utils import MUTATION_TEMPLATES
    from distilabel.steps.tasks.math_shepherd.completer import SYSTEM_PROMPT_STRUCTURED as STRUCTURED_COMPLETIONS
    from distilabel.steps.tasks.math_shepherd.generator import SYSTEM_PROMPT_STRUCTURED as STRUCTURED_SOLUTIONS
sys.excepthook = _excepthook
# distilabel's annotations make pydantic say this for every subclass of one of its tasks.
warnings.filterwarnings("ignore", "The 'default' attribute with value None", UnsupportedFieldAttributeWarning)
logging.getLogger("distilabel").setLevel(logging.CRITICAL)

__all__ = [
    "LLM",
    "MUTATION_TEMPLATES",
    "STRUCTURED_COMPLETIONS",
    "STRUCTURED_SOLUTIONS",
    "MagpieChatTemplateMixin",
    "tasks",
]
