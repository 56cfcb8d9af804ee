"""What a person sees of a run."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from batchgen.display import (
    Display,
    describe,
    describe_duplicates,
    describe_version,
    log_tail,
    noise_to,
    sample_rows,
    show_progress,
    stdout_console,
)
from batchgen.drive import Status
from batchgen.job import Merge
from batchgen.merge.version import DataFile, Version
from batchgen.plaintext import harmless, one_line
from batchgen.progress import Progress
from batchgen.store import LocalStore
from batchgen.tasks.spec import Chat
from tests.helpers import chaos_job

STATUS = Status(
    rows=1000,
    done=Progress(ok=240, rejected=10, reasons={"empty_completion": 7, "prompt_too_long": 3}, output_tokens=9000),
    shards=50,
    shards_done=12,
    engines=4,
    engines_ready=3,
    tokens_per_second=1234.4,
    eta=3725.0,
    notes=("engine 1 did not start: no memory",),
)


def test_a_status_in_one_line():
    assert describe(STATUS) == (
        "250/1,000 rows, shards 12/50, 10 rejected (empty_completion 7, prompt_too_long 3), engines 3/4, 1,234 tok/s, "
        "ETA 1:02:05"
    )


def test_at_the_end_there_is_no_time_left_to_tell():
    ended = replace(STATUS, done=Progress(ok=1000), shards_done=50, eta=0.0)
    assert describe(ended) == "1,000/1,000 rows, shards 50/50, engines 3/4, 1,234 tok/s"


def test_rows_that_the_merger_will_drop_are_told_as_they_come():
    status = replace(STATUS, done=Progress(ok=250, notes={"truncated": 1200, "line_left_out": 3}))
    assert "rows, shards 12/50, 1,200 truncated, engines" in describe(status)


def test_where_no_completion_has_ended_yet_the_rows_at_work_are_told():
    status = replace(STATUS, done=Progress(), engines_ready=4, rows_in_flight=2048, tokens_per_second=0.0, eta=None)
    assert describe(status) == "0/1,000 rows, shards 12/50, engines 4/4, 2,048 rows in flight"
    ended = replace(status, done=Progress(ok=1000), shards_done=50, rows_in_flight=0)
    assert describe(ended) == "1,000/1,000 rows, shards 50/50, engines 4/4", "scores have no tokens"


def test_plain_lines_where_the_output_is_no_terminal():
    out = io.StringIO()
    with Display(Console(file=out, width=200)) as display:
        for _ in range(5):
            display.show(STATUS)
    lines = out.getvalue().splitlines()
    assert sum("250/1,000 rows" in line for line in lines) == 2, "one at the start and one at the end, not one a second"
    assert "  engine 1 did not start: no memory" in lines
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_brackets_in_the_name_of_a_column_are_no_markup(terminal: bool):
    reasons = {"missing_input:[/INST]": 2, "missing_input:[bold]": 8}
    out = io.StringIO()
    with Display(Console(file=out, width=300, force_terminal=terminal)) as display:
        display.show(replace(STATUS, done=replace(STATUS.done, reasons=reasons)))
    assert out.getvalue().count("10 rejected (missing_input:[/INST] 2, missing_input:[bold] 8)") >= 2
    assert "[0:00] 250/1,000 rows" in out.getvalue().splitlines()[-1]


def test_a_script_is_told_notes_at_once_a_line_now_and_then_and_the_end(capsys: pytest.CaptureFixture[str]):
    watch = show_progress(every=60)
    for status in (replace(STATUS, engines=0), STATUS, STATUS, *[replace(STATUS, shards_done=50, notes=())] * 2):
        watch(status)
    note = "  engine 1 did not start: no memory"
    lines = capsys.readouterr().out.splitlines()
    assert [line if line == note else line.partition("] ")[2].partition(", 10")[0] for line in lines] == [
        note,
        note,
        "250/1,000 rows, shards 12/50",
        note,
        "250/1,000 rows, shards 50/50",
    ]


def test_before_engines_are_wanted_there_are_only_notes():
    out = io.StringIO()
    with Display(Console(file=out, width=200)) as display:
        display.show(replace(STATUS, engines=0, engines_ready=0))
    assert "rows" not in out.getvalue()
    assert "  engine 1 did not start: no memory" in out.getvalue()


def test_a_live_display_on_a_terminal():
    out = io.StringIO()
    with Display(Console(file=out, width=120, force_terminal=True)) as display:
        display.show(STATUS)
    assert "250/1000" in out.getvalue()
    assert "\x1b[" in out.getvalue()


def test_what_libraries_print_goes_to_the_log_of_a_run_and_leaves_no_run_behind(tmp_path: Path, capfd):
    (tmp_path / "run").mkdir()
    for run in ("run", "refused"):
        with noise_to(tmp_path / run / "logs" / "driver.log"):
            os.write(2, b"noise\n")
    os.write(2, b"mine\n")
    assert (tmp_path / "run" / "logs" / "driver.log").read_bytes() == b"noise\n"
    assert not (tmp_path / "refused").exists()
    assert capfd.readouterr().err == "mine\n"


def test_once_a_run_has_begun_noise_is_in_its_log_at_once(tmp_path: Path):
    log = tmp_path / "run" / "logs" / "driver.log"
    code = (
        "import os, signal, sys; from pathlib import Path; from batchgen.display import noise_to\n"
        "with noise_to(Path(sys.argv[1])) as keep:\n"
        "    print('before')\n"
        "    keep()\n"
        "    Path(sys.argv[1]).parent.parent.mkdir()\n"
        "    print('early')\n"
        "    keep(); keep()\n"
        "    os.write(2, b'late\\n')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, log], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-9, "", "")
    assert log.read_text() == "before\nearly\nlate\n"


def test_what_libraries_print_to_standard_output_goes_to_the_log_too(tmp_path: Path):
    code = """
