"""Turns to start on a GPU: one process at a time has it, and none keeps it when it dies."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from batchgen.distributed import turn
from batchgen.distributed.turn import Turn
from batchgen.errors import EngineStartError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(turn, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(turn, "_FOLDER", turn._FOLDER)  # `take` sets it


def take(folder: Path, gpu: str = "0") -> Turn:
    turn._FOLDER = str(folder)
    return asyncio.run(asyncio.wait_for(Turn.taken(gpu), 20))


def start_engines(folder: Path, number: int) -> None:
    """Some turns of a process; two that have one at once meet at the file that only one can make."""
    for _ in range(number):
        mine = take(folder)
        inside = os.open(folder / "starting", os.O_CREAT | os.O_EXCL)
        time.sleep(0.002)
        (folder / "starting").unlink()
        os.close(inside)
        with (folder / "started").open("a") as file:
            file.write("x")
        mine.end()


def die_with_it(folder: Path) -> None:
    take(folder)
    if (child := os.fork()) == 0:  # as vLLM's own processes would go on for a while
        time.sleep(60)
    (folder / "child").write_text(str(child))
    os._exit(1)


def test_one_at_a_time_and_everybody_in_the_end(tmp_path: Path):
    processes = [multiprocessing.Process(target=start_engines, args=(tmp_path, 25)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 6
    assert (tmp_path / "started").read_text() == "x" * 150
    assert not list(tmp_path.glob("batchgen-*"))


def test_a_process_that_dies_has_no_turn_any_more_though_its_children_live(tmp_path: Path):
    process = multiprocessing.Process(target=die_with_it, args=(tmp_path,))
    process.start()
    while process.exitcode is None:  # to join it takes its child's end as well
        time.sleep(0.01)
    child = int((tmp_path / "child").read_text())
    try:
        assert list(tmp_path.glob("batchgen-*")), "nothing has removed it"
        take(tmp_path).end()
        assert not list(tmp_path.glob("batchgen-*"))
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_each_gpu_has_turns_of_its_own_and_one_may_end_twice(tmp_path: Path):
    first, second = take(tmp_path, "0"), take(tmp_path, "MIG-1a/../2")
    assert len(list(tmp_path.iterdir())) == 2
    first.end()
    first.end()
    second.end()
    assert not list(tmp_path.iterdir())


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path):
    (tmp_path / f"batchgen-{os.getuid()}-gpu-0.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineStartError, match="cannot make"):
        take(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
