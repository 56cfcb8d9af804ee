"""Runs every test that injects faults and makes one table of what became of the rows: `python -m tests.faults`.

It is written to `results.md` beside this file; arguments go to pytest. `--from FILE` makes the table of a
ledger that is there: `make test` writes one where BATCHGEN_FAULT_LEDGER names a file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.ledger import ENVIRONMENT, Line

HERE = Path(__file__).parent
TESTS = (
    "tests/unit/test_drive.py",
    "tests/unit/test_openai.py",
    "tests/unit/test_upkeep.py",
    "tests/faults",
    "tests/cluster/test_nodes.py",
    "tests/simulation",
)


def table(lines: list[Line]) -> str:
    """Markdown, in the order of the faults' names; lines of the same one are added up."""
    total: dict[str, list[int]] = {}
    for line in lines:
        row = total.setdefault(line.fault, [0, 0, 0, 0])
        for i, value in enumerate((line.injected, line.expected, line.found, line.duplicates)):
            row[i] += value
    head = ["| fault | injected | rows expected | rows found | duplicates |", "| --- | ---: | ---: | ---: | ---: |"]
    rows = [f"| {fault} | " + " | ".join(f"{value:,}" for value in row) + " |" for fault, row in sorted(total.items())]
    return "\n".join([*head, *rows]) + "\n"


def main() -> int:
    """pytest's exit code; the table is written only where every test passed."""
    if sys.argv[1:2] == ["--from"]:
        return write(0, Path(sys.argv[2]).read_text())
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.jsonl"
        ledger.touch()
        command = [sys.executable, "-m", "pytest", "-q", *TESTS, *sys.argv[1:]]
        code = subprocess.run(command, env={**os.environ, ENVIRONMENT: str(ledger)}).returncode
        return write(code, ledger.read_text())


def write(code: int, ledger: str) -> int:
    """Prints the table, and keeps it where all went well."""
    lines = [Line(**json.loads(text)) for text in ledger.splitlines()]
    print("\n" + table(lines))
    if code == 0:
        (HERE / "results.md").write_text("Made by `python -m tests.faults`.\n\n" + table(lines))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
