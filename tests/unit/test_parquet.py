"""Reading Parquet starts no thread of Arrow's: one that holds a Python buffer as the interpreter ends aborts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
from pathlib import Path
import pyarrow as pa
import pyarrow.parquet as pq
from batchgen.parquet import first_rows, read_parquet, stored_type

folder = Path(sys.argv[1])
table = pa.table({"messages": [[{"role": "user", "content": "b" * 50}]] * 1000})
pq.write_table(table, folder / "a.parquet")
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
read_parquet((folder / "a.parquet").read_bytes())
read_parquet(folder / "a.parquet")
stored_type(pa.int64())
with open(folder / "a.parquet", "rb") as file:
    assert first_rows(file, 3).num_rows == 3
print(threads() - before)
"""


def test_no_thread_is_left_that_could_outlive_the_interpreter(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]
