"""A run's own files, damaged at random: every command answers with an exit code and says what is wrong."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchgen import run
from batchgen.cli import main
from batchgen.errors import BatchgenError
from batchgen.merge import latest_version
from batchgen.store import LocalStore
from tests.helpers import chaos_job, resealed

SEEDS = 80
COMMANDS = (
    ["status", "RUN"],
    ["status", "RUN", "--json"],
    ["verify", "RUN"],
    ["merge", "RUN"],
    ["merge", "RUN", "--partial", "--set", "merge.near=false"],
    ["publish", "RUN", "--to", "OUT"],
    ["gc", "RUN", "--dry-run"],
    ["revoke", "RUN", "1"],
    ["gc", "RUN"],
)
VALUES = (None, True, 0, -1, 2**70, 1.5, "", "x", [], {}, [1], {"a": 1}, "../../etc/passwd", "\x00")
STRAY = ("commits/notes.txt", "commits/000001/x.json", "commits/000009/0000.json", "versions/x.json", "attempts/x")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "run"
    run(chaos_job(folder, shard_rows=10), in_process=True)
    return folder


def places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place in a JSON tree, but for its root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:6]) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def damage(folder: Path, seed: int) -> str:
    """Damages one file and says how."""
    chance = random.Random(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    records = [path for path in files if path.suffix == ".json"]
    path = chance.choice(records if chance.random() < 0.8 else files)
    data = path.read_bytes()
    kind = chance.choice(["value", "value", "value", "absent", "cut", "byte", "empty", "removed", "stray", "copied"])
    if kind in ("value", "absent") and path.suffix == ".json":
        tree = json.loads(data)
        *above, last = chance.choice(list(places(tree)))
        parent = tree
        for key in above:
            parent = parent[key]
        if kind == "absent":
            del parent[last]
        else:
            parent[last] = chance.choice(VALUES)
        with contextlib.suppress(KeyError, TypeError):  # no format any more, or none that could be one
            if path.name != "plan.json" and chance.random() < 0.5:
                path.write_bytes(resealed(json.dumps(tree).encode()))
                return f"seed {seed}: {kind}, resealed, in {path.relative_to(folder)}"
        path.write_text(json.dumps(tree))
    elif kind == "removed":
        path.unlink()
    elif kind in ("stray", "copied"):
        name = chance.choice(STRAY) if kind == "stray" else "versions/0002.json"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    elif kind == "byte":
        at = chance.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])
    else:
        path.write_bytes(data[: chance.randrange(len(data))] if kind == "cut" else b"")
    return f"seed {seed}: {kind} in {path.relative_to(folder)}"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_command_ends_with_an_answer(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int):
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    what = damage(folder, seed)
    with contextlib.suppress(BatchgenError):
        run(chaos_job(folder, shard_rows=10), in_process=True)
    for command in COMMANDS:
        words = [{"RUN": str(folder), "OUT": str(tmp_path / "out")}.get(word, word) for word in command]
        code = main(words)  # an exception that nobody expected fails the test
        said = capsys.readouterr()
        assert code in (0, 1, 2), (what, command)
        assert code == 0 or "batchgen: error: " in said.err or command[0] == "verify", (what, command, said)
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "out"}, what


@pytest.mark.parametrize(
    ("file", "change", "command", "code", "message"),
    [
        (
            "job.json",
            "{",
            "merge",
            2,
            "job.json cannot be read (JSONDecodeError); the job's own command writes it again",
        ),
        ("job.json", {"seed": 9}, "merge", 2, "job.json was changed after it was written; the job's own command"),
        ("commits/000001/0000.json", {"ok": "9"}, "status", 1, "shard 000001: its manifest was changed after it was"),
        ("commits/000001/0000.json", "{", "status", 1, "shard 000001: its manifest cannot be read (JSONDecodeError)"),
        ("versions/0001.json", {"kept": "all"}, "publish", 1, "versions/0001.json was changed after it was written"),
        (
            "versions/0001.json",
            {"number": 7},
            "merge",
            1,
            "versions/0001.json was changed after it was written; remove",
        ),
        ("versions/0001.json", "{", "merge", 1, "remove it and merge again"),
        ("plan.json", {"rows": 41}, "status", 2, "plan.json was changed after it was written"),
        ("plan.json", "{", "status", 2, "plan.json cannot be read (JSONDecodeError)"),
        (
            "plan.json",
            {"format": 2},
            "status",
            2,
            "plan.json is of another version of batchgen (format 2; this one reads 3)",
        ),
    ],
)
def test_what_is_damaged_is_named(
    sound: Path, tmp_path: Path, capsys, file: str, change: Any, command: str, code: int, message: str
):
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    text = change if isinstance(change, str) else json.dumps({**json.loads((folder / file).read_text()), **change})
    (folder / file).write_text(text)
    more = ["--to", str(tmp_path / "out")] if command == "publish" else []
    assert main([command, str(folder), *more]) == code
    assert message in capsys.readouterr().err


def test_a_version_never_names_a_file_outside_the_dataset(sound: Path, tmp_path: Path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    record = folder / "versions" / "0001.json"
    sealed = record.read_bytes()
    tree = json.loads(sealed)
    for name in ("../../escaped", "/escaped", "data/../../escaped"):
        record.write_bytes(resealed(sealed, files={name: tree["files"]["README.md"]}))
        assert main(["publish", str(folder), "--to", str(tmp_path / "out")]) == 1
        assert "names a file that no dataset has" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_version_never_reads_a_file_outside_the_run(sound: Path, tmp_path: Path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    record = folder / "versions" / "0001.json"
    files = json.loads(record.read_bytes())["files"]
    card = {**files["README.md"], "key": "../../etc/passwd"}
    record.write_bytes(resealed(record.read_bytes(), files={**files, "README.md": card}))
    for command in (["verify", str(folder)], ["publish", str(folder), "--to", str(tmp_path / "out")]):
        assert main(command) == 1
        assert "version 1: README.md is named outside of the run" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_files_that_are_nobody_s_change_nothing(sound: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    for name in STRAY:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    for command in (["verify"], ["merge"], ["gc"]):
        assert main([*command, str(folder)]) == 0
    assert all((folder / name).read_text() == "mine" for name in STRAY)
    assert latest_version(LocalStore(folder)).number == 1
