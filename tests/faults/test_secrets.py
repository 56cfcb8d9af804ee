"""A canary in the environment, in the seeds and in an engine's exception turns up in no log, plan, card or output."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.cluster
SECRET = "canary-of-the-environment"
TEXT = "canary-of-the-seeds"
ENVIRONMENT = ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN")


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray writes its logs; short, because the names of its sockets have a limit."""
    folder = tempfile.mkdtemp(prefix="bg-", dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def leaks(folder: Path, allowed: tuple[str, ...] = ()) -> set[str]:
    """Files with a canary in them; seed rows are meant to be in the rows' own Parquet files."""
    found = set()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.suffix not in allowed:
            data = path.read_bytes()
            if SECRET.encode() in data or TEXT.encode() in data:
                found.add(path.relative_to(folder).as_posix())
    return found


def test_no_canary_is_written_anywhere_but_into_the_rows(tmp_path: Path, ray_folder: Path):
    lines = [{"instruction": f"{TEXT} {i}" + " fail" * (i % 5 == 0) + " crash" * (i == 7)} for i in range(20)]
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    script = {"error_on": "fail", "crash_on": "crash", "once_file": str(tmp_path / "crashed"), "latency": 0.01}
    tree = {
        "name": "secrets",
        "source": {"path": str(tmp_path / "seeds.jsonl")},
        "model": {"path": "chaos", "engine": script},
        "steps": [{"task": "text_generation"}],
        "output": str(tmp_path / "run"),
        "shard_rows": 5,
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    environment = {**os.environ, **dict.fromkeys(ENVIRONMENT, SECRET), "RAY_TMPDIR": str(ray_folder)}

    def batchgen(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "batchgen.cli", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    # Fails with the engine's death, as then Ray's logs stay.
    out = batchgen("run", str(tmp_path / "job.yaml"), "--set", "max_engine_deaths=1", code=1)
    assert any(path.name.startswith("raylet") for path in ray_folder.rglob("*.out")), "Ray's logs are looked at"
    out += batchgen("run", str(tmp_path / "job.yaml"))
    out += batchgen("status", str(tmp_path / "run")) + batchgen("verify", str(tmp_path / "run"))
    # What the run shows at its end is sample rows of the dataset, which are the user's own text.
    shown = out.partition("sample rows:")[0]
    assert SECRET not in out
    assert TEXT not in shown
    assert leaks(ray_folder) == set()
    assert "seeds.jsonl" in leaks(tmp_path), "a canary is found where there is one"
    # The page about the run has sample rows, too.
    assert leaks(tmp_path / "run", allowed=(".parquet",)) == {"report.html"}
    assert SECRET not in (tmp_path / "run" / "report.html").read_text()
    status = json.loads(batchgen("status", str(tmp_path / "run"), "--json"))
    assert status["rejected"] == 4
