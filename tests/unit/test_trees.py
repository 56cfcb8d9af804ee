"""Jobs that a program makes, out of its own objects."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from batchgen import Job, run
from batchgen.errors import JobError
from batchgen.seeds import load_seeds

TREE = {
    "name": "own",
    "source": {"rows": [{"instruction": "a"}]},
    "model": {"path": "chaos"},
    "steps": [{"task": "text_generation"}],
    "output": "out",
}


def test_paths_arrays_and_numbers_of_numpy_stand_for_what_a_file_says():
    job = Job.of(
        TREE
        | {
            "output": Path("some/run"),
            "sampling": {"temperature": np.float32(0.5), "max_tokens": np.int64(7)},
            "steps": ({"task": "text_generation"},),
        }
    )
    assert job.output == "some/run"
    assert job.sampling == {"temperature": 0.5, "max_tokens": 7}
    assert type(job.sampling["max_tokens"]) is int


def test_rows_of_a_data_frame_keep_their_values():
    frame = pd.DataFrame({"instruction": ["a"], "day": [pd.Timestamp("2024-01-02")], "array": [np.arange(2)]})
    rows = frame.to_dict("records")
    rows[0] |= {"price": Decimal("1.5"), "raw": b"\xff", "set": date(2024, 1, 2)}
    seeds = load_seeds(Job.of(TREE | {"source": {"rows": rows}}).source)
    assert seeds.table.to_pylist() == [
        {
            "instruction": "a",
            "day": datetime(2024, 1, 2),
            "array": [0, 1],
            "price": Decimal("1.5"),
            "raw": b"\xff",
            "set": date(2024, 1, 2),
        }
    ]


def test_keys_are_names_but_among_the_parameters_of_a_step(tmp_path: Path):
    rows = pd.DataFrame([["a", 1]]).to_dict("records")
    job = Job.of(TREE | {"source": {"rows": rows}, "steps": [{"task": "text_generation", "template": "{{ _0 }}"}]})
    assert job.source.rows == [{"0": "a", "1": 1}]
    steps = [{"task": "apigen_generator", "number": {1: 0.5, np.int64(2): 0.5}}]
    assert Job.of(TREE | {"steps": steps}).steps[0].parameters.model_dump()["number"] == {1: 0.5, 2: 0.5}
    with pytest.raises(JobError, match=r"job: steps\[0\].number: a key of type tuple cannot be part of a job"):
        Job.of(TREE | {"steps": [{"task": "apigen_generator", "number": {(1, 2): 0.5}}]})


def test_bytes_among_the_rows_of_a_job_do_not_end_its_run(tmp_path: Path):
    output = tmp_path / "run"
    result = run(
        TREE | {"source": {"rows": [{"instruction": "a", "raw": b"\xff"}]}, "output": output},
        in_process=True,
    )
    assert result.progress.ok == 1
    assert '"raw":"_w=="' in (output / "job.json").read_text()


def test_a_file_and_a_tree_are_not_mistaken_for_each_other():
    with pytest.raises(JobError, match=r"Job.of: expected a job's tree, got str; a file is for Job.load"):
        Job.of("job.yaml")  # type: ignore[arg-type]
    with pytest.raises(JobError, match=r"Job.load: expected the path of a file, got dict; a tree is for Job.of"):
        Job.load(TREE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": {"rows": [{"x": {"a", "b"}}]}}, "job: source.rows[0].x: set cannot be part of a job"),
        ({"steps": object()}, "job: steps: object cannot be part of a job"),
        ({"source": {"rows": [{"x": pd.NA}]}}, "job: source.rows[0].x: NAType cannot be part of a job"),
        ({"source": {"rows": pd.DataFrame({"x": [1]})}}, "job: source.rows: DataFrame cannot be part of a job; save"),
        ({"source": {"rows": pa.table({"x": [1]})}}, "job: source.rows: Table cannot be part of a job; save"),
    ],
)
def test_what_cannot_stand_in_a_job_is_named(change: dict[str, Any], message: str):
    with pytest.raises(JobError) as caught:
        Job.of(TREE | change)
    assert str(caught.value).startswith(message)
