"""distilabel's tasks with what is wrong in them put right, by the name of the class that each replaces.

Each row runs alone (`process` gets one row) under `bridge.run_row`, which seeds `random` and numpy's global generator
for it. `tests/unit/test_task_fixes.py` and `test_completions.py` have a test for every difference.
"""

from __future__ import annotations

from typing import Any

from batchgen.tasks.distilabel_api import tasks
from batchgen.tasks.fixes import domain, judging, writing


def task_class(name: str) -> Any:
    """The class of a task: ours where distilabel's needs mending, else distilabel's own."""
    for family in (writing, judging, domain):
        if name in vars(family):
            return vars(family)[name]
    return getattr(tasks, name)
