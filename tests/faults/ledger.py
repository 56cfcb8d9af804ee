"""What the fault tests found, read without batchgen's own code: rows expected, rows there, rows there twice.

`python -m tests.faults` runs those tests and makes a table of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ENVIRONMENT = "BATCHGEN_FAULT_LEDGER"


@dataclass(frozen=True)
class Line:
    """A fault, and what became of the rows.

    Args:
        injected: how often.
        expected: seed rows.
        found: different seed rows in committed files.
        duplicates: rows of committed files that stand there more than once.
    """

    fault: str
    injected: int
    expected: int
    found: int
    duplicates: int


def objects_of(run: Path) -> dict[str, bytes]:
    """The files of a run's plan, manifests and attempts by key."""
    kept = [run / "plan.json", *run.glob("plans/*.json"), *run.glob("commits/*/*"), *run.glob("attempts/*/*.parquet")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in kept if not path.name.startswith(".")}


def committed_rows(objects: Mapping[str, bytes]) -> list[tuple[int, str]]:
    """(position of the seed row, branch) of every committed row of a run."""
    rows: list[tuple[int, str]] = []
    for name in sorted({key.split("/")[1] for key in objects if key.startswith("commits/")}):
        generation = sum(key.startswith(f"commits/{name}/") and key.endswith(".revoked") for key in objects)
        manifest: dict[str, Any] = json.loads(objects.get(f"commits/{name}/{generation:04d}.json", b"{}"))
        if manifest:
            file = pq.ParquetFile(pa.BufferReader(objects[manifest["key"]]))
            table = file.read(["row_index", "branch"], use_threads=False)
            rows += zip(table["row_index"].to_pylist(), table["branch"].to_pylist(), strict=True)
    return rows


def record(fault: str, injected: int, run: Path | Mapping[str, bytes], expected: int) -> None:
    """Asserts that a run holds every row once after a fault, and notes the fault for the table."""
    rows = committed_rows(objects_of(run) if isinstance(run, Path) else run)
    found = {index for index, _ in rows}
    note(Line(fault, injected, expected, len(found), len(rows) - len(set(rows))))
    assert injected > 0
    assert found == set(range(expected))
    assert len(rows) == len(set(rows))


def note(line: Line) -> None:
    """Keeps a line for the table, where one is being made."""
    if path := os.environ.get(ENVIRONMENT):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")
