"""A job as a Mermaid flow chart."""

from __future__ import annotations

from batchgen.job import Job


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
        columns = ", ".join(step.outputs)
        lines.append(f'  {node}["{step.task}<br/>{_safe(columns)}"]')
        lines.append(f"  {before} {edge} {node}")
        before = node
        edge = f'== "{_safe(step.explode.strip())}" ==>' if step.explode else "-->"
    lines += [
        '  merge["merge"]',
        f"  {before} {edge} merge",
        f'  merge --> dataset[("{_safe(job.output)}/dataset")]',
    ]
    return "\n".join(lines)


def _safe(text: str) -> str:
    return text.replace('"', "#quot;").replace("<", "#lt;").replace("\n", " ").replace("->", "→")
