"""A job as a Mermaid flow chart."""

from __future__ import annotations

from batchgen.job import Job
from batchgen.plaintext import one_line
from batchgen.step import Step


def mermaid(job: Job) -> str:
    """The way of a row through a job's steps; a fan-out is drawn as a thick edge."""
    kinds = ("count", "rows", "path", "dataset")
    kind = next(kind for kind in kinds if getattr(job.source, kind) is not None)
    value = getattr(job.source, kind)
    shown = f"{len(value)} inline" if kind == "rows" else value if isinstance(value, (str, int)) else ", ".join(value)
    lines = ["flowchart LR", f'  source["{kind}: {_safe(str(shown))}"]']
    before, edge = "source", "-->"
    for index, step in enumerate(job.steps):
        node = f"step{index}"
        columns = f"<br/>{_safe(', '.join(step.outputs))}" if step.outputs else ""
        on = f" on {_safe(step.model)}" if step.model is not None else ""
        lines.append(f'  {node}["{step.task}{on}{columns}"]')
        lines.append(f"  {before} {edge} {node}")
        before = node
        edge = _edge(step, job.generations(step))
    lines += [
        '  merge["merge"]',
        f"  {before} {edge} merge",
        f'  merge --> dataset[("{_safe(job.output)}/dataset")]',
    ]
    return "\n".join(lines)


def _edge(step: Step, generations: int) -> str:
    """Thick, with its reason, where a row becomes several."""
    reasons = [f"{generations} generations"] * (generations > 1 and not step.group_generations)
    reasons += [f"{column} -> {new}" for column, new in step.exploded.items()]
    return f'== "{_safe(", ".join(reasons))}" ==>' if reasons else "-->"


def _safe(text: str) -> str:
    return one_line(text).replace('"', "#quot;").replace("<", "#lt;").replace("->", "→")