import sys
from pathlib import Path
from batchgen.display import noise_to, stdout_console
console = stdout_console()
with noise_to(Path(sys.argv[1])):
    print("noise")
    console.print("mine")
"""
    log = tmp_path / "logs" / "driver.log"
    done = subprocess.run([sys.executable, "-c", code, log], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr, log.read_text()) == ("mine\n", "", "noise\n")


def test_a_terminal_that_goes_away_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch):
    read, write = os.pipe()
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        console = stdout_console()
        with Display(console) as display:
            os.close(read)
            display.show(STATUS)
            with pytest.raises(BrokenPipeError):
                pipe.flush()
        console.print("the end")
        # What Python has not got rid of it would write as it closes the file.
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)


def test_engines_that_start_are_counted():
    for engines, told in ((1, "engine starting"), (2, "2 engines starting")):
        assert f", {told}, " in describe(replace(STATUS, engines=engines, engines_ready=0))


def test_sample_rows_are_shown_as_they_are_and_command_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = "a :smile: [bold]b[/bold]\x1b[31m c\x07\n\nd \u202e\u2603"
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "x" * 300}]
    pq.write_table(pa.table({"messages": [messages]}), tmp_path / "rows.parquet")
    file = DataFile("rows.parquet", 0, "")
    files = {"data/train-00000-of-00001.parquet": file}
    version = Version(1, "", files, {}, read=1, kept=1, dropped={}, shards=1, of_shards=1)
    lines = sample_rows(LocalStore(tmp_path), version)
    shown = "       user: a :smile: [bold]b[/bold]\ufffd[31m c\ufffd d \ufffd\u2603"
    assert lines == [shown, "  assistant: " + "x" * 200 + " ...", ""]
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    stdout_console().print(lines[0], highlight=False, markup=False)
    assert out.getvalue() == shown + "\n"
    (tmp_path / "rows.parquet").unlink()
    assert sample_rows(LocalStore(tmp_path), version) == [], "out of reach, as a bucket may be: it is published"


def test_what_cannot_be_seen_and_belongs_to_a_text_stays_in_it():
    for text in ("می\u200cخواهم", "क्\u200dष", "👩\u200d🔬", "Vraiment\u202f?", "co\xadop", "\u200fשלום", "a\tb\nc"):
        assert harmless(text) == text
    assert one_line("Vraiment\u202f?\t\n a") == "Vraiment ? a"
    for command in "\x00\x07\x08\r\x1b\x7f\x85\x9b\u2028\u202e\u2066\ud800":
        assert harmless(f"a{command}b") == "a\ufffdb"


NO_PROMPT = "the rows have no prompt, and so no messages; merge.prompt and merge.answer can name columns"


@pytest.mark.parametrize(
    ("merge", "chat", "line"),
    [
        ({"compare": "prompt"}, Chat("instruction", "generation"), "duplicates are told by instruction"),
        ({"compare": "prompt"}, Chat("instruction"), "duplicates are told by instruction"),
        ({"compare": "conversation"}, Chat("instruction"), "duplicates are told by instruction"),
        (
            {"compare": "conversation", "exact": False},
            Chat("instruction", "generation"),
            "duplicates are told by instruction and generation",
        ),
        (
            {"compare": "conversation", "near": None},
            "chat",
            "duplicates are told by the user's messages in chat and the answers",
        ),
        ({"compare": "prompt"}, "chat", "duplicates are told by the user's messages in chat"),
        (
            {"compare": "answers"},
            Chat("instruction", "generation"),
            "duplicates are told by instruction, and those with the same by generation",
        ),
        ({"compare": "answers"}, Chat("instruction"), "duplicates are told by instruction"),
        (
            {"compare": None},
            None,
            f"duplicates stay: {NO_PROMPT}",
        ),
        ({"compare": "prompt", "exact": False, "near": None}, Chat("instruction"), "duplicates stay"),
    ],
)
def test_what_duplicates_are_told_by(merge: dict, chat: str | Chat | None, line: str):
    assert describe_duplicates(Merge(**merge), chat) == line


def test_a_merge_that_has_nothing_to_compare_says_so():
    def line(dropped: Mapping[str, int] | None = None, **merge: object) -> str:
        of = {"compare": None, "exact": True, "near": None} | merge
        job = chaos_job("run", steps=[{"task": "magpie", "n_turns": 2}])
        return describe_version(
            Version(1, "", {}, of, read=3, kept=3, dropped=dropped or {}, shards=1, of_shards=1), job
        )

    kept = "merged 3 rows: 3 kept"
    why = f" (duplicates were not looked for: {NO_PROMPT})"
    assert line() == line(exact=False, near={"threshold": 0.8}) == kept + why
    assert line(exact=False) == line(compare="prompt") == kept
    assert (
        "(a larger sampling.max_tokens (within max_model_len) cuts fewer; magpie's keep_shorter: true keeps "
        in line({"rejected: truncated": 3}, exact=False)
    )


def test_sample_rows_that_are_no_conversations_are_shown_column_by_column(tmp_path: Path):
    prompt, chosen = [{"role": "user", "content": "Add\x1b."}], [{"role": "assistant", "content": None}]
    row = {"row_id": "1", "prompt": prompt, "chosen": chosen, "chosen_rating": 4.0, "texts": ["a", "b"], "both": []}
    row |= {"both": prompt + chosen, "cluster_size": 1}
    pq.write_table(pa.Table.from_pylist([row] * 5), tmp_path / "rows.parquet")
    files = {"data/train-00000-of-00001.parquet": DataFile("rows.parquet", 0, "")}
    version = Version(1, "", files, {}, read=5, kept=5, dropped={}, shards=1, of_shards=1)
    lines = sample_rows(LocalStore(tmp_path), version)
    assert (
        lines
        == [
            "         prompt: Add\ufffd.",
            "         chosen: ",
            "  chosen_rating: 4.0",
            '          texts: ["a", "b"]',
            '           both: ["Add\\u001b.", ""]',
            "",
        ]
        * 3
    )


def test_a_run_s_folder_that_is_out_of_reach_hides_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    logs = tmp_path / "run" / "logs"
    logs.mkdir(parents=True)
    (logs / "engine-0.log").write_text("why")
    real = Path.stat

    def stale(path: Path, *arguments: object, **options: bool) -> os.stat_result:
        if path.is_relative_to(tmp_path / "run"):
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "stat", stale)
    assert log_tail(logs) == ""
    with pytest.raises(ValueError, match="what failed"), noise_to(logs / "driver.log") as keep:
        os.write(2, b"noise\n")
        keep()
        raise ValueError("what failed")
    os.write(2, b"mine\n")
    assert capfd.readouterr().err == "mine\n"


def test_the_tail_of_the_log_that_says_why(tmp_path: Path):
    assert log_tail(tmp_path) == ""
    (tmp_path / "driver.log").write_text("")
    assert log_tail(tmp_path) == ""
    (tmp_path / "driver.log").write_text("\n".join(f"driver {i}" for i in range(20)))
    assert log_tail(tmp_path, 2) == f"last lines of {tmp_path / 'driver.log'}:\n  driver 18\n  driver 19"
    for engine, moment in ((0, 200), (1, 100)):
        path = tmp_path / f"engine-{engine}.log"
        path.write_bytes(b"\xff" * 100_000 + b"\n" + f"engine {engine} says why".encode())
        os.utime(path, (moment, moment))
    # The engine that wrote last, though the driver wrote after it.
    assert log_tail(tmp_path, 1) == f"last lines of {tmp_path / 'engine-0.log'}:\n  engine 0 says why"
