"""What vLLM's processes say of their end, read from the log."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchgen.embedded import MODEL_PATH
from batchgen.engines.processlog import ProcessLog, root_cause
from batchgen.engines.vllm_start import is_final

# Of vLLM 0.24 on a GPU, cut.
CORE = """\
(EngineCore pid=1749) INFO 11-26 04:33:31 [model_runner.py:302] Model loading took 0.01 GiB and 1.644350 seconds
(EngineCore pid=1749) ERROR 11-26 04:33:31 [core.py:1231] EngineCore failed to start.
(EngineCore pid=1749) ERROR 11-26 04:33:31 [core.py:1231] Traceback (most recent call last):
(EngineCore pid=1749) ERROR 11-26 04:33:31 [core.py:1231]   File "/site/vllm/v1/engine/core.py", line 1200, in run
(EngineCore pid=1749) ERROR 11-26 04:33:31 [core.py:1231]     engine_core = EngineCoreProc(*args, engine_index=dp_rank)
(EngineCore pid=1749) ERROR 11-26 04:33:31 [core.py:1231]                   ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
(EngineCore pid=1749) ERROR 11-26 04:33:31 [core.py:1231] ModuleNotFoundError: No module named 'flashinfer'
(EngineCore pid=1749) Process EngineCore:
(EngineCore pid=1749) Traceback (most recent call last):
"""
# Of vLLM 0.32 with a worker of its own, cut.
WORKER = """\
(EngineCore pid=7) ERROR 11-26 04:57:34 [core.py:1] something else went wrong, and did not matter
(Worker pid=8) ERROR 11-26 04:57:35 [multiproc_executor.py:953] WorkerProc failed to start.
(Worker pid=8) ERROR 11-26 04:57:35 [multiproc_executor.py:953] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-26 04:57:35 [core.py:1] between the others' lines
(Worker pid=8) ERROR 11-26 04:57:35 [multiproc_executor.py:953]     param.data.narrow(0, start, length)
(Worker pid=8) ERROR 11-26 04:57:35 [multiproc_executor.py:953]
(Worker pid=8) ERROR 11-26 04:57:35 [multiproc_executor.py:953] RuntimeError: length (192) exceeds dimension size (96).
(EngineCore pid=7) ERROR 11-26 04:57:36 [core.py:1510] EngineCore failed to start.
(EngineCore pid=7) ERROR 11-26 04:57:36 [core.py:1510] Exception: WorkerProc initialization failed due to an exception.
"""


def test_the_cause_is_the_exception_of_the_process_that_ended_first():
    assert root_cause(CORE) == "ModuleNotFoundError: No module named 'flashinfer'"
    assert root_cause(WORKER) == "RuntimeError: length (192) exceeds dimension size (96)."


@pytest.mark.parametrize("log", ["", CORE.splitlines()[0], "\n".join(CORE.splitlines()[:4])])
def test_there_is_none_where_no_process_said_one(log: str):
    assert root_cause(log) is None


def test_a_vllm_that_cannot_be_imported_is_not_started_again():
    assert is_final(ImportError("libcudart.so.13: cannot open shared object file"))
    assert not is_final(RuntimeError("CUDA out of memory"))


def test_memory_that_another_process_has_for_now_may_be_there_at_the_next_start():
    assert is_final(ValueError("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"))
    assert not is_final(ValueError("Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than desired"))


def test_a_log_that_cannot_be_read_has_no_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever asks is about to say that the engine is dead; every row in flight would be rejected instead."""
    (tmp_path / "log").write_text("earlier\n")
    monkeypatch.setattr("batchgen.engines.processlog._own_files", lambda: [tmp_path / "gone", tmp_path / "log"])
    (tmp_path / "gone").write_text("")
    log = ProcessLog()
    (tmp_path / "gone").unlink()
    with (tmp_path / "log").open("a") as file:
        file.write(CORE)
    assert log.cause() == "ModuleNotFoundError: No module named 'flashinfer'"
    (tmp_path / "log").unlink()
    assert log.cause() is None


START = """
import asyncio, json, sys
from batchgen.engines import build_engine
from batchgen.engines.base import EngineSpec
from batchgen.errors import EngineStartError
if __name__ == "__main__":
    print("(EngineCore pid=1) ERROR 1-1 0:0 [core.py:1] EngineCore failed to start.", flush=True)
    print("(EngineCore pid=1) ERROR 1-1 0:0 [core.py:1] OldError: of an engine before this one", flush=True)
    try:
        asyncio.run(build_engine(EngineSpec(sys.argv[1], arguments=json.loads(sys.argv[3]))).start())
    except EngineStartError as error:
        open(sys.argv[2], "w").write(f"{'final' if error.final else 'not final'}: {error}")
"""


def why_not(folder: Path, model: Path, **arguments: Any) -> str:
    """Why vLLM does not start, in a process of its own whose output goes to a log."""
    script, answer = folder / "start.py", folder / "answer"
    script.write_text(START)
    with (folder / "log").open("w") as log:
        # With a worker in a process beside the engine's, as on several GPUs.
        environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PATH": "/usr/bin:/bin"}
        command = [sys.executable, str(script), str(model), str(answer), json.dumps(arguments)]
        subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=400, check=True)
    return answer.read_text()


@pytest.mark.engine
def test_a_start_that_fails_in_a_process_of_vllm_s_own_says_why(tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(MODEL_PATH, model)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-1000])
    reason = why_not(tmp_path, model, max_model_len=256)
    assert reason.startswith("not final: vLLM did not start: safetensors._safetensors_rust.SafetensorError: ")


@pytest.mark.engine
def test_a_text_that_has_no_room_in_the_kv_cache_is_not_waited_for_three_times(tmp_path: Path):
    """Loading a large model takes minutes; this is told at the end of that."""
    length = 400_000
    reason = why_not(tmp_path, MODEL_PATH, max_model_len=length, hf_overrides={"max_position_embeddings": length})
    assert reason.startswith("final: vLLM did not start: ValueError: To serve at least one request")
    assert "decreasing `max_model_len`" in reason
